/* Passes over one row in float: load, statistics, exponentials, correlation of probabilities. Part of rows_impl.h,
 * compiled once per instruction set.
 * Rows are padded, so that passes take whole vectors: at least VF floats follow the n logits, the first VF of which
 * repeat class 0. That changes no maximum and no minimum, and adds nothing to sums that are shifted by class 0. */
#ifndef CMKD_KERNELS_CPU_LOSS_FLOAT_PASS_H
#define CMKD_KERNELS_CPU_LOSS_FLOAT_PASS_H
#include <math.h>
#include "base/half.h"
#include "kernels/cpu/loss/exp.h"
#include "kernels/cpu/loss/loss.h"
#include "kernels/cpu/vector.h"

#define FLUSH 2048 /* floats summed in float lanes before the sum moves on to double */

/* Floats of a padded row, in any instruction set. */
static int64_t row_floats(int64_t n) { return (n + 15) / 16 * 16 + 16; }

/* Row `row` of a teacher's logits (rows, n) as floats. */
static void load_teacher(const void *base, cmkd_dtype dtype, int64_t row, int64_t n, float *out) {
  if (dtype == CMKD_F32) {
    memcpy(out, (const float *)base + row * n, (size_t)n * sizeof *out);
  } else {
    const uint16_t *half = (const uint16_t *)base + row * n;
    int64_t i = 0;
    if (dtype == CMKD_BF16) {
      for (; i + VF <= n; i += VF)
        store(out + i, bf16_to_float(half + i));
      for (; i < n; i++)
        out[i] = cmkd_bf16_to_float(half[i]);
    } else {
#ifdef VECTOR_F16
      for (; i + VF <= n; i += VF)
        store(out + i, f16_to_float(half + i));
#endif
      for (; i < n; i++)
        out[i] = cmkd_half_to_float(half[i]);
    }
  }
  store(out + n, splat(out[0]));
}

/* Row `row` of the student's logits (rows, n). */
static void load_student(const float *base, int64_t row, int64_t n, float *out) {
  memcpy(out, base + row * n, (size_t)n * sizeof *out);
  store(out + n, splat(out[0]));
}

/* Mean, deviation and range of x (n, padded). Sums are shifted by x[0] and in double, which loses nothing, since
 * (x[0] - mean)^2 <= n * variance. */
static cmkd_row_stats row_stats(const float *x, int64_t n) {
  vf hi = load(x), lo = hi;
  vd shift = splat_d(x[0]), sum = splat_d(0), sum2 = sum, square = sum, square2 = sum;
  for (int64_t i = 0; i < n; i += VF) {
    vf v = load(x + i);
    vd a = low_d(v) - shift, b = high_d(v) - shift;
    hi = max_f(hi, v);
    lo = min_f(lo, v);
    sum += a;
    sum2 += b;
    square += a * a;
    square2 += b * b;
  }
  double s = sum_d(sum + sum2), mean = s / (double)n, var = sum_d(square + square2) / (double)n - mean * mean;
  cmkd_row_stats out = {.mean = mean + x[0], .max = largest_f(hi), .min = least_f(lo), .finite = isfinite(s)};
  out.sigma = var > 0 ? sqrt(var) : 0;
  double largest = fmax(fabs((double)out.max), fabs((double)out.min));
  out.degenerate = out.sigma <= CMKD_DEGENERATE * (largest > 1 ? largest : 1);
  return out;
}

/* (x - shift) * k, kept finite for logits near the largest float */
INLINE vf scaled(vf x, vf shift, vf k) { return max_f((x - shift) * k, splat(-1e30f)); }

/* e = exp((x - shift) * k), zero in the pad; returns its sum. dot, where not NULL: sum of e * (x - shift) * k. e may be
 * NULL. Sums of e are taken in double: with shift the largest x, sum - 1 is what the other classes hold, and a
 * confident row's gradient is made of that. */
static double exp_row(const float *x, int64_t n, float shift_, float k_, float *e, double *dot) {
  vf shift = splat(shift_), k = splat(k_);
  vd sum = splat_d(0), sum2 = sum;
  double total_dot = 0;
  for (int64_t from = 0; from < n; from += FLUSH) {
    int64_t to = from + FLUSH < n ? from + FLUSH : n;
    vf weighted = splat(0);
    for (int64_t i = from; i < to; i += VF) {
      vf d = scaled(load(x + i), shift, k), v = exp_f(d);
      if (i + VF > to) v = keep(v, (int)(to - i));
      if (e) store(e + i, v);
      sum += low_d(v);
      sum2 += high_d(v);
      if (dot) weighted += v * d;
    }
    if (dot) total_dot += sum_f(weighted);
  }
  if (dot) *dot = total_dot;
  return sum_d(sum + sum2);
}

