/* One table defines each option of a command for the parser, the help and the README. */
#ifndef CMKD_BASE_PROGRAM_OPTIONS_H
#define CMKD_BASE_PROGRAM_OPTIONS_H
#include <stdio.h>
#include "cmkd/status.h"

typedef enum cmkd_option_kind {
  CMKD_OPT_FLAG,
  CMKD_OPT_STRING,
  CMKD_OPT_INT,
  CMKD_OPT_UINT64,
  CMKD_OPT_DOUBLE,
  CMKD_OPT_FLOATS3
} cmkd_option_kind;

typedef struct cmkd_option {
  const char *name;     /* "--views"; NULL ends the table */
  const char *argument; /* "N|all" as shown in the help; NULL for a flag */
  cmkd_option_kind kind;
  void *target;     /* int * (flag: counts to 1), const char **, int64_t *, uint64_t *, double *, float[3] */
  const char *help; /* one short line, ends with the default in brackets where there is one; NULL: not in the list */
  double min, max;  /* numbers only; ignored when both are 0. Non-finite numbers are always refused */
  int *seen;        /* set to 1 when the option was given; may be NULL */
} cmkd_option;

typedef struct cmkd_command {
  const char *name;     /* "cmkd-cache build" */
  const char *summary;  /* one line */
  const char *usage;    /* the words after the name, e.g. "--teacher FILE --data SPEC [options]" */
  const char *examples; /* ready to paste lines */
  const cmkd_option *options;
  int min_positional, max_positional;
} cmkd_command;

/* Parses argv[1..]. `--name value` and `--name=value`; `--` ends options. On --help prints the help to stdout, sets
 * *help and returns CMKD_OK. Unknown options fail with CMKD_ERR_USAGE and suggest the nearest name. positional may be
 * NULL. */
cmkd_status cmkd_options_parse(const cmkd_command *command, int argc, char **argv, const char **positional,
                               int *positionals, int *help, cmkd_error *err);
void cmkd_options_help(const cmkd_command *command, FILE *out);

/* Prints "PROGRAM: message" to stderr and gives the exit status: 0, 2 for usage, else 1. */
int cmkd_exit_status(const char *program, const cmkd_error *err, cmkd_status status);
#endif
