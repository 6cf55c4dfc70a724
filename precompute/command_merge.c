/* cmkd-cache merge: several caches as one. More samples (the same views of other images), more views (other views of
 * the same images), or with --average the mean of several teachers that saw the same pixels. What does not belong
 * together is refused, both sides named. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/hash.h"
#include "base/program/options.h"
#include "precompute/commands.h"
#include "precompute/reshape.h"
#include "precompute/shared_caches.h"
#include "precompute/shared_options.h"

#define MAX_INPUTS 64

typedef struct merge {
  const char *const *paths; /* (count) of the inputs */
  cmkd_cache *caches[MAX_INPUTS];
  int count;
  cmkd_reshape shape;
  int *input_of;
  uint32_t *position;
  cmkd_reshape_view *views;
} merge;

static const cmkd_cache_info *info_of(const merge *m, int i) { return cmkd_cache_get_info(m->caches[i]); }

static cmkd_status differ(const merge *m, int i, const char *what, const char *a, const char *b, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s has %s %.40s, %s has %.40s; they can't be one cache", m->paths[0], what,
                   a, m->paths[i], b);
}

/* What every kind of merge needs: one data set, class count and policy; one teacher too, unless they are averaged. */
static cmkd_status check_identity(const merge *m, int average, cmkd_error *err) {
  const cmkd_cache_identity *a = &info_of(m, 0)->identity;
  char one[16], two[16];
  for (int i = 1; i < m->count; i++) {
    const cmkd_cache_identity *b = &info_of(m, i)->identity;
    if (strcmp(a->fingerprint, b->fingerprint)) return differ(m, i, "data", a->fingerprint, b->fingerprint, err);
    if (strcmp(a->split, b->split)) return differ(m, i, "split", a->split, b->split, err);
    if (a->policy != b->policy)
      return differ(m, i, "augmentation", cmkd_policy_name(a->policy), cmkd_policy_name(b->policy), err);
    if (strcmp(a->rng_version, b->rng_version)) return differ(m, i, "rng", a->rng_version, b->rng_version, err);
    if (!average && strcmp(a->teacher_sha256, b->teacher_sha256))
      return differ(m, i, "teacher", a->teacher_sha256, b->teacher_sha256, err);
    snprintf(one, sizeof one, "%u", info_of(m, 0)->classes);
    snprintf(two, sizeof two, "%u", info_of(m, i)->classes);
    if (strcmp(one, two)) return differ(m, i, "classes:", one, two, err);
  }
  return CMKD_OK;
}

/* 1 when both list the same samples in the same order. */
static cmkd_status same_samples(const merge *m, int i, int *same, cmkd_error *err) {
  const uint64_t *a, *b;
  CMKD_TRY(cmkd_cache_ids(m->caches[0], &a, err));
  CMKD_TRY(cmkd_cache_ids(m->caches[i], &b, err));
  *same = info_of(m, 0)->samples == info_of(m, i)->samples && !memcmp(a, b, (size_t)info_of(m, 0)->samples * sizeof *a);
  return CMKD_OK;
}

static cmkd_status same_seeds(const merge *m, int i, cmkd_error *err) {
  size_t n = (size_t)info_of(m, 0)->samples;
  uint64_t *a = malloc(2 * n * sizeof *a), *b = a ? a + n : NULL;
  cmkd_status status = a ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", m->paths[0]);
  for (uint32_t v = 0; v < info_of(m, 0)->views && status == CMKD_OK; v++) {
    status = cmkd_cache_seeds(m->caches[0], v, a, err);
    if (status == CMKD_OK) status = cmkd_cache_seeds(m->caches[i], v, b, err);
    if (status == CMKD_OK && memcmp(a, b, n * sizeof *a))
      status =
          cmkd_fail(err, CMKD_ERR_MISMATCH,
                    "view %u of %s and %s shows other pixels (their seeds differ); build both with the same --seed", v,
                    m->paths[0], m->paths[i]);
  }
  free(a);
  return status;
}

