/* The losses' row functions for AVX-512. */
#define LOSS_KERNELS_TABLE cmkd_loss_kernels_avx512
#define LOSS_KERNELS_NAME "avx512"
#include "kernels/cpu/loss/rows_impl.h"
