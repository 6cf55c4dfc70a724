/* cmkd-cache diff: what two caches disagree on, in identity first and then in numbers. Exit status 0 when nothing
 * differs, 1 otherwise. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/options.h"
#include "base/program/progress.h"
#include "precompute/commands.h"
#include "precompute/reshape.h"

#define STRETCH 4096

typedef struct diff {
  const char *paths[2];
  cmkd_cache *caches[2];
  json_t *fields;
  int differ, quiet;
  uint64_t rows, rows_differ, seeds_differ;
  double largest, sum;
} diff;

static void text(diff *d, const char *what, const char *a, const char *b, int matters) {
  if (!strcmp(a, b)) return;
  json_object_set_new(d->fields, what, json_pack("[s,s]", a, b));
  d->differ |= matters;
}

static void number(diff *d, const char *what, uint64_t a, uint64_t b) {
  char x[24], y[24];
  snprintf(x, sizeof x, "%" PRIu64, a);
  snprintf(y, sizeof y, "%" PRIu64, b);
  text(d, what, x, y, 1);
}

static void compare_identity(diff *d, const cmkd_cache_info *a, const cmkd_cache_info *b) {
  const cmkd_cache_identity *x = &a->identity, *y = &b->identity;
  text(d, "teacher_sha256", x->teacher_sha256, y->teacher_sha256, 1);
  text(d, "teacher_name", x->teacher_name, y->teacher_name, 1);
  text(d, "teacher_arch", x->teacher_arch, y->teacher_arch, 1);
  text(d, "precision", x->precision, y->precision, 1);
  text(d, "dataset", x->dataset, y->dataset, 1);
  text(d, "split", x->split, y->split, 1);
  text(d, "fingerprint", x->fingerprint, y->fingerprint, 1);
  text(d, "augment", cmkd_policy_name(x->policy), cmkd_policy_name(y->policy), 1);
  text(d, "rng", x->rng_version, y->rng_version, 1);
  text(d, "codec", x->codec, y->codec, 1);
  text(d, "tool_version", x->tool_version, y->tool_version, 0); /* said, but of no consequence */
  number(d, "teacher_batch", (uint64_t)x->teacher_batch, (uint64_t)y->teacher_batch);
  number(d, "cache_seed", x->cache_seed, y->cache_seed);
  number(d, "all_variants", (uint64_t)x->all_variants, (uint64_t)y->all_variants);
  number(d, "clean_view", (uint64_t)x->clean_view, (uint64_t)y->clean_view);
  number(d, "samples", a->samples, b->samples);
  number(d, "views", a->views, b->views);
  number(d, "classes", a->classes, b->classes);
  if (x->channels != y->channels || memcmp(x->mean, y->mean, sizeof x->mean) || memcmp(x->std, y->std, sizeof x->std))
    text(d, "normalisation", "of the first", "another", 1);
}

static cmkd_status compare_samples(diff *d, uint64_t n, cmkd_error *err) {
  const uint64_t *ids[2];
  const int32_t *labels[2];
  uint64_t ids_differ = 0, labels_differ = 0;
  for (int k = 0; k < 2; k++) {
    CMKD_TRY(cmkd_cache_ids(d->caches[k], &ids[k], err));
    CMKD_TRY(cmkd_cache_labels(d->caches[k], &labels[k], err));
  }
  for (uint64_t i = 0; i < n; i++) {
    ids_differ += ids[0][i] != ids[1][i];
    labels_differ += labels[0][i] != labels[1][i];
  }
  if (ids_differ) number(d, "sample_ids_that_differ", 0, ids_differ);
  if (labels_differ) number(d, "labels_that_differ", 0, labels_differ);
  return CMKD_OK;
}

