/* cmkd-cache import: logits that another framework dumped, as a cache. With seeds and a policy it is a full cache,
 * replayed like one of ours; without them an honest single clean view. The data set says labels, classes and
 * fingerprint; labels that came along must agree. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/hash.h"
#include "base/program/environment.h"
#include "base/program/options.h"
#include "cmkd/cache_writer.h"
#include "cmkd/dataset.h"
#include "cmkd/weights.h"
#include "formats/npy.h"
#include "precompute/commands.h"
#include "precompute/shared_caches.h"
#include "precompute/shared_options.h"

#define MAX_FILE (1ull << 40) /* allocation fails long before on most machines, with a line of its own */
#define BLOCK 1024            /* samples handed to the writer at a time */

/* One array out of a .npy file or a safetensors file. */
typedef struct source {
  cmkd_npy *npy;
  cmkd_tensor tensor;
} source;

typedef struct import {
  const char *logits_path, *labels_path, *seeds_path, *data, *split, *augment, *teacher_name, *teacher, *codec, *out;
  int64_t shard_rows;
  int json, allow_top_k;
  cmkd_weights *weights;        /* of logits_path when it is safetensors */
  source logits, labels, seeds; /* of labels and seeds the data are NULL where there are none */
  cmkd_dataset *set;
  uint64_t n; /* samples */
  uint32_t views, classes;
  cmkd_policy policy;
} import;

static int is_npy(const char *path) {
  size_t n = strlen(path);
  return n > 4 && !strcmp(path + n - 4, ".npy");
}

static cmkd_status open_npy(const char *path, source *s, cmkd_error *err) {
  CMKD_TRY(cmkd_npy_read(path, MAX_FILE, &s->npy, err));
  s->tensor = (cmkd_tensor){.dtype = s->npy->dtype, .dims = s->npy->dims, .count = s->npy->count, .data = s->npy->data};
  memcpy(s->tensor.shape, s->npy->shape, sizeof s->tensor.shape);
  return CMKD_OK;
}

/* A tensor of the safetensors file, unless a file of its own was given. */
static void take(const import *im, const char *name, source *s) {
  const cmkd_tensor *t = im->weights ? cmkd_weights_find(im->weights, name) : NULL;
  if (t && !s->tensor.data) s->tensor = *t;
}

static cmkd_status read_files(import *im, cmkd_error *err) {
  if (is_npy(im->logits_path))
    CMKD_TRY(open_npy(im->logits_path, &im->logits, err));
  else
    CMKD_TRY(cmkd_weights_read(im->logits_path, &im->weights, err));
  if (im->labels_path) CMKD_TRY(open_npy(im->labels_path, &im->labels, err));
  if (im->seeds_path) CMKD_TRY(open_npy(im->seeds_path, &im->seeds, err));
  take(im, "logits", &im->logits);
  take(im, "labels", &im->labels);
  take(im, "seeds", &im->seeds);
  if (!im->logits.tensor.data)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: holds no tensor called \"logits\"", im->logits_path);
  return CMKD_OK;
}

static int is_integer(cmkd_dtype t) {
  return t == CMKD_I64 || t == CMKD_I32 || t == CMKD_I16 || t == CMKD_I8 || t == CMKD_U8 || t == CMKD_U16 ||
         t == CMKD_U32 || t == CMKD_U64;
}

static int is_float(cmkd_dtype t) { return t == CMKD_F32 || t == CMKD_F64 || t == CMKD_F16 || t == CMKD_BF16; }

static cmkd_status check_logits(import *im, cmkd_error *err) {
  const cmkd_tensor *t = &im->logits.tensor;
  if ((t->dims != 2 && t->dims != 3) || !is_float(t->dtype))
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: logits are to be float, (samples, classes) or (samples, views, classes)", im->logits_path);
  int64_t views = t->dims == 3 ? t->shape[1] : 1, classes = t->shape[t->dims - 1];
  if (t->shape[0] < 1 || t->shape[0] > im->set->n)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: has %lld samples, %s %s has %u; is --split right?", im->logits_path,
                     (long long)t->shape[0], im->set->name, im->set->split, im->set->n);
  if (classes != im->set->classes)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: has %lld classes, %s has %d", im->logits_path, (long long)classes,
                     im->set->name, im->set->classes);
  if (views < 1 || views >= CMKD_CACHE_MAX_VIEWS)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: has %lld views", im->logits_path, (long long)views);
  im->n = (uint64_t)t->shape[0];
  im->views = (uint32_t)views;
  im->classes = (uint32_t)classes;
  return CMKD_OK;
}

/* Without seeds a dump is one clean view, or nothing that could be replayed. */
static cmkd_status check_no_seeds(const import *im, cmkd_error *err) {
  if (im->augment && im->policy != CMKD_AUGMENT_NONE)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--augment %s needs --seeds: without them nobody can replay the pixels",
                     im->augment);
  if (im->views != 1)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: holds %u views; give their --seeds and --augment, or one clean view",
                     im->logits_path, im->views);
  return CMKD_OK;
}

