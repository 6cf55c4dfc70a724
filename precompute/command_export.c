/* cmkd-cache export: all logits as one array, (samples, views, classes) float32 in sample order. A .npy streams: memory
 * holds one block of samples. A .safetensors carries labels, sample ids and seeds as well and is put together in
 * memory. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/interrupt.h"
#include "base/program/options.h"
#include "base/program/progress.h"
#include "cmkd/cache.h"
#include "cmkd/weights.h"
#include "formats/npy.h"
#include "precompute/commands.h"
#include "precompute/shared_options.h"

#define BLOCK_BYTES (64u << 20)

static cmkd_status copy_rows(cmkd_cache *cache, cmkd_npy_writer *writer, const char *path, cmkd_progress *progress,
                             cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  size_t classes = info->classes, views = info->views, sample = views * classes * sizeof(float);
  uint64_t block = BLOCK_BYTES / sample < 1 ? 1 : BLOCK_BYTES / sample;
  if (block > info->samples) block = info->samples;
  float *view = malloc((size_t)block * classes * sizeof *view), *rows = malloc((size_t)block * sample);
  cmkd_status status = view && rows ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to export it", path);
  for (uint64_t at = 0; at < info->samples && status == CMKD_OK; at += block) {
    uint64_t count = info->samples - at < block ? info->samples - at : block;
    for (uint32_t v = 0; v < views && status == CMKD_OK; v++) {
      status = cmkd_cache_read(cache, v, at, count, view, err);
      for (uint64_t i = 0; i < count && status == CMKD_OK; i++)
        memcpy(rows + (i * views + v) * classes, view + i * classes, classes * sizeof *view);
    }
    if (status == CMKD_OK) status = cmkd_npy_append(writer, rows, count * views * classes, err);
    if (status == CMKD_OK && cmkd_interrupted())
      status = cmkd_fail(err, CMKD_ERR_INTERRUPTED, "%s: stopped; nothing was written", path);
    cmkd_progress_update(progress, (at + count) * views);
  }
  free(view);
  free(rows);
  return status;
}

/* seeds (samples, views) from the cache's columns */
static cmkd_status read_seeds(cmkd_cache *cache, uint64_t *seeds, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  uint64_t *column = malloc((size_t)info->samples * sizeof *column);
  cmkd_status status = column ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for seeds");
  for (uint32_t v = 0; v < info->views && status == CMKD_OK; v++) {
    status = cmkd_cache_seeds(cache, v, column, err);
    for (uint64_t i = 0; i < info->samples && status == CMKD_OK; i++)
      seeds[i * info->views + v] = column[i];
  }
  free(column);
  return status;
}

static cmkd_status export_tensors(cmkd_cache *cache, const char *out, cmkd_progress *progress, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const cmkd_cache_identity *id = &info->identity;
  size_t samples = (size_t)info->samples, views = info->views, classes = info->classes;
  const uint64_t *ids;
  const int32_t *labels;
  CMKD_TRY(cmkd_cache_ids(cache, &ids, err));
  CMKD_TRY(cmkd_cache_labels(cache, &labels, err));
  float *logits = malloc(samples * views * classes * sizeof *logits), *view = malloc(samples * classes * sizeof *view);
  uint64_t *seeds = malloc(samples * views * sizeof *seeds);
  cmkd_status status =
      logits && view && seeds
          ? CMKD_OK
          : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for %zu rows at once; a .npy streams", out, samples * views);
  for (uint32_t v = 0; v < views && status == CMKD_OK; v++) {
    status = cmkd_cache_read(cache, v, 0, samples, view, err);
    for (size_t i = 0; i < samples && status == CMKD_OK; i++)
      memcpy(logits + (i * views + v) * classes, view + i * classes, classes * sizeof *view);
    cmkd_progress_update(progress, (v + 1) * (uint64_t)samples);
  }
  if (status == CMKD_OK) status = read_seeds(cache, seeds, err);
  const int64_t n = (int64_t)samples, v = (int64_t)views, c = (int64_t)classes;
  const cmkd_tensor tensors[] = {
      {.name = "logits", .dtype = CMKD_F32, .dims = 3, .shape = {n, v, c}, .count = n * v * c, .data = logits},
      {.name = "seeds", .dtype = CMKD_U64, .dims = 2, .shape = {n, v}, .count = n * v, .data = seeds},
      {.name = "sample_id", .dtype = CMKD_U64, .dims = 1, .shape = {n}, .count = n, .data = ids},
      {.name = "labels", .dtype = CMKD_I32, .dims = 1, .shape = {n}, .count = n, .data = labels},
  };
  const char *const keys[] = {"cache_sha256", "teacher_sha256", "teacher_name", "dataset",
                              "split",        "fingerprint",    "augment",      "rng"};
  const char *const values[] = {
      info->content_sha256, id->teacher_sha256,           id->teacher_name, id->dataset, id->split,
      id->fingerprint,      cmkd_policy_name(id->policy), id->rng_version};
  if (status == CMKD_OK) status = cmkd_weights_write(out, tensors, 4, keys, values, 8, err);
  free(logits);
  free(view);
  free(seeds);
  return status;
}

