/* The inner loops of the CPU backend, one table per instruction set: the same source (conv/direct_impl.h and the
 * *_impl.h of this folder) compiled for plain x86-64, AVX2 and AVX-512. cmkd_cpu_kernels_get() picks at run time.
 * Single-threaded, no allocation, no knowledge of graphs or models. Activations are NHWC float32; px is a number of
 * pixels, c of channels. Arrays of one call do not overlap unless said. */
#ifndef CMKD_KERNELS_CPU_KERNELS_H
#define CMKD_KERNELS_CPU_KERNELS_H
#include <stdint.h>
#include "kernels/cpu/conv/direct.h"
#include "kernels/graph.h"

/* What both passes of batch norm's gradient read. The normalised value is z = x * scale + shift, its output y =
 * act(z [+ shortcut]); dz is dy where the activation passed, else 0. */
typedef struct cmkd_norm_gradient {
  const float *dy, *x;               /* (px, c) */
  const float *y;                    /* (px, c): act's output, where a shortcut was added before it; NULL: act(z) */
  const float *scale, *shift, *mean; /* (c) */
  cmkd_act act;
  int64_t px;
  int c;
} cmkd_norm_gradient;

/* The part of a pooling window that lies inside the image: h x w pixels, `row` and `col` floats apart. */
typedef struct cmkd_pool_window {
  const float *in; /* first pixel */
  int h, w;
  int64_t row, col;
} cmkd_pool_window;

typedef struct cmkd_cpu_kernels {
  const char *name;  /* "avx2" */
  int channel_block; /* output channels whose convolution weights are packed together */

  /* Direct convolution of n images (conv/direct.h). */
  void (*conv_run)(const cmkd_direct_pass *pass, int n, const float *src, const float *weights,
                   const cmkd_epilogue *epilogue, float *dst);
  /* grad (packed like the forward weights) += source windows (x) output gradients. `pass` is the forward pass.
   * `channel_block` floats past the end of ddst must be readable. */
  void (*conv_wgrad)(const cmkd_direct_pass *pass, int n, const float *src, const float *ddst, float *grad);
  /* The same for depthwise convolutions. */
  void (*depth_run)(const cmkd_direct_pass *pass, int n, const float *src, const float *weights,
                    const cmkd_epilogue *epilogue, float *dst);
  void (*depth_wgrad)(const cmkd_direct_pass *pass, int n, const float *src, const float *ddst, float *grad);

  /* mean, m2 (c): mean of x (px, c) per channel, and sum of squared deviations from it. Two passes over x, so that it
   * is exact also where |mean| is far larger than the deviation. */
  void (*moments)(const float *x, int64_t px, int c, float *mean, float *m2);
  /* y = act(x * scale + shift [+ add]); add (px, c) may be NULL. */
  void (*affine)(const float *x, const float *scale, const float *shift, const float *add, cmkd_act act, float *y,
                 int64_t px, int c);
  /* sum1 (c) += sum of dz, sum2 (c) += sum of dz * (x - mean), over pixels. masked (px, c) receives dz; it may be dy
   * itself, or NULL. */
  void (*norm_backward_sums)(const cmkd_norm_gradient *g, float *masked, double *sum1, double *sum2);
  /* dx (px, c) = scale * dz + dx_scale * (x - mean) + dx_shift, added to what is there if
   * accumulate. dx_scale, dx_shift (c). */
  void (*norm_backward)(const cmkd_norm_gradient *g, const float *dx_scale, const float *dx_shift, int accumulate,
                        float *dx);
  /* sum (c) += x (px, c) over pixels. */
  void (*channel_sums)(const float *x, int64_t px, int c, double *sum);

  /* dst += src */
  void (*add)(float *dst, const float *src, int64_t n);
  /* y = act(a [+ b]); b may be NULL, y may be a or b. */
  void (*add_act)(const float *a, const float *b, cmkd_act act, float *y, int64_t n);
  /* dx = dy where the activation with output y passed, else 0; added to what is there if accumulate. */
  void (*act_backward)(const float *dy, const float *y, cmkd_act act, int accumulate, float *dx, int64_t n);
  /* PyTorch's SGD: g += decay * w; m = momentum * m + g; g = nesterov ? g + momentum * m : m; w -= lr * g. g itself is
   * left alone. */
  void (*sgd)(float *w, float *m, const float *g, int64_t n, float lr, float momentum, float decay, int nesterov);

  /* out (c) = the largest of the window's pixels, channel by channel; NaN wins. */
  void (*max_window)(const cmkd_pool_window *window, int c, float *out);
  /* din, laid out like window->in, += dout (c) at the first pixel that equals out (c), as in PyTorch. */
  void (*max_window_backward)(const cmkd_pool_window *window, int c, const float *out, const float *dout, float *din);
  /* y += a * x */
  void (*add_scaled)(float *y, const float *x, float a, int64_t n);
} cmkd_cpu_kernels;

/* For cmkd_cpu_isa(). Static. */
const cmkd_cpu_kernels *cmkd_cpu_kernels_get(void);
extern const cmkd_cpu_kernels cmkd_cpu_kernels_base, cmkd_cpu_kernels_avx2, cmkd_cpu_kernels_avx512;
#endif
