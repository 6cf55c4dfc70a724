/* Everything a run needs, opened, checked against each other and bound together; nothing is trained yet and nothing
 * printed. */
#ifndef CMKD_TRAIN_SETUP_H
#define CMKD_TRAIN_SETUP_H
#include "base/program/progress.h"
#include "train/trainer.h"

typedef struct cmkd_setup {
  cmkd_settings settings;
  json_t *settings_json, *environment;
  cmkd_cache *cache;
  cmkd_dataset *train, *test;
  cmkd_graph *graph;
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_be_images *train_images, *test_images;
  cmkd_be_model *model;
  cmkd_teacher *teacher;
  cmkd_source source;
  cmkd_evaluator evaluator;
  cmkd_state state;
  cmkd_folder folder;
  float *test_teacher;   /* (test->n, classes) or NULL */
  char note[512];        /* why test_teacher is NULL; empty where it is not, or where there is no teacher */
  char device_note[256]; /* a resumed run that began on another device or with other threads; else empty */
  int resumed;
  cmkd_trainer trainer;
} cmkd_setup;

/* Opens in the order in which refusals are cheapest; the run's folder comes last, so that a refused command leaves no
 * trace. `setup` may be closed after a failure. */
cmkd_status cmkd_setup_open(cmkd_setup *setup, const cmkd_train_options *options, cmkd_error *err);
void cmkd_setup_close(cmkd_setup *setup);
/* The teacher's logits of the test split: run live, or from a companion cache. A live teacher may take a while:
 * `progress` (may be NULL) is kept up to date, `stop` (may be NULL) asked between groups. */
cmkd_status cmkd_setup_test_teacher(cmkd_setup *setup, const cmkd_train_options *options, cmkd_progress *progress,
                                    int (*stop)(void), cmkd_error *err);
#endif
