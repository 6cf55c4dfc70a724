/* The vectors that every inner loop of the CPU backend is written in: GCC vector extensions, as wide as the instruction
 * set that the including file is compiled for. Included by files that are compiled once per instruction set
 * (kernels_base.c, kernels_avx2.c, kernels_avx512.c, loss/rows_base.c, loss/rows_avx2.c, loss/rows_avx512.c; the
 * Makefile gives _avx2.c and _avx512.c their flags). Everything is static, so that code of one set never reaches a
 * machine with another.
 * Types: vf VF floats, vi VF int32, vd VD = VF / 2 doubles, vl VD int64, vh VD floats, vs VF uint16.
 * Comparisons give vi or vl with all bits of a lane set or clear. */
#ifndef CMKD_KERNELS_CPU_VECTOR_H
#define CMKD_KERNELS_CPU_VECTOR_H
#include <stdint.h>
#include <string.h>

#if defined(VF) /* given by the including file: any width on any machine, out of the compiler's own instructions */
#define VECTOR_PORTABLE 1
#elif defined(__AVX512F__)
#define VF 16
#elif defined(__AVX2__)
#define VF 8
#else
#define VF 4
#endif
#if !defined(VECTOR_PORTABLE) && defined(__SSE2__)
#include <immintrin.h>
#elif !defined(VECTOR_PORTABLE)
#define VECTOR_PORTABLE 1
#endif
#define VD (VF / 2)

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
/* Before a loop of at most 16 rounds whose count is a constant after inlining. */
#define UNROLL _Pragma("GCC unroll 16")

typedef float vf __attribute__((vector_size(4 * VF)));
typedef int32_t vi __attribute__((vector_size(4 * VF)));
typedef double vd __attribute__((vector_size(4 * VF)));
typedef int64_t vl __attribute__((vector_size(4 * VF)));
typedef float vh __attribute__((vector_size(2 * VF)));
typedef uint16_t vs __attribute__((vector_size(2 * VF)));
/* The same where they lie in memory, at any address. */
typedef float vf_memory __attribute__((vector_size(4 * VF), aligned(4), may_alias));
typedef double vd_memory __attribute__((vector_size(4 * VF), aligned(8), may_alias));
typedef float vh_memory __attribute__((vector_size(2 * VF), aligned(4), may_alias));

/* ---- memory and constants ---- */

INLINE vf load(const float *p) { return *(const vf_memory *)p; }
INLINE void store(float *p, vf v) { *(vf_memory *)p = v; }
INLINE vd load_d(const double *p) { return *(const vd_memory *)p; }
INLINE void store_d(double *p, vd v) { *(vd_memory *)p = v; }
INLINE vh load_h(const float *p) { return *(const vh_memory *)p; }
INLINE void store_h(float *p, vh v) { *(vh_memory *)p = v; }
INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vd splat_d(double x) { return x - (vd){0}; }
INLINE vi splat_i(int32_t x) { return x - (vi){0}; }

/* The first n lanes, 0 < n < VF: the others are 0 when loaded and left alone when stored. */
#if defined(VECTOR_PORTABLE)
INLINE vf load_first(const float *p, int n) {
  vf v = {0};
  memcpy(&v, p, (size_t)n * sizeof *p);
  return v;
}
INLINE void store_first(float *p, vf v, int n) { memcpy(p, &v, (size_t)n * sizeof *p); }
#elif VF == 16
INLINE __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1); }
INLINE vf load_first(const float *p, int n) { return (vf)_mm512_maskz_loadu_ps(first_lanes(n), p); }
INLINE void store_first(float *p, vf v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v); }
#elif VF == 8
INLINE __m256i first_lanes(int n) {
  static const int32_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256((const __m256i *)(mask + 8 - n));
}
INLINE vf load_first(const float *p, int n) { return (vf)_mm256_maskload_ps(p, first_lanes(n)); }
INLINE void store_first(float *p, vf v, int n) { _mm256_maskstore_ps(p, first_lanes(n), (__m256)v); }
#else
INLINE vf load_first(const float *p, int n) {
  if (n == 1) return (vf)_mm_load_ss(p);
  return (vf)_mm_set_ps(0, n == 2 ? 0 : p[2], p[1], p[0]);
}
INLINE void store_first(float *p, vf v, int n) {
  for (int i = 0; i < n; i++)
    p[i] = v[i];
}
#endif

