/* The epochs of a run. See trainer.h. Steps go to the backend in blocks; while a device works on one block the host
 * prepares the next. The size of a block follows the speed of the machine and never touches the numbers. */
#include "train/trainer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/clock.h"
#include "train/record.h"

enum { MAX_STEPS = 64, BLOCK_BYTES = 16 << 20 };
#define BLOCK_SECONDS 0.15 /* what one block should last: progress stays alive, Ctrl-C is quick */

typedef struct cmkd_step_block {
  int steps;
  cmkd_step step[MAX_STEPS];
  uint32_t *rows;  /* (room * batch) */
  uint64_t *seeds; /* (room * batch) */
  float *teacher;  /* (room * batch, classes) or NULL */
  uint32_t *index; /* (room * batch) of rows that are resident */
} cmkd_step_block;

static int64_t steps_per_epoch(const cmkd_trainer *t) { return t->settings->schedule.steps_per_epoch; }

static void block_free(cmkd_step_block *b) {
  if (!b) return;
  free(b->rows);
  free(b->seeds);
  free(b->teacher);
  free(b->index);
  free(b);
}

static int block_capacity(const cmkd_settings *s) {
  int64_t fits = BLOCK_BYTES / ((int64_t)s->batch * (s->views ? s->classes : 3) * (int64_t)sizeof(float));
  return fits < 1 ? 1 : fits > MAX_STEPS ? MAX_STEPS : (int)fits;
}

static cmkd_status block_create(const cmkd_settings *s, int resident, cmkd_step_block **out, cmkd_error *err) {
  cmkd_step_block *b = *out = calloc(1, sizeof *b);
  size_t rows = (size_t)block_capacity(s) * (size_t)s->batch;
  if (b) {
    b->rows = malloc(rows * sizeof *b->rows);
    b->seeds = malloc(rows * sizeof *b->seeds);
    b->index = malloc(rows * sizeof *b->index);
    b->teacher = s->views && !resident ? malloc(rows * (size_t)s->classes * sizeof *b->teacher) : NULL;
  }
  if (!b || !b->rows || !b->seeds || !b->index || (s->views && !resident && !b->teacher))
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for batches of %d", s->batch);
  return CMKD_OK;
}

/* Fills a block with up to `most` steps from the place that the source stands at; `first` is the step of the epoch it
 * begins with. */
static cmkd_status block_fill(cmkd_trainer *t, cmkd_step_block *b, int64_t first, int most, cmkd_error *err) {
  const cmkd_settings *s = t->settings;
  size_t rows = 0;
  b->steps = 0;
  for (int i = 0; i < most; i++) {
    uint32_t left = t->source->n - t->source->at, count = left < (uint32_t)s->batch ? left : (uint32_t)s->batch;
    float *teacher = b->teacher ? b->teacher + rows * (size_t)s->classes : NULL;
    CMKD_TRY(cmkd_source_next(t->source, count, b->rows + rows, b->seeds + rows, teacher, b->index + rows, err));
    b->step[i] = (cmkd_step){.count = (int)count,
                             .rows = b->rows + rows,
                             .seeds = b->seeds + rows,
                             .target[CMKD_TARGET_TEACHER] = {teacher, t->source->resident, b->index + rows},
                             .lr = cmkd_schedule_rate(&s->schedule, (int)t->state->epoch, (int)(first + i)),
                             .epoch = (double)(t->state->epoch + 1)};
    rows += count;
    b->steps++;
  }
  return CMKD_OK;
}

/* How many steps the block that begins with step `first` may have: it ends where the epoch, --save-every or --max-steps
 * ask for an end. */
static int block_limit(const cmkd_trainer *t, int64_t first, int wanted) {
  int64_t most = steps_per_epoch(t) - first, ahead = first - t->state->step, total = t->state->total_steps + ahead;
  if (most > wanted) most = wanted;
  if (t->save_every && most > t->save_every - total % t->save_every) most = t->save_every - total % t->save_every;
  if (t->max_steps && most > t->max_steps - t->steps_run - ahead) most = t->max_steps - t->steps_run - ahead;
  return most < 0 ? 0 : (int)most;
}

