/* Inside our own convolution kernels: own.cu checks a shape and passes it on to gemm.cu (implicit GEMM, any shape) or
 * depthwise.cu (one input channel for each output channel). Only those three include this. */
#ifndef CMKD_KERNELS_CUDA_CONV_OWN_H
#define CMKD_KERNELS_CUDA_CONV_OWN_H
#include <type_traits>
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.h"

/* What a launch should have at least: two blocks on each multiprocessor of an H100. Fixed, so that sums are split the
 * same way on every device. */
#define CONV_BLOCKS 264
#define CONV_MAX_SPLITS 1024

/* ---- elements in runs: 8 (a slice of channels) or up to 4 (a thread's part of a result row) ---- */

template <int BYTES> struct alignas(BYTES < 16 ? BYTES : 16) conv_words { uint32_t word[BYTES / 4]; };
/* 8 elements as loaded, not yet float: half the registers. */
template <class T> struct conv_eight { conv_words<(int)(8 * sizeof(T))> raw; };

/* The first `count` (may be < 1 or > 8) of 8 elements, zeros after them. vector: p is a multiple of 8 elements from an
 * array's start, and all 8 are there. */
template <class T>
static __device__ __forceinline__ void fetch8(conv_eight<T> &to, const T *p, int count, bool vector) {
  constexpr int words = (int)(8 * sizeof(T) / 16);
  if (vector && count > 0) {
#pragma unroll
    for (int i = 0; i < words; i++) {
      const cmkd_words four = ((const cmkd_words *)p)[i];
#pragma unroll
      for (int j = 0; j < 4; j++)
        to.raw.word[i * 4 + j] = four.word[j];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < words * 4; i++)
    to.raw.word[i] = 0;
  if (vector || count < 1) return;
  T *each = (T *)&to.raw;
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i < count) each[i] = p[i];
}
template <class T> static __device__ __forceinline__ float element(const conv_eight<T> &from, int i) {
  return to_float(((const T *)&from.raw)[i]);
}

/* N <= 8 elements of which `count` are there; vector: aligned to N elements, and count is < 1 or >= N. */
template <int N, class T>
static __device__ __forceinline__ void get_run(const T *p, float (&v)[N], int count, bool vector) {
#pragma unroll
  for (int i = 0; i < N; i++)
    v[i] = 0;
  if (vector && count > 0) {
    const conv_words<(int)(N * sizeof(T))> raw = *(const conv_words<(int)(N * sizeof(T))> *)p;
#pragma unroll
    for (int i = 0; i < N; i++)
      v[i] = to_float(((const T *)&raw)[i]);
  } else if (!vector) {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < count) v[i] = to_float(p[i]);
  }
}
template <int N, class T>
static __device__ __forceinline__ void put_run(T *p, const float (&v)[N], int count, bool vector) {
  if (vector && count > 0) {
    conv_words<(int)(N * sizeof(T))> raw;
#pragma unroll
    for (int i = 0; i < N; i++)
      from_float((T *)&raw + i, v[i]);
    *(conv_words<(int)(N * sizeof(T))> *)p = raw;
  } else if (!vector) {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < count) from_float(p + i, v[i]);
  }
}

static __device__ __forceinline__ float conv_activate(float v, int act) {
  if (act != CMKD_ACT_NONE) v = v < 0 ? 0.0f : v; /* NaN stays */
  return act == CMKD_ACT_RELU6 && v > 6 ? 6.0f : v;
}
/* v = act(v [+ bias] [+ residual]) of N channels from `channel` on, 0 from channel k on. count, vector: as get_run's,
 * of y at the same place. */
template <int N, class T> static __device__ __forceinline__ void
conv_finish(float (&v)[N], const float *bias, const T *residual, int act, int channel, int k, int count, bool vector) {
  float more[N];
  if (bias) {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (channel + i < k) v[i] += __ldg(bias + channel + i);
  }
  if (residual) {
    get_run<N>(residual, more, count, vector);
#pragma unroll
    for (int i = 0; i < N; i++)
      v[i] += more[i];
  }
#pragma unroll
  for (int i = 0; i < N; i++)
    v[i] = channel + i < k ? conv_activate(v[i], act) : 0.0f;
}

/* ---- host ---- */

static inline int64_t conv_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int conv_round8(int v) { return (v + 7) / 8 * 8; }

/* sum[i] = partial[0][i] + partial[1][i] + ..., in that order, of (parts, count). */
cmkd_status conv_add_partials(const float *partial, int parts, int64_t count, float *sum, cudaStream_t stream,
                              cmkd_error *err);

/* The implicit GEMM: everything that own.cu lets through. splits: how many parts backward_weights writes into scratch;
 * 1: dw itself. */
int conv_gemm_splits(const cmkd_cuda_conv_shape *s);
cmkd_status conv_gemm_forward(const cmkd_cuda_conv_shape *s, const void *x, const void *w, const cmkd_cuda_epilogue *e,
                              void *y, cudaStream_t stream, cmkd_error *err);
cmkd_status conv_gemm_backward_data(const cmkd_cuda_conv_shape *s, const void *dy, const void *w, void *dx,
                                    int accumulate, cudaStream_t stream, cmkd_error *err);
cmkd_status conv_gemm_backward_weights(const cmkd_cuda_conv_shape *s, const void *x, const void *dy, float *parts,
                                       cudaStream_t stream, cmkd_error *err);

/* groups = c, y of the same dtype, a window of at most CONV_DEPTHWISE_TAPS. */
#define CONV_DEPTHWISE_TAPS 128
int conv_is_depthwise(const cmkd_cuda_conv_shape *s);
int conv_depthwise_splits(const cmkd_cuda_conv_shape *s);
cmkd_status conv_depthwise_forward(const cmkd_cuda_conv_shape *s, const void *x, const void *w,
                                   const cmkd_cuda_epilogue *e, void *y, cudaStream_t stream, cmkd_error *err);
cmkd_status conv_depthwise_backward_data(const cmkd_cuda_conv_shape *s, const void *dy, const void *w, void *dx,
                                         int accumulate, cudaStream_t stream, cmkd_error *err);
cmkd_status conv_depthwise_backward_weights(const cmkd_cuda_conv_shape *s, const void *x, const void *dy, float *parts,
                                            cudaStream_t stream, cmkd_error *err);
#endif
