/* A run's folder: one student at a time, and the same settings for ever. Decides whether a run starts, goes on or is
 * refused, and names the files in it:
 *
 *   config.json        settings
 *   state.safetensors  all that --resume needs
 *   log.jsonl          a line an epoch
 *   steps.jsonl        a line a step (--log-steps)
 *   last.safetensors, best.safetensors  weights */
#ifndef CMKD_TRAIN_FOLDER_H
#define CMKD_TRAIN_FOLDER_H
#include <jansson.h>
#include "base/lock.h"
#include "train/state.h"

typedef struct cmkd_folder {
  char *path, *config, *state, *log, *steps, *last, *best, *lock; /* owned */
  cmkd_lock held;                                                 /* on `lock`; none: not locked */
  int created;                                                    /* the folder was not there before */
  char device[128]; /* that the run was last trained on; empty where nobody wrote it down */
} cmkd_folder;

typedef struct cmkd_folder_options { /* all borrowed */
  const char *path;
  const json_t *settings; /* of the run at hand */
  const cmkd_graph *graph;
  int resume; /* 1: a stopped run of the same settings goes on; 0: it is refused */
} cmkd_folder_options;
/* Creates and locks the folder, and loads `state` where it holds one of the same settings and may be resumed (*resumed
 * 1). Refuses other settings, a run that exists when it may not be resumed, and files of somebody else. */
cmkd_status cmkd_folder_open(const cmkd_folder_options *options, cmkd_state *state, int *resumed, cmkd_folder *out,
                             cmkd_error *err);
/* Unlocks, and removes a folder that was created and is still empty. */
void cmkd_folder_close(cmkd_folder *folder);
/* config.json: {"settings": ..., "environment": ...}; environment is borrowed and may be NULL. */
cmkd_status cmkd_folder_config(const cmkd_folder *folder, const json_t *settings, const json_t *environment,
                               cmkd_error *err);
#endif
