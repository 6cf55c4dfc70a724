/* Opening, saving and closing a student. See student.h; its epochs are in epoch.c. */
#include "train/student.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "base/clock.h"

/* ---- opening ---- */

cmkd_status cmkd_student_prepare(cmkd_session *session, const cmkd_student_options *options, cmkd_student **out,
                                 cmkd_error *err) {
  const cmkd_dataset *d = session->train;
  *out = NULL;
  CMKD_TRY(cmkd_student_options_check(options, err));
  cmkd_student *s = *out = calloc(1, sizeof *s);
  if (!s) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  s->session = session;
  s->folder.held = (cmkd_lock)CMKD_LOCK_NONE;
  CMKD_TRY(cmkd_student_options_copy(options, &s->options, err));
  CMKD_TRY(cmkd_settings_resolve(&session->settings, &session->options, &s->options, d,
                                 cmkd_session_cache_info(session), &s->settings, err));
  const cmkd_net_shape shape = {d->height, d->width, d->channels, d->classes};
  return cmkd_net_build(s->settings.arch, shape, &s->graph, err);
}

static cmkd_status open_model(cmkd_student *s, cmkd_error *err) {
  const cmkd_session *session = s->session;
  const cmkd_settings *set = &s->settings;
  cmkd_model_config config = {.graph = s->graph,
                              .batch = set->batch,
                              .train = 1,
                              .policy = set->session.policy,
                              .loss = set->loss,
                              .momentum = (float)set->momentum,
                              .weight_decay = (float)set->weight_decay,
                              .nesterov = set->nesterov,
                              .label_smoothing = set->label_smoothing,
                              .kappa = CMKD_AGREEMENT_KAPPA};
  for (int c = 0; c < 4; c++) {
    config.mean[c] = c < 3 ? set->mean[c] : 0;
    config.std[c] = c < 3 ? set->std[c] : 1;
  }
  CMKD_TRY(session->table->model_create(session->backend, &config, &s->model, err));
  return cmkd_evaluator_open(&s->evaluator, &config, session->table, session->backend, err);
}

static cmkd_status open_source(cmkd_student *s, cmkd_error *err) {
  const cmkd_session *session = s->session;
  const cmkd_source_inputs inputs = {
      .data = session->train,
      .cache = session->cache,
      .resident = session->resident,
      .teacher = session->teacher,
      .threads = session->table->computes_off_cpu ? 0 : 1, /* a CPU that trains has none to spare */
      .memory = (uint64_t)session->options.stream_memory << 20};
  return cmkd_source_open(&s->source, &s->settings, &inputs, err);
}

/* What the run's config.json says. */
static cmkd_status describe(cmkd_student *s, cmkd_error *err) {
  const cmkd_session *session = s->session;
  const cmkd_cache_info *info = cmkd_session_cache_info(session);
  const cmkd_session_options *o = &session->options;
  cmkd_json environment = cmkd_json_object();
  cmkd_json_set(&environment, "version", json_string(CMKD_VERSION));
  cmkd_json_set(&environment, "device", cmkd_json_string(cmkd_session_device(session)));
  cmkd_json_set(&environment, "data", cmkd_json_string(session->train->path));
  if (s->recipe) cmkd_json_set(&environment, "recipe", cmkd_json_string(s->recipe));
  if (o->cache) cmkd_json_set(&environment, "cache", cmkd_json_string(o->cache));
  if (session->teacher) cmkd_json_set(&environment, "teacher", cmkd_json_string(cmkd_teacher_name(session->teacher)));
  s->environment = cmkd_json_end(&environment);
  s->settings_json = cmkd_settings_json(&s->settings, session->train, info ? info->content_sha256 : NULL,
                                        cmkd_session_teacher_sha256(session));
  return s->settings_json && s->environment ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
}

static cmkd_status open_folder(cmkd_student *s, cmkd_error *err) {
  const cmkd_student_options *o = &s->options;
  char *out = o->out ? cmkd_format("%s", o->out) : cmkd_default_out(o->loss, &s->settings);
  if (!out) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  const cmkd_folder_options options = {
      .path = out, .settings = s->settings_json, .graph = s->graph, .resume = o->resume};
  cmkd_status status = cmkd_folder_open(&options, &s->state, &s->resumed, &s->folder, err);
  free(out);
  return status;
}

/* What a resumed run needs of the device it began on. */
static cmkd_status restore_device(cmkd_student *s, cmkd_error *err) {
  const cmkd_backend_table *table = s->session->table;
  if (s->folder.device[0] && strcmp(s->folder.device, cmkd_session_device(s->session)))
    snprintf(s->device_note, sizeof s->device_note, "began on `%.80s`: other rounding, so no longer bit-exact",
             s->folder.device);
  if (!s->state.device || !table->load) return CMKD_OK;
  int used = 0;
  CMKD_TRY(table->load(s->model, s->state.device, &used, err));
  if (!used && !s->device_note[0])
    snprintf(s->device_note, sizeof s->device_note,
             "its convolution plans are of another device or library: other rounding, so no longer bit-exact");
  return CMKD_OK;
}

