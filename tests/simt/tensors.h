/* Tensors of device tests: doubles on the host, one dtype with padded channels on the device, and comparing the two. */
#ifndef CMKD_TESTS_SIMT_TENSORS_H
#define CMKD_TESTS_SIMT_TENSORS_H
#include "tests/simt/gpu.h"
#include <math.h>
#include "base/half.h"
#include "base/rng.h"
#include "kernels/cuda/ops.h"

enum { RUNS = ORDERS > 2 ? ORDERS : 2 }; /* the bytes of every run are compared, on a device too */

static inline size_t size_of(cmkd_dtype dtype) { return dtype == CMKD_F32 ? 4 : 2; }

static inline uint16_t float_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return (uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FFF : (u + 0x7FFFu + (u >> 16 & 1)) >> 16);
}
static inline void encode(double v, cmkd_dtype dtype, void *to) {
  const float f = (float)v;
  const uint16_t bits = dtype == CMKD_F16 ? cmkd_float_to_half(f) : float_to_bf16(f);
  if (dtype == CMKD_F32)
    memcpy(to, &f, 4);
  else
    memcpy(to, &bits, 2);
}
static inline double decode(const void *from, cmkd_dtype dtype) {
  float f;
  uint16_t bits;
  memcpy(&bits, from, 2);
  if (dtype == CMKD_F32)
    memcpy(&f, from, 4);
  else
    f = dtype == CMKD_F16 ? cmkd_half_to_float(bits) : cmkd_bf16_to_float(bits);
  return f;
}

/* (pixels, c) doubles, rounded to dtype here too, as a tensor on the device with its padding. */
static inline void *put_tensor(double *values, size_t pixels, int c, cmkd_dtype dtype) {
  if (!values || c < 1) return NULL;
  const size_t stride = (size_t)cmkd_cuda_stride(c), size = size_of(dtype);
  uint8_t *raw = calloc(pixels * stride, size);
  for (size_t p = 0; p < pixels; p++)
    for (int k = 0; k < c; k++) {
      uint8_t *at = raw + (p * stride + (size_t)k) * size;
      encode(values[p * (size_t)c + (size_t)k], dtype, at);
      values[p * (size_t)c + (size_t)k] = decode(at, dtype);
    }
  void *device = gpu_put(raw, pixels * stride * size);
  free(raw);
  return device;
}
static inline void *empty_tensor(size_t pixels, int c, cmkd_dtype dtype) {
  return gpu_buffer(pixels * (size_t)cmkd_cuda_stride(c) * size_of(dtype));
}
/* And back; fails where padding is not 0. */
static inline void get_tensor(double *values, const void *device, size_t pixels, int c, cmkd_dtype dtype,
                              const char *what) {
  const size_t stride = (size_t)cmkd_cuda_stride(c), size = size_of(dtype);
  uint8_t *raw = malloc(pixels * stride * size);
  gpu_get(raw, device, pixels * stride * size);
  for (size_t p = 0; p < pixels; p++)
    for (size_t k = 0; k < stride; k++) {
      const double v = decode(raw + (p * stride + k) * size, dtype);
      if (k < (size_t)c)
        values[p * (size_t)c + k] = v;
      else if (v != 0)
        fail_msg("%s: padding channel %zu of pixel %zu is %g", what, k, p, v);
    }
  free(raw);
}

static inline double *numbers(size_t n) { return calloc(n, sizeof(double)); }
static inline double *copy_of(const double *from, size_t n) {
  double *to = numbers(n);
  memcpy(to, from, n * sizeof *to);
  return to;
}
/* Normal; coarse: multiples of a half, for ties. */
static inline double *random_numbers(cmkd_rng *rng, size_t n, int coarse) {
  double *v = numbers(n);
  for (size_t i = 0; i < n; i++)
    v[i] = coarse ? floor(cmkd_rng_normal(rng) * 2) / 2 : cmkd_rng_normal(rng) * 3;
  return v;
}

/* Within the dtype's rounding of the result, plus `loose` of the largest entry for the arithmetic before it. */
static inline void compare(const double *got, const double *want, size_t n, cmkd_dtype dtype, double loose,
                           const char *what, const char *name) {
  double largest = 1e-30;
  for (size_t i = 0; i < n; i++)
    largest = fmax(largest, fabs(want[i]));
  const double unit = dtype == CMKD_F32 ? 6e-8 : dtype == CMKD_F16 ? 0x1p-11 : 0x1p-8;
  for (size_t i = 0; i < n; i++) {
    const double bound = unit * 1.001 * fabs(want[i]) + loose * largest + (dtype == CMKD_F16 ? 0x1p-25 : 0);
    if (!(fabs(got[i] - want[i]) <= bound))
      fail_msg("%s: %s[%zu] of %zu is %.9g, reference %.9g (largest %g)", name, what, i, n, got[i], want[i], largest);
  }
}

/* The bytes of this order are those of the first. */
static inline void same_bytes(uint8_t **first, const void *device, size_t bytes, const char *what, const char *name) {
  uint8_t *now = malloc(bytes);
  gpu_get(now, device, bytes);
  if (!*first) {
    *first = now;
    return;
  }
  if (memcmp(*first, now, bytes)) fail_msg("%s: %s depends on the order of threads", name, what);
  free(now);
}
#endif
