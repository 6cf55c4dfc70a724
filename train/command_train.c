/* `cmkd-train [options]`: opens a run, trains, reports. */
#include <stdlib.h>
#include <string.h>
#include "base/program/interrupt.h"
#include "base/program/options.h"
#include "base/program/progress.h"
#include "train/commands.h"
#include "train/recipe_apply.h"
#include "train/report.h"

static const char examples[] =
    "cmkd-train --cache teacher.h5                                   a student, all defaults\n"
    "cmkd-train --cache teacher.h5 --student resnet8x4 --loss dkd+cmkd --epochs 60\n"
    "cmkd-train --data cifar100:DIR --arch resnet56                  a teacher, from labels\n"
    "also: cmkd-train eval|nets|onnx|recipes --help; --arch (= --student), --nesterov, --momentum X [0.9], "
    "--weight-decay X [0.0005],\n"
    "      --clean-view, --teacher-batch N [128], --teacher-arch, --teacher-mean, --teacher-std (live teachers),\n"
    "      --eval-every N [1], --log-steps (hex losses), --max-steps N (stop and save), --stream-memory MB [1024], "
    "--quiet";

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
        fputs("'\\''", out);
      else
        fputc(*word, out);
    if (!plain) fputc('\'', out);
  }
  fprintf(out, "%s%s\n", *more ? " " : "", more);
}

static cmkd_status test_teacher(cmkd_setup *setup, const cmkd_train_options *o, cmkd_error *err) {
  cmkd_progress progress;
  cmkd_progress_start(&progress, "teacher on the test split", "images", setup->test->n, 0, o->quiet || !o->teacher);
  cmkd_status status = cmkd_setup_test_teacher(setup, o, &progress, cmkd_interrupted, err);
  cmkd_progress_end(&progress);
  return status;
}

static cmkd_status run(cmkd_setup *setup, const cmkd_train_options *o, cmkd_error *err) {
  FILE *out = o->json ? stderr : stdout;
  cmkd_ticker ticker;
  CMKD_TRY(cmkd_setup_open(setup, o, err));
  int finished = setup->state.epoch == setup->settings.epochs;
  if (!finished && !o->teacher) CMKD_TRY(test_teacher(setup, o, err)); /* quick, and may refuse */
  cmkd_report_start(out, setup, o);
  if (!finished) {
    if (o->teacher) CMKD_TRY(test_teacher(setup, o, err));
    if (setup->note[0]) fprintf(out, "note      %s\n", setup->note);
    setup->trainer.watch = cmkd_ticker_watch(&ticker, setup, out, o->quiet);
    setup->trainer.watch.stop = cmkd_interrupted;
    cmkd_status status = cmkd_train(&setup->trainer, err);
    cmkd_ticker_end(&ticker);
    if (status != CMKD_OK) return status;
  }
  cmkd_report_end(out, setup, o);
  if (o->json) {
    json_t *object = cmkd_report_json(setup);
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(10));
    putchar('\n');
    json_decref(object);
  }
  return CMKD_OK;
}

int cmkd_command_train(int argc, char **argv) {
  cmkd_train_options options;
  cmkd_option table[CMKD_TRAIN_OPTIONS];
  cmkd_error err = {CMKD_OK, ""};
  cmkd_setup setup;
  int help;
  cmkd_train_options_default(&options);
  cmkd_train_options_table(&options, table);
  const cmkd_command command = {"cmkd-train",
                                "trains a student from a teacher cache, or a teacher from labels",
                                "[--cache FILE | --teacher FILE] [options]",
                                examples,
                                table,
                                0,
                                0};
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status != CMKD_OK || help) return cmkd_exit_status("cmkd-train", &err, status);
  if (options.recipe) status = cmkd_recipe_apply(&options, &err);
  if (status != CMKD_OK) return cmkd_exit_status("cmkd-train", &err, status);
  cmkd_interrupt_install();
  memset(&setup, 0, sizeof setup);
  setup.folder.lock_fd = -1;
  status = run(&setup, &options, &err);
  cmkd_setup_close(&setup);
  int code = cmkd_exit_status("cmkd-train", &err, status);
  if (status == CMKD_ERR_INTERRUPTED) {
    fputs("go on with\n", stderr);
    print_command(stderr, argc, argv, options.resume ? "" : "--resume");
  }
  return code;
}
