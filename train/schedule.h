/* The learning rate as a pure function of the step: step, cosine and constant schedules with a linear warm-up.
 * Holds no state, so a resumed run asks for the same number. */
#ifndef CMKD_TRAIN_SCHEDULE_H
#define CMKD_TRAIN_SCHEDULE_H
#include <stdint.h>
#include "cmkd/status.h"

typedef enum cmkd_schedule_kind { CMKD_SCHEDULE_STEP, CMKD_SCHEDULE_COSINE, CMKD_SCHEDULE_CONSTANT } cmkd_schedule_kind;
#define CMKD_MAX_MILESTONES 16
#define CMKD_MILESTONE_FACTOR 0.1 /* of the rate, at each milestone */

typedef struct cmkd_schedule {
  cmkd_schedule_kind kind;
  double lr;
  double warmup; /* epochs of linear warm-up, 0: none */
  int epochs, steps_per_epoch;
  int milestones, milestone[CMKD_MAX_MILESTONES]; /* the rate falls after this many epochs */
} cmkd_schedule;

const char *cmkd_schedule_name(cmkd_schedule_kind kind);
cmkd_status cmkd_schedule_parse(const char *name, cmkd_schedule_kind *out, cmkd_error *err);
/* "150,180,210" into schedule->milestone; NULL gives the published fractions 150/240, 180/240, 210/240 of
 * schedule->epochs. */
cmkd_status cmkd_schedule_milestones(cmkd_schedule *schedule, const char *text, cmkd_error *err);
/* epoch and step (within the epoch) count from 0. */
double cmkd_schedule_rate(const cmkd_schedule *schedule, int epoch, int step);
#endif
