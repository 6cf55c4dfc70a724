/* Sliding windows: what convolutions and pools share. */
#include "kernels/ref/ops.h"

int64_t cmkd_ref_pixel_under(const cmkd_ref_call *call, int image, int oy, int ox, int ky, int kx) {
  const cmkd_op *op = call->op;
  const cmkd_shape in = call->in[0];
  int iy = oy * op->stride - op->pad + ky, ix = ox * op->stride - op->pad + kx;
  if (iy < 0 || iy >= in.h || ix < 0 || ix >= in.w) return -1;
  return ((int64_t)image * in.h + iy) * in.w + ix;
}

void cmkd_ref_each_tap(const cmkd_ref_call *call, cmkd_ref_tap_fn *visit) {
  const cmkd_op *op = call->op;
  size_t out = 0;
  for (int image = 0; image < call->n; image++)
    for (int oy = 0; oy < call->out.h; oy++)
      for (int ox = 0; ox < call->out.w; ox++, out++)
        for (int ky = 0; ky < op->kernel_h; ky++)
          for (int kx = 0; kx < op->kernel_w; kx++) {
            int64_t in = cmkd_ref_pixel_under(call, image, oy, ox, ky, kx);
            if (in >= 0) visit(call, (size_t)in, out, ky * op->kernel_w + kx);
          }
}
