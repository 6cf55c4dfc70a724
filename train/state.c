/* The state file. See state.h. Layout: "counters" I64, "numbers" F64, "log" U8 (absent while empty), then "value/NAME"
 * of every parameter and "momentum/NAME" of every trained one, F32. */
#include "train/state.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"

#define STATE_FORMAT "cmkd-state-1"
enum { COUNTERS = 10, SUMS = 7, SCORE_NUMBERS = 11, NUMBERS = SUMS + CMKD_LOSS_MAX_PARTS + 2 * SCORE_NUMBERS };
enum { MAX_NAME = 112 }; /* bytes of "momentum/NAME" */
static const char *const slot_names[] = {[CMKD_SLOT_VALUE] = "value", [CMKD_SLOT_MOMENTUM] = "momentum"};

void cmkd_epoch_sums_add(cmkd_epoch_sums *sums, const cmkd_step_result *r, int parts) {
  double rows = r->count;
  sums->images += r->count;
  sums->top1 += r->top1;
  sums->top5 += r->top5;
  sums->loss += r->loss.loss * rows;
  for (int i = 0; i < parts; i++)
    sums->part[i] += r->loss.part[i] * rows;
  if (!isnan(r->loss.blocks)) {
    sums->blocks += r->loss.blocks * rows;
    sums->blocks_rows += r->count;
  }
  sums->pearson += r->agreement.pearson;
  sums->spearman += r->agreement.spearman;
  sums->agreement_blocks += r->agreement.blocks;
  sums->agreement_rows += r->agreement.rows;
}

cmkd_status cmkd_state_create(const cmkd_graph *graph, cmkd_state *out, cmkd_error *err) {
  memset(out, 0, sizeof *out);
  CMKD_TRY(cmkd_params_create(graph, &out->value, err));
  CMKD_TRY(cmkd_params_create(graph, &out->momentum, err));
  for (int i = 0; i < graph->params; i++)
    memset(out->momentum.value[i], 0, (size_t)graph->param[i].count * sizeof(float));
  out->log = calloc(1, 1);
  return out->log ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the state of a run");
}

void cmkd_state_free(cmkd_state *state) {
  cmkd_params_free(&state->value);
  cmkd_params_free(&state->momentum);
  free(state->log);
  free(state->device);
  memset(state, 0, sizeof *state);
}

cmkd_status cmkd_state_log(cmkd_state *state, const char *line, cmkd_error *err) {
  size_t have = strlen(state->log), more = strlen(line);
  char *log = realloc(state->log, have + more + 2);
  if (!log) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the log");
  memcpy(log + have, line, more);
  memcpy(log + have + more, "\n", 2);
  state->log = log;
  return CMKD_OK;
}

static int all_finite(const float *values, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(values[i])) return 0;
  return 1;
}

int cmkd_state_finite(const cmkd_graph *graph, const cmkd_state *state) {
  for (int i = 0; i < graph->params; i++)
    if (!all_finite(state->value.value[i], graph->param[i].count) ||
        !all_finite(state->momentum.value[i], graph->param[i].count))
      return 0;
  return 1;
}

/* ---- counters and numbers. Saving and loading walk through them in one order: `save` copies from the state into the
 * arrays, else from the arrays into the state ---- */

/* Copies one number between a field and the array, and moves on in the array. */
static void transfer(double *field, double **number, int save) {
  if (save)
    **number = *field;
  else
    *field = **number;
  (*number)++;
}

static void transfer_score(cmkd_score *score, double **number, int save) {
  double *const fields[SCORE_NUMBERS] = {&score->top1,           &score->top5,          &score->test_loss,
                                         &score->test_pearson,   &score->test_spearman, &score->val_top1,
                                         &score->loss,           &score->train_top1,    &score->train_pearson,
                                         &score->train_spearman, &score->blocks};
  for (int i = 0; i < SCORE_NUMBERS; i++)
    transfer(fields[i], number, save);
}

static void transfer_numbers(cmkd_state *s, int64_t counters[COUNTERS], double numbers[NUMBERS], int save) {
  int64_t *const counts[COUNTERS] = {
      &s->epoch,       &s->step,      &s->total_steps, &s->last.epoch,       &s->best.epoch,
      &s->sums.images, &s->sums.top1, &s->sums.top5,   &s->sums.blocks_rows, &s->sums.agreement_rows};
  for (int i = 0; i < COUNTERS; i++)
    if (save)
      counters[i] = *counts[i];
    else
      *counts[i] = counters[i];
  double *const sums[SUMS] = {&s->elapsed,      &s->sums.loss,     &s->sums.blocks,
                              &s->sums.pearson, &s->sums.spearman, &s->sums.agreement_blocks,
                              &s->sums.seconds};
  double *number = numbers;
  for (int i = 0; i < SUMS; i++)
    transfer(sums[i], &number, save);
  for (int i = 0; i < CMKD_LOSS_MAX_PARTS; i++)
    transfer(&s->sums.part[i], &number, save);
  transfer_score(&s->last, &number, save);
  transfer_score(&s->best, &number, save);
}

static void set_tensor(cmkd_tensor *t, char *name, cmkd_dtype dtype, int64_t count, const void *data) {
  *t = (cmkd_tensor){.name = name, .dtype = dtype, .dims = 1, .count = count, .data = data};
  t->shape[0] = count;
}

/* A parameter has a value; one that is not trained has no momentum. */
static int has_slot(const cmkd_param *p, cmkd_param_slot slot) {
  return slot == CMKD_SLOT_VALUE || CMKD_PARAM_TRAINED(p->kind);
}

