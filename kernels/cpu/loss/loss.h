/* What the CPU losses share: the job of one evaluation and the table of one instruction set's row functions. */
#ifndef CMKD_KERNELS_CPU_LOSS_LOSS_H
#define CMKD_KERNELS_CPU_LOSS_LOSS_H
#include "kernels/loss.h"

typedef struct cmkd_row_stats {
  double mean, sigma;
  float max, min;
  int degenerate, finite;
} cmkd_row_stats;

enum { CMKD_ROW_BLOCKS = 10, CMKD_ROW_WEIGHTED = 11, CMKD_ROW_VALUES = 12 }; /* row_value: the parts, then these */

/* One evaluation. Per-row results go to row_value; sums over rows are taken afterwards, in row order, so that threads
 * do not matter. */
typedef struct cmkd_loss_job {
  const cmkd_loss *loss;
  const cmkd_loss_batch *batch;
  const cmkd_loss_term *cmkd, *dist; /* or NULL */
  cmkd_row_stats *teacher_stats;     /* (B) */
  double *entropy;                   /* (B) of the teacher; CMKD with a gate only */
  double entropy_mean;
  double *row_value;    /* (B, CMKD_ROW_VALUES) */
  uint8_t *bad;         /* (B) */
  int64_t ld;           /* numbers between rows of p and q */
  double *p, *q;        /* (B, ld) softened probabilities, scaled by column; DIST only */
  double *column;       /* (5, ld) see dist_columns; DIST only */
  double *column_value; /* (ld) T^2 (1 - rho) of each column; DIST only */
} cmkd_loss_job;

/* One row's agreement: see cmkd_agreement. */
typedef struct cmkd_agreement_job {
  const float *student;
  const void *teacher;
  cmkd_dtype teacher_dtype;
  int64_t batch, classes;
  double kappa;
  double *row_value; /* (B, 3) */
  uint8_t *bad;      /* (B) */
} cmkd_agreement_job;

typedef struct cmkd_loss_rows {
  const char *name;
  int (*group)(int64_t classes);             /* rows that are handled at once */
  int64_t (*row_floats)(int64_t classes);    /* floats of a padded row */
  size_t (*thread_scratch)(int64_t classes); /* bytes for one thread, a multiple of 64 */
  void (*teacher)(const cmkd_loss_job *job, int64_t first, int count,
                  void *scratch); /* first pass: checks, statistics, entropy, DIST's p and q */
  void (*columns)(const cmkd_loss_job *job, int64_t first,
                  int64_t last); /* second pass: DIST's columns, multiples of 16 */
  void (*rows)(const cmkd_loss_job *job, int64_t first, int count,
               void *scratch); /* last pass: parts and gradients of `count` <= group rows */
  void (*agreement)(const cmkd_agreement_job *job, int64_t first, int count, void *scratch);
} cmkd_loss_rows;

extern const cmkd_loss_rows cmkd_loss_rows_base, cmkd_loss_rows_avx2, cmkd_loss_rows_avx512;
const cmkd_loss_rows *cmkd_loss_rows_best(void); /* for cmkd_cpu_isa() */
#endif
