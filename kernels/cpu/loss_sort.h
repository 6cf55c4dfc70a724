/* Sorting rows of logits, descending, with the class each came from. A logit becomes a double (exact), whose low 17 bits, zero in every
 * converted float, take the class: so a plain min and max of doubles sorts pairs.
 *   up to SORT_NETWORK classes: VD rows at once, one a lane, by a bitonic network whose comparators all point the same way (so that rows
 *   need no padding to a power of two);  above: one row at a time, radix sort.
 * Memory: the network sorts `keys` (n8, VD) in place, n8 = n rounded up to 8; the radix sort needs two arrays of n integers. */
#ifndef CMKD_KERNELS_CPU_LOSS_SORT_H
#define CMKD_KERNELS_CPU_LOSS_SORT_H
#include "kernels/cpu/loss_simd.h"

#define SORT_NETWORK 2048 /* measured crossover, AVX2: see bench/loss.c */
#define INDEX_MASK 0x1FFFFull
#define ZERO_KEY 0x1p-1000 /* stands for +-0: a class in the bits of 0 would be a denormal, which flush-to-zero modes lose */

static inline void order2(vd *a, vd *b) { vd hi = max_d(*a, *b), lo = min_d(*a, *b); *a = hi; *b = lo; }

/* the last three stages of a merge, on 8 in registers */
static inline void merge8(vd v[8]) {
  for (int i = 0; i < 4; i++) order2(&v[i], &v[i + 4]);
  for (int i = 0; i < 8; i += 4) { order2(&v[i], &v[i + 2]); order2(&v[i + 1], &v[i + 3]); }
  for (int i = 0; i < 8; i += 2) order2(&v[i], &v[i + 1]);
}

/* Sorts every 8, then merges them in twos: 16 sorted runs of 16 out of 256. */
static void sort_runs(vd *k, int64_t n) {
  static const uint8_t net[19][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}, {0, 4}, {1, 5}, {2, 6}, {3, 7}, {0, 1}, {2, 3}, {4, 5}, {6, 7}, {2, 4}, {3, 5}, {1, 4}, {3, 6}, {1, 2}, {3, 4}, {5, 6}};
  for (int64_t b = 0; b < n; b += 8) {
    vd v[8];
    memcpy(v, k + b, sizeof v);
#pragma GCC unroll 19
    for (int c = 0; c < 19; c++) order2(&v[net[c][0]], &v[net[c][1]]);
    memcpy(k + b, v, sizeof v);
  }
  for (int64_t b = 0; b + 8 < n; b += 16) {
    vd lo[8], hi[8];
    for (int i = 0; i < 8; i++) { vd x = k[b + i], y = k[b + 15 - i]; hi[i] = max_d(x, y); lo[7 - i] = min_d(x, y); }
    merge8(hi);
    memcpy(k + b, hi, sizeof hi);
    merge8(lo);
    memcpy(k + b + 8, lo, sizeof lo);
  }
}

/* One merge step of runs of m into runs of 2m: the flip and every half-cleaner but the last three. */
static void merge_block(vd *k, int64_t m, int64_t left) {
  if (left >= 2 * m) { /* whole: two stages at a time */
    for (int64_t i = 0, q = m / 2; i < q; i++) {
      vd a = k[i], b = k[i + q], c = k[3 * q - 1 - i], d = k[4 * q - 1 - i];
      order2(&a, &d); order2(&b, &c);
      order2(&a, &b); order2(&c, &d);
      k[i] = a; k[i + q] = b; k[3 * q - 1 - i] = c; k[4 * q - 1 - i] = d;
    }
  } else { /* what lies past the end is -inf and never moves */
    for (int64_t i = 2 * m - left; i < m; i++) order2(&k[i], &k[2 * m - 1 - i]);
    for (int64_t i = 0; i < m / 2; i++) order2(&k[i], &k[i + m / 2]);
    for (int64_t i = m; i + m / 2 < left; i++) if (i < m + m / 2) order2(&k[i], &k[i + m / 2]);
  }
  int64_t n = left < 2 * m ? left : 2 * m, h = m / 4;
  for (; h >= 16; h /= 4)
    for (int64_t b = 0; b < n; b += 2 * h) {
      int64_t q = h / 2;
      if (b + 2 * h <= n) {
        for (int64_t i = b; i < b + q; i++) {
          vd v0 = k[i], v1 = k[i + q], v2 = k[i + h], v3 = k[i + h + q];
          order2(&v0, &v2); order2(&v1, &v3);
          order2(&v0, &v1); order2(&v2, &v3);
          k[i] = v0; k[i + q] = v1; k[i + h] = v2; k[i + h + q] = v3;
        }
      } else {
        for (int64_t i = b; i + h < n; i++) order2(&k[i], &k[i + h]);
        for (int64_t s = b; s < n; s += 2 * q)
          for (int64_t i = s; i < s + q && i + q < n; i++) order2(&k[i], &k[i + q]);
      }
    }
  for (; h >= 8; h /= 2)
    for (int64_t b = 0; b < n; b += 2 * h)
      for (int64_t i = b; i < b + h && i + h < n; i++) order2(&k[i], &k[i + h]);
}

