/* Eight channels at a time: activations lie in groups of CMKD_CUDA_PAD, so a thread loads or stores 16 bytes of halves
 * or 32 of floats at once. */
#ifndef CMKD_KERNELS_CUDA_VECTOR_H
#define CMKD_KERNELS_CUDA_VECTOR_H
#include <type_traits>
#include "kernels/cuda/device.h"

struct __align__(16) cmkd_words {
  uint32_t word[4];
};

static __device__ __forceinline__ float to_float(float v) { return v; }
static __device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
static __device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ void from_float(float *to, float v) { *to = v; }
static __device__ __forceinline__ void from_float(__half *to, float v) { *to = __float2half_rn(v); }
static __device__ __forceinline__ void from_float(__nv_bfloat16 *to, float v) { *to = __float2bfloat16_rn(v); }

/* Two halves in a word by one conversion. */
#ifdef CMKD_SIMT
static inline uint32_t pack2(__half *, float low, float high) {
  return __float2half_rn(low).bits | (uint32_t)__float2half_rn(high).bits << 16;
}
static inline uint32_t pack2(__nv_bfloat16 *, float low, float high) {
  return __float2bfloat16_rn(low).bits | (uint32_t)__float2bfloat16_rn(high).bits << 16;
}
#else
static __device__ __forceinline__ uint32_t pack2(__half *, float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *(const uint32_t *)&both;
}
static __device__ __forceinline__ uint32_t pack2(__nv_bfloat16 *, float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *(const uint32_t *)&both;
}
#endif

/* p: in device memory (not shared), a multiple of 8 elements from an array's start */
template <class T> static __device__ __forceinline__ void load8(const T *p, float v[8]) {
  constexpr int words = (int)(8 * sizeof(T) / 16);
  cmkd_words raw[words];
#pragma unroll
  for (int i = 0; i < words; i++)
    raw[i] = ((const cmkd_words *)p)[i];
  const T *each = (const T *)raw;
#pragma unroll
  for (int i = 0; i < 8; i++)
    v[i] = to_float(each[i]);
}
template <class T> static __device__ __forceinline__ void store8(T *p, const float v[8]) {
  constexpr int words = (int)(8 * sizeof(T) / 16);
  cmkd_words raw[words];
#pragma unroll
  for (int i = 0; i < 4 * words; i++) {
    if constexpr (sizeof(T) == 2)
      raw[0].word[i] = pack2(p, v[2 * i], v[2 * i + 1]);
    else
      raw[i / 4].word[i % 4] = __float_as_uint(v[i]);
  }
#pragma unroll
  for (int i = 0; i < words; i++)
#ifdef CMKD_SIMT
    ((cmkd_words *)p)[i] = raw[i];
#else
    __stwb((uint4 *)p + i, make_uint4(raw[i].word[0], raw[i].word[1], raw[i].word[2],
                                      raw[i].word[3])); /* an ordinary store that the compiler cannot take apart */
#endif
}

/* Calls f with a null pointer of the element type of `dtype`: by_dtype(dtype, [&](auto *t) {
 * kernel<std::remove_pointer_t<decltype(t)>> ... }) */
template <class F> static void by_dtype(cmkd_dtype dtype, F f) {
  if (dtype == CMKD_F16)
    f((__half *)nullptr);
  else if (dtype == CMKD_BF16)
    f((__nv_bfloat16 *)nullptr);
  else
    f((float *)nullptr);
}
#endif
