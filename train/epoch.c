/* The epochs of a student: begin, steps, end. See student.h. Everything is written down so that a run may be cut
 * anywhere; what was not saved is computed again to the same bits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/clock.h"
#include "train/record.h"
#include "train/student.h"

static int64_t steps_per_epoch(const cmkd_student *s) { return s->settings.schedule.steps_per_epoch; }

/* Start of begin, step and end: starts the clock, refuses a student that failed. */
static cmkd_status enter(cmkd_student *s, cmkd_error *err) {
  s->counted_from = cmkd_seconds();
  if (!s->failed) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE, "%s: this student failed before; close it", s->folder.path);
}

/* End of begin, step and end: adds the time, remembers a failure. */
static cmkd_status leave(cmkd_student *s, cmkd_status status) {
  s->state.elapsed += cmkd_seconds() - s->counted_from;
  if (status != CMKD_OK && status != CMKD_ERR_INTERRUPTED) s->failed = 1;
  return status;
}

/* ---- begin ---- */

/* Weights onto the device, and the first files: a full disk shows now, not after an epoch. */
static cmkd_status start_student(cmkd_student *s, cmkd_error *err) {
  const cmkd_backend_table *table = s->session->table;
  const cmkd_state *state = &s->state;
  CMKD_TRY(cmkd_block_create(&s->source, &s->current, err));
  CMKD_TRY(cmkd_block_create(&s->source, &s->ahead, err));
  CMKD_TRY(table->upload(s->model, CMKD_SLOT_VALUE, (const float *const *)state->value.value, err));
  CMKD_TRY(table->upload(s->model, CMKD_SLOT_MOMENTUM, (const float *const *)state->momentum.value, err));
  if (s->options.log_steps) CMKD_TRY(cmkd_steps_open(s->folder.steps, state->total_steps, &s->step_log, err));
  CMKD_TRY(cmkd_student_write_state(s, err));
  CMKD_TRY(cmkd_folder_config(&s->folder, s->settings_json, s->environment, err));
  s->started = 1;
  return CMKD_OK;
}

static cmkd_status begin_epoch(cmkd_student *s, cmkd_error *err) {
  const cmkd_state *state = &s->state;
  const uint32_t n = s->source.n;
  if (!s->started) CMKD_TRY(start_student(s, err));
  int64_t place = state->step * s->settings.batch;
  CMKD_TRY(cmkd_source_epoch(&s->source, (uint32_t)state->epoch, place < n ? (uint32_t)place : n, err));
  s->current->steps = s->current->done = s->ahead->steps = s->ahead->done = 0;
  s->in_epoch = 1;
  return CMKD_OK;
}

cmkd_status cmkd_student_begin(cmkd_student *s, cmkd_error *err) {
  CMKD_TRY(enter(s, err));
  if (s->state.epoch >= s->settings.epochs)
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: all %d epochs are done", s->folder.path, s->settings.epochs);
  return leave(s, begin_epoch(s, err));
}

/* ---- step ---- */

/* How many of `most` steps a block may have that begins with step `first` of the epoch: it ends where the epoch ends
 * or the state is to be saved. */
static int block_limit(const cmkd_student *s, int64_t first, int most) {
  const int64_t every = s->options.save_every, total = s->state.total_steps + first - s->state.step;
  int64_t limit = steps_per_epoch(s) - first;
  if (limit > most) limit = most;
  if (every && limit > every - total % every) limit = every - total % every;
  return limit < 0 ? 0 : (int)limit;
}

/* A step with a bad row changed nothing: the state before it is good, and kept. */
static cmkd_status fail_on_bad_row(cmkd_student *s, const cmkd_step *step, int64_t row, cmkd_error *err) {
  cmkd_error ignored;
  int saved = cmkd_student_download(s, &ignored) == CMKD_OK && cmkd_student_write_state(s, &ignored) == CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "epoch %lld, step %lld: the logits of sample %u (row %lld of its batch) are NaN or Inf%s; a lower "
                   "--lr or --warmup may help; %s is the last good state",
                   (long long)s->state.epoch + 1, (long long)s->state.step + 1, step->rows[row], (long long)row,
                   s->settings.session.views ? ", the student's or the teacher's" : "",
                   saved ? "the step before it is saved," : s->folder.state);
}

