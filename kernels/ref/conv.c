/* Convolution with stride, zero padding and groups (depthwise included). */
#include "kernels/ref/ops.h"

/* Calls `visit` for every pair of an output pixel and an input pixel under the window. */
#define EACH_WINDOW(call, image, oy, ox, ky, kx, iy, ix) \
  for (int image = 0; image < (call)->n; image++) \
    for (int oy = 0; oy < (call)->out.h; oy++) \
      for (int ox = 0; ox < (call)->out.w; ox++) \
        for (int ky = 0; ky < (call)->op->kernel_h; ky++) \
          for (int kx = 0, iy = oy * (call)->op->stride - (call)->op->pad + ky; kx < (call)->op->kernel_w; kx++) \
            for (int ix = ox * (call)->op->stride - (call)->op->pad + kx, once = 1; once; once = 0) \
              if (iy >= 0 && iy < (call)->in[0].h && ix >= 0 && ix < (call)->in[0].w)

void cmkd_ref_conv(const cmkd_ref_call *call) {
  const cmkd_op *op = call->op;
  int in_c = call->in[0].c, out_c = call->out.c, in_g = in_c / op->groups, out_g = out_c / op->groups;
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  for (size_t p = 0; p < pixels; p++)
    for (int o = 0; o < out_c; o++)
      call->y[p * out_c + o] = call->param[1] ? call->param[1][o] : 0;
  EACH_WINDOW(call, image, oy, ox, ky, kx, iy, ix) {
    const double *x = call->x[0] + (((size_t)image * call->in[0].h + iy) * call->in[0].w + ix) * in_c;
    double *y = call->y + (((size_t)image * call->out.h + oy) * call->out.w + ox) * out_c;
    const double *w = call->param[0] + (size_t)(ky * op->kernel_w + kx) * in_g * out_c;
    for (int g = 0; g < op->groups; g++)
      for (int i = 0; i < in_g; i++) {
        double value = x[g * in_g + i];
        const double *row = w + (size_t)i * out_c + g * out_g;
        for (int o = 0; o < out_g; o++)
          y[g * out_g + o] += value * row[o];
      }
  }
}

void cmkd_ref_conv_backward(const cmkd_ref_call *call) {
  const cmkd_op *op = call->op;
  int in_c = call->in[0].c, out_c = call->out.c, in_g = in_c / op->groups, out_g = out_c / op->groups;
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  for (size_t p = 0; p < pixels && call->grad[1]; p++)
    for (int o = 0; o < out_c; o++)
      call->grad[1][o] += call->dy[p * out_c + o];
  EACH_WINDOW(call, image, oy, ox, ky, kx, iy, ix) {
    size_t at = (((size_t)image * call->in[0].h + iy) * call->in[0].w + ix) * in_c;
    const double *dy = call->dy + (((size_t)image * call->out.h + oy) * call->out.w + ox) * out_c;
    size_t tap = (size_t)(ky * op->kernel_w + kx) * in_g * out_c;
    for (int g = 0; g < op->groups; g++)
      for (int i = 0; i < in_g; i++) {
        double value = call->x[0][at + g * in_g + i], sum = 0;
        size_t row = tap + (size_t)i * out_c + g * out_g;
        if (call->grad[0])
          for (int o = 0; o < out_g; o++)
            call->grad[0][row + o] += value * dy[g * out_g + o];
        if (!call->dx[0]) continue;
        for (int o = 0; o < out_g; o++)
          sum += call->param[0][row + o] * dy[g * out_g + o];
        call->dx[0][at + g * in_g + i] += sum;
      }
  }
}
