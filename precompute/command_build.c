/* cmkd-cache build: options, defaults, the companion cache of the test split, the summary. build.c does the work. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/program/print.h"
#include "base/limits.h"
#include "base/program/environment.h"
#include "base/program/interrupt.h"
#include "base/program/options.h"
#include "base/program/part.h"
#include "base/program/progress.h"
#include "base/text.h"
#include "cmkd/build.h"
#include "cmkd/weights.h"
#include "formats/cache/codec.h"
#include "formats/cache/paths.h"
#include "nets/teacher.h"
#include "precompute/commands.h"
#include "precompute/precision.h"
#include "precompute/shared_caches.h"
#include "precompute/shared_options.h"

typedef struct options {
  const char *teacher, *data, *split, *views, *augment, *codec, *device, *precision, *arch, *out, *part;
  int64_t samples, shard_rows, teacher_batch, threads;
  uint64_t seed, other_seed;
  float mean[3], std[3];
  int clean_view, no_test, with_test, quiet, json, mean_seen, std_seen, seed_seen, other_seed_seen, allow_top_k;
} options;

static cmkd_status parse(int argc, char **argv, options *o, int *help, cmkd_error *err) {
  const cmkd_option table[] = {
      {"--teacher", "FILE", CMKD_OPT_STRING, &o->teacher, "weights of the teacher (safetensors)", 0, 0, NULL},
      {"--data", "SPEC", CMKD_OPT_STRING, &o->data, "data set, NAME or NAME:DIR [the one in the teacher's metadata]", 0,
       0, NULL},
      cmkd_option_split(&o->split),
      {"--samples", "N", CMKD_OPT_INT, &o->samples, "only the first N of the split [all]", 1, CMKD_MAX_SAMPLES, NULL},
      {"--views", "V|all", CMKD_OPT_STRING, &o->views,
       "augmented views of each image; all: every variant of the policy [4; 1 without augmentation]", 0, 0, NULL},
      {"--clean-view", NULL, CMKD_OPT_FLAG, &o->clean_view, "one more view: the image as it is", 0, 0, NULL},
      cmkd_option_augment(&o->augment, "none, flip, crop or crop+flip [crop+flip; MNIST: crop; test split: none]"),
      {"--seed", "S", CMKD_OPT_UINT64, &o->seed, "of the views; the training seed is independent of it [0]", 0, 0,
       &o->seed_seen},
      {"--cache-seed", "S", CMKD_OPT_UINT64, &o->other_seed, "the same, by the trainer's name for it", 0, 0,
       &o->other_seed_seen},
      cmkd_option_codec(&o->codec, "f16, f32 (exact), u8sqrt (half the size) or topk:K [f16]"),
      cmkd_option_allow_top_k(&o->allow_top_k),
      cmkd_option_shard_rows(&o->shard_rows),
      {"--teacher-batch", "N", CMKD_OPT_INT, &o->teacher_batch, "images a teacher batch; recorded in the cache [128]",
       1, CMKD_MAX_BATCH, NULL},
      cmkd_option_threads(&o->threads),
      cmkd_option_device(&o->device),
      {"--precision", "NAME", CMKD_OPT_STRING, &o->precision,
       "cuda: fp32, tf32, bf16, fp16 [the fastest whose error the codec hides]", 0, 0, NULL},
      {"--arch", "NAME", CMKD_OPT_STRING, &o->arch, "architecture, for weights whose metadata does not say", 0, 0,
       NULL},
      {"--mean", "R,G,B", CMKD_OPT_FLOATS3, o->mean, "the teacher's normalisation, likewise", 0, 0, &o->mean_seen},
      {"--std", "R,G,B", CMKD_OPT_FLOATS3, o->std, "", 0, 0, &o->std_seen},
      {"--part", "I/N|auto", CMKD_OPT_STRING, &o->part,
       "build every N-th shard only (cmkd-cache finish joins); auto: from Slurm or MPI", 0, 0, NULL},
      {"--no-test", NULL, CMKD_OPT_FLAG, &o->no_test, "do not also cache the test split (OUT.test.h5, one clean view)",
       0, 0, NULL},
      {"--with-test", NULL, CMKD_OPT_FLAG, &o->with_test, "do so even with --samples", 0, 0, NULL},
      {"--out", "FILE.h5", CMKD_OPT_STRING, &o->out, "the cache; its shards go to FILE.shards", 0, 0, NULL},
      cmkd_option_quiet(&o->quiet),
      cmkd_option_json(&o->json),
      {0},
  };
  const cmkd_command command = {
      .name = "cmkd-cache build",
      .summary =
          "Runs the teacher once over every view of every image and writes its raw logits. Run again, it continues.",
      .usage = "--teacher FILE --out FILE.h5 [options]",
      .options = table,
      .examples = "  cmkd-cache build --teacher resnet56-cifar100.safetensors --data cifar100:DIR --views all --out "
                  "teacher.h5\n"
                  "  cmkd-cache build --teacher lenet.safetensors --data fashion-mnist --views 4 --seed 1 --codec "
                  "u8sqrt --out small.h5\n"};
  return cmkd_options_parse(&command, argc, argv, NULL, NULL, help, err);
}

/* What the table cannot say. */
static cmkd_status check(options *o, cmkd_error *err) {
  if (!o->teacher)
    return cmkd_fail(err, CMKD_ERR_USAGE, "which teacher? give --teacher FILE (cmkd-cache build --help)");
  if (!o->out) return cmkd_fail(err, CMKD_ERR_USAGE, "where to? give --out FILE.h5");
  if (o->mean_seen != o->std_seen) return cmkd_fail(err, CMKD_ERR_USAGE, "--mean and --std go together");
  if (o->seed_seen && o->other_seed_seen && o->seed != o->other_seed)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--seed and --cache-seed are two names of one number; give one");
  if (o->other_seed_seen) o->seed = o->other_seed;
  if (strcmp(o->split, "train") != 0 && strcmp(o->split, "test") != 0)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--split %.40s: there are train and test", o->split);
  return CMKD_OK;
}

