/* Vectors of floats and doubles for whatever instruction set the including file is compiled for (VF floats = VD
 * doubles), a fast exp, and sums in a fixed order. Included once per instruction set by loss_rows_*.c; everything is
 * static. */
#ifndef CMKD_KERNELS_CPU_LOSS_SIMD_H
#define CMKD_KERNELS_CPU_LOSS_SIMD_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(VF) /* tests/test_loss_lanes.c: any width on any machine, in the compiler's own instructions */
#define PORTABLE_VECTORS
#elif defined(__AVX512F__)
#define VF 16
#elif defined(__AVX2__)
#define VF 8
#else
#define VF 4
#endif
#define VD (VF / 2)
#define FLUSH 2048 /* floats summed in float lanes before the sum moves on to double */

typedef float vf __attribute__((vector_size(VF * 4)));
typedef int32_t vi __attribute__((vector_size(VF * 4)));
typedef double vd __attribute__((vector_size(VF * 4)));
typedef float vh __attribute__((vector_size(VF * 2))); /* VD floats */
typedef uint16_t vs __attribute__((vector_size(VF * 2)));

static inline vf load(const float *p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf splat(float x) { return x - (vf){0}; }
static inline vd splat_d(double x) { return x - (vd){0}; }
static inline vi splat_i(int32_t x) { return x - (vi){0}; }

#if defined(PORTABLE_VECTORS) || !defined(__SSE2__)
static inline vf max_f(vf a, vf b) {
  for (int i = 0; i < VF; i++)
    a[i] = a[i] > b[i] ? a[i] : b[i];
  return a;
}
static inline vf min_f(vf a, vf b) {
  for (int i = 0; i < VF; i++)
    a[i] = a[i] < b[i] ? a[i] : b[i];
  return a;
}
static inline vi max_i(vi a, vi b) {
  vi m = a > b;
  return (a & m) | (b & ~m);
}
static inline vi min_i(vi a, vi b) {
  vi m = a < b;
  return (a & m) | (b & ~m);
}
#elif defined(__AVX512F__)
static inline vf max_f(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vf min_f(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
static inline vi max_i(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
static inline vi min_i(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
static inline vf max_f(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf min_f(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vi max_i(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
static inline vi min_i(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
#else
static inline vf max_f(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
static inline vf min_f(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
static inline vi max_i(vi a, vi b) {
  vi m = a > b;
  return (a & m) | (b & ~m);
} /* pmaxsd came with SSE4.1 */
static inline vi min_i(vi a, vi b) {
  vi m = a < b;
  return (a & m) | (b & ~m);
}
#endif

/* the two halves of a float vector as doubles */
static inline vd low_d(vf v) {
  vh h;
  memcpy(&h, &v, sizeof h);
  return __builtin_convertvector(h, vd);
}
static inline vd high_d(vf v) {
  vh h;
  memcpy(&h, (const char *)&v + sizeof h, sizeof h);
  return __builtin_convertvector(h, vd);
}

/* lanes before `count` keep their value, the others become 0 */
static inline vf keep(vf v, int count) {
  static const int32_t table[2 * VF] = {
#if VF == 16
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
#elif VF == 8
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
#else
    -1,
    -1,
    -1,
    -1,
#endif
  };
  vi mask;
  memcpy(&mask, table + VF - count, sizeof mask);
  return (vf)((vi)v & mask);
}

static inline vd keep_d(vd v, int64_t count) {
  static const int64_t table[2 * VD] = {
#if VD == 8
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
    -1,
#elif VD == 4
    -1,
    -1,
    -1,
    -1,
#else
    -1,
    -1,
#endif
  };
  typedef int64_t vl __attribute__((vector_size(VF * 4)));
  vl mask;
  memcpy(&mask, table + VD - (count < VD ? count : VD), sizeof mask);
  return (vd)((vl)v & mask);
}

static inline double sum_d(vd v) {
  double s = 0;
  for (int i = 0; i < VD; i++)
    s += v[i];
  return s;
}
static inline double sum_f(vf v) { return sum_d(low_d(v) + high_d(v)); }
static inline float largest_f(vf v) {
  float m = v[0];
  for (int i = 1; i < VF; i++)
    m = v[i] > m ? v[i] : m;
  return m;
}
static inline float least_f(vf v) {
  float m = v[0];
  for (int i = 1; i < VF; i++)
    m = v[i] < m ? v[i] : m;
  return m;
}

/* exp(x) for x <= 0 (up to 88 is right), within 1 ulp where the result is normal (measured by the test); 0 below -87 */
static inline vf exp_f(vf x) {
  vi dead = x < -87.f;
  x = max_f(x, splat(-87.f));
  vf n = x * 1.44269504f + 12582912.f; /* the integer sits in the low bits */
  vi k = (vi)n;
  n -= 12582912.f;
  vf r = x - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f; /* Cephes' expf */
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  vf e = p * (vf)((k << 23) + 0x3F800000);
  return (vf)((vi)e & ~dead);
}
#endif
