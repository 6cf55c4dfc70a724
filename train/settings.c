/* From options to settings, and settings as JSON. See settings.h. */
#include "train/settings.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "kernels/loss.h"
#include "nets/teacher.h"

static int mnist_like(const cmkd_dataset *data) {
  return !strcmp(data->name, "mnist") || !strcmp(data->name, "fashion-mnist");
}

/* ---- what students share ---- */

/* Options may repeat what the cache says about its views, but not change it. */
static cmkd_status check_cached_views(const cmkd_session_options *o, const cmkd_cache_info *cache, cmkd_error *err) {
  const cmkd_cache_identity *id = &cache->identity;
  if (o->augment) {
    cmkd_policy asked;
    CMKD_TRY(cmkd_policy_parse(o->augment, &asked, err));
    if (asked != id->policy)
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s holds views of --augment %s, not of --augment %s: drop the option, or build a cache with it",
                       o->cache, cmkd_policy_name(id->policy), cmkd_policy_name(asked));
  }
  if (o->cache_seed_given && o->cache_seed != id->cache_seed)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s was built with --seed %llu, not %llu: drop --cache-seed", o->cache,
                     (unsigned long long)id->cache_seed, (unsigned long long)o->cache_seed);
  if (o->teacher_batch && o->teacher_batch != id->teacher_batch)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s was built with --teacher-batch %d, not %lld: drop the option",
                     o->cache, id->teacher_batch, (long long)o->teacher_batch);
  if (o->clean_view && !id->clean_view)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds no clean view: drop --clean-view, or build a cache with it",
                     o->cache);
  if (!o->views) return CMKD_OK;
  char held[24] = "all";
  uint32_t augmented = cache->views - (id->clean_view ? 1 : 0);
  if (!id->all_variants) snprintf(held, sizeof held, "%u", augmented);
  if (strcmp(o->views, held))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s holds --views %s, not %s: drop the option", o->cache, held, o->views);
  return CMKD_OK;
}

static cmkd_status resolve_cached_views(const cmkd_session_options *o, const cmkd_cache_info *cache,
                                        cmkd_session_settings *s, cmkd_error *err) {
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
  return check_cached_views(o, cache, err);
}

/* Without a cache: the policy, and the views of a live teacher. */
static cmkd_status resolve_own_views(const cmkd_session_options *o, const cmkd_dataset *data, cmkd_session_settings *s,
                                     cmkd_error *err) {
  CMKD_TRY(cmkd_dataset_policy(data->name, &s->policy, err));
  if (o->augment) CMKD_TRY(cmkd_policy_parse(o->augment, &s->policy, err));
  if (!cmkd_session_is_live(o)) return CMKD_OK;
  s->cache_seed = o->cache_seed;
  s->teacher_batch = o->callback ? o->callback->batch : (int)o->teacher_batch;
  if (!s->teacher_batch) s->teacher_batch = CMKD_TEACHER_BATCH;
  s->clean_view = o->clean_view;
  CMKD_TRY(cmkd_views_parse(o->views ? o->views : "all", &s->views, err));
  s->all_variants = !s->views;
  if (s->all_variants) s->views = cmkd_policy_variants(s->policy);
  s->views += s->clean_view ? 1 : 0;
  return CMKD_OK;
}

cmkd_status cmkd_session_settings_resolve(const cmkd_session_options *o, const cmkd_dataset *data,
                                          const cmkd_cache_info *cache, cmkd_session_settings *s, cmkd_error *err) {
  const char *precision = o->precision ? o->precision : "fp32";
  *s = (cmkd_session_settings){.classes = data->classes, .channels = data->channels};
  if (cache)
    s->source = CMKD_SOURCE_CACHE;
  else
    s->source = cmkd_session_is_live(o) ? CMKD_SOURCE_TEACHER : CMKD_SOURCE_LABELS;
  if (strlen(precision) >= sizeof s->precision)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--precision %.40s is not known", precision);
  strcpy(s->precision, precision);
  return cache ? resolve_cached_views(o, cache, s, err) : resolve_own_views(o, data, s, err);
}

/* ---- a student's own ---- */

const char *cmkd_default_loss(cmkd_source_kind source) { return source == CMKD_SOURCE_LABELS ? "ce" : "cmkd"; }

