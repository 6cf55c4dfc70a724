/* What a run writes down for people and programs: epoch lines, step lines, weight files. */
#ifndef CMKD_TRAIN_RECORD_H
#define CMKD_TRAIN_RECORD_H
#include "train/student.h"

/* One JSON object in one line, no newline; fresh memory, NULL: out of memory. `sums` are those of the same epoch. */
char *cmkd_epoch_line(const cmkd_settings *settings, const cmkd_epoch_sums *sums, const cmkd_epoch_report *report);
/* Fresh reference; NULL: out of memory. */
json_t *cmkd_score_json(const cmkd_score *score);
/* Fills the training side of a score from the sums of its epoch. */
void cmkd_score_from_sums(const cmkd_epoch_sums *sums, cmkd_score *score);
/* Safetensors with the metadata of the run; `score` belongs to these weights. Nothing in it tells a cache from a live
 * teacher: equal numbers make equal files. The steps of the run so far are written as the batches that batch norm saw
 * (num_batches_tracked). */
cmkd_status cmkd_student_write_weights(const cmkd_student *student, const cmkd_score *score, const char *path,
                                       cmkd_error *err);
/* Opens steps.jsonl for appending and drops the lines past `total_steps`. */
cmkd_status cmkd_steps_open(const char *path, int64_t total_steps, FILE **out, cmkd_error *err);
typedef struct cmkd_step_line {
  int64_t step;  /* of the whole run, from 1 */
  int64_t epoch; /* from 1 */
  double lr, loss;
} cmkd_step_line;
cmkd_status cmkd_steps_add(FILE *steps, const char *path, const cmkd_step_line *line, cmkd_error *err);
#endif
