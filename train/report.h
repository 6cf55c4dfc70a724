/* What `cmkd-train` says to people: the settings at the start, a line an epoch, the table at the end. Writes to the
 * FILE it is given; progress goes to stderr. */
#ifndef CMKD_TRAIN_REPORT_H
#define CMKD_TRAIN_REPORT_H
#include <stdio.h>
#include "base/program/progress.h"
#include "train/recipe_apply.h"
#include "train/student.h"
#include "train/trainer.h"

/* What was asked for, beside what the student knows. */
typedef struct cmkd_report {
  FILE *out;
  const cmkd_student *student;
  const cmkd_train_options *options;
  const cmkd_recipe_use *recipe; /* or NULL */
} cmkd_report;
void cmkd_report_start(const cmkd_report *report);
void cmkd_report_end(const cmkd_report *report);
/* One object; fresh reference, NULL: out of memory. */
json_t *cmkd_report_json(const cmkd_student *student);

typedef struct cmkd_ticker { /* shows progress and epoch lines; the self of its trainer's functions */
  FILE *out;
  const cmkd_student *student;
  int quiet, running, lines;
  char label[48];
  cmkd_progress progress;
} cmkd_ticker;
/* Fills `trainer` with functions that show progress and epoch lines on `out`; its `stop` and max_steps are left for the
 * caller. */
void cmkd_ticker_start(cmkd_ticker *ticker, const cmkd_student *student, FILE *out, int quiet, cmkd_trainer *trainer);
void cmkd_ticker_end(cmkd_ticker *ticker); /* clears the bar; may be called twice */
#endif
