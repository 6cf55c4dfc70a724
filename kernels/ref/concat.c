/* Channels of x0, then of x1. */
#include "kernels/ref/ops.h"

void cmkd_ref_concat(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  int a = call->in[0].c, b = call->in[1].c;
  for (size_t p = 0; p < pixels; p++)
    for (int c = 0; c < a + b; c++)
      call->y[p * (a + b) + c] = c < a ? call->x[0][p * a + c] : call->x[1][p * b + c - a];
}

void cmkd_ref_concat_backward(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  int a = call->in[0].c, b = call->in[1].c;
  for (size_t p = 0; p < pixels; p++) {
    for (int c = 0; c < a && call->dx[0]; c++)
      call->dx[0][p * a + c] += call->dy[p * (a + b) + c];
    for (int c = 0; c < b && call->dx[1]; c++)
      call->dx[1][p * b + c] += call->dy[p * (a + b) + a + c];
  }
}
