/* The losses' row functions for any machine. */
#define CMKD_LOSS_ROWS_TABLE cmkd_loss_rows_base
#define CMKD_LOSS_ROWS_NAME "baseline"
#include "kernels/cpu/loss/rows.h"
