/* The losses on buffers of a CUDA device, in libcmkd-cuda.so (link it beside libcmkd). Formulas and meaning as in
 * cmkd/loss.h; docs/examples/loss_cuda.c is a whole program. Nothing here allocates or waits: work is queued on the
 * caller's stream (a cudaStream_t, NULL: the default stream) of the current device, and may be captured into a CUDA
 * graph.
 *
 * Threads: any number, each with a scratch of its own. */
#ifndef CMKD_LOSS_CUDA_H
#define CMKD_LOSS_CUDA_H
#include "cmkd/loss.h"
#ifdef __cplusplus
extern "C" {
#endif

#define CMKD_CUDA_LOSS_MAX_BATCH 16777216

/* All pointers are to device memory; everything is borrowed until the stream has passed. */
typedef struct cmkd_cuda_loss_batch {
  int64_t batch, classes; /* 1 <= B <= CMKD_CUDA_LOSS_MAX_BATCH, 2 <= C <= 131072 */
  const void *student;    /* (B, C) logits of student_dtype: CMKD_F32, CMKD_F16 or CMKD_BF16 */
  cmkd_dtype student_dtype;
  const void *teacher; /* (B, C) logits of teacher_dtype, likewise; NULL where no term needs it */
  cmkd_dtype teacher_dtype;
  const int32_t *labels;  /* (B), each in [0, C) */
  float *grad;            /* (B, C) d(loss)/d(student), overwritten; NULL: loss only */
  double epoch;           /* from 1; CMKD_LOSS_NO_WARMUP */
  double label_smoothing; /* of the cross-entropy, [0, 1) */
  double entropy_mean;    /* over the global batch; NaN: of these rows, which takes one small launch more */
  /* For captured graphs: where the two values will stand when the work runs; NULL: the fields of that name. A mean
   * entropy of 0 there means that of these rows; reading it takes the small launch always. */
  const double *epoch_now, *entropy_mean_now;
} cmkd_cuda_loss_batch;

/* Bytes of device scratch for this shape, 256-byte aligned; 0 when the shape is out of range. One scratch serves one
 * stream. */
CMKD_API size_t cmkd_cuda_loss_scratch(const cmkd_loss *loss, int64_t batch, int64_t classes);
/* Clears the head of fresh scratch. Once; every eval leaves it ready for the next (also of another loss or shape that
 * fits). */
CMKD_API cmkd_status cmkd_cuda_loss_init(void *scratch, void *stream, cmkd_error *err);
/* Queues loss and gradient: one launch for C <= 8192 (plus one where entropy_mean is NaN or to be read later, plus two
 * for DIST's columns). `result` is device memory (or mapped host memory). Bad rows (NaN, Inf, a label outside [0, C))
 * are found on the device: the call returns CMKD_OK, result->bad_row names the first one, result->loss is NaN, and
 * those rows' gradients are 0. The bits of gradient and result depend on the inputs and the shape alone. A refused
 * launch gives CMKD_ERR_DEVICE. */
CMKD_API cmkd_status cmkd_cuda_loss_eval(const cmkd_loss *loss, const cmkd_cuda_loss_batch *batch, void *scratch,
                                         cmkd_loss_result *result, void *stream, cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
