/* Some rows of a cache run through its teacher once more. See recompute.h. */
#include "precompute/recompute.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/hash.h"
#include "base/program/environment.h"
#include "base/rng.h"
#include "formats/cache/codec.h"
#include "nets/teacher.h"

/* Another device or thread count sums in another order; a ResNet-110's logits then differ by less than this. */
#define DEVICE_TOLERANCE 2e-3
#define PRECISION_DEVIATIONS 8 /* of what a lower precision was measured to change: the largest of many differences */

/* The rows that are compared. */
typedef struct draw {
  uint32_t count;
  uint32_t *position, *view; /* (count) in the cache */
  uint32_t *sample;          /* (count) ids in the data set */
  uint64_t *seed;            /* (count) of their pixels */
  float *fresh;              /* (count, classes) */
} draw;

int cmkd_recomputed_good(const cmkd_recomputed *r) { return !r->rows || r->largest <= r->allowed; }

static cmkd_status check_weights(const cmkd_cache_info *info, const cmkd_recompute_options *o, cmkd_error *err) {
  char sha256[CMKD_SHA256_HEX];
  const cmkd_cache_identity *id = &info->identity;
  CMKD_TRY(cmkd_sha256_file(o->teacher, sha256, err));
  if (!strcmp(id->teacher_sha256, sha256)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s was made by teacher %s %.12s..., %s is %.12s...; give the same weights",
                   o->cache, id->teacher_name, id->teacher_sha256, o->teacher, sha256);
}

static cmkd_status check_agreement(const cmkd_cache_info *info, const cmkd_dataset *data,
                                   const cmkd_recompute_options *o, cmkd_error *err) {
  const cmkd_cache_identity *id = &info->identity;
  if (strcmp(id->fingerprint, data->fingerprint) != 0)
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s was made from %s %s %.12s..., --data is %s %s %.12s...; give the same data", o->cache,
                     id->dataset, id->split, id->fingerprint, data->name, data->split, data->fingerprint);
  if (strcmp(id->rng_version, CMKD_RNG_VERSION) != 0)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s has views of rng %s, this program replays %s", o->cache,
                     id->rng_version, CMKD_RNG_VERSION);
  return CMKD_OK;
}

/* A top-k row keeps its largest logits; the rest is one value, a tie that has their share of the softmax. The kept ones
 * are compared like any. Of the rest the fresh row's own tie must be near, and none may be above the least kept. */
static void compare_kept(const float *stored, const float *fresh, size_t classes, uint32_t keep, double *largest) {
  float rest = stored[0], least = HUGE_VALF;
  double most = 0, sum = 0;
  for (size_t c = 1; c < classes; c++)
    if (stored[c] < rest) rest = stored[c];
  for (size_t c = 0; c < classes; c++)
    if (stored[c] > rest && stored[c] < least) least = stored[c];
  size_t tied = 0;
  for (size_t c = 0; c < classes; c++) {
    double difference = stored[c] > rest ? fabs((double)stored[c] - fresh[c]) : fmax(0, (double)fresh[c] - least);
    if (!(difference <= most)) most = difference;
    if (stored[c] > rest) continue;
    sum += exp((double)fresh[c] - rest);
    tied++;
  }
  double drift = tied >= classes - keep ? fabs(log(sum / (double)tied)) : HUGE_VAL;
  *largest = fmax(most, drift);
}

/* The largest |stored - recomputed| of a row, and what codec and device may change. */
static void compare(const cmkd_cache_info *info, const cmkd_codec *codec, const float *stored, const float *fresh,
                    double *largest, double *allowed) {
  size_t classes = info->classes;
  double most = 0, max = -HUGE_VAL, min = HUGE_VAL;
  for (size_t c = 0; c < classes; c++) {
    double difference = fabs((double)stored[c] - (double)fresh[c]);
    if (!(difference <= most)) most = difference;
    if (fresh[c] > max) max = fresh[c];
    if (fresh[c] < min) min = fresh[c];
  }
  double size = fmax(fabs(max), fabs(min)), scale = fmax(1, size);
  *largest = most;
  if (info->kept < classes) compare_kept(stored, fresh, classes, info->kept, largest);
  *allowed = DEVICE_TOLERANCE * scale + PRECISION_DEVIATIONS * info->identity.precision_error +
             (codec->row_numbers ? codec->tolerance * (max - min) + size / 1024 : codec->tolerance * scale);
}

static void draw_free(draw *d) {
  free(d->position);
  free(d->view);
  free(d->sample);
  free(d->seed);
  free(d->fresh);
}

static cmkd_status draw_create(const cmkd_recompute_options *o, size_t classes, draw *d, cmkd_error *err) {
  size_t n = o->rows;
  *d = (draw){.count = o->rows,
              .position = malloc(n * sizeof *d->position),
              .view = malloc(n * sizeof *d->view),
              .sample = malloc(n * sizeof *d->sample),
              .seed = malloc(n * sizeof *d->seed),
              .fresh = malloc(n * classes * sizeof *d->fresh)};
  if (d->position && d->view && d->sample && d->seed && d->fresh) return CMKD_OK;
  draw_free(d);
  return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for %zu rows", o->cache, n);
}

