/* The distillation losses: parse an expression once, evaluate loss and gradient on any number of batches.
 * Formulas: docs/losses.md. Every term exists three times behind one registry: `ref` (double, plain loops), `cpu`
 * (vectorised), `cuda` (one launch). */
#ifndef CMKD_LOSS_H
#define CMKD_LOSS_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/dtype.h"
#include "cmkd/status.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum cmkd_loss_family {
  CMKD_LOSS_CIFAR = 0,
  CMKD_LOSS_IMAGENET = 1
} cmkd_loss_family;                 /* whose published defaults fill the gaps */
typedef struct cmkd_loss cmkd_loss; /* immutable after parsing; shared freely between threads */
#define CMKD_LOSS_MAX_PARTS 16

/* "cmkd", "kd", "dkd+cmkd", "ce:1+cmkd:beta=4,gamma=2,T=4,kappa=2,gate=easy-spearman,zscore=on". An unknown term or key
 * fails with CMKD_ERR_USAGE and names the nearest known one. Caller frees with cmkd_loss_free. */
CMKD_API cmkd_status cmkd_loss_parse(const char *expression, cmkd_loss_family family, cmkd_loss **out, cmkd_error *err);
CMKD_API void cmkd_loss_free(cmkd_loss *loss);
/* The expression in full, every default written out; parses to the same loss. Owned by the loss. */
CMKD_API const char *cmkd_loss_text(const cmkd_loss *loss);
CMKD_API int cmkd_loss_needs_teacher(const cmkd_loss *loss);  /* 0 for pure cross-entropy */
CMKD_API int cmkd_loss_needs_full_row(const cmkd_loss *loss); /* 1 for rank-based terms: top-k caches are refused */
/* What is logged by itself: "ce", "kd", "pearson", "spearman", "dkd_target", ... Value = batch mean of the unweighted
 * part. */
CMKD_API int cmkd_loss_parts(const cmkd_loss *loss);
CMKD_API const char *cmkd_loss_part_name(const cmkd_loss *loss, int part);

typedef struct cmkd_loss_batch {
  int64_t batch, classes; /* B >= 1, 2 <= C <= 131072 */
  const float *student;   /* (B, C) logits */
  const void *teacher;    /* (B, C) logits of teacher_dtype (CMKD_F32, CMKD_F16, CMKD_BF16); NULL if no term needs it */
  cmkd_dtype teacher_dtype;
  const int32_t *labels;  /* (B) */
  float *grad;            /* (B, C) d(loss)/d(student), overwritten; NULL: loss only */
  double epoch;           /* from 1; drives warm-ups. Golden vectors use CMKD_LOSS_NO_WARMUP */
  double label_smoothing; /* of the CE term, [0, 1) */
  double entropy_mean;    /* mean teacher entropy over the *global* batch; NaN: mean over these B rows */
} cmkd_loss_batch;
#define CMKD_LOSS_NO_WARMUP 1e9

typedef struct cmkd_loss_result {
  double loss;                      /* batch mean, weighted sum of all parts (+ warm-up ramps) */
  double part[CMKD_LOSS_MAX_PARTS]; /* batch means, unweighted */
  double blocks;                    /* mean over rows of soft-rank blocks / C; NaN when no term has a soft rank */
  int64_t bad_row;                  /* first row with NaN or Inf logits or a label outside [0, C); -1 when none */
} cmkd_loss_result;

/* Bytes of scratch that eval needs for this shape (0 is possible). The caller owns it; 64-byte aligned. */
CMKD_API size_t cmkd_loss_scratch(const cmkd_loss *loss, const char *implementation, int64_t batch, int64_t classes);
/* Evaluates on host buffers. implementation: "cpu" or "ref". Bad rows give CMKD_ERR_VALUE with result->bad_row set;
 * grad is then undefined but never NaN-free by accident of reading out of bounds. Results do not depend on the run;
 * rows are independent but for DIST's column part and the batch-mean entropy. */
CMKD_API cmkd_status cmkd_loss_eval(const cmkd_loss *loss, const char *implementation, const cmkd_loss_batch *batch,
                                    void *scratch, cmkd_loss_result *result, cmkd_error *err);

/* How far a student is from its teacher, under any loss: sums over rows, so that callers can accumulate. Degenerate
 * rows count 0. Pearson of the raw logits of a row; Spearman with tied ranks averaged; blocks: soft rank at `kappa`,
 * blocks / C. */
typedef struct cmkd_agreement {
  double pearson, spearman, blocks;
  int64_t rows;
} cmkd_agreement;
typedef struct cmkd_agreement_batch {
  int64_t batch, classes; /* B >= 1, 2 <= C <= 131072 */
  const float *student;   /* (B, C) logits */
  const void *teacher;    /* (B, C) logits of teacher_dtype: CMKD_F32, CMKD_F16 or CMKD_BF16 */
  cmkd_dtype teacher_dtype;
  double kappa; /* > 0; of the soft rank whose blocks are counted */
} cmkd_agreement_batch;
CMKD_API size_t cmkd_agreement_scratch(int64_t batch, int64_t classes);
CMKD_API cmkd_status cmkd_agreement_add(const cmkd_agreement_batch *batch, void *scratch, cmkd_agreement *sums,
                                        cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
