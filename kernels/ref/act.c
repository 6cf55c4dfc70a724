/* y = act(x), and the activations themselves. */
#include "kernels/ref/ops.h"

double cmkd_ref_activate(cmkd_act act, double x) {
  if (act == CMKD_ACT_NONE) return x;
  if (x < 0) return 0; /* NaN stays NaN */
  return act == CMKD_ACT_RELU6 && x > 6 ? 6 : x;
}

double cmkd_ref_act_derivative(cmkd_act act, double y) {
  return act == CMKD_ACT_NONE || (y > 0 && (act == CMKD_ACT_RELU || y < 6));
}

void cmkd_ref_act(const cmkd_ref_call *call) {
  size_t count = (size_t)call->n * call->out.h * call->out.w * call->out.c;
  for (size_t i = 0; i < count; i++)
    call->y[i] = cmkd_ref_activate(call->op->act, call->x[0][i]);
}

void cmkd_ref_act_backward(const cmkd_ref_call *call) {
  size_t count = (size_t)call->n * call->out.h * call->out.w * call->out.c;
  for (size_t i = 0; i < count && call->dx[0]; i++)
    call->dx[0][i] += call->dy[i] * cmkd_ref_act_derivative(call->op->act, call->y[i]);
}
