/* The network operations on device memory: what the backend's lists are made of. Every function only queues work on
 * `stream` (a cudaStream_t) and allocates nothing, so all of it may be captured into a CUDA graph; shapes were checked
 * by cmkd_graph_check, so what is refused here is a mistake of the caller. Activations and their gradients are (n, h,
 * w, stride) of one dtype (CMKD_F32, CMKD_F16, CMKD_BF16), arithmetic is float, sums over pixels are combined in a
 * fixed order in double: the same inputs give the same bytes.
 *
 * Physical channels: stride is c rounded up to a multiple of CMKD_CUDA_PAD. Channels c .. stride-1 of every activation
 * and gradient are 0; every function here writes them as 0. Arrays start at multiples of 256 bytes.
 *
 * Backward functions give the gradient of an input: `accumulate` 1 adds to what is there (rounding once), 0 overwrites
 * it. */
#ifndef CMKD_KERNELS_CUDA_OPS_H
#define CMKD_KERNELS_CUDA_OPS_H
#include "cmkd/status.h"
#include "cmkd/weights.h" /* cmkd_dtype */
#include "kernels/graph.h"
#ifdef __cplusplus
extern "C" {
#endif

#define CMKD_CUDA_PAD 8
static inline int cmkd_cuda_stride(int channels) {
  return (channels + CMKD_CUDA_PAD - 1) / CMKD_CUDA_PAD * CMKD_CUDA_PAD;
}

/* ---- batch norm (norm.cu): y = act(gamma (x - mean) rstd + beta [+ residual]) ---- */

/* gamma, beta, mean, rstd, var and their gradients are float (stride); in the padding they are 0, rstd is undefined. */
typedef struct cmkd_cuda_norm {
  int64_t pixels; /* n * h * w */
  int c;          /* logical channels; arrays have cmkd_cuda_stride(c) */
  cmkd_dtype dtype;
  cmkd_act act;
  float eps;
  const void *x, *residual; /* (pixels, stride); residual may be NULL */
  void *y;
  const float *gamma, *beta;
  float *mean, *rstd, *var; /* of the batch (var biased): written by forward, mean and rstd read by backward */
  double *partial; /* scratch, cmkd_cuda_norm_scratch bytes: from moments to forward, from reduce to backward */
  /* backward */
  void *dy;    /* gradient of y */
  int mask_dy; /* reduce replaces dy by its masked self, 0 where the activation cut off */
  void *dx;    /* may be NULL */
  int accumulate;
  void *dresidual; /* masked dy again; may be NULL */
  int accumulate_residual;
  float *dgamma, *dbeta; /* overwritten */
} cmkd_cuda_norm;
size_t cmkd_cuda_norm_scratch(int64_t pixels, int c);
/* Forward is moments, then forward. Moments: mean and M2 by parts, merged in double, so nothing cancels. */
cmkd_status cmkd_cuda_norm_moments(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err);
cmkd_status cmkd_cuda_norm_forward(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err);
/* Backward is reduce, then backward. Reduce: the sums of masked dy and of masked dy * xhat. */
cmkd_status cmkd_cuda_norm_backward_sums(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err);
cmkd_status cmkd_cuda_norm_backward(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err);
/* With running statistics instead of the batch's: y = act(gamma (x - mean) / sqrt(var + eps) + beta [+ residual]);
 * reads gamma, beta, mean, var. */
cmkd_status cmkd_cuda_norm_infer(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err);

/* Running statistics of all norms of a network, their channels one after the other. All arrays are (channels). */
typedef struct cmkd_cuda_running {
  int channels;
  float *mean, *var;
  const float *batch_mean, *batch_var; /* var biased */
  const int32_t *pixels;               /* of an image, h * w of the norm's tensor */
  const float *momentum;               /* weight of the new batch */
  const int *halted;                   /* device memory: nothing happens where it is not 0; may be NULL */
} cmkd_cuda_running;
/* After a step of `rows` images, in one launch: mean = (1 - momentum) mean + momentum batch_mean; var likewise with the
 * unbiased variance, n / (n - 1) of n = rows * pixels (n = 1: as is). */
cmkd_status cmkd_cuda_norm_running(const cmkd_cuda_running *running, int rows, void *stream, cmkd_error *err);

/* ---- everything without weights (pointwise.cu, pool.cu) ---- */

/* One call of an operation: `op` and shapes as in kernels/graph.h, h, w, c logical. Forward: x -> y. Backward: dy (and
 * y, x where the gradient needs them) -> dx[i], NULL where not wanted; dx[0] and dx[1] may be the same memory when both
 * accumulate. */
typedef struct cmkd_cuda_call {
  const cmkd_op *op; /* ADD, ACT, MAXPOOL, AVGPOOL, GLOBALPOOL, PADSHORTCUT, CONCAT, SLICE, SHUFFLE */
  int n;
  cmkd_dtype dtype;
  cmkd_shape in[2], out;
  const void *x[2];
  void *y;
  const void *dy;
  void *dx[2];
  int accumulate[2];
} cmkd_cuda_call;
cmkd_status cmkd_cuda_forward(const cmkd_cuda_call *call, void *stream, cmkd_error *err);
cmkd_status cmkd_cuda_backward(const cmkd_cuda_call *call, void *stream, cmkd_error *err);

/* to = from as float, without the padding: from (rows, cmkd_cuda_stride(c)) of dtype -> to (rows, c). */
cmkd_status cmkd_cuda_to_float(const void *from, cmkd_dtype dtype, int64_t rows, int c, float *to, void *stream,
                               cmkd_error *err);

/* ---- convolutions and linear layers (conv/gemm.cu, conv/depthwise.cu) ---- */

/* A linear layer is a convolution whose kernel covers its input (kh = h, kw = w, no padding). Weights:
 *   groups = 1   (k_stride, kh, kw, c_stride), 0 where a channel is padding
 *   groups > 1   (k, kh, kw, c / groups), no padding
 * y_dtype: of y and dy; CMKD_F32 beside 16-bit x and w is allowed (logits). y and dy have y_stride channels, which is
 * cmkd_cuda_stride(k), or k itself for logits (then k may be anything). */
typedef struct cmkd_cuda_conv_shape {
  int n, h, w, c, oh, ow, k;
  int kh, kw, stride, pad, groups;
  int y_stride;
  cmkd_dtype dtype, y_dtype;
  int tile; /* 0: the block size that the shape suggests; 1 .. CMKD_CUDA_CONV_TILES: that one, or the nearest there is,
               for timings and tests */
} cmkd_cuda_conv_shape;
#define CMKD_CUDA_CONV_TILES 5
static inline int64_t cmkd_cuda_conv_weights(const cmkd_cuda_conv_shape *s) { /* elements of w, dw */
  return s->groups > 1 ? (int64_t)s->k * s->kh * s->kw * (s->c / s->groups)
                       : (int64_t)cmkd_cuda_stride(s->k) * s->kh * s->kw * cmkd_cuda_stride(s->c);
}

/* y = act(conv(x, w) [+ bias] [+ residual]); bias float (cmkd_cuda_stride(k)), residual like y; both may be NULL. */
typedef struct cmkd_cuda_epilogue {
  const float *bias;
  const void *residual;
  cmkd_act act;
} cmkd_cuda_epilogue;
/* Bytes of scratch that any of the three may use (partial sums of weight gradients). */
size_t cmkd_cuda_conv_scratch(const cmkd_cuda_conv_shape *shape);
cmkd_status cmkd_cuda_conv_forward(const cmkd_cuda_conv_shape *shape, const void *x, const void *w,
                                   const cmkd_cuda_epilogue *epilogue, void *y, void *scratch, void *stream,
                                   cmkd_error *err);
cmkd_status cmkd_cuda_conv_backward_data(const cmkd_cuda_conv_shape *shape, const void *dy, const void *w, void *dx,
                                         int accumulate, void *scratch, void *stream, cmkd_error *err);
/* dw float, overwritten. */
cmkd_status cmkd_cuda_conv_backward_weights(const cmkd_cuda_conv_shape *shape, const void *x, const void *dy, float *dw,
                                            void *scratch, void *stream, cmkd_error *err);
/* db (cmkd_cuda_stride(k)) float, overwritten: the sum of dy over (n, oh, ow). */
cmkd_status cmkd_cuda_conv_backward_bias(const cmkd_cuda_conv_shape *shape, const void *dy, float *db, void *scratch,
                                         void *stream, cmkd_error *err);
/* In place: y = act(y [+ bias] [+ residual]), for a convolution that was computed without. */
cmkd_status cmkd_cuda_conv_epilogue(const cmkd_cuda_conv_shape *shape, const cmkd_cuda_epilogue *epilogue, void *y,
                                    void *stream, cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
