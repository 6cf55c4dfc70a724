/* cmkd-cache build: options, defaults, the companion cache of the test split, the summary. build.c does the work. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/file.h"
#include "base/program/interrupt.h"
#include "base/program/options.h"
#include "base/text.h"
#include "cmkd/weights.h"
#include "formats/cache/codec.h"
#include "formats/cache/paths.h"
#include "precompute/build.h"
#include "precompute/precision.h"
#include "precompute/commands.h"
#include "precompute/reshape.h"

#define DEFAULT_VIEWS 4

typedef struct options {
  const char *teacher, *data, *split, *views, *augment, *codec, *device, *precision, *arch, *out, *part;
  int64_t samples, shard_rows, teacher_batch, threads;
  uint64_t seed;
  float mean[3], std[3];
  int clean_view, no_test, with_test, quiet, json, mean_seen, std_seen, seed_seen, cache_seed_seen, allow_top_k;
} options;

static cmkd_status parse(int argc, char **argv, options *o, int *help, cmkd_error *err) {
  uint64_t other_seed = 0;
  const cmkd_option table[] = {
      {.name = "--teacher",
       .argument = "FILE",
       .kind = CMKD_OPT_STRING,
       .target = &o->teacher,
       .help = "weights of the teacher (safetensors)"},
      {.name = "--data",
       .argument = "SPEC",
       .kind = CMKD_OPT_STRING,
       .target = &o->data,
       .help = "data set, NAME or NAME:DIR [the one in the teacher's metadata]"},
      {.name = "--split",
       .argument = "train|test",
       .kind = CMKD_OPT_STRING,
       .target = &o->split,
       .help = "which images [train]"},
      {.name = "--samples",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &o->samples,
       .help = "only the first N of the split [all]",
       .min = 1,
       .max = 4294967295.0},
      {.name = "--views",
       .argument = "V|all",
       .kind = CMKD_OPT_STRING,
       .target = &o->views,
       .help = "augmented views of each image; all: every variant of the policy [4; 1 without augmentation]"},
      {.name = "--clean-view",
       .kind = CMKD_OPT_FLAG,
       .target = &o->clean_view,
       .help = "one more view: the image as it is"},
      {.name = "--augment",
       .argument = "POLICY",
       .kind = CMKD_OPT_STRING,
       .target = &o->augment,
       .help = "none, flip, crop or crop+flip [crop+flip; MNIST: crop; test split: none]"},
      {.name = "--seed",
       .argument = "S",
       .kind = CMKD_OPT_UINT64,
       .target = &o->seed,
       .help = "of the views; the training seed is independent of it [0]",
       .seen = &o->seed_seen},
      {.name = "--cache-seed",
       .argument = "S",
       .kind = CMKD_OPT_UINT64,
       .target = &other_seed,
       .help = "the same, by the trainer's name for it",
       .seen = &o->cache_seed_seen},
      {.name = "--codec",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &o->codec,
       .help = "f16, f32 (exact), u8sqrt (half the size) or topk:K [f16]"},
      {.name = "--allow-top-k",
       .kind = CMKD_OPT_FLAG,
       .target = &o->allow_top_k,
       .help = "topk:K is meant: all but K logits of a row become one tie, no rank-based losses"},
      {.name = "--shard-rows",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &o->shard_rows,
       .help = "samples a shard [about 4 MB of raw logits]",
       .min = 1,
       .max = 2147483647},
      {.name = "--teacher-batch",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &o->teacher_batch,
       .help = "images a teacher batch; recorded in the cache [128]",
       .min = 1,
       .max = 65536},
      {.name = "--threads",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &o->threads,
       .help = "[all cores]",
       .min = 1,
       .max = 1024},
      {.name = "--device",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &o->device,
       .help = "auto, cpu, cuda or cuda:N [auto]"},
      {.name = "--precision",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &o->precision,
       .help = "cuda: fp32, tf32, bf16, fp16 [the fastest whose error the codec hides]"},
      {.name = "--arch",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &o->arch,
       .help = "architecture, for weights whose metadata does not say"},
      {.name = "--mean",
       .argument = "R,G,B",
       .kind = CMKD_OPT_FLOATS3,
       .target = o->mean,
       .help = "the teacher's normalisation, likewise",
       .seen = &o->mean_seen},
      {.name = "--std",
       .argument = "R,G,B",
       .kind = CMKD_OPT_FLOATS3,
       .target = o->std,
       .help = "",
       .seen = &o->std_seen},
      {.name = "--part",
       .argument = "I/N|auto",
       .kind = CMKD_OPT_STRING,
       .target = &o->part,
       .help = "build every N-th shard only (cmkd-cache finish joins); auto: from Slurm or MPI"},
      {.name = "--no-test",
       .kind = CMKD_OPT_FLAG,
       .target = &o->no_test,
       .help = "do not also cache the test split (OUT.test.h5, one clean view)"},
      {.name = "--with-test", .kind = CMKD_OPT_FLAG, .target = &o->with_test, .help = "do so even with --samples"},
      {.name = "--out",
       .argument = "FILE.h5",
       .kind = CMKD_OPT_STRING,
       .target = &o->out,
       .help = "the cache; its shards go to FILE.shards"},
      {.name = "--quiet", .kind = CMKD_OPT_FLAG, .target = &o->quiet, .help = "no progress"},
      {.name = "--json", .kind = CMKD_OPT_FLAG, .target = &o->json, .help = "the summary as one JSON object"},
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
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, NULL, NULL, help, err));
  if (*help) return CMKD_OK;
  if (!o->teacher)
    return cmkd_fail(err, CMKD_ERR_USAGE, "which teacher? give --teacher FILE (cmkd-cache build --help)");
  if (!o->out) return cmkd_fail(err, CMKD_ERR_USAGE, "where to? give --out FILE.h5");
  if (o->mean_seen != o->std_seen) return cmkd_fail(err, CMKD_ERR_USAGE, "--mean and --std go together");
  if (o->seed_seen && o->cache_seed_seen && o->seed != other_seed)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--seed and --cache-seed are two names of one number; give one");
  if (o->cache_seed_seen) o->seed = other_seed;
  if (strcmp(o->split, "train") != 0 && strcmp(o->split, "test") != 0)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--split %.40s: there are train and test", o->split);
  return CMKD_OK;
}

static cmkd_status settle_views(const options *o, const char *data, cmkd_build_job *job, cmkd_error *err) {
  if (o->augment)
    CMKD_TRY(cmkd_policy_parse(o->augment, &job->policy, err));
  else if (strcmp(o->split, "test"))
    CMKD_TRY(cmkd_dataset_policy(data, &job->policy, err));
  job->views = job->policy == CMKD_AUGMENT_NONE ? 1 : DEFAULT_VIEWS;
  job->clean_view =
      o->clean_view && job->policy != CMKD_AUGMENT_NONE; /* without augmentation the one view is the clean one */
  if (!o->views) return CMKD_OK;
  if (!strcmp(o->views, "all")) {
    job->views = cmkd_policy_variants(job->policy);
    job->all_variants = job->policy != CMKD_AUGMENT_NONE;
    return CMKD_OK;
  }
  char *end;
  unsigned long views = strtoul(o->views, &end, 10);
  if (o->views[0] < '0' || o->views[0] > '9' || *end || views < 1 || views > 65535)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--views %.40s: give a number from 1 to 65535, or all", o->views);
  if (job->policy == CMKD_AUGMENT_NONE && views > 1)
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "--views %lu: without augmentation all views are the same image; leave it out or choose --augment",
                     views);
  job->views = (uint32_t)views;
  return CMKD_OK;
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