/* One cache to build: what the command adds to cmkd_build_options. */
typedef struct job {
  cmkd_build_options build;
  const char *split, *label; /* label: of the progress bar */
  cmkd_policy policy;
  cmkd_precision precision; /* of the teacher's arithmetic */
} job;

/* ---- the terminal ---- */

typedef struct bar {
  cmkd_progress progress;
  const char *label;
  int quiet, started;
} bar;

static int stop(void *self) {
  (void)self;
  return cmkd_interrupted();
}

static void show(void *self, const cmkd_build_progress *p) {
  bar *b = self;
  if (!b->started++) cmkd_progress_start(&b->progress, b->label, "images", p->total, 0, b->quiet);
  b->progress.base = p->reused; /* not of this run's rate */
  snprintf(b->progress.note, sizeof b->progress.note, "%s",
           p->waiting ? "waiting for another cmkd-cache on the same output" : "");
  cmkd_progress_update(&b->progress, p->done);
}

/* --data, or the data set that the weights say they were trained on. */
static cmkd_status find_data(const options *o, char spec[4200], cmkd_error *err) {
  if (o->data) {
    snprintf(spec, 4200, "%s", o->data);
    return CMKD_OK;
  }
  cmkd_weights *weights;
  CMKD_TRY(cmkd_weights_read(o->teacher, &weights, err));
  const char *name = cmkd_weights_meta(weights, "dataset");
  if (name) snprintf(spec, 4200, "%.60s", name);
  cmkd_weights_free(weights);
  return name ? CMKD_OK
              : cmkd_fail(err, CMKD_ERR_USAGE, "%s does not say which data set it was trained on; give --data SPEC",
                          o->teacher);
}

static cmkd_status resolve_views(const options *o, const char *data, job *j, cmkd_error *err) {
  uint32_t views = 0;
  if (o->augment)
    CMKD_TRY(cmkd_policy_parse(o->augment, &j->policy, err));
  else if (strcmp(o->split, "test"))
    CMKD_TRY(cmkd_dataset_policy(data, &j->policy, err));
  if (!o->views) return CMKD_OK;
  CMKD_TRY(cmkd_views_parse(o->views, &views, err));
  j->build.views = views; /* 0: all */
  j->build.all_variants = !views;
  return CMKD_OK;
}

/* ---- what was built ---- */