/* What nobody asked for. `arch` is the network that was asked for, or NULL. */
static cmkd_student_options defaults_of(const cmkd_dataset *data, cmkd_source_kind source, const char *arch) {
  int light = arch && (!strncmp(arch, "shufflenet", 10) || !strncmp(arch, "mobilenet", 9));
  return (cmkd_student_options){
      .arch = mnist_like(data) ? CMKD_DEFAULT_STUDENT_MNIST : CMKD_DEFAULT_STUDENT,
      .loss = cmkd_default_loss(source),
      .epochs = mnist_like(data) ? CMKD_DEFAULT_EPOCHS_MNIST : CMKD_DEFAULT_EPOCHS,
      .batch = CMKD_DEFAULT_BATCH,
      .lr = light ? CMKD_DEFAULT_LR_LIGHT : CMKD_DEFAULT_LR,
      .schedule = CMKD_DEFAULT_SCHEDULE,
      .momentum = CMKD_DEFAULT_MOMENTUM,
      .weight_decay = CMKD_DEFAULT_WEIGHT_DECAY,
      .mean = {data->mean[0], data->mean[1], data->mean[2]},
      .std = {data->std[0], data->std[1], data->std[2]},
      .eval_every = CMKD_DEFAULT_EVAL_EVERY,
  };
}

static cmkd_status resolve_samples(const cmkd_student_options *o, const cmkd_dataset *data, const char *cache_path,
                                   const cmkd_cache_info *cache, cmkd_settings *s, cmkd_error *err) {
  uint64_t have = cache ? cache->samples : data->n, want = o->samples ? (uint64_t)o->samples : have;
  if (want > have && cache)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "--samples %llu: %s holds %llu samples", (unsigned long long)want,
                     cache_path, (unsigned long long)have);
  if (want > have)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "--samples %llu: the %s split of %s has %llu", (unsigned long long)want,
                     data->split, data->name, (unsigned long long)have);
  if ((uint64_t)o->val >= want)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--val %lld leaves nothing to train on: there are %llu samples",
                     (long long)o->val, (unsigned long long)want);
  s->samples = (uint32_t)want;
  s->val = (uint32_t)o->val;
  return CMKD_OK;
}

static cmkd_status resolve_loss(const cmkd_student_options *o, const char *cache_path, const cmkd_cache_info *cache,
                                cmkd_settings *s, cmkd_error *err) {
  const cmkd_loss_defaults defaults = {.dkd_beta = o->dkd_beta};
  CMKD_TRY(cmkd_loss_parse_with(o->loss, CMKD_LOSS_CIFAR, &defaults, &s->loss, err));
  if (cmkd_loss_needs_teacher(s->loss) && s->session.source == CMKD_SOURCE_LABELS)
    return cmkd_fail(
        err, CMKD_ERR_USAGE,
        "--loss %s needs a teacher: give --cache FILE or --teacher FILE, or train on labels with --loss ce", o->loss);
  if (cache && cache->kept < cache->classes && cmkd_loss_needs_full_row(s->loss))
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s keeps %u of %u logits a row (codec %s) and --loss %s needs whole rows: use --loss kd, or "
                     "build the cache with --codec f16",
                     cache_path, cache->kept, cache->classes, cache->identity.codec, o->loss);
  return CMKD_OK;
}

static cmkd_status resolve_schedule(const cmkd_student_options *o, cmkd_settings *s, cmkd_error *err) {
  cmkd_schedule *schedule = &s->schedule;
  uint64_t trained = s->samples - s->val, batch = (uint64_t)s->batch;
  CMKD_TRY(cmkd_schedule_parse(o->schedule, &schedule->kind, err));
  schedule->lr = o->lr;
  schedule->epochs = s->epochs;
  schedule->warmup = o->warmup;
  schedule->steps_per_epoch = (int)((trained + batch - 1) / batch);
  if (o->milestones && schedule->kind != CMKD_SCHEDULE_STEP)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--milestones is for --schedule step, not %s", o->schedule);
  if (schedule->kind == CMKD_SCHEDULE_STEP) CMKD_TRY(cmkd_schedule_milestones(schedule, o->milestones, err));
  return CMKD_OK;
}

cmkd_status cmkd_settings_resolve(const cmkd_session_settings *session, const cmkd_session_options *session_options,
                                  const cmkd_student_options *given, const cmkd_dataset *data,
                                  const cmkd_cache_info *cache, cmkd_settings *s, cmkd_error *err) {
  cmkd_student_options o = *given;
  const cmkd_student_options defaults = defaults_of(data, session->source, given->arch);
  cmkd_student_options_fill(&o, &defaults);
  memset(s, 0, sizeof *s);
  s->session = *session;
  if (strlen(o.arch) >= sizeof s->arch)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--student %.40s...: no such network; see cmkd-train nets", o.arch);
  strcpy(s->arch, o.arch);
  s->epochs = (int)o.epochs;
  s->batch = (int)o.batch;
  s->seed = o.seed;
  s->momentum = o.momentum;
  s->weight_decay = o.weight_decay;
  s->nesterov = o.nesterov;
  s->label_smoothing = o.label_smoothing;
  s->eval_every = (int)o.eval_every;
  s->shuffle_block = (uint32_t)o.shuffle_block;
  memcpy(s->mean, o.mean, sizeof s->mean);
  memcpy(s->std, o.std, sizeof s->std);
  CMKD_TRY(resolve_samples(&o, data, session_options->cache, cache, s, err));
  CMKD_TRY(resolve_loss(&o, session_options->cache, cache, s, err));
  return resolve_schedule(&o, s, err);
}

