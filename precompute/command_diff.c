/* cmkd-cache diff: what two caches disagree on, in identity first and then in numbers. Exit status 0 when nothing
 * differs, 1 otherwise. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/program/print.h"
#include "base/program/progress.h"
#include "precompute/commands.h"
#include "precompute/shared_caches.h"
#include "precompute/shared_options.h"

#define BLOCK 4096 /* rows compared at a time */

typedef struct diff {
  const char *paths[2];
  cmkd_cache *caches[2];
  cmkd_json fields; /* what differs in identity or shape: [of the first, of the second] */
  int differ, quiet;
  uint64_t rows, rows_differ, seeds_differ; /* compared; of them */
  double largest, sum;                      /* of |a - b| over all logits */
} diff;

static void compare_text(diff *d, const char *what, const char *a, const char *b) {
  if (!strcmp(a, b)) return;
  cmkd_json_set(&d->fields, what, json_pack("[s,s]", a, b));
  d->differ = 1;
}

static void compare_number(diff *d, const char *what, uint64_t a, uint64_t b) {
  char x[24], y[24];
  snprintf(x, sizeof x, "%" PRIu64, a);
  snprintf(y, sizeof y, "%" PRIu64, b);
  compare_text(d, what, x, y);
}

static void compare_identity(diff *d, const cmkd_cache_info *a, const cmkd_cache_info *b) {
  const cmkd_cache_identity *x = &a->identity, *y = &b->identity;
  compare_text(d, "teacher_sha256", x->teacher_sha256, y->teacher_sha256);
  compare_text(d, "teacher_name", x->teacher_name, y->teacher_name);
  compare_text(d, "teacher_arch", x->teacher_arch, y->teacher_arch);
  compare_text(d, "precision", x->precision, y->precision);
  compare_text(d, "dataset", x->dataset, y->dataset);
  compare_text(d, "split", x->split, y->split);
  compare_text(d, "fingerprint", x->fingerprint, y->fingerprint);
  compare_text(d, "augment", cmkd_policy_name(x->policy), cmkd_policy_name(y->policy));
  compare_text(d, "rng", x->rng_version, y->rng_version);
  compare_text(d, "codec", x->codec, y->codec);
  if (strcmp(x->tool_version, y->tool_version)) /* said, but of no consequence */
    cmkd_json_set(&d->fields, "tool_version", json_pack("[s,s]", x->tool_version, y->tool_version));
  compare_number(d, "teacher_batch", (uint64_t)x->teacher_batch, (uint64_t)y->teacher_batch);
  compare_number(d, "cache_seed", x->cache_seed, y->cache_seed);
  compare_number(d, "all_variants", (uint64_t)x->all_variants, (uint64_t)y->all_variants);
  compare_number(d, "clean_view", (uint64_t)x->clean_view, (uint64_t)y->clean_view);
  compare_number(d, "samples", a->samples, b->samples);
  compare_number(d, "views", a->views, b->views);
  compare_number(d, "classes", a->classes, b->classes);
  if (x->channels != y->channels || memcmp(x->mean, y->mean, sizeof x->mean) || memcmp(x->std, y->std, sizeof x->std))
    compare_text(d, "normalisation", "of the first", "another");
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
  if (ids_differ) compare_number(d, "sample_ids_that_differ", 0, ids_differ);
  if (labels_differ) compare_number(d, "labels_that_differ", 0, labels_differ);
  return CMKD_OK;
}

static void compare_block(diff *d, const float *a, const float *b, uint64_t count, size_t classes) {
  for (uint64_t i = 0; i < count; i++, a += classes, b += classes) {
    d->rows_differ += memcmp(a, b, classes * sizeof *a) != 0;
    for (size_t c = 0; c < classes; c++) {
      double difference = fabs((double)a[c] - b[c]);
      d->largest = fmax(d->largest, difference);
      d->sum += difference;
    }
  }
  d->rows += count;
}

