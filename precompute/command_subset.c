/* cmkd-cache subset: some samples, some views. Ids and seeds stay what they were, so a student sees the very same
 * pixels; rows keep all their classes, because a softmax over fewer would be another teacher. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/options.h"
#include "precompute/commands.h"
#include "precompute/reshape.h"
#include "precompute/shared_caches.h"
#include "precompute/shared_options.h"

/* "3,7,10-20" as (limit) flags that the caller frees, after a failure too; NULL text: all. `what`: the option's name
 * without its dashes, for messages. */
static cmkd_status parse_ranges(const char *text, uint32_t limit, const char *what, uint8_t **flags, cmkd_error *err) {
  uint8_t *out = calloc((size_t)limit + 1, 1);
  *flags = out;
  if (!out) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for %u %s", limit, what);
  if (!text) {
    memset(out, 1, limit);
    return CMKD_OK;
  }
  for (const char *at = text;;) {
    char *end;
    if (!isdigit((unsigned char)*at))
      return cmkd_fail(err, CMKD_ERR_USAGE, "--%s %.60s: wants numbers and ranges, as in 0,4,10-20", what, text);
    unsigned long long low = strtoull(at, &end, 10), high = low;
    if (*end == '-' && isdigit((unsigned char)end[1])) high = strtoull(end + 1, &end, 10);
    if (low > high || high >= limit)
      return cmkd_fail(err, CMKD_ERR_USAGE, "--%s %.60s: the cache has %s 0 to %u", what, text, what, limit - 1);
    memset(out + low, 1, (size_t)(high - low + 1));
    if (!*end) return CMKD_OK;
    if (*end != ',')
      return cmkd_fail(err, CMKD_ERR_USAGE, "--%s %.60s: wants numbers and ranges, as in 0,4,10-20", what, text);
    at = end + 1;
  }
}

/* What to keep, as the user wrote it; NULL: all. */
typedef struct selection {
  const char *samples, *views, *classes;
} selection;

static cmkd_status choose_samples(cmkd_cache *cache, const selection *s, uint32_t **position, uint64_t *count,
                                  cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const uint64_t *ids;
  const int32_t *labels;
  uint8_t *samples = NULL, *classes = NULL;
  CMKD_TRY(cmkd_cache_ids(cache, &ids, err));
  CMKD_TRY(cmkd_cache_labels(cache, &labels, err));
  *count = 0;
  uint32_t n = info->identity.dataset_n;
  cmkd_status status = parse_ranges(s->samples, n, "samples", &samples, err);
  if (status == CMKD_OK) status = parse_ranges(s->classes, info->classes, "classes", &classes, err);
  if (status == CMKD_OK && !(*position = malloc((size_t)info->samples * sizeof **position)))
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (uint64_t i = 0; i < info->samples && status == CMKD_OK; i++)
    if (ids[i] < n && samples[ids[i]] && labels[i] >= 0 && (uint32_t)labels[i] < info->classes && classes[labels[i]])
      (*position)[(*count)++] = (uint32_t)i;
  if (status == CMKD_OK && !*count)
    status = cmkd_fail(err, CMKD_ERR_USAGE, "no sample of the cache is left; widen --samples or --classes");
  free(samples);
  free(classes);
  return status;
}

static cmkd_status choose_views(const cmkd_cache_info *info, const selection *s, cmkd_reshape *shape,
                                cmkd_reshape_view *views, cmkd_error *err) {
  uint8_t *flags;
  cmkd_status status = parse_ranges(s->views, info->views, "views", &flags, err);
  uint32_t count = 0;
  for (uint32_t v = 0; v < info->views && status == CMKD_OK; v++)
    if (flags[v]) views[count++] = (cmkd_reshape_view){0, v};
  if (status == CMKD_OK) {
    shape->spec.identity.clean_view = info->identity.clean_view && flags[info->views - 1];
    if (count < info->views) shape->spec.identity.all_variants = 0;
    shape->spec.views = count;
    shape->views = views;
  }
  free(flags);
  return status;
}

cmkd_status cmkd_command_subset(int argc, char **argv, cmkd_error *err) {
  const char *paths[2] = {0}, *codec = NULL;
  selection s = {0};
  int help = 0, positionals = 0, quiet = 0, json = 0;
  int64_t shard_rows = 0;
  const cmkd_option table[] = {
      {.name = "--samples",
       .argument = "LIST",
       .kind = CMKD_OPT_STRING,
       .target = &s.samples,
       .help = "sample ids of the data set, as in 0-9999 [all]"},
      {.name = "--views", .argument = "LIST", .kind = CMKD_OPT_STRING, .target = &s.views, .help = "as in 0-3,7 [all]"},
      {.name = "--classes",
       .argument = "LIST",
       .kind = CMKD_OPT_STRING,
       .target = &s.classes,
       .help = "samples with these labels; rows keep all classes [all]"},
      cmkd_option_full_codec(&codec, "[that of the input]"),
      cmkd_option_shard_rows(&shard_rows),
      cmkd_option_json(&json),
      cmkd_option_quiet(&quiet),
      {0},
  };
  const cmkd_command command = {.name = "cmkd-cache subset",
                                .summary = "Writes some samples and views of IN; ids and seeds stay what they were.",
                                .usage = "IN.h5 OUT.h5 [options]",
                                .options = table,
                                .min_positional = 2,
                                .max_positional = 2,
                                .examples = "  cmkd-cache subset teacher.h5 four.h5 --views 0-3\n  cmkd-cache subset "
                                            "teacher.h5 animals.h5 --classes 2-7\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, paths, &positionals, &help, err));
  if (help) return CMKD_OK;
  cmkd_cache *in;
  CMKD_TRY(cmkd_cache_open(paths[0], &in, err));
  const cmkd_cache_info *info = cmkd_cache_get_info(in);
  uint32_t *position = NULL;
  cmkd_reshape_view *views = malloc(info->views * sizeof *views);
  cmkd_reshape shape = {.out = paths[1], .label = "subset", .inputs = &in, .count = 1, .quiet = quiet};
  cmkd_reshape_spec(info, codec, &shape.spec);
  shape.spec.shard_samples = (uint32_t)shard_rows;
  cmkd_status status = views ? choose_samples(in, &s, &position, &shape.spec.samples, err)
                             : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  if (status == CMKD_OK) status = choose_views(info, &s, &shape, views, err);
  shape.position = position;
  if (status == CMKD_OK) status = cmkd_reshape_run(&shape, NULL, err);
  cmkd_cache_close(in);
  free(position);
  free(views);
  return status == CMKD_OK ? cmkd_output_report(paths[1], json, err) : status;
}
