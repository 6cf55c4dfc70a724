/* What the loss kernels share: their one argument, passed by value, and the pieces of scratch behind it. Internal to
 * kernels/cuda; the public entry is cmkd_cuda_loss_eval (include/cmkd/loss_cuda.h). */
#ifndef CMKD_KERNELS_CUDA_LOSS_LOSS_H
#define CMKD_KERNELS_CUDA_LOSS_LOSS_H
#include "kernels/cuda/device.h"
#include "kernels/loss.h"

#define LOSS_SHORT 8192 /* most classes of a row that one launch handles in registers and shared memory */

/* At the start of scratch; all zero between calls, for the last block of a launch clears it: no call needs a memset. */
typedef struct loss_state {
  unsigned done, done_entropy, done_columns; /* blocks that have finished */
  int bad;                                   /* 0x7FFFFFFF - first bad row; 0: none */
  double entropy_mean;
} loss_state;

typedef struct loss_args {
  int64_t B;
  int C, terms, parts, stride; /* stride = parts + 2: a row's figures */
  int student_dtype, teacher_dtype, moments;
  const void *student, *teacher; /* (B, C) */
  const int32_t *labels;         /* (B) */
  float *grad;                   /* (B, C) or NULL */
  double smoothing, entropy_mean;
  loss_state *state;
  const double *entropy; /* (B), with state->entropy_mean; NULL: entropy_mean above is given */
  double *rows;          /* (B, stride) */
  double *lse;           /* (B, 2) log-sum-exp at DIST's T, for its columns; NULL: not wanted */
  cmkd_loss_result *result;
  cmkd_loss_term term[CMKD_TERM_KINDS];
  double weight[CMKD_TERM_KINDS]; /* with warm-up, where epoch is NULL */
  const double *epoch;
} loss_args;
static_assert(sizeof(loss_args) + 64 <= 4096, "what a kernel takes by value on every driver");

/* Large rows: scratch for `wave` rows at a time. Strides are C + 1 where a prefix sum lives. */
typedef struct long_rows {
  int64_t first, count; /* rows of this launch */
  int64_t wave;         /* rows that scratch holds */
  int tiles;            /* of LOSS_SHORT classes */
  /* (wave, C + 1) each: sorted keys and the other side of a merge; later prefix sums */
  uint64_t *student[2], *teacher[2];
  uint32_t *list;           /* (wave, C) */
  int32_t *rank;            /* (wave, C) twice the teacher's rank */
  float *x, *spread, *grad; /* (wave, C) each; grad is for callers that want none */
  int sorted;               /* which of the two holds the sorted keys */
} long_rows;

int64_t long_wave(int64_t B, int64_t C);
size_t long_bytes(int64_t B, int64_t C, int sorts);
/* The losses, or with `sums` the agreement figures, of rows of more than LOSS_SHORT classes. */
cmkd_status long_launch(const loss_args *args, void *scratch, int sorts, double kappa, cmkd_agreement *sums,
                        void *stream, cmkd_error *err);
cmkd_status dist_launch(const loss_args *args, const cmkd_loss_term *term, double weight, double *columns, void *stream,
                        cmkd_error *err);
size_t dist_bytes(int64_t C);

#endif
