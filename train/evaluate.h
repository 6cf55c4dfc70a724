/* A network's accuracy on a split, and how far it is from its teacher there. Runs an inference model of its own at the
 * fixed, padded batch of a teacher, so that a run's figures are those that `cmkd-train eval` finds for its weights. */
#ifndef CMKD_TRAIN_EVALUATE_H
#define CMKD_TRAIN_EVALUATE_H
#include <stdint.h>
#include "cmkd/train.h"
#include "kernels/backend.h"
#include "nets/net.h"

typedef struct cmkd_accuracy {
  int64_t rows, top1, top5;
  double loss;              /* sum of the rows' cross-entropies */
  cmkd_agreement agreement; /* sums; zero rows without teacher logits */
} cmkd_accuracy;
/* Adds one row: rank of the label among the logits (classes), ties to the lower index. */
void cmkd_accuracy_add(cmkd_accuracy *sums, const float *logits, int classes, int32_t label);

typedef struct cmkd_evaluator {
  const cmkd_backend_table *table;
  cmkd_be_model *model;
  int batch, classes; /* rows of a step, logits of a row */
  int steps;          /* most steps of a run */
  double kappa;
  float *logits;  /* (steps * batch, classes) */
  uint32_t *rows; /* (steps * batch) */
  void *scratch;
} cmkd_evaluator;

/* config: graph, normalisation, kappa; batch, policy and train are set here. */
cmkd_status cmkd_evaluator_open(cmkd_evaluator *e, const cmkd_model_config *config, const cmkd_backend_table *table,
                                cmkd_backend *backend, cmkd_error *err);
void cmkd_evaluator_close(cmkd_evaluator *e);
/* What is tested, on which images. */
typedef struct cmkd_evaluation {
  const cmkd_params *params;
  const cmkd_be_images *images;
  const int32_t *labels; /* by row of the images */
  const uint32_t *rows;  /* (count) rows of the images; NULL: 0 .. count-1 */
  uint32_t count;
  const float *teacher; /* (count, classes) logits in the order of the rows, or NULL */
} cmkd_evaluation;
/* Runs the images clean. `watch` (may be NULL) is asked between groups of images whether to stop. */
cmkd_status cmkd_evaluate(cmkd_evaluator *e, const cmkd_evaluation *what, const cmkd_watch *watch, cmkd_accuracy *out,
                          cmkd_error *err);
#endif