static double ratio(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

static json_t *summary_json(const job *j, const cmkd_build_result *r) {
  const cmkd_cache_writer_stats *w = &r->writer;
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "cache", cmkd_json_string(j->build.out));
  cmkd_json_set(&o, "samples", json_integer(r->samples));
  cmkd_json_set(&o, "views", json_integer(r->views));
  cmkd_json_set(&o, "shards", json_integer(r->shards));
  cmkd_json_set(&o, "finished", json_boolean(r->finished));
  cmkd_json_set(&o, "rows_built", json_integer((json_int_t)w->rows));
  cmkd_json_set(&o, "rows_reused", json_integer((json_int_t)w->reused_rows));
  cmkd_json_set(&o, "bytes_built", json_integer((json_int_t)w->file_bytes));
  cmkd_json_set(&o, "bytes_per_row", json_real(ratio((double)w->file_bytes, (double)w->rows)));
  cmkd_json_set(&o, "teacher_images_per_s", json_real(ratio((double)r->teacher_rows, r->teacher_seconds)));
  cmkd_json_set(&o, "images_per_s", json_real(ratio((double)r->teacher_rows, r->seconds)));
  cmkd_json_set(&o, "writer_mb_per_s", json_real(ratio((double)w->file_bytes, w->write_seconds) / 1e6));
  cmkd_json_set(&o, "seconds", json_real(r->seconds));
  return cmkd_json_end(&o);
}

static void summary(const job *j, const cmkd_build_result *r, int classes) {
  const cmkd_cache_writer_stats *w = &r->writer;
  char time[24], bytes[24];
  printf("%s: %u samples x %u views x %d classes, %u shards", j->build.out, r->samples, r->views, classes, r->shards);
  if (j->build.parts > 1) printf(" (part %u of %u)", j->build.part, j->build.parts);
  printf("\n");
  if (w->rows) {
    printf("  built    %llu rows in %s: %s, %.1f bytes a row (%s)\n", (unsigned long long)w->rows,
           cmkd_duration(r->seconds, time), cmkd_bytes(w->file_bytes, bytes),
           ratio((double)w->file_bytes, (double)w->rows), j->build.codec);
    if (j->precision.error > 0)
      printf("  teacher  in %s, off fp32 by %.2g (root mean square), recorded in the cache\n", j->precision.name,
             j->precision.error);
    printf("  teacher  %.0f images/s, %.0f%% of the time; writer %.0f MB/s behind it\n",
           ratio((double)r->teacher_rows, r->teacher_seconds), ratio(100 * r->teacher_seconds, r->seconds),
           ratio((double)w->file_bytes, w->write_seconds) / 1e6);
  }
  if (w->reused_rows)
    printf("  found    %llu rows already done%s\n", (unsigned long long)w->reused_rows,
           w->rows ? "" : "; nothing to do");
  if (!r->finished) printf("  when all parts are built: cmkd-cache finish --out %s\n", j->build.out);
}

/* ---- the work ---- */

static cmkd_teacher_options teacher_options(const options *o, const job *j) {
  return (cmkd_teacher_options){.weights = o->teacher,
                                .arch = o->arch,
                                .mean = o->mean_seen ? o->mean : NULL,
                                .std = o->std_seen ? o->std : NULL,
                                .batch = (int)o->teacher_batch,
                                .policy = j->policy,
                                .precision = j->precision.name,
                                .precision_error = j->precision.error};
}

/* The arithmetic of the teacher, measured on the split that is to be cached. */
static cmkd_status resolve_precision(const options *o, const cmkd_backend_table *table,
                                     const cmkd_backend_options *device, const char *data_spec, job *j,
                                     cmkd_error *err) {
  const cmkd_teacher_options teacher = teacher_options(o, j);
  cmkd_precision_wish wish = {.asked = o->precision,
                              .table = table,
                              .device = *device,
                              .teacher = &teacher,
                              .cache_seed = j->build.cache_seed,
                              .all_variants = j->build.all_variants};
  cmkd_dataset *data = NULL;
  CMKD_TRY(cmkd_codec_find(j->build.codec, &wish.codec, err));
  CMKD_TRY(cmkd_environment_dataset(data_spec, o->split, &data, err));
  wish.data = data;
  const cmkd_status status = cmkd_precision_choose(&wish, &j->precision, err);
  cmkd_dataset_close(data);
  return status;
}

/* Where the cache is to go on. */
typedef struct place {
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  const char *data; /* spec */
} place;

