/* The parsed loss, as every implementation reads it: a short list of terms, each a plain struct of numbers that can be
 * copied to a device. The structs own no memory; of the functions only cmkd_loss_parse_with and cmkd_loss_ref_double
 * allocate. Formulas: docs/losses.md. C and CUDA code include this file. */
#ifndef CMKD_KERNELS_LOSS_H
#define CMKD_KERNELS_LOSS_H
#include "cmkd/loss.h"
#ifdef __CUDACC__
#define CMKD_BOTH __host__ __device__
#else
#define CMKD_BOTH
#endif
#ifdef __cplusplus
extern "C" {
#endif

typedef enum cmkd_term_kind {
  CMKD_TERM_CE = 0,
  CMKD_TERM_KD,
  CMKD_TERM_DKD,
  CMKD_TERM_NKD,
  CMKD_TERM_DIST,
  CMKD_TERM_CMKD,
  CMKD_TERM_KINDS
} cmkd_term_kind;
typedef enum cmkd_gate { CMKD_GATE_EASY_SPEARMAN = 0, CMKD_GATE_HARD_SPEARMAN, CMKD_GATE_OFF } cmkd_gate;

#define CMKD_LOSS_MIN_CLASSES 2
#define CMKD_LOSS_MAX_CLASSES 131072
/* A row of scores s is degenerate, and counts 0, when sigma <= this * max(1, max|s_i|); a row or column of DIST when
 * sigma <= this * its largest entry. */
#define CMKD_DEGENERATE 1e-6
/* A column of DIST whose largest probability is below this counts 0: its squares are no longer doubles. */
#define CMKD_DIST_TINY 1e-150
/* A row of entropy H is easy when H <= mean + this * max(1, mean). */
#define CMKD_GATE_MARGIN 1e-5

/* One term. Fields that a kind does not use are 0; each kind appears at most once in a loss. Its parts are numbered
 * from `part` on in result->part, unweighted means over the rows, where degenerate rows count 0; to the loss it adds
 *
 *   CE     weight * ce
 *   KD     weight * kd, which carries T^2
 *   DKD    ramp * weight * (alpha * dkd_target + beta * dkd_nontarget)
 *   NKD    weight * (nkd_target + gamma * nkd_nontarget)
 *   DIST   weight * (beta * dist_inter + gamma * dist_intra), both carry T^2
 *   CMKD   weight * mean over rows i of (w_P * pearson_i + w_S * spearman_i)
 *
 * where row by row the gate gives (beta, gamma) to w_P and w_S, or the other way round. */
typedef struct cmkd_loss_term {
  int kind;   /* cmkd_term_kind */
  int part;   /* index of its first part */
  int gate;   /* cmkd_gate; CMKD */
  int zscore; /* 1 or 0; CMKD */
  double weight;
  double T;      /* temperature; KD, DKD, NKD (non-target part), DIST, CMKD (Pearson) */
  double alpha;  /* DKD: target part */
  double beta;   /* DKD: non-target part. DIST: rows. CMKD: the primary correlation */
  double gamma;  /* NKD: non-target part. DIST: columns. CMKD: the auxiliary correlation */
  double kappa;  /* CMKD: eps = kappa / C */
  double warmup; /* DKD: epochs of the ramp min(epoch / warmup, 1); 0: none */
} cmkd_loss_term;

struct cmkd_loss {
  int family; /* cmkd_loss_family */
  int terms;
  /* (terms), in the order of cmkd_term_kind; CE is always term[0], its weight may be 0 */
  cmkd_loss_term term[CMKD_TERM_KINDS];
  int parts;
  const char *part_name[CMKD_LOSS_MAX_PARTS];
  int needs_teacher, needs_full_row;
  char text[1024]; /* of cmkd_loss_text */
};

/* Defaults that stand in for the family's where an expression leaves a key out: a published recipe may set them. They
 * are as good as written: cmkd_loss_text shows them. */
typedef struct cmkd_loss_defaults {
  double dkd_beta; /* of DKD's non-target part; 0: the family's */
} cmkd_loss_defaults;
/* cmkd_loss_parse with such defaults. */
cmkd_status cmkd_loss_parse_with(const char *expression, cmkd_loss_family family, const cmkd_loss_defaults *defaults,
                                 cmkd_loss **out, cmkd_error *err);

/* The term of that kind, or NULL. */
static inline const cmkd_loss_term *cmkd_loss_find(const cmkd_loss *loss, cmkd_term_kind kind) {
  for (int i = 0; i < loss->terms; i++)
    if (loss->term[i].kind == (int)kind) return &loss->term[i];
  return 0;
}

/* weight * warm-up ramp at this epoch (from 1) */
static inline CMKD_BOTH double cmkd_term_weight(const cmkd_loss_term *term, double epoch) {
  double ramp = term->warmup > 0 && epoch < term->warmup ? epoch / term->warmup : 1;
  return term->weight * ramp;
}

/* Whether a row of entropy h is easy (sharp) in a batch whose mean entropy is `mean`. */
static inline CMKD_BOTH int cmkd_gate_easy(double h, double mean) {
  return h <= mean + CMKD_GATE_MARGIN * (mean > 1 ? mean : 1);
}

/* The weights of Pearson and Spearman for an easy or hard row. */
static inline CMKD_BOTH void cmkd_gate_weights(const cmkd_loss_term *term, int easy, double *pearson,
                                               double *spearman) {
  int spearman_first =
      (term->gate == CMKD_GATE_EASY_SPEARMAN && easy) || (term->gate == CMKD_GATE_HARD_SPEARMAN && !easy);
  *pearson = spearman_first ? term->gamma : term->beta;
  *spearman = spearman_first ? term->beta : term->gamma;
}

/* One implementation for host buffers. `eval` is called with checked arguments (shape, pointers, dtype, NULL teacher
 * only when none is needed), but with unchecked numbers: it finds NaN, Inf and bad labels itself and returns
 * CMKD_ERR_VALUE with result->bad_row set. */
typedef struct cmkd_loss_implementation {
  const char *name;
  size_t (*scratch)(const cmkd_loss *loss, int64_t batch, int64_t classes);
  cmkd_status (*eval)(const cmkd_loss *loss, const cmkd_loss_batch *batch, void *scratch, cmkd_loss_result *result,
                      cmkd_error *err);
} cmkd_loss_implementation;
extern const cmkd_loss_implementation cmkd_loss_ref, cmkd_loss_cpu;

/* Argument checks shared by every entry point. */
cmkd_status cmkd_loss_check(const cmkd_loss *loss, const cmkd_loss_batch *batch, cmkd_error *err);
/* The one line for a bad row: says which and what (label or logit). */
cmkd_status cmkd_loss_bad_row(const cmkd_loss_batch *batch, int64_t row, cmkd_error *err);

/* The formulas in double, doubles in and out: the oracle of all tests and of finite differences. */
typedef struct cmkd_loss_ref_rows {         /* what happened row by row; any pointer may be NULL */
  double *entropy;                          /* (B) of softmax(teacher) */
  double *loss_pearson, *loss_spearman;     /* (B) 1 - rho; 0 where degenerate */
  double *weight_pearson, *weight_spearman; /* (B) of the gate */
  int32_t *blocks;                          /* (B) soft-rank blocks; 0 where degenerate */
  int32_t *order;    /* (B, C) class at each sorted position (descending); undefined where degenerate */
  int32_t *block_of; /* (B, C) block number of each sorted position; undefined where degenerate */
} cmkd_loss_ref_rows;
typedef struct cmkd_loss_ref_batch { /* fields as in cmkd_loss_batch, which says more of them */
  int64_t batch, classes;
  const double *student; /* (B, C), finite */
  const double *teacher; /* (B, C), finite; NULL if no term needs it */
  const int32_t *labels; /* (B), in range */
  double *grad;          /* (B, C), overwritten; NULL: loss only */
  double epoch, label_smoothing, entropy_mean;
} cmkd_loss_ref_batch;
/* Allocates what it needs. `rows` may be NULL. */
cmkd_status cmkd_loss_ref_double(const cmkd_loss *loss, const cmkd_loss_ref_batch *batch, cmkd_loss_result *result,
                                 const cmkd_loss_ref_rows *rows, cmkd_error *err);
/* Agreement of one row in double. blocks: soft-rank blocks / C at kappa. All three 0 for a degenerate row. */
cmkd_status cmkd_agreement_ref(int64_t classes, const double *student, const double *teacher, double kappa,
                               double *pearson, double *spearman, double *blocks, cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
