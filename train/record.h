/* What a run writes down for people and programs: epoch lines, step lines, weight files. */
#ifndef CMKD_TRAIN_RECORD_H
#define CMKD_TRAIN_RECORD_H
#include "train/trainer.h"

typedef struct cmkd_epoch_figures {
  double lr, seconds, images_per_s;
  uint32_t view;
} cmkd_epoch_figures;
/* One JSON object in one line, no newline; fresh memory, NULL: out of memory. */
char *cmkd_epoch_line(const cmkd_settings *settings, const cmkd_score *score, const cmkd_epoch_sums *sums,
                      const cmkd_epoch_figures *figures);
json_t *cmkd_score_json(const cmkd_score *score);
/* NaN becomes null. */
json_t *cmkd_number_json(double value);
/* Fills the training side of a score from the sums of its epoch. */
void cmkd_score_from_sums(const cmkd_epoch_sums *sums, cmkd_score *score);
/* Safetensors with the metadata of the run; `score` belongs to these weights. Nothing in it tells a cache from a live
 * teacher: equal numbers make equal files. */
cmkd_status cmkd_weights_record(const cmkd_trainer *trainer, const cmkd_score *score, const char *path,
                                cmkd_error *err);
/* Opens steps.jsonl for appending and drops the lines past `total_steps`. */
cmkd_status cmkd_steps_open(const char *path, int64_t total_steps, FILE **out, cmkd_error *err);
cmkd_status cmkd_steps_add(FILE *steps, const char *path, int64_t step, int64_t epoch, double lr, double loss,
                           cmkd_error *err);
#endif