/* All lanes where `part` is 0, else the first `part`. With a constant 0 nothing of the choice is left. */
INLINE vf load_part(const float *p, int part) { return part ? load_first(p, part) : load(p); }
INLINE void store_part(float *p, vf v, int part) {
  if (part)
    store_first(p, v, part);
  else
    store(p, v);
}

/* ---- lanes ---- */

/* x where the mask is set, else 0. */
INLINE vf select_f(vi mask, vf x) { return (vf)((vi)x & mask); }
/* a where the mask is set, else b. */
INLINE vf blend(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
INLINE vi blend_i(vi mask, vi a, vi b) { return (a & mask) | (b & ~mask); }

/* Lanes before `count` keep their value, the others become 0. 0 <= count <= VF; keep_d: any count >= 0. */
INLINE vf keep(vf v, int count) {
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
#endif
#if VF >= 8
    -1,
    -1,
    -1,
    -1,
#endif
    -1,
    -1,
    -1,
    -1
  };
  vi mask;
  memcpy(&mask, table + VF - count, sizeof mask);
  return select_f(mask, v);
}
INLINE vd keep_d(vd v, int64_t count) {
  static const int64_t table[2 * VD] = {
#if VD == 8
    -1,
    -1,
    -1,
    -1,
#endif
#if VD >= 4
    -1,
    -1,
#endif
    -1,
    -1
  };
  vl mask;
  memcpy(&mask, table + VD - (count < VD ? count : VD), sizeof mask);
  return (vd)((vl)v & mask);
}

/* Lane by lane; where either is NaN, b. */
#if defined(VECTOR_PORTABLE)
INLINE vf max_f(vf a, vf b) { return blend(a > b, a, b); }
INLINE vf min_f(vf a, vf b) { return blend(a < b, a, b); }
INLINE vi max_i(vi a, vi b) { return blend_i(a > b, a, b); }
INLINE vi min_i(vi a, vi b) { return blend_i(a < b, a, b); }
#elif VF == 16
INLINE vf max_f(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf min_f(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vi max_i(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE vi min_i(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
#elif VF == 8
INLINE vf max_f(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf min_f(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vi max_i(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE vi min_i(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
#else
INLINE vf max_f(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
INLINE vf min_f(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
INLINE vi max_i(vi a, vi b) { return blend_i(a > b, a, b); } /* one instruction only since SSE4.1 */
INLINE vi min_i(vi a, vi b) { return blend_i(a < b, a, b); }
#endif

/* ---- between widths, and down to one number, always in the same order ---- */

/* VD floats as doubles, and back. */
INLINE vd widen(vh v) { return __builtin_convertvector(v, vd); }
INLINE vh narrow(vd v) { return __builtin_convertvector(v, vh); }
/* The two halves of a vector of floats as doubles. */
INLINE vd low_d(vf v) {
  vh h;
  memcpy(&h, &v, sizeof h);
  return widen(h);
}
INLINE vd high_d(vf v) {
  vh h;
  memcpy(&h, (const char *)&v + sizeof h, sizeof h);
  return widen(h);
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

/* VF numbers of 16 bits as floats. */
INLINE vf bf16_to_float(const uint16_t *p) {
  vs x;
  memcpy(&x, p, sizeof x);
  return (vf)(__builtin_convertvector(x, vi) << 16);
}
#if !defined(VECTOR_PORTABLE) && VF == 16
#define VECTOR_F16 1 /* f16_to_float exists */
INLINE vf f16_to_float(const uint16_t *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
#elif !defined(VECTOR_PORTABLE) && VF == 8
#define VECTOR_F16 1
INLINE vf f16_to_float(const uint16_t *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
#endif
#endif
