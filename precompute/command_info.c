/* cmkd-cache info: what a cache holds, for people and for programs. Reads headers only. */
#include <inttypes.h>
#include <stdio.h>
#include "base/json.h"
#include "base/program/print.h"
#include "base/text.h"
#include "cmkd/cache.h"
#include "precompute/commands.h"
#include "precompute/shared_options.h"

static json_t *floats(const float *x, int n) {
  cmkd_json array = cmkd_json_array();
  for (int i = 0; i < n; i++)
    cmkd_json_append(&array, json_real(x[i]));
  return cmkd_json_end(&array);
}

static json_t *class_names(const cmkd_cache_info *info) {
  cmkd_json array = cmkd_json_array();
  for (uint32_t c = 0; c < info->classes; c++)
    cmkd_json_append(&array, json_string(info->class_names[c]));
  return cmkd_json_end(&array);
}

static json_t *arrays_json(const cmkd_cache_info *info) {
  cmkd_json list = cmkd_json_array();
  for (uint32_t i = 0; i < info->array_count; i++) {
    const cmkd_cache_array *a = &info->arrays[i];
    cmkd_json shape = cmkd_json_array(), o = cmkd_json_object();
    for (int d = 0; d < a->dims; d++)
      cmkd_json_append(&shape, json_integer(a->shape[d]));
    cmkd_json_set(&o, "name", json_string(a->name));
    cmkd_json_set(&o, "dtype", json_string(cmkd_dtype_name(a->dtype)));
    cmkd_json_set(&o, "shape", cmkd_json_end(&shape));
    cmkd_json_append(&list, cmkd_json_end(&o));
  }
  return cmkd_json_end(&list);
}

static json_t *teacher_json(const cmkd_cache_identity *id) {
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "name", json_string(id->teacher_name));
  cmkd_json_set(&o, "sha256", json_string(id->teacher_sha256));
  cmkd_json_set(&o, "arch", json_string(id->teacher_arch));
  cmkd_json_set(&o, "mean", floats(id->mean, id->channels));
  cmkd_json_set(&o, "std", floats(id->std, id->channels));
  cmkd_json_set(&o, "precision", json_string(id->precision));
  cmkd_json_set(&o, "batch", json_integer(id->teacher_batch));
  if (id->precision_error > 0) cmkd_json_set(&o, "precision_error", json_real(id->precision_error));
  return cmkd_json_end(&o);
}

static cmkd_status print_json(const char *path, const cmkd_cache_info *info, int names, cmkd_error *err) {
  const cmkd_cache_identity *id = &info->identity;
  const double rows = (double)(info->samples * info->views);
  char seed[24]; /* as a string: JSON numbers end at 2^53 in many readers */
  snprintf(seed, sizeof seed, "%" PRIu64, id->cache_seed);
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "cache", cmkd_json_string(path));
  cmkd_json_set(&o, "sha256", json_string(info->content_sha256));
  cmkd_json_set(&o, "samples", json_integer((json_int_t)info->samples));
  cmkd_json_set(&o, "views", json_integer(info->views));
  cmkd_json_set(&o, "classes", json_integer(info->classes));
  cmkd_json_set(&o, "codec", json_string(id->codec));
  cmkd_json_set(&o, "bytes", json_integer((json_int_t)info->bytes));
  cmkd_json_set(&o, "logit_bytes", json_integer((json_int_t)info->logit_bytes));
  cmkd_json_set(&o, "bytes_per_row", json_real((double)info->bytes / rows));
  cmkd_json_set(&o, "shards", json_integer(info->shards));
  cmkd_json_set(&o, "kept_logits", json_integer(info->kept));
  cmkd_json_set(&o, "teacher", teacher_json(id));
  cmkd_json_set(&o, "data",
                json_pack("{s:s,s:s,s:s,s:I}", "name", id->dataset, "split", id->split, "fingerprint", id->fingerprint,
                          "n", (json_int_t)id->dataset_n));
  cmkd_json_set(&o, "augment", json_string(cmkd_policy_name(id->policy)));
  cmkd_json_set(&o, "all_variants", json_boolean(id->all_variants));
  cmkd_json_set(&o, "clean_view", json_boolean(id->clean_view));
  cmkd_json_set(&o, "cache_seed", json_string(seed));
  cmkd_json_set(&o, "rng", json_string(id->rng_version));
  cmkd_json_set(&o, "tool_version", json_string(id->tool_version));
  if (info->array_count) cmkd_json_set(&o, "arrays", arrays_json(info));
  if (names && info->class_names) cmkd_json_set(&o, "class_names", class_names(info));
  return cmkd_json_print(cmkd_json_end(&o), 9, err);
}

