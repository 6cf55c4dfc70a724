/* One convolution (or linear layer) of a network, planned once: shapes, edges, packed weight layouts and who computes
 * it: the direct kernels of kernels.h or oneDNN (dnnl.h). Runs on the calling thread; many threads may run the same
 * plan. Knows nothing of graphs, gradients of other ops, or the optimizer. */
#ifndef CMKD_KERNELS_CPU_CONV_CONV_H
#define CMKD_KERNELS_CPU_CONV_CONV_H
#include <stddef.h>
#include "cmkd/status.h"
#include "kernels/cpu/conv/dnnl.h"
#include "kernels/cpu/kernels.h"

typedef struct cmkd_conv_geometry {
  int ih, iw, ic, oh, ow, oc, kh, kw, stride, pad, groups;
  int plane; /* LINEAR: h * w of the flattened input, whose weights are in (c, h, w) order; else 1 */
} cmkd_conv_geometry;

typedef struct cmkd_conv_options {
  const cmkd_cpu_kernels *kernels;
  int train;   /* plan the backward passes too */
  int dnnl;    /* let oneDNN compute where it can */
  int threads; /* how many may run it at once */
} cmkd_conv_options;

typedef struct cmkd_conv_phase {
  int taps;
  int64_t weights;
} cmkd_conv_phase; /* of the backward pass: how many taps, where packed */

typedef struct cmkd_conv {
  cmkd_conv_geometry g;
  const cmkd_cpu_kernels *kernels;
  int depthwise;
  cmkd_direct_pass fwd, bwd;
  int *fwd_tap, *bwd_tap; /* (kh * kw) kernel_y * kw + kernel_x of every tap, in packed order */
  cmkd_conv_phase *phase;
  int phases;
  size_t forward_floats, backward_floats, grad_floats; /* packed weights and weight gradient */
  size_t in_floats, out_floats;                        /* of an image */
  cmkd_conv_dnnl *dnnl;                                /* NULL: the direct kernels */
} cmkd_conv;

cmkd_status cmkd_conv_create(const cmkd_conv_geometry *geometry, const cmkd_conv_options *options, cmkd_conv **out,
                             cmkd_error *err);
void cmkd_conv_free(cmkd_conv *conv);
double cmkd_conv_flops(const cmkd_conv *conv); /* of one pass over one image */

/* plain: (oc, ic / groups, kh, kw) as in state dicts. Either target may be NULL; padding in it is left alone and must
 * be zeros. Output channels [first, first + count) only (all of them at once where oneDNN computes). */
void cmkd_conv_pack(const cmkd_conv *conv, int first, int count, const float *plain, float *forward, float *backward);
/* plain = sum of `lanes` packed gradients in that order; output channels as above. */
void cmkd_conv_unpack_grad(const cmkd_conv *conv, const float *const *packed, int lanes, int first, int count,
                           float *plain);

/* src (n, ih, iw, ic) -> dst (n, oh, ow, oc). epilogue->add, where given, is laid out like dst. thread: 0 .. threads
 * - 1. */
void cmkd_conv_forward(const cmkd_conv *conv, int thread, int n, const float *src, const float *weights,
                       const cmkd_epilogue *epilogue, float *dst);
/* dsrc (+)= transposed convolution of ddst. */
void cmkd_conv_backward_data(const cmkd_conv *conv, int thread, int n, const float *ddst, const float *weights,
                             int accumulate, float *dsrc);
/* grad (packed) += . kernels->block floats past ddst's end must be readable. */
void cmkd_conv_backward_weights(const cmkd_conv *conv, int thread, int n, const float *src, const float *ddst,
                                float *grad);
#endif
