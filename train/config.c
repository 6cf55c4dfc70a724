/* Options and their resolution into settings. See config.h. */
#include "train/config.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "nets/teacher.h"

void cmkd_train_options_default(cmkd_train_options *o) {
  memset(o, 0, sizeof *o);
  o->device = "auto";
  o->precision = "fp32";
  o->seed = 1;
  o->batch = 64;
  o->eval_every = 1;
  o->momentum = 0.9;
  o->weight_decay = 5e-4;
}

void cmkd_train_options_table(cmkd_train_options *o, cmkd_option *table) {
  const cmkd_option all[] = {
      {"--data", "SPEC", CMKD_OPT_STRING, &o->data, "data set: NAME or NAME:DIR [the cache's, else fashion-mnist]", 0,
       0, NULL},
      {"--cache", "FILE", CMKD_OPT_STRING, &o->cache, "learn from this teacher cache (cmkd-cache build)", 0, 0, NULL},
      {"--teacher", "FILE", CMKD_OPT_STRING, &o->teacher, "or run this teacher live, on the pixels a cache would hold",
       0, 0, NULL},
      {"--cache-seed", "S", CMKD_OPT_UINT64, &o->cache_seed, "live: seed of the views, as cmkd-cache build --seed [0]",
       0, 0, &o->cache_seed_seen},
      {"--views", "V|all", CMKD_OPT_STRING, &o->views, "live: views of each sample [all]", 0, 0, NULL},
      {"--clean-view", NULL, CMKD_OPT_FLAG, &o->clean_view, NULL, 0, 0, NULL},
      {"--teacher-batch", "N", CMKD_OPT_INT, &o->teacher_batch, NULL, 1, 65536, &o->teacher_batch_seen},
      {"--teacher-arch", "NAME", CMKD_OPT_STRING, &o->teacher_arch, NULL, 0, 0, NULL},
      {"--teacher-mean", "R,G,B", CMKD_OPT_FLOATS3, o->teacher_mean, NULL, 0, 0, &o->teacher_mean_seen},
      {"--teacher-std", "R,G,B", CMKD_OPT_FLOATS3, o->teacher_std, NULL, 0, 0, &o->teacher_std_seen},
      {"--test-cache", "FILE", CMKD_OPT_STRING, &o->test_cache,
       "teacher logits of the test split [CACHE.test.h5 if there]", 0, 0, NULL},
      {"--recipe", "NAME", CMKD_OPT_STRING, &o->recipe, "the published settings of a pair, see cmkd-train recipes", 0,
       0, NULL},
      {"--student", "NAME", CMKD_OPT_STRING, &o->arch,
       "network, see cmkd-train nets [resnet20; resnet8 for MNIST-like]", 0, 0, NULL},
      {"--arch", "NAME", CMKD_OPT_STRING, &o->arch, NULL, 0, 0, NULL},
      {"--loss", "EXPR", CMKD_OPT_STRING, &o->loss,
       "ce, kd, cmkd, dkd+cmkd, 'cmkd:beta=4,T=4', ... [cmkd; ce without teacher]", 0, 0, NULL},
      {"--epochs", "N", CMKD_OPT_INT, &o->epochs, "[240; 30 for MNIST-like]", 1, 100000, &o->epochs_seen},
      {"--batch", "N", CMKD_OPT_INT, &o->batch, "[64]", 1, 65536, &o->batch_seen},
      {"--lr", "X", CMKD_OPT_DOUBLE, &o->lr, "learning rate [0.05; 0.01 for ShuffleNet and MobileNet]", 0, 1e6,
       &o->lr_seen},
      {"--schedule", "NAME", CMKD_OPT_STRING, &o->schedule, "step, cosine, constant [step]", 0, 0, NULL},
      {"--milestones", "E,E,..", CMKD_OPT_STRING, &o->milestones,
       "step: x0.1 after these epochs [5/8, 3/4, 7/8 of all]", 0, 0, NULL},
      {"--warmup", "EPOCHS", CMKD_OPT_DOUBLE, &o->warmup, "linear warm-up [0]", 0, 100000, NULL},
      {"--momentum", "X", CMKD_OPT_DOUBLE, &o->momentum, NULL, 0, 0.999999, &o->momentum_seen},
      {"--nesterov", NULL, CMKD_OPT_FLAG, &o->nesterov, NULL, 0, 0, NULL},
      {"--weight-decay", "X", CMKD_OPT_DOUBLE, &o->weight_decay, NULL, 0, 1, &o->weight_decay_seen},
      {"--label-smoothing", "X", CMKD_OPT_DOUBLE, &o->label_smoothing, "of the cross-entropy [0]", 0, 0.999999, NULL},
      {"--augment", "POLICY", CMKD_OPT_STRING, &o->augment,
       "none, flip, crop, crop+flip [the cache's; crop+flip; MNIST: crop]", 0, 0, NULL},
      {"--mean", "R,G,B", CMKD_OPT_FLOATS3, o->mean, "with --std R,G,B: the student's normalisation [the data set's]",
       0, 0, &o->mean_seen},
      {"--std", "R,G,B", CMKD_OPT_FLOATS3, o->std, NULL, 0, 0, &o->std_seen},
      {"--samples", "N", CMKD_OPT_INT, &o->samples, "use the first N training samples [all]", 1, 4294967295.0,
       &o->samples_seen},
      {"--val", "N", CMKD_OPT_INT, &o->val, "hold out N of them; they choose the best epoch [0]", 0, 4294967295.0,
       NULL},
      {"--shuffle-block", "B", CMKD_OPT_INT, &o->shuffle_block,
       "shuffle by blocks of B, for caches larger than memory [0]", 0, 4294967295.0, NULL},
      {"--stream-memory", "MB", CMKD_OPT_INT, &o->stream_memory, NULL, 1, 1 << 30, NULL},
      {"--seed", "R", CMKD_OPT_UINT64, &o->seed, "weights, order of samples and views [1]", 0, 0, NULL},
      {"--eval-every", "N", CMKD_OPT_INT, &o->eval_every, NULL, 1, 100000, NULL},
      {"--out", "DIR", CMKD_OPT_STRING, &o->out, "the run's folder [runs/STUDENT-LOSS-SEED]", 0, 0, NULL},
      {"--resume", NULL, CMKD_OPT_FLAG, &o->resume, "go on where the run in --out stopped, bit-exactly", 0, 0, NULL},
      {"--save-every", "STEPS", CMKD_OPT_INT, &o->save_every, "save the state this often, too [each epoch]", 1, 1e15,
       NULL},
      {"--max-steps", "N", CMKD_OPT_INT, &o->max_steps, NULL, 1, 1e15, NULL},
      {"--log-steps", NULL, CMKD_OPT_FLAG, &o->log_steps, NULL, 0, 0, NULL},
      {"--device", "NAME", CMKD_OPT_STRING, &o->device, "auto, cpu, cuda, cuda:N [auto]", 0, 0, NULL},
      {"--precision", "NAME", CMKD_OPT_STRING, &o->precision, "fp32; with cuda also tf32, bf16, fp16 [fp32]", 0, 0,
       NULL},
      {"--threads", "N", CMKD_OPT_INT, &o->threads, "[all cores]", 1, 4096, NULL},
      {"--json", NULL, CMKD_OPT_FLAG, &o->json, "print one JSON object at the end", 0, 0, NULL},
      {"--quiet", NULL, CMKD_OPT_FLAG, &o->quiet, NULL, 0, 0, NULL},
      {NULL, NULL, CMKD_OPT_FLAG, NULL, NULL, 0, 0, NULL}};
  _Static_assert(sizeof all / sizeof *all <= CMKD_TRAIN_OPTIONS, "enlarge CMKD_TRAIN_OPTIONS");
  memcpy(table, all, sizeof all);
}