static void print_floats(const char *before, const float *x, int n) {
  printf("%s", before);
  for (int i = 0; i < n; i++)
    printf("%s%.4f", i ? "," : "", (double)x[i]);
}

static void print_arrays(const cmkd_cache_info *info) {
  for (uint32_t i = 0; i < info->array_count; i++) {
    const cmkd_cache_array *a = &info->arrays[i];
    printf("  array     %s, %s, rows of ", a->name, cmkd_dtype_name(a->dtype));
    for (int d = 0; d < a->dims; d++)
      printf("%s%u", d ? " x " : "", a->shape[d]);
    printf("\n");
  }
  if (info->unknown_arrays)
    printf("  array     %u more, of types that this version does not know\n", info->unknown_arrays);
}

static void print_human(const char *path, const cmkd_cache_info *info, int names) {
  const cmkd_cache_identity *id = &info->identity;
  char bytes[24];
  double rows = (double)info->samples * info->views;
  printf("%s\n", path);
  printf("  logits    %" PRIu64 " samples x %u views x %u classes, codec %s\n", info->samples, info->views,
         info->classes, id->codec);
  if (info->kept < info->classes)
    printf("            top-k: the %u largest of a row, the rest one tie; rank-based losses such as cmkd refuse it\n",
           info->kept);
  print_arrays(info);
  printf("  size      %s in %u shards, %.1f bytes a row (logits alone %.1f)\n", cmkd_bytes(info->bytes, bytes),
         info->shards, (double)info->bytes / rows, (double)info->logit_bytes / rows);
  printf("  data      %s %s, %u images%s, fingerprint %.16s\n", id->dataset, id->split, id->dataset_n,
         info->samples < id->dataset_n ? " (some of them cached)" : "", id->fingerprint);
  printf("  views     %s%s%s, seed %" PRIu64 ", rng %s\n", cmkd_policy_name(id->policy),
         id->all_variants ? ", all variants" : "", id->clean_view ? ", the last one clean" : "", id->cache_seed,
         id->rng_version);
  printf("  teacher   %s (%s), sha256 %.16s, %s, batch %d\n", id->teacher_name, id->teacher_arch, id->teacher_sha256,
         id->precision, id->teacher_batch);
  if (id->precision_error > 0)
    printf("            its arithmetic is off fp32 by %.2g, root mean square over the logits\n", id->precision_error);
  if (id->channels) { /* 0: the mean of teachers of several normalisations, or imported */
    print_floats("  mean/std  ", id->mean, id->channels);
    print_floats(" / ", id->std, id->channels);
    printf("\n");
  }
  printf("  cache     sha256 %s, written by %s\n", info->content_sha256, id->tool_version);
  for (uint32_t c = 0; names && info->class_names && c < info->classes; c++)
    printf("  class %-4u%s\n", c, info->class_names[c]);
}

cmkd_status cmkd_command_info(int argc, char **argv, cmkd_error *err) {
  const char *path[1] = {0};
  int help = 0, positionals = 0, json = 0, names = 0;
  const cmkd_option table[] = {
      cmkd_option_json(&json),
      {.name = "--classes", .kind = CMKD_OPT_FLAG, .target = &names, .help = "the class names too"},
      {0},
  };
  const cmkd_command command = {.name = "cmkd-cache info",
                                .summary = "What a cache holds: shape, size, data set, views, teacher.",
                                .usage = "[options] CACHE.h5",
                                .options = table,
                                .min_positional = 1,
                                .max_positional = 1,
                                .examples = "  cmkd-cache info teacher.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, path, &positionals, &help, err));
  if (help) return CMKD_OK;
  cmkd_cache *cache;
  CMKD_TRY(cmkd_cache_open(path[0], &cache, err));
  cmkd_status status = CMKD_OK;
  if (json)
    status = print_json(path[0], cmkd_cache_get_info(cache), names, err);
  else
    print_human(path[0], cmkd_cache_get_info(cache), names);
  cmkd_cache_close(cache);
  return status;
}