static void summary(const cmkd_build_job *job, const cmkd_build_result *r, const char *out, json_t *json) {
  const cmkd_cache_writer_stats *w = &r->writer;
  uint32_t views = job->views + (job->clean_view ? 1 : 0);
  double per_row = w->rows ? (double)w->file_bytes / (double)w->rows : 0,
         rate = r->teacher_seconds > 0 ? (double)r->teacher_rows / r->teacher_seconds : 0;
  double bandwidth = w->write_seconds > 0 ? (double)w->file_bytes / w->write_seconds / 1e6 : 0,
         all = r->seconds > 0 ? (double)r->teacher_rows / r->seconds : 0;
  if (json) {
    json_object_set_new(json, "cache", json_string(out));
    json_object_set_new(json, "samples", json_integer(job->samples));
    json_object_set_new(json, "views", json_integer(views));
    json_object_set_new(json, "shards", json_integer(r->shards));
    json_object_set_new(json, "finished", json_boolean(r->finished));
    json_object_set_new(json, "rows_built", json_integer((json_int_t)w->rows));
    json_object_set_new(json, "rows_reused", json_integer((json_int_t)w->reused_rows));
    json_object_set_new(json, "bytes_built", json_integer((json_int_t)w->file_bytes));
    json_object_set_new(json, "bytes_per_row", json_real(per_row));
    json_object_set_new(json, "teacher_images_per_s", json_real(rate));
    json_object_set_new(json, "images_per_s", json_real(all));
    json_object_set_new(json, "writer_mb_per_s", json_real(bandwidth));
    json_object_set_new(json, "seconds", json_real(r->seconds));
    return;
  }
  char time[24], bytes[24];
  printf("%s: %u samples x %u views x %d classes, %u shards", out, job->samples, views,
         cmkd_teacher_spec(job->teacher)->classes, r->shards);
  if (job->part.count > 1) printf(" (part %u of %u)", job->part.index, job->part.count);
  printf("\n");
  if (w->rows) {
    printf("  built    %llu rows in %s: %s, %.1f bytes a row (%s)\n", (unsigned long long)w->rows,
           cmkd_duration(r->seconds, time), cmkd_bytes(w->file_bytes, bytes), per_row, job->codec);
    if (job->precision_error > 0)
      printf("  teacher  in %s, off fp32 by %.2g (root mean square), recorded in the cache\n", job->precision,
             job->precision_error);
    printf("  teacher  %.0f images/s, %.0f%% of the time; writer %.0f MB/s behind it\n", rate,
           r->seconds > 0 ? 100 * r->teacher_seconds / r->seconds : 0, bandwidth);
  }
  if (w->reused_rows)
    printf("  found    %llu rows already done%s\n", (unsigned long long)w->reused_rows,
           w->rows ? "" : "; nothing to do");
  if (!r->finished) printf("  when all parts are built: cmkd-cache finish --out %s\n", out);
}

