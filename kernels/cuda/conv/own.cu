/* Our own convolutions: checks a shape, sends it to the depthwise kernels or to the implicit GEMM, adds up what they
 * left in parts; and what is the same for all of them, bias gradients and the separate epilogue. */
#include "kernels/cuda/conv/own.h"

#define OWN_THREADS 256

/* ---- sums of parts ---- */

#define SUM_COLUMNS 32 /* numbers a block; the other dimension of its threads takes every 8th part */
__global__ void __launch_bounds__(OWN_THREADS)
    add_partials_kernel(const float *partial, int parts, int64_t count, float *sum) {
  constexpr int ROWS = OWN_THREADS / SUM_COLUMNS;
  CMKD_SHARED(double, shared, ROWS *SUM_COLUMNS);
  const int column = (int)threadIdx.x % SUM_COLUMNS, row = (int)threadIdx.x / SUM_COLUMNS;
  const int64_t at = (int64_t)blockIdx.x * SUM_COLUMNS + column;
  double total = 0;
#pragma unroll 4
  for (int i = row; i < parts; i += ROWS)
    total += at < count ? partial[i * count + at] : 0.0f;
  shared[row * SUM_COLUMNS + column] = total;
  __syncthreads();
  if (row || at >= count) return;
  for (int i = 1; i < ROWS; i++)
    total += shared[i * SUM_COLUMNS + column];
  sum[at] = (float)total;
}

cmkd_status conv_add_partials(const float *partial, int parts, int64_t count, float *sum, cudaStream_t stream,
                              cmkd_error *err) {
  CMKD_LAUNCH(add_partials_kernel, dim3((unsigned)conv_ceil(count, SUM_COLUMNS)), dim3(OWN_THREADS), 0, stream, partial,
              parts, count, sum);
  return launch_status("sum of gradient parts", err);
}

/* ---- bias ---- */

