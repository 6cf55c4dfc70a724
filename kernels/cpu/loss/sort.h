/* The order of rows of logits: classes sorted descending. Part of rows_impl.h, compiled once per instruction set.
 * Up to SORT_NETWORK classes: VF rows at once, one a lane, by a bitonic network on 32-bit keys (a logit scaled to the
 * row's range in the high bits, the class in the low ones). All comparators point the same way, so rows need no padding
 * to a power of two. Logits that share a key come out in any order: repair_order() puts them right, and leaves rows
 * that need too much of that to the radix sort. Above that: one row at a time, by a radix sort on the exact bits.
 * Memory: keys (n8, VF) int32, n8 = n rounded up to 8; the radix sort needs two arrays of n 64-bit integers. */
#ifndef CMKD_KERNELS_CPU_LOSS_SORT_H
#define CMKD_KERNELS_CPU_LOSS_SORT_H
#include "kernels/cpu/vector.h"

#define SORT_NETWORK 32768 /* measured with AVX2: 8 cycles a class and row there, the radix sort 24 */
#define SORT_FEW 2048      /* up to here even a single row goes through the network */

/* A comparator: the larger keys to a, the smaller to b, lane by lane. */
INLINE void order2(vi *a, vi *b) {
  const vi hi = max_i(*a, *b), lo = min_i(*a, *b);
  *a = hi;
  *b = lo;
}

/* Eight rows of keys. All indices are constants after inlining, so that they stay in registers. */
INLINE void load8(const vi *k, vi v[8]) {
  UNROLL
  for (int i = 0; i < 8; i++)
    v[i] = k[i];
}
INLINE void store8(vi *k, const vi v[8]) {
  UNROLL
  for (int i = 0; i < 8; i++)
    k[i] = v[i];
}

/* The last three stages of a merge: half-cleaners of strides 4, 2, 1. */
INLINE void merge8(vi v[8]) {
  UNROLL
  for (int i = 0; i < 4; i++)
    order2(&v[i], &v[i + 4]);
  order2(&v[0], &v[2]);
  order2(&v[1], &v[3]);
  order2(&v[4], &v[6]);
  order2(&v[5], &v[7]);
  UNROLL
  for (int i = 0; i < 8; i += 2)
    order2(&v[i], &v[i + 1]);
}

/* Eight rows of keys sorted, by 19 comparators. */
INLINE void sort8(vi v[8]) {
  order2(&v[0], &v[2]);
  order2(&v[1], &v[3]);
  order2(&v[4], &v[6]);
  order2(&v[5], &v[7]);
  UNROLL
  for (int i = 0; i < 4; i++)
    order2(&v[i], &v[i + 4]);
  UNROLL
  for (int i = 0; i < 8; i += 2)
    order2(&v[i], &v[i + 1]);
  order2(&v[2], &v[4]);
  order2(&v[3], &v[5]);
  order2(&v[1], &v[4]);
  order2(&v[3], &v[6]);
  order2(&v[1], &v[2]);
  order2(&v[3], &v[4]);
  order2(&v[5], &v[6]);
}

/* n = 8 or 16 rows of keys sorted: each eight, then one merge. */
static inline void sort_leaf(vi *p, int64_t n) {
  vi v[8], u[8];
  for (vi *k = p; k < p + n; k += 8) {
    load8(k, v);
    sort8(v);
    store8(k, v);
  }
  if (n < 16) return;
  load8(p, v);
  load8(p + 8, u);
  UNROLL
  for (int i = 0; i < 8; i++)
    order2(&v[i], &u[7 - i]);
  merge8(v);
  store8(p, v);
  merge8(u);
  store8(p + 8, u);
}

/* The half-cleaners of strides h, h/2, ..., 1 on k (n <= 2h, n a multiple of 8), two stages at a time, depth first so
 * that what was touched last is touched next. What lies past n is the smallest key and never moves. */
static void clean(vi *k, int64_t h, int64_t n) {
  if (h == 4) {
    vi v[8];
    load8(k, v);
    merge8(v);
    store8(k, v);
    return;
  }
  if (h == 8 || n < 2 * h) { /* one stage */
    for (int64_t i = 0; i + h < n; i++)
      order2(&k[i], &k[i + h]);
    clean(k, h / 2, n < h ? n : h);
    if (n > h) clean(k + h, h / 2, n - h);
    return;
  }
  int64_t q = h / 2;
  for (int64_t i = 0; i < q; i++) {
    vi a = k[i], b = k[i + q], c = k[i + h], d = k[i + h + q];
    order2(&a, &c);
    order2(&b, &d);
    order2(&a, &b);
    order2(&c, &d);
    k[i] = a;
    k[i + q] = b;
    k[i + h] = c;
    k[i + h + q] = d;
  }
  for (int64_t i = 0; i < 4 * q; i += q)
    clean(k + i, q / 2, q);
}

