/* Opening a cache, and its small arrays. User block, pread and zstd only. Everything a file says is checked before it
 * is used: the master binds every shard's user block by hash, and that binds the chunk table. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "formats/cache/hash.h"
#include "formats/cache/parse.h"
#include "formats/cache/paths.h"
#include "formats/cache/reader/reader.h"

#define KEEP_OPEN 256 /* shards; more would meet the limit of open files */

static cmkd_status open_file(const char *path, int *fd, cmkd_error *err) {
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
  if (*fd >= 0) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be opened (%s)", path, strerror(errno));
}

static cmkd_status open_master(cmkd_cache *cache, cmkd_error *err) {
  int fd;
  uint8_t *bytes = NULL, *rest = NULL;
  cmkd_user_block block;
  if (open_file(cache->path, &fd, err) != CMKD_OK) {
    if (errno != ENOENT) return CMKD_ERR_IO;
    char *folder = cmkd_cache_folder(cache->path);
    int parts = folder && cmkd_file_exists(folder);
    free(folder);
    return cmkd_fail(
        err, CMKD_ERR_IO,
        parts ? "%s: its shards are there, but the build was not finished; run the same cmkd-cache build again"
              : "%s: no such file; cmkd-cache build makes one",
        cache->path);
  }
  cmkd_status status = cmkd_user_block_read(fd, cache->path, CMKD_USER_BLOCK_MASTER, &bytes, &block, err);
  if (status == CMKD_OK) status = cmkd_master_json_parse(block.json, block.json_size, cache->path, &cache->master, err);
  if (status == CMKD_OK) { /* small, so all of it is checked */
    size_t size = (size_t)(block.file_size - block.block_size);
    char hex[CMKD_SHA256_HEX];
    rest = malloc(size + 1);
    status = rest ? cmkd_pread_full(fd, rest, size, block.block_size, cache->path, err)
                  : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", cache->path);
    if (status == CMKD_OK) cmkd_sha256(rest, size, hex);
    if (status == CMKD_OK && strcmp(hex, block.payload_sha256) != 0)
      status = cmkd_fail(err, CMKD_ERR_FORMAT,
                         "%s: corrupt (its hash does not match); delete it and run cmkd-cache finish --out %s",
                         cache->path, cache->path);
    cache->master_size = block.file_size;
  }
  close(fd);
  free(bytes);
  free(rest);
  return status;
}

/* The recorded folder beside the master, or, after both were renamed, the one that goes with the master's new name. */
static char *find_folder(const cmkd_cache *cache) {
  char *dir = cmkd_path_dir(cache->path), *folder = dir ? cmkd_path_join(dir, cache->master.folder) : NULL;
  free(dir);
  if (folder && !cmkd_file_exists(folder)) {
    char *other = cmkd_cache_folder(cache->path);
    if (other && cmkd_file_exists(other)) {
      free(folder);
      return other;
    }
    free(other);
  }
  return folder;
}

static cmkd_status open_shard(cmkd_cache *cache, const char *folder, uint32_t k, cmkd_error *err) {
  const cmkd_shard_entry *entry = cache->master.shards + k;
  cmkd_shard *shard = cache->shards + k;
  cmkd_cache_config config = {0};
  cmkd_user_block block;
  uint8_t *bytes = NULL;
  char hex[CMKD_SHA256_HEX];
  shard->path = cmkd_path_join(folder, entry->file);
  if (!shard->path) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", cache->path);
  shard->fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (shard->fd < 0 && errno == ENOENT)
    return cmkd_fail(err, CMKD_ERR_IO,
                     "%s: missing, a shard of %s; run the same cmkd-cache build again, or copy the whole folder",
                     shard->path, cache->path);
  if (shard->fd < 0) return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be opened (%s)", shard->path, strerror(errno));
  CMKD_TRY(cmkd_user_block_read(shard->fd, shard->path, CMKD_USER_BLOCK_SHARD, &bytes, &block, err));
  cmkd_sha256(bytes, (size_t)block.block_size, hex);
  cmkd_status status = CMKD_OK;
  if (strcmp(hex, entry->block_sha256) != 0 || block.file_size != entry->size)
    status = cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s: not the shard that %s was finished with; run the same cmkd-cache build again", shard->path,
                       cache->path);
  if (status == CMKD_OK)
    status = cmkd_shard_json_parse(block.json, block.json_size, block.file_size - block.block_size, shard->path,
                                   &config, &shard->meta, err);
  shard->block_size = block.block_size;
  shard->file_size = block.file_size;
  memcpy(shard->payload_sha256, block.payload_sha256, sizeof block.payload_sha256);
  free(bytes);
  if (status != CMKD_OK) return status;
  char *mine = cmkd_cache_config_text(&cache->master.config), *its = cmkd_cache_config_text(&config);
  if (!mine || !its || strcmp(mine, its) != 0 || shard->meta.index != k)
    status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: belongs to another cache than %s", shard->path, cache->path);
  free(mine);
  free(its);
  cmkd_cache_config_free(&config);
  if (cache->master.config.shards > KEEP_OPEN) {
    close(shard->fd);
    shard->fd = -1;
  }
  return status;
}

