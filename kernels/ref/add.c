/* y = act(x0 + x1) */
#include "kernels/ref/ops.h"

void cmkd_ref_add(const cmkd_ref_call *call) {
  size_t count = (size_t)call->n * call->out.h * call->out.w * call->out.c;
  for (size_t i = 0; i < count; i++)
    call->y[i] = cmkd_ref_activate(call->op->act, call->x[0][i] + call->x[1][i]);
}

void cmkd_ref_add_backward(const cmkd_ref_call *call) {
  size_t count = (size_t)call->n * call->out.h * call->out.w * call->out.c;
  for (size_t i = 0; i < count; i++) {
    double d = call->dy[i] * cmkd_ref_act_derivative(call->op->act, call->y[i]);
    for (int k = 0; k < 2; k++)
      if (call->dx[k]) call->dx[k][i] += d;
  }
}
