/* The run's folder. See folder.h. */
#include "train/folder.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "train/settings.h"

enum { MAX_CONFIG = 1 << 20 };

static cmkd_status lock_folder(cmkd_folder *f, cmkd_error *err) {
  switch (cmkd_lock_try(f->lock, 0, &f->held)) {
  case CMKD_LOCK_TAKEN: break;
  case CMKD_LOCK_BUSY: return cmkd_fail(err, CMKD_ERR_IO, "%s: another cmkd-train works there now", f->path);
  case CMKD_LOCK_NOT_OPENED:
    return cmkd_fail(err, CMKD_ERR_IO, "%s: %s; choose another --out", f->lock, strerror(errno));
  case CMKD_LOCK_NOT_LOCKED: return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be locked", f->path);
  case CMKD_LOCK_NO_MEMORY: return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  }
  return CMKD_OK;
}

static cmkd_status name_files(const char *path, cmkd_folder *f, cmkd_error *err) {
  const char *const names[] = {"config.json",      "state.safetensors", "log.jsonl", "steps.jsonl",
                               "last.safetensors", "best.safetensors",  "run.lock"};
  char **const slots[] = {&f->config, &f->state, &f->log, &f->steps, &f->last, &f->best, &f->lock};
  f->path = cmkd_format("%s", path);
  int ok = f->path != NULL;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    ok &= (*slots[i] = cmkd_path_join(path, names[i])) != NULL;
  return ok ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
}

/* The settings in config.json, or *out NULL when there is no such file. */
static cmkd_status read_config(cmkd_folder *f, json_t **out, cmkd_error *err) {
  uint8_t *data;
  size_t size;
  *out = NULL;
  if (!cmkd_file_exists(f->config)) return CMKD_OK;
  CMKD_TRY(cmkd_file_read(f->config, MAX_CONFIG, &data, &size, err));
  json_t *root = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL),
         *settings = json_object_get(root, "settings");
  free(data);
  const char *device = json_string_value(json_object_get(json_object_get(root, "environment"), "device"));
  *out = json_is_object(settings) ? json_incref(settings) : NULL;
  snprintf(f->device, sizeof f->device, "%s", device ? device : "");
  if (root) json_decref(root);
  return *out ? CMKD_OK
              : cmkd_fail(err, CMKD_ERR_FORMAT, "%s: not the configuration of a run; choose another --out", f->config);
}

/* What to do with a state of the same settings. */
static cmkd_status resume_state(const cmkd_folder *f, const cmkd_weights *file, const cmkd_folder_options *o,
                                cmkd_state *state, cmkd_error *err) {
  CMKD_TRY(cmkd_state_load(o->graph, file, state, err));
  long long epochs = json_integer_value(json_object_get(o->settings, "epochs"));
  if (state->epoch > epochs)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: it is past its last epoch: the state is damaged", f->state);
  if (o->resume) return CMKD_OK;
  if (state->epoch == epochs)
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s holds this very run, finished; choose another --out (--resume prints its table)", f->path);
  return cmkd_fail(err, CMKD_ERR_MISMATCH,
                   "%s holds this very run, stopped after epoch %lld of %lld and %lld steps: add --resume to go on, or "
                   "choose another --out",
                   f->path, (long long)state->epoch, epochs, (long long)state->step);
}

/* A run's state is its first file: in a folder without one, nothing is ours to overwrite. */
static cmkd_status check_other_files(const cmkd_folder *f, cmkd_error *err) {
  const char *const ours[] = {f->log, f->last, f->best};
  for (int i = 0; i < 3; i++)
    if (cmkd_file_exists(ours[i]))
      return cmkd_fail(
          err, CMKD_ERR_MISMATCH,
          "%s is there, but not the state of the run that it belongs to; choose another --out, or remove the folder",
          ours[i]);
  return CMKD_OK;
}

/* Opens the state and reads the settings that it was saved with. */
static cmkd_status read_state(cmkd_folder *f, cmkd_weights **file, json_t **settings, cmkd_error *err) {
  json_t *config = NULL;
  cmkd_status status = cmkd_weights_read(f->state, file, err);
  if (status == CMKD_ERR_FORMAT)
    return cmkd_fail(err, status, "%s is damaged; remove the run's folder to start afresh, or choose another --out",
                     f->state);
  if (status == CMKD_OK) status = cmkd_state_settings(*file, settings, err);
  if (status == CMKD_OK && read_config(f, &config, NULL) == CMKD_OK && config)
    json_decref(config); /* read for the device alone: the settings of the state count */
  return status;
}

static cmkd_status inspect(cmkd_folder *f, const cmkd_folder_options *o, cmkd_state *state, int *resumed,
                           cmkd_error *err) {
  json_t *stored = NULL;
  cmkd_weights *file = NULL;
  cmkd_status status = cmkd_file_exists(f->state) ? read_state(f, &file, &stored, err) : read_config(f, &stored, err);
  if (status == CMKD_OK && stored) status = cmkd_settings_compare(stored, o->settings, f->path, err);
  if (status == CMKD_OK && file) {
    status = resume_state(f, file, o, state, err);
    *resumed = status == CMKD_OK;
  } else if (status == CMKD_OK)
    status = check_other_files(f, err);
  if (stored) json_decref(stored);
  if (file) cmkd_weights_free(file);
  return status;
}

cmkd_status cmkd_folder_open(const cmkd_folder_options *options, cmkd_state *state, int *resumed, cmkd_folder *out,
                             cmkd_error *err) {
  memset(out, 0, sizeof *out);
  out->held = (cmkd_lock)CMKD_LOCK_NONE;
  *resumed = 0;
  CMKD_TRY(name_files(options->path, out, err));
  out->created = !cmkd_file_exists(options->path);
  CMKD_TRY(cmkd_make_dirs(options->path, err));
  CMKD_TRY(lock_folder(out, err));
  return inspect(out, options, state, resumed, err);
}

void cmkd_folder_close(cmkd_folder *f) {
  if (f->held.path) {
    cmkd_lock_release(&f->held);
    if (f->created) rmdir(f->path); /* stays unless empty: nothing came of it */
  }
  char *const owned[] = {f->path, f->config, f->state, f->log, f->steps, f->last, f->best, f->lock};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    free(owned[i]);
  memset(f, 0, sizeof *f);
  f->held = (cmkd_lock)CMKD_LOCK_NONE;
}

cmkd_status cmkd_folder_config(const cmkd_folder *f, const json_t *settings, const json_t *environment,
                               cmkd_error *err) {
  cmkd_json root = cmkd_json_object();
  cmkd_json_set(&root, "settings", json_incref((json_t *)settings));
  if (environment) cmkd_json_set(&root, "environment", json_incref((json_t *)environment));
  json_t *whole = cmkd_json_end(&root);
  char *text = whole ? json_dumps(whole, JSON_INDENT(2)) : NULL;
  json_decref(whole);
  if (!text) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  const cmkd_piece pieces[] = {{text, strlen(text)}, {"\n", 1}};
  cmkd_status status = cmkd_file_write(f->config, pieces, 2, err);
  free(text);
  return status;
}