static cmkd_status export_npy(cmkd_cache *cache, const char *out, cmkd_progress *progress, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const int64_t shape[3] = {(int64_t)info->samples, info->views, info->classes};
  cmkd_npy_writer *writer;
  CMKD_TRY(cmkd_npy_begin(out, CMKD_F32, 3, shape, &writer, err));
  cmkd_status status = copy_rows(cache, writer, out, progress, err);
  if (status == CMKD_OK) return cmkd_npy_end(writer, err);
  cmkd_npy_abort(writer);
  return status;
}

cmkd_status cmkd_command_export(int argc, char **argv, cmkd_error *err) {
  const char *path[1] = {0}, *out = NULL;
  int help = 0, positionals = 0, quiet = 0;
  const cmkd_option table[] = {
      {.name = "--out",
       .argument = "FILE",
       .kind = CMKD_OPT_STRING,
       .target = &out,
       .help = ".npy: (samples, views, classes) float32; .safetensors: seeds, ids, labels too"},
      cmkd_option_quiet(&quiet),
      {0},
  };
  const cmkd_command command = {
      .name = "cmkd-cache export",
      .summary = "Writes the decoded logits, in sample order.",
      .usage = "--out FILE.npy|FILE.safetensors CACHE.h5",
      .options = table,
      .min_positional = 1,
      .max_positional = 1,
      .examples =
          "  cmkd-cache export --out logits.npy teacher.h5\n  cmkd-cache export --out dump.safetensors teacher.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, path, &positionals, &help, err));
  if (help) return CMKD_OK;
  if (!out) return cmkd_fail(err, CMKD_ERR_USAGE, "where to? give --out FILE.npy or --out FILE.safetensors");
  size_t length = strlen(out);
  int tensors = length > 12 && !strcmp(out + length - 12, ".safetensors");
  if (!tensors && (length < 5 || strcmp(out + length - 4, ".npy")))
    return cmkd_fail(err, CMKD_ERR_USAGE, "--out %s: the name must end in .npy or .safetensors", out);
  cmkd_cache *cache;
  cmkd_progress progress;
  CMKD_TRY(cmkd_cache_open(path[0], &cache, err));
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  cmkd_progress_start(&progress, "export", "rows", info->samples * info->views, 0, quiet);
  cmkd_status status = tensors ? export_tensors(cache, out, &progress, err) : export_npy(cache, out, &progress, err);
  cmkd_progress_end(&progress);
  if (status == CMKD_OK && !quiet)
    printf("%s: (%" PRIu64 ", %u, %u) float32\n", out, info->samples, info->views, info->classes);
  cmkd_cache_close(cache);
  return status;
}
