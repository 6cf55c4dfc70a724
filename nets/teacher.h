/* A network run for its logits at one fixed, padded batch: the one function behind `cmkd-cache build`, live training
 * and `eval`, so that a row's bits never depend on who asks or on its neighbours. */
#ifndef CMKD_NETS_TEACHER_H
#define CMKD_NETS_TEACHER_H
#include "cmkd/dataset.h"
#include "kernels/backend.h"
#include "nets/net.h"

#define CMKD_TEACHER_BATCH 128 /* default of --teacher-batch */

typedef struct cmkd_teacher cmkd_teacher;
typedef struct cmkd_teacher_options {
  const char *weights;     /* path */
  const char *arch;        /* NULL: from metadata */
  const float *mean, *std; /* NULL: from metadata */
  int batch;               /* 0: CMKD_TEACHER_BATCH */
  cmkd_policy policy;
  const char *prefix; /* of the options that messages name, cmkd_model_spec_read_as; NULL: "" */
} cmkd_teacher_options;
/* Loads weights, checks them against the data set's shape and classes, and makes a model on the backend. The teacher
 * borrows table, backend and data. */
cmkd_status cmkd_teacher_open(const cmkd_teacher_options *options, const cmkd_backend_table *table,
                              cmkd_backend *backend, const cmkd_dataset *data, cmkd_teacher **out, cmkd_error *err);
void cmkd_teacher_close(cmkd_teacher *teacher);
const cmkd_model_spec *cmkd_teacher_spec(const cmkd_teacher *teacher);
const char *cmkd_teacher_sha256(const cmkd_teacher *teacher);
int cmkd_teacher_batch(const cmkd_teacher *teacher);
int cmkd_teacher_feature_size(const cmkd_teacher *teacher);
/* Logits (count, classes) and penultimate features (count, d), either NULL, of rows[i] moved by seeds[i] (NULL: clean).
 * Any count; short batches are padded with the last row. Non-finite logits fail and name the sample. */
cmkd_status cmkd_teacher_run(cmkd_teacher *teacher, const uint32_t *rows, const uint64_t *seeds, uint32_t count,
                             float *logits, float *features, cmkd_error *err);
#endif
