/* The loop for one student. See trainer.h. The size of a block follows the speed of the machine and never touches the
 * numbers. */
#include "train/trainer.h"
#include "train/student.h"

#define BLOCK_SECONDS 0.15 /* what one block should last: progress stays alive, Ctrl-C is quick */

typedef struct loop {
  cmkd_student *student;
  const cmkd_trainer *trainer;
  int wanted;        /* steps of the next block */
  int64_t steps_run; /* by this call */
} loop;

/* Adapts `wanted` to what the last block took. */
static void pace(loop *l) {
  const cmkd_student *s = l->student;
  if (!s->block_steps) return;
  const double second = s->block_seconds / s->block_steps; /* of a step */
  while (l->wanted < s->current->capacity && 2 * l->wanted * second < BLOCK_SECONDS)
    l->wanted *= 2;
  while (l->wanted > 1 && l->wanted * second > 2 * BLOCK_SECONDS)
    l->wanted /= 2;
}

static int is_full(const loop *l) { return l->trainer->max_steps && l->steps_run >= l->trainer->max_steps; }

/* Tells `report` (may be NULL) how far the student is. */
static void tell(const loop *l, void (*report)(void *self, const cmkd_student_progress *progress)) {
  cmkd_student_progress progress;
  if (!report) return;
  cmkd_student_get_progress(l->student, &progress);
  report(l->trainer->self, &progress);
}

/* The steps of an epoch, or as many as max_steps leaves. */
static cmkd_status train_epoch(loop *l, cmkd_error *err) {
  const cmkd_trainer *t = l->trainer;
  cmkd_student *s = l->student;
  int more = 1;
  tell(l, t->epoch_begins);
  CMKD_TRY(cmkd_student_begin(s, err));
  while (more) {
    int most = l->wanted;
    if (t->max_steps && most > t->max_steps - l->steps_run) most = (int)(t->max_steps - l->steps_run);
    CMKD_TRY(cmkd_student_step(s, most, &more, err));
    l->steps_run += s->block_steps;
    pace(l);
    if (s->block_steps) tell(l, t->steps_done);
    int stop = s->block_steps && t->stop && t->stop(t->self);
    if (stop || (is_full(l) && s->block_steps)) CMKD_TRY(cmkd_student_save(s, err));
    if (stop) return cmkd_student_interrupted(s, err);
    if (is_full(l)) break;
  }
  return CMKD_OK;
}

cmkd_status cmkd_train(cmkd_student *s, const cmkd_trainer *t, cmkd_error *err) {
  loop l = {.student = s, .trainer = t, .wanted = 1};
  const cmkd_watch watch = {.self = t->self, .stop = t->stop};
  while (s->state.epoch < s->settings.epochs && !is_full(&l)) {
    cmkd_epoch_report report;
    CMKD_TRY(train_epoch(&l, err));
    if (s->state.step < s->settings.schedule.steps_per_epoch) return CMKD_OK; /* max_steps */
    CMKD_TRY(cmkd_student_end(s, &watch, &report, err));
    if (t->epoch_ends) t->epoch_ends(t->self, &report);
  }
  return CMKD_OK;
}
