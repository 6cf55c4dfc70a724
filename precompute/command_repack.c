/* cmkd-cache repack: the same rows under another codec, and what that did to them, measured row by row. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/program/print.h"
#include "base/program/options.h"
#include "base/program/progress.h"
#include "cmkd/loss.h"
#include "formats/cache/codec.h"
#include "precompute/commands.h"
#include "precompute/reshape.h"
#include "precompute/shared_options.h"

#define BLOCK 4096 /* rows compared at a time */

/* What the new codec did to the rows: sums over them. */
typedef struct damage {
  double kl1, kl4; /* KL(before || after) at temperatures 1 and 4 */
  double largest;  /* |before - after| of one logit; the largest, not a sum */
  uint64_t rows, same_top1;
  cmkd_agreement agreement;
} damage;

static size_t top1(const float *row, size_t C) {
  size_t best = 0;
  for (size_t c = 1; c < C; c++)
    if (row[c] > row[best]) best = c;
  return best;
}

/* KL(softmax(a/T) || softmax(b/T)) of one row. */
static double kl(const float *a, const float *b, size_t C, double T) {
  double max_a = a[top1(a, C)], max_b = b[top1(b, C)], sum_a = 0, sum_b = 0, sum = 0;
  for (size_t c = 0; c < C; c++) {
    sum_a += exp((a[c] - max_a) / T);
    sum_b += exp((b[c] - max_b) / T);
  }
  double shift = max_b / T + log(sum_b) - max_a / T - log(sum_a);
  for (size_t c = 0; c < C; c++)
    sum += exp((a[c] - max_a) / T) / sum_a * (((double)a[c] - b[c]) / T + shift);
  return sum > 0 ? sum : 0; /* rounding may leave -1e-17 */
}

static void compare_block(const float *a, const float *b, uint64_t count, size_t C, damage *d) {
  for (uint64_t i = 0; i < count; i++, a += C, b += C) {
    d->kl1 += kl(a, b, C, 1);
    d->kl4 += kl(a, b, C, 4);
    d->same_top1 += top1(a, C) == top1(b, C);
    for (size_t c = 0; c < C; c++)
      d->largest = fmax(d->largest, fabs((double)a[c] - b[c]));
  }
  d->rows += count;
}

static cmkd_status measure(cmkd_cache *before, cmkd_cache *after, int quiet, damage *d, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(before);
  size_t C = info->classes;
  float *a = malloc(2 * BLOCK * C * sizeof *a), *b = a ? a + BLOCK * C : NULL;
  void *scratch = aligned_alloc(64, (cmkd_agreement_scratch(BLOCK, (int64_t)C) + 127) / 64 * 64);
  cmkd_status status = a && scratch ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory to compare %u rows", BLOCK);
  cmkd_progress progress;
  cmkd_progress_start(&progress, "measure", "rows", info->samples * info->views, 0, quiet);
  for (uint32_t v = 0; v < info->views && status == CMKD_OK; v++)
    for (uint64_t at = 0; at < info->samples && status == CMKD_OK; at += BLOCK) {
      uint64_t count = info->samples - at < BLOCK ? info->samples - at : BLOCK;
      status = cmkd_cache_read(before, v, at, count, a, err);
      if (status == CMKD_OK) status = cmkd_cache_read(after, v, at, count, b, err);
      if (status == CMKD_OK) compare_block(a, b, count, C, d);
      if (status == CMKD_OK)
        status = cmkd_agreement_add(&(cmkd_agreement_batch){.batch = (int64_t)count,
                                                            .classes = (int64_t)C,
                                                            .student = b,
                                                            .teacher = a,
                                                            .teacher_dtype = CMKD_F32,
                                                            .kappa = 2},
                                    scratch, &d->agreement, err);
      cmkd_progress_update(&progress, d->rows);
    }
  cmkd_progress_end(&progress);
  free(a);
  free(scratch);
  return status;
}