cmkd_status cmkd_student_finish_open(cmkd_student *s, cmkd_error *err) {
  CMKD_TRY(open_model(s, err));
  CMKD_TRY(open_source(s, err));
  CMKD_TRY(cmkd_state_create(s->graph, &s->state, err));
  CMKD_TRY(describe(s, err));
  CMKD_TRY(open_folder(s, err));
  if (s->resumed) return restore_device(s, err);
  cmkd_params_init(s->graph, s->settings.seed, &s->state.value);
  return CMKD_OK;
}

cmkd_status cmkd_student_open(cmkd_session *session, const cmkd_student_options *options, cmkd_student **out,
                              cmkd_error *err) {
  cmkd_status status = cmkd_student_prepare(session, options, out, err);
  if (status == CMKD_OK) status = cmkd_student_finish_open(*out, err);
  if (status != CMKD_OK) {
    cmkd_student_close(*out);
    *out = NULL;
  }
  return status;
}

void cmkd_student_close(cmkd_student *s) {
  if (!s) return;
  if (s->step_log) fclose(s->step_log);
  cmkd_block_free(s->current);
  cmkd_block_free(s->ahead);
  cmkd_folder_close(&s->folder);
  cmkd_state_free(&s->state);
  cmkd_source_close(&s->source);
  cmkd_evaluator_close(&s->evaluator);
  if (s->model) s->session->table->model_free(s->model);
  if (s->graph) cmkd_graph_free(s->graph);
  cmkd_settings_free(&s->settings);
  if (s->settings_json) json_decref(s->settings_json);
  if (s->environment) json_decref(s->environment);
  cmkd_student_options_free(&s->options);
  free(s);
}

/* ---- saving ---- */

cmkd_status cmkd_student_download(cmkd_student *s, cmkd_error *err) {
  const cmkd_backend_table *table = s->session->table;
  CMKD_TRY(table->download(s->model, CMKD_SLOT_VALUE, s->state.value.value, err));
  CMKD_TRY(table->download(s->model, CMKD_SLOT_MOMENTUM, s->state.momentum.value, err));
  if (table->save) {
    free(s->state.device);
    s->state.device = NULL;
    CMKD_TRY(table->save(s->model, &s->state.device, err));
  }
  if (cmkd_state_finite(s->graph, &s->state)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "epoch %lld, step %lld: weights are no longer finite; a lower --lr or --warmup may help (%s is the "
                   "last good state)",
                   (long long)s->state.epoch + 1, (long long)s->state.step, s->folder.state);
}

cmkd_status cmkd_student_write_state(cmkd_student *s, cmkd_error *err) {
  const double time = cmkd_seconds();
  s->state.elapsed += time - s->counted_from;
  s->counted_from = time;
  if (s->step_log && fflush(s->step_log) != 0)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be written; is the disk full?", s->folder.steps);
  return cmkd_state_save(s->graph, &s->state, s->settings_json, s->folder.state, err);
}

cmkd_status cmkd_student_save(cmkd_student *s, cmkd_error *err) {
  if (s->failed) return cmkd_fail(err, CMKD_ERR_VALUE, "%s: this student failed before; close it", s->folder.path);
  if (!s->started) return CMKD_OK; /* nothing happened yet */
  s->counted_from = cmkd_seconds();
  CMKD_TRY(cmkd_student_download(s, err));
  return cmkd_student_write_state(s, err);
}

cmkd_status cmkd_student_interrupted(const cmkd_student *s, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_INTERRUPTED,
                   "stopped in epoch %lld of %d after %lld of its %lld steps; the state is saved",
                   (long long)s->state.epoch + 1, s->settings.epochs, (long long)s->state.step,
                   (long long)s->settings.schedule.steps_per_epoch);
}

/* ---- looking ---- */

void cmkd_student_get_progress(const cmkd_student *s, cmkd_student_progress *out) {
  const cmkd_state *state = &s->state;
  *out = (cmkd_student_progress){.epochs = s->settings.epochs,
                                 .epoch = state->epoch,
                                 .steps_per_epoch = s->settings.schedule.steps_per_epoch,
                                 .step = state->step,
                                 .images_per_epoch = s->source.n,
                                 .total_images = state->epoch * (int64_t)s->source.n + state->sums.images,
                                 .total_steps = state->total_steps,
                                 .loss = state->sums.images ? state->sums.loss / (double)state->sums.images : NAN,
                                 .seconds = state->elapsed,
                                 .resumed = s->resumed};
}

const cmkd_score *cmkd_student_last(const cmkd_student *s) { return &s->state.last; }
const cmkd_score *cmkd_student_best(const cmkd_student *s) { return &s->state.best; }
const char *cmkd_student_folder(const cmkd_student *s) { return s->folder.path; }
