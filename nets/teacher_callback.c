/* A teacher that is somebody else's function of pixels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "nets/teacher_kind.h"

typedef struct callback_state {
  void *self;
  cmkd_status (*run)(void *self, const uint8_t *pixels, int count, float *logits, cmkd_error *err);
  uint8_t *pixels; /* (batch, height, width, channels) */
} callback_state;

/* A NaN that no computation yields, put where the callback is to write. */
#define UNWRITTEN 0x7FC0DEADu

static void callback_close(void *state) {
  callback_state *c = state;
  free(c->pixels);
  free(c);
}

static cmkd_status run_batch(cmkd_teacher *t, const uint32_t *rows, const uint64_t *seeds, float *logits,
                             cmkd_error *err) {
  const uint32_t unwritten = UNWRITTEN;
  const size_t classes = (size_t)t->classes, numbers = (size_t)t->batch * classes;
  callback_state *c = t->state;
  CMKD_TRY(cmkd_dataset_replay(t->data, t->policy, rows, seeds, (uint32_t)t->batch, c->pixels, err));
  for (size_t i = 0; i < numbers; i++)
    memcpy(&logits[i], &unwritten, sizeof *logits);
  cmkd_error why = {0};
  const cmkd_status status = c->run(c->self, c->pixels, t->batch, logits, &why);
  if (status != CMKD_OK)
    return cmkd_fail(err, status, "%s", why.message[0] ? why.message : "the callback failed and does not say why");
  for (size_t i = 0; i < numbers; i++)
    if (!memcmp(&logits[i], &unwritten, sizeof *logits))
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "the callback left the logits of sample %u unwritten; it must fill (%d, %d)", rows[i / classes],
                       t->batch, t->classes);
  return CMKD_OK;
}

static cmkd_status callback_run(cmkd_teacher *t, const uint32_t *rows, const uint64_t *seeds, uint32_t batches,
                                float *logits, float *features, cmkd_error *err) {
  (void)features; /* nets/teacher.c has refused them */
  for (uint32_t i = 0; i < batches; i++) {
    const size_t first = (size_t)i * (size_t)t->batch;
    float *to = logits ? logits + first * (size_t)t->classes : t->logits;
    CMKD_TRY(run_batch(t, rows + first, seeds ? seeds + first : NULL, to, err));
  }
  return CMKD_OK;
}

static cmkd_status check(const cmkd_teacher_callback *callback, const char *name, cmkd_error *err) {
  if (!callback->run) return cmkd_fail(err, CMKD_ERR_USAGE, "teacher %s: run is NULL", name);
  const char *sha256 = callback->sha256;
  if (!sha256 || strlen(sha256) != 64 || strspn(sha256, "0123456789abcdef") != 64)
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "teacher %s: sha256 must be 64 lower-case hex digits that change whenever the teacher does", name);
  if (!callback->mean != !callback->std)
    return cmkd_fail(err, CMKD_ERR_USAGE, "teacher %s: mean and std go together", name);
  return CMKD_OK;
}

static void describe(const cmkd_teacher_callback *callback, const cmkd_dataset *data, cmkd_teacher *t) {
  snprintf(t->sha256, sizeof t->sha256, "%s", callback->sha256);
  snprintf(t->precision, sizeof t->precision, "%s", callback->precision ? callback->precision : "fp32");
  t->precision_error = callback->precision_error;
  snprintf(t->spec.arch, sizeof t->spec.arch, "%s", callback->arch ? callback->arch : "");
  t->spec.classes = data->classes;
  for (int k = 0; callback->mean && k < data->channels && k < 3; k++) {
    t->spec.mean[k] = callback->mean[k];
    t->spec.std[k] = callback->std[k];
    t->spec.channels = k + 1;
  }
}

cmkd_status cmkd_teacher_from_callback(const cmkd_teacher_callback *callback, const cmkd_dataset *data,
                                       cmkd_policy policy, cmkd_teacher **out, cmkd_error *err) {
  static const cmkd_teacher_kind kind = {callback_run, callback_close};
  const char *name = callback->name ? callback->name : "callback";
  *out = NULL;
  const int batch = cmkd_teacher_check_batch(callback->batch, err);
  if (!batch) return CMKD_ERR_USAGE;
  CMKD_TRY(check(callback, name, err));
  CMKD_TRY(cmkd_teacher_check_data(name, callback->classes ? callback->classes : data->classes, data, err));
  cmkd_teacher *teacher = cmkd_teacher_new(&kind, name);
  callback_state *c = teacher ? calloc(1, sizeof *c) : NULL;
  if (!c) {
    cmkd_teacher_close(teacher);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", name);
  }
  c->self = callback->self;
  c->run = callback->run;
  c->pixels = malloc((size_t)batch * (size_t)data->height * (size_t)data->width * (size_t)data->channels);
  teacher->state = c;
  teacher->batch = batch;
  teacher->data = data;
  teacher->policy = policy;
  teacher->classes = data->classes;
  describe(callback, data, teacher);
  const cmkd_status status =
      c->pixels ? cmkd_teacher_allocate(teacher, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", name);
  if (status == CMKD_OK)
    *out = teacher;
  else
    cmkd_teacher_close(teacher);
  return status;
}
