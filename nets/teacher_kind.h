/* What the implementations of a teacher (teacher_network.c, teacher_callback.c) fill in and teacher.c works with. */
#ifndef CMKD_NETS_TEACHER_KIND_H
#define CMKD_NETS_TEACHER_KIND_H
#include "nets/teacher.h"

typedef struct cmkd_teacher_kind {
  /* Logits (batches * batch, classes) and features (batches * batch, feature_count), either NULL, of whole batches. */
  cmkd_status (*run)(cmkd_teacher *teacher, const uint32_t *rows, const uint64_t *seeds, uint32_t batches,
                     float *logits, float *features, cmkd_error *err);
  void (*close)(void *state);
} cmkd_teacher_kind;

struct cmkd_teacher {
  const cmkd_teacher_kind *kind;
  void *state; /* the implementation's own, for kind->close; or NULL */
  char *name;  /* for messages: the weight file's path, or what the callback says */
  char sha256[65], precision[16];
  double precision_error;
  cmkd_model_spec spec; /* channels 0: normalisation unknown */
  const cmkd_dataset *data;
  cmkd_policy policy;
  int batch, classes;
  int feature_count; /* of an image; 0: it has none to give */
  uint32_t *rows;    /* (batch) a short batch and its padding */
  uint64_t *seeds;   /* (batch) */
  float *logits;     /* (batch, classes) of a short batch */
  float *features;   /* (batch, feature_count) */
};

/* A teacher without a state; the implementation sets the other fields, then calls cmkd_teacher_allocate. On failure of
 * either it calls cmkd_teacher_close. NULL where memory is short. */
cmkd_teacher *cmkd_teacher_new(const cmkd_teacher_kind *kind, const char *name);
/* The batch, 0 replaced by the default; 0 after an error. */
int cmkd_teacher_check_batch(int batch, cmkd_error *err);
cmkd_status cmkd_teacher_check_data(const char *name, int classes, const cmkd_dataset *data, cmkd_error *err);
/* Buffers of a short batch: batch, classes and feature_count are known. */
cmkd_status cmkd_teacher_allocate(cmkd_teacher *teacher, cmkd_error *err);
#endif