static cmkd_status compare_rows(diff *d, const cmkd_cache_info *info, cmkd_error *err) {
  size_t C = info->classes;
  float *a = malloc(2 * STRETCH * C * sizeof *a), *b = a ? a + STRETCH * C : NULL;
  uint64_t *seeds = malloc(2 * (size_t)info->samples * sizeof *seeds);
  cmkd_progress progress;
  cmkd_status status = a && seeds ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_progress_start(&progress, "diff", "rows", info->samples * info->views, 0, d->quiet);
  for (uint32_t v = 0; v < info->views && status == CMKD_OK; v++) {
    for (int k = 0; k < 2 && status == CMKD_OK; k++)
      status = cmkd_cache_seeds(d->caches[k], v, seeds + (k ? info->samples : 0), err);
    for (uint64_t i = 0; i < info->samples && status == CMKD_OK; i++)
      d->seeds_differ += seeds[i] != seeds[info->samples + i];
    for (uint64_t at = 0; at < info->samples && status == CMKD_OK; at += STRETCH) {
      uint64_t count = info->samples - at < STRETCH ? info->samples - at : STRETCH;
      status = cmkd_cache_read(d->caches[0], v, at, count, a, err);
      if (status == CMKD_OK) status = cmkd_cache_read(d->caches[1], v, at, count, b, err);
      for (uint64_t i = 0; i < count && status == CMKD_OK; i++) {
        d->rows_differ += memcmp(a + i * C, b + i * C, C * sizeof *a) != 0;
        for (size_t c = 0; c < C; c++) {
          double difference = fabs((double)a[i * C + c] - b[i * C + c]);
          d->largest = fmax(d->largest, difference);
          d->sum += difference;
        }
      }
      cmkd_progress_update(&progress, d->rows += count);
    }
  }
  cmkd_progress_end(&progress);
  d->differ |= d->rows_differ || d->seeds_differ;
  free(a);
  free(seeds);
  return status;
}

static void print(const diff *d, size_t classes, int compared, int json) {
  double mean = d->rows ? d->sum / ((double)d->rows * (double)classes) : 0;
  if (json) {
    json_t *o = json_pack("{s:b,s:O}", "same", !d->differ, "fields", d->fields);
    if (compared)
      json_object_set_new(o, "values",
                          json_pack("{s:I,s:I,s:I,s:f,s:f}", "rows", (json_int_t)d->rows, "rows_that_differ",
                                    (json_int_t)d->rows_differ, "seeds_that_differ", (json_int_t)d->seeds_differ,
                                    "largest_difference", d->largest, "mean_difference", mean));
    cmkd_print_json(o);
    return;
  }
  const char *key;
  json_t *pair;
  json_object_foreach(d->fields, key, pair) printf("%-24s %s | %s\n", key, json_string_value(json_array_get(pair, 0)),
                                                   json_string_value(json_array_get(pair, 1)));
  if (compared)
    printf("logits: %" PRIu64 " of %" PRIu64 " rows differ, largest difference %.6g, mean %.6g; %" PRIu64
           " seeds differ\n",
           d->rows_differ, d->rows, d->largest, mean, d->seeds_differ);
  else
    printf("logits: not compared, the shapes differ\n");
  if (!d->differ) printf("the same\n");
}

cmkd_status cmkd_command_diff(int argc, char **argv, cmkd_error *err) {
  diff d = {0};
  int help = 0, positionals = 0, json = 0;
  const cmkd_option table[] = {{.name = "--json", .kind = CMKD_OPT_FLAG, .target = &json, .help = "one JSON object"},
                               {.name = "--quiet", .kind = CMKD_OPT_FLAG, .target = &d.quiet, .help = "no progress"},
                               {0}};
  const cmkd_command command = {.name = "cmkd-cache diff",
                                .summary = "What two caches disagree on. Exit status 1 when anything differs.",
                                .usage = "A.h5 B.h5",
                                .options = table,
                                .min_positional = 2,
                                .max_positional = 2,
                                .examples = "  cmkd-cache diff teacher.h5 teacher-u8.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, d.paths, &positionals, &help, err));
  if (help) return CMKD_OK;
  CMKD_TRY(cmkd_open_all(d.paths, 2, d.caches, err));
  const cmkd_cache_info *a = cmkd_cache_get_info(d.caches[0]), *b = cmkd_cache_get_info(d.caches[1]);
  int compared = a->samples == b->samples && a->views == b->views && a->classes == b->classes;
  d.fields = json_object();
  compare_identity(&d, a, b);
  cmkd_status status = compared ? compare_samples(&d, a->samples, err) : CMKD_OK;
  if (compared && status == CMKD_OK) status = compare_rows(&d, a, err);
  if (status == CMKD_OK) print(&d, a->classes, compared, json);
  json_decref(d.fields);
  cmkd_close_all(d.caches, 2);
  if (status == CMKD_OK && d.differ)
    status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s and %s differ", d.paths[0], d.paths[1]);
  return status;
}
