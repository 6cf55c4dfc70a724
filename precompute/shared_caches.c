/* What several commands of cmkd-cache do with caches. See shared_caches.h. */
#include "precompute/shared_caches.h"
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "base/program/print.h"
#include "formats/cache/codec.h"
#include "formats/cache/paths.h"

/* Shards say which configuration they hold, not which input they came from: a half-made output must not be taken for a
 * good one. */
void cmkd_output_remove(const char *out) {
  char *folder = cmkd_cache_folder(out);
  DIR *dir = folder ? opendir(folder) : NULL;
  for (struct dirent *entry; dir && (entry = readdir(dir));) {
    if (strncmp(entry->d_name, "shard-", 6) != 0) continue;
    char *path = cmkd_path_join(folder, entry->d_name);
    if (path) unlink(path);
    free(path);
  }
  if (dir) closedir(dir);
  if (folder) rmdir(folder);
  unlink(out);
  free(folder);
}

cmkd_status cmkd_output_is_new(const char *out, cmkd_error *err) {
  char *folder = cmkd_cache_folder(out);
  if (!folder) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", out);
  const char *there = access(out, F_OK) == 0 ? out : access(folder, F_OK) == 0 ? folder : NULL;
  cmkd_status status =
      there ? cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: exists; choose another name or remove it", there) : CMKD_OK;
  free(folder);
  return status;
}

cmkd_status cmkd_codec_allowed(const char *codec, int allowed, cmkd_error *err) {
  uint32_t keep = cmkd_codec_keep(codec);
  if (allowed || !keep) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_USAGE,
                   "codec %s keeps %u logits a row and makes one tie of the rest, so rank-based losses such as CMKD "
                   "refuse the cache; if that is meant, %s",
                   codec, keep, "say --allow-top-k (build, import, repack)");
}

static json_t *describe(const char *out, const cmkd_cache_info *info, double per_row) {
  return json_pack("{s:o,s:I,s:i,s:i,s:I,s:f,s:s}", "cache", cmkd_json_string(out), "samples",
                   (json_int_t)info->samples, "views", (int)info->views, "classes", (int)info->classes, "bytes",
                   (json_int_t)info->bytes, "bytes_per_row", per_row, "sha256", info->content_sha256);
}

cmkd_status cmkd_output_report(const char *out, int json, cmkd_error *err) {
  cmkd_cache *cache;
  cmkd_status status = CMKD_OK;
  CMKD_TRY(cmkd_cache_open(out, &cache, err));
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  double per_row = (double)info->bytes / ((double)info->samples * info->views);
  if (json)
    status = cmkd_json_print(describe(out, info, per_row), 9, err);
  else
    printf("%s: %" PRIu64 " samples x %u views x %u classes, %" PRIu64 " bytes, %.1f a row, sha256 %.16s\n", out,
           info->samples, info->views, info->classes, info->bytes, per_row, info->content_sha256);
  cmkd_cache_close(cache);
  return status;
}

cmkd_status cmkd_open_all(const char *const *paths, int count, cmkd_cache **caches, cmkd_error *err) {
  for (int i = 0; i < count; i++) {
    cmkd_status status = cmkd_cache_open(paths[i], &caches[i], err);
    if (status == CMKD_OK) continue;
    cmkd_close_all(caches, i);
    return status;
  }
  return CMKD_OK;
}

void cmkd_close_all(cmkd_cache **caches, int count) {
  for (int i = 0; i < count; i++)
    cmkd_cache_close(caches[i]);
}
