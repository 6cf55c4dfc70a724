/* What every backend does alike around a step: checking a model's configuration and a step, the queue of results, the
 * rank of a label. A backend adds only the limits of its own device (say a smaller batch, or resident rows). Host code
 * of one thread; nothing here keeps a pointer that it was given. */
#ifndef CMKD_KERNELS_STEP_H
#define CMKD_KERNELS_STEP_H
#include <math.h>
#include "kernels/backend.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- configuration ---- */

/* The graph (cmkd_graph_check), batch, normalisation, a loss where the model trains, targets and objectives. */
cmkd_status cmkd_model_check(const cmkd_model_config *config, cmkd_error *err);

/* Index of the target of that name, or -1. "teacher" is there although a configuration names no target. */
int cmkd_target_find(const cmkd_model_config *config, const char *name);

/* An objective of a checked configuration in numbers. */
typedef struct cmkd_objective_term {
  int tensor; /* of the output */
  int target; /* index into cmkd_step.target */
  int width;  /* floats a row */
  double weight;
} cmkd_objective_term;
cmkd_objective_term cmkd_objective_of(const cmkd_model_config *config, int objective);

/* The tensors whose gradient loss and objectives write before backward begins, each once, logits first; returns how
 * many. For cmkd_plan_train. */
int cmkd_gradient_roots(const cmkd_model_config *config, int roots[CMKD_MAX_OUTPUTS + 1]);

/* ---- a step ---- */

/* Before anything runs: images of the network's shape, rows in range, and for TRAIN: a model that trains, labels, every
 * target that loss and objectives read, epoch, learning rate, entropy_mean. resident: whether the backend has resident
 * rows; it then checks their width and every index itself. */
cmkd_status cmkd_step_check(const cmkd_model_config *config, cmkd_list list, const cmkd_image_set *images,
                            const cmkd_step *step, int resident, cmkd_error *err);

/* As the losses take it: NaN stands for the mean over the step's rows. */
static inline double cmkd_step_entropy_mean(const cmkd_step *step) {
  return step->entropy_mean > 0 ? step->entropy_mean : NAN;
}

/* How many classes score higher than `label`, ties broken by the lower class index: 0 is top-1, below 5 is top-5. The
 * label must be in range. */
int cmkd_label_rank(const float *logits, int classes, int label);
int cmkd_label_rank_double(const double *logits, int classes, int label);
/* Counts one row's rank in top1 and top5. */
static inline void cmkd_result_count_rank(cmkd_step_result *result, int rank) {
  result->top1 += rank < 1;
  result->top5 += rank < 5;
}

/* ---- results ---- */

/* Results that nobody has read yet, oldest first. Starts all zero; cmkd_results_free() ends it. */
typedef struct cmkd_results {
  cmkd_step_result *result; /* (count) */
  int count, capacity;
} cmkd_results;
void cmkd_results_free(cmkd_results *results);
/* Sees to it that `more` results fit behind the last one, at result + count. */
cmkd_status cmkd_results_reserve(cmkd_results *results, int more, cmkd_error *err);
/* A new last result: all zero but for bad_row -1 and blocks NaN. Valid until the next call. */
cmkd_status cmkd_results_add(cmkd_results *results, cmkd_step_result **out, cmkd_error *err);
/* Hands over the oldest ones: *k in: how many fit into `out`; out: how many there were. */
void cmkd_results_take(cmkd_results *results, cmkd_step_result *out, int *k);
#ifdef __cplusplus
}
#endif
#endif
