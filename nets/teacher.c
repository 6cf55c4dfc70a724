/* What all teachers share: every row goes through the same batch size, short batches padded with their last row, so
 * that a row's bits are the same whoever asks; no logit that is not finite gets out. Not here: computing logits (the
 * implementations do), caching, encoding or comparing them. */
#include "nets/teacher.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/limits.h"
#include "nets/teacher_kind.h"

enum { MAX_RUN_BATCHES = 8 }; /* of one run of an implementation; a cmkd_teacher_run of more makes several runs */

cmkd_teacher *cmkd_teacher_new(const cmkd_teacher_kind *kind, const char *name) {
  cmkd_teacher *teacher = calloc(1, sizeof *teacher);
  if (!teacher) return NULL;
  teacher->kind = kind;
  teacher->name = strdup(name);
  if (teacher->name) return teacher;
  free(teacher);
  return NULL;
}

void cmkd_teacher_close(cmkd_teacher *teacher) {
  if (!teacher) return;
  if (teacher->state) teacher->kind->close(teacher->state);
  free(teacher->name);
  free(teacher->rows);
  free(teacher->seeds);
  free(teacher->logits);
  free(teacher->features);
  free(teacher);
}

int cmkd_teacher_check_batch(int batch, cmkd_error *err) {
  if (!batch) return CMKD_TEACHER_BATCH;
  if (batch >= 1 && batch <= CMKD_MAX_BATCH) return batch;
  cmkd_fail(err, CMKD_ERR_USAGE, "a teacher batch of %d; --teacher-batch takes 1 to %d", batch, CMKD_MAX_BATCH);
  return 0;
}

cmkd_status cmkd_teacher_check_data(const char *name, int classes, const cmkd_dataset *data, cmkd_error *err) {
  if (classes != data->classes)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: a teacher of %d classes, but %s has %d; choose weights trained on %s",
                     name, classes, data->name, data->classes, data->name);
  return CMKD_OK;
}

cmkd_status cmkd_teacher_allocate(cmkd_teacher *t, cmkd_error *err) {
  const size_t batch = (size_t)t->batch;
  t->rows = malloc(batch * sizeof *t->rows);
  t->seeds = malloc(batch * sizeof *t->seeds);
  t->logits = malloc(batch * (size_t)t->classes * sizeof *t->logits);
  t->features = t->feature_count ? malloc(batch * (size_t)t->feature_count * sizeof *t->features) : NULL;
  if (t->rows && t->seeds && t->logits && (t->features || !t->feature_count)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", t->name);
}

const cmkd_model_spec *cmkd_teacher_spec(const cmkd_teacher *teacher) { return &teacher->spec; }
const char *cmkd_teacher_name(const cmkd_teacher *teacher) { return teacher->name; }
const char *cmkd_teacher_sha256(const cmkd_teacher *teacher) { return teacher->sha256; }
const char *cmkd_teacher_precision(const cmkd_teacher *teacher, double *error) {
  *error = teacher->precision_error;
  return teacher->precision;
}
const cmkd_dataset *cmkd_teacher_data(const cmkd_teacher *teacher) { return teacher->data; }
cmkd_policy cmkd_teacher_policy(const cmkd_teacher *teacher) { return teacher->policy; }
int cmkd_teacher_batch(const cmkd_teacher *teacher) { return teacher->batch; }
int cmkd_teacher_feature_size(const cmkd_teacher *teacher) { return teacher->feature_count; }

static cmkd_status run_short(cmkd_teacher *t, const uint32_t *rows, const uint64_t *seeds, uint32_t count,
                             float *logits, float *features, cmkd_error *err) {
  for (uint32_t i = 0; i < (uint32_t)t->batch; i++) {
    const uint32_t from = i < count ? i : count - 1;
    t->rows[i] = rows[from];
    if (seeds) t->seeds[i] = seeds[from];
  }
  CMKD_TRY(t->kind->run(t, t->rows, seeds ? t->seeds : NULL, 1, t->logits, t->features, err));
  if (logits) memcpy(logits, t->logits, (size_t)count * (size_t)t->classes * sizeof *logits);
  if (features) memcpy(features, t->features, (size_t)count * (size_t)t->feature_count * sizeof *features);
  return CMKD_OK;
}

/* Whatever the implementation thinks of them, none that is not finite gets into a cache. */
static cmkd_status check_finite(const cmkd_teacher *t, const uint32_t *rows, uint32_t count, const float *logits,
                                cmkd_error *err) {
  const size_t classes = (size_t)t->classes;
  for (size_t i = 0; i < count * classes; i++)
    if (!isfinite(logits[i]))
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "teacher %s: logits of sample %u are not finite; the weights do not fit these images", t->name,
                       rows[i / classes]);
  return CMKD_OK;
}

cmkd_status cmkd_teacher_run(cmkd_teacher *t, const uint32_t *rows, const uint64_t *seeds, uint32_t count,
                             float *logits, float *features, cmkd_error *err) {
  const uint32_t batch = (uint32_t)t->batch;
  if (features && !t->feature_count)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "teacher %s: gives logits alone, no features", t->name);
  for (uint32_t i = 0; i < count; i++)
    if (rows[i] >= t->data->n)
      return cmkd_fail(err, CMKD_ERR_VALUE, "sample %u: the data set has %u", rows[i], t->data->n);
  for (uint32_t at = 0, take; at < count; at += take) {
    const uint32_t full = (count - at) / batch, batches = full < MAX_RUN_BATCHES ? full : MAX_RUN_BATCHES;
    float *to = logits ? logits + (size_t)at * (size_t)t->classes : NULL;
    float *feature = features ? features + (size_t)at * (size_t)t->feature_count : NULL;
    const uint64_t *view = seeds ? seeds + at : NULL;
    cmkd_error why = {0};
    take = batches ? batches * batch : count - at;
    const cmkd_status status = batches ? t->kind->run(t, rows + at, view, batches, to, feature, &why)
                                       : run_short(t, rows + at, view, take, to, feature, &why);
    if (status != CMKD_OK) return cmkd_fail(err, status, "teacher %s: %s", t->name, why.message);
    if (to) CMKD_TRY(check_finite(t, rows + at, take, to, err));
  }
  return CMKD_OK;
}