#define BIAS_SLICES 8 /* slices of 8 channels a block; the rest of its threads take different pixels */
/* grid (channels / 64, parts): part of sum[c] over the pixels of dy, 0 in the padding. */
template <class T> __global__ void __launch_bounds__(OWN_THREADS)
    bias_kernel(const T *dy, int pixels, int part_pixels, int k, int stride, bool vector, float *parts) {
  constexpr int ROWS = OWN_THREADS / BIAS_SLICES;
  CMKD_SHARED(float, shared, ROWS *BIAS_SLICES * 8);
  const int slice = (int)threadIdx.x % BIAS_SLICES, row = (int)threadIdx.x / BIAS_SLICES,
            c = ((int)blockIdx.x * BIAS_SLICES + slice) * 8;
  const int first = (int)blockIdx.y * part_pixels, last = min(first + part_pixels, pixels);
  float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, v[8];
  for (int p = first + row; p < last && c < k; p += ROWS) {
    get_run<8>(dy + (int64_t)p * stride + c, v, k - c, vector);
#pragma unroll
    for (int i = 0; i < 8; i++)
      sum[i] += v[i];
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    shared[(row * BIAS_SLICES + slice) * 8 + i] = sum[i];
  __syncthreads();
  const int at = (int)threadIdx.x, channel = (int)blockIdx.x * BIAS_SLICES * 8 + at,
            padded = (k + CMKD_CUDA_PAD - 1) / CMKD_CUDA_PAD * CMKD_CUDA_PAD;
  if (at >= BIAS_SLICES * 8 || channel >= padded) return;
  double total = 0;
#pragma unroll 4
  for (int i = 0; i < ROWS; i++)
    total += shared[i * BIAS_SLICES * 8 + at];
  parts[(int64_t)blockIdx.y * padded + channel] = channel < k ? (float)total : 0.0f;
}

static int bias_part_pixels(const cmkd_cuda_conv_shape *s) {
  const int64_t pixels = (int64_t)s->n * s->oh * s->ow,
                share = conv_ceil(pixels, conv_ceil(CONV_BLOCKS, conv_ceil(s->k, BIAS_SLICES * 8)));
  return (int)(share < 512 ? 512 : share);
}
static int bias_parts(const cmkd_cuda_conv_shape *s) {
  return (int)conv_ceil((int64_t)s->n * s->oh * s->ow, bias_part_pixels(s));
}

/* ---- epilogue ---- */

template <class T> __global__ void __launch_bounds__(OWN_THREADS)
    epilogue_kernel(T *y, const float *bias, const T *residual, int act, int64_t pixels, int k, int stride,
                    bool vector) {
  const int slices = (stride + 7) / 8;
  for (int64_t i = (int64_t)blockIdx.x * OWN_THREADS + threadIdx.x; i < pixels * slices;
       i += (int64_t)gridDim.x * OWN_THREADS) {
    const int64_t pixel = i / slices;
    const int c = (int)(i - pixel * slices) * 8;
    const int64_t at = pixel * stride + c;
    float v[8];
    get_run<8>(y + at, v, stride - c, vector);
    conv_finish(v, bias, residual ? residual + at : nullptr, act, c, k, stride - c, vector);
    put_run<8>(y + at, v, stride - c, vector);
  }
}

/* ---- the public functions ---- */

static int out_size(int in, int kernel, int stride, int pad) {
  return in + 2 * pad < kernel ? 0 : (in + 2 * pad - kernel) / stride + 1;
}

static cmkd_status check(const cmkd_cuda_conv_shape *s, const void *a, const void *b, const void *c, cmkd_error *err) {
  if (!s || !a || !b || !c) return cmkd_fail(err, CMKD_ERR_VALUE, "convolution: a pointer is NULL");
  const int sizes = s->n >= 1 && s->h >= 1 && s->w >= 1 && s->c >= 1 && s->k >= 1 && s->kh >= 1 && s->kw >= 1 &&
                    s->stride >= 1 && s->pad >= 0 && s->groups >= 1 && s->pad < 4096 && s->stride < 256 &&
                    s->tile >= 0 && s->tile <= CMKD_CUDA_CONV_TILES;
  if (!sizes || s->c % s->groups || s->k % s->groups || s->oh < 1 || s->ow < 1 ||
      s->oh != out_size(s->h, s->kh, s->stride, s->pad) || s->ow != out_size(s->w, s->kw, s->stride, s->pad) ||
      (s->y_stride != cmkd_cuda_stride(s->k) && s->y_stride != s->k) || !float_dtype(s->dtype) ||
      (s->y_dtype != s->dtype && s->y_dtype != CMKD_F32) || (int64_t)s->n * s->h * s->w >= 1 << 30 ||
      (int64_t)s->n * s->oh * s->ow >= 1 << 30 || cmkd_cuda_conv_weights(s) >= 1 << 30 ||
      (int64_t)s->groups * s->stride * s->stride > 65535)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "convolution: %d x %d x %d x %d to %d x %d x %d (window %d x %d, stride %d, padding %d, %d "
                     "groups) is out of range",
                     s->n, s->h, s->w, s->c, s->oh, s->ow, s->k, s->kh, s->kw, s->stride, s->pad, s->groups);
  return CMKD_OK;
}

static int weight_splits(const cmkd_cuda_conv_shape *s) {
  return conv_is_depthwise(s) ? conv_depthwise_splits(s) : conv_gemm_splits(s);
}

size_t cmkd_cuda_conv_scratch(const cmkd_cuda_conv_shape *s) {
  cmkd_error err;
  if (check(s, s, s, s, &err) != CMKD_OK) return 0;
  const int splits = weight_splits(s), parts = bias_parts(s);
  const size_t weights = splits > 1 ? (size_t)splits * (size_t)cmkd_cuda_conv_weights(s) * sizeof(float) : 0;
  const size_t bias = parts > 1 ? (size_t)parts * (size_t)cmkd_cuda_stride(s->k) * sizeof(float) : 0;
  return weights > bias ? weights : bias;
}

cmkd_status cmkd_cuda_conv_forward(const cmkd_cuda_conv_shape *s, const void *x, const void *w,
                                   const cmkd_cuda_epilogue *epilogue, void *y, void *scratch, void *stream,
                                   cmkd_error *err) {
  (void)scratch;
  CMKD_TRY(check(s, x, w, y, err));
  return (conv_is_depthwise(s) ? conv_depthwise_forward : conv_gemm_forward)(s, x, w, epilogue, y, (cudaStream_t)stream,
                                                                             err);
}

