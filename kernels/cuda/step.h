/* What a step does besides the network: take its input from the queue, judge, update, write down what it produced.
 * Everything that changes from step to step lies in device memory, so that one captured graph serves every step of a
 * size. Queues only; nothing allocates or waits. */
#ifndef CMKD_KERNELS_CUDA_STEP_H
#define CMKD_KERNELS_CUDA_STEP_H
#include "kernels/backend.h"
#include "kernels/cuda/kernels.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Device memory, one a model. */
typedef struct cmkd_cuda_state {
  int input, output; /* next slot of the queue; next result */
  int halted;        /* a step had a bad row: nothing changes until the host has seen it */
  int skip;          /* of the running step: no update */
  int overflow;      /* fp16: a gradient of this step is not finite */
  int top1, top5;    /* of the running step, rows */
  int good;          /* fp16: steps since the scale last changed */
  float scale;       /* fp16: the loss is multiplied by this; else 1 */
  float lr;
  double epoch;
  cmkd_loss_result loss;
  cmkd_agreement agreement;
} cmkd_cuda_state;

/* fp16's loss scaling: doubled after so many good steps, halved by an overflow (as torch.cuda.amp.GradScaler). */
#define CMKD_CUDA_SCALE_FIRST 65536.0f
#define CMKD_CUDA_SCALE_MOST 16777216.0f
#define CMKD_CUDA_SCALE_STEPS 2000

/* A slot of the queue begins with this; then, each at its offset from the slot's start (0: not there): seeds, rows,
 * labels, teacher, pixels. */
typedef struct cmkd_cuda_slot {
  float lr;
  double epoch;
} cmkd_cuda_slot;
typedef struct cmkd_cuda_queue {
  const char *slots; /* device memory */
  size_t stride;     /* bytes a slot */
  size_t seeds, rows, labels, index, teacher,
      pixels; /* uint64, uint32, int32, uint32, float (classes), uint8 (h, w, c) */
} cmkd_cuda_queue;

/* Where the running step's input lies: fixed addresses. teacher, index, pixels NULL: not wanted; without pixels, rows
 * are those of resident images. */
typedef struct cmkd_cuda_input {
  uint64_t *seeds;
  uint32_t *rows;
  int32_t *labels;
  uint32_t *index;
  float *teacher;
  uint8_t *pixels;
} cmkd_cuda_input;
/* Copies slot state->input of the queue, `count` rows, `image` bytes each (in whole words: the slot's parts have room
 * for them), and clears what the step adds to. With pixels, rows become 0 .. count-1. */
cmkd_status cmkd_cuda_begin(const cmkd_cuda_queue *queue, const cmkd_cuda_input *input, cmkd_cuda_state *state,
                            int count, int classes, int64_t image, void *stream, cmkd_error *err);
/* Top-1, top-5 (ties as in kernels/backend.h) and whether the step may update: state->skip. logits (count, classes). */
cmkd_status cmkd_cuda_judge(const float *logits, const int32_t *labels, int count, int classes, cmkd_cuda_state *state,
                            void *stream, cmkd_error *err);
/* grad *= state->scale */
cmkd_status cmkd_cuda_scale(float *grad, int64_t count, const cmkd_cuda_state *state, void *stream, cmkd_error *err);

/* All trained numbers of a network, in chunks of CMKD_CUDA_CHUNK; a parameter begins at a chunk. */
#define CMKD_CUDA_CHUNK 1024
typedef struct cmkd_cuda_update {
  int64_t count; /* a multiple of CMKD_CUDA_CHUNK */
  float *w, *m;
  const float *grad;
  const void *grad16;    /* of copy_dtype, or NULL */
  const uint8_t *from16; /* (chunks): the gradient is in grad16; may be NULL */
  void *copy;
  cmkd_dtype copy_dtype; /* the new w rounded, or NULL */
  float momentum, decay;
  int nesterov;
} cmkd_cuda_update;
/* fp16: state->overflow = a gradient is not finite. */
cmkd_status cmkd_cuda_check_gradients(const cmkd_cuda_update *update, cmkd_cuda_state *state, void *stream,
                                      cmkd_error *err);
/* SGD as torch.optim.SGD (dampening 0): g = grad / scale + decay w; m = momentum m + g; w -= lr (g + momentum m if
 * nesterov, else m). Nothing happens when state->skip or state->overflow is set. */
cmkd_status cmkd_cuda_sgd(const cmkd_cuda_update *update, const cmkd_cuda_state *state, void *stream, cmkd_error *err);
/* copy = w rounded to copy_dtype. */
cmkd_status cmkd_cuda_round(const float *w, int64_t count, void *copy, cmkd_dtype copy_dtype, void *stream,
                            cmkd_error *err);
/* Writes the step's result (count -1 where an earlier one halted), moves the loss scale if `scaling`, and goes on to
 * the next slot and result. results NULL: an inference step, which only goes on to the next slot. */
cmkd_status cmkd_cuda_end(cmkd_cuda_state *state, cmkd_step_result *results, int count, int scaling, void *stream,
                          cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
