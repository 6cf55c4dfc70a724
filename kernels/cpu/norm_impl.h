/* Sums over pixels and the passes of batch norm over (pixels, channels) arrays. Compiled three times, by
 * kernels_base.c (plain x86-64), kernels_avx2.c (-mavx2 -mfma) and kernels_avx512.c (-mavx512*), which put these static
 * functions into the tables of kernels.h; what each computes is said there.
 *
 * Channels are taken up to four vectors at a time, so that wide rows read whole cache lines once; the last channels,
 * fewer than a vector, by partial loads. Sums over pixels run in float within one call (the caller hands in a few
 * images) and leave as doubles. */
#ifndef CMKD_KERNELS_CPU_NORM_IMPL_H
#define CMKD_KERNELS_CPU_NORM_IMPL_H
#include "kernels/cpu/activation.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

#define MAX_VECTORS 4

/* ---- statistics ---- */

/* Mean and sum of squared deviations of `vectors` * VF channels. pixels_once: pixels summed into separate registers, to
 * hide the latency of additions. */
INLINE void moments_of(const float *x, int64_t px, int c, float inverse, float *mean, float *m2, const int vectors,
                       const int pixels_once) {
  vf sum[2][MAX_VECTORS] = {{{0}}}, squares[2][MAX_VECTORS] = {{{0}}}, shift[MAX_VECTORS];
  vf rest[MAX_VECTORS] = {{0}}; /* sum of deviations from shift: what rounding left in the mean */
  const float *p = x;
  int64_t i = 0;
  for (; i + pixels_once <= px; i += pixels_once) {
    UNROLL
    for (int u = 0; u < pixels_once; u++, p += c) {
      UNROLL
      for (int j = 0; j < vectors; j++)
        sum[u][j] += load(p + j * VF);
    }
  }
  for (; i < px; i++, p += c) {
    UNROLL
    for (int j = 0; j < vectors; j++)
      sum[0][j] += load(p + j * VF);
  }
  UNROLL
  for (int j = 0; j < vectors; j++) {
    UNROLL
    for (int u = 1; u < pixels_once; u++)
      sum[0][j] += sum[u][j];
    shift[j] = sum[0][j] * splat(inverse);
  }
  for (i = 0, p = x; i + pixels_once <= px; i += pixels_once) {
    UNROLL
    for (int u = 0; u < pixels_once; u++, p += c) {
      UNROLL
      for (int j = 0; j < vectors; j++) {
        const vf d = load(p + j * VF) - shift[j];
        rest[j] += d;
        squares[u][j] += d * d;
      }
    }
  }
  for (; i < px; i++, p += c) {
    UNROLL
    for (int j = 0; j < vectors; j++) {
      const vf d = load(p + j * VF) - shift[j];
      rest[j] += d;
      squares[0][j] += d * d;
    }
  }
  UNROLL
  for (int j = 0; j < vectors; j++) {
    UNROLL
    for (int u = 1; u < pixels_once; u++)
      squares[0][j] += squares[u][j];
    store(mean + j * VF, shift[j] + rest[j] * splat(inverse));
    store(m2 + j * VF, squares[0][j] - rest[j] * rest[j] * splat(inverse));
  }
}

/* The last `part` < VF channels. */
static void moments_part(const float *x, int64_t px, int c, float inverse, float *mean, float *m2, int part) {
  vf shift = {0}, rest = {0}, squares = {0};
  for (int64_t i = 0; i < px; i++)
    shift += load_first(x + i * c, part);
  shift *= splat(inverse);
  for (int64_t i = 0; i < px; i++) {
    const vf d = load_first(x + i * c, part) - shift;
    rest += d;
    squares += d * d;
  }
  store_first(mean, shift + rest * splat(inverse), part);
  store_first(m2, squares - rest * rest * splat(inverse), part);
}

static void moments(const float *x, int64_t px, int c, float *mean, float *m2) {
  const float inverse = 1.0f / (float)px;
  int at = 0;
  for (; at + 4 * VF <= c; at += 4 * VF)
    moments_of(x + at, px, c, inverse, mean + at, m2 + at, 4, 1);
  for (; at + 2 * VF <= c; at += 2 * VF)
    moments_of(x + at, px, c, inverse, mean + at, m2 + at, 2, 2);
  for (; at + VF <= c; at += VF)
    moments_of(x + at, px, c, inverse, mean + at, m2 + at, 1, 2);
  if (at < c) moments_part(x + at, px, c, inverse, mean + at, m2 + at, c - at);
}

static void channel_sums(const float *x, int64_t px, int c, double *sum) {
  for (int at = 0; at < c; at += VF) {
    const int part = c - at < VF ? c - at : 0;
    vf s = {0};
    for (int64_t i = 0; i < px; i++)
      s += load_part(x + i * c + at, part);
    for (int j = 0; j < (part ? part : VF); j++)
      sum[at + j] += s[j];
  }
}

