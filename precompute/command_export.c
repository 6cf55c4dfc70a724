/* cmkd-cache export: all logits as one .npy, (samples, views, classes) float32 in sample order. Memory holds one stretch of samples. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/interrupt.h"
#include "base/options.h"
#include "base/progress.h"
#include "cmkd/cache.h"
#include "formats/npy.h"
#include "precompute/commands.h"

#define STRETCH_BYTES (64u << 20)

static cmkd_status copy_rows(cmkd_cache *cache, cmkd_npy_writer *writer, const char *path, cmkd_progress *progress, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  size_t C = info->classes, V = info->views, sample = V * C * sizeof(float);
  uint64_t stretch = STRETCH_BYTES / sample < 1 ? 1 : STRETCH_BYTES / sample;
  if (stretch > info->samples) stretch = info->samples;
  float *view = malloc((size_t)stretch * C * sizeof *view), *rows = malloc((size_t)stretch * sample);
  cmkd_status status = view && rows ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to export it", path);
  for (uint64_t at = 0; at < info->samples && status == CMKD_OK; at += stretch) {
    uint64_t count = info->samples - at < stretch ? info->samples - at : stretch;
    for (uint32_t v = 0; v < V && status == CMKD_OK; v++) {
      status = cmkd_cache_read(cache, v, at, count, view, err);
      for (uint64_t i = 0; i < count && status == CMKD_OK; i++) memcpy(rows + (i * V + v) * C, view + i * C, C * sizeof *view);
    }
    if (status == CMKD_OK) status = cmkd_npy_append(writer, rows, count * V * C, err);
    if (status == CMKD_OK && cmkd_interrupted()) status = cmkd_fail(err, CMKD_ERR_INTERRUPTED, "%s: stopped; nothing was written", path);
    cmkd_progress_update(progress, (at + count) * V);
  }
  free(view);
  free(rows);
  return status;
}

cmkd_status cmkd_command_export(int argc, char **argv, cmkd_error *err) {
  const char *path[1] = {0}, *out = NULL;
  int help = 0, positionals = 0, quiet = 0;
  const cmkd_option table[] = {
    {.name = "--out", .argument = "FILE.npy", .kind = CMKD_OPT_STRING, .target = &out, .help = "(samples, views, classes) float32, in sample order"},
    {.name = "--quiet", .kind = CMKD_OPT_FLAG, .target = &quiet, .help = "no progress"},
    {0},
  };
  const cmkd_command command = {.name = "cmkd-cache export", .summary = "Writes the decoded logits as one .npy array.", .usage = "--out FILE.npy CACHE.h5", .options = table, .min_positional = 1, .max_positional = 1,
                                .examples = "  cmkd-cache export --out logits.npy teacher.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, path, &positionals, &help, err));
  if (help) return CMKD_OK;
  if (!out) return cmkd_fail(err, CMKD_ERR_USAGE, "where to? give --out FILE.npy");
  cmkd_cache *cache;
  cmkd_npy_writer *writer = NULL;
  cmkd_progress progress;
  CMKD_TRY(cmkd_cache_open(path[0], &cache, err));
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const int64_t shape[3] = {(int64_t)info->samples, info->views, info->classes};
  cmkd_progress_start(&progress, "export", "rows", info->samples * info->views, 0, quiet);
  cmkd_status status = cmkd_npy_begin(out, CMKD_F32, 3, shape, &writer, err);
  if (status == CMKD_OK) {
    status = copy_rows(cache, writer, out, &progress, err);
    if (status == CMKD_OK) status = cmkd_npy_end(writer, err);
    else cmkd_npy_abort(writer);
  }
  cmkd_progress_end(&progress);
  if (status == CMKD_OK && !quiet) printf("%s: (%" PRIu64 ", %u, %u) float32\n", out, info->samples, info->views, info->classes);
  cmkd_cache_close(cache);
  return status;
}
