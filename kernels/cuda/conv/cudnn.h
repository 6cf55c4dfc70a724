/* Convolutions through cuDNN 9's backend API: the library, opened at run time, and its plans for a request. Will not
 * do: time, select, remember. A build without cuDNN's header has all of this, and nothing is ever open. */
#ifndef CMKD_KERNELS_CUDA_CONV_CUDNN_H
#define CMKD_KERNELS_CUDA_CONV_CUDNN_H
#include "kernels/cuda/conv/conv.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmkd_cudnn_plan cmkd_cudnn_plan; /* one engine and its knobs, made executable for a request */

/* Opens the library (path NULL or empty: libcudnn.so.9; "off": none) and makes a handle for `stream`. device_json
 * (NULL: the current device): a device property description, for making plans without that device (tests).
 * CMKD_ERR_UNSUPPORTED with one line that says what is missing; the caller goes on without. */
cmkd_status cmkd_cudnn_open(const char *path, void *stream, const char *device_json, cmkd_cudnn **out, cmkd_error *err);
void cmkd_cudnn_close(cmkd_cudnn *cudnn);
int cmkd_cudnn_version(const cmkd_cudnn *cudnn); /* 91900 */
/* Up to `capacity` deterministic plans for a request, the heuristic's favourite first; *count 0 when there is none.
 * workspace_limit in bytes. */
cmkd_status cmkd_cudnn_plans(cmkd_cudnn *cudnn, const cmkd_conv_request *request, size_t workspace_limit, int capacity,
                             cmkd_cudnn_plan **plans, int *count, cmkd_error *err);
/* The plan of that name again (as remembered), or *out NULL when this cuDNN has none. */
cmkd_status cmkd_cudnn_plan_named(cmkd_cudnn *cudnn, const cmkd_conv_request *request, const char *name,
                                  cmkd_cudnn_plan **out, cmkd_error *err);
void cmkd_cudnn_plan_free(cmkd_cudnn_plan *plan);
/* "cudnn:eng57{k2=17,k3=0}": engine and knobs, no spaces. */
const char *cmkd_cudnn_plan_name(const cmkd_cudnn_plan *plan);
size_t cmkd_cudnn_plan_workspace(const cmkd_cudnn_plan *plan);    /* bytes */
cmkd_dtype cmkd_cudnn_plan_dw_dtype(const cmkd_cudnn_plan *plan); /* BACKWARD_WEIGHTS: of what it writes */
/* Queues a plan on the handle's stream. a, b, c as in cmkd_conv_run; epilogue: bias and residual of FORWARD_FUSED (its
 * activation is the request's), NULL for the other passes. */
cmkd_status cmkd_cudnn_run(cmkd_cudnn *cudnn, const cmkd_cudnn_plan *plan, const void *a, const void *b, void *c,
                           const cmkd_cuda_epilogue *epilogue, void *workspace, cmkd_error *err);
#ifdef __cplusplus
}
#endif
#endif
