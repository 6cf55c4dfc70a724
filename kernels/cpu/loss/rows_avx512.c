/* The losses' row functions for AVX-512. */
#define LOSS_ROWS_TABLE cmkd_loss_rows_avx512
#define LOSS_ROWS_NAME "avx512"
#include "kernels/cpu/loss/rows_impl.h"
