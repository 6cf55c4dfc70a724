/* What `cmkd-train` says to people: the settings at the start, a line an epoch, the table at the end. Writes to the
 * FILE it is given; progress goes to stderr. */
#ifndef CMKD_TRAIN_REPORT_H
#define CMKD_TRAIN_REPORT_H
#include <stdio.h>
#include "base/program/progress.h"
#include "train/setup.h"

void cmkd_report_start(FILE *out, const cmkd_setup *setup, const cmkd_train_options *options);
void cmkd_report_end(FILE *out, const cmkd_setup *setup, const cmkd_train_options *options);
/* One object; fresh reference. */
json_t *cmkd_report_json(const cmkd_setup *setup);

typedef struct cmkd_ticker { /* the self of its watch */
  const cmkd_setup *setup;
  FILE *out;
  int quiet, running, lines;
  char label[48];
  cmkd_progress progress;
} cmkd_ticker;
/* Callbacks that show progress and epoch lines; `stop` is left for the caller. */
cmkd_watch cmkd_ticker_watch(cmkd_ticker *ticker, const cmkd_setup *setup, FILE *out, int quiet);
void cmkd_ticker_end(cmkd_ticker *ticker); /* clears the bar; may be called twice */

/* "70.21", or "-" for NaN, in `buffer`. */
const char *cmkd_shown(double value, const char *format, char buffer[24]);
#endif
