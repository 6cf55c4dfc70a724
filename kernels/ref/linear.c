/* y = W x + b on the flattened input. Images are NHWC here, weights expect NCHW order: feature f = (c * h + row) * w +
 * column. */
#include "kernels/ref/ops.h"

void cmkd_ref_linear(const cmkd_ref_call *call) {
  cmkd_shape in = call->in[0];
  int area = in.h * in.w;
  size_t features = (size_t)area * in.c;
  for (int image = 0; image < call->n; image++)
    for (int o = 0; o < call->out.c; o++) {
      const double *w = call->param[0] + (size_t)o * features, *x = call->x[0] + (size_t)image * features;
      double sum = call->param[1] ? call->param[1][o] : 0;
      for (int p = 0; p < area; p++)
        for (int c = 0; c < in.c; c++)
          sum += w[(size_t)c * area + p] * x[(size_t)p * in.c + c];
      call->y[(size_t)image * call->out.c + o] = sum;
    }
}

void cmkd_ref_linear_backward(const cmkd_ref_call *call) {
  cmkd_shape in = call->in[0];
  int area = in.h * in.w;
  size_t features = (size_t)area * in.c;
  for (int image = 0; image < call->n; image++)
    for (int o = 0; o < call->out.c; o++) {
      double d = call->dy[(size_t)image * call->out.c + o];
      size_t w = (size_t)o * features, x = (size_t)image * features;
      if (call->grad[1]) call->grad[1][o] += d;
      for (int p = 0; p < area; p++)
        for (int c = 0; c < in.c; c++) {
          if (call->grad[0]) call->grad[0][w + (size_t)c * area + p] += d * call->x[0][x + (size_t)p * in.c + c];
          if (call->dx[0]) call->dx[0][x + (size_t)p * in.c + c] += d * call->param[0][w + (size_t)c * area + p];
        }
    }
}
