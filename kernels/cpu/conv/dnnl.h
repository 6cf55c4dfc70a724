/* Convolutions by oneDNN: single-threaded primitives of one image (and of a few for weight gradients), so that rows
 * never depend on the batch. In a build without oneDNN the functions exist and create() never makes one. */
#ifndef CMKD_KERNELS_CPU_CONV_DNNL_H
#define CMKD_KERNELS_CPU_CONV_DNNL_H
#include "cmkd/status.h"
#include "kernels/cpu/conv/geometry.h"

typedef struct cmkd_conv_dnnl cmkd_conv_dnnl;

int cmkd_conv_dnnl_available(void);
/* "2.6.3", or "" in a build without oneDNN; returns buffer. */
const char *cmkd_conv_dnnl_version(char buffer[32]);
/* *out, the caller's to free, and *sizes; or *out NULL, and *sizes left alone, where oneDNN has nothing better than its
 * reference code for this shape. */
cmkd_status cmkd_conv_dnnl_create(const cmkd_conv_geometry *geometry, const cmkd_conv_options *options,
                                  cmkd_conv_dnnl **out, cmkd_conv_packed_sizes *sizes, cmkd_error *err);
void cmkd_conv_dnnl_free(cmkd_conv_dnnl *dnnl); /* NULL: nothing */

/* As the functions of conv.h, for all output channels. One thread at a time packs and unpacks a convolution. A failure
 * inside oneDNN, which it does not document for valid arguments, leaves NaN in the result. */
void cmkd_conv_dnnl_pack(const cmkd_conv_dnnl *dnnl, const float *plain, float *forward, float *backward);
void cmkd_conv_dnnl_unpack_grad(const cmkd_conv_dnnl *dnnl, const float *const *packed, int workers, float *plain);
void cmkd_conv_dnnl_forward(const cmkd_conv_dnnl *dnnl, int thread, int n, const float *src, const float *weights,
                            const cmkd_epilogue *epilogue, float *dst);
void cmkd_conv_dnnl_backward_data(const cmkd_conv_dnnl *dnnl, int thread, int n, const float *ddst,
                                  const float *weights, int accumulate, float *dsrc);
void cmkd_conv_dnnl_backward_weights(const cmkd_conv_dnnl *dnnl, int thread, int n, const float *src, const float *ddst,
                                     float *grad);
#endif
