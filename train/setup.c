/* Opening a run. See setup.h. */
#include "train/setup.h"
#include <stdlib.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/file.h"
#include "train/recipe_apply.h"

/* The cache and its data set. Every refusal names both sides. */
static cmkd_status open_cached_data(cmkd_setup *s, const cmkd_train_options *o, cmkd_error *err) {
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
  cmkd_status status = cmkd_environment_dataset(o->data ? o->data : id->dataset, "train", &s->train, err);
  if (status != CMKD_OK) return status;
  if (info->classes != (uint32_t)s->train->classes)
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s holds logits of %u classes, %s has %d: this cache belongs to other data", o->cache,
                     info->classes, s->train->name, s->train->classes);
  if (strcmp(id->fingerprint, s->train->fingerprint))
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s was built from %s with fingerprint %.12s..., the one in %s has %.12s...: other images or "
                     "labels; give its folder by --data %s:DIR",
                     o->cache, id->dataset, id->fingerprint, s->train->path, s->train->fingerprint, id->dataset);
  return CMKD_OK;
}

static cmkd_status open_test_data(cmkd_setup *s, const cmkd_train_options *o, cmkd_error *err) {
  const char *spec = o->data ? o->data : s->cache ? cmkd_cache_get_info(s->cache)->identity.dataset : "fashion-mnist";
  CMKD_TRY(cmkd_environment_dataset(spec, "test", &s->test, err));
  if (s->test->classes == s->train->classes && s->test->height == s->train->height &&
      s->test->width == s->train->width && s->test->channels == s->train->channels)
    return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: its train and test splits have images or classes of different shapes",
                   s->train->path);
}

static cmkd_status open_model(cmkd_setup *s, const cmkd_train_options *o, cmkd_error *err) {
  const cmkd_settings *set = &s->settings;
  const cmkd_dataset *d = s->train;
  CMKD_TRY(cmkd_net_build(set->arch, (cmkd_net_shape){d->height, d->width, d->channels, d->classes}, &s->graph, err));
  cmkd_backend_options options = {
      .threads = (int)o->threads, .device = cmkd_backend_index(o->device), .precision = set->precision};
  cmkd_environment_backend(&options);
  CMKD_TRY(cmkd_backend_find(o->device, &options, &s->table, err));
  CMKD_TRY(s->table->open(&options, &s->backend, err));
  const cmkd_image_set train = {d->pixels, d->labels, d->n, d->height, d->width, d->channels};
  const cmkd_image_set test = {s->test->pixels, s->test->labels, s->test->n, d->height, d->width, d->channels};
  CMKD_TRY(s->table->images_create(s->backend, &train, &s->train_images, err));
  CMKD_TRY(s->table->images_create(s->backend, &test, &s->test_images, err));
  cmkd_model_config config = {.graph = s->graph,
                              .batch = set->batch,
                              .train = 1,
                              .policy = set->policy,
                              .loss = set->loss,
                              .momentum = (float)set->momentum,
                              .weight_decay = (float)set->weight_decay,
                              .nesterov = set->nesterov,
                              .label_smoothing = set->label_smoothing,
                              .kappa = set->kappa};
  for (int c = 0; c < 4; c++) {
    config.mean[c] = c < 3 ? set->mean[c] : 0;
    config.std[c] = c < 3 ? set->std[c] : 1;
  }
  CMKD_TRY(s->table->model_create(s->backend, &config, &s->model, err));
  return cmkd_evaluator_open(&s->evaluator, &config, s->table, s->backend, err);
}

static cmkd_status open_teacher(cmkd_setup *s, const cmkd_train_options *o, const cmkd_dataset *data,
                                cmkd_policy policy, cmkd_teacher **out, cmkd_error *err) {
  cmkd_teacher_options options = {.weights = o->teacher,
                                  .arch = o->teacher_arch,
                                  .mean = o->teacher_mean_seen ? o->teacher_mean : NULL,
                                  .std = o->teacher_std_seen ? o->teacher_std : NULL,
                                  .batch = s->settings.teacher_batch,
                                  .policy = policy,
                                  .prefix = "teacher-"};
  return cmkd_teacher_open(&options, s->table, s->backend, data, out, err);
}

static const char *teacher_sha256(const cmkd_setup *s) {
  return s->teacher ? cmkd_teacher_sha256(s->teacher)
         : s->cache ? cmkd_cache_get_info(s->cache)->identity.teacher_sha256
                    : NULL;
}

