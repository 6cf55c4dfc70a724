/* Mean of a window; padding counts as zeros (count_include_pad, PyTorch's default). */
#include "kernels/ref/ops.h"

static double weight_of(const cmkd_ref_call *call) { return 1.0 / (call->op->kernel_h * call->op->kernel_w); }

static void add_pixel(const cmkd_ref_call *call, size_t in, size_t out, int tap) {
  (void)tap;
  int channels = call->out.c;
  for (int c = 0; c < channels; c++)
    call->y[out * channels + c] += weight_of(call) * call->x[0][in * channels + c];
}

static void add_gradient(const cmkd_ref_call *call, size_t in, size_t out, int tap) {
  (void)tap;
  int channels = call->out.c;
  for (int c = 0; c < channels; c++)
    call->dx[0][in * channels + c] += weight_of(call) * call->dy[out * channels + c];
}

void cmkd_ref_avgpool(const cmkd_ref_call *call) {
  size_t count = (size_t)call->n * call->out.h * call->out.w * call->out.c;
  for (size_t i = 0; i < count; i++)
    call->y[i] = 0;
  cmkd_ref_each_tap(call, add_pixel);
}

void cmkd_ref_avgpool_backward(const cmkd_ref_call *call) {
  if (call->dx[0]) cmkd_ref_each_tap(call, add_gradient);
}