/* Student and teacher together: es, et as above with ds = (s - smax) k, dt likewise. */
typedef struct exp_pair {
  double zs, zt;              /* sums of es, of et */
  double kl_sum;              /* sum et (dt - ds) */
  double teacher_dot_student; /* sum et ds */
} exp_pair;
static exp_pair exp_rows(const float *s, const float *t, int64_t n, float smax, float tmax, float k_, float *es,
                         float *et) {
  vf ms = splat(smax), mt = splat(tmax), k = splat(k_);
  vd zs = splat_d(0), zs2 = zs, zt = zs, zt2 = zs;
  exp_pair out = {0, 0, 0, 0};
  for (int64_t from = 0; from < n; from += FLUSH) {
    int64_t to = from + FLUSH < n ? from + FLUSH : n;
    vf kl = splat(0), dot = kl;
    for (int64_t i = from; i < to; i += VF) {
      vf ds = scaled(load(s + i), ms, k), dt = scaled(load(t + i), mt, k), a = exp_f(ds), b = exp_f(dt);
      if (i + VF > to) {
        a = keep(a, (int)(to - i));
        b = keep(b, (int)(to - i));
      }
      store(es + i, a);
      store(et + i, b);
      zs += low_d(a);
      zs2 += high_d(a);
      zt += low_d(b);
      zt2 += high_d(b);
      kl += b * (dt - ds);
      dot += b * ds;
    }
    out.kl_sum += sum_f(kl);
    out.teacher_dot_student += sum_f(dot);
  }
  out.zs = sum_d(zs + zs2);
  out.zt = sum_d(zt + zt2);
  return out;
}

/* g += ca * a + cb * b */
static void add2(float *g, const float *a, double ca_, const float *b, double cb_, int64_t n) {
  vf ca = splat((float)ca_), cb = splat((float)cb_);
  for (int64_t i = 0; i < n; i += VF)
    store(g + i, load(g + i) + ca * load(a + i) + cb * load(b + i));
}

/* g += a * p - b * q, where p = es / zs, q = et / zt and 1 is the largest of es and of et. Where one class has more
 * than half of both, p - q is taken from what the others have, since 1 - 1e-7 is all that a float knows of 1 - 1e-9.
 * a_less_b: a - b without cancellation. */
static void add_difference(float *g, const float *es, const float *et, const exp_pair *x, double a, double b,
                           double a_less_b, int64_t n) {
  int64_t top = -1;
  float before = 0;
  for (int64_t i = 0; x->zs < 2 && x->zt < 2 && i < n; i++)
    if (es[i] == 1 && et[i] == 1) {
      top = i;
      before = g[i];
      break;
    }
  add2(g, es, a / x->zs, et, -b / x->zt, n);
  if (top >= 0) g[top] = before + (float)(a_less_b - a * (x->zs - 1) / x->zs + b * (x->zt - 1) / x->zt);
}

/* Correlation of p = e_s / z_s and q = e_t / z_t. With a = p - 1/n, b = q - 1/n:
 * aa, bb, ab their products; pa = sum p a x, pb = sum p b x, where x = (s - mean) * inverse (0 where inverse is 0). */
typedef struct correlation {
  double aa, bb, ab, pa, pb;
} correlation;
static correlation correlate(const float *es, double iz_s, const float *et, double iz_t, const float *s, double mean_,
                             double inverse_, int64_t n) {
  vf is = splat((float)iz_s), it = splat((float)iz_t), each = splat((float)(1 / (double)n)), mean = splat((float)mean_),
     inverse = splat((float)inverse_);
  vf limit = splat(3e38f);
  correlation out = {0, 0, 0, 0, 0};
  for (int64_t from = 0; from < n; from += FLUSH) {
    int64_t to = from + FLUSH < n ? from + FLUSH : n;
    vf aa = splat(0), bb = aa, ab = aa, pa = aa, pb = aa;
    for (int64_t i = from; i < to; i += VF) {
      vf p = load(es + i) * is, a = p - each, b = load(et + i) * it - each;
      if (i + VF > to) {
        a = keep(a, (int)(to - i));
        b = keep(b, (int)(to - i));
      }
      vf x = max_f(min_f(load(s + i) - mean, limit), -limit) * inverse, px = p * x;
      aa += a * a;
      bb += b * b;
      ab += a * b;
      pa += px * a;
      pb += px * b;
    }
    out.aa += sum_f(aa);
    out.bb += sum_f(bb);
    out.ab += sum_f(ab);
    out.pa += sum_f(pa);
    out.pb += sum_f(pb);
  }
  return out;
}
#endif