cmkd_status cmkd_train_options_check(const cmkd_train_options *o, cmkd_error *err) {
  if (o->cache && o->teacher)
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "--cache %s and --teacher %s exclude each other: the cache already holds its teacher's logits",
                     o->cache, o->teacher);
  if (o->std_seen != o->mean_seen)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s needs %s beside it", o->mean_seen ? "--mean" : "--std",
                     o->mean_seen ? "--std" : "--mean");
  for (int c = 0; o->std_seen && c < 3; c++)
    if (!(o->std[c] > 0)) return cmkd_fail(err, CMKD_ERR_USAGE, "--std: %g is not above 0", (double)o->std[c]);
  if (o->lr_seen && !(o->lr > 0)) return cmkd_fail(err, CMKD_ERR_USAGE, "--lr %g is not above 0", o->lr);
  if (!o->cache && !o->teacher) {
    const char *alone = o->views                ? "--views"
                        : o->cache_seed_seen    ? "--cache-seed"
                        : o->clean_view         ? "--clean-view"
                        : o->teacher_batch_seen ? "--teacher-batch"
                        : o->test_cache         ? "--test-cache"
                                                : NULL;
    if (alone) return cmkd_fail(err, CMKD_ERR_USAGE, "%s needs a teacher: give --cache FILE or --teacher FILE", alone);
  }
  if (o->stream_memory && !o->cache) return cmkd_fail(err, CMKD_ERR_USAGE, "--stream-memory needs --cache FILE");
  if (o->test_cache && o->teacher)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--test-cache is for --cache; a live teacher sees the test split itself");
  const char *own = o->teacher_arch        ? "--teacher-arch"
                    : o->teacher_mean_seen ? "--teacher-mean"
                    : o->teacher_std_seen  ? "--teacher-std"
                                           : NULL;
  if (own && !o->teacher) return cmkd_fail(err, CMKD_ERR_USAGE, "%s is for --teacher FILE", own);
  if (o->teacher_mean_seen != o->teacher_std_seen)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--teacher-mean and --teacher-std go together");
  return CMKD_OK;
}

