/* The losses' row functions for any machine. */
#define LOSS_ROWS_TABLE cmkd_loss_rows_base
#define LOSS_ROWS_NAME "baseline"
#include "kernels/cpu/loss/rows_impl.h"
