/* IEEE binary16 and bfloat16 to and from binary32, round to nearest even. Scalar and exact; the fast array versions
 * live where they are used (kernels/cpu/vector.h, formats/cache/codec_avx2.c). */
#ifndef CMKD_BASE_HALF_H
#define CMKD_BASE_HALF_H
#include <stdint.h>
#include <string.h>

static inline float cmkd_half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u, bits;
  if (exponent == 31)
    bits = sign | 0x7F800000u | mantissa << 13;
  else if (exponent)
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  else if (!mantissa)
    bits = sign;
  else {
    int shift = 0;
    while (!(mantissa & 1024u)) {
      mantissa <<= 1;
      shift++;
    }
    bits = sign | (uint32_t)(113 - shift) << 23 | (mantissa & 1023u) << 13;
  }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint16_t cmkd_float_to_half(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
  uint32_t rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return sign | 0x7E00u;  /* NaN */
  if (rest >= 0x477FF000u) return sign | 0x7C00u; /* rounds past 65504: Inf */
  if (rest < 0x33000001u) return sign;            /* rounds to 0 */
  int exponent = (int)(rest >> 23) - 112;
  uint32_t mantissa = (rest & 0x7FFFFFu) | 0x800000u;
  int drop = exponent > 0 ? 13 : 14 - exponent; /* subnormal halves drop more */
  uint32_t kept = mantissa >> drop, rem = mantissa & ((1u << drop) - 1), mid = 1u << (drop - 1);
  kept += rem > mid || (rem == mid && (kept & 1));
  if (exponent > 0) kept += (uint32_t)(exponent - 1) << 10; /* the hidden bit adds the last 1 to the exponent */
  return sign | (uint16_t)kept;
}

/* To bfloat16, nearest even; every NaN becomes 0x7FFF, as on a CUDA device. */
static inline uint16_t cmkd_float_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
  return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1)) >> 16);
}
static inline float cmkd_bf16_to_float(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
#endif