static int mnist_like(const cmkd_dataset *data) {
  return !strcmp(data->name, "mnist") || !strcmp(data->name, "fashion-mnist");
}

/* Views, seed and policy: the cache's word, which the options may repeat but not change. */
static cmkd_status resolve_cached_views(const cmkd_train_options *o, const cmkd_cache_info *cache, cmkd_settings *s,
                                        cmkd_error *err) {
  const cmkd_cache_identity *id = &cache->identity;
  if (strcmp(id->rng_version, CMKD_RNG_VERSION))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: its views were drawn by %s, this program draws %s: rebuild the cache",
                     o->cache, id->rng_version, CMKD_RNG_VERSION);
  s->policy = id->policy;
  s->views = cache->views;
  s->all_variants = id->all_variants;
  s->clean_view = id->clean_view;
  s->cache_seed = id->cache_seed;
  s->teacher_batch = id->teacher_batch;
  if (o->augment) {
    cmkd_policy asked;
    CMKD_TRY(cmkd_policy_parse(o->augment, &asked, err));
    if (asked != id->policy)
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s holds views of --augment %s, not of --augment %s: drop the option, or build a cache with it",
                       o->cache, cmkd_policy_name(id->policy), cmkd_policy_name(asked));
  }
  if (o->cache_seed_seen && o->cache_seed != id->cache_seed)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s was built with --seed %llu, not %llu: drop --cache-seed", o->cache,
                     (unsigned long long)id->cache_seed, (unsigned long long)o->cache_seed);
  if (o->teacher_batch_seen && o->teacher_batch != id->teacher_batch)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s was built with --teacher-batch %d, not %lld: drop the option",
                     o->cache, id->teacher_batch, (long long)o->teacher_batch);
  if (o->clean_view && !id->clean_view)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds no clean view: drop --clean-view, or build a cache with it",
                     o->cache);
  if (o->views) {
    uint32_t augmented = cache->views - (id->clean_view ? 1 : 0);
    char held[24];
    if (id->all_variants)
      snprintf(held, sizeof held, "all");
    else
      snprintf(held, sizeof held, "%u", augmented);
    if (strcmp(o->views, held))
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds --views %s, not %s: drop the option", o->cache, held,
                       o->views);
  }
  return CMKD_OK;
}