/* Adds a step that ran to the state. */
static cmkd_status add_step(cmkd_student *s, const cmkd_step *step, const cmkd_step_result *r, cmkd_error *err) {
  cmkd_state *state = &s->state;
  if (r->loss.bad_row >= 0 && r->loss.bad_row < step->count) return fail_on_bad_row(s, step, r->loss.bad_row, err);
  if (!isfinite(r->loss.loss))
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "epoch %lld, step %lld: the loss of the batch that begins with sample %u is not finite; a lower "
                     "--lr or --warmup may help (%s is the last good state)",
                     (long long)state->epoch + 1, (long long)state->step + 1, step->rows[0], s->folder.state);
  cmkd_epoch_sums_add(&state->sums, r, cmkd_loss_parts(s->settings.loss));
  state->step++;
  state->total_steps++;
  if (!s->step_log) return CMKD_OK;
  const cmkd_step_line line = {
      .step = state->total_steps, .epoch = state->epoch + 1, .lr = step->lr, .loss = r->loss.loss};
  return cmkd_steps_add(s->step_log, s->folder.steps, &line, err);
}

/* Reads back `count` steps that ran with status `ran`, and adds them to the state. */
static cmkd_status read_results(cmkd_student *s, const cmkd_step *steps, int count, cmkd_status ran, cmkd_error *err) {
  const cmkd_backend_table *table = s->session->table;
  cmkd_step_result result[CMKD_BLOCK_STEPS];
  cmkd_error read_error = {CMKD_OK, ""};
  int k = CMKD_BLOCK_STEPS;
  if (ran != CMKD_OK && ran != CMKD_ERR_VALUE) return ran;
  cmkd_status got = table->read(s->model, result, &k, &read_error);
  if (got != CMKD_OK && got != CMKD_ERR_VALUE) return cmkd_fail(err, got, "%s", read_error.message);
  for (int i = 0; i < k && i < count; i++)
    CMKD_TRY(add_step(s, &steps[i], &result[i], err));
  if (ran != CMKD_OK) return ran; /* its message stands */
  if (got != CMKD_OK) return cmkd_fail(err, got, "%s", read_error.message);
  if (k != count) return cmkd_fail(err, CMKD_ERR_DEVICE, "%s gave back %d of %d steps", table->name, k, count);
  return CMKD_OK;
}

static void swap_blocks(cmkd_student *s) {
  cmkd_step_block *block = s->current;
  s->current = s->ahead;
  s->ahead = block;
}

static cmkd_status run_steps(cmkd_student *s, int most, cmkd_error *err) {
  const cmkd_session *session = s->session;
  cmkd_state *state = &s->state;
  if (most < 1 || most > s->current->capacity) most = s->current->capacity;
  if (s->current->done == s->current->steps)
    CMKD_TRY(cmkd_block_fill(s->current, &s->source, state->step, block_limit(s, state->step, most), err));
  const cmkd_step *steps = s->current->step + s->current->done;
  const int left = s->current->steps - s->current->done, count = left < most ? left : most;
  if (!count) return CMKD_OK;
  double started_at = cmkd_seconds();
  cmkd_error fill_error = {CMKD_OK, ""};
  cmkd_status filled = CMKD_OK;
  cmkd_status ran = session->table->run(s->model, CMKD_LIST_TRAIN, session->train_images, steps, count, NULL, err);
  s->current->done += count;
  if (ran == CMKD_OK && count == left) { /* the device may still be at it: read ahead meanwhile */
    int64_t first = state->step + count;
    filled = cmkd_block_fill(s->ahead, &s->source, first, block_limit(s, first, most), &fill_error);
  }
  CMKD_TRY(read_results(s, steps, count, ran, err));
  if (count == left) swap_blocks(s);
  s->block_seconds = cmkd_seconds() - started_at;
  s->block_steps = count;
  state->sums.seconds += s->block_seconds;
  if (filled != CMKD_OK || (s->options.save_every && state->total_steps % s->options.save_every == 0)) {
    CMKD_TRY(cmkd_student_download(s, err));
    CMKD_TRY(cmkd_student_write_state(s, err));
  }
  return filled == CMKD_OK ? CMKD_OK : cmkd_fail(err, filled, "%s", fill_error.message);
}

cmkd_status cmkd_student_step(cmkd_student *s, int most, int *more, cmkd_error *err) {
  *more = 0;
  CMKD_TRY(enter(s, err));
  if (!s->in_epoch) return cmkd_fail(err, CMKD_ERR_VALUE, "%s: steps come after the begin of an epoch", s->folder.path);
  s->block_steps = 0;
  cmkd_status status = leave(s, run_steps(s, most, err));
  *more = status == CMKD_OK && s->state.step < steps_per_epoch(s);
  return status;
}

/* ---- end ---- */