void cmkd_settings_free(cmkd_settings *s) {
  cmkd_loss_free(s->loss);
  s->loss = NULL;
}

/* ---- as JSON ---- */

/* The shortest decimals that give the same floats again: 0.3081, not 0.30809998512268066. */
static json_t *floats_json(const float *values, int count) {
  cmkd_json list = cmkd_json_array();
  for (int i = 0; i < count; i++) {
    char text[32];
    int digits = 5;
    do
      snprintf(text, sizeof text, "%.*g", ++digits, (double)values[i]);
    while (digits < 9 && strtof(text, NULL) != values[i]);
    cmkd_json_append(&list, json_real(strtod(text, NULL)));
  }
  return cmkd_json_end(&list);
}

static json_t *u64_json(uint64_t value) { /* JSON readers keep 53 bits: large seeds go as text */
  char text[24];
  snprintf(text, sizeof text, "%llu", (unsigned long long)value);
  return value < 1ull << 53 ? json_integer((json_int_t)value) : json_string(text);
}

static json_t *milestones_json(const cmkd_schedule *schedule) {
  cmkd_json list = cmkd_json_array();
  for (int i = 0; i < schedule->milestones; i++)
    cmkd_json_append(&list, json_integer(schedule->milestone[i]));
  return cmkd_json_end(&list);
}

json_t *cmkd_settings_json(const cmkd_settings *s, const cmkd_dataset *data, const char *cache_sha256,
                           const char *teacher_sha256) {
  static const char *const sources[] = {"labels", "cache", "teacher"};
  const cmkd_session_settings *shared = &s->session;
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "data", json_string(data->name));
  cmkd_json_set(&o, "fingerprint", json_string(data->fingerprint));
  cmkd_json_set(&o, "classes", json_integer(shared->classes));
  cmkd_json_set(&o, "samples", json_integer(s->samples));
  cmkd_json_set(&o, "val", json_integer(s->val));
  cmkd_json_set(&o, "source", json_string(sources[shared->source]));
  if (cache_sha256) cmkd_json_set(&o, "cache_sha256", json_string(cache_sha256));
  if (teacher_sha256) cmkd_json_set(&o, "teacher_sha256", json_string(teacher_sha256));
  if (shared->source != CMKD_SOURCE_LABELS) {
    cmkd_json_set(&o, "views", json_integer(shared->views));
    cmkd_json_set(&o, "all_variants", json_boolean(shared->all_variants));
    cmkd_json_set(&o, "clean_view", json_boolean(shared->clean_view));
    cmkd_json_set(&o, "cache_seed", u64_json(shared->cache_seed));
    cmkd_json_set(&o, "teacher_batch", json_integer(shared->teacher_batch));
  }
  cmkd_json_set(&o, "augment", json_string(cmkd_policy_name(shared->policy)));
  cmkd_json_set(&o, "rng", json_string(CMKD_RNG_VERSION));
  cmkd_json_set(&o, "student", json_string(s->arch));
  cmkd_json_set(&o, "mean", floats_json(s->mean, shared->channels));
  cmkd_json_set(&o, "std", floats_json(s->std, shared->channels));
  cmkd_json_set(&o, "loss", json_string(cmkd_loss_text(s->loss)));
  cmkd_json_set(&o, "label_smoothing", json_real(s->label_smoothing));
  cmkd_json_set(&o, "epochs", json_integer(s->epochs));
  cmkd_json_set(&o, "batch", json_integer(s->batch));
  cmkd_json_set(&o, "lr", json_real(s->schedule.lr));
  cmkd_json_set(&o, "schedule", json_string(cmkd_schedule_name(s->schedule.kind)));
  cmkd_json_set(&o, "milestones", milestones_json(&s->schedule));
  cmkd_json_set(&o, "warmup", json_real(s->schedule.warmup));
  cmkd_json_set(&o, "momentum", json_real(s->momentum));
  cmkd_json_set(&o, "nesterov", json_boolean(s->nesterov));
  cmkd_json_set(&o, "weight_decay", json_real(s->weight_decay));
  cmkd_json_set(&o, "shuffle_block", json_integer(s->shuffle_block));
  cmkd_json_set(&o, "seed", u64_json(s->seed));
  cmkd_json_set(&o, "eval_every", json_integer(s->eval_every));
  cmkd_json_set(&o, "precision", json_string(shared->precision));
  return cmkd_json_end(&o);
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

char *cmkd_default_out(const char *given, const cmkd_settings *s) {
  char loss[49];
  const char *text = given ? given : cmkd_default_loss(s->session.source);
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