static cmkd_status check_seeds(const import *im, cmkd_error *err) {
  const cmkd_tensor *s = &im->seeds.tensor;
  if (!s->data) return check_no_seeds(im, err);
  if (!im->augment)
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "seeds say nothing without their policy; give --augment none|flip|crop|crop+flip");
  if ((s->dtype != CMKD_U64 && s->dtype != CMKD_I64) || s->count != (int64_t)(im->n * im->views))
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "the seeds are to be 64-bit integers (%" PRIu64 ", %u), one for each row of logits", im->n,
                     im->views);
  return CMKD_OK;
}

/* The i-th number of a tensor for which is_integer holds. */
static int64_t integer_at(const cmkd_tensor *t, uint64_t i) {
  switch (t->dtype) {
  case CMKD_I64: return ((const int64_t *)t->data)[i];
  case CMKD_U64: return (int64_t)((const uint64_t *)t->data)[i];
  case CMKD_I32: return ((const int32_t *)t->data)[i];
  case CMKD_U32: return ((const uint32_t *)t->data)[i];
  case CMKD_I16: return ((const int16_t *)t->data)[i];
  case CMKD_U16: return ((const uint16_t *)t->data)[i];
  case CMKD_I8: return ((const int8_t *)t->data)[i];
  default: return ((const uint8_t *)t->data)[i];
  }
}

static cmkd_status check_labels(const import *im, cmkd_error *err) {
  const cmkd_tensor *t = &im->labels.tensor;
  if (!t->data) return CMKD_OK;
  if (!is_integer(t->dtype) || t->count != (int64_t)im->n)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "the labels are to be %" PRIu64 " integers, one a sample", im->n);
  for (uint64_t i = 0; i < im->n; i++)
    if (integer_at(t, i) != im->set->labels[i])
      return cmkd_fail(
          err, CMKD_ERR_MISMATCH,
          "sample %" PRIu64
          " has label %lld in the dump and %d in %s %s; dump the logits unshuffled, in the data set's order",
          i, (long long)integer_at(t, i), im->set->labels[i], im->set->name, im->set->split);
  return CMKD_OK;
}

static cmkd_status fill_spec(const import *im, cmkd_cache_spec *spec, cmkd_error *err) {
  cmkd_cache_identity *id = &spec->identity;
  memset(spec, 0, sizeof *spec);
  if (im->teacher)
    CMKD_TRY(cmkd_sha256_file(im->teacher, id->teacher_sha256, err));
  else /* all that is known of it is its name */
    cmkd_sha256(im->teacher_name, strlen(im->teacher_name), id->teacher_sha256);
  snprintf(id->teacher_name, sizeof id->teacher_name, "%s", im->teacher_name);
  snprintf(id->teacher_arch, sizeof id->teacher_arch, "imported");
  snprintf(id->precision, sizeof id->precision, "%s", cmkd_dtype_name(im->logits.tensor.dtype));
  snprintf(id->dataset, sizeof id->dataset, "%s", im->set->name);
  snprintf(id->split, sizeof id->split, "%s", im->set->split);
  snprintf(id->fingerprint, sizeof id->fingerprint, "%s", im->set->fingerprint);
  id->dataset_n = im->set->n;
  id->policy = im->seeds.tensor.data ? im->policy : CMKD_AUGMENT_NONE;
  snprintf(id->rng_version, sizeof id->rng_version, "%s", CMKD_RNG_VERSION);
  snprintf(id->codec, sizeof id->codec, "%s", im->codec);
  snprintf(id->tool_version, sizeof id->tool_version, "%s", CMKD_VERSION);
  spec->samples = im->n;
  spec->views = im->views;
  spec->classes = im->classes;
  spec->class_names = im->set->class_names;
  spec->shard_samples = (uint32_t)im->shard_rows;
  return CMKD_OK;
}

static uint64_t seed_of_row(const import *im, uint64_t row) {
  if (!im->seeds.tensor.data) return cmkd_clean_seed(CMKD_AUGMENT_NONE);
  return (uint64_t)integer_at(&im->seeds.tensor, row);
}

static cmkd_status write_rows(const import *im, cmkd_cache_writer *writer, cmkd_error *err) {
  size_t row = (size_t)im->views * im->classes, item = cmkd_dtype_size(im->logits.tensor.dtype);
  float *logits = malloc(BLOCK * row * sizeof *logits);
  uint64_t *ids = malloc(BLOCK * sizeof *ids), *seeds = malloc((size_t)BLOCK * im->views * sizeof *seeds);
  cmkd_status status = logits && ids && seeds ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", im->out);
  for (uint64_t at = 0; at < im->n && status == CMKD_OK; at += BLOCK) {
    uint32_t count = im->n - at < BLOCK ? (uint32_t)(im->n - at) : BLOCK;
    cmkd_tensor part = im->logits.tensor;
    part.data = (const char *)part.data + at * row * item;
    part.count = (int64_t)(count * row);
    cmkd_tensor_to_float(&part, logits);
    for (uint32_t i = 0; i < count; i++)
      ids[i] = at + i;
    for (uint64_t k = 0; k < (uint64_t)count * im->views; k++)
      seeds[k] = seed_of_row(im, at * im->views + k);
    status = cmkd_cache_writer_add(writer, count, ids, im->set->labels + at, seeds, logits, err);
  }
  free(logits);
  free(ids);
  free(seeds);
  return status;
}

