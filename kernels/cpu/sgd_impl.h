/* The optimizer: SGD with momentum and weight decay. Compiled once per instruction set, as norm_impl.h is; the formulas
 * are in kernels.h. */
#ifndef CMKD_KERNELS_CPU_SGD_IMPL_H
#define CMKD_KERNELS_CPU_SGD_IMPL_H
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

static void sgd(float *w, float *m, const float *g, int64_t n, float lr, float momentum, float decay, int nesterov) {
  int64_t i = 0;
  for (; i + VF <= n; i += VF) {
    const vf wv = load(w + i), gv = load(g + i) + splat(decay) * wv, mv = splat(momentum) * load(m + i) + gv;
    store(m + i, mv);
    store(w + i, wv - splat(lr) * (nesterov ? gv + splat(momentum) * mv : mv));
  }
  for (; i < n; i++) {
    const float gv = g[i] + decay * w[i], mv = momentum * m[i] + gv;
    m[i] = mv;
    w[i] -= lr * (nesterov ? gv + momentum * mv : mv);
  }
}
#endif
