/* The reference operations: double, plain loops, one operation a file. They are the oracle for every fast backend and
 * favour being read over being fast. Activations NHWC; convolution weights are held (kh, kw, in/groups, out), see
 * backend.c. */
#ifndef CMKD_KERNELS_REF_OPS_H
#define CMKD_KERNELS_REF_OPS_H
#include <stddef.h>
#include <stdint.h>
#include "kernels/graph.h"

/* One operation on n images. Forward writes y. Backward adds to dx[i] and grad[i] (any may be NULL: not wanted) and may
 * overwrite dy. */
typedef struct cmkd_ref_call {
  const cmkd_op *op;
  int n, train;
  cmkd_shape in[2], out;
  const double *x[2]; /* (n, in.h, in.w, in.c) */
  double *y, *dy;     /* (n, out.h, out.w, out.c) */
  double *dx[2];
  const double *param[4];
  double *grad[4];
  double *saved; /* NORM: (2, c), mean and biased variance of this batch; train forward fills it */
} cmkd_ref_call;

typedef void cmkd_ref_fn(const cmkd_ref_call *call);
cmkd_ref_fn cmkd_ref_conv, cmkd_ref_conv_backward, cmkd_ref_norm, cmkd_ref_norm_backward, cmkd_ref_add,
    cmkd_ref_add_backward, cmkd_ref_act, cmkd_ref_act_backward, cmkd_ref_maxpool, cmkd_ref_maxpool_backward,
    cmkd_ref_avgpool, cmkd_ref_avgpool_backward, cmkd_ref_globalpool, cmkd_ref_globalpool_backward, cmkd_ref_linear,
    cmkd_ref_linear_backward, cmkd_ref_padshortcut, cmkd_ref_padshortcut_backward, cmkd_ref_concat,
    cmkd_ref_concat_backward, cmkd_ref_slice, cmkd_ref_slice_backward, cmkd_ref_shuffle, cmkd_ref_shuffle_backward;

/* Sliding windows (window.c). The input pixel under kernel position (ky, kx) of output pixel (oy, ox), counted over all
 * images; -1 on padding. */
int64_t cmkd_ref_pixel_under(const cmkd_ref_call *call, int image, int oy, int ox, int ky, int kx);
/* Visits every pair of an output pixel and an input pixel under its window, both counted over all images; tap: ky * kw
 * + kx. Output pixels in order, and taps within each. */
typedef void cmkd_ref_tap_fn(const cmkd_ref_call *call, size_t in, size_t out, int tap);
void cmkd_ref_each_tap(const cmkd_ref_call *call, cmkd_ref_tap_fn *visit);

/* Both directions of every op kind. */
typedef struct cmkd_ref_rule {
  cmkd_ref_fn *forward, *backward;
} cmkd_ref_rule;
extern const cmkd_ref_rule cmkd_ref_rules[CMKD_OP_SHUFFLE + 1];

/* The activation, and its gradient from the output: 1 where the input passed. */
double cmkd_ref_activate(cmkd_act act, double x);
double cmkd_ref_act_derivative(cmkd_act act, double y);
/* PyTorch's SGD on `count` numbers: g += decay w; m = momentum m + g; w -= lr (nesterov ? g + momentum m : m). */
void cmkd_ref_sgd(double *w, double *m, const double *grad, int64_t count, double lr, double momentum, double decay,
                  int nesterov);
/* Running statistics after a training batch of `rows` values a channel; they take the unbiased variance. */
void cmkd_ref_norm_update(const cmkd_op *op, int64_t rows, int channels, const double *saved, double *mean,
                          double *var);
#endif