/* seeds: room for those of both caches, one view at a time */
static cmkd_status compare_seeds(diff *d, uint32_t view, uint64_t n, uint64_t *seeds, cmkd_error *err) {
  CMKD_TRY(cmkd_cache_seeds(d->caches[0], view, seeds, err));
  CMKD_TRY(cmkd_cache_seeds(d->caches[1], view, seeds + n, err));
  for (uint64_t i = 0; i < n; i++)
    d->seeds_differ += seeds[i] != seeds[n + i];
  return CMKD_OK;
}

static cmkd_status compare_rows(diff *d, const cmkd_cache_info *info, cmkd_error *err) {
  size_t C = info->classes;
  float *a = malloc(2 * BLOCK * C * sizeof *a), *b = a ? a + BLOCK * C : NULL;
  uint64_t *seeds = malloc(2 * (size_t)info->samples * sizeof *seeds);
  cmkd_progress progress;
  cmkd_status status = a && seeds ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_progress_start(&progress, "diff", "rows", info->samples * info->views, 0, d->quiet);
  for (uint32_t v = 0; v < info->views && status == CMKD_OK; v++) {
    status = compare_seeds(d, v, info->samples, seeds, err);
    for (uint64_t at = 0; at < info->samples && status == CMKD_OK; at += BLOCK) {
      uint64_t count = info->samples - at < BLOCK ? info->samples - at : BLOCK;
      status = cmkd_cache_read(d->caches[0], v, at, count, a, err);
      if (status == CMKD_OK) status = cmkd_cache_read(d->caches[1], v, at, count, b, err);
      if (status == CMKD_OK) compare_block(d, a, b, count, C);
      cmkd_progress_update(&progress, d->rows);
    }
  }
  cmkd_progress_end(&progress);
  d->differ |= d->rows_differ || d->seeds_differ;
  free(a);
  free(seeds);
  return status;
}

static cmkd_status print_json(diff *d, int compared, double mean, cmkd_error *err) {
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "same", json_boolean(!d->differ));
  cmkd_json_set(&o, "fields", cmkd_json_end(&d->fields));
  if (compared)
    cmkd_json_set(&o, "values",
                  json_pack("{s:I,s:I,s:I,s:f,s:f}", "rows", (json_int_t)d->rows, "rows_that_differ",
                            (json_int_t)d->rows_differ, "seeds_that_differ", (json_int_t)d->seeds_differ,
                            "largest_difference", d->largest, "mean_difference", mean));
  return cmkd_json_print(cmkd_json_end(&o), 9, err);
}

static cmkd_status print_text(diff *d, int compared, double mean, cmkd_error *err) {
  json_t *fields = cmkd_json_end(&d->fields), *pair;
  const char *key;
  if (!fields) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  json_object_foreach(fields, key, pair) {
    printf("%-24s %s | %s\n", key, json_string_value(json_array_get(pair, 0)),
           json_string_value(json_array_get(pair, 1)));
  }
  json_decref(fields);
  if (compared)
    printf("logits: %" PRIu64 " of %" PRIu64 " rows differ, largest difference %.6g, mean %.6g; %" PRIu64
           " seeds differ\n",
           d->rows_differ, d->rows, d->largest, mean, d->seeds_differ);
  else
    printf("logits: not compared, the shapes differ\n");
  if (!d->differ) printf("the same\n");
  return CMKD_OK;
}

cmkd_status cmkd_command_diff(int argc, char **argv, cmkd_error *err) {
  diff d = {0};
  int help = 0, positionals = 0, json = 0;
  const cmkd_option table[] = {cmkd_option_json(&json), cmkd_option_quiet(&d.quiet), {0}};
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
  d.fields = cmkd_json_object();
  compare_identity(&d, a, b);
  cmkd_status status = compared ? compare_samples(&d, a->samples, err) : CMKD_OK;
  if (compared && status == CMKD_OK) status = compare_rows(&d, a, err);
  double mean = d.rows ? d.sum / ((double)d.rows * (double)a->classes) : 0;
  if (status == CMKD_OK) status = json ? print_json(&d, compared, mean, err) : print_text(&d, compared, mean, err);
  json_decref(cmkd_json_end(&d.fields));
  cmkd_close_all(d.caches, 2);
  if (status == CMKD_OK && d.differ)
    status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s and %s differ", d.paths[0], d.paths[1]);
  return status;
}
