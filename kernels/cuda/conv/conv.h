/* Algorithm selection for convolutions: for each shape and pass the candidates are our own kernels (kernels/cuda/ops.h)
 * and plans of cuDNN (kernels/cuda/conv/cudnn.h); the fastest, timed once on scratch buffers, is used from then on.
 * What was selected is remembered in a file per GPU and cuDNN version, and travels in a run's state, so that a resumed
 * run computes with the same plans. Non-deterministic engines are never candidates. */
#ifndef CMKD_KERNELS_CUDA_CONV_CONV_H
#define CMKD_KERNELS_CUDA_CONV_CONV_H
#include "kernels/cuda/ops.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum cmkd_conv_pass {
  CMKD_CONV_FORWARD,         /* x, w -> y */
  CMKD_CONV_FORWARD_FUSED,   /* x, w, bias [, residual] -> act(y) */
  CMKD_CONV_BACKWARD_DATA,   /* dy, w -> dx */
  CMKD_CONV_BACKWARD_WEIGHTS /* x, dy -> dw (float, or of the shape's dtype where the plan says so) */
} cmkd_conv_pass;

typedef struct cmkd_cudnn cmkd_cudnn; /* kernels/cuda/conv/cudnn.h */

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

typedef struct cmkd_conv_selector cmkd_conv_selector; /* one a backend; holds what is remembered */
/* What one request is computed by. Equal requests share it; each call of cmkd_conv_select is freed once. */
typedef struct cmkd_conv_algorithm cmkd_conv_algorithm;

/* cudnn NULL: our own kernels only, and nothing is remembered. device: the GPU's name in the file. cache_path: the
 * file, made where it is missing; NULL: none. An unreadable file counts as empty. */
cmkd_status cmkd_conv_selector_open(cmkd_cudnn *cudnn, const char *device, const char *cache_path, void *stream,
                                    cmkd_conv_selector **out, cmkd_error *err);
void cmkd_conv_selector_close(cmkd_conv_selector *selector); /* after its algorithms were freed */
/* The algorithm for a request: that of the resumed run (cmkd_conv_selector_load), else the remembered one, else the
 * fastest by the median of several timings. Where there is nothing to compare nothing is timed. Waits and allocates. */
cmkd_status cmkd_conv_select(cmkd_conv_selector *selector, const cmkd_conv_request *request, cmkd_conv_algorithm **out,
                             cmkd_error *err);
void cmkd_conv_algorithm_free(cmkd_conv_algorithm *algorithm);
size_t cmkd_conv_algorithm_workspace(const cmkd_conv_algorithm *algorithm);    /* bytes */
cmkd_dtype cmkd_conv_algorithm_dw_dtype(const cmkd_conv_algorithm *algorithm); /* of the weight gradients it writes */
const char *cmkd_conv_algorithm_name(const cmkd_conv_algorithm *algorithm);    /* "own" or the plan's */
/* Queues the convolution on the selector's stream. a, b, c by pass: FORWARD and FUSED (x, w, y), BACKWARD_DATA (dy, w,
 * dx), BACKWARD_WEIGHTS (x, dy, dw). epilogue: what the request says for FUSED, NULL for the others. */
cmkd_status cmkd_conv_run(const cmkd_conv_algorithm *algorithm, const void *a, const void *b, void *c,
                          const cmkd_cuda_epilogue *epilogue, void *workspace, void *stream, cmkd_error *err);

/* The names of all algorithms selected so far as one JSON text for a run's state (caller frees), and back: names in it
 * win over what is remembered. The text of another GPU or cuDNN version is ignored: *used 0. */
cmkd_status cmkd_conv_selector_save(const cmkd_conv_selector *selector, char **json, cmkd_error *err);
cmkd_status cmkd_conv_selector_load(cmkd_conv_selector *selector, const char *json, int *used, cmkd_error *err);
#ifdef __cplusplus
}
#endif
#endif