/* Fills the test side of the score. */
static cmkd_status test_student(cmkd_student *s, const cmkd_watch *watch, cmkd_score *score, cmkd_error *err) {
  const cmkd_session *session = s->session;
  const cmkd_evaluation on_test = {.params = &s->state.value,
                                   .images = session->test_images,
                                   .labels = session->test->labels,
                                   .count = session->test->n,
                                   .teacher = session->teacher_test_logits};
  const cmkd_evaluation on_val = {.params = &s->state.value,
                                  .images = session->train_images,
                                  .labels = session->train->labels,
                                  .rows = s->source.val_rows,
                                  .count = s->source.held};
  cmkd_accuracy a;
  CMKD_TRY(cmkd_evaluate(&s->evaluator, &on_test, watch, &a, err));
  score->top1 = 100.0 * (double)a.top1 / (double)a.rows;
  score->top5 = 100.0 * (double)a.top5 / (double)a.rows;
  score->test_loss = a.loss / (double)a.rows;
  if (a.agreement.rows) {
    score->test_pearson = a.agreement.pearson / (double)a.agreement.rows;
    score->test_spearman = a.agreement.spearman / (double)a.agreement.rows;
  }
  if (!s->source.held) return CMKD_OK;
  CMKD_TRY(cmkd_evaluate(&s->evaluator, &on_val, watch, &a, err));
  score->val_top1 = 100.0 * (double)a.top1 / (double)a.rows;
  return CMKD_OK;
}

static int is_better(const cmkd_student *s, const cmkd_score *score) {
  const cmkd_score *best = &s->state.best;
  if (!best->epoch) return 1;
  return s->source.held ? score->val_top1 > best->val_top1 : score->top1 > best->top1;
}

static cmkd_status write_log(cmkd_student *s, const cmkd_epoch_report *report, cmkd_error *err) {
  char *line = cmkd_epoch_line(&s->settings, &s->state.sums, report);
  if (!line) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the log");
  cmkd_status status = cmkd_state_log(&s->state, line, err);
  free(line);
  return status;
}

/* Weights and log, and last of all the state: whoever is killed in between does the same again. */
static cmkd_status write_epoch(cmkd_student *s, const cmkd_epoch_report *report, int tested, cmkd_error *err) {
  cmkd_state *state = &s->state;
  const cmkd_score *score = &report->score;
  CMKD_TRY(write_log(s, report, err));
  state->last = *score;
  if (tested && is_better(s, score)) {
    state->best = *score;
    CMKD_TRY(cmkd_student_write_weights(s, score, s->folder.best, err));
  }
  CMKD_TRY(cmkd_student_write_weights(s, score, s->folder.last, err));
  cmkd_piece log = {state->log, strlen(state->log)};
  CMKD_TRY(cmkd_file_write(s->folder.log, &log, 1, err));
  memset(&state->sums, 0, sizeof state->sums);
  state->epoch++;
  state->step = 0;
  s->in_epoch = 0;
  return cmkd_student_write_state(s, err);
}

static cmkd_status end_epoch(cmkd_student *s, const cmkd_watch *watch, cmkd_epoch_report *report, cmkd_error *err) {
  cmkd_state *state = &s->state;
  const cmkd_settings *set = &s->settings;
  const double started_at = cmkd_seconds();
  *report = (cmkd_epoch_report){.score = {.epoch = state->epoch + 1,
                                          .top1 = NAN,
                                          .top5 = NAN,
                                          .test_loss = NAN,
                                          .test_pearson = NAN,
                                          .test_spearman = NAN,
                                          .val_top1 = NAN}};
  cmkd_score *score = &report->score;
  const int tested = score->epoch % set->eval_every == 0 || score->epoch == set->epochs;
  CMKD_TRY(cmkd_student_download(s, err));
  cmkd_score_from_sums(&state->sums, score);
  if (tested) {
    cmkd_status status = test_student(s, watch, score, err);
    if (status == CMKD_ERR_INTERRUPTED) {
      CMKD_TRY(cmkd_student_write_state(s, err));
      return cmkd_student_interrupted(s, err);
    }
    if (status != CMKD_OK) return status;
  }
  report->lr = cmkd_schedule_rate(&set->schedule, (int)state->epoch, 0);
  report->seconds = state->sums.seconds + cmkd_seconds() - started_at;
  report->images_per_s = (double)state->sums.images / state->sums.seconds;
  report->view = s->source.view;
  return write_epoch(s, report, tested, err);
}

cmkd_status cmkd_student_end(cmkd_student *s, const cmkd_watch *watch, cmkd_epoch_report *report, cmkd_error *err) {
  cmkd_epoch_report own;
  CMKD_TRY(enter(s, err));
  if (!s->in_epoch || s->state.step < steps_per_epoch(s))
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: an epoch ends after its %lld steps, not after %lld", s->folder.path,
                     (long long)steps_per_epoch(s), (long long)s->state.step);
  return leave(s, end_epoch(s, watch, report ? report : &own, err));
}