cmkd_status cmkd_state_save(const cmkd_graph *graph, const cmkd_state *state, const json_t *settings, const char *path,
                            cmkd_error *err) {
  int most = 3 + 2 * graph->params, count = 0;
  cmkd_tensor *tensors = calloc((size_t)most, sizeof *tensors);
  char(*names)[MAX_NAME] = calloc((size_t)most, sizeof *names), *text = json_dumps(settings, JSON_COMPACT);
  cmkd_state copy = *state; /* transfer_numbers takes it unconst */
  int64_t counters[COUNTERS];
  double numbers[NUMBERS];
  cmkd_status status =
      tensors && names && text ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory while saving", path);
  if (status == CMKD_OK) {
    transfer_numbers(&copy, counters, numbers, 1);
    set_tensor(&tensors[count++], "counters", CMKD_I64, COUNTERS, counters);
    set_tensor(&tensors[count++], "numbers", CMKD_F64, NUMBERS, numbers);
    if (*state->log) set_tensor(&tensors[count++], "log", CMKD_U8, (int64_t)strlen(state->log), state->log);
    for (cmkd_param_slot slot = CMKD_SLOT_VALUE; slot <= CMKD_SLOT_MOMENTUM; slot++)
      for (int i = 0; i < graph->params; i++) {
        const cmkd_params *params = slot == CMKD_SLOT_VALUE ? &state->value : &state->momentum;
        const cmkd_param *p = &graph->param[i];
        if (!has_slot(p, slot)) continue;
        snprintf(names[count], sizeof *names, "%s/%s", slot_names[slot], p->name);
        cmkd_tensor *t = &tensors[count];
        set_tensor(t, names[count], CMKD_F32, p->count, params->value[i]);
        t->dims = p->dims;
        for (int d = 0; d < p->dims; d++)
          t->shape[d] = p->shape[d];
        count++;
      }
    const char *keys[] = {"format", "settings", "device"}, *values[] = {STATE_FORMAT, text, state->device};
    status = cmkd_weights_write(path, tensors, count, keys, values, state->device ? 3 : 2, err);
  }
  free(text);
  free(names);
  free(tensors);
  return status;
}

cmkd_status cmkd_state_settings(const cmkd_weights *file, json_t **out, cmkd_error *err) {
  const char *format = cmkd_weights_meta(file, "format"), *text = cmkd_weights_meta(file, "settings");
  if (!format || strcmp(format, STATE_FORMAT) || !text)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: not the state of a run of this version (%s)", file->path, STATE_FORMAT);
  *out = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
  if (!json_is_object(*out)) {
    if (*out) json_decref(*out);
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: its settings are damaged", file->path);
  }
  return CMKD_OK;
}

static cmkd_status find(const cmkd_weights *file, const char *name, cmkd_dtype dtype, int64_t count,
                        const cmkd_tensor **out, cmkd_error *err) {
  *out = cmkd_weights_find(file, name);
  if (*out && (*out)->dtype == dtype && (*out)->count == count) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %s %s: the state is damaged; delete the run's folder to start afresh",
                   file->path, name, *out ? "has another shape" : "is missing");
}

static cmkd_status load_params(const cmkd_graph *graph, const cmkd_weights *file, cmkd_param_slot slot,
                               cmkd_params *params, cmkd_error *err) {
  for (int i = 0; i < graph->params; i++) {
    const cmkd_param *p = &graph->param[i];
    const cmkd_tensor *t;
    char name[MAX_NAME];
    if (!has_slot(p, slot)) continue;
    snprintf(name, sizeof name, "%s/%s", slot_names[slot], p->name);
    CMKD_TRY(find(file, name, CMKD_F32, p->count, &t, err));
    memcpy(params->value[i], t->data, (size_t)p->count * sizeof(float));
    if (!all_finite(params->value[i], p->count))
      return cmkd_fail(err, CMKD_ERR_VALUE, "%s: %s holds NaN or Inf; delete the run's folder to start afresh",
                       file->path, name);
  }
  return CMKD_OK;
}

cmkd_status cmkd_state_load(const cmkd_graph *graph, const cmkd_weights *file, cmkd_state *state, cmkd_error *err) {
  const cmkd_tensor *counters, *numbers, *log = cmkd_weights_find(file, "log");
  CMKD_TRY(find(file, "counters", CMKD_I64, COUNTERS, &counters, err));
  CMKD_TRY(find(file, "numbers", CMKD_F64, NUMBERS, &numbers, err));
  int64_t counter[COUNTERS];
  double number[NUMBERS];
  memcpy(counter, counters->data, sizeof counter);
  memcpy(number, numbers->data, sizeof number);
  for (int i = 0; i < COUNTERS; i++)
    if (counter[i] < 0)
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: a counter is negative: the state is damaged", file->path);
  transfer_numbers(state, counter, number, 0);
  if (log) {
    CMKD_TRY(find(file, "log", CMKD_U8, log->count, &log, err));
    char *text = malloc((size_t)log->count + 1);
    if (!text) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for its log", file->path);
    memcpy(text, log->data, (size_t)log->count);
    text[log->count] = 0;
    free(state->log);
    state->log = text;
  }
  const char *device = cmkd_weights_meta(file, "device");
  free(state->device);
  state->device = device ? strdup(device) : NULL;
  if (device && !state->device) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", file->path);
  CMKD_TRY(load_params(graph, file, CMKD_SLOT_VALUE, &state->value, err));
  return load_params(graph, file, CMKD_SLOT_MOMENTUM, &state->momentum, err);
}
