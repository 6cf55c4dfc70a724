/* Channels first .. first + out.c - 1. */
#include "kernels/ref/ops.h"

void cmkd_ref_slice(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  for (size_t p = 0; p < pixels; p++)
    for (int c = 0; c < call->out.c; c++)
      call->y[p * call->out.c + c] = call->x[0][p * call->in[0].c + call->op->first + c];
}

void cmkd_ref_slice_backward(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  for (size_t p = 0; p < pixels && call->dx[0]; p++)
    for (int c = 0; c < call->out.c; c++)
      call->dx[0][p * call->in[0].c + call->op->first + c] += call->dy[p * call->out.c + c];
}