static cmkd_status download(cmkd_trainer *t, cmkd_error *err) {
  CMKD_TRY(t->table->download(t->model, CMKD_SLOT_VALUE, t->state->value.value, err));
  CMKD_TRY(t->table->download(t->model, CMKD_SLOT_MOMENTUM, t->state->momentum.value, err));
  if (t->table->save) {
    free(t->state->device);
    t->state->device = NULL;
    CMKD_TRY(t->table->save(t->model, &t->state->device, err));
  }
  if (cmkd_state_finite(t->graph, t->state)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "epoch %lld, step %lld: weights are no longer finite; a lower --lr or --warmup may help (%s is the "
                   "last good state)",
                   (long long)t->state->epoch + 1, (long long)t->state->step, t->folder->state);
}

static cmkd_status write_state(cmkd_trainer *t, cmkd_error *err) {
  t->state->elapsed = t->before + cmkd_seconds() - t->started;
  if (t->steps && fflush(t->steps) != 0)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be written; is the disk full?", t->folder->steps);
  return cmkd_state_save(t->graph, t->state, t->settings_json, t->folder->state, err);
}

static cmkd_status save(cmkd_trainer *t, cmkd_error *err) {
  CMKD_TRY(download(t, err));
  return write_state(t, err);
}

/* A step with a bad row changed nothing: the state before it is good, and kept. */
static cmkd_status stop_on_bad_row(cmkd_trainer *t, const cmkd_step *step, int64_t row, cmkd_error *err) {
  cmkd_error ignored;
  int saved = save(t, &ignored) == CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "epoch %lld, step %lld: the logits of sample %u (row %lld of its batch) are NaN or Inf%s; a lower "
                   "--lr or --warmup may help; %s is the last good state",
                   (long long)t->state->epoch + 1, (long long)t->state->step + 1, step->rows[row], (long long)row,
                   t->settings->views ? ", the student's or the teacher's" : "",
                   saved ? "the step before it is saved," : t->folder->state);
}

/* Reads back a block that ran and adds its steps to the state. */
static cmkd_status block_settle(cmkd_trainer *t, const cmkd_step_block *b, cmkd_status ran, cmkd_error *err) {
  cmkd_step_result result[MAX_STEPS];
  cmkd_error read_error = {CMKD_OK, ""};
  cmkd_state *state = t->state;
  int k = MAX_STEPS;
  if (ran != CMKD_OK && ran != CMKD_ERR_VALUE) return ran;
  cmkd_status got = t->table->read(t->model, result, &k, &read_error);
  if (got != CMKD_OK && got != CMKD_ERR_VALUE) return cmkd_fail(err, got, "%s", read_error.message);
  for (int i = 0; i < k && i < b->steps; i++) {
    const cmkd_step_result *r = &result[i];
    if (r->loss.bad_row >= 0 && r->loss.bad_row < b->step[i].count)
      return stop_on_bad_row(t, &b->step[i], r->loss.bad_row, err);
    if (!isfinite(r->loss.loss))
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "epoch %lld, step %lld: the loss of the batch that begins with sample %u is not finite; a lower "
                       "--lr or --warmup may help (%s is the last good state)",
                       (long long)state->epoch + 1, (long long)state->step + 1, b->step[i].rows[0], t->folder->state);
    cmkd_epoch_sums_add(&state->sums, r, cmkd_loss_parts(t->settings->loss));
    state->step++;
    state->total_steps++;
    t->steps_run++;
    if (t->steps)
      CMKD_TRY(cmkd_steps_add(t->steps, t->folder->steps, state->total_steps, state->epoch + 1, b->step[i].lr,
                              r->loss.loss, err));
  }
  if (ran != CMKD_OK) return ran; /* its message stands */
  if (got != CMKD_OK) return cmkd_fail(err, got, "%s", read_error.message);
  if (k != b->steps) return cmkd_fail(err, CMKD_ERR_DEVICE, "%s gave back %d of %d steps", t->table->name, k, b->steps);
  return CMKD_OK;
}

static cmkd_status interrupted(cmkd_trainer *t, cmkd_error *err) {
  return cmkd_fail(
      err, CMKD_ERR_INTERRUPTED, "stopped in epoch %lld of %d after %lld of its %lld steps; the state is saved",
      (long long)t->state->epoch + 1, t->settings->epochs, (long long)t->state->step, (long long)steps_per_epoch(t));
}