static cmkd_status describe(cmkd_setup *s, const cmkd_train_options *o, cmkd_error *err) {
  const char *cache_sha256 = s->cache ? cmkd_cache_get_info(s->cache)->sha256 : NULL;
  s->settings_json = cmkd_settings_json(&s->settings, s->train, cache_sha256, teacher_sha256(s));
  s->environment = json_object();
  if (!s->settings_json || !s->environment) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  json_object_set_new(s->environment, "version", json_string(CMKD_VERSION));
  json_object_set_new(s->environment, "device", json_string(s->table->describe(s->backend)));
  json_object_set_new(s->environment, "data", json_string(s->train->path));
  if (o->recipe) json_object_set_new(s->environment, "recipe", json_string(o->recipe));
  if (o->cache) json_object_set_new(s->environment, "cache", json_string(o->cache));
  if (o->teacher) json_object_set_new(s->environment, "teacher", json_string(o->teacher));
  return CMKD_OK;
}

static void bind_trainer(cmkd_setup *s, const cmkd_train_options *o) {
  s->trainer = (cmkd_trainer){.settings = &s->settings,
                              .settings_json = s->settings_json,
                              .environment = s->environment,
                              .train = s->train,
                              .test = s->test,
                              .graph = s->graph,
                              .table = s->table,
                              .model = s->model,
                              .train_images = s->train_images,
                              .test_images = s->test_images,
                              .teacher_sha256 = teacher_sha256(s),
                              .source = &s->source,
                              .evaluator = &s->evaluator,
                              .folder = &s->folder,
                              .state = &s->state,
                              .save_every = o->save_every,
                              .max_steps = o->max_steps,
                              .log_steps = o->log_steps};
}

cmkd_status cmkd_setup_open(cmkd_setup *s, const cmkd_train_options *o, cmkd_error *err) {
  memset(s, 0, sizeof *s);
  s->folder.lock_fd = -1;
  CMKD_TRY(cmkd_train_options_check(o, err));
  if (o->cache)
    CMKD_TRY(open_cached_data(s, o, err));
  else
    CMKD_TRY(cmkd_environment_dataset(o->data ? o->data : "fashion-mnist", "train", &s->train, err));
  if (s->cache)
    CMKD_TRY(cmkd_recipe_check(o, s->train, cmkd_cache_get_info(s->cache)->identity.teacher_arch, err));
  else
    CMKD_TRY(cmkd_recipe_check(o, s->train, NULL, err));
  CMKD_TRY(cmkd_settings_resolve(o, s->train, s->cache ? cmkd_cache_get_info(s->cache) : NULL, &s->settings, err));
  CMKD_TRY(open_test_data(s, o, err));
  CMKD_TRY(open_model(s, o, err));
  if (o->teacher) CMKD_TRY(open_teacher(s, o, s->train, s->settings.policy, &s->teacher, err));
  if (s->teacher) CMKD_TRY(cmkd_recipe_check(o, s->train, cmkd_teacher_spec(s->teacher)->arch, err));
  CMKD_TRY(cmkd_source_open(&s->source, &s->settings, s->train, s->cache, s->teacher, err));
  CMKD_TRY(cmkd_source_reside(&s->source, s->table, s->backend, err));
  s->source.threads = strcmp(s->table->name, "cuda") ? 1 : 0; /* beside a busy CPU one decoder is plenty */
  s->source.memory = (uint64_t)o->stream_memory << 20;
  CMKD_TRY(cmkd_state_create(s->graph, &s->state, err));
  CMKD_TRY(describe(s, o, err));
  char *out = o->out ? cmkd_format("%s", o->out) : cmkd_default_out(o, &s->settings);
  if (!out) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_status status =
      cmkd_folder_open(out, s->settings_json, o->resume, s->graph, &s->state, &s->resumed, &s->folder, err);
  free(out);
  if (status != CMKD_OK) return status;
  const char *device = s->table->describe(s->backend);
  if (s->resumed && s->folder.device[0] && strcmp(s->folder.device, device))
    snprintf(s->device_note, sizeof s->device_note, "began on `%.80s`: other rounding, so no longer bit-exact",
             s->folder.device);
  if (s->resumed && s->state.device && s->table->load) {
    int used = 0;
    CMKD_TRY(s->table->load(s->model, s->state.device, &used, err));
    if (!used && !s->device_note[0])
      snprintf(s->device_note, sizeof s->device_note,
               "its convolution plans are of another device or library: other rounding, so no longer bit-exact");
  }
  if (!s->resumed) cmkd_params_init(s->graph, s->settings.seed, &s->state.value);
  bind_trainer(s, o);
  return CMKD_OK;
}

