/* cmkd-cache info: what a cache holds, for people and for programs. Reads headers only. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/program/options.h"
#include "base/text.h"
#include "cmkd/cache.h"
#include "precompute/commands.h"

static json_t *floats(const float *x, int n) {
  json_t *array = json_array();
  for (int i = 0; i < n; i++)
    json_array_append_new(array, json_real(x[i]));
  return array;
}

static void print_json(const char *path, const cmkd_cache_info *info, int names) {
  const cmkd_cache_identity *id = &info->identity;
  char seed[24];
  snprintf(seed, sizeof seed, "%" PRIu64, id->cache_seed);
  uint64_t rows = info->samples * info->views;
  json_t *o = json_pack("{s:s,s:s,s:I,s:i,s:i,s:s,s:I,s:I,s:f,s:i}", "cache", path, "sha256", info->sha256, "samples",
                        (json_int_t)info->samples, "views", (int)info->views, "classes", (int)info->classes, "codec",
                        id->codec, "bytes", (json_int_t)info->bytes, "logit_bytes", (json_int_t)info->logit_bytes,
                        "bytes_per_row", (double)info->bytes / (double)rows, "shards", (int)info->shards);
  json_t *teacher = json_pack("{s:s,s:s,s:s,s:o,s:o,s:s,s:i}", "name", id->teacher_name, "sha256", id->teacher_sha256,
                              "arch", id->teacher_arch, "mean", floats(id->mean, id->channels), "std",
                              floats(id->std, id->channels), "precision", id->precision, "batch", id->teacher_batch);
  json_t *data = json_pack("{s:s,s:s,s:s,s:I}", "name", id->dataset, "split", id->split, "fingerprint", id->fingerprint,
                           "n", (json_int_t)id->dataset_n);
  if (id->precision_error > 0) json_object_set_new(teacher, "precision_error", json_real(id->precision_error));
  json_object_set_new(o, "kept_logits", json_integer(info->kept));
  json_object_set_new(o, "teacher", teacher);
  json_object_set_new(o, "data", data);
  json_object_set_new(o, "augment", json_string(cmkd_policy_name(id->policy)));
  json_object_set_new(o, "all_variants", json_boolean(id->all_variants));
  json_object_set_new(o, "clean_view", json_boolean(id->clean_view));
  json_object_set_new(o, "cache_seed", json_string(seed)); /* a string: JSON numbers end at 2^53 in many readers */
  json_object_set_new(o, "rng", json_string(id->rng_version));
  json_object_set_new(o, "tool_version", json_string(id->tool_version));
  if (names && info->class_names) {
    json_t *array = json_array();
    for (uint32_t c = 0; c < info->classes; c++)
      json_array_append_new(array, json_string(info->class_names[c]));
    json_object_set_new(o, "class_names", array);
  }
  char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9));
  puts(text ? text : "{}");
  free(text);
  json_decref(o);
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
  if (id->channels) printf("  mean/std  ");
  for (int c = 0; c < 2 * id->channels; c++)
    printf("%s%.4f",
           c == id->channels ? " / "
           : c               ? ","
                             : "",
           (double)(c < id->channels ? id->mean[c] : id->std[c - id->channels]));
  if (id->channels) printf("\n");
  printf("  cache     sha256 %s, written by %s\n", info->sha256, id->tool_version);
  for (uint32_t c = 0; names && info->class_names && c < info->classes; c++)
    printf("  class %-4u%s\n", c, info->class_names[c]);
}

cmkd_status cmkd_command_info(int argc, char **argv, cmkd_error *err) {
  const char *path[1] = {0};
  int help = 0, positionals = 0, json = 0, names = 0;
  const cmkd_option table[] = {
      {.name = "--json", .kind = CMKD_OPT_FLAG, .target = &json, .help = "one JSON object"},
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
  if (json)
    print_json(path[0], cmkd_cache_get_info(cache), names);
  else
    print_human(path[0], cmkd_cache_get_info(cache), names);
  cmkd_cache_close(cache);
  return CMKD_OK;
}
