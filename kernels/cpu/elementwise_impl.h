/* Element-wise arithmetic over flat arrays of n floats: whole vectors, then the rest one by one. Compiled once per
 * instruction set, as norm_impl.h is; what each computes is said in kernels.h. */
#ifndef CMKD_KERNELS_CPU_ELEMENTWISE_IMPL_H
#define CMKD_KERNELS_CPU_ELEMENTWISE_IMPL_H
#include "kernels/cpu/activation.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

static void add(float *dst, const float *src, int64_t n) {
  int64_t i = 0;
  for (; i + VF <= n; i += VF)
    store(dst + i, load(dst + i) + load(src + i));
  for (; i < n; i++)
    dst[i] += src[i];
}

static void add_scaled(float *y, const float *x, float a, int64_t n) {
  int64_t i = 0;
  for (; i + VF <= n; i += VF)
    store(y + i, load(y + i) + load(x + i) * splat(a));
  for (; i < n; i++)
    y[i] += x[i] * a;
}

static void add_act(const float *a, const float *b, cmkd_act act, float *y, int64_t n) {
  int64_t i = 0;
  for (; i + VF <= n; i += VF) {
    vf v = load(a + i);
    if (b) v += load(b + i);
    store(y + i, activate(v, act));
  }
  for (; i < n; i++)
    y[i] = activate_float(a[i] + (b ? b[i] : 0.0f), act);
}

static void act_backward(const float *dy, const float *y, cmkd_act act, int accumulate, float *dx, int64_t n) {
  int64_t i = 0;
  for (; i + VF <= n; i += VF) {
    vf d = activate_backward(load(dy + i), load(y + i), act);
    if (accumulate) d += load(dx + i);
    store(dx + i, d);
  }
  for (; i < n; i++)
    dx[i] = activate_backward_float(dy[i], y[i], act) + (accumulate ? dx[i] : 0.0f);
}
#endif