cmkd_status cmkd_cuda_conv_backward_data(const cmkd_cuda_conv_shape *s, const void *dy, const void *w, void *dx,
                                         int accumulate, void *scratch, void *stream, cmkd_error *err) {
  (void)scratch;
  CMKD_TRY(check(s, dy, w, dx, err));
  return (conv_is_depthwise(s) ? conv_depthwise_backward_data : conv_gemm_backward_data)(s, dy, w, dx, accumulate,
                                                                                         (cudaStream_t)stream, err);
}

cmkd_status cmkd_cuda_conv_backward_weights(const cmkd_cuda_conv_shape *s, const void *x, const void *dy, float *dw,
                                            void *scratch, void *stream, cmkd_error *err) {
  CMKD_TRY(check(s, x, dy, dw, err));
  const int splits = weight_splits(s);
  if (splits > 1 && !scratch)
    return cmkd_fail(err, CMKD_ERR_VALUE, "convolution, gradient of the weights: scratch is NULL");
  CMKD_TRY((conv_is_depthwise(s) ? conv_depthwise_backward_weights : conv_gemm_backward_weights)(
      s, x, dy, splits > 1 ? (float *)scratch : dw, (cudaStream_t)stream, err));
  return splits > 1 ? conv_add_partials((const float *)scratch, splits, cmkd_cuda_conv_weights(s), dw,
                                        (cudaStream_t)stream, err)
                    : CMKD_OK;
}

cmkd_status cmkd_cuda_conv_backward_bias(const cmkd_cuda_conv_shape *s, const void *dy, float *db, void *scratch,
                                         void *stream, cmkd_error *err) {
  CMKD_TRY(check(s, dy, dy, db, err));
  const int parts = bias_parts(s), padded = cmkd_cuda_stride(s->k);
  if (parts > 1 && !scratch)
    return cmkd_fail(err, CMKD_ERR_VALUE, "convolution, gradient of the bias: scratch is NULL");
  float *to = parts > 1 ? (float *)scratch : db;
  const dim3 grid((unsigned)conv_ceil(padded, BIAS_SLICES * 8), (unsigned)parts);
  by_dtype(s->y_dtype, [&](auto *of) {
    using T = std::remove_pointer_t<decltype(of)>;
    CMKD_LAUNCH((bias_kernel<T>), grid, dim3(OWN_THREADS), 0, (cudaStream_t)stream, (const T *)dy, s->n * s->oh * s->ow,
                bias_part_pixels(s), s->k, s->y_stride, s->y_stride % 8 == 0, to);
  });
  CMKD_TRY(launch_status("convolution, gradient of the bias", err));
  return parts > 1 ? conv_add_partials(to, parts, padded, db, (cudaStream_t)stream, err) : CMKD_OK;
}

cmkd_status cmkd_cuda_conv_epilogue(const cmkd_cuda_conv_shape *s, const cmkd_cuda_epilogue *e, void *y, void *stream,
                                    cmkd_error *err) {
  CMKD_TRY(check(s, e, y, y, err));
  if (!e->bias && !e->residual && e->act == CMKD_ACT_NONE) return CMKD_OK;
  const int64_t pixels = (int64_t)s->n * s->oh * s->ow,
                blocks = conv_ceil(pixels * conv_ceil(s->y_stride, 8), OWN_THREADS);
  by_dtype(s->y_dtype, [&](auto *of) {
    using T = std::remove_pointer_t<decltype(of)>;
    CMKD_LAUNCH((epilogue_kernel<T>), dim3((unsigned)(blocks < 4096 ? blocks : 4096)), dim3(OWN_THREADS), 0,
                (cudaStream_t)stream, (T *)y, e->bias, (const T *)e->residual, (int)e->act, pixels, s->k, s->y_stride,
                s->y_stride % 8 == 0);
  });
  return launch_status("convolution, epilogue", err);
}