/* One split's cache. *json (NULL: the summary is printed) is the caller's. */
static cmkd_status build_split(const options *o, const place *at, const job *j, json_t **json, cmkd_error *err) {
  cmkd_dataset *data = NULL;
  cmkd_teacher *teacher = NULL;
  cmkd_build_result result;
  bar shown = {.label = j->label, .quiet = o->quiet};
  const cmkd_build_watch watch = {.self = &shown, .stop = stop, .progress = show};
  CMKD_TRY(cmkd_environment_dataset(at->data, j->split, &data, err));
  const cmkd_teacher_options wanted = teacher_options(o, j);
  cmkd_status status = cmkd_teacher_open(&wanted, at->table, at->backend, data, &teacher, err);
  if (status == CMKD_OK) {
    status = cmkd_build_cache(&j->build, teacher, &watch, &result, err);
    if (shown.started) cmkd_progress_end(&shown.progress);
  }
  if (status == CMKD_OK && json)
    *json = summary_json(j, &result);
  else if (status == CMKD_OK)
    summary(j, &result, data->classes);
  cmkd_teacher_close(teacher);
  cmkd_dataset_close(data);
  return status;
}

/* The test split beside it, as it is: what a trainer compares students with. */
static cmkd_status build_companion(const options *o, const place *at, const job *train, json_t **json,
                                   cmkd_error *err) {
  char *path = cmkd_cache_companion(o->out);
  if (!path) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a file name");
  job test = *train;
  test.split = "test";
  test.label = "teacher, test split";
  test.policy = CMKD_AUGMENT_NONE;
  test.build.out = path;
  test.build.samples = test.build.views = test.build.shard_samples = 0;
  test.build.all_variants = test.build.clean_view = 0;
  const cmkd_status status = build_split(o, at, &test, json, err);
  free(path);
  return status;
}

static cmkd_status build_all(const options *o, const char *data, job *j, cmkd_error *err) {
  place at = {.data = data};
  cmkd_backend_options backend_options = {.threads = (int)o->threads, .device = cmkd_backend_index(o->device)};
  cmkd_environment_backend(&backend_options);
  CMKD_TRY(cmkd_backend_find(o->device, &backend_options, &at.table, err));
  CMKD_TRY(resolve_precision(o, at.table, &backend_options, data, j, err));
  backend_options.precision = j->precision.name;
  CMKD_TRY(at.table->open(&backend_options, &at.backend, err));
  json_t *whole = NULL, *test = NULL;
  const int companion = !strcmp(o->split, "train") && !o->no_test && (!o->samples || o->with_test);
  cmkd_status status = build_split(o, &at, j, o->json ? &whole : NULL, err);
  if (status == CMKD_OK && companion) status = build_companion(o, &at, j, o->json ? &test : NULL, err);
  at.table->close(at.backend);
  if (status != CMKD_OK || !o->json) {
    json_decref(whole);
    return status;
  }
  if (companion && whole && json_object_set_new(whole, "test", test) != 0) {
    json_decref(whole);
    whole = NULL;
  }
  return cmkd_json_print(whole, 6, err);
}

cmkd_status cmkd_command_build(int argc, char **argv, cmkd_error *err) {
  options o = {.split = "train", .codec = "f16", .device = "auto"};
  const cmkd_codec *codec;
  cmkd_part part;
  int help = 0;
  CMKD_TRY(parse(argc, argv, &o, &help, err));
  if (help) return CMKD_OK;
  CMKD_TRY(check(&o, err));
  job j = {.build = {.out = o.out,
                     .samples = (uint32_t)o.samples,
                     .clean_view = o.clean_view,
                     .cache_seed = o.seed,
                     .codec = o.codec,
                     .shard_samples = (uint32_t)o.shard_rows,
                     .threads = (int)o.threads},
           .split = o.split,
           .label = "teacher"};
  char data[4200];
  CMKD_TRY(find_data(&o, data, err));
  CMKD_TRY(resolve_views(&o, data, &j, err));
  CMKD_TRY(cmkd_codec_find(o.codec, &codec, err));
  CMKD_TRY(cmkd_codec_allowed(o.codec, o.allow_top_k, err));
  CMKD_TRY(cmkd_part_find(o.part, &part, err));
  j.build.part = part.index;
  j.build.parts = part.count;
  if (part.count > 1 && !o.quiet)
    fprintf(stderr, "cmkd-cache: building part %u of %u (%s)\n", part.index, part.count, part.from);
  return build_all(&o, data, &j, err);
}