/* ---- batch norm ---- */

static void affine(const float *x, const float *scale, const float *shift, const float *add, cmkd_act act, float *y,
                   int64_t px, int c) {
  const int whole = c / VF * VF, part = c % VF;
  for (int64_t i = 0; i < px; i++, x += c, y += c) {
    if (add)
      for (int at = 0; at < whole; at += VF)
        store(y + at, activate(load(x + at) * load(scale + at) + load(shift + at) + load(add + at), act));
    else
      for (int at = 0; at < whole; at += VF)
        store(y + at, activate(load(x + at) * load(scale + at) + load(shift + at), act));
    if (part) {
      vf v = load_first(x + whole, part) * load_first(scale + whole, part) + load_first(shift + whole, part);
      if (add) v += load_first(add + whole, part);
      store_first(y + whole, activate(v, act), part);
    }
    if (add) add += c;
  }
}

/* Channels [at, at + vectors * VF), or [at, at + part) where part is not 0. */
INLINE void sum_vectors(const cmkd_norm_gradient *g, int at, float *masked, double *sum1, double *sum2,
                        const int vectors, const int part) {
  const float *dy = g->dy + at, *x = g->x + at, *y = g->y ? g->y + at : NULL;
  const cmkd_act act = g->act;
  const int64_t px = g->px;
  const int c = g->c;
  vf s1[MAX_VECTORS] = {{0}}, s2[MAX_VECTORS] = {{0}}, mean[MAX_VECTORS], scale[MAX_VECTORS], shift[MAX_VECTORS];
  if (masked) masked += at;
  UNROLL
  for (int j = 0; j < vectors; j++) {
    mean[j] = load_part(g->mean + at + j * VF, part);
    scale[j] = load_part(g->scale + at + j * VF, part);
    shift[j] = load_part(g->shift + at + j * VF, part);
  }
  for (int64_t i = 0, o = 0; i < px; i++, o += c) {
    UNROLL
    for (int j = 0; j < vectors; j++) {
      const vf xv = load_part(x + o + j * VF, part);
      vf d = load_part(dy + o + j * VF, part);
      if (act != CMKD_ACT_NONE)
        d = activate_backward(d, y ? load_part(y + o + j * VF, part) : xv * scale[j] + shift[j], act);
      if (masked) store_part(masked + o + j * VF, d, part);
      s1[j] += d;
      s2[j] += d * (xv - mean[j]);
    }
  }
  UNROLL
  for (int j = 0; j < vectors; j++)
    for (int l = 0; l < (part ? part : VF); l++) {
      sum1[at + j * VF + l] += s1[j][l];
      sum2[at + j * VF + l] += s2[j][l];
    }
}

static void norm_backward_sums(const cmkd_norm_gradient *g, float *masked, double *sum1, double *sum2) {
  int at = 0;
  for (; at + 4 * VF <= g->c; at += 4 * VF)
    sum_vectors(g, at, masked, sum1, sum2, 4, 0);
  for (; at + 2 * VF <= g->c; at += 2 * VF)
    sum_vectors(g, at, masked, sum1, sum2, 2, 0);
  for (; at + VF <= g->c; at += VF)
    sum_vectors(g, at, masked, sum1, sum2, 1, 0);
  if (at < g->c) sum_vectors(g, at, masked, sum1, sum2, 1, g->c - at);
}

/* One vector of channels from `at` on, of the pixel whose channels begin at float `pixel`. */
INLINE void backward_vector(const cmkd_norm_gradient *g, const float *dx_scale, const float *dx_shift, int accumulate,
                            float *dx, int64_t pixel, int at, const int part) {
  const int64_t o = pixel + at;
  const vf x = load_part(g->x + o, part), scale = load_part(g->scale + at, part),
           z = g->y ? load_part(g->y + o, part) : x * scale + load_part(g->shift + at, part);
  vf d = activate_backward(load_part(g->dy + o, part), z, g->act) * scale +
         (load_part(dx_scale + at, part) * (x - load_part(g->mean + at, part)) + load_part(dx_shift + at, part));
  if (accumulate) d += load_part(dx + o, part);
  store_part(dx + o, d, part);
}

static void norm_backward(const cmkd_norm_gradient *gradient, const float *dx_scale, const float *dx_shift,
                          int accumulate, float *dx) {
  const cmkd_norm_gradient g = *gradient; /* a copy, which stores to dx cannot change */
  const int whole = g.c / VF * VF, part = g.c % VF;
  for (int64_t i = 0, pixel = 0; i < g.px; i++, pixel += g.c) {
    for (int at = 0; at < whole; at += VF)
      backward_vector(&g, dx_scale, dx_shift, accumulate, dx, pixel, at, 0);
    if (part) backward_vector(&g, dx_scale, dx_shift, accumulate, dx, pixel, whole, part);
  }
}
#endif
