/* The inside of a session (cmkd/train.h): what its students share. They read it; only the views of the cache that are
 * on the device grow, and what a view holds does not depend on who asked for it. */
#ifndef CMKD_TRAIN_SESSION_H
#define CMKD_TRAIN_SESSION_H
#include "kernels/backend.h"
#include "nets/teacher.h"
#include "train/resident.h"
#include "train/settings.h"

struct cmkd_session {
  cmkd_session_options options; /* strings owned */
  cmkd_session_settings settings;
  cmkd_dataset *train, *test;
  cmkd_cache *cache; /* or NULL */
  /* from cmkd_session_open_device on */
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_be_images *train_images, *test_images;
  cmkd_teacher *teacher;      /* live, on the training images; or NULL */
  cmkd_teacher *test_teacher; /* a callback's, on the test images; a network is opened when it is asked for; or NULL */
  cmkd_resident *resident;    /* the cache's logits on the device, or NULL */
  /* from cmkd_session_load_test_logits on */
  float *teacher_test_logits; /* (test->n, classes) or NULL */
  char note[512];             /* why those are NULL though there is a teacher; else empty */
};

/* cmkd_session_open in two steps: what is cheap to refuse, then the device and what lives on it. *out is set on failure
 * too where it was made, for cmkd_session_close. `backend` says what the session's options do not (NULL: nothing). */
cmkd_status cmkd_session_open_data(const cmkd_session_options *options, cmkd_session **out, cmkd_error *err);
cmkd_status cmkd_session_open_device(cmkd_session *session, const cmkd_backend_options *backend, cmkd_error *err);

static inline const cmkd_cache_info *cmkd_session_cache_info(const cmkd_session *s) {
  return s->cache ? cmkd_cache_get_info(s->cache) : NULL;
}
/* Of the teacher's weights, and its network; NULL without a teacher. A live one is known once the device is open. */
const char *cmkd_session_teacher_sha256(const cmkd_session *session);
const char *cmkd_session_teacher_arch(const cmkd_session *session);
#endif