static cmkd_teacher_options teacher_options(const options *o, cmkd_policy policy) {
  return (cmkd_teacher_options){.weights = o->teacher,
                                .arch = o->arch,
                                .mean = o->mean_seen ? o->mean : NULL,
                                .std = o->std_seen ? o->std : NULL,
                                .batch = (int)o->teacher_batch,
                                .policy = policy};
}

/* The arithmetic of the teacher, measured on the split that is to be cached. */
static cmkd_status settle_precision(const options *o, const cmkd_backend_table *table,
                                    const cmkd_backend_options *device, const char *data_spec, cmkd_build_job *job,
                                    cmkd_error *err) {
  const cmkd_teacher_options teacher = teacher_options(o, job->policy);
  cmkd_precision_wish wish = {.asked = o->precision,
                              .table = table,
                              .device = *device,
                              .teacher = &teacher,
                              .cache_seed = job->cache_seed,
                              .all_variants = job->all_variants};
  cmkd_precision precision;
  cmkd_dataset *data = NULL;
  CMKD_TRY(cmkd_codec_find(job->codec, &wish.codec, err));
  CMKD_TRY(cmkd_environment_dataset(data_spec, o->split, &data, err));
  wish.data = data;
  cmkd_status status = cmkd_precision_choose(&wish, &precision, err);
  cmkd_dataset_close(data);
  if (status != CMKD_OK) return status;
  job->precision = precision.name;
  job->precision_error = precision.error;
  return CMKD_OK;
}

static cmkd_status build_one(const options *o, const cmkd_backend_table *table, cmkd_backend *backend,
                             const char *data_spec, const char *split, cmkd_build_job *job, json_t *json,
                             cmkd_error *err) {
  cmkd_dataset *data = NULL;
  cmkd_build_result result;
  CMKD_TRY(cmkd_environment_dataset(data_spec, split, &data, err));
  const cmkd_teacher_options teacher = teacher_options(o, job->policy);
  cmkd_status status = cmkd_teacher_open(&teacher, table, backend, data, &job->teacher, err);
  job->data = data;
  if (!job->samples) job->samples = data->n;
  if (status == CMKD_OK && job->samples > data->n)
    status = cmkd_fail(err, CMKD_ERR_USAGE, "--samples %u: %s has %u in its %s split", job->samples, data->name,
                       data->n, split);
  if (status == CMKD_OK) status = cmkd_build_cache(job, &result, err);
  if (status == CMKD_OK) summary(job, &result, job->out, json);
  cmkd_teacher_close(job->teacher);
  cmkd_dataset_close(data);
  job->teacher = NULL;
  job->data = NULL;
  return status;
}

/* "teacher.h5" -> "teacher.test.h5" */
static char *companion(const char *out) {
  size_t length = strlen(out);
  int stem = length > 3 && !strcmp(out + length - 3, ".h5") ? (int)length - 3 : (int)length;
  return cmkd_format("%.*s.test.h5", stem, out);
}

