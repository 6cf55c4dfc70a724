/* Convolution with stride, zero padding and groups (depthwise included). Weights (kh, kw, in / groups, out). */
#include "kernels/ref/ops.h"

/* The output pixel += the input pixel under one tap, times that tap's weights. */
static void add_product(const cmkd_ref_call *call, size_t in, size_t out, int tap) {
  int groups = call->op->groups, in_c = call->in[0].c, out_c = call->out.c, in_g = in_c / groups,
      out_g = out_c / groups;
  const double *x = call->x[0] + in * in_c;
  double *y = call->y + out * out_c;
  for (int g = 0; g < groups; g++)
    for (int i = 0; i < in_g; i++) {
      const double *w = call->param[0] + ((size_t)tap * in_g + i) * out_c + g * out_g;
      for (int o = 0; o < out_g; o++)
        y[g * out_g + o] += x[g * in_g + i] * w[o];
    }
}

/* The gradients of that product. */
static void add_gradients(const cmkd_ref_call *call, size_t in, size_t out, int tap) {
  int groups = call->op->groups, in_c = call->in[0].c, out_c = call->out.c, in_g = in_c / groups,
      out_g = out_c / groups;
  const double *x = call->x[0] + in * in_c;
  for (int g = 0; g < groups; g++) {
    const double *dy = call->dy + out * out_c + g * out_g;
    for (int i = 0; i < in_g; i++) {
      size_t w = ((size_t)tap * in_g + i) * out_c + g * out_g;
      for (int o = 0; o < out_g && call->grad[0]; o++)
        call->grad[0][w + o] += x[g * in_g + i] * dy[o];
      if (!call->dx[0]) continue;
      double sum = 0;
      for (int o = 0; o < out_g; o++)
        sum += call->param[0][w + o] * dy[o];
      call->dx[0][in * in_c + g * in_g + i] += sum;
    }
  }
}

void cmkd_ref_conv(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  int out_c = call->out.c;
  for (size_t p = 0; p < pixels; p++)
    for (int o = 0; o < out_c; o++)
      call->y[p * out_c + o] = call->param[1] ? call->param[1][o] : 0;
  cmkd_ref_each_tap(call, add_product);
}

void cmkd_ref_conv_backward(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  int out_c = call->out.c;
  for (size_t p = 0; p < pixels && call->grad[1]; p++)
    for (int o = 0; o < out_c; o++)
      call->grad[1][o] += call->dy[p * out_c + o];
  cmkd_ref_each_tap(call, add_gradients);
}