/* k (n, VD), n a multiple of 8: every lane sorted descending. */
static void sort_network(vd *k, int64_t n) {
  sort_runs(k, n);
  for (int64_t m = 16; m < n; m *= 2) {
    for (int64_t b = 0; b + m < n; b += 2 * m) merge_block(k + b, m, n - b);
    for (int64_t b = 0; b < n; b += 8) {
      vd v[8];
      memcpy(v, k + b, sizeof v);
      merge8(v);
      memcpy(k + b, v, sizeof v);
    }
  }
}

/* rows[lane] (n) -> keys; lanes may share a row */
static void make_keys(const float *const rows[VD], int64_t n, vd *keys) {
  vu index = (vu){0};
  for (int64_t i = 0; i < n; i++, index += 1) {
    vh x;
    for (int lane = 0; lane < VD; lane++) x[lane] = rows[lane][i];
    vd d = __builtin_convertvector(x, vd);
    vu zero = (vu)(d == 0);
    d = (vd)(((vu)d & ~zero) | ((vu)splat_d(ZERO_KEY) & zero));
    keys[i] = (vd)((vu)d | index);
  }
  for (int64_t i = n; i % 8; i++) keys[i] = splat_d(-INFINITY);
}

static inline double key_value(uint64_t key) { double d; key &= ~INDEX_MASK; memcpy(&d, &key, sizeof d); return d; }

/* One sorted lane as arrays: value (n) as double, index (n). */
static void split_keys(const vd *keys, int lane, int64_t n, double *value, int32_t *index) {
  const uint64_t *k = (const uint64_t *)keys + lane;
  for (int64_t i = 0; i < n; i++) {
    uint64_t key = k[i * VD];
    value[i] = key_value(key);
    index[i] = (int32_t)(key & INDEX_MASK);
  }
}

/* The same for one long row: x (n) -> value, index; a, b (n) are scratch. Stable, least significant digit first, 11 bits a pass. */
static void sort_radix(const float *x, int64_t n, uint64_t *a, uint64_t *b, double *value, int32_t *index) {
  enum { BITS = 11, DIGITS = 1 << BITS };
  uint32_t count[3][DIGITS];
  memset(count, 0, sizeof count);
  for (int64_t i = 0; i < n; i++) {
    float f = x[i] + 0.f; /* -0 becomes 0 */
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    bits ^= bits >> 31 ? 0u : 0x7FFFFFFFu; /* larger floats become smaller integers */
    a[i] = (uint64_t)bits << 32 | (uint64_t)i;
    count[0][bits & (DIGITS - 1)]++;
    count[1][bits >> BITS & (DIGITS - 1)]++;
    count[2][bits >> 2 * BITS]++;
  }
  for (int pass = 0; pass < 3; pass++) {
    uint32_t *c = count[pass], sum = 0;
    int shift = 32 + pass * BITS;
    if (c[a[0] >> shift & (DIGITS - 1)] == (uint32_t)n) continue; /* one digit for all */
    for (int d = 0; d < DIGITS; d++) { uint32_t here = c[d]; c[d] = sum; sum += here; }
    for (int64_t i = 0; i < n; i++) b[c[a[i] >> shift & (DIGITS - 1)]++] = a[i];
    uint64_t *t = a; a = b; b = t;
  }
  for (int64_t i = 0; i < n; i++) {
    index[i] = (int32_t)(uint32_t)a[i];
    value[i] = x[index[i]];
  }
}
#endif