static cmkd_status resolve_live_views(const cmkd_train_options *o, const cmkd_dataset *data, cmkd_settings *s,
                                      cmkd_error *err) {
  CMKD_TRY(cmkd_dataset_policy(data->name, &s->policy, err));
  if (o->augment) CMKD_TRY(cmkd_policy_parse(o->augment, &s->policy, err));
  if (!o->teacher) return CMKD_OK;
  s->cache_seed = o->cache_seed;
  s->teacher_batch = o->teacher_batch ? (int)o->teacher_batch : CMKD_TEACHER_BATCH;
  s->clean_view = o->clean_view;
  if (!o->views || !strcmp(o->views, "all")) {
    s->all_variants = 1;
    s->views = cmkd_policy_variants(s->policy);
  } else {
    char *end;
    unsigned long views = strtoul(o->views, &end, 10);
    if (o->views[0] < '0' || o->views[0] > '9' || *end || views < 1 || views > 65536)
      return cmkd_fail(err, CMKD_ERR_USAGE, "--views %s: expected a number from 1 to 65536, or all", o->views);
    s->views = (uint32_t)views;
  }
  s->views += s->clean_view ? 1 : 0;
  return CMKD_OK;
}

static cmkd_status resolve_samples(const cmkd_train_options *o, const cmkd_dataset *data, const cmkd_cache_info *cache,
                                   cmkd_settings *s, cmkd_error *err) {
  uint64_t have = cache ? cache->samples : data->n, want = o->samples_seen ? (uint64_t)o->samples : have;
  if (want > have) {
    if (cache)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "--samples %llu: %s holds %llu samples", (unsigned long long)want,
                       o->cache, (unsigned long long)have);
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "--samples %llu: the %s split of %s has %llu", (unsigned long long)want,
                     data->split, data->name, (unsigned long long)have);
  }
  if ((uint64_t)o->val >= want)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--val %lld leaves nothing to train on: there are %llu samples",
                     (long long)o->val, (unsigned long long)want);
  s->samples = (uint32_t)want;
  s->val = (uint32_t)o->val;
  return CMKD_OK;
}

static cmkd_status resolve_loss(const cmkd_train_options *o, const cmkd_cache_info *cache, cmkd_settings *s,
                                cmkd_error *err) {
  const char *expression = o->loss ? o->loss : s->source == CMKD_SOURCE_LABELS ? "ce" : "cmkd";
  CMKD_TRY(cmkd_loss_parse(expression, CMKD_LOSS_CIFAR, &s->loss, err));
  if (cmkd_loss_needs_teacher(s->loss) && s->source == CMKD_SOURCE_LABELS)
    return cmkd_fail(
        err, CMKD_ERR_USAGE,
        "--loss %s needs a teacher: give --cache FILE or --teacher FILE, or train on labels with --loss ce",
        expression);
  if (cache && cache->kept < cache->classes && cmkd_loss_needs_full_row(s->loss))
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s keeps %u of %u logits a row (codec %s) and --loss %s needs whole rows: use --loss kd, or "
                     "build the cache with --codec f16",
                     o->cache, cache->kept, cache->classes, cache->identity.codec, expression);
  return CMKD_OK;
}

