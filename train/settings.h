/* Everything that decides the numbers of a run and may differ between runs, with no default left open: resolved from
 * the options, the data set and the cache, stored in the run as JSON and compared on --resume. Constants of all runs
 * are CMKD_AGREEMENT_KAPPA and CMKD_MILESTONE_FACTOR. Opens no data. */
#ifndef CMKD_TRAIN_SETTINGS_H
#define CMKD_TRAIN_SETTINGS_H
#include <jansson.h>
#include "cmkd/cache.h"
#include "cmkd/dataset.h"
#include "cmkd/loss.h"
#include "cmkd/views.h"
#include "train/options.h"
#include "train/schedule.h"

#define CMKD_AGREEMENT_KAPPA 2.0 /* strength of the soft rank behind the figures of agreement */

typedef enum cmkd_source_kind { CMKD_SOURCE_LABELS, CMKD_SOURCE_CACHE, CMKD_SOURCE_TEACHER } cmkd_source_kind;

/* What all students of a session have in common. */
typedef struct cmkd_session_settings {
  cmkd_source_kind source;
  int classes, channels;
  cmkd_policy policy;
  uint32_t views; /* 0 without a teacher; includes a clean view */
  int all_variants, clean_view;
  uint64_t cache_seed;
  int teacher_batch; /* 0 without a teacher */
  char precision[16];
} cmkd_session_settings;

typedef struct cmkd_settings {
  cmkd_session_settings session;
  char arch[64];
  cmkd_loss *loss; /* owned */
  int epochs, batch, nesterov;
  uint32_t samples, val; /* of the split or the cache, the first ones; val of them are held out */
  uint32_t shuffle_block;
  uint64_t seed;
  double label_smoothing, momentum, weight_decay;
  float mean[3], std[3];
  cmkd_schedule schedule;
  int eval_every;
} cmkd_settings;

/* Fills the gaps from the data set, and from the cache where there is one (else NULL). */
cmkd_status cmkd_session_settings_resolve(const cmkd_session_options *options, const cmkd_dataset *data,
                                          const cmkd_cache_info *cache, cmkd_session_settings *out, cmkd_error *err);
/* A student's, in a session of these settings and options. On failure too, cmkd_settings_free frees what was made. */
cmkd_status cmkd_settings_resolve(const cmkd_session_settings *session, const cmkd_session_options *session_options,
                                  const cmkd_student_options *options, const cmkd_dataset *data,
                                  const cmkd_cache_info *cache, cmkd_settings *out, cmkd_error *err);
void cmkd_settings_free(cmkd_settings *settings);
/* The loss of a student that names none. */
const char *cmkd_default_loss(cmkd_source_kind source);

/* A flat object; the fingerprints name the data, cache and teacher (NULL where there is none). Caller decrefs; NULL:
 * out of memory. */
json_t *cmkd_settings_json(const cmkd_settings *settings, const cmkd_dataset *data, const char *cache_sha256,
                           const char *teacher_sha256);
/* CMKD_ERR_MISMATCH naming the first setting that differs; `where` is the run's folder. */
cmkd_status cmkd_settings_compare(const json_t *stored, const json_t *now, const char *where, cmkd_error *err);
/* "runs/<student>-<loss>-<seed>" into fresh memory, `loss` as it was given or NULL, the default. NULL: no memory. */
char *cmkd_default_out(const char *loss, const cmkd_settings *settings);
#endif
