/* Who computes a convolution on the device: for each shape and pass the candidates are our own kernels (ops.h) and
 * cuDNN's engines, opened at run time; the fastest that was timed on scratch buffers is used from then on. Choices are
 * remembered in a file per GPU and cuDNN version, and travel in a run's state, so that a resumed run computes with the
 * same plans. Non-deterministic engines are never candidates. */
#ifndef CMKD_KERNELS_CUDA_CONV_CONV_H
#define CMKD_KERNELS_CUDA_CONV_CONV_H
#include "kernels/cuda/ops.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- cuDNN's backend API (cudnn.c). Will not do: time, choose, remember; that is select.c ---- */

typedef enum cmkd_conv_pass {
  CMKD_CONV_FORWARD,         /* x, w -> y */
  CMKD_CONV_FORWARD_FUSED,   /* x, w, bias [, residual] -> act(y) */
  CMKD_CONV_BACKWARD_DATA,   /* dy, w -> dx */
  CMKD_CONV_BACKWARD_WEIGHTS /* x, dy -> dw (float, or of the shape's dtype where the plan says so) */
} cmkd_conv_pass;

typedef struct cmkd_cudnn cmkd_cudnn; /* the library, opened, and a handle on one stream */
typedef struct cmkd_cudnn_plan cmkd_cudnn_plan;

typedef struct cmkd_conv_request {
  cmkd_cuda_conv_shape shape; /* groups = 1 or c; channels are given to cuDNN padded */
  cmkd_conv_pass pass;
  int residual;
  cmkd_act act;   /* FORWARD_FUSED */
  int accumulate; /* BACKWARD_DATA: dx += */
  int alone; /* FORWARD, FUSED: an image's result must be the same bits wherever it lies in the batch, whatever lies
                beside it */
  int tf32;  /* F32: tensor cores may round the inputs to tf32 */
} cmkd_conv_request;

/* Opens libcudnn.so.9 and makes a handle for `stream`. device_json (NULL: the current device): a device property
 * description, for making plans without that device (tests). CMKD_ERR_UNSUPPORTED with one line that says what is
 * missing; the caller goes on without. */
cmkd_status cmkd_cudnn_open(void *stream, const char *library, const char *device_json, cmkd_cudnn **out,
                            cmkd_error *err);
void cmkd_cudnn_close(cmkd_cudnn *cudnn);
int cmkd_cudnn_version(const cmkd_cudnn *cudnn); /* 91900 */
/* Up to `room` deterministic plans for a request, the heuristic's favourite first; *count 0 when there is none.
 * Workspace limit in bytes. */
cmkd_status cmkd_cudnn_plans(cmkd_cudnn *cudnn, const cmkd_conv_request *request, size_t workspace_limit, int capacity,
                             cmkd_cudnn_plan **plans, int *count, cmkd_error *err);
/* The plan of that name again (as remembered), or *out NULL when this cuDNN has none. */
cmkd_status cmkd_cudnn_plan_named(cmkd_cudnn *cudnn, const cmkd_conv_request *request, const char *name,
                                  cmkd_cudnn_plan **out, cmkd_error *err);
void cmkd_cudnn_plan_free(cmkd_cudnn_plan *plan);
const char *
cmkd_cudnn_plan_name(const cmkd_cudnn_plan *plan); /* "cudnn:eng57{k2=17,k3=0}": engine and knobs, no spaces */
size_t cmkd_cudnn_plan_workspace(const cmkd_cudnn_plan *plan);
cmkd_dtype cmkd_cudnn_plan_dw_dtype(const cmkd_cudnn_plan *plan); /* BACKWARD_WEIGHTS: dtype of what it writes */
/* a, b, c by pass: FORWARD (x, w, y), FUSED (x, w, y) with bias and residual, BACKWARD_DATA (dy, w, dx),
 * BACKWARD_WEIGHTS (x, dy, dw). */
cmkd_status cmkd_cudnn_run(cmkd_cudnn *cudnn, const cmkd_cudnn_plan *plan, const void *a, const void *b, void *c,
                           const float *bias, const void *residual, void *workspace, cmkd_error *err);

/* ---- the choice (select.c) ---- */

typedef struct cmkd_conv_selector cmkd_conv_selector; /* one a backend; knows what is remembered */
typedef struct cmkd_conv_algorithm
    cmkd_conv_algorithm; /* one request, decided; equal requests share it, each frees it once */

/* cudnn NULL: our own kernels only. memory: file of remembered choices, NULL: none. `device` names the GPU in it. */
cmkd_status cmkd_conv_selector_open(cmkd_cudnn *cudnn, const char *device, const char *memory, void *stream,
                                    cmkd_conv_selector **out, cmkd_error *err);
void cmkd_conv_selector_close(cmkd_conv_selector *selector); /* after its choices */
/* Decides: what a resumed run brought (cmkd_conv_selector_load), else what is remembered, else the fastest of our own
 * and cuDNN's, timed on fresh scratch buffers full of numbers, each several times, median. Where there is nothing to
 * compare nothing is timed. */
cmkd_status cmkd_conv_select(cmkd_conv_selector *selector, const cmkd_conv_request *request, cmkd_conv_algorithm **out,
                             cmkd_error *err);
void cmkd_conv_algorithm_free(cmkd_conv_algorithm *algorithm);
size_t cmkd_conv_algorithm_workspace(const cmkd_conv_algorithm *algorithm);
cmkd_dtype cmkd_conv_algorithm_dw_dtype(const cmkd_conv_algorithm *algorithm);
const char *cmkd_conv_algorithm_name(const cmkd_conv_algorithm *algorithm); /* "own" or the plan's */
/* As cmkd_cudnn_run; FORWARD takes no epilogue, FUSED always has one. Queues only. */
cmkd_status cmkd_conv_run(const cmkd_conv_algorithm *algorithm, const void *a, const void *b, void *c,
                          const cmkd_cuda_epilogue *epilogue, void *workspace, void *stream, cmkd_error *err);

/* Every choice made so far as one JSON text for a run's state (caller frees), and back: choices in it win over
 * measuring. A text of another GPU or cuDNN is ignored, *used 0. */
cmkd_status cmkd_conv_selector_save(const cmkd_conv_selector *selector, char **json, cmkd_error *err);
cmkd_status cmkd_conv_selector_load(cmkd_conv_selector *selector, const char *json, int *used, cmkd_error *err);
#ifdef __cplusplus
}
#endif
#endif