cmkd_status cmkd_settings_resolve(const cmkd_train_options *o, const cmkd_dataset *data, const cmkd_cache_info *cache,
                                  cmkd_settings *s, cmkd_error *err) {
  memset(s, 0, sizeof *s);
  s->source = cache ? CMKD_SOURCE_CACHE : o->teacher ? CMKD_SOURCE_TEACHER : CMKD_SOURCE_LABELS;
  const char *arch = o->arch ? o->arch : mnist_like(data) ? "resnet8" : "resnet20";
  if (strlen(arch) >= sizeof s->arch)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--student %.40s...: no such network; see cmkd-train nets", arch);
  strcpy(s->arch, arch);
  s->classes = data->classes;
  s->channels = data->channels;
  s->epochs = o->epochs_seen ? (int)o->epochs : mnist_like(data) ? 30 : 240;
  s->batch = (int)o->batch;
  s->seed = o->seed;
  s->momentum = o->momentum;
  s->weight_decay = o->weight_decay;
  s->nesterov = o->nesterov;
  s->label_smoothing = o->label_smoothing;
  s->kappa = 2;
  s->eval_every = (int)o->eval_every;
  s->shuffle_block = (uint32_t)o->shuffle_block;
  if (strlen(o->precision) >= sizeof s->precision)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--precision %.40s is not known", o->precision);
  strcpy(s->precision, o->precision);
  memcpy(s->mean, o->mean_seen ? o->mean : data->mean, sizeof s->mean);
  memcpy(s->std, o->std_seen ? o->std : data->std, sizeof s->std);
  CMKD_TRY(resolve_samples(o, data, cache, s, err));
  CMKD_TRY(cache ? resolve_cached_views(o, cache, s, err) : resolve_live_views(o, data, s, err));
  CMKD_TRY(resolve_loss(o, cache, s, err));
  cmkd_schedule *schedule = &s->schedule;
  CMKD_TRY(cmkd_schedule_parse(o->schedule ? o->schedule : "step", &schedule->kind, err));
  int small = !strncmp(arch, "shufflenet", 10) || !strncmp(arch, "mobilenet", 9);
  schedule->lr = o->lr_seen ? o->lr : small ? 0.01 : 0.05;
  schedule->gamma = 0.1;
  schedule->epochs = s->epochs;
  schedule->warmup = o->warmup;
  schedule->steps_per_epoch = (int)(((uint64_t)s->samples - s->val + (uint64_t)s->batch - 1) / (uint64_t)s->batch);
  if (o->milestones && schedule->kind != CMKD_SCHEDULE_STEP)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--milestones is for --schedule step, not %s", o->schedule);
  if (schedule->kind == CMKD_SCHEDULE_STEP) CMKD_TRY(cmkd_schedule_milestones(schedule, o->milestones, err));
  return CMKD_OK;
}

void cmkd_settings_free(cmkd_settings *s) {
  cmkd_loss_free(s->loss);
  s->loss = NULL;
}

/* The shortest decimals that give the same floats again: 0.3081, not 0.30809998512268066. */
static json_t *floats_json(const float *values, int count) {
  json_t *list = json_array();
  for (int i = 0; i < count; i++) {
    char text[32];
    int digits = 5;
    do
      snprintf(text, sizeof text, "%.*g", ++digits, (double)values[i]);
    while (digits < 9 && strtof(text, NULL) != values[i]);
    json_array_append_new(list, json_real(strtod(text, NULL)));
  }
  return list;
}

static json_t *u64_json(uint64_t value) { /* JSON readers keep 53 bits: large seeds go as text */
  char text[24];
  snprintf(text, sizeof text, "%llu", (unsigned long long)value);
  return value < 1ull << 53 ? json_integer((json_int_t)value) : json_string(text);
}