static cmkd_status print(const char *out, const cmkd_cache_info *before, const cmkd_cache_info *after, const damage *d,
                         int json, cmkd_error *err) {
  double n = (double)d->rows, was = (double)before->bytes / n, is = (double)after->bytes / n;
  double pearson = d->agreement.pearson / n, spearman = d->agreement.spearman / n;
  double agree = 100 * (double)d->same_top1 / n;
  if (json)
    return cmkd_json_print(json_pack("{s:o,s:s,s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "cache", cmkd_json_string(out),
                                     "codec", after->identity.codec, "rows", (json_int_t)d->rows, "kl_T1", d->kl1 / n,
                                     "kl_T4", d->kl4 / n, "pearson", pearson, "spearman", spearman, "top1_agreement",
                                     agree, "largest_difference", d->largest, "bytes_per_row", is,
                                     "bytes_per_row_before", was),
                           9, err);
  printf("%s: %s -> %s, %" PRIu64 " rows\n", out, before->identity.codec, after->identity.codec, d->rows);
  printf("  bytes a row      %10.1f -> %.1f\n", was, is);
  printf("  KL at T 1, T 4   %10.3g, %.3g\n", d->kl1 / n, d->kl4 / n);
  printf("  Pearson          %10.7f\n  Spearman         %10.7f\n", pearson, spearman);
  printf("  top-1 the same   %9.4f%%\n  largest change   %10.3g\n", agree, d->largest);
  return CMKD_OK;
}

cmkd_status cmkd_command_repack(int argc, char **argv, cmkd_error *err) {
  const char *paths[2] = {0}, *codec_name = "u8sqrt";
  int help = 0, positionals = 0, quiet = 0, json = 0, allow_top_k = 0;
  int64_t shard_rows = 0;
  const cmkd_option table[] = {
      cmkd_option_codec(&codec_name, "f32, f16, u8sqrt or topk:K [u8sqrt]"),
      cmkd_option_allow_top_k(&allow_top_k),
      cmkd_option_shard_rows(&shard_rows),
      cmkd_option_json(&json),
      cmkd_option_quiet(&quiet),
      {0},
  };
  const cmkd_command command = {.name = "cmkd-cache repack",
                                .summary = "Writes the rows of IN under another codec and prints the measured damage.",
                                .usage = "IN.h5 OUT.h5 [options]",
                                .options = table,
                                .min_positional = 2,
                                .max_positional = 2,
                                .examples = "  cmkd-cache repack teacher.h5 small.h5 --codec u8sqrt\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, paths, &positionals, &help, err));
  if (help) return CMKD_OK;
  const cmkd_codec *codec; /* checked before any work */
  cmkd_cache *in, *out = NULL;
  CMKD_TRY(cmkd_codec_find(codec_name, &codec, err));
  CMKD_TRY(cmkd_cache_open(paths[0], &in, err));
  const cmkd_cache_info *info = cmkd_cache_get_info(in);
  uint32_t *position = malloc((size_t)info->samples * sizeof *position);
  cmkd_reshape_view *views = malloc(info->views * sizeof *views);
  cmkd_status status = position && views ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", paths[0]);
  for (uint32_t i = 0; i < info->samples && position; i++)
    position[i] = i;
  for (uint32_t v = 0; v < info->views && views; v++)
    views[v] = (cmkd_reshape_view){0, v};
  cmkd_reshape shape = {.out = paths[1],
                        .label = "repack",
                        .inputs = &in,
                        .count = 1,
                        .position = position,
                        .views = views,
                        .quiet = quiet,
                        .allow_top_k = allow_top_k};
  cmkd_reshape_spec(info, codec_name, &shape.spec);
  shape.spec.shard_samples = (uint32_t)shard_rows;
  damage d = {0};
  if (status == CMKD_OK) status = cmkd_reshape_run(&shape, NULL, err);
  if (status == CMKD_OK) status = cmkd_cache_open(paths[1], &out, err);
  if (status == CMKD_OK) status = measure(in, out, quiet, &d, err);
  if (status == CMKD_OK) status = print(paths[1], info, cmkd_cache_get_info(out), &d, json, err);
  cmkd_cache_close(out);
  cmkd_cache_close(in);
  free(position);
  free(views);
  return status;
}
