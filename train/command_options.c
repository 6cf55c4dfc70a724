/* The table of the command line, from that of the library and what only a command has. See command_options.h. */
#include "train/command_options.h"
#include <stdlib.h>
#include <string.h>
#include "train/options.h"

void cmkd_train_options_default(cmkd_train_options *o) {
  memset(o, 0, sizeof *o);
  cmkd_session_options_default(&o->session);
  cmkd_student_options_default(&o->student);
}

static cmkd_option_kind kind_of(cmkd_field_kind kind) {
  switch (kind) {
  case CMKD_FIELD_FLAG: return CMKD_OPT_FLAG;
  case CMKD_FIELD_STRING: return CMKD_OPT_STRING;
  case CMKD_FIELD_INT: return CMKD_OPT_INT;
  case CMKD_FIELD_UINT64: return CMKD_OPT_UINT64;
  case CMKD_FIELD_DOUBLE: return CMKD_OPT_DOUBLE;
  case CMKD_FIELD_FLOATS3: return CMKD_OPT_FLOATS3;
  }
  abort(); /* no such kind */
}

static cmkd_option option_of(const cmkd_field *f, cmkd_train_options *o) {
  char *base = f->owner == CMKD_FIELD_OF_SESSION ? (char *)&o->session : (char *)&o->student;
  cmkd_option option = {.name = f->name,
                        .argument = f->argument,
                        .kind = kind_of(f->kind),
                        .target = base + f->at,
                        .help = f->help,
                        .min = f->min,
                        .max = f->max};
  if (option.target == &o->session.cache_seed) option.seen = &o->session.cache_seed_given;
  return option;
}

void cmkd_train_options_table(cmkd_train_options *o, cmkd_option *table) {
  const struct {
    const char *after; /* the option of the library that it follows in the help */
    cmkd_option option;
  } own[] = {
      {"--test-cache",
       {"--recipe", "NAME", CMKD_OPT_STRING, &o->recipe, "the published settings of a pair, see cmkd-train recipes", 0,
        0, NULL}},
      {"--save-every", {"--max-steps", "N", CMKD_OPT_INT, &o->max_steps, NULL, 1, 1e15, NULL}},
      {"--threads", {"--json", NULL, CMKD_OPT_FLAG, &o->json, "print one JSON object at the end", 0, 0, NULL}},
      {"--threads", {"--quiet", NULL, CMKD_OPT_FLAG, &o->quiet, NULL, 0, 0, NULL}},
  };
  enum { OWN = sizeof own / sizeof *own };
  int n = 0;
  if (cmkd_train_field_count + OWN + 1 > CMKD_TRAIN_OPTIONS) abort(); /* enlarge it */
  for (int i = 0; i < cmkd_train_field_count; i++) {
    table[n++] = option_of(&cmkd_train_fields[i], o);
    for (int k = 0; k < OWN; k++)
      if (!strcmp(own[k].after, cmkd_train_fields[i].name)) table[n++] = own[k].option;
  }
  table[n] = (cmkd_option){0};
}
