/* The distillation losses: parse an expression once, evaluate loss and gradient on any number of batches. Formulas:
 * docs/losses.md; docs/examples/loss.c is a whole program. Every loss has three implementations: "ref" (double, plain
 * loops), "cpu" (vectorised) and CUDA (cmkd/loss_cuda.h).
 *
 * Threads: a parsed loss is never changed and may be used by any number of threads; batch, scratch and result belong to
 * one call at a time. "cpu" computes large batches with the OpenMP threads that its caller allows
 * (omp_set_num_threads); their number does not show in the results, which depend on inputs and machine alone. */
#ifndef CMKD_LOSS_H
#define CMKD_LOSS_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/dtype.h"
#include "cmkd/status.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmkd_loss cmkd_loss;

/* Whose published settings fill in what an expression leaves open. */
typedef enum cmkd_loss_family { CMKD_LOSS_CIFAR = 0, CMKD_LOSS_IMAGENET = 1 } cmkd_loss_family;
#define CMKD_LOSS_MAX_PARTS 16

/* "cmkd", "kd", "dkd+cmkd", "ce:1+cmkd:beta=4,gamma=2,T=4,kappa=2,gate=easy-spearman,zscore=on". An unknown term or key
 * fails with CMKD_ERR_USAGE and names the nearest known one, an impossible number likewise. */
CMKD_API cmkd_status cmkd_loss_parse(const char *expression, cmkd_loss_family family, cmkd_loss **out, cmkd_error *err);
/* NULL does nothing. */
CMKD_API void cmkd_loss_free(cmkd_loss *loss);
/* The expression in full, every default written out; parses to the same loss. Owned by the loss. */
CMKD_API const char *cmkd_loss_text(const cmkd_loss *loss);
/* 1 where some term reads teacher logits; 0: cross-entropy alone. */
CMKD_API int cmkd_loss_needs_teacher(const cmkd_loss *loss);
/* 1 where some term ranks a row: logits of a top-k cache, where all but k are one tie, then make no sense. */
CMKD_API int cmkd_loss_needs_full_row(const cmkd_loss *loss);
/* What is reported by itself, at most CMKD_LOSS_MAX_PARTS: "ce", "kd", "pearson", "spearman", "dkd_target", ... A name
 * belongs to the loss; NULL where there is no such part. */
CMKD_API int cmkd_loss_parts(const cmkd_loss *loss);
CMKD_API const char *cmkd_loss_part_name(const cmkd_loss *loss, int part);

/* One batch on the host. Arrays are row-major without gaps, borrowed during the call. */
typedef struct cmkd_loss_batch {
  int64_t batch, classes;   /* B >= 1, 2 <= C <= 131072 */
  const float *student;     /* (B, C) logits */
  const void *teacher;      /* (B, C) logits of teacher_dtype; NULL where no term needs it */
  cmkd_dtype teacher_dtype; /* CMKD_F32, CMKD_F16 or CMKD_BF16 */
  const int32_t *labels;    /* (B), each in [0, C) */
  float *grad;              /* (B, C) d(loss)/d(student), overwritten; NULL: loss only */
  double epoch;             /* from 1; drives warm-ups; CMKD_LOSS_NO_WARMUP: their end */
  double label_smoothing;   /* of the cross-entropy, [0, 1) */
  double entropy_mean;      /* mean entropy of the teacher's rows over the *global* batch, where this is a part of one;
                               NaN: the mean over these B rows */
} cmkd_loss_batch;
#define CMKD_LOSS_NO_WARMUP 1e9

typedef struct cmkd_loss_result {
  double loss;                      /* batch mean of the weighted sum of all terms, warm-up ramps included */
  double part[CMKD_LOSS_MAX_PARTS]; /* batch means, unweighted */
  double blocks;   /* mean over rows of soft-rank blocks / C (docs/losses.md); NaN where no term has a soft rank */
  int64_t bad_row; /* first row with NaN or Inf among its logits or a label outside [0, C); -1: none */
} cmkd_loss_result;

/* Bytes of scratch, 64-byte aligned, that cmkd_loss_eval needs for this shape; 0: none, or the shape is out of range.
 * The caller owns it; its content means nothing between calls. */
CMKD_API size_t cmkd_loss_scratch(const cmkd_loss *loss, const char *implementation, int64_t batch, int64_t classes);
/* Loss and gradient on host buffers. `implementation`: "cpu" or "ref". `scratch` may be NULL where its size is 0.
 * CMKD_ERR_VALUE: a bad row, which result->bad_row names, or an argument out of range (bad_row -1). grad then holds
 * numbers that mean nothing; nothing outside the arrays is read or written. A row's gradient depends on the other rows
 * only through the mean entropy and through DIST's columns. */
CMKD_API cmkd_status cmkd_loss_eval(const cmkd_loss *loss, const char *implementation, const cmkd_loss_batch *batch,
                                    void *scratch, cmkd_loss_result *result, cmkd_error *err);

/* How far a student is from its teacher, under any loss. */
typedef struct cmkd_agreement_batch {
  int64_t batch, classes; /* B >= 1, 2 <= C <= 131072 */
  const float *student;   /* (B, C) logits */
  const void *teacher;    /* (B, C) logits of teacher_dtype: CMKD_F32, CMKD_F16 or CMKD_BF16 */
  cmkd_dtype teacher_dtype;
  double kappa; /* > 0; strength of the soft rank whose blocks are counted (docs/losses.md) */
} cmkd_agreement_batch;
/* Sums over rows, so that batches add up; start from zeros, divide by `rows`. */
typedef struct cmkd_agreement {
  double pearson;  /* correlation of a row's raw logits; a row that is constant on one side counts 0 */
  double spearman; /* of their ranks, ties averaged; likewise */
  double blocks;   /* soft-rank blocks of the student's row / C */
  int64_t rows;
} cmkd_agreement;
/* As cmkd_loss_scratch. */
CMKD_API size_t cmkd_agreement_scratch(int64_t batch, int64_t classes);
/* Adds the rows of a batch to *sums. After CMKD_ERR_VALUE (a logit that is not finite, an argument out of range)
 * nothing was added. */
CMKD_API cmkd_status cmkd_agreement_add(const cmkd_agreement_batch *batch, void *scratch, cmkd_agreement *sums,
                                        cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
