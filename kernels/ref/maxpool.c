/* Largest of a window; padding never wins. The gradient goes to the first largest in row order, as in PyTorch. */
#include "kernels/ref/ops.h"
#include <math.h>

/* Position of the winner in x, for one output number. NaN wins, so that it is seen. */
static size_t winner(const cmkd_ref_call *call, int image, int oy, int ox, int channel) {
  const cmkd_op *op = call->op;
  cmkd_shape in = call->in[0];
  size_t best = SIZE_MAX;
  for (int ky = 0; ky < op->kernel_h; ky++)
    for (int kx = 0; kx < op->kernel_w; kx++) {
      int iy = oy * op->stride - op->pad + ky, ix = ox * op->stride - op->pad + kx;
      if (iy < 0 || iy >= in.h || ix < 0 || ix >= in.w) continue;
      size_t at = (((size_t)image * in.h + iy) * in.w + ix) * in.c + channel;
      if (best == SIZE_MAX || call->x[0][at] > call->x[0][best] || isnan(call->x[0][at])) best = at;
    }
  return best;
}

#define EACH_OUTPUT(call, image, oy, ox, channel, at) \
  for (size_t image = 0, at = 0; image < (size_t)(call)->n; image++) \
    for (int oy = 0; oy < (call)->out.h; oy++) \
      for (int ox = 0; ox < (call)->out.w; ox++) \
        for (int channel = 0; channel < (call)->out.c; channel++, at++)

void cmkd_ref_maxpool(const cmkd_ref_call *call) {
  EACH_OUTPUT(call, image, oy, ox, channel, at) call->y[at] = call->x[0][winner(call, (int)image, oy, ox, channel)];
}

void cmkd_ref_maxpool_backward(const cmkd_ref_call *call) {
  if (!call->dx[0]) return;
  EACH_OUTPUT(call, image, oy, ox, channel, at) call->dx[0][winner(call, (int)image, oy, ox, channel)] += call->dy[at];
}
