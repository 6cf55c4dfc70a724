/* Opening a session. See session.h; its teacher is in session_teacher.c. */
#include "train/session.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "train/session_teacher.h"
#include "train/source.h"

/* ---- data ---- */

/* The cache and its data set. Every refusal names both sides. */
static cmkd_status open_cached_data(cmkd_session *s, cmkd_error *err) {
  const cmkd_session_options *o = &s->options;
  CMKD_TRY(cmkd_cache_open(o->cache, &s->cache, err));
  const cmkd_cache_info *info = cmkd_cache_get_info(s->cache);
  const cmkd_cache_identity *id = &info->identity;
  if (strcmp(id->split, "train"))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds the %s split of %s; training needs a cache of the train split",
                     o->cache, id->split, id->dataset);
  if (o->data) {
    char name[32];
    CMKD_TRY(cmkd_dataset_name(o->data, name, err));
    if (strcmp(name, id->dataset))
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s was built from %s, --data names %s: give --data %s:DIR or a cache of %s", o->cache,
                       id->dataset, name, id->dataset, name);
  }
  CMKD_TRY(cmkd_dataset_open(o->data ? o->data : id->dataset, "train", &o->search, &s->train, err));
  if (info->classes != (uint32_t)s->train->classes)
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s holds logits of %u classes, %s has %d: this cache belongs to other data", o->cache,
                     info->classes, s->train->name, s->train->classes);
  if (strcmp(id->fingerprint, s->train->fingerprint))
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s was built from %s with fingerprint %.12s..., the one in %s has %.12s...: other images or "
                     "labels; give its folder by --data %s:DIR",
                     o->cache, id->dataset, id->fingerprint, s->train->path, s->train->fingerprint, id->dataset);
  return cmkd_source_check(s->cache, s->train, err);
}

static cmkd_status open_test_data(cmkd_session *s, cmkd_error *err) {
  const char *spec = s->options.data;
  if (!spec) spec = s->cache ? cmkd_cache_get_info(s->cache)->identity.dataset : CMKD_DEFAULT_DATA;
  CMKD_TRY(cmkd_dataset_open(spec, "test", &s->options.search, &s->test, err));
  if (s->test->classes == s->train->classes && s->test->height == s->train->height &&
      s->test->width == s->train->width && s->test->channels == s->train->channels)
    return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: its train and test splits have images or classes of different shapes",
                   s->train->path);
}

cmkd_status cmkd_session_open_data(const cmkd_session_options *options, cmkd_session **out, cmkd_error *err) {
  *out = NULL;
  CMKD_TRY(cmkd_session_options_check(options, err));
  cmkd_session *s = *out = calloc(1, sizeof *s);
  if (!s) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  CMKD_TRY(cmkd_session_options_copy(options, &s->options, err));
  const cmkd_session_options *o = &s->options;
  if (o->cache)
    CMKD_TRY(open_cached_data(s, err));
  else
    CMKD_TRY(cmkd_dataset_open(o->data ? o->data : CMKD_DEFAULT_DATA, "train", &o->search, &s->train, err));
  CMKD_TRY(cmkd_session_settings_resolve(o, s->train, cmkd_session_cache_info(s), &s->settings, err));
  CMKD_TRY(open_test_data(s, err));
  s->options.search = (cmkd_dataset_options){0}; /* borrowed until here */
  return CMKD_OK;
}

/* ---- device ---- */

static cmkd_status open_images(cmkd_session *s, const cmkd_dataset *d, cmkd_be_images **out, cmkd_error *err) {
  const cmkd_image_set set = {
      .pixels = d->pixels, .labels = d->labels, .n = d->n, .h = d->height, .w = d->width, .c = d->channels};
  return s->table->images_create(s->backend, &set, out, err);
}

cmkd_status cmkd_session_open_device(cmkd_session *s, const cmkd_backend_options *backend, cmkd_error *err) {
  const char *device = s->options.device ? s->options.device : "auto";
  cmkd_backend_options options = {0};
  if (backend) options = *backend;
  options.threads = (int)s->options.threads;
  options.device = cmkd_backend_index(device);
  options.precision = s->settings.precision;
  CMKD_TRY(cmkd_backend_find(device, &options, &s->table, err));
  CMKD_TRY(s->table->open(&options, &s->backend, err));
  CMKD_TRY(open_images(s, s->train, &s->train_images, err));
  CMKD_TRY(open_images(s, s->test, &s->test_images, err));
  if (s->settings.source == CMKD_SOURCE_TEACHER)
    CMKD_TRY(cmkd_session_open_teacher(s, s->train, s->settings.policy, &s->teacher, err));
  if (s->options.callback) {
    CMKD_TRY(cmkd_session_open_teacher(s, s->test, CMKD_AUGMENT_NONE, &s->test_teacher, err));
    s->options.callback = NULL; /* borrowed until here */
  }
  return s->cache ? cmkd_resident_open(s->table, s->backend, s->cache, &s->resident, err) : CMKD_OK;
}

/* ---- public ---- */

cmkd_status cmkd_session_open(const cmkd_session_options *options, cmkd_session **out, cmkd_error *err) {
  cmkd_status status = cmkd_session_open_data(options, out, err);
  if (status == CMKD_OK) status = cmkd_session_open_device(*out, NULL, err);
  if (status != CMKD_OK) {
    cmkd_session_close(*out);
    *out = NULL;
  }
  return status;
}

void cmkd_session_close(cmkd_session *s) {
  if (!s) return;
  cmkd_resident_close(s->resident);
  cmkd_teacher_close(s->teacher);
  cmkd_teacher_close(s->test_teacher);
  if (s->train_images) s->table->images_free(s->train_images);
  if (s->test_images) s->table->images_free(s->test_images);
  if (s->backend) s->table->close(s->backend);
  if (s->cache) cmkd_cache_close(s->cache);
  if (s->train) cmkd_dataset_close(s->train);
  if (s->test) cmkd_dataset_close(s->test);
  free(s->teacher_test_logits);
  cmkd_session_options_free(&s->options);
  free(s);
}

const char *cmkd_session_device(const cmkd_session *s) { return s->table->describe(s->backend); }

const char *cmkd_session_teacher_sha256(const cmkd_session *s) {
  if (s->teacher) return cmkd_teacher_sha256(s->teacher);
  return s->cache ? cmkd_cache_get_info(s->cache)->identity.teacher_sha256 : NULL;
}

const char *cmkd_session_teacher_arch(const cmkd_session *s) {
  if (s->teacher) return cmkd_teacher_spec(s->teacher)->arch;
  return s->cache ? cmkd_cache_get_info(s->cache)->identity.teacher_arch : NULL;
}
