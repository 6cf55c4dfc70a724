/* The command line of `cmkd-train`. */
#ifndef CMKD_TRAIN_COMMAND_OPTIONS_H
#define CMKD_TRAIN_COMMAND_OPTIONS_H
#include "base/program/options.h"
#include "cmkd/train.h"

/* Strings point into argv, into the recipe or are literals. */
typedef struct cmkd_train_options {
  cmkd_session_options session;
  cmkd_student_options student;
  const char *recipe;
  int64_t max_steps; /* of this call; 0: all */
  int json, quiet;
} cmkd_train_options;

void cmkd_train_options_default(cmkd_train_options *options);
/* The table for cmkd_options_parse, with targets in `options`; `table` has CMKD_TRAIN_OPTIONS entries. */
#define CMKD_TRAIN_OPTIONS 48
void cmkd_train_options_table(cmkd_train_options *options, cmkd_option *table);
#endif