/* k (n, VF), n a multiple of 8: every lane sorted descending. */
static void sort_network(vi *k, int64_t n) {
  if (n <= 16) {
    sort_leaf(k, n);
    return;
  }
  int64_t m = 16;
  while (2 * m < n)
    m *= 2;
  sort_network(k, m);
  sort_network(k + m, n - m);
  int64_t q = m / 2;
  if (n == 2 * m) { /* flip and first half-cleaner together */
    for (int64_t i = 0; i < q; i++) {
      vi a = k[i], b = k[i + q], c = k[3 * q - 1 - i], d = k[4 * q - 1 - i];
      order2(&a, &d);
      order2(&b, &c);
      order2(&a, &b);
      order2(&c, &d);
      k[i] = a;
      k[i + q] = b;
      k[3 * q - 1 - i] = c;
      k[4 * q - 1 - i] = d;
    }
    for (int64_t i = 0; i < n; i += q)
      clean(k + i, q / 2, q);
  } else {
    for (int64_t i = 2 * m - n; i < m; i++)
      order2(&k[i], &k[2 * m - 1 - i]);
    clean(k, q, m);
    clean(k + m, q, n - m);
  }
}

/* bits that n classes need */
static inline int class_bits(int64_t n) {
  int bits = 1;
  while ((int64_t)1 << bits < n)
    bits++;
  return bits;
}

/* One row that is to be sorted. */
typedef struct key_row {
  const float *x; /* (n) */
  float least, largest;
} key_row;

/* Logit i of every row. */
INLINE vf logits_of(const key_row rows[VF], int64_t i) {
  vf v = {0};
  UNROLL
  for (int lane = 0; lane < VF; lane++)
    v[lane] = rows[lane].x[i];
  return v;
}

/* keys (n rounded up to 8, VF), one row a lane. Monotone: a larger logit never gets a smaller key. */
static void make_keys(const key_row rows[VF], int64_t n, vi *keys) {
  const int bits = class_bits(n), value_bits = 32 - bits < 24 ? 32 - bits : 24, /* of 24 bits whole floats are exact */
      shift = 32 - value_bits;
  const float most = (float)((1 << value_bits) - 1);
  float scales[VF], leasts[VF];
  for (int lane = 0; lane < VF; lane++) {
    const float range = rows[lane].largest - rows[lane].least, scale = range > 0 ? most / range : 0;
    scales[lane] = scale <= 3e38f ? scale : 3e38f;
    leasts[lane] = rows[lane].least;
  }
  const vf scale = load(scales), least = load(leasts), limit = splat(most);
  for (int64_t i = 0; i < n; i++) {
    const vf x = logits_of(rows, i);
    const vi q = __builtin_convertvector(max_f(min_f((x - least) * scale, limit), splat(0)), vi);
    keys[i] = ((q << shift) ^ INT32_MIN) | (int32_t)i; /* unsigned order in signed integers */
  }
  for (int64_t i = n; i % 8; i++)
    keys[i] = splat_i(INT32_MIN);
}

/* index (n): the classes of one lane of sorted keys. */
static void take_lane(const int32_t *keys, int lane, int64_t n, int32_t *index) {
  int32_t mask = (int32_t)((1u << class_bits(n)) - 1);
  for (int64_t i = 0; i < n; i++)
    index[i] = keys[i * VF + lane] & mask;
}

/* The exact order of one row: x (n) -> index (n); a, b (n) are scratch. Stable, least significant digit first, 11 bits
 * a pass. */
static void sort_radix(const float *x, int64_t n, uint64_t *a, uint64_t *b, int32_t *index) {
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
    for (int d = 0; d < DIGITS; d++) {
      uint32_t here = c[d];
      c[d] = sum;
      sum += here;
    }
    for (int64_t i = 0; i < n; i++)
      b[c[a[i] >> shift & (DIGITS - 1)]++] = a[i];
    uint64_t *t = a;
    a = b;
    b = t;
  }
  for (int64_t i = 0; i < n; i++)
    index[i] = (int32_t)(uint32_t)a[i];
}

/* Insertion sort of what is nearly sorted. Gives up, returning 0, when it costs more than a radix sort would. */
static int repair_order(const float *x, int64_t n, int32_t *index) {
  int64_t moves = 0;
  for (int64_t i = 1; i < n; i++) {
    int32_t here = index[i];
    float v = x[here];
    int64_t j = i;
    for (; j > 0 && x[index[j - 1]] < v; j--)
      index[j] = index[j - 1];
    index[j] = here;
    moves += i - j;
    if (moves > 8 * n) return 0;
  }
  return 1;
}
#endif
