/* A teacher run for its logits at one fixed, padded batch: the one function behind `cmkd-cache build`, live training
 * and `eval`, so that a row's bits never depend on who asks or on its neighbours. A teacher is a network on a backend
 * (here) or somebody else's function (cmkd_teacher_from_callback). */
#ifndef CMKD_NETS_TEACHER_H
#define CMKD_NETS_TEACHER_H
#include "cmkd/teacher.h"
#include "kernels/backend.h"
#include "nets/net.h"

typedef struct cmkd_teacher_options {
  const char *weights;     /* path */
  const char *arch;        /* NULL: from metadata */
  const float *mean, *std; /* NULL: from metadata */
  int batch;               /* 0: CMKD_TEACHER_BATCH */
  cmkd_policy policy;
  const char *prefix;     /* of the options that messages name, cmkd_model_spec_read_as; NULL: "" */
  const char *precision;  /* the backend's arithmetic, recorded in caches; NULL: "fp32" */
  double precision_error; /* its measured error, likewise; 0: none */
} cmkd_teacher_options;

/* Loads weights, checks them against the data set's shape and classes, and makes a model on the backend. The teacher
 * borrows table, backend and data. cmkd_teacher_close frees it. */
cmkd_status cmkd_teacher_open(const cmkd_teacher_options *options, const cmkd_backend_table *table,
                              cmkd_backend *backend, const cmkd_dataset *data, cmkd_teacher **out, cmkd_error *err);

/* Of any teacher; strings and data belong to it. */
const cmkd_model_spec *cmkd_teacher_spec(const cmkd_teacher *teacher); /* channels 0: its normalisation is unknown */
const char *cmkd_teacher_name(const cmkd_teacher *teacher);            /* path of the weights, or a callback's name */
const char *cmkd_teacher_sha256(const cmkd_teacher *teacher);
const char *cmkd_teacher_precision(const cmkd_teacher *teacher, double *error);
const cmkd_dataset *cmkd_teacher_data(const cmkd_teacher *teacher);
cmkd_policy cmkd_teacher_policy(const cmkd_teacher *teacher);
int cmkd_teacher_batch(const cmkd_teacher *teacher);
int cmkd_teacher_feature_size(const cmkd_teacher *teacher); /* 0: no features */

/* Images of one cmkd_teacher_run between two questions whether to stop. */
enum { CMKD_TEACHER_GROUP = 1024 };
/* Logits (count, classes) and penultimate features (count, d), either NULL, of rows[i] augmented by seeds[i] (NULL:
 * clean). Any count; short batches are padded with the last row. Non-finite logits fail with CMKD_ERR_VALUE and name
 * the sample, so does a row outside the data set; features of a teacher without any are CMKD_ERR_UNSUPPORTED. */
cmkd_status cmkd_teacher_run(cmkd_teacher *teacher, const uint32_t *rows, const uint64_t *seeds, uint32_t count,
                             float *logits, float *features, cmkd_error *err);
#endif
