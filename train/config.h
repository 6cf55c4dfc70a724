/* What the user asked of `cmkd-train`: one options table, and the settings that it and the data resolve to. A settings
 * struct says everything that decides a run's numbers; its JSON is stored in the run and compared on --resume. Opens no
 * data. */
#ifndef CMKD_TRAIN_CONFIG_H
#define CMKD_TRAIN_CONFIG_H
#include <jansson.h>
#include <stdint.h>
#include "base/program/options.h"
#include "cmkd/cache.h"
#include "cmkd/dataset.h"
#include "cmkd/loss.h"
#include "cmkd/views.h"
#include "train/recipe.h"
#include "train/schedule.h"

/* As given; strings point into argv. A *_seen flag tells a given value from a default. */
typedef struct cmkd_train_options {
  const char *data, *cache, *teacher, *teacher_arch, *test_cache, *arch, *loss, *out, *device, *precision;
  const char *augment, *views, *schedule, *milestones, *recipe;
  uint64_t seed, cache_seed;
  int64_t samples, val, epochs, batch, teacher_batch, shuffle_block, threads, eval_every, save_every, max_steps,
      stream_memory;
  double lr, momentum, weight_decay, warmup, label_smoothing;
  float mean[3], std[3], teacher_mean[3], teacher_std[3];
  int nesterov, clean_view, resume, json, quiet, log_steps;
  int cache_seed_seen, epochs_seen, batch_seen, lr_seen, teacher_batch_seen, mean_seen, std_seen, teacher_mean_seen,
      teacher_std_seen, samples_seen, momentum_seen, weight_decay_seen;
  /* of --recipe (train/recipe_apply.h); the options above may point in here */
  cmkd_recipe recipe_loaded;
  int recipe_run, recipe_shortened;
  const char *recipe_asked; /* the loss before the recipe completed it */
  char recipe_milestones[128], recipe_expression[1024];
} cmkd_train_options;

void cmkd_train_options_default(cmkd_train_options *options);
/* The table of the options into `options`; `table` has room for CMKD_TRAIN_OPTIONS entries. */
#define CMKD_TRAIN_OPTIONS 48
void cmkd_train_options_table(cmkd_train_options *options, cmkd_option *table);
/* Contradictions that need no file: --cache with --teacher, --views without a teacher, ... */
cmkd_status cmkd_train_options_check(const cmkd_train_options *options, cmkd_error *err);

typedef enum cmkd_source_kind { CMKD_SOURCE_LABELS, CMKD_SOURCE_CACHE, CMKD_SOURCE_TEACHER } cmkd_source_kind;

/* Everything that decides the numbers of a run, with no default left open. */
typedef struct cmkd_settings {
  cmkd_source_kind source;
  char arch[64];
  cmkd_loss *loss; /* owned */
  int classes, channels, epochs, batch, nesterov;
  uint32_t samples, val,
      shuffle_block; /* samples: of the split or the cache, the first ones; val of them are held out */
  uint64_t seed;
  double label_smoothing, kappa, momentum, weight_decay;
  float mean[3], std[3];
  cmkd_schedule schedule;
  int eval_every;
  cmkd_policy policy;
  uint32_t views; /* 0 without a teacher; includes a clean view */
  int all_variants, clean_view;
  uint64_t cache_seed;
  int teacher_batch; /* 0: the runner's default */
  char precision[16];
} cmkd_settings;

/* Fills the gaps from the data set, and from the cache where there is one (else NULL). */
cmkd_status cmkd_settings_resolve(const cmkd_train_options *options, const cmkd_dataset *data,
                                  const cmkd_cache_info *cache, cmkd_settings *out, cmkd_error *err);
void cmkd_settings_free(cmkd_settings *settings);

/* A flat object; the fingerprints name the data, cache and teacher (NULL where there is none). Caller decrefs; NULL:
 * out of memory. */
json_t *cmkd_settings_json(const cmkd_settings *settings, const cmkd_dataset *data, const char *cache_sha256,
                           const char *teacher_sha256);
/* CMKD_ERR_MISMATCH naming the first setting that differs; `where` is the run's folder. */
cmkd_status cmkd_settings_compare(const json_t *stored, const json_t *now, const char *where, cmkd_error *err);
/* "runs/<student>-<loss>-<seed>" into fresh memory; NULL: out of memory. */
char *cmkd_default_out(const cmkd_train_options *options, const cmkd_settings *settings);
#endif
