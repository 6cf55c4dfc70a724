/* Two students over one session, taking turns: what docs say about cmkd/train.h, as a program.
 *
 *   train DATA [CACHE] [FOLDER]
 *
 * DATA is a data set as `cmkd-train --data` takes it (mnist:DIR, cifar100:DIR); CACHE a teacher cache of its training
 * split (`cmkd-cache build`), or - to learn from labels alone; FOLDER, "runs" unless given, gets the students' runs and
 * must not hold any. Prints the accuracy of each after its only epoch. Built against an installed library by
 *
 *   cc -o train train.c $(pkg-config --cflags --libs cmkd) */
#include <stdio.h>
#include <string.h>
#include "cmkd/train.h"

enum { STUDENTS = 2 };

/* The first learns from labels, the second from the teacher where there is one; they start from different weights. */
static cmkd_status open_students(cmkd_session *session, int has_teacher, const char *folder,
                                 cmkd_student *students[STUDENTS], cmkd_error *err) {
  for (int i = 0; i < STUDENTS; i++) {
    cmkd_student_options options;
    char out[1024];
    snprintf(out, sizeof out, "%s/student-%d", folder, i + 1);
    cmkd_student_options_default(&options);
    options.arch = "resnet8";
    options.loss = i && has_teacher ? "cmkd" : "ce";
    options.epochs = 1;
    options.batch = 32;
    options.seed = (uint64_t)i + 1;
    options.out = out;
    CMKD_TRY(cmkd_student_open(session, &options, &students[i], err));
  }
  return CMKD_OK;
}

/* One epoch of all students, a few steps of each at a time. */
static cmkd_status train_epoch(cmkd_student *students[STUDENTS], cmkd_error *err) {
  int more[STUDENTS], any = 1;
  for (int i = 0; i < STUDENTS; i++) {
    CMKD_TRY(cmkd_student_begin(students[i], err));
    more[i] = 1;
  }
  while (any) {
    any = 0;
    for (int i = 0; i < STUDENTS; i++) {
      if (more[i]) CMKD_TRY(cmkd_student_step(students[i], 4, &more[i], err));
      any |= more[i];
    }
  }
  for (int i = 0; i < STUDENTS; i++) {
    cmkd_epoch_report report;
    CMKD_TRY(cmkd_student_end(students[i], NULL, &report, err));
    printf("%s: loss %.4f, top-1 %.2f%%, correlation with the teacher %.4f\n", cmkd_student_folder(students[i]),
           report.score.loss, report.score.top1, report.score.test_pearson);
  }
  return CMKD_OK;
}

static cmkd_status run(const cmkd_session_options *options, const char *folder, cmkd_session **session,
                       cmkd_student *students[STUDENTS], cmkd_error *err) {
  const char *note;
  CMKD_TRY(cmkd_session_open(options, session, err));
  CMKD_TRY(cmkd_session_load_test_logits(*session, NULL, &note, err));
  printf("on %s%s%s\n", cmkd_session_device(*session), note ? "; " : "", note ? note : "");
  CMKD_TRY(open_students(*session, options->cache != NULL, folder, students, err));
  return train_epoch(students, err);
}

int main(int argc, char **argv) {
  cmkd_session_options options;
  cmkd_session *session = NULL;
  cmkd_student *students[STUDENTS] = {NULL};
  cmkd_error err;
  if (argc < 2) {
    fprintf(stderr, "usage: train DATA [CACHE|-] [FOLDER]\n");
    return 2;
  }
  cmkd_session_options_default(&options);
  options.data = argv[1];
  if (argc > 2 && strcmp(argv[2], "-")) options.cache = argv[2];
  cmkd_status status = run(&options, argc > 3 ? argv[3] : "runs", &session, students, &err);
  if (status != CMKD_OK) fprintf(stderr, "train: %s\n", err.message);
  for (int i = 0; i < STUDENTS; i++)
    cmkd_student_close(students[i]);
  cmkd_session_close(session);
  return status == CMKD_OK ? 0 : 1;
}
