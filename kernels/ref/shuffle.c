/* Channel shuffle: channels seen as (groups, c / groups) are transposed to (c / groups, groups). */
#include "kernels/ref/ops.h"

void cmkd_ref_shuffle(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  int c = call->out.c, groups = call->op->groups, each = c / groups;
  for (size_t p = 0; p < pixels; p++)
    for (int g = 0; g < groups; g++)
      for (int j = 0; j < each; j++)
        call->y[p * c + j * groups + g] = call->x[0][p * c + g * each + j];
}

void cmkd_ref_shuffle_backward(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  int c = call->out.c, groups = call->op->groups, each = c / groups;
  for (size_t p = 0; p < pixels && call->dx[0]; p++)
    for (int g = 0; g < groups; g++)
      for (int j = 0; j < each; j++)
        call->dx[0][p * c + g * each + j] += call->dy[p * c + j * groups + g];
}
