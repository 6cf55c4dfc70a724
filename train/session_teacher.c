/* The teacher of a session: run live, and its logits of the test split, from a live run or a companion cache. */
#include "train/session_teacher.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "formats/cache/paths.h"

cmkd_status cmkd_session_open_teacher(const cmkd_session *s, const cmkd_dataset *data, cmkd_policy policy,
                                      cmkd_teacher **out, cmkd_error *err) {
  const cmkd_session_options *o = &s->options;
  if (o->callback) return cmkd_teacher_from_callback(o->callback, data, policy, out, err);
  const cmkd_teacher_options options = {.weights = o->teacher,
                                        .arch = o->teacher_arch,
                                        .mean = isnan(o->teacher_mean[0]) ? NULL : o->teacher_mean,
                                        .std = isnan(o->teacher_std[0]) ? NULL : o->teacher_std,
                                        .batch = s->settings.teacher_batch,
                                        .policy = policy,
                                        .prefix = "teacher-"};
  return cmkd_teacher_open(&options, s->table, s->backend, data, out, err);
}

static cmkd_status run_groups(cmkd_session *s, cmkd_teacher *teacher, const cmkd_watch *watch, cmkd_error *err) {
  uint32_t rows[CMKD_TEACHER_GROUP], n = s->test->n;
  for (uint32_t first = 0; first < n; first += CMKD_TEACHER_GROUP) {
    uint32_t count = n - first < CMKD_TEACHER_GROUP ? n - first : CMKD_TEACHER_GROUP;
    float *logits = s->teacher_test_logits + (size_t)first * (size_t)s->test->classes;
    for (uint32_t i = 0; i < count; i++)
      rows[i] = first + i;
    if (watch && watch->stop && watch->stop(watch->self))
      return cmkd_fail(err, CMKD_ERR_INTERRUPTED, "stopped before the first step");
    CMKD_TRY(cmkd_teacher_run(teacher, rows, NULL, count, logits, NULL, err));
    if (watch && watch->progress) watch->progress(watch->self, first + count, n);
  }
  return CMKD_OK;
}

static cmkd_status live_test_logits(cmkd_session *s, const cmkd_watch *watch, cmkd_error *err) {
  cmkd_teacher *network = NULL;
  if (s->test_teacher) return run_groups(s, s->test_teacher, watch, err);
  cmkd_status status = cmkd_session_open_teacher(s, s->test, CMKD_AUGMENT_NONE, &network, err);
  if (status == CMKD_OK) status = run_groups(s, network, watch, err);
  cmkd_teacher_close(network);
  return status;
}

static cmkd_status cached_test_logits(cmkd_session *s, const char *path, cmkd_cache *cache, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const cmkd_cache_identity *id = &info->identity, *ours = &cmkd_cache_get_info(s->cache)->identity;
  const uint64_t *ids;
  uint32_t view = info->views - 1;
  if (strcmp(id->split, "test") || strcmp(id->fingerprint, s->test->fingerprint))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds the %s split of %s, not these test images", path, id->split,
                     id->dataset);
  if (strcmp(id->teacher_sha256, ours->teacher_sha256))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s is of teacher %.12s..., the training cache of %.12s...", path,
                     id->teacher_sha256, ours->teacher_sha256);
  if (info->classes != (uint32_t)s->test->classes || info->samples != s->test->n)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds %llu of the %u test samples", path,
                     (unsigned long long)info->samples, s->test->n);
  if (!id->clean_view && id->policy != CMKD_AUGMENT_NONE)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds no clean view; build it with --augment none", path);
  CMKD_TRY(cmkd_cache_ids(cache, &ids, err));
  for (uint64_t i = 0; i < info->samples; i++)
    if (ids[i] != i) return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds its samples in another order", path);
  return cmkd_cache_read(cache, view, 0, info->samples, s->teacher_test_logits, err);
}

static cmkd_status open_test_cache(cmkd_session *s, cmkd_error *err) {
  const char *given = s->options.test_cache;
  char *path = given ? cmkd_format("%s", given) : cmkd_cache_companion(s->options.cache);
  cmkd_cache *cache = NULL;
  cmkd_status status = path ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  if (status == CMKD_OK && !given && !cmkd_file_exists(path))
    status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s is not there (cmkd-cache build --split test --augment none)", path);
  if (status == CMKD_OK) status = cmkd_cache_open(path, &cache, err);
  if (status == CMKD_OK) status = cached_test_logits(s, path, cache, err);
  if (cache) cmkd_cache_close(cache);
  free(path);
  return status;
}

cmkd_status cmkd_session_load_test_logits(cmkd_session *s, const cmkd_watch *watch, const char **note,
                                          cmkd_error *err) {
  const int live = s->settings.source == CMKD_SOURCE_TEACHER;
  if (note) *note = s->note[0] ? s->note : NULL;
  if (s->settings.source == CMKD_SOURCE_LABELS || s->teacher_test_logits || s->note[0]) return CMKD_OK;
  cmkd_error why = {CMKD_OK, ""};
  s->teacher_test_logits = malloc((size_t)s->test->n * (size_t)s->test->classes * sizeof *s->teacher_test_logits);
  if (!s->teacher_test_logits) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the teacher's test logits");
  cmkd_status status = live ? live_test_logits(s, watch, &why) : open_test_cache(s, &why);
  if (status == CMKD_OK) return CMKD_OK;
  free(s->teacher_test_logits);
  s->teacher_test_logits = NULL;
  if (live || s->options.test_cache) return cmkd_fail(err, status, "%s", why.message);
  /* nobody asked for it: go on without */
  snprintf(s->note, sizeof s->note, "no correlation with the teacher on the test split: %.400s", why.message);
  if (note) *note = s->note;
  return CMKD_OK;
}