static void fill_info(cmkd_cache *cache) {
  const cmkd_cache_config *config = &cache->master.config;
  cmkd_cache_info *info = &cache->info;
  info->identity = config->identity;
  info->samples = config->samples;
  info->views = config->views;
  info->classes = config->classes;
  info->kept = config->layouts[0].codec->thin ? cmkd_codec_keep(config->identity.codec) : config->classes;
  info->class_names = (const char *const *)config->class_names;
  info->arrays = cache->arrays;
  info->array_count = config->layout_count - 1;
  info->unknown_arrays = config->unknown_arrays;
  for (uint32_t a = 0; a < info->array_count; a++)
    cache->arrays[a] = config->layouts[1 + a].array;
  info->shards = config->shards;
  info->bytes = cache->master_size;
  for (uint32_t k = 0; k < config->shards; k++) {
    const cmkd_shard *shard = cache->shards + k;
    info->bytes += shard->file_size;
    for (size_t i = 0; i < (size_t)config->views * shard->meta.tables[0].chunks_per_view; i++)
      info->logit_bytes += shard->meta.tables[0].extents[i].size;
  }
  memcpy(info->content_sha256, cache->master.content_sha256, sizeof info->content_sha256);
}

cmkd_status cmkd_cache_open(const char *path, cmkd_cache **out, cmkd_error *err) {
  cmkd_cache *cache = calloc(1, sizeof *cache);
  *out = NULL;
  if (!cache) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
  pthread_mutex_init(&cache->mutex, NULL);
  cache->path = strdup(path);
  char *folder = NULL;
  cmkd_status status = cache->path ? open_master(cache, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
  if (status == CMKD_OK) {
    cache->shards = calloc(cache->master.config.shards, sizeof *cache->shards);
    folder = find_folder(cache);
    if (!cache->shards || !folder) status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
    for (uint32_t k = 0; cache->shards && k < cache->master.config.shards; k++)
      cache->shards[k].fd = -1;
  }
  for (uint32_t k = 0; status == CMKD_OK && k < cache->master.config.shards; k++)
    status = open_shard(cache, folder, k, err);
  free(folder);
  if (status != CMKD_OK) {
    cmkd_cache_close(cache);
    return status;
  }
  fill_info(cache);
  *out = cache;
  return CMKD_OK;
}

void cmkd_cache_close(cmkd_cache *cache) {
  if (!cache) return;
  for (uint32_t k = 0; cache->shards && k < cache->master.config.shards; k++) {
    if (cache->shards[k].fd >= 0) close(cache->shards[k].fd);
    cmkd_shard_meta_free(&cache->shards[k].meta);
    free(cache->shards[k].path);
  }
  free(cache->shards);
  cmkd_regions_free(cache);
  cmkd_master_meta_free(&cache->master);
  pthread_mutex_destroy(&cache->mutex);
  free(cache->labels);
  free(cache->ids);
  free(cache->path);
  free(cache);
}

const cmkd_cache_info *cmkd_cache_get_info(const cmkd_cache *cache) { return &cache->info; }

cmkd_status cmkd_cache_layout(const cmkd_cache *cache, const char *name, uint32_t *layout, cmkd_error *err) {
  const cmkd_cache_config *config = &cache->master.config;
  *layout = 0;
  if (!name || cmkd_layout_find(config, config->layout_count, name, layout)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_USAGE, "%s: holds no array \"%.64s\"", cache->path, name);
}

/* The shard's file, to be left with leave_file. */
static cmkd_status enter_file(const cmkd_shard *shard, int *fd, cmkd_error *err) {
  *fd = shard->fd;
  return *fd >= 0 ? CMKD_OK : open_file(shard->path, fd, err);
}
static void leave_file(const cmkd_shard *shard, int fd) {
  if (shard->fd < 0) close(fd);
}

static cmkd_status read_extent(const cmkd_shard *shard, const cmkd_extent *extent, void *out, cmkd_error *err) {
  int fd;
  CMKD_TRY(enter_file(shard, &fd, err));
  cmkd_status status =
      cmkd_pread_full(fd, out, (size_t)extent->size, shard->block_size + extent->offset, shard->path, err);
  leave_file(shard, fd);
  return status;
}

cmkd_status cmkd_shard_payload_sha256(const cmkd_shard *shard, char hex[CMKD_SHA256_HEX], cmkd_error *err) {
  const cmkd_user_block block = {.block_size = shard->block_size, .file_size = shard->file_size};
  int fd;
  CMKD_TRY(enter_file(shard, &fd, err));
  cmkd_status status = cmkd_payload_sha256(fd, &block, shard->path, hex, err);
  leave_file(shard, fd);
  return status;
}

cmkd_status cmkd_shard_array(const cmkd_shard *shard, const cmkd_extent *extent, const char *what, void *out,
                             cmkd_error *err) {
  CMKD_TRY(read_extent(shard, extent, out, err));
  if (cmkd_xxh64(out, (size_t)extent->size) == extent->hash) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %s is corrupt; delete that file and run the same build again",
                   shard->path, what);
}

