/* Convolutions by oneDNN: single-threaded primitives of one image (and of a few for weight gradients), so that rows
 * never depend on the batch. */
#ifndef CMKD_KERNELS_CPU_CONV_DNNL_H
#define CMKD_KERNELS_CPU_CONV_DNNL_H
#include <stddef.h>
#include "cmkd/status.h"
#include "kernels/cpu/kernels.h"

struct cmkd_conv;
struct cmkd_conv_options;
typedef struct cmkd_conv_dnnl cmkd_conv_dnnl;

int cmkd_conv_dnnl_available(void);
/* "2.6.3", or "" in a build without oneDNN */
const char *cmkd_conv_dnnl_version(char buffer[32]);
/* *out stays NULL where oneDNN has nothing better than its reference code for this shape. Sets conv's packed sizes
 * otherwise. */
cmkd_status cmkd_conv_dnnl_create(struct cmkd_conv *conv, const struct cmkd_conv_options *options, cmkd_conv_dnnl **out,
                                  cmkd_error *err);
void cmkd_conv_dnnl_free(cmkd_conv_dnnl *dnnl);
void cmkd_conv_dnnl_pack(const struct cmkd_conv *conv, const float *plain, float *forward, float *backward);
/* All output channels. */
void cmkd_conv_dnnl_unpack_grad(const struct cmkd_conv *conv, const float *const *packed, int lanes, float *plain);
void cmkd_conv_dnnl_forward(const struct cmkd_conv *conv, int thread, int n, const float *src, const float *weights,
                            const cmkd_epilogue *epilogue, float *dst);
void cmkd_conv_dnnl_backward_data(const struct cmkd_conv *conv, int thread, int n, const float *ddst,
                                  const float *weights, int accumulate, float *dsrc);
void cmkd_conv_dnnl_backward_weights(const struct cmkd_conv *conv, int thread, int n, const float *src,
                                     const float *ddst, float *grad);
#endif
