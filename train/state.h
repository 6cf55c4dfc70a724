/* Everything a run needs to go on bit-exactly: parameters, momentum, the place in the order, the sums of the epoch
 * under way, the best epoch so far and the log. Kept in one safetensors file, so that writing it is one atomic rename.
 * Random numbers need no state: they are functions of seed and place. */
#ifndef CMKD_TRAIN_STATE_H
#define CMKD_TRAIN_STATE_H
#include <jansson.h>
#include <stdint.h>
#include "cmkd/loss.h"
#include "cmkd/train.h"
#include "kernels/backend.h"
#include "nets/net.h"

/* Sums over the rows of the epoch under way. */
typedef struct cmkd_epoch_sums {
  int64_t images, top1, top5;
  double loss, part[CMKD_LOSS_MAX_PARTS];
  double blocks;       /* of the loss's soft rank */
  int64_t blocks_rows; /* rows summed in `blocks` */
  double pearson, spearman, agreement_blocks;
  int64_t agreement_rows; /* rows summed in the three above */
  double seconds;         /* of training steps */
} cmkd_epoch_sums;
/* `parts`: how many parts the loss has. */
void cmkd_epoch_sums_add(cmkd_epoch_sums *sums, const cmkd_step_result *result, int parts);

typedef struct cmkd_state {
  int64_t epoch;       /* epochs done */
  int64_t step;        /* steps done of the next one */
  int64_t total_steps; /* steps of all epochs */
  double elapsed;      /* seconds that calls on the student took, in all processes of the run */
  cmkd_epoch_sums sums;
  cmkd_score last, best;
  char *log;    /* log.jsonl so far, zero-terminated */
  char *device; /* what the backend wants to find again (its save), or NULL */
  cmkd_params value, momentum;
} cmkd_state;

/* Parameters are not set, everything else is 0. On failure `out` holds what cmkd_state_free frees. */
cmkd_status cmkd_state_create(const cmkd_graph *graph, cmkd_state *out, cmkd_error *err);
void cmkd_state_free(cmkd_state *state);
/* Appends `line` and a newline to the log. */
cmkd_status cmkd_state_log(cmkd_state *state, const char *line, cmkd_error *err);
/* 1 when every parameter and momentum is finite */
int cmkd_state_finite(const cmkd_graph *graph, const cmkd_state *state);

/* Atomic. The settings are kept beside the numbers, so that a resume can tell whose state it is. */
cmkd_status cmkd_state_save(const cmkd_graph *graph, const cmkd_state *state, const json_t *settings, const char *path,
                            cmkd_error *err);
/* The settings alone, of the run in that file. Caller decrefs. */
cmkd_status cmkd_state_settings(const cmkd_weights *file, json_t **out, cmkd_error *err);
/* Into a created state of the same graph. */
cmkd_status cmkd_state_load(const cmkd_graph *graph, const cmkd_weights *file, cmkd_state *state, cmkd_error *err);
#endif
