/* The losses' row functions for AVX2. */
#define LOSS_ROWS_TABLE cmkd_loss_rows_avx2
#define LOSS_ROWS_NAME "avx2"
#include "kernels/cpu/loss/rows_impl.h"
