/* The epochs: rows from a source, steps on a backend, tests, and everything written down so that a run may be cut
 * anywhere. Prints nothing: a caller watches through callbacks. Many trainers may live in one process. */
#ifndef CMKD_TRAIN_TRAINER_H
#define CMKD_TRAIN_TRAINER_H
#include <stdio.h>
#include "kernels/backend.h"
#include "train/config.h"
#include "train/evaluate.h"
#include "train/folder.h"
#include "train/source.h"
#include "train/state.h"

typedef struct cmkd_watch { /* any may be NULL */
  void *self;
  int (*stop)(void);                                               /* asked between steps: non-zero saves and ends */
  void (*epoch_begins)(void *self, int64_t epoch, int64_t images); /* from 1; images of the run so far */
  void (*steps_done)(void *self, int64_t images,
                     double loss); /* images of the run so far, mean loss of the epoch so far */
  void (*epoch_ends)(void *self, const cmkd_score *score, double rate, double images_per_s, double seconds);
} cmkd_watch;

typedef struct cmkd_trainer {
  /* borrowed, filled by the caller */
  const cmkd_settings *settings;
  const json_t *settings_json, *environment; /* for config.json; environment may be NULL */
  const cmkd_dataset *train, *test;
  const cmkd_graph *graph;
  const cmkd_backend_table *table;
  cmkd_be_model *model;
  const cmkd_be_images *train_images, *test_images;
  const float *test_teacher;  /* (test->n, classes) or NULL */
  const char *teacher_sha256; /* or NULL */
  cmkd_source *source;
  cmkd_evaluator *evaluator;
  const cmkd_folder *folder;
  cmkd_state *state;
  cmkd_watch watch;
  int64_t save_every, max_steps; /* 0: never */
  int log_steps;
  /* its own */
  struct cmkd_step_block *block[2];
  FILE *steps;
  int64_t steps_run;      /* of this call */
  double started, before; /* monotonic start; seconds of earlier sessions */
} cmkd_trainer;

/* Trains from state to the last epoch. CMKD_ERR_INTERRUPTED: stopped by watch.stop, state saved; a stop by max_steps is
 * CMKD_OK with state->epoch short of the last. Every other failure names its cause; the state file is the last good
 * one. */
cmkd_status cmkd_train(cmkd_trainer *trainer, cmkd_error *err);
#endif