static cmkd_status run(import *im, cmkd_error *err) {
  cmkd_cache_spec spec;
  cmkd_cache_writer *writer;
  if (im->augment) CMKD_TRY(cmkd_policy_parse(im->augment, &im->policy, err));
  CMKD_TRY(read_files(im, err));
  CMKD_TRY(cmkd_environment_dataset(im->data, im->split, &im->set, err));
  CMKD_TRY(check_logits(im, err));
  CMKD_TRY(check_seeds(im, err));
  CMKD_TRY(check_labels(im, err));
  CMKD_TRY(fill_spec(im, &spec, err));
  CMKD_TRY(cmkd_output_is_new(im->out, err));
  CMKD_TRY(cmkd_cache_writer_open(im->out, &spec, &writer, err));
  cmkd_status status = write_rows(im, writer, err);
  if (status == CMKD_OK) status = cmkd_cache_writer_finish(writer, err);
  cmkd_cache_writer_close(writer);
  if (status != CMKD_OK) cmkd_output_remove(im->out);
  return status;
}

static cmkd_status parse(int argc, char **argv, import *im, int *help, cmkd_error *err) {
  const cmkd_option table[] = {
      {.name = "--logits",
       .argument = "FILE",
       .kind = CMKD_OPT_STRING,
       .target = &im->logits_path,
       .help = ".npy or safetensors (\"logits\"): (n, C) or (n, V, C), float"},
      {.name = "--data",
       .argument = "SPEC",
       .kind = CMKD_OPT_STRING,
       .target = &im->data,
       .help = "the images they were made from, in that order"},
      cmkd_option_split(&im->split),
      {.name = "--labels",
       .argument = "FILE.npy",
       .kind = CMKD_OPT_STRING,
       .target = &im->labels_path,
       .help = "(n) integers; compared with the data set's"},
      {.name = "--seeds",
       .argument = "FILE.npy",
       .kind = CMKD_OPT_STRING,
       .target = &im->seeds_path,
       .help = "(n, V) 64-bit seeds of the views; without: one clean view"},
      cmkd_option_augment(&im->augment, "what the seeds mean: none, flip, crop, crop+flip"),
      {.name = "--teacher-name",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &im->teacher_name,
       .help = "as it is to be recorded"},
      {.name = "--teacher",
       .argument = "FILE",
       .kind = CMKD_OPT_STRING,
       .target = &im->teacher,
       .help = "its weights, any format: recorded by hash [hash of the name]"},
      cmkd_option_codec(&im->codec, "f32, f16, u8sqrt or topk:K [f16]"),
      cmkd_option_allow_top_k(&im->allow_top_k),
      cmkd_option_shard_rows(&im->shard_rows),
      {.name = "--out", .argument = "FILE.h5", .kind = CMKD_OPT_STRING, .target = &im->out, .help = "the cache"},
      cmkd_option_json(&im->json),
      {0},
  };
  const cmkd_command command = {
      .name = "cmkd-cache import",
      .summary = "Makes a cache of logits that another framework dumped.",
      .usage = "--logits FILE --data SPEC --teacher-name NAME --out FILE.h5",
      .options = table,
      .examples = "  cmkd-cache import --logits vit.npy --data cifar100:DIR --teacher-name vit-b16 --out vit.h5\n"
                  "  cmkd-cache import --logits vit.npy --seeds seeds.npy --augment crop+flip --data cifar100:DIR "
                  "--teacher-name vit-b16 --out vit.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, NULL, NULL, help, err));
  if (*help) return CMKD_OK;
  const struct {
    const char *value, *option;
  } needed[] = {{im->logits_path, "--logits FILE"},
                {im->data, "--data SPEC"},
                {im->teacher_name, "--teacher-name NAME"},
                {im->out, "--out FILE.h5"}};
  for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
    if (!needed[i].value) return cmkd_fail(err, CMKD_ERR_USAGE, "import needs %s", needed[i].option);
  return cmkd_codec_allowed(im->codec, im->allow_top_k, err);
}

cmkd_status cmkd_command_import(int argc, char **argv, cmkd_error *err) {
import im = {.split = "train", .codec = "f16" };
  int help = 0;
  CMKD_TRY(parse(argc, argv, &im, &help, err));
  if (help) return CMKD_OK;
  cmkd_status status = run(&im, err);
  cmkd_dataset_close(im.set);
  cmkd_weights_free(im.weights);
  cmkd_npy_free(im.logits.npy);
  cmkd_npy_free(im.labels.npy);
  cmkd_npy_free(im.seeds.npy);
  return status == CMKD_OK ? cmkd_output_report(im.out, im.json, err) : status;
}
