/* cmkd-cache verify: hashes, or every number, or some rows run through the teacher once more. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/hash.h"
#include "base/program/options.h"
#include "base/program/progress.h"
#include "base/text.h"
#include "base/rng.h"
#include "cmkd/cache.h"
#include "formats/cache/reader/verify.h"
#include "formats/cache/codec.h"
#include "nets/teacher.h"
#include "precompute/commands.h"

/* Another device or thread count sums in another order; a ResNet-110's logits then differ by less than this. */
#define DEVICE_TOLERANCE 2e-3
#define PRECISION_DEVIATIONS 8 /* of what a lower precision was measured to change: the largest of many differences */

typedef struct options {
  const char *cache, *teacher, *data, *device, *arch;
  int64_t rows, threads;
  uint64_t seed;
  float mean[3], std[3];
  int deep, json, quiet, mean_seen, std_seen;
} options;
typedef struct listener {
  cmkd_progress progress;
  uint64_t done;
} listener;
typedef struct recomputed {
  uint64_t rows;
  double largest, allowed, mean;
  uint64_t sample;
  uint32_t view;
} recomputed; /* the worst row and what it may differ */

static void each(void *context, uint32_t shard, const cmkd_error *err) {
  (void)shard;
  listener *l = context;
  if (err) {
    cmkd_progress_end(&l->progress);
    fprintf(stderr, "cmkd-cache: %s\n", err->message);
  }
  cmkd_progress_update(&l->progress, ++l->done);
}

static cmkd_status check_weights(const cmkd_cache_info *info, const options *o, cmkd_error *err) {
  char sha256[CMKD_SHA256_HEX];
  const cmkd_cache_identity *id = &info->identity;
  CMKD_TRY(cmkd_sha256_file(o->teacher, sha256, err));
  if (!strcmp(id->teacher_sha256, sha256)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s was made by teacher %s %.12s..., %s is %.12s...; give the same weights",
                   o->cache, id->teacher_name, id->teacher_sha256, o->teacher, sha256);
}

