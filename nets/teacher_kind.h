/* What the makers of teachers (teacher_network.c, teacher_callback.c) fill in and nets/teacher.c works with. */
#ifndef CMKD_NETS_TEACHER_KIND_H
#define CMKD_NETS_TEACHER_KIND_H
#include "nets/teacher.h"

typedef struct cmkd_teacher_kind {
  /* Logits (batches * batch, classes) and features (batches * batch, features), either NULL, of whole batches. */
  cmkd_status (*run)(cmkd_teacher *teacher, const uint32_t *rows, const uint64_t *seeds, uint32_t batches,
                     float *logits, float *features, cmkd_error *err);
  void (*close)(void *maker);
} cmkd_teacher_kind;

struct cmkd_teacher {
  const cmkd_teacher_kind *kind;
  void *maker; /* the kind's own state */
  char *name;  /* for messages: the weight file's path, or what the callback says */
  char sha256[65], precision[16];
  double precision_error;
  cmkd_model_spec spec; /* channels 0: normalisation unknown */
  const cmkd_dataset *data;
  cmkd_policy policy;
  int batch, classes, features; /* features 0: it has none to give */
  uint32_t *rows;               /* (batch) a short batch and its padding */
  uint64_t *seeds;              /* (batch) */
  float *logits, *feature;      /* (batch, classes), (batch, features) of a short batch */
};

/* A teacher without a maker's state; the maker sets the other fields, then calls cmkd_teacher_allocate. On failure of
 * either the maker calls cmkd_teacher_close. NULL where memory is short. */
cmkd_teacher *cmkd_teacher_new(const cmkd_teacher_kind *kind, const char *name);
/* The batch, 0 replaced by the default; 0 after an error. */
int cmkd_teacher_check_batch(int batch, cmkd_error *err);
cmkd_status cmkd_teacher_check_data(const char *name, int classes, const cmkd_dataset *data, cmkd_error *err);
/* Buffers of a short batch: batch, classes and features are known. */
cmkd_status cmkd_teacher_allocate(cmkd_teacher *teacher, cmkd_error *err);
#endif
