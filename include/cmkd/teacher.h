/* A teacher that the library knows nothing of: your function of pixels, which makes logits. cmkd_build_cache
 * (cmkd/build.h) fills a cache from it, a session (cmkd/train.h) runs it beside its students. docs/examples/teacher.c
 * is a whole program.
 *
 * Threads: a teacher serves one call at a time; its function runs on the thread that called the library, never twice at
 * once. Different teachers are independent. No pointer may be NULL unless that is said; `err` may always be. */
#ifndef CMKD_TEACHER_H
#define CMKD_TEACHER_H
#include <stdint.h>
#include "cmkd/api.h"
#include "cmkd/dataset.h"
#include "cmkd/status.h"
#include "cmkd/views.h"
#ifdef __cplusplus
extern "C" {
#endif

#define CMKD_TEACHER_BATCH 128 /* default of cmkd_teacher_callback.batch */

typedef struct cmkd_teacher cmkd_teacher;

/* A teacher of any make. Everything but `self` is copied by cmkd_teacher_from_callback; `self` must live as long as the
 * teacher. Zero and NULL mean the default that is named. */
typedef struct cmkd_teacher_callback {
  void *self; /* handed to run */
  /* Logits (count, classes) of pixels (count, height, width, channels), uint8, augmented by their views' seeds and not
   * normalised. `count` is always `batch`: a short batch is padded, so that a row's bits need not depend on how many
   * there are. The answer for a row must depend on its pixels alone. On failure return a status other than CMKD_OK and
   * fill `err` with one line (cmkd_fail); the call of the library ends with it. */
  cmkd_status (*run)(void *self, const uint8_t *pixels, int count, float *logits, cmkd_error *err);
  int classes; /* of the logits; must be the data set's; 0: the data set's */
  int batch;   /* images of one call, 1 to 65536, recorded in the cache; 0: CMKD_TEACHER_BATCH */
  /* Who it is, recorded in the cache. Builds of one cache are continued only by a teacher of the same identity. */
  /* 64 lower-case hex digits that change whenever the teacher does: of its weight file, say (cmkd_weights.sha256). */
  const char *sha256;
  const char *name;        /* of the weight file, for people; NULL: "callback" */
  const char *arch;        /* NULL: "" */
  const float *mean, *std; /* (channels of the data set) x = (pixel / 255 - mean) / std; NULL, both: not recorded */
  const char *precision;   /* "fp32", "fp16", ...; NULL: "fp32" */
  double precision_error;  /* root mean square difference of its logits from fp32's; 0: none or not measured */
} cmkd_teacher_callback;

/* A teacher over the images of `data`, whose views are those of `policy`. `data` is borrowed and must outlive it.
 * CMKD_ERR_USAGE for a callback without run or sha256, or with a batch out of range; CMKD_ERR_MISMATCH for another
 * number of classes than the data set's. *out is NULL after a failure. */
CMKD_API cmkd_status cmkd_teacher_from_callback(const cmkd_teacher_callback *callback, const cmkd_dataset *data,
                                                cmkd_policy policy, cmkd_teacher **out, cmkd_error *err);
/* NULL does nothing. */
CMKD_API void cmkd_teacher_close(cmkd_teacher *teacher);

#ifdef __cplusplus
}
#endif
#endif
