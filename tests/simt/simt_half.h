/* Half and bfloat16 as CUDA spells them, for kernels compiled on the host without a toolkit. Storage and conversion
 * only: kernels here do arithmetic in float. Bit-exact, round to nearest even. */
#ifndef CMKD_TESTS_SIMT_SIMT_HALF_H
#define CMKD_TESTS_SIMT_SIMT_HALF_H
#include <stdint.h>
#include <string.h>
#include "base/half.h"

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

static inline float __half2float(__half h) { return cmkd_half_to_float(h.bits); }
static inline __half __float2half_rn(float f) {
  __half h;
  h.bits = cmkd_float_to_half(f);
  return h;
}
static inline float __bfloat162float(__nv_bfloat16 h) { return cmkd_bf16_to_float(h.bits); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  __nv_bfloat16 h;
  h.bits = cmkd_float_to_bf16(f);
  return h;
}
#endif