static void draw_rows(const cmkd_cache_info *info, const uint64_t *ids, uint64_t seed, draw *d) {
  cmkd_rng rng = cmkd_rng_start(seed, CMKD_STREAM_TEST, 1);
  for (uint32_t i = 0; i < d->count; i++) {
    d->position[i] = cmkd_rng_below(&rng, (uint32_t)info->samples);
    d->view[i] = cmkd_rng_below(&rng, info->views);
    d->sample[i] = (uint32_t)ids[d->position[i]];
  }
}

/* A cache hands out the seeds of one view at a time. */
static cmkd_status read_seeds(cmkd_cache *cache, draw *d, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  uint64_t *column = malloc((size_t)info->samples * sizeof *column);
  cmkd_status status = column ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for seeds");
  for (uint32_t v = 0; v < info->views && status == CMKD_OK; v++) {
    status = cmkd_cache_seeds(cache, v, column, err);
    for (uint32_t i = 0; i < d->count && status == CMKD_OK; i++)
      if (d->view[i] == v) d->seed[i] = column[d->position[i]];
  }
  free(column);
  return status;
}

static cmkd_status compare_rows(cmkd_cache *cache, const draw *d, cmkd_recomputed *out, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const cmkd_codec *codec;
  const uint64_t *ids;
  double excess = -1;
  CMKD_TRY(cmkd_codec_find(info->identity.codec, &codec, err));
  CMKD_TRY(cmkd_cache_ids(cache, &ids, err));
  float *stored = malloc(info->classes * sizeof *stored);
  cmkd_status status = stored ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for a row");
  for (uint32_t i = 0; i < d->count && status == CMKD_OK; i++) {
    double largest, allowed;
    status = cmkd_cache_read(cache, d->view[i], d->position[i], 1, stored, err);
    if (status != CMKD_OK) break;
    compare(info, codec, stored, d->fresh + (size_t)i * info->classes, &largest, &allowed);
    out->mean += largest / (double)d->count;
    if (!(largest / allowed <= excess)) { /* NaN is the worst of all */
      excess = largest / allowed;
      out->largest = largest;
      out->allowed = allowed;
      out->sample = ids[d->position[i]];
      out->view = d->view[i];
    }
  }
  free(stored);
  out->rows = d->count;
  return status;
}

static cmkd_status recompute(cmkd_cache *cache, cmkd_teacher *teacher, const cmkd_recompute_options *o,
                             cmkd_recomputed *out, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const uint64_t *ids;
  draw d;
  CMKD_TRY(cmkd_cache_ids(cache, &ids, err));
  CMKD_TRY(draw_create(o, info->classes, &d, err));
  draw_rows(info, ids, o->seed, &d);
  cmkd_status status = read_seeds(cache, &d, err);
  if (status == CMKD_OK) status = cmkd_teacher_run(teacher, d.sample, d.seed, d.count, d.fresh, NULL, err);
  if (status == CMKD_OK) status = compare_rows(cache, &d, out, err);
  draw_free(&d);
  return status;
}

cmkd_status cmkd_recompute(cmkd_cache *cache, const cmkd_recompute_options *o, cmkd_recomputed *out, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const cmkd_cache_identity *id = &info->identity;
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_dataset *data = NULL;
  cmkd_teacher *teacher = NULL;
  *out = (cmkd_recomputed){0};
  CMKD_TRY(check_weights(info, o, err));
  cmkd_backend_options backend_options = {.threads = o->threads, .device = cmkd_backend_index(o->device)};
  cmkd_environment_backend(&backend_options);
  CMKD_TRY(cmkd_backend_find(o->device, &backend_options, &table, err));
  CMKD_TRY(table->open(&backend_options, &backend, err));
  cmkd_status status = cmkd_environment_dataset(o->data ? o->data : id->dataset, id->split, &data, err);
  if (status == CMKD_OK) {
    /* the cache knows the normalisation and the architecture, which weights without metadata need */
    const cmkd_teacher_options wanted = {.weights = o->teacher,
                                         .arch = o->arch ? o->arch : id->teacher_arch,
                                         .mean = o->mean ? o->mean : id->mean,
                                         .std = o->std ? o->std : id->std,
                                         .batch = id->teacher_batch,
                                         .policy = id->policy};
    status = cmkd_teacher_open(&wanted, table, backend, data, &teacher, err);
  }
  if (status == CMKD_OK) status = check_agreement(info, data, o, err);
  if (status == CMKD_OK) status = recompute(cache, teacher, o, out, err);
  cmkd_teacher_close(teacher);
  cmkd_dataset_close(data);
  table->close(backend);
  return status;
}