/* The steps of the epoch under way, from state->step on. *stopped: --max-steps were run. */
static cmkd_status train_epoch(cmkd_trainer *t, int *wanted, int *stopped, cmkd_error *err) {
  cmkd_state *state = t->state;
  int64_t place = state->step * t->settings->batch;
  cmkd_step_block *now = t->block[0], *next = t->block[1];
  int capacity = block_capacity(t->settings);
  CMKD_TRY(
      cmkd_source_epoch(t->source, (uint32_t)state->epoch, place < t->source->n ? (uint32_t)place : t->source->n, err));
  CMKD_TRY(block_fill(t, now, state->step, block_limit(t, state->step, *wanted), err));
  while (now->steps) {
    cmkd_error fill_error = {CMKD_OK, ""};
    double begin = cmkd_seconds();
    int64_t first = state->step + now->steps;
    cmkd_status ran = t->table->run(t->model, CMKD_LIST_TRAIN, t->train_images, now->step, now->steps, NULL, err),
                filled = CMKD_OK;
    next->steps = 0;
    if (ran == CMKD_OK) filled = block_fill(t, next, first, block_limit(t, first, *wanted), &fill_error);
    CMKD_TRY(block_settle(t, now, ran, err));
    double seconds = cmkd_seconds() - begin;
    state->sums.seconds += seconds;
    while (*wanted < capacity && 2 * *wanted * seconds < BLOCK_SECONDS * now->steps)
      *wanted *= 2;
    while (*wanted > 1 && *wanted * seconds > 2 * BLOCK_SECONDS * now->steps)
      *wanted /= 2;
    if (t->watch.steps_done)
      t->watch.steps_done(t->watch.self, state->epoch * (int64_t)t->source->n + state->sums.images,
                          state->sums.loss / (double)state->sums.images);
    int stop = t->watch.stop && t->watch.stop(), full = t->max_steps && t->steps_run >= t->max_steps;
    int due = t->save_every && state->total_steps % t->save_every == 0;
    if (stop || full || due || filled != CMKD_OK) CMKD_TRY(save(t, err));
    if (filled != CMKD_OK) return cmkd_fail(err, filled, "%s", fill_error.message);
    if (stop) return interrupted(t, err);
    if (full) {
      *stopped = 1;
      return CMKD_OK;
    }
    cmkd_step_block *swap = now;
    now = next;
    next = swap;
  }
  return CMKD_OK;
}

/* Fills the test side of the score; CMKD_ERR_INTERRUPTED when asked to stop meanwhile. */
static cmkd_status test_epoch(cmkd_trainer *t, cmkd_score *score, cmkd_error *err) {
  cmkd_accuracy a;
  const cmkd_dataset *test = t->test;
  CMKD_TRY(cmkd_evaluate(t->evaluator, &t->state->value, t->test_images, test->labels, NULL, test->n, t->test_teacher,
                         t->watch.stop, &a, err));
  score->top1 = 100.0 * (double)a.top1 / (double)a.rows;
  score->top5 = 100.0 * (double)a.top5 / (double)a.rows;
  score->test_loss = a.loss;
  if (a.agreement.rows) {
    score->test_pearson = a.agreement.pearson / (double)a.agreement.rows;
    score->test_spearman = a.agreement.spearman / (double)a.agreement.rows;
  }
  if (!t->source->held) return CMKD_OK;
  CMKD_TRY(cmkd_evaluate(t->evaluator, &t->state->value, t->train_images, t->train->labels, t->source->val_rows,
                         t->source->held, NULL, t->watch.stop, &a, err));
  score->val_top1 = 100.0 * (double)a.top1 / (double)a.rows;
  return CMKD_OK;
}

static double selection_score(const cmkd_trainer *t, const cmkd_score *score) {
  return t->source->held ? score->val_top1 : score->top1;
}

