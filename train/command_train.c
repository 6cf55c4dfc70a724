/* `cmkd-train [options]`: opens a run, trains, reports. */
#include <stdlib.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/program/interrupt.h"
#include "base/program/options.h"
#include "base/program/progress.h"
#include "base/json.h"
#include "base/program/print.h"
#include "train/commands.h"
#include "train/options.h"
#include "train/report.h"

static const char examples[] =
    "cmkd-train --cache teacher.h5                                   a student, all defaults\n"
    "cmkd-train --cache teacher.h5 --student resnet8x4 --loss dkd+cmkd --epochs 60\n"
    "cmkd-train --data cifar100:DIR --arch resnet56                  a teacher, from labels\n"
    "also: cmkd-train eval|nets|onnx|recipes --help; --arch (= --student), --nesterov, "
    "--momentum X [" CMKD_MOMENTUM_TEXT "], --weight-decay X [" CMKD_WEIGHT_DECAY_TEXT "],\n"
    "      --clean-view, --teacher-batch N [" CMKD_TEACHER_BATCH_TEXT "], "
    "--teacher-arch, --teacher-mean, --teacher-std (live teachers),\n"
    "      --eval-every N [" CMKD_EVAL_EVERY_TEXT "], --log-steps (hex losses), --max-steps N (stop and save), "
    "--stream-memory MB [1024], --quiet";

/* The command again, so that a shell reads it as it was. */
static void print_command(FILE *out, int argc, char **argv, const char *more) {
  fputs("  cmkd-train", out);
  for (int i = 1; i < argc; i++) {
    const char *word = argv[i];
    int plain =
        *word != 0 &&
        strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+.,:/@%") == strlen(word);
    fputc(' ', out);
    if (!plain) fputc('\'', out);
    for (; *word; word++)
      if (*word == '\'')
        fputs("'\\''", out); /* ends the quotation, a quoted quote, begins it again */
      else
        fputc(*word, out);
    if (!plain) fputc('\'', out);
  }
  fprintf(out, "%s%s\n", *more ? " " : "", more);
}

static int stop_on_signal(void *self) {
  (void)self;
  return cmkd_interrupted() != 0;
}

static void show_progress(void *self, uint64_t done, uint64_t total) {
  (void)total;
  cmkd_progress_update(self, done);
}

/* What one run of the command holds. */
typedef struct run {
  cmkd_train_options options;
  cmkd_recipe_use recipe_use;
  const cmkd_recipe_use *recipe; /* recipe_use, or NULL */
  cmkd_session *session;
  cmkd_student *student;
} run;

static cmkd_status check_recipe(const run *r, cmkd_error *err) {
  const cmkd_session_options *o = &r->options.session;
  if (!r->recipe) return CMKD_OK;
  return cmkd_recipe_check(r->recipe, r->session->train, cmkd_session_teacher_arch(r->session),
                           o->cache ? o->cache : o->teacher, err);
}

/* In the order in which refusals are cheapest; the student's folder comes last, so that a refused command leaves no
 * trace. */
static cmkd_status open_run(run *r, cmkd_error *err) {
  cmkd_backend_options backend = {0};
  r->options.session.search = cmkd_environment_dataset_options();
  CMKD_TRY(cmkd_session_open_data(&r->options.session, &r->session, err));
  CMKD_TRY(check_recipe(r, err));
  CMKD_TRY(cmkd_student_prepare(r->session, &r->options.student, &r->student, err));
  cmkd_environment_backend(&backend);
  CMKD_TRY(cmkd_session_open_device(r->session, &backend, err));
  CMKD_TRY(check_recipe(r, err)); /* a live teacher is known now */
  r->student->recipe = r->options.recipe;
  return cmkd_student_finish_open(r->student, err);
}

/* *note: what the user is told, or NULL. */
static cmkd_status load_test_logits(run *r, const char **note, cmkd_error *err) {
  cmkd_progress progress;
  const cmkd_watch watch = {.self = &progress, .stop = stop_on_signal, .progress = show_progress};
  cmkd_progress_start(&progress, "teacher on the test split", "images", r->session->test->n, 0,
                      r->options.quiet || !r->options.session.teacher);
  cmkd_status status = cmkd_session_load_test_logits(r->session, &watch, note, err);
  cmkd_progress_end(&progress);
  return status;
}

static cmkd_status train(run *r, FILE *out, cmkd_error *err) {
  cmkd_ticker ticker;
  cmkd_trainer trainer = {.stop = stop_on_signal, .max_steps = r->options.max_steps};
  cmkd_ticker_start(&ticker, r->student, out, r->options.quiet, &trainer);
  cmkd_status status = cmkd_train(r->student, &trainer, err);
  cmkd_ticker_end(&ticker);
  return status;
}

static cmkd_status run_all(run *r, cmkd_error *err) {
  FILE *out = r->options.json ? stderr : stdout;
  CMKD_TRY(open_run(r, err));
  const cmkd_report report = {.out = out, .student = r->student, .options = &r->options, .recipe = r->recipe};
  const int finished = r->student->state.epoch == r->student->settings.epochs;
  const int live = r->options.session.teacher != NULL;
  const char *note = NULL;
  /* Those of a cache before the report, because that can fail; a live teacher's after it, because that takes long. */
  if (!finished && !live) CMKD_TRY(load_test_logits(r, &note, err));
  cmkd_report_start(&report);
  if (!finished) {
    if (live) CMKD_TRY(load_test_logits(r, &note, err));
    if (note) fprintf(out, "note      %s\n", note);
    CMKD_TRY(train(r, out, err));
  }
  cmkd_report_end(&report);
  return r->options.json ? cmkd_json_print(cmkd_report_json(r->student), 10, err) : CMKD_OK;
}

int cmkd_command_train(int argc, char **argv) {
  cmkd_option table[CMKD_TRAIN_OPTIONS];
  cmkd_error err = {CMKD_OK, ""};
  run r = {0};
  int help;
  cmkd_train_options_default(&r.options);
  cmkd_train_options_table(&r.options, table);
  const cmkd_command command = {"cmkd-train",
                                "trains a student from a teacher cache, or a teacher from labels",
                                "[--cache FILE | --teacher FILE] [options]",
                                examples,
                                table,
                                0,
                                0};
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status != CMKD_OK || help) return cmkd_exit_status("cmkd-train", &err, status);
  if (r.options.recipe) {
    status = cmkd_recipe_apply(&r.recipe_use, &r.options, &err);
    r.recipe = &r.recipe_use;
  }
  if (status != CMKD_OK) return cmkd_exit_status("cmkd-train", &err, status);
  cmkd_interrupt_install();
  status = run_all(&r, &err);
  cmkd_student_close(r.student);
  cmkd_session_close(r.session);
  int code = cmkd_exit_status("cmkd-train", &err, status);
  if (status == CMKD_ERR_INTERRUPTED) {
    fputs("go on with\n", stderr);
    print_command(stderr, argc, argv, r.options.student.resume ? "" : "--resume");
  }
  return code;
}
