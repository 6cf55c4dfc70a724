/* Which class stands where: rows of logits sorted descending, as an array of classes.
 *   up to SORT_NETWORK classes: VF rows at once, one a lane, by a bitonic network on 32-bit keys (a logit scaled to the
 * row's range, in the high bits; the class in the low ones). All comparators point the same way, so rows need no
 * padding to a power of two. Logits that share a key come out in any order: settle() puts them right, and leaves rows
 * that need too much of that to the radix sort; above: one row at a time, radix sort on the exact bits. Memory: keys
 * (n8, VF) int32, n8 = n rounded up to 8; the radix sort needs two arrays of n 64-bit integers (either lies in the
 * other's). */
#ifndef CMKD_KERNELS_CPU_LOSS_SORT_H
#define CMKD_KERNELS_CPU_LOSS_SORT_H
#include "kernels/cpu/loss/simd.h"

#define SORT_NETWORK 32768 /* measured with AVX2: 8 cycles a class and row there, the radix sort 24 */
#define SORT_FEW 2048      /* up to here even a single row goes through the network */

static inline __attribute__((always_inline)) void order2(vi *a, vi *b) {
  vi hi = max_i(*a, *b), lo = min_i(*a, *b);
  *a = hi;
  *b = lo;
}

/* the last three stages of a merge, on 8 named variables: an array would live in memory */
#define MERGE8(a, b, c, d, e, f, g, h) \
  order2(&a, &e), order2(&b, &f), order2(&c, &g), order2(&d, &h), order2(&a, &c), order2(&b, &d), order2(&e, &g), \
      order2(&f, &h), order2(&a, &b), order2(&c, &d), order2(&e, &f), order2(&g, &h)

/* n = 8 or 16: 8 by 19 comparators, then one merge. */
static inline void sort_leaf(vi *p, int64_t n) {
  for (vi *k = p; k < p + n; k += 8) {
    vi a = k[0], b = k[1], c = k[2], d = k[3], e = k[4], f = k[5], g = k[6], h = k[7];
    order2(&a, &c), order2(&b, &d), order2(&e, &g), order2(&f, &h);
    order2(&a, &e), order2(&b, &f), order2(&c, &g), order2(&d, &h);
    order2(&a, &b), order2(&c, &d), order2(&e, &f), order2(&g, &h);
    order2(&c, &e), order2(&d, &f);
    order2(&b, &e), order2(&d, &g);
    order2(&b, &c), order2(&d, &e), order2(&f, &g);
    k[0] = a, k[1] = b, k[2] = c, k[3] = d, k[4] = e, k[5] = f, k[6] = g, k[7] = h;
  }
  if (n < 16) return;
  vi a = p[0], b = p[1], c = p[2], d = p[3], e = p[4], f = p[5], g = p[6], h = p[7];
  vi A = p[15], B = p[14], C = p[13], D = p[12], E = p[11], F = p[10], G = p[9], H = p[8];
  order2(&a, &A), order2(&b, &B), order2(&c, &C), order2(&d, &D), order2(&e, &E), order2(&f, &F), order2(&g, &G),
      order2(&h, &H);
  MERGE8(a, b, c, d, e, f, g, h);
  p[0] = a, p[1] = b, p[2] = c, p[3] = d, p[4] = e, p[5] = f, p[6] = g, p[7] = h;
  MERGE8(H, G, F, E, D, C, B, A);
  p[8] = H, p[9] = G, p[10] = F, p[11] = E, p[12] = D, p[13] = C, p[14] = B, p[15] = A;
}

/* The half-cleaners of strides h, h/2, ..., 1 on k (n <= 2h, n a multiple of 8), two stages at a time, depth first so
 * that what was touched last is touched next. What lies past n is the smallest key and never moves. */
static void clean(vi *k, int64_t h, int64_t n) {
  if (h == 4) {
    vi a = k[0], b = k[1], c = k[2], d = k[3], e = k[4], f = k[5], g = k[6], i = k[7];
    MERGE8(a, b, c, d, e, f, g, i);
    k[0] = a, k[1] = b, k[2] = c, k[3] = d, k[4] = e, k[5] = f, k[6] = g, k[7] = i;
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
    order2(&a, &c), order2(&b, &d);
    order2(&a, &b), order2(&c, &d);
    k[i] = a, k[i + q] = b, k[i + h] = c, k[i + h + q] = d;
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
      order2(&a, &d), order2(&b, &c);
      order2(&a, &b), order2(&c, &d);
      k[i] = a, k[i + q] = b, k[3 * q - 1 - i] = c, k[4 * q - 1 - i] = d;
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

typedef struct key_row {
  const float *x;
  float least, largest;
} key_row; /* x (n), padded */

#if VF == 16
#define EACH_LANE(f) \
  { f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15) }
#elif VF == 8
#define EACH_LANE(f) \
  { f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7) }
#else
#define EACH_LANE(f) \
  { f(0), f(1), f(2), f(3) }
#endif

/* One row a lane. Monotone: a larger logit never gets a smaller key. */
static void make_keys(const key_row rows[VF], int64_t n, vi *keys) {
  int bits = class_bits(n), value_bits = 32 - bits < 24 ? 32 - bits : 24,
      shift = 32 - value_bits; /* 24: whole floats are exact */
  float scales[VF];
  for (int lane = 0; lane < VF; lane++) {
    float range = rows[lane].largest - rows[lane].least, scale = range > 0 ? (float)((1 << value_bits) - 1) / range : 0;
    scales[lane] = scale <= 3e38f ? scale : 3e38f;
  }
#define LEAST(lane) rows[lane].least
#define LOGIT(lane) rows[lane].x[i]
  vf scale = load(scales), least = EACH_LANE(LEAST), limit = splat((float)((1 << value_bits) - 1));
  for (int64_t i = 0; i < n; i++) {
    vf x = EACH_LANE(LOGIT);
    vi q = __builtin_convertvector(max_f(min_f((x - least) * scale, limit), splat(0)), vi);
    keys[i] = ((q << shift) ^ (int32_t)0x80000000) | (int32_t)i; /* unsigned order in signed integers */
  }
#undef LEAST
#undef LOGIT
  for (int64_t i = n; i % 8; i++)
    keys[i] = splat_i(INT32_MIN);
}

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
static int settle(const float *x, int64_t n, int32_t *index) {
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
