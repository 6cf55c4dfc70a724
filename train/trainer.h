/* The loop for one student: what `cmkd-train` does. Chooses how many steps to take at a time, asks between them whether
 * to stop, and tells a caller how far it is. Prints nothing. Reads the inside of a student (student.h: the time of its
 * last steps, how many it reads ahead); other programs do with cmkd_student_get_progress and a number of steps. */
#ifndef CMKD_TRAIN_TRAINER_H
#define CMKD_TRAIN_TRAINER_H
#include "cmkd/train.h"

typedef struct cmkd_trainer { /* any function may be NULL */
  void *self;
  int (*stop)(void *self); /* asked between blocks and while testing: non-zero saves and ends */
  void (*epoch_begins)(void *self, const cmkd_student_progress *progress);
  void (*steps_done)(void *self, const cmkd_student_progress *progress);
  void (*epoch_ends)(void *self, const cmkd_epoch_report *report);
  int64_t max_steps; /* of this call; 0: all */
} cmkd_trainer;

/* Trains to the last epoch. CMKD_ERR_INTERRUPTED: stopped by `stop`, the state is saved; an end by max_steps is CMKD_OK
 * with epochs left. Every other failure names its cause; the state file is the last good one. */
cmkd_status cmkd_train(cmkd_student *student, const cmkd_trainer *trainer, cmkd_error *err);
#endif
