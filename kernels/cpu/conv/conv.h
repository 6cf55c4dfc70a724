/* One convolution (or linear layer) of a network, planned once for its shape: by the direct kernels (plan.h) or by
 * oneDNN (dnnl.h), and the weight layouts that those read. Runs on the calling thread; many threads may run the same
 * plan. Knows nothing of graphs, gradients of other operations, or the optimizer. */
#ifndef CMKD_KERNELS_CPU_CONV_CONV_H
#define CMKD_KERNELS_CPU_CONV_CONV_H
#include <stddef.h>
#include "cmkd/status.h"
#include "kernels/cpu/conv/geometry.h"
#include "kernels/cpu/conv/plan.h"

typedef struct cmkd_conv {
  cmkd_conv_geometry g;
  const cmkd_cpu_kernels *kernels;
  cmkd_direct_plan forward, backward;                  /* backward: backward-data; empty without training */
  size_t forward_floats, backward_floats, grad_floats; /* packed weights and weight gradient */
  size_t in_floats, out_floats;                        /* of an image */
  struct cmkd_conv_dnnl *dnnl;                         /* NULL: the direct kernels */
} cmkd_conv;

/* *out is the caller's, to free. CMKD_ERR_MEMORY alone can go wrong. */
cmkd_status cmkd_conv_create(const cmkd_conv_geometry *geometry, const cmkd_conv_options *options, cmkd_conv **out,
                             cmkd_error *err);
void cmkd_conv_free(cmkd_conv *conv);
double cmkd_conv_flops(const cmkd_conv *conv); /* of one pass over one image */

/* plain: (oc, ic / groups, kh, kw) as in state dicts. forward (forward_floats), backward (backward_floats): either may
 * be NULL; their padding is left alone and must be zeros. Output channels [first, first + count) only, which with
 * oneDNN must be all of them. */
void cmkd_conv_pack(const cmkd_conv *conv, int first, int count, const float *plain, float *forward, float *backward);
/* plain = sum of the packed gradients of all `workers`, in that order; output channels as above. */
void cmkd_conv_unpack_grad(const cmkd_conv *conv, const float *const *packed, int workers, int first, int count,
                           float *plain);

/* src (n, ih, iw, ic) -> dst (n, oh, ow, oc). epilogue->add, where given, is laid out like dst. thread: 0 .. threads
 * - 1, no two at once with the same. */
void cmkd_conv_forward(const cmkd_conv *conv, int thread, int n, const float *src, const float *weights,
                       const cmkd_epilogue *epilogue, float *dst);
/* dsrc (n, ih, iw, ic) = transposed convolution of ddst (n, oh, ow, oc), added to what is there if accumulate. */
void cmkd_conv_backward_data(const cmkd_conv *conv, int thread, int n, const float *ddst, const float *weights,
                             int accumulate, float *dsrc);
/* Adds the weight gradient of these n images to grad (grad_floats, packed). kernels->channel_block floats past ddst's
 * end must be readable. */
void cmkd_conv_backward_weights(const cmkd_conv *conv, int thread, int n, const float *src, const float *ddst,
                                float *grad);
#endif
