/* The codecs' inner loops for AVX2 + F16C. Reached through cmkd_codec_kernels_get only; bit-equal to the portable
 * loops. */
#include "formats/cache/codec.h"
#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#include <string.h>
#include <math.h>
#include "base/half.h"

static void half_from_float(const float *in, uint16_t *out, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128((__m128i *)(void *)(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  for (; i < count; i++)
    out[i] = cmkd_float_to_half(in[i]);
}

static void float_from_half_planes(const uint8_t *low, const uint8_t *high, float *out, size_t count) {
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    __m128i l = _mm_loadu_si128((const __m128i *)(const void *)(low + i)),
            h = _mm_loadu_si128((const __m128i *)(const void *)(high + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_unpacklo_epi8(l, h)));
    _mm256_storeu_ps(out + i + 8, _mm256_cvtph_ps(_mm_unpackhi_epi8(l, h)));
  }
  for (; i + 8 <= count; i += 8) {
    __m128i l = _mm_loadl_epi64((const __m128i *)(const void *)(low + i)),
            h = _mm_loadl_epi64((const __m128i *)(const void *)(high + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_unpacklo_epi8(l, h)));
  }
  for (; i < count; i++)
    out[i] = cmkd_half_to_float((uint16_t)(low[i] | high[i] << 8));
}

static void float_from_planes(const uint8_t *const plane[4], float *out, size_t count) {
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(plane[0] + i)),
            b = _mm_loadu_si128((const __m128i *)(const void *)(plane[1] + i));
    __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(plane[2] + i)),
            d = _mm_loadu_si128((const __m128i *)(const void *)(plane[3] + i));
    __m128i ab0 = _mm_unpacklo_epi8(a, b), ab1 = _mm_unpackhi_epi8(a, b), cd0 = _mm_unpacklo_epi8(c, d),
            cd1 = _mm_unpackhi_epi8(c, d);
    __m128i *target = (__m128i *)(void *)(out + i);
    _mm_storeu_si128(target, _mm_unpacklo_epi16(ab0, cd0));
    _mm_storeu_si128(target + 1, _mm_unpackhi_epi16(ab0, cd0));
    _mm_storeu_si128(target + 2, _mm_unpacklo_epi16(ab1, cd1));
    _mm_storeu_si128(target + 3, _mm_unpackhi_epi16(ab1, cd1));
  }
  for (; i < count; i++) {
    uint32_t bits =
        plane[0][i] | (uint32_t)plane[1][i] << 8 | (uint32_t)plane[2][i] << 16 | (uint32_t)plane[3][i] << 24;
    memcpy(out + i, &bits, 4);
  }
}

/* the format forbids fusing the product and the difference */
__attribute__((optimize("fp-contract=off"))) static void float_from_u8sqrt(const uint8_t *q, float max, float step,
                                                                           float *out, size_t count) {
  size_t i = 0;
  __m256 top = _mm256_set1_ps(max), scale = _mm256_set1_ps(step);
  for (; i + 8 <= count; i += 8) {
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(q + i)));
    __m256 square = _mm256_cvtepi32_ps(_mm256_madd_epi16(wide, wide));
    _mm256_storeu_ps(out + i, _mm256_sub_ps(top, _mm256_mul_ps(scale, square)));
  }
  for (; i < count; i++) {
    float drop = step * (float)(q[i] * q[i]);
    out[i] = max - drop;
  }
}

static int64_t first_bad(const float *in, size_t count, float limit) {
  size_t i = 0;
  __m256 bound = _mm256_set1_ps(limit), magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  for (; i + 8 <= count; i += 8)
    if (_mm256_movemask_ps(_mm256_cmp_ps(_mm256_and_ps(_mm256_loadu_ps(in + i), magnitude), bound, _CMP_LE_OQ)) != 0xFF)
      break;
  for (; i < count; i++)
    if (!(fabsf(in[i]) <= limit)) return (int64_t)i;
  return -1;
}

static void shuffle2(const uint8_t *in, uint8_t *out, size_t count) {
  size_t i = 0;
  __m256i low = _mm256_set1_epi16(0x00FF);
  for (; i + 32 <= count; i += 32) {
    __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(in + 2 * i)),
            b = _mm256_loadu_si256((const __m256i *)(const void *)(in + 2 * i + 32));
    __m256i even = _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
    __m256i odd = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_permute4x64_epi64(even, 0xD8));
    _mm256_storeu_si256((__m256i *)(void *)(out + count + i), _mm256_permute4x64_epi64(odd, 0xD8));
  }
  for (; i < count; i++) {
    out[i] = in[2 * i];
    out[count + i] = in[2 * i + 1];
  }
}

const cmkd_codec_kernels cmkd_codec_kernels_avx2 = {
    half_from_float, float_from_half_planes, float_from_planes, float_from_u8sqrt, first_bad, shuffle2};
#else
const cmkd_codec_kernels cmkd_codec_kernels_avx2;
#endif