static cmkd_status build_all(const options *o, const char *data, cmkd_build_job *job, json_t *json, cmkd_error *err) {
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_backend_options backend_options = {.threads = (int)o->threads, .device = cmkd_backend_index(o->device)};
  cmkd_environment_backend(&backend_options);
  CMKD_TRY(cmkd_backend_find(o->device, &backend_options, &table, err));
  CMKD_TRY(settle_precision(o, table, &backend_options, data, job, err));
  backend_options.precision = job->precision;
  CMKD_TRY(table->open(&backend_options, &backend, err));
  int whole = !job->samples;
  cmkd_status status = build_one(o, table, backend, data, o->split, job, json, err);
  if (status == CMKD_OK && !strcmp(o->split, "train") && !o->no_test && (whole || o->with_test)) {
    cmkd_build_job test = *job;
    char *path = companion(o->out);
    json_t *second = json ? json_object() : NULL;
    test.out = path;
    test.samples = 0;
    test.views = 1;
    test.policy = CMKD_AUGMENT_NONE;
    test.all_variants = test.clean_view = 0;
    test.shard_rows = 0;
    test.label = "teacher, test split";
    status = path ? build_one(o, table, backend, data, "test", &test, second, err)
                  : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a file name");
    if (second) json_object_set_new(json, "test", second);
    free(path);
  }
  table->close(backend);
  return status;
}

cmkd_status cmkd_command_build(int argc, char **argv, cmkd_error *err) {
  options o = {.split = "train", .codec = "f16", .device = "auto"};
  const cmkd_codec *codec;
  int help = 0;
  CMKD_TRY(parse(argc, argv, &o, &help, err));
  if (help) return CMKD_OK;
  cmkd_build_job job = {.out = o.out,
                        .teacher_path = o.teacher,
                        .samples = (uint32_t)o.samples,
                        .cache_seed = o.seed,
                        .codec = o.codec,
                        .shard_rows = (uint32_t)o.shard_rows,
                        .threads = (int)o.threads,
                        .quiet = o.quiet,
                        .label = "teacher",
                        .interrupted = cmkd_interrupted};
  char data[4200];
  CMKD_TRY(find_data(&o, data, err));
  CMKD_TRY(settle_views(&o, data, &job, err));
  CMKD_TRY(cmkd_codec_find(o.codec, &codec, err));
  CMKD_TRY(cmkd_codec_allowed(o.codec, o.allow_top_k, err));
  CMKD_TRY(cmkd_part_find(o.part, &job.part, err));
  if (job.part.count > 1 && !o.quiet)
    fprintf(stderr, "cmkd-cache: building part %u of %u (%s)\n", job.part.index, job.part.count, job.part.from);
  json_t *json = o.json ? json_object() : NULL;
  cmkd_status status = build_all(&o, data, &job, json, err);
  if (json && status == CMKD_OK) {
    char *text = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(6));
    puts(text ? text : "{}");
    free(text);
  }
  json_decref(json);
  return status;
}

cmkd_status cmkd_command_finish(int argc, char **argv, cmkd_error *err) {
  const char *out = NULL, *positional[1] = {0};
  int help = 0, positionals = 0, quiet = 0;
  const cmkd_option table[] = {
      {.name = "--out",
       .argument = "FILE.h5",
       .kind = CMKD_OPT_STRING,
       .target = &out,
       .help = "the cache, as given to the parts"},
      {.name = "--quiet", .kind = CMKD_OPT_FLAG, .target = &quiet, .help = "say nothing"},
      {0},
  };
  const cmkd_command command = {
      .name = "cmkd-cache finish",
      .summary =
          "Joins the shards that --part builds left: checks every hash, writes the master (and that of OUT.test.h5).",
      .usage = "--out FILE.h5",
      .options = table,
      .max_positional = 1,
      .examples = "  cmkd-cache finish --out teacher.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, positional, &positionals, &help, err));
  if (help) return CMKD_OK;
  if (!out) out = positional[0];
  if (!out) return cmkd_fail(err, CMKD_ERR_USAGE, "which cache? give --out FILE.h5");
  char *test = companion(out), *folder = test ? cmkd_cache_folder(test) : NULL;
  cmkd_status status = folder ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a file name");
  for (int i = 0; i < 2 && status == CMKD_OK; i++) {
    const char *path = i ? test : out;
    cmkd_cache_writer *writer;
    if (i && !cmkd_file_exists(folder)) break;
    status = cmkd_cache_writer_join(path, &writer, err);
    if (status != CMKD_OK) break;
    status = cmkd_cache_writer_finish(writer, err);
    if (status == CMKD_OK && !quiet) printf("%s: %u shards joined\n", path, cmkd_cache_writer_shards(writer));
    cmkd_cache_writer_close(writer);
  }
  free(test);
  free(folder);
  return status;
}
