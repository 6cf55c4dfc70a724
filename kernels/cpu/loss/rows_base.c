/* The losses' row functions for any machine. */
#define LOSS_KERNELS_TABLE cmkd_loss_kernels_base
#define LOSS_KERNELS_NAME "baseline"
#include "kernels/cpu/loss/rows_impl.h"