cmkd_status cmkd_shard_chunk(const cmkd_cache *cache, cmkd_chunk_place at, cmkd_chunk_coder *coder, uint8_t *stored,
                             uint8_t *raw, cmkd_error *err) {
  const cmkd_array_layout *layout = cmkd_cache_layout_at(cache, at.layout);
  const cmkd_extent *extent = cmkd_chunk_extent(at);
  const size_t raw_size = at.shard->meta.tables[at.layout].chunk_samples * cmkd_layout_row_bytes(layout);
  CMKD_TRY(read_extent(at.shard, extent, stored, err));
  cmkd_error inner = {0};
  cmkd_status status = cmkd_chunk_decode(coder, stored, (size_t)extent->size, raw, raw_size, "it", &inner);
  if (status == CMKD_OK) return CMKD_OK;
  return cmkd_fail(err, status,
                   "%s: chunk %u of view %u%s%s is corrupt; delete that file and run the same build again (cmkd-cache "
                   "verify lists all such)",
                   at.shard->path, at.chunk, at.view, at.layout ? " of /" : "", at.layout ? layout->array.name : "");
}

cmkd_status cmkd_shard_row_numbers(const cmkd_shard *shard, uint32_t view, uint16_t *max, uint16_t *range,
                                   cmkd_error *err) {
  CMKD_TRY(cmkd_shard_array(shard, shard->meta.row_max + view, "/row_max", max, err));
  return cmkd_shard_array(shard, shard->meta.row_range + view, "/row_range", range, err);
}

/* Loads one small array of every shard, once. */
static cmkd_status load_array(cmkd_cache *cache, int labels, cmkd_error *err) {
  size_t item = labels ? 4 : 8;
  cmkd_status status = CMKD_OK;
  uint8_t *out = malloc((size_t)cache->info.samples * item); /* bounded: the shards hold that many bytes */
  if (!out) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for its labels", cache->path);
  for (uint32_t k = 0; k < cache->info.shards && status == CMKD_OK; k++) {
    const cmkd_shard *shard = cache->shards + k;
    status = cmkd_shard_array(shard, labels ? &shard->meta.label : &shard->meta.sample_id,
                              labels ? "/label" : "/sample_id", out + shard->meta.first * item, err);
    for (uint32_t i = 0; labels && status == CMKD_OK && i < shard->meta.samples; i++) {
      int32_t label = ((const int32_t *)(const void *)out)[shard->meta.first + i];
      if (label < 0 || (uint32_t)label >= cache->info.classes)
        status = cmkd_fail(err, CMKD_ERR_VALUE, "%s: label %d of sample %" PRIu64 " is outside 0..%u", shard->path,
                           label, shard->meta.first + i, cache->info.classes - 1);
    }
  }
  if (status != CMKD_OK)
    free(out);
  else if (labels)
    cache->labels = (int32_t *)(void *)out;
  else
    cache->ids = (uint64_t *)(void *)out;
  return status;
}

cmkd_status cmkd_cache_labels(cmkd_cache *cache, const int32_t **labels, cmkd_error *err) {
  pthread_mutex_lock(&cache->mutex);
  cmkd_status status = cache->labels ? CMKD_OK : load_array(cache, 1, err);
  *labels = cache->labels;
  pthread_mutex_unlock(&cache->mutex);
  return status;
}

cmkd_status cmkd_cache_ids(cmkd_cache *cache, const uint64_t **ids, cmkd_error *err) {
  pthread_mutex_lock(&cache->mutex);
  cmkd_status status = cache->ids ? CMKD_OK : load_array(cache, 0, err);
  *ids = cache->ids;
  pthread_mutex_unlock(&cache->mutex);
  return status;
}

cmkd_status cmkd_cache_check_view(const cmkd_cache *cache, uint32_t view, cmkd_error *err) {
  if (view < cache->info.views) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_USAGE, "%s: view %u does not exist; it has %u", cache->path, view, cache->info.views);
}

cmkd_status cmkd_cache_seeds(cmkd_cache *cache, uint32_t view, uint64_t *seeds, cmkd_error *err) {
  CMKD_TRY(cmkd_cache_check_view(cache, view, err));
  for (uint32_t k = 0; k < cache->info.shards; k++) {
    const cmkd_shard *shard = cache->shards + k;
    CMKD_TRY(cmkd_shard_array(shard, shard->meta.seeds + view, "/seeds", seeds + shard->meta.first, err));
  }
  return CMKD_OK;
}
