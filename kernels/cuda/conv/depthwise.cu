/* Depthwise convolutions (groups = c, k = multiplier c): bound by memory, so a thread has 8 channels of a few
 * neighbouring pixels and no GEMM. A block has `lanes` slices of 8 channels and loads their weights, (k, kh, kw), into
 * shared memory once, turned to (tap, channel). */
#include "kernels/cuda/conv/own.h"

#define DEPTHWISE_THREADS 128
#define DEPTHWISE_WEIGHT_THREADS 256
#define DEPTHWISE_WEIGHT_TAPS 3 /* of one window row, a block of the weights' gradient */

typedef struct depthwise_args {
  const void *from, *w; /* x or dy */
  void *to;             /* y or dx, or dw or its parts */
  const void *dy;       /* weights' gradient */
  const float *bias;
  const void *residual;
  int n, from_h, from_w, from_stride, to_h, to_w, to_stride, to_c; /* pixels read and written */
  int kh, kw, stride, pad, multiplier, k;
  int lanes, act, accumulate;
  int split_pixels;
  int64_t part;
} depthwise_args;

/* The 8 channels of `from` at `pixel` that go with channels c .. c+7 of `to`; backward with multiplier > 1: the r-th of
 * each. */
template <class T, bool FORWARD> static __device__ __forceinline__ void
depthwise_load(const depthwise_args &a, int64_t pixel, int c, int r, float (&v)[8]) {
  const T *p = (const T *)a.from + pixel * a.from_stride;
  if (a.multiplier == 1) {
    get_run<8>(p + c, v, 8, true);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    v[i] = c + i < a.to_c ? to_float(p[FORWARD ? (c + i) / a.multiplier : (c + i) * a.multiplier + r]) : 0.0f;
}

/* FORWARD: x to y, else dy to dx. A thread: channels c .. c+7 of RUN pixels of one row. grid (runs, slices) */
template <class T, bool FORWARD, int RUN> __global__ void __launch_bounds__(DEPTHWISE_THREADS)
    depthwise_kernel(const __grid_constant__ depthwise_args a) {
  CMKD_DYNAMIC_SHARED(memory);
  float *const weight = (float *)memory; /* (rounds, taps, lanes * 8) */
  const int width = a.lanes * 8, taps = a.kh * a.kw, rounds = FORWARD ? 1 : a.multiplier, c0 = (int)blockIdx.y * width;
  for (int i = (int)threadIdx.x; i < rounds * taps * width; i += DEPTHWISE_THREADS) {
    const int c = c0 + i % width, tap = i / width % taps, r = i / width / taps;
    weight[i] = c < a.to_c ? to_float(((const T *)a.w)[(int64_t)(c * rounds + r) * taps + tap]) : 0.0f;
  }
  __syncthreads();
  const int c = c0 + (int)threadIdx.x % a.lanes * 8, runs = (a.to_w + RUN - 1) / RUN;
  const int run = (int)blockIdx.x * (DEPTHWISE_THREADS / a.lanes) + (int)threadIdx.x / a.lanes, line = run / runs,
            x0 = (run - line * runs) * RUN, n = line / a.to_h, y = line - n * a.to_h;
  if (n >= a.n || c >= a.to_stride) return;
  float sum[RUN][8];
#pragma unroll
  for (int i = 0; i < RUN; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
      sum[i][j] = 0;
  /* columns of `from` that reach the run */
  int first = FORWARD ? x0 * a.stride - a.pad : (x0 + a.pad - a.kw + a.stride) / a.stride;
  int last = FORWARD ? (x0 + RUN - 1) * a.stride - a.pad + a.kw - 1 : (x0 + RUN - 1 + a.pad) / a.stride;
  if (first < 0) first = 0;
  if (last >= a.from_w) last = a.from_w - 1;
  for (int ky = 0; ky < a.kh; ky++) {
    const int up = y + a.pad - ky, from_y = FORWARD ? y * a.stride - a.pad + ky : up / a.stride;
    if (from_y < 0 || from_y >= a.from_h || (!FORWARD && (up < 0 || up % a.stride))) continue;
    for (int from_x = first; from_x <= last; from_x++)
      for (int r = 0; r < rounds; r++) {
        float v[8];
        depthwise_load<T, FORWARD>(a, (int64_t)(n * a.from_h + from_y) * a.from_w + from_x, c, r, v);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
          const int kx = FORWARD ? from_x - (x0 + i) * a.stride + a.pad : x0 + i + a.pad - from_x * a.stride;
          if (kx < 0 || kx >= a.kw) continue;
          const float4 *w = (const float4 *)(weight + (r * taps + ky * a.kw + kx) * width + (c - c0));
          const float4 low = w[0], high = w[1];
          const float each[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int j = 0; j < 8; j++)
            sum[i][j] += v[j] * each[j];
        }
      }
  }
#pragma unroll
  for (int i = 0; i < RUN; i++) {
    if (x0 + i >= a.to_w) continue;
    const int64_t at = ((int64_t)(n * a.to_h + y) * a.to_w + x0 + i) * a.to_stride + c;
    if (FORWARD)
      conv_finish(sum[i], a.bias, a.residual ? (const T *)a.residual + at : nullptr, a.act, c, a.to_c, 8, true);
    else {
      float old[8];
      if (a.accumulate) get_run<8>((const T *)a.to + at, old, 8, true);
#pragma unroll
      for (int j = 0; j < 8; j++)
        sum[i][j] = c + j >= a.to_c ? 0.0f : a.accumulate ? sum[i][j] + old[j] : sum[i][j];
    }
    put_run<8>((T *)a.to + at, sum[i], 8, true);
  }
}

/* A block: up to three taps of a window row, `lanes` slices, one part of the output pixels. grid (tap groups, slices,
 * parts). `to` is dw's place here, `from` is x; to_h, to_w, to_stride, to_c are dy's. */
template <class T> __global__ void __launch_bounds__(DEPTHWISE_WEIGHT_THREADS)
    depthwise_weights_kernel(const __grid_constant__ depthwise_args a) {
  constexpr int WARPS = DEPTHWISE_WEIGHT_THREADS / 32, TAPS = DEPTHWISE_WEIGHT_TAPS;
  CMKD_SHARED(float, capacity, WARPS *TAPS * 64);
  const int width = a.lanes * 8, c0 = (int)blockIdx.y * width, c = c0 + (int)threadIdx.x % a.lanes * 8;
  const int row_groups = (a.kw + TAPS - 1) / TAPS, ky = (int)blockIdx.x / row_groups,
            kx0 = (int)blockIdx.x % row_groups * TAPS;
  const int first = (int)blockIdx.z * a.split_pixels, last = min(first + a.split_pixels, a.n * a.to_h * a.to_w);
  float sum[TAPS][8];
#pragma unroll
  for (int i = 0; i < TAPS; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
      sum[i][j] = 0;
  for (int p = first + (int)threadIdx.x / a.lanes; p < last && c < a.to_stride;
       p += DEPTHWISE_WEIGHT_THREADS / a.lanes) {
    const int line = p / a.to_w, n = line / a.to_h, y = (line - n * a.to_h) * a.stride - a.pad + ky,
              x = (p - line * a.to_w) * a.stride - a.pad + kx0;
    if (y < 0 || y >= a.from_h) continue;
    float d[8], v[8];
    get_run<8>((const T *)a.dy + (int64_t)p * a.to_stride + c, d, 8, true);
#pragma unroll
    for (int i = 0; i < TAPS; i++) {
      if (kx0 + i >= a.kw || x + i < 0 || x + i >= a.from_w) continue;
      depthwise_load<T, true>(a, (int64_t)(n * a.from_h + y) * a.from_w + x + i, c, 0, v);
#pragma unroll
      for (int j = 0; j < 8; j++)
        sum[i][j] += d[j] * v[j];
    }
  }
  const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5;
#pragma unroll
  for (int i = 0; i < TAPS; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) {
      for (int d = a.lanes; d < 32; d <<= 1)
        sum[i][j] += __shfl_xor_sync(CMKD_WARP, sum[i][j], d);
      if (lane < a.lanes) capacity[(warp * TAPS + i) * 64 + lane * 8 + j] = sum[i][j];
    }
  __syncthreads();
  if ((int)threadIdx.x >= TAPS * width) return;
  const int i = (int)threadIdx.x / width, at = (int)threadIdx.x % width;
  if (kx0 + i >= a.kw || c0 + at >= a.k) return;
  double total = 0;
#pragma unroll
  for (int k = 0; k < WARPS; k++)
    total += capacity[(k * TAPS + i) * 64 + at];
  ((float *)a.to)[blockIdx.z * a.part + (int64_t)(c0 + at) * a.kh * a.kw + ky * a.kw + kx0 + i] = (float)total;
}

/* ---- host ---- */

int conv_is_depthwise(const cmkd_cuda_conv_shape *s) {
  return s->groups > 1 && s->groups == s->c && s->y_dtype == s->dtype && s->y_stride == cmkd_cuda_stride(s->k) &&
         (int64_t)s->kh * s->kw * (s->k / s->c) <= CONV_DEPTHWISE_TAPS;
}

/* A power of two, so that a warp holds whole slices. */
static int lanes_for(int stride) { return stride >= 40 ? 8 : stride >= 24 ? 4 : stride / 8; }

static depthwise_args args_of(const cmkd_cuda_conv_shape *s, int forward) {
  depthwise_args a;
  memset(&a, 0, sizeof a);
  const int x_stride = cmkd_cuda_stride(s->c);
  a.n = s->n;
  a.kh = s->kh;
  a.kw = s->kw;
  a.stride = s->stride;
  a.pad = s->pad;
  a.multiplier = s->k / s->c;
  a.k = s->k;
  a.from_h = forward ? s->h : s->oh;
  a.from_w = forward ? s->w : s->ow;
  a.from_stride = forward ? x_stride : s->y_stride;
  a.to_h = forward ? s->oh : s->h;
  a.to_w = forward ? s->ow : s->w;
  a.to_stride = forward ? s->y_stride : x_stride;
  a.to_c = forward ? s->k : s->c;
  a.lanes = lanes_for(a.to_stride);
  a.part = cmkd_cuda_conv_weights(s);
  return a;
}

template <bool FORWARD> static cmkd_status launch(const cmkd_cuda_conv_shape *s, const depthwise_args &a,
                                                  cudaStream_t stream, cmkd_error *err) {
  const int64_t lines = (int64_t)a.n * a.to_h, slices = conv_ceil(a.to_stride, a.lanes * 8),
                place = DEPTHWISE_THREADS / a.lanes, long_blocks = conv_ceil(lines * conv_ceil(a.to_w, 4), place);
  const size_t bytes = (size_t)(FORWARD ? 1 : a.multiplier) * (size_t)(a.kh * a.kw * a.lanes * 8) * sizeof(float);
  const int runs_of_four = a.to_w >= 4 && long_blocks * slices >= CONV_BLOCKS;
  by_dtype(s->dtype, [&](auto *of) {
    using T = std::remove_pointer_t<decltype(of)>;
    if (runs_of_four)
      CMKD_LAUNCH((depthwise_kernel<T, FORWARD, 4>), dim3((unsigned)long_blocks, (unsigned)slices),
                  dim3(DEPTHWISE_THREADS), bytes, stream, a);
    else
      CMKD_LAUNCH((depthwise_kernel<T, FORWARD, 1>), dim3((unsigned)conv_ceil(lines * a.to_w, place), (unsigned)slices),
                  dim3(DEPTHWISE_THREADS), bytes, stream, a);
  });
  return launch_status("depthwise convolution", err);
}

cmkd_status conv_depthwise_forward(const cmkd_cuda_conv_shape *s, const void *x, const void *w,
                                   const cmkd_cuda_epilogue *e, void *y, cudaStream_t stream, cmkd_error *err) {
  depthwise_args a = args_of(s, 1);
  a.from = x;
  a.w = w;
  a.to = y;
  if (e) {
    a.bias = e->bias;
    a.residual = e->residual;
    a.act = (int)e->act;
  }
  return launch<true>(s, a, stream, err);
}

cmkd_status conv_depthwise_backward_data(const cmkd_cuda_conv_shape *s, const void *dy, const void *w, void *dx,
                                         int accumulate, cudaStream_t stream, cmkd_error *err) {
  depthwise_args a = args_of(s, 0);
  a.from = dy;
  a.w = w;
  a.to = dx;
  a.accumulate = accumulate;
  return launch<false>(s, a, stream, err);
}

static int64_t weight_tiles(const depthwise_args &a) {
  return (int64_t)a.kh * conv_ceil(a.kw, DEPTHWISE_WEIGHT_TAPS) * conv_ceil(a.to_stride, a.lanes * 8);
}
/* Pixels of a part: at least four a thread. */
static int split_pixels(const cmkd_cuda_conv_shape *s, const depthwise_args &a) {
  const int64_t pixels = (int64_t)s->n * s->oh * s->ow, least = 4 * DEPTHWISE_WEIGHT_THREADS / a.lanes;
  const int64_t share = conv_ceil(pixels, conv_ceil(CONV_BLOCKS, weight_tiles(a)));
  return (int)(share < least ? least : share);
}

int conv_depthwise_splits(const cmkd_cuda_conv_shape *s) {
  return (int)conv_ceil((int64_t)s->n * s->oh * s->ow, split_pixels(s, args_of(s, 1)));
}

cmkd_status conv_depthwise_backward_weights(const cmkd_cuda_conv_shape *s, const void *x, const void *dy, float *parts,
                                            cudaStream_t stream, cmkd_error *err) {
  depthwise_args a = args_of(s, 1);
  a.from = x;
  a.dy = dy;
  a.to = parts;
  a.split_pixels = split_pixels(s, a);
  const dim3 grid((unsigned)(a.kh * conv_ceil(a.kw, DEPTHWISE_WEIGHT_TAPS)),
                  (unsigned)conv_ceil(a.to_stride, a.lanes * 8), (unsigned)conv_depthwise_splits(s));
  by_dtype(s->dtype, [&](auto *of) {
    using T = std::remove_pointer_t<decltype(of)>;
    CMKD_LAUNCH((depthwise_weights_kernel<T>), grid, dim3(DEPTHWISE_WEIGHT_THREADS), 0, stream, a);
  });
  return launch_status("depthwise convolution, gradient of the weights", err);
}