void cmkd_setup_close(cmkd_setup *s) {
  cmkd_folder_close(&s->folder);
  cmkd_state_free(&s->state);
  cmkd_source_close(&s->source);
  if (s->teacher) cmkd_teacher_close(s->teacher);
  cmkd_evaluator_close(&s->evaluator);
  if (s->model) s->table->model_free(s->model);
  if (s->train_images) s->table->images_free(s->train_images);
  if (s->test_images) s->table->images_free(s->test_images);
  if (s->backend) s->table->close(s->backend);
  if (s->graph) cmkd_graph_free(s->graph);
  cmkd_settings_free(&s->settings);
  if (s->settings_json) json_decref(s->settings_json);
  if (s->environment) json_decref(s->environment);
  if (s->cache) cmkd_cache_close(s->cache);
  if (s->train) cmkd_dataset_close(s->train);
  if (s->test) cmkd_dataset_close(s->test);
  free(s->test_teacher);
  memset(s, 0, sizeof *s);
  s->folder.lock_fd = -1;
}

/* ---- the teacher on the test split ---- */

enum { GROUP = 1024 };

static cmkd_status run_groups(cmkd_setup *s, cmkd_teacher *teacher, cmkd_progress *progress, int (*stop)(void),
                              cmkd_error *err) {
  uint32_t rows[GROUP], n = s->test->n;
  for (uint32_t first = 0; first < n; first += GROUP) {
    uint32_t count = n - first < GROUP ? n - first : GROUP;
    for (uint32_t i = 0; i < count; i++)
      rows[i] = first + i;
    if (stop && stop()) return cmkd_fail(err, CMKD_ERR_INTERRUPTED, "stopped before the first step");
    CMKD_TRY(cmkd_teacher_run(teacher, rows, NULL, count, s->test_teacher + (size_t)first * (size_t)s->test->classes,
                              NULL, err));
    if (progress) cmkd_progress_update(progress, first + count);
  }
  return CMKD_OK;
}

static cmkd_status live_test_logits(cmkd_setup *s, const cmkd_train_options *o, cmkd_progress *progress,
                                    int (*stop)(void), cmkd_error *err) {
  cmkd_teacher *teacher = NULL;
  cmkd_status status = open_teacher(s, o, s->test, CMKD_AUGMENT_NONE, &teacher, err);
  if (status == CMKD_OK) status = run_groups(s, teacher, progress, stop, err);
  if (teacher) cmkd_teacher_close(teacher);
  return status;
}

static cmkd_status cached_test_logits(cmkd_setup *s, const char *path, cmkd_cache *cache, cmkd_error *err) {
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
  return cmkd_cache_read(cache, view, 0, info->samples, s->test_teacher, err);
}

/* "teacher.h5" -> "teacher.test.h5" */
static char *companion(const char *path) {
  size_t size = strlen(path);
  if (size > 3 && !strcmp(path + size - 3, ".h5")) size -= 3;
  return cmkd_format("%.*s.test.h5", (int)size, path);
}

static cmkd_status open_test_cache(cmkd_setup *s, const cmkd_train_options *o, cmkd_error *err) {
  char *path = o->test_cache ? cmkd_format("%s", o->test_cache) : companion(o->cache);
  cmkd_cache *cache = NULL;
  cmkd_status status = path ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  if (status == CMKD_OK && !o->test_cache && !cmkd_file_exists(path))
    status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s is not there (cmkd-cache build --split test --augment none)", path);
  if (status == CMKD_OK) status = cmkd_cache_open(path, &cache, err);
  if (status == CMKD_OK) status = cached_test_logits(s, path, cache, err);
  if (cache) cmkd_cache_close(cache);
  free(path);
  return status;
}

cmkd_status cmkd_setup_test_teacher(cmkd_setup *s, const cmkd_train_options *o, cmkd_progress *progress,
                                    int (*stop)(void), cmkd_error *err) {
  if (s->settings.source == CMKD_SOURCE_LABELS) return CMKD_OK;
  cmkd_error why = {CMKD_OK, ""};
  s->test_teacher = malloc((size_t)s->test->n * (size_t)s->test->classes * sizeof *s->test_teacher);
  if (!s->test_teacher) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the teacher's test logits");
  cmkd_status status = o->teacher ? live_test_logits(s, o, progress, stop, &why) : open_test_cache(s, o, &why);
  if (status != CMKD_OK && (o->teacher || o->test_cache)) return cmkd_fail(err, status, "%s", why.message);
  if (status != CMKD_OK) { /* nobody asked for it: go on without */
    free(s->test_teacher);
    s->test_teacher = NULL;
    snprintf(s->note, sizeof s->note, "no correlation with the teacher on the test split: %.400s", why.message);
  }
  s->trainer.test_teacher = s->test_teacher;
  return CMKD_OK;
}
