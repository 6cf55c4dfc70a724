/* The inside of a student (cmkd/train.h): what is its own among those of a session. */
#ifndef CMKD_TRAIN_STUDENT_H
#define CMKD_TRAIN_STUDENT_H
#include <stdio.h>
#include "train/block.h"
#include "train/evaluate.h"
#include "train/folder.h"
#include "train/session.h"
#include "train/source.h"
#include "train/state.h"

struct cmkd_student {
  cmkd_session *session;        /* borrowed */
  cmkd_student_options options; /* strings owned */
  cmkd_settings settings;
  json_t *settings_json, *environment;
  const char *recipe; /* its name, for config.json; borrowed, or NULL */
  cmkd_graph *graph;
  cmkd_be_model *model;
  cmkd_evaluator evaluator;
  cmkd_source source;
  cmkd_state state;
  cmkd_folder folder;
  int resumed;
  char device_note[256]; /* a resumed run that began on another device or with other threads; else empty */

  /* while it trains */
  int started, in_epoch;            /* its folder is written; begun and not ended */
  int failed;                       /* nothing but closing is left */
  cmkd_step_block *current, *ahead; /* the block that steps are taken from, the one that is read ahead */
  FILE *step_log;                   /* steps.jsonl, or NULL */
  double counted_from;              /* up to here state.elapsed counts the call under way */
  double block_seconds;             /* of the last cmkd_student_step, saving not counted */
  int block_steps;                  /* how many that ran */
};

/* cmkd_student_open in two steps: what needs no device, then the rest; the folder comes last, so that what is refused
 * leaves no trace. *out is set on failure too where it was made, for cmkd_student_close. */
cmkd_status cmkd_student_prepare(cmkd_session *session, const cmkd_student_options *options, cmkd_student **out,
                                 cmkd_error *err);
cmkd_status cmkd_student_finish_open(cmkd_student *student, cmkd_error *err);

/* For the other files of a student: the weights and what the backend wants to find again, from the device into the
 * state (CMKD_ERR_VALUE where they are no longer finite); the state into its file. */
cmkd_status cmkd_student_download(cmkd_student *student, cmkd_error *err);
cmkd_status cmkd_student_write_state(cmkd_student *student, cmkd_error *err);
/* CMKD_ERR_INTERRUPTED with the words that a user reads; the state must be saved. */
cmkd_status cmkd_student_interrupted(const cmkd_student *student, cmkd_error *err);
#endif