/* Tests, then writes weights, log and, last of all, the state: whoever is killed in between does the same again. */
static cmkd_status finish_epoch(cmkd_trainer *t, cmkd_error *err) {
  cmkd_state *state = t->state;
  const cmkd_settings *s = t->settings;
  cmkd_score score = {.epoch = state->epoch + 1,
                      .top1 = NAN,
                      .top5 = NAN,
                      .test_loss = NAN,
                      .test_pearson = NAN,
                      .test_spearman = NAN,
                      .val_top1 = NAN};
  double begin = cmkd_seconds();
  int tested = score.epoch % s->eval_every == 0 || score.epoch == s->epochs;
  CMKD_TRY(download(t, err));
  cmkd_score_from_sums(&state->sums, &score);
  if (tested) {
    cmkd_status status = test_epoch(t, &score, err);
    if (status == CMKD_ERR_INTERRUPTED) {
      CMKD_TRY(write_state(t, err));
      return interrupted(t, err);
    }
    if (status != CMKD_OK) return status;
  }
  cmkd_epoch_figures figures = {.lr = cmkd_schedule_rate(&s->schedule, (int)state->epoch, 0),
                                .seconds = state->sums.seconds + cmkd_seconds() - begin,
                                .images_per_s = (double)state->sums.images / state->sums.seconds,
                                .view = t->source->view};
  char *line = cmkd_epoch_line(s, &score, &state->sums, &figures);
  if (!line) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the log");
  cmkd_status status = cmkd_state_log(state, line, err);
  free(line);
  CMKD_TRY(status);
  state->last = score;
  if (tested && (!state->best.epoch || selection_score(t, &score) > selection_score(t, &state->best))) {
    state->best = score;
    CMKD_TRY(cmkd_weights_record(t, &score, t->folder->best, err));
  }
  CMKD_TRY(cmkd_weights_record(t, &score, t->folder->last, err));
  cmkd_piece log = {state->log, strlen(state->log)};
  CMKD_TRY(cmkd_file_write(t->folder->log, &log, 1, err));
  memset(&state->sums, 0, sizeof state->sums);
  state->epoch++;
  state->step = 0;
  CMKD_TRY(write_state(t, err));
  if (t->watch.epoch_ends)
    t->watch.epoch_ends(t->watch.self, &score, figures.lr, figures.images_per_s, figures.seconds);
  return CMKD_OK;
}

static cmkd_status train(cmkd_trainer *t, cmkd_error *err) {
  int wanted = 1, stopped = 0;
  for (int i = 0; i < 2; i++)
    CMKD_TRY(block_create(t->settings, t->source->resident != NULL, &t->block[i], err));
  CMKD_TRY(t->table->upload(t->model, CMKD_SLOT_VALUE, (const float *const *)t->state->value.value, err));
  CMKD_TRY(t->table->upload(t->model, CMKD_SLOT_MOMENTUM, (const float *const *)t->state->momentum.value, err));
  if (t->log_steps) CMKD_TRY(cmkd_steps_open(t->folder->steps, t->state->total_steps, &t->steps, err));
  CMKD_TRY(write_state(t, err)); /* a full disk shows now, not after an epoch */
  CMKD_TRY(cmkd_folder_config(t->folder, t->settings_json, t->environment, err));
  while (t->state->epoch < t->settings->epochs) {
    if (t->watch.epoch_begins)
      t->watch.epoch_begins(t->watch.self, t->state->epoch + 1,
                            t->state->epoch * (int64_t)t->source->n + t->state->sums.images);
    CMKD_TRY(train_epoch(t, &wanted, &stopped, err));
    if (stopped && t->state->step < steps_per_epoch(t)) return CMKD_OK;
    CMKD_TRY(finish_epoch(t, err));
    if (stopped) return CMKD_OK;
  }
  return CMKD_OK;
}

cmkd_status cmkd_train(cmkd_trainer *t, cmkd_error *err) {
  t->steps_run = 0;
  t->started = cmkd_seconds();
  t->before = t->state->elapsed;
  cmkd_status status = train(t, err);
  if (t->steps && fclose(t->steps) != 0 && status == CMKD_OK)
    status = cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be written; is the disk full?", t->folder->steps);
  t->steps = NULL;
  for (int i = 0; i < 2; i++) {
    block_free(t->block[i]);
    t->block[i] = NULL;
  }
  return status;
}