static cmkd_status check_agreement(const cmkd_cache_info *info, const cmkd_dataset *data, const options *o,
                                   cmkd_error *err) {
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

/* Of a top-k row: the kept logits like any, the rest against the tie that the fresh row would have and, one by one,
 * against the least kept. */
static void compare_kept(const float *stored, const float *fresh, size_t C, uint32_t keep, double *largest) {
  float rest = stored[0], least = HUGE_VALF;
  double most = 0, sum = 0;
  for (size_t c = 1; c < C; c++)
    if (stored[c] < rest) rest = stored[c];
  for (size_t c = 0; c < C; c++)
    if (stored[c] > rest && stored[c] < least) least = stored[c];
  size_t tied = 0;
  for (size_t c = 0; c < C; c++) {
    double difference = stored[c] > rest ? fabs((double)stored[c] - fresh[c]) : fmax(0, (double)fresh[c] - least);
    if (!(difference <= most)) most = difference;
    if (stored[c] > rest) continue;
    sum += exp((double)fresh[c] - rest);
    tied++;
  }
  double drift = tied >= C - keep ? fabs(log(sum / (double)tied)) : HUGE_VAL;
  *largest = fmax(most, drift);
}

/* Row by row: |stored - recomputed| against what codec and device may change. */
static void compare(const float *stored, const float *fresh, size_t C, const cmkd_codec *codec, uint32_t keep,
                    double precision_error, double *largest, double *allowed) {
  double most = 0, max = -HUGE_VAL, min = HUGE_VAL;
  for (size_t c = 0; c < C; c++) {
    double difference = fabs((double)stored[c] - (double)fresh[c]);
    if (!(difference <= most)) most = difference;
    if (fresh[c] > max) max = fresh[c];
    if (fresh[c] < min) min = fresh[c];
  }
  double size = fmax(fabs(max), fabs(min)), scale = fmax(1, size);
  *largest = most;
  if (keep < C) compare_kept(stored, fresh, C, keep, largest);
  *allowed = DEVICE_TOLERANCE * scale + PRECISION_DEVIATIONS * precision_error +
             (codec->row_numbers ? codec->tolerance * (max - min) + size / 1024 : codec->tolerance * scale);
}

static cmkd_status recompute(cmkd_cache *cache, cmkd_teacher *teacher, const options *o, recomputed *out,
                             cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const cmkd_codec *codec;
  const uint64_t *ids;
  size_t C = info->classes, n = (size_t)o->rows;
  CMKD_TRY(cmkd_codec_find(info->identity.codec, &codec, err));
  CMKD_TRY(cmkd_cache_ids(cache, &ids, err));
  uint32_t *rows = malloc(n * sizeof *rows), *views = malloc(n * sizeof *views), *places = malloc(n * sizeof *places);
  uint64_t *seeds = malloc(n * sizeof *seeds), *column = malloc((size_t)info->samples * sizeof *column);
  float *fresh = malloc(n * C * sizeof *fresh), *stored = malloc(C * sizeof *stored);
  cmkd_status status = rows && views && places && seeds && column && fresh && stored
                           ? CMKD_OK
                           : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for %zu rows", o->cache, n);
  cmkd_rng rng = cmkd_rng_start(o->seed, CMKD_STREAM_TEST, 1);
  for (size_t i = 0; i < n && status == CMKD_OK; i++) {
    places[i] = cmkd_rng_below(&rng, (uint32_t)info->samples);
    views[i] = cmkd_rng_below(&rng, info->views);
    rows[i] = (uint32_t)ids[places[i]];
  }
  for (uint32_t v = 0; v < info->views && status == CMKD_OK; v++) {
    status = cmkd_cache_seeds(cache, v, column, err);
    for (size_t i = 0; i < n && status == CMKD_OK; i++)
      if (views[i] == v) seeds[i] = column[places[i]];
  }
  if (status == CMKD_OK) status = cmkd_teacher_run(teacher, rows, seeds, (uint32_t)n, fresh, NULL, err);
  double excess = -1;
  for (size_t i = 0; i < n && status == CMKD_OK; i++) {
    double largest, allowed;
    status = cmkd_cache_read(cache, views[i], places[i], 1, stored, err);
    if (status != CMKD_OK) break;
    compare(stored, fresh + i * C, C, codec, info->kept, info->identity.precision_error, &largest, &allowed);
    out->mean += largest / (double)n;
    if (!(largest / allowed <= excess)) {
      excess = largest / allowed;
      out->largest = largest;
      out->allowed = allowed;
      out->sample = ids[places[i]];
      out->view = views[i];
    }
  }
  out->rows = n;
  free(rows);
  free(views);
  free(places);
  free(seeds);
  free(column);
  free(fresh);
  free(stored);
  return status;
}

static cmkd_status with_teacher(cmkd_cache *cache, const options *o, recomputed *out, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const cmkd_cache_identity *id = &info->identity;
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_dataset *data = NULL;
  cmkd_teacher *teacher = NULL;
  CMKD_TRY(check_weights(info, o, err));
  cmkd_backend_options backend_options = {.threads = (int)o->threads, .device = cmkd_backend_index(o->device)};
  cmkd_environment_backend(&backend_options);
  CMKD_TRY(cmkd_backend_find(o->device, &backend_options, &table, err));
  CMKD_TRY(table->open(&backend_options, &backend, err));
  cmkd_status status = cmkd_environment_dataset(o->data ? o->data : id->dataset, id->split, &data, err);
  if (status ==
      CMKD_OK) { /* the cache knows the normalisation and the architecture that weights without metadata need */
    const cmkd_teacher_options wanted = {.weights = o->teacher,
                                         .arch = o->arch ? o->arch : id->teacher_arch,
                                         .mean = o->mean_seen ? o->mean : id->mean,
                                         .std = o->std_seen ? o->std : id->std,
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

static void print(const options *o, const cmkd_verify_report *r, const recomputed *again) {
  char bytes[24];
  if (o->json) {
    json_t *json = json_pack("{s:s,s:b,s:I,s:I,s:I,s:I,s:i}", "cache", o->cache, "ok",
                             r->problems == 0 && !(again->rows && again->largest > again->allowed), "shards",
                             (json_int_t)r->shards, "bytes", (json_int_t)r->bytes, "chunks", (json_int_t)r->chunks,
                             "rows", (json_int_t)r->rows, "problems", (int)r->problems);
    if (again->rows)
      json_object_set_new(json, "teacher",
                          json_pack("{s:I,s:f,s:f,s:f,s:I,s:i}", "rows", (json_int_t)again->rows, "largest_difference",
                                    again->largest, "allowed", again->allowed, "mean_difference", again->mean, "sample",
                                    (json_int_t)again->sample, "view", (int)again->view));
    char *text = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(9));
    puts(text ? text : "{}");
    free(text);
    json_decref(json);
    return;
  }
  if (r->problems)
    printf("%s: %u of %" PRIu64 " shards are damaged\n", o->cache, r->problems, r->shards);
  else if (o->deep)
    printf("%s: good: %" PRIu64 " shards, %s, %" PRIu64 " chunks and %" PRIu64 " rows decoded, all finite\n", o->cache,
           r->shards, cmkd_bytes(r->bytes, bytes), r->chunks, r->rows);
  else
    printf("%s: good: the hashes of %" PRIu64 " shards, %s (--deep decodes every number)\n", o->cache, r->shards,
           cmkd_bytes(r->bytes, bytes));
  if (again->rows)
    printf("  teacher: %" PRIu64 " rows recomputed; largest difference %.3g (sample %" PRIu64
           ", view %u; allowed %.3g), mean %.3g\n",
           again->rows, again->largest, again->sample, again->view, again->allowed, again->mean);
}

cmkd_status cmkd_command_verify(int argc, char **argv, cmkd_error *err) {
  const char *path[1] = {0};
  int help = 0, positionals = 0;
  options o = {.device = "auto", .rows = 256, .seed = 1};
  const cmkd_option table[] = {
      {.name = "--deep",
       .kind = CMKD_OPT_FLAG,
       .target = &o.deep,
       .help = "decode every chunk: finite, labels in range, every checksum"},
      {.name = "--teacher",
       .argument = "FILE",
       .kind = CMKD_OPT_STRING,
       .target = &o.teacher,
       .help = "recompute rows with these weights"},
      {.name = "--data",
       .argument = "SPEC",
       .kind = CMKD_OPT_STRING,
       .target = &o.data,
       .help = "where the images are [the cache's data set, in the usual places]"},
      {.name = "--rows",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &o.rows,
       .help = "how many rows, drawn at random [256]",
       .min = 1,
       .max = 10000000},
      {.name = "--seed", .argument = "N", .kind = CMKD_OPT_UINT64, .target = &o.seed, .help = "of that draw [1]"},
      {.name = "--device",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &o.device,
       .help = "auto, cpu, cuda or cuda:N [auto]"},
      {.name = "--threads",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &o.threads,
       .help = "[all cores]",
       .min = 1,
       .max = 1024},
      {.name = "--arch",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &o.arch,
       .help = "of the teacher [the cache's]"},
      {.name = "--mean",
       .argument = "R,G,B",
       .kind = CMKD_OPT_FLOATS3,
       .target = o.mean,
       .help = "of the teacher [the cache's]",
       .seen = &o.mean_seen},
      {.name = "--std",
       .argument = "R,G,B",
       .kind = CMKD_OPT_FLOATS3,
       .target = o.std,
       .help = "of the teacher [the cache's]",
       .seen = &o.std_seen},
      {.name = "--quiet", .kind = CMKD_OPT_FLAG, .target = &o.quiet, .help = "no progress"},
      {.name = "--json", .kind = CMKD_OPT_FLAG, .target = &o.json, .help = "the result as one JSON object"},
      {0},
  };
  const cmkd_command command = {.name = "cmkd-cache verify",
                                .summary = "Checks a cache: all hashes and shapes; with --deep every number; with "
                                           "--teacher some rows against the teacher.",
                                .usage = "[options] CACHE.h5",
                                .options = table,
                                .min_positional = 1,
                                .max_positional = 1,
                                .examples =
                                    "  cmkd-cache verify teacher.h5\n  cmkd-cache verify --teacher "
                                    "resnet56-cifar100.safetensors --data cifar100:DIR --rows 1000 teacher.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, path, &positionals, &help, err));
  if (help) return CMKD_OK;
  o.cache = path[0];
  cmkd_cache *cache;
  cmkd_verify_report report;
  recomputed again = {0};
  listener l = {0};
  CMKD_TRY(cmkd_cache_open(o.cache, &cache, err));
  cmkd_progress_start(&l.progress, o.deep ? "verify, deep" : "verify", "shards", cmkd_cache_get_info(cache)->shards, 0,
                      o.quiet);
  cmkd_status status = CMKD_OK;
  cmkd_cache_verify(cache, o.deep, (int)o.threads, each, &l, &report);
  cmkd_progress_end(&l.progress);
  if (!report.problems && o.teacher) status = with_teacher(cache, &o, &again, err);
  if (status == CMKD_OK) print(&o, &report, &again);
  cmkd_cache_close(cache);
  if (status != CMKD_OK) return status;
  if (report.problems)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %u shards are damaged; delete those files and run the same build again",
                     o.cache, report.problems);
  if (again.rows && !(again.largest <= again.allowed))
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "%s: differs from its teacher by %.3g where %.3g is allowed (sample %" PRIu64
                     ", view %u); build it again",
                     o.cache, again.largest, again.allowed, again.sample, again.view);
  return CMKD_OK;
}