/* The samples of all inputs, one input after the other. */
static cmkd_status by_samples(merge *m, cmkd_error *err) {
  uint64_t total = 0, at = 0;
  uint8_t *seen = NULL;
  uint32_t n = info_of(m, 0)->identity.dataset_n, V = info_of(m, 0)->views;
  for (int i = 0; i < m->count; i++) {
    total += info_of(m, i)->samples;
    if (info_of(m, i)->views != V || info_of(m, i)->identity.clean_view != info_of(m, 0)->identity.clean_view)
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s has %u views, %s has %u, of other samples; build them with the same --views", m->paths[0], V,
                       m->paths[i], info_of(m, i)->views);
    if (info_of(m, i)->identity.cache_seed != info_of(m, 0)->identity.cache_seed)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s and %s have views of other seeds; build them with the same --seed",
                       m->paths[0], m->paths[i]);
  }
  m->input_of = malloc((size_t)total * sizeof *m->input_of);
  m->position = malloc((size_t)total * sizeof *m->position);
  m->views = malloc(V * sizeof *m->views);
  seen = calloc((size_t)n + 1, 1);
  cmkd_status status = m->input_of && m->position && m->views && seen
                           ? CMKD_OK
                           : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", m->paths[0]);
  for (int i = 0; i < m->count && status == CMKD_OK; i++) {
    const uint64_t *ids;
    status = cmkd_cache_ids(m->caches[i], &ids, err);
    for (uint64_t k = 0; k < info_of(m, i)->samples && status == CMKD_OK; k++, at++) {
      if (ids[k] >= n)
        status =
            cmkd_fail(err, CMKD_ERR_FORMAT, "%s: names sample %llu of %u", m->paths[i], (unsigned long long)ids[k], n);
      else if (seen[ids[k]]++)
        status = cmkd_fail(err, CMKD_ERR_MISMATCH,
                           "sample %llu of %s is in another input too, with the same number of views: neither more "
                           "samples nor more views",
                           (unsigned long long)ids[k], m->paths[i]);
      m->input_of[at] = i;
      m->position[at] = (uint32_t)k;
    }
  }
  for (uint32_t v = 0; v < V && status == CMKD_OK; v++)
    m->views[v] = (cmkd_reshape_view){-1, v};
  free(seen);
  m->shape.spec.samples = total;
  return status;
}

/* Views that show the same pixels of every sample are no more views, only more bytes. */
static cmkd_status no_twins(const merge *m, uint32_t total, cmkd_error *err) {
  const size_t n = (size_t)info_of(m, 0)->samples;
  char(*hash)[CMKD_SHA256_HEX] = malloc(total * sizeof *hash);
  uint64_t *seeds = malloc(n * sizeof *seeds);
  cmkd_status status = hash && seeds ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", m->paths[0]);
  uint32_t at = 0;
  for (int i = 0; i < m->count; i++)
    for (uint32_t v = 0; v < info_of(m, i)->views && status == CMKD_OK; v++, at++) {
      status = cmkd_cache_seeds(m->caches[i], v, seeds, err);
      if (status == CMKD_OK) cmkd_sha256(seeds, n * sizeof *seeds, hash[at]);
      for (uint32_t earlier = 0; earlier < at && status == CMKD_OK; earlier++)
        if (!strcmp(hash[earlier], hash[at]))
          status = cmkd_fail(
              err, CMKD_ERR_MISMATCH,
              "view %u of %s shows the same pixels as a view before it (the same seeds); build it with another --seed",
              v, m->paths[i]);
    }
  free(hash);
  free(seeds);
  return status;
}

/* The views of all inputs, one input after the other, a clean view last. */
static cmkd_status by_views(merge *m, cmkd_error *err) {
  uint32_t total = 0, at = 0;
  uint64_t n = info_of(m, 0)->samples;
  int clean = -1;
  for (int i = 0; i < m->count; i++) {
    total += info_of(m, i)->views;
    if (!info_of(m, i)->identity.clean_view) continue;
    if (clean >= 0)
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s and %s both hold the clean view; drop one with cmkd-cache subset --views", m->paths[clean],
                       m->paths[i]);
    clean = i;
  }
  CMKD_TRY(no_twins(m, total, err));
  m->position = malloc((size_t)n * sizeof *m->position);
  m->views = malloc(total * sizeof *m->views);
  if (!m->position || !m->views) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", m->paths[0]);
  for (uint64_t i = 0; i < n; i++)
    m->position[i] = (uint32_t)i;
  for (int i = 0; i < m->count; i++)
    for (uint32_t v = 0; v + (i == clean) < info_of(m, i)->views; v++)
      m->views[at++] = (cmkd_reshape_view){i, v};
  if (clean >= 0) m->views[at] = (cmkd_reshape_view){clean, info_of(m, clean)->views - 1};
  m->shape.spec.views = total;
  m->shape.spec.identity.clean_view = clean >= 0;
  m->shape.spec.identity.all_variants = 0;
  return CMKD_OK;
}

