/* What a step does besides the network and the loss: take its input from the queue, count correct rows, update the
 * weights, write its result. Everything that changes from step to step lies in device memory, so that one captured
 * graph serves every step of a kind. Functions only queue work on `stream` (a cudaStream_t); nothing allocates or
 * waits. */
#ifndef CMKD_KERNELS_CUDA_STEP_H
#define CMKD_KERNELS_CUDA_STEP_H
#include "kernels/backend.h"
#include "kernels/cuda/kernels.h"
#ifdef __cplusplus
extern "C" {
#endif

/* One a model, in device memory; the host looks at it between steps only. */
typedef struct cmkd_cuda_state {
  int input;    /* next slot of the queue */
  int output;   /* next result */
  int halted;   /* a step had a bad row: nothing changes until the host has seen it */
  int skip;     /* the running step must not update: it or an earlier one had a bad row */
  int overflow; /* fp16: a gradient of the running step is not finite */
  int top1;     /* rows of the running step whose label scores highest */
  int top5;     /* rows whose label is among the five highest scores */
  int good;     /* fp16: steps since the scale last changed */
  float scale;  /* fp16: the loss is multiplied by this; else 1 */
  float lr;
  double epoch;
  double entropy_mean; /* of the global batch; 0: the mean over the step's rows counts */
  cmkd_loss_result loss;
  cmkd_agreement agreement;
  double objective[CMKD_MAX_OUTPUTS];
} cmkd_cuda_state;

/* fp16's loss scaling: doubled after so many good steps, halved by an overflow (as torch.cuda.amp.GradScaler). */
#define CMKD_CUDA_SCALE_FIRST 65536.0f
#define CMKD_CUDA_SCALE_MOST 16777216.0f
#define CMKD_CUDA_SCALE_STEPS 2000

/* How the queue begins a slot. After it come the step's arrays, each at its offset from the slot's start. */
typedef struct cmkd_cuda_slot {
  float lr;
  double epoch, entropy_mean;
} cmkd_cuda_slot;

/* The queue and where in a slot each array begins, in bytes from its start; 0: not there. `batch` is the model's. */
typedef struct cmkd_cuda_slot_layout {
  const char *slots; /* the queue, device memory */
  size_t stride;     /* bytes a slot */
  size_t seeds;      /* (batch) uint64 */
  size_t rows;       /* (batch) uint32 */
  size_t labels;     /* (batch) int32 */
  size_t pixels;     /* (batch, h, w, c) uint8 */
  /* each target in one of two forms */
  size_t index[CMKD_MAX_TARGETS];  /* (batch) uint32, rows of a resident array */
  size_t target[CMKD_MAX_TARGETS]; /* (batch, width) float */
} cmkd_cuda_slot_layout;

/* Where the running step's input lies: device memory at addresses that never change, so that graphs may name them.
 * NULL: not wanted by this step. Without pixels, rows are those of resident images. */
typedef struct cmkd_cuda_input {
  uint64_t *seeds;
  uint32_t *rows;
  int32_t *labels;
  uint8_t *pixels;
  uint32_t *index[CMKD_MAX_TARGETS];
  float *target[CMKD_MAX_TARGETS];
} cmkd_cuda_input;

/* How much there is of each. */
typedef struct cmkd_cuda_sizes {
  int rows;
  int64_t image; /* bytes; copied in whole words, for which the slot has room */
  int width[CMKD_MAX_TARGETS];
} cmkd_cuda_sizes;
/* Copies slot state->input of the queue and clears what the step adds to. With pixels, rows become 0 .. rows - 1. */
cmkd_status cmkd_cuda_begin(const cmkd_cuda_slot_layout *queue, const cmkd_cuda_input *input,
                            const cmkd_cuda_sizes *sizes, cmkd_cuda_state *state, void *stream, cmkd_error *err);
/* Adds to state->top1 and state->top5 (ties as in cmkd_label_rank, kernels/step.h). Also sets state->skip, for here
 * loss and objectives have found every bad row. logits (count, classes). */
cmkd_status cmkd_cuda_count_correct(const float *logits, const int32_t *labels, int count, int classes,
                                    cmkd_cuda_state *state, void *stream, cmkd_error *err);
/* grad *= state->scale */
cmkd_status cmkd_cuda_scale(float *grad, int64_t count, const cmkd_cuda_state *state, void *stream, cmkd_error *err);

/* One further term of the objective (loss/objective.cu): weight * the mean over rows of the mean squared difference
 * between an output of the network and a target. */
typedef struct cmkd_cuda_objective {
  const void *output; /* (rows, pixels, stride) of dtype, of which the first c channels count */
  cmkd_dtype dtype;
  int rows, c, stride;
  int64_t pixels;
  const float *target; /* (rows, pixels, c) */
  void *grad;          /* like output; its padding becomes 0 */
  int accumulate;      /* the gradient is added to what is there */
  double weight;
} cmkd_cuda_objective;
/* Bytes; all zero at first, every call leaves it ready for the next on the same stream. */
size_t cmkd_cuda_objective_scratch(int rows);
/* grad [+]= state->scale * the term's gradient; *value, device memory, = its unweighted mean over rows. The first row
 * whose output or target is not finite becomes state->loss.bad_row, where the loss has found none. */
cmkd_status cmkd_cuda_objective_add(const cmkd_cuda_objective *objective, void *scratch, double *value,
                                    cmkd_cuda_state *state, void *stream, cmkd_error *err);

/* All trained numbers of a network, in chunks of CMKD_CUDA_CHUNK; a parameter begins at a chunk. */
#define CMKD_CUDA_CHUNK 1024
typedef struct cmkd_cuda_update {
  int64_t count;         /* a multiple of CMKD_CUDA_CHUNK */
  float *w;              /* (count) weights */
  float *m;              /* (count) momentum */
  float *grad;           /* (count) */
  const void *grad16;    /* (count) of copy_dtype, or NULL */
  const uint8_t *from16; /* (chunks) not 0: the chunk's gradient is in grad16; may be NULL */
  void *copy;            /* (count) of copy_dtype: the new w rounded; may be NULL */
  cmkd_dtype copy_dtype;
  float momentum, decay;
  int nesterov;
} cmkd_cuda_update;
/* Moves the gradients that are in grad16 into grad, so that it holds all of them. */
cmkd_status cmkd_cuda_widen(const cmkd_cuda_update *update, void *stream, cmkd_error *err);
/* fp16: state->overflow = a gradient is not finite. */
cmkd_status cmkd_cuda_check_gradients(const cmkd_cuda_update *update, cmkd_cuda_state *state, void *stream,
                                      cmkd_error *err);
/* SGD as torch.optim.SGD (dampening 0): g = grad / scale + decay w; m = momentum m + g; w -= lr (g + momentum m if
 * nesterov, else m). Nothing happens when state->skip or state->overflow is set. */
cmkd_status cmkd_cuda_sgd(const cmkd_cuda_update *update, const cmkd_cuda_state *state, void *stream, cmkd_error *err);
/* copy = w rounded to copy_dtype. */
cmkd_status cmkd_cuda_round(const float *w, int64_t count, void *copy, cmkd_dtype copy_dtype, void *stream,
                            cmkd_error *err);
/* Writes the step's result (count -1 where an earlier one halted), adapts the loss scale if `scaling`, and goes on to
 * the next slot and result. results NULL: an inference step, which only goes on to the next slot. */
cmkd_status cmkd_cuda_end(cmkd_cuda_state *state, cmkd_step_result *results, int count, int scaling, void *stream,
                          cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
