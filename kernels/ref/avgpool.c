/* Mean of a window; padding counts as zeros (count_include_pad, PyTorch's default). */
#include "kernels/ref/ops.h"

/* Forward sums x into y; backward spreads dy over dx. */
static void walk(const cmkd_ref_call *call, double *y, const double *dy, double *dx) {
  const cmkd_op *op = call->op;
  cmkd_shape in = call->in[0], out = call->out;
  double weight = 1.0 / (op->kernel_h * op->kernel_w);
  for (int image = 0; image < call->n; image++)
    for (int oy = 0; oy < out.h; oy++)
      for (int ox = 0; ox < out.w; ox++)
        for (int ky = 0; ky < op->kernel_h; ky++)
          for (int kx = 0; kx < op->kernel_w; kx++) {
            int iy = oy * op->stride - op->pad + ky, ix = ox * op->stride - op->pad + kx;
            if (iy < 0 || iy >= in.h || ix < 0 || ix >= in.w) continue;
            size_t from = (((size_t)image * in.h + iy) * in.w + ix) * in.c,
                   to = (((size_t)image * out.h + oy) * out.w + ox) * out.c;
            for (int c = 0; c < in.c; c++) {
              if (y)
                y[to + c] += weight * call->x[0][from + c];
              else
                dx[from + c] += weight * dy[to + c];
            }
          }
}

void cmkd_ref_avgpool(const cmkd_ref_call *call) {
  size_t count = (size_t)call->n * call->out.h * call->out.w * call->out.c;
  for (size_t i = 0; i < count; i++)
    call->y[i] = 0;
  walk(call, call->y, NULL, NULL);
}

void cmkd_ref_avgpool_backward(const cmkd_ref_call *call) {
  if (call->dx[0]) walk(call, NULL, call->dy, call->dx[0]);
}
