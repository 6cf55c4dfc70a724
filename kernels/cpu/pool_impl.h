/* Max pooling, one window over all channels. Compiled three times, by kernels_base.c (plain x86-64), kernels_avx2.c
 * (-mavx2 -mfma) and kernels_avx512.c (-mavx512*), which put these static functions into the tables of kernels.h. */
#ifndef CMKD_KERNELS_CPU_POOL_IMPL_H
#define CMKD_KERNELS_CPU_POOL_IMPL_H
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

static void max_window(const cmkd_pool_window *window, int c, float *out) {
  for (int at = 0; at < c; at += VF) {
    const int part = c - at < VF ? c - at : 0;
    vf best = load_part(window->in + at, part);
    for (int y = 0; y < window->h; y++)
      for (int x = 0; x < window->w; x++) {
        const vf v = load_part(window->in + y * window->row + x * window->col + at, part);
        best = blend((best >= v) | (best != best), best, v); /* NaN stays */
      }
    store_part(out + at, best, part);
  }
}

static void max_window_backward(const cmkd_pool_window *window, int c, const float *out, const float *dout,
                                float *din) {
  for (int at = 0; at < c; at += VF) {
    const int part = c - at < VF ? c - at : 0;
    const vf best = load_part(out + at, part);
    vf left = load_part(dout + at, part); /* 0 in lanes whose largest pixel was found */
    for (int y = 0; y < window->h; y++)
      for (int x = 0; x < window->w; x++) {
        const int64_t o = y * window->row + x * window->col + at;
        const vi hit = load_part(window->in + o, part) == best;
        store_part(din + o, load_part(din + o, part) + select_f(hit, left), part);
        left = select_f(~hit, left);
      }
  }
}
#endif