json_t *cmkd_settings_json(const cmkd_settings *s, const cmkd_dataset *data, const char *cache_sha256,
                           const char *teacher_sha256) {
  static const char *const sources[] = {"labels", "cache", "teacher"};
  json_t *o = json_object(), *milestones = json_array();
  for (int i = 0; i < s->schedule.milestones; i++)
    json_array_append_new(milestones, json_integer(s->schedule.milestone[i]));
  json_object_set_new(o, "data", json_string(data->name));
  json_object_set_new(o, "fingerprint", json_string(data->fingerprint));
  json_object_set_new(o, "classes", json_integer(s->classes));
  json_object_set_new(o, "samples", json_integer(s->samples));
  json_object_set_new(o, "val", json_integer(s->val));
  json_object_set_new(o, "source", json_string(sources[s->source]));
  if (cache_sha256) json_object_set_new(o, "cache_sha256", json_string(cache_sha256));
  if (teacher_sha256) json_object_set_new(o, "teacher_sha256", json_string(teacher_sha256));
  if (s->source != CMKD_SOURCE_LABELS) {
    json_object_set_new(o, "views", json_integer(s->views));
    json_object_set_new(o, "all_variants", json_boolean(s->all_variants));
    json_object_set_new(o, "clean_view", json_boolean(s->clean_view));
    json_object_set_new(o, "cache_seed", u64_json(s->cache_seed));
    json_object_set_new(o, "teacher_batch", json_integer(s->teacher_batch));
  }
  json_object_set_new(o, "augment", json_string(cmkd_policy_name(s->policy)));
  json_object_set_new(o, "rng", json_string(CMKD_RNG_VERSION));
  json_object_set_new(o, "student", json_string(s->arch));
  json_object_set_new(o, "mean", floats_json(s->mean, s->channels));
  json_object_set_new(o, "std", floats_json(s->std, s->channels));
  json_object_set_new(o, "loss", json_string(cmkd_loss_text(s->loss)));
  json_object_set_new(o, "label_smoothing", json_real(s->label_smoothing));
  json_object_set_new(o, "epochs", json_integer(s->epochs));
  json_object_set_new(o, "batch", json_integer(s->batch));
  json_object_set_new(o, "lr", json_real(s->schedule.lr));
  json_object_set_new(o, "schedule", json_string(cmkd_schedule_name(s->schedule.kind)));
  json_object_set_new(o, "milestones", milestones);
  json_object_set_new(o, "warmup", json_real(s->schedule.warmup));
  json_object_set_new(o, "momentum", json_real(s->momentum));
  json_object_set_new(o, "nesterov", json_boolean(s->nesterov));
  json_object_set_new(o, "weight_decay", json_real(s->weight_decay));
  json_object_set_new(o, "shuffle_block", json_integer(s->shuffle_block));
  json_object_set_new(o, "seed", u64_json(s->seed));
  json_object_set_new(o, "eval_every", json_integer(s->eval_every));
  json_object_set_new(o, "precision", json_string(s->precision));
  return o;
}

/* A value as a user would write it; fresh memory. */
static char *value_text(const json_t *value) {
  if (!value) return cmkd_format("not set");
  if (json_is_string(value)) return cmkd_format("%.200s", json_string_value(value));
  return json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9));
}

cmkd_status cmkd_settings_compare(const json_t *stored, const json_t *now, const char *where, cmkd_error *err) {
  for (int side = 0; side < 2; side++) { /* keys of both: one may be absent on either side */
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(side ? stored : now), key, value) {
      const json_t *theirs = json_object_get(stored, key), *ours = json_object_get(now, key);
      if (theirs && ours && json_equal(theirs, ours)) continue;
      char *was = value_text(theirs), *is = value_text(ours);
      cmkd_fail(
          err, CMKD_ERR_MISMATCH,
          "%s holds a run of other settings: %s is %s there and %s here; repeat its settings, or give another --out",
          where, key, was ? was : "?", is ? is : "?");
      free(was);
      free(is);
      return CMKD_ERR_MISMATCH;
    }
  }
  return CMKD_OK;
}

char *cmkd_default_out(const cmkd_train_options *o, const cmkd_settings *s) {
  char loss[49];
  const char *text = o->loss ? o->loss : s->source == CMKD_SOURCE_LABELS ? "ce" : "cmkd";
  size_t size = 0;
  for (; text[size] && size < sizeof loss - 1; size++) {
    char c = text[size];
    int plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '+' || c == '=' ||
                c == '.' || c == '-';
    loss[size] = plain ? c : '_';
  }
  loss[size] = 0;
  return cmkd_format("runs/%s-%s-%llu", s->arch, loss, (unsigned long long)s->seed);
}
