/* What the CPU losses share: the job of one evaluation and the table of one instruction set's functions. B rows
 * (batch), C classes. */
#ifndef CMKD_KERNELS_CPU_LOSS_LOSS_H
#define CMKD_KERNELS_CPU_LOSS_LOSS_H
#include <stddef.h>
#include <stdint.h>
#include "kernels/loss.h"

typedef struct cmkd_row_stats {
  double mean, sigma;
  float max, min;
  int degenerate; /* CMKD_DEGENERATE */
  int finite;     /* no NaN, no Inf */
} cmkd_row_stats;

/* What a row leaves in row_value: the loss's parts, then CMKD's soft-rank blocks / C and CMKD's weighted sum of its
 * parts. */
enum {
  CMKD_ROW_PARTS = 1 + 1 + 2 + 2 + 2 + 2, /* of CE, KD, DKD, NKD, DIST, CMKD, each at most once in a loss */
  CMKD_ROW_BLOCKS = CMKD_ROW_PARTS,
  CMKD_ROW_WEIGHTED,
  CMKD_ROW_VALUES
};
_Static_assert(CMKD_TERM_KINDS == 6, "a new kind of term: count its parts in CMKD_ROW_PARTS");

/* One evaluation. Results of rows go to row_value; sums over rows are taken afterwards, in row order, so that threads
 * do not matter. */
typedef struct cmkd_loss_job {
  const cmkd_loss *loss;
  const cmkd_loss_batch *batch;
  const cmkd_loss_term *cmkd, *dist; /* or NULL */
  cmkd_row_stats *teacher_stats;     /* (B) */
  double *entropy;                   /* (B) of the teacher; CMKD with a gate only */
  double entropy_mean;
  double *row_value;    /* (B, CMKD_ROW_VALUES) */
  uint8_t *bad;         /* (B) 1: NaN, Inf or a bad label */
  int64_t ld;           /* numbers between rows of p and q */
  double *p, *q;        /* (B, ld) see double_pass.h; DIST only, as the next two */
  double *column;       /* (5, ld) see dist_columns */
  double *column_value; /* (ld) T^2 (1 - rho) of each column */
} cmkd_loss_job;

/* The agreement of student and teacher, row by row: see cmkd_agreement. */
typedef struct cmkd_agreement_job {
  const float *student; /* (B, C) */
  const void *teacher;  /* (B, C) */
  cmkd_dtype teacher_dtype;
  int64_t batch, classes;
  double kappa;
  double *row_value; /* (B, 3) Pearson, Spearman, soft-rank blocks / C */
  uint8_t *bad;      /* (B) 1: NaN or Inf */
} cmkd_agreement_job;

/* Passes take rows [first, first + count), count <= group(C), and one thread's scratch. */
typedef struct cmkd_loss_kernels {
  const char *name;                          /* "avx2" */
  int (*group)(int64_t classes);             /* rows that are handled at once */
  int64_t (*row_floats)(int64_t classes);    /* floats of a padded row */
  size_t (*thread_scratch)(int64_t classes); /* bytes for one thread, a multiple of 64 */
  /* First pass, where the loss needs a teacher: checks, statistics, entropy, DIST's p and q. */
  void (*teacher_pass)(const cmkd_loss_job *job, int64_t first, int count, void *scratch);
  /* Second pass, DIST only: columns [first, last), multiples of 16. */
  void (*column_pass)(const cmkd_loss_job *job, int64_t first, int64_t last);
  /* Last pass: parts and gradients. */
  void (*row_pass)(const cmkd_loss_job *job, int64_t first, int count, void *scratch);
  void (*agreement_pass)(const cmkd_agreement_job *job, int64_t first, int count, void *scratch);
} cmkd_loss_kernels;

extern const cmkd_loss_kernels cmkd_loss_kernels_base, cmkd_loss_kernels_avx2, cmkd_loss_kernels_avx512;
const cmkd_loss_kernels *cmkd_loss_kernels_best(void); /* for cmkd_cpu_isa() */

/* Memory handed out in pieces, each aligned to 64 bytes if `at` began aligned. */
typedef struct cmkd_carver {
  uintptr_t at; /* address of what is left; from 0 on it only counts */
} cmkd_carver;
static inline void *cmkd_carve(cmkd_carver *c, size_t bytes) {
  void *piece = (void *)c->at;
  c->at += (bytes + 63) / 64 * 64;
  return piece;
}
#endif
