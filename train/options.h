/* The options of sessions and students: one table says name, range and help of each, and what "not given" is. The
 * command line is parsed by it (command_options.h), programs that fill cmkd/train.h's structs are checked by it, and
 * defaults are laid under what was given by it. Opens no file. */
#ifndef CMKD_TRAIN_OPTIONS_H
#define CMKD_TRAIN_OPTIONS_H
#include <stddef.h>
#include "cmkd/train.h"

/* Defaults, once for the values (settings.c) and for the help texts. */
#define CMKD_DEFAULT_DATA "fashion-mnist" /* without --data and --cache */
#define CMKD_DEFAULT_STUDENT "resnet20"
#define CMKD_DEFAULT_STUDENT_MNIST "resnet8"
#define CMKD_DEFAULT_EPOCHS 240
#define CMKD_DEFAULT_EPOCHS_MNIST 30
#define CMKD_DEFAULT_BATCH 64
#define CMKD_DEFAULT_LR 0.05
#define CMKD_DEFAULT_LR_LIGHT 0.01 /* ShuffleNet, MobileNet */
#define CMKD_DEFAULT_SCHEDULE "step"
#define CMKD_DEFAULT_MOMENTUM 0.9
#define CMKD_DEFAULT_WEIGHT_DECAY 0.0005
#define CMKD_DEFAULT_EVAL_EVERY 1
/* The same as texts: "240". */
#define CMKD_TEXT_OF(tokens) #tokens
#define CMKD_TEXT(number) CMKD_TEXT_OF(number)
#define CMKD_EPOCHS_TEXT CMKD_TEXT(CMKD_DEFAULT_EPOCHS)
#define CMKD_EPOCHS_MNIST_TEXT CMKD_TEXT(CMKD_DEFAULT_EPOCHS_MNIST)
#define CMKD_BATCH_TEXT CMKD_TEXT(CMKD_DEFAULT_BATCH)
#define CMKD_LR_TEXT CMKD_TEXT(CMKD_DEFAULT_LR)
#define CMKD_LR_LIGHT_TEXT CMKD_TEXT(CMKD_DEFAULT_LR_LIGHT)
#define CMKD_MOMENTUM_TEXT CMKD_TEXT(CMKD_DEFAULT_MOMENTUM)
#define CMKD_WEIGHT_DECAY_TEXT CMKD_TEXT(CMKD_DEFAULT_WEIGHT_DECAY)
#define CMKD_EVAL_EVERY_TEXT CMKD_TEXT(CMKD_DEFAULT_EVAL_EVERY)
#define CMKD_TEACHER_BATCH_TEXT CMKD_TEXT(CMKD_TEACHER_BATCH)

/* C types: int, const char *, int64_t, uint64_t, double, float[3]. */
typedef enum cmkd_field_kind {
  CMKD_FIELD_FLAG,
  CMKD_FIELD_STRING,
  CMKD_FIELD_INT,
  CMKD_FIELD_UINT64,
  CMKD_FIELD_DOUBLE,
  CMKD_FIELD_FLOATS3
} cmkd_field_kind;
typedef enum cmkd_field_owner { CMKD_FIELD_OF_SESSION, CMKD_FIELD_OF_STUDENT } cmkd_field_owner;

/* A field of one of the two structs. */
typedef struct cmkd_field {
  cmkd_field_owner owner;
  size_t at; /* offset in its owner's struct */
  cmkd_field_kind kind;
  const char *name, *argument, *help; /* as an option of a command; help NULL: not in the list of options */
  double min, max;                    /* of numbers; both 0: any */
} cmkd_field;
/* In the order of the help. Two names of one field follow each other. */
extern const cmkd_field cmkd_train_fields[];
extern const int cmkd_train_field_count;

/* Ranges, and contradictions that need no file: --cache with --teacher, --views without a teacher, ... */
cmkd_status cmkd_session_options_check(const cmkd_session_options *options, cmkd_error *err);
cmkd_status cmkd_student_options_check(const cmkd_student_options *options, cmkd_error *err);

/* Fills what `options` leaves open with what `defaults` gives: a string that is NULL, a count or switch that is 0, a
 * number that is NaN. The seed is never open. Strings are borrowed from `defaults`. */
void cmkd_student_options_fill(cmkd_student_options *options, const cmkd_student_options *defaults);

/* Copies whose strings are the copy's own. On failure `out` holds what must be freed. */
cmkd_status cmkd_session_options_copy(const cmkd_session_options *from, cmkd_session_options *out, cmkd_error *err);
cmkd_status cmkd_student_options_copy(const cmkd_student_options *from, cmkd_student_options *out, cmkd_error *err);
/* Frees the strings of such a copy. */
void cmkd_session_options_free(cmkd_session_options *options);
void cmkd_student_options_free(cmkd_student_options *options);

static inline int cmkd_session_is_live(const cmkd_session_options *o) { return o->teacher || o->callback; }
static inline int cmkd_session_has_teacher(const cmkd_session_options *o) {
  return o->cache || cmkd_session_is_live(o);
}
#endif
