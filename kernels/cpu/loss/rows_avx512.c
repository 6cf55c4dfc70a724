/* The losses' row functions for AVX512. */
#define CMKD_LOSS_ROWS_TABLE cmkd_loss_rows_avx512
#define CMKD_LOSS_ROWS_NAME "avx512"
#include "kernels/cpu/loss/rows.h"
