/* Accuracy on a split. See evaluate.h. */
#include "train/evaluate.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/step.h"
#include "nets/teacher.h"

enum { GROUP_STEPS = CMKD_TEACHER_GROUP / CMKD_TEACHER_BATCH, GROUP_BYTES = 16 << 20 };

void cmkd_accuracy_add(cmkd_accuracy *sums, const float *logits, int classes, int32_t label) {
  double top = logits[0], total = 0;
  const int rank = cmkd_label_rank(logits, classes, label);
  for (int c = 0; c < classes; c++)
    if (logits[c] > top) top = logits[c];
  for (int c = 0; c < classes; c++)
    total += exp(logits[c] - top);
  sums->rows++;
  sums->top1 += rank < 1;
  sums->top5 += rank < 5;
  sums->loss += log(total) + top - logits[label];
}

cmkd_status cmkd_evaluator_open(cmkd_evaluator *e, const cmkd_model_config *given, const cmkd_backend_table *table,
                                cmkd_backend *backend, cmkd_error *err) {
  memset(e, 0, sizeof *e);
  cmkd_model_config config = *given;
  config.batch = e->batch = CMKD_TEACHER_BATCH;
  config.train = 0;
  config.policy = CMKD_AUGMENT_NONE;
  e->table = table;
  e->classes = config.graph->classes;
  e->kappa = config.kappa;
  int64_t fits = GROUP_BYTES / ((int64_t)e->classes * e->batch * (int64_t)sizeof(float));
  e->steps = GROUP_STEPS;
  if (fits < GROUP_STEPS) e->steps = fits < 1 ? 1 : (int)fits;
  size_t rows = (size_t)e->steps * (size_t)e->batch, scratch = cmkd_agreement_scratch((int64_t)rows, e->classes);
  e->logits = malloc(rows * (size_t)e->classes * sizeof *e->logits);
  e->rows = malloc(rows * sizeof *e->rows);
  e->scratch = aligned_alloc(64, (scratch + 127) / 64 * 64);
  if (!e->logits || !e->rows || !e->scratch)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for %zu rows of %d logits", rows, e->classes);
  return table->model_create(backend, &config, &e->model, err);
}

void cmkd_evaluator_close(cmkd_evaluator *e) {
  if (e->model) e->table->model_free(e->model);
  free(e->logits);
  free(e->rows);
  free(e->scratch);
  memset(e, 0, sizeof *e);
}

/* One run of up to `steps` steps from place `first` of `count` rows. The last step is padded with its last row: *took
 * is the number of rows without the padding. */
static cmkd_status run_group(cmkd_evaluator *e, const cmkd_be_images *images, const uint32_t *rows, uint32_t first,
                             uint32_t count, uint32_t *took, cmkd_error *err) {
  cmkd_step steps[GROUP_STEPS] = {{0}};
  uint32_t batch = (uint32_t)e->batch, most = batch * (uint32_t)e->steps,
           have = count - first < most ? count - first : most;
  int k = (int)((have + batch - 1) / batch);
  for (uint32_t i = 0; i < (uint32_t)k * batch; i++) {
    uint32_t place = first + (i < have ? i : have - 1);
    e->rows[i] = rows ? rows[place] : place;
  }
  for (int i = 0; i < k; i++)
    steps[i] = (cmkd_step){.count = e->batch, .rows = e->rows + (size_t)i * batch};
  *took = have;
  return e->table->run(e->model, CMKD_LIST_INFER, images, steps, k, (float *[CMKD_MAX_OUTPUTS]){e->logits}, err);
}

static cmkd_status add_rows(cmkd_evaluator *e, const cmkd_evaluation *what, uint32_t count, cmkd_accuracy *out,
                            cmkd_error *err) {
  for (uint32_t i = 0; i < count; i++) {
    const float *row = e->logits + (size_t)i * (size_t)e->classes;
    for (int c = 0; c < e->classes; c++)
      if (!isfinite(row[c]))
        return cmkd_fail(err, CMKD_ERR_VALUE, "the logits of test sample %u are not finite", e->rows[i]);
    cmkd_accuracy_add(out, row, e->classes, what->labels[e->rows[i]]);
  }
  return CMKD_OK;
}

cmkd_status cmkd_evaluate(cmkd_evaluator *e, const cmkd_evaluation *what, const cmkd_watch *watch, cmkd_accuracy *out,
                          cmkd_error *err) {
  memset(out, 0, sizeof *out);
  size_t classes = (size_t)e->classes;
  CMKD_TRY(e->table->upload(e->model, CMKD_SLOT_VALUE, (const float *const *)what->params->value, err));
  for (uint32_t first = 0, took; first < what->count; first += took) {
    if (watch && watch->stop && watch->stop(watch->self))
      return cmkd_fail(err, CMKD_ERR_INTERRUPTED, "stopped while testing");
    CMKD_TRY(run_group(e, what->images, what->rows, first, what->count, &took, err));
    CMKD_TRY(add_rows(e, what, took, out, err));
    if (what->teacher)
      CMKD_TRY(cmkd_agreement_add(&(cmkd_agreement_batch){.batch = took,
                                                          .classes = e->classes,
                                                          .student = e->logits,
                                                          .teacher = what->teacher + first * classes,
                                                          .teacher_dtype = CMKD_F32,
                                                          .kappa = e->kappa},
                                  e->scratch, &out->agreement, err));
  }
  return CMKD_OK;
}
