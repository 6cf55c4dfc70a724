/* The losses' row functions for AVX2. */
#define LOSS_KERNELS_TABLE cmkd_loss_kernels_avx2
#define LOSS_KERNELS_NAME "avx2"
#include "kernels/cpu/loss/rows_impl.h"