/* Every row the mean of all teachers' rows; the teacher is named by the hash of their hashes, in the order given. */
static cmkd_status by_teachers(merge *m, cmkd_error *err) {
  cmkd_cache_identity *id = &m->shape.spec.identity;
  char hashes[MAX_INPUTS * 64], name[sizeof id->teacher_name] = "mean of";
  uint64_t n = info_of(m, 0)->samples;
  uint32_t V = info_of(m, 0)->views;
  for (int i = 0; i < m->count; i++) {
    const cmkd_cache_identity *b = &info_of(m, i)->identity;
    int same;
    CMKD_TRY(same_samples(m, i, &same, err));
    if (!same || info_of(m, i)->views != V)
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s and %s hold other samples or views; teachers are averaged over the same rows", m->paths[0],
                       m->paths[i]);
    if (i) CMKD_TRY(same_seeds(m, i, err));
    memcpy(hashes + i * 64, b->teacher_sha256, 64);
    size_t used = strlen(name);
    snprintf(name + used, sizeof name - used, "%s %.40s", i ? "," : "", b->teacher_name);
    if (i && (b->channels != id->channels || memcmp(b->mean, id->mean, sizeof b->mean) ||
              memcmp(b->std, id->std, sizeof b->std)))
      id->channels = 0;
  }
  cmkd_sha256(hashes, (size_t)m->count * 64, id->teacher_sha256);
  memcpy(id->teacher_name, name, sizeof name);
  snprintf(id->teacher_arch, sizeof id->teacher_arch, "mean of %d", m->count);
  m->position = malloc((size_t)n * sizeof *m->position);
  m->views = malloc(V * sizeof *m->views);
  if (!m->position || !m->views) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", m->paths[0]);
  for (uint64_t i = 0; i < n; i++)
    m->position[i] = (uint32_t)i;
  for (uint32_t v = 0; v < V; v++)
    m->views[v] = (cmkd_reshape_view){0, v};
  m->shape.average = 1;
  return CMKD_OK;
}

static cmkd_status plan(merge *m, const char *codec, int average, cmkd_error *err) {
  int same_everywhere = 1;
  CMKD_TRY(check_identity(m, average, err));
  cmkd_reshape_spec(info_of(m, 0), codec, &m->shape.spec);
  for (int i = 1; i < m->count && !average; i++) {
    int same;
    CMKD_TRY(same_samples(m, i, &same, err));
    same_everywhere &= same;
  }
  if (average) return by_teachers(m, err);
  return same_everywhere ? by_views(m, err) : by_samples(m, err);
}

cmkd_status cmkd_command_merge(int argc, char **argv, cmkd_error *err) {
  const char *paths[MAX_INPUTS + 1] = {0}, *codec = NULL;
  int help = 0, positionals = 0, quiet = 0, json = 0, average = 0;
  int64_t shard_rows = 0;
  const cmkd_option table[] = {
      {.name = "--average",
       .kind = CMKD_OPT_FLAG,
       .target = &average,
       .help = "the mean of several teachers' logits on the same pixels"},
      cmkd_option_full_codec(&codec, "[that of the first input]"),
      cmkd_option_shard_rows(&shard_rows),
      cmkd_option_json(&json),
      cmkd_option_quiet(&quiet),
      {0},
  };
  const cmkd_command command = {
      .name = "cmkd-cache merge",
      .summary =
          "Joins caches: other samples with the same views, or more views of the same samples, or several teachers.",
      .usage = "OUT.h5 IN.h5 IN.h5... [options]",
      .options = table,
      .min_positional = 3,
      .max_positional = MAX_INPUTS + 1,
      .examples = "  cmkd-cache merge all.h5 first-half.h5 second-half.h5\n  cmkd-cache merge eight-views.h5 seed1.h5 "
                  "seed2.h5\n  cmkd-cache merge --average ensemble.h5 resnet56.h5 wrn.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, paths, &positionals, &help, err));
  if (help) return CMKD_OK;
  merge m = {.paths = paths + 1, .count = positionals - 1};
  CMKD_TRY(cmkd_open_all(m.paths, m.count, m.caches, err));
  cmkd_status status = plan(&m, codec, average, err);
  if (status == CMKD_OK) {
    m.shape.out = paths[0];
    m.shape.label = "merge";
    m.shape.inputs = m.caches;
    m.shape.count = m.count;
    m.shape.input_of = m.input_of;
    m.shape.position = m.position;
    m.shape.views = m.views;
    m.shape.quiet = quiet;
    m.shape.spec.shard_samples = (uint32_t)shard_rows;
    status = cmkd_reshape_run(&m.shape, NULL, err);
  }
  cmkd_close_all(m.caches, m.count);
  free(m.input_of);
  free(m.position);
  free(m.views);
  return status == CMKD_OK ? cmkd_output_report(paths[0], json, err) : status;
}
