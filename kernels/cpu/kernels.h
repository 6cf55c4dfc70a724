/* The inner loops of the CPU backend, one table per instruction set. The same source (conv/direct.h, norm_impl.h,
 * pool_impl.h) is compiled for baseline x86-64, AVX2 and AVX-512; cmkd_cpu_kernels_get() picks at run time.
 * Single-threaded, no allocation, no knowledge of graphs or models. Activations are NHWC float32. */
#ifndef CMKD_KERNELS_CPU_KERNELS_H
#define CMKD_KERNELS_CPU_KERNELS_H
#include <stdint.h>
#include "kernels/graph.h"

/* A run of consecutive source floats that an output pixel reads, relative to the pixel's base, and where their weights
 * begin (in k). */
typedef struct cmkd_seg {
  int64_t offset;
  int length, weights;
} cmkd_seg;

/* Output pixels (y0 + i * step, x0 + j * step), i < ny, j < nx: they share one list of segments. */
typedef struct cmkd_conv_class {
  int ny, nx, y0, x0, segs,
      k;               /* k: source floats whose weights are packed together, >= the sum of the segments' lengths */
  int64_t base;        /* source offset of pixel (0, 0) */
  int64_t weights;     /* offset of these k in the packed weights */
  const cmkd_seg *seg; /* (segs) */
} cmkd_conv_class;

/* Weight gradients: output rows [y, y + ny), nx pixels each, that all read `length` source floats. Offsets in a row:
 * src, dst. */
typedef struct cmkd_wgrad_piece {
  int y, ny, nx, length, weights;
  int64_t src, dst;
} cmkd_wgrad_piece;

/* One convolution-like pass over images: destination pixel = sum over segments of source * weights.
 * Packed weights: [group][block][k][B], B = table.block output channels, zero-padded. Depthwise: [k][channels]. */
typedef struct cmkd_direct_pass {
  int groups, outs;                    /* outs: output channels per group */
  int64_t src_row, src_col, src_group; /* source floats between output pixels one down, one right; between groups */
  int64_t dst_row, dst_col; /* destination floats between neighbouring pixels of the same class: already times step */
  int64_t dst_y, dst_x;     /* destination floats per y0, per x0 */
  int64_t src_image, dst_image; /* floats between images */
  int classes, pieces;
  const cmkd_conv_class *cls;    /* (classes) */
  const cmkd_seg *seg;           /* the memory behind the classes' */
  const cmkd_wgrad_piece *piece; /* (pieces) forward passes only */
} cmkd_direct_pass;

/* What happens to a finished sum before it is stored: out = act(sum + bias[channel] + add[same place]). */
typedef struct cmkd_epilogue {
  const float *bias, *add;
  cmkd_act act;
} cmkd_epilogue;

typedef struct cmkd_cpu_kernels {
  const char *name; /* "avx2" */
  int block;        /* output channels per packed block */
  /* n images. */
  void (*conv_run)(const cmkd_direct_pass *pass, int n, const float *src, const float *weights,
                   const cmkd_epilogue *epilogue, float *dst);
  /* grad (packed like the forward weights) += source windows (x) output gradients. `pass` is the forward pass. block
   * floats past the end of ddst must be readable. */
  void (*conv_wgrad)(const cmkd_direct_pass *pass, int n, const float *src, const float *ddst, float *grad);
  void (*depth_run)(const cmkd_direct_pass *pass, int n, const float *src, const float *weights,
                    const cmkd_epilogue *epilogue, float *dst);
  void (*depth_wgrad)(const cmkd_direct_pass *pass, int n, const float *src, const float *ddst, float *grad);

  /* Per-channel mean and sum of squared deviations from that mean of x (px, c). Two passes: exact also where |mean| >>
   * deviation. */
  void (*moments)(const float *x, int64_t px, int c, float *mean, float *m2);
  /* y = act(x * scale + shift [+ add]); add may be NULL. */
  void (*affine)(const float *x, const float *scale, const float *shift, const float *add, cmkd_act act, float *y,
                 int64_t px, int c);
  /* dz = dy where the activation passed, else 0; sum1 += sum(dz), sum2 += sum(dz * (x - mean)) as doubles per channel.
   * The mask comes from y where given, else from x * scale + shift. masked (may be dy itself, may be NULL) receives dz.
   */
  void (*norm_reduce)(const float *dy, const float *x, const float *y, const float *scale, const float *shift,
                      const float *mean, cmkd_act act, float *masked, double *sum1, double *sum2, int64_t px, int c);
  /* dx (+)= scale * dz + slope * (x - mean) + offset; the mask as above. */
  void (*norm_apply)(const float *dy, const float *x, const float *y, const float *scale, const float *shift,
                     const float *mean, const float *slope, const float *offset, cmkd_act act, int accumulate,
                     float *dx, int64_t px, int c);
  void (*channel_sums)(const float *x, int64_t px, int c, double *sum);               /* sum += per channel */
  void (*add)(float *dst, const float *src, int64_t n);                               /* dst += src */
  void (*add_act)(const float *a, const float *b, cmkd_act act, float *y, int64_t n); /* y = act(a [+ b]) */
  void (*act_backward)(const float *dy, const float *y, cmkd_act act, int accumulate, float *dx,
                       int64_t n); /* dx (+)= masked dy */
  /* PyTorch's SGD: g += decay * w; m = momentum * m + g; g = nesterov ? g + momentum * m : m; w -= lr * g. */
  void (*sgd)(float *w, float *m, const float *g, int64_t n, float lr, float momentum, float decay, int nesterov);

  /* A pooling window of h x w pixels, `row` and `col` floats apart. out = largest (NaN wins); din += dout at the first
   * of the largest. */
  void (*max_window)(const float *in, int h, int w, int64_t row, int64_t col, float *out, int c);
  void (*max_window_backward)(const float *in, int h, int w, int64_t row, int64_t col, const float *out,
                              const float *dout, float *din, int c);
  void (*add_scaled)(float *y, const float *x, float a, int64_t n); /* y += a * x */
} cmkd_cpu_kernels;

const cmkd_cpu_kernels *cmkd_cpu_kernels_get(void);
extern const cmkd_cpu_kernels cmkd_cpu_kernels_base, cmkd_cpu_kernels_avx2, cmkd_cpu_kernels_avx512;
#endif
