/* Largest of a window; padding never wins. The gradient goes to the first largest in row order, as in PyTorch. */
#include "kernels/ref/ops.h"
#include <math.h>

/* Position in x of the number that output pixel (oy, ox) takes in one channel. NaN wins, so that it is seen. */
static size_t winner(const cmkd_ref_call *call, int image, int oy, int ox, int channel) {
  const cmkd_op *op = call->op;
  size_t best = SIZE_MAX;
  for (int ky = 0; ky < op->kernel_h; ky++)
    for (int kx = 0; kx < op->kernel_w; kx++) {
      int64_t pixel = cmkd_ref_pixel_under(call, image, oy, ox, ky, kx);
      if (pixel < 0) continue;
      size_t at = (size_t)pixel * call->in[0].c + channel;
      if (best == SIZE_MAX || call->x[0][at] > call->x[0][best] || isnan(call->x[0][at])) best = at;
    }
  return best;
}

/* The same, for number `at` of the output. */
static size_t winner_of(const cmkd_ref_call *call, size_t at) {
  cmkd_shape out = call->out;
  size_t pixel = at / out.c, row = pixel / out.w;
  return winner(call, (int)(row / out.h), (int)(row % out.h), (int)(pixel % out.w), (int)(at % out.c));
}

void cmkd_ref_maxpool(const cmkd_ref_call *call) {
  size_t count = (size_t)call->n * call->out.h * call->out.w * call->out.c;
  for (size_t i = 0; i < count; i++)
    call->y[i] = call->x[0][winner_of(call, i)];
}

void cmkd_ref_maxpool_backward(const cmkd_ref_call *call) {
  size_t count = (size_t)call->n * call->out.h * call->out.w * call->out.c;
  for (size_t i = 0; i < count && call->dx[0]; i++)
    call->dx[0][winner_of(call, i)] += call->dy[i];
}
