/* From a shard in memory to a file under its name, and from files to the master. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/clock.h"
#include "formats/cache/parse.h"
#include "formats/cache/writer/hdf5.h"
#include "formats/cache/writer/writer.h"

char *cmkd_writer_shard_path(const cmkd_cache_writer *w, uint32_t k) {
  char name[40];
  cmkd_shard_name(&w->config, k, name);
  return cmkd_path_join(w->folder, name);
}

static cmkd_status build_image(cmkd_cache_writer *w, cmkd_shard_buffer *shard, cmkd_error *err) {
  const uint8_t **chunks = malloc(shard->chunk_count * sizeof *chunks);
  size_t *sizes = malloc(shard->chunk_count * sizeof *sizes);
  cmkd_status status = CMKD_OK;
  if (!chunks || !sizes)
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to build shard %u", w->path, shard->meta.index);
  for (uint64_t i = 0; status == CMKD_OK && i < shard->chunk_count; i++) {
    chunks[i] = shard->chunks[i].stored;
    sizes[i] = shard->chunks[i].size;
  }
  cmkd_shard_data data = {chunks, sizes, shard->labels, shard->ids, shard->seeds, shard->row_max, shard->row_range};
  if (status == CMKD_OK) status = cmkd_hdf5_shard(&w->config, &shard->meta, &data, &w->image, err);
  free(chunks);
  free(sizes);
  return status;
}

/* User block before image, written to PATH.tmp, synced, renamed. Gives the hash of the user block, which covers the
 * whole file. */
static cmkd_status write_file(const char *path, int kind, const char *json, const cmkd_file_image *image,
                              char block_sha256[CMKD_SHA256_HEX], uint64_t *file_size, cmkd_error *err) {
  char payload_sha256[CMKD_SHA256_HEX];
  size_t block_size = 0;
  cmkd_sha256(image->bytes, image->size, payload_sha256);
  uint8_t *block =
      json ? cmkd_user_block_make(kind, json, strlen(json), payload_sha256, image->size, &block_size) : NULL;
  if (!block)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: its header cannot be made: out of memory, or a name in it is not UTF-8",
                     path);
  cmkd_sha256(block, block_size, block_sha256);
  *file_size = block_size + image->size;
  const cmkd_piece pieces[] = {{block, block_size}, {image->bytes, image->size}};
  cmkd_status status = cmkd_file_write(path, pieces, 2, err);
  free(block);
  return status;
}

cmkd_status cmkd_writer_publish(cmkd_cache_writer *w, cmkd_shard_buffer *shard, cmkd_error *err) {
  double start = cmkd_seconds();
  uint32_t k = shard->meta.index;
  CMKD_TRY(build_image(w, shard, err));
  for (uint64_t i = 0; i < shard->chunk_count; i++) { /* the image holds them now */
    cmkd_writer_buffer_return(w, shard->chunks[i].stored);
    shard->chunks[i].stored = NULL;
  }
  char *json = cmkd_shard_json(&w->config, &shard->meta), *path = cmkd_writer_shard_path(w, k), sha256[CMKD_SHA256_HEX];
  uint64_t file_size = 0;
  cmkd_status status = path ? write_file(path, CMKD_USER_BLOCK_SHARD, json, &w->image, sha256, &file_size, err)
                            : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a file name");
  free(json);
  free(path);
  if (status != CMKD_OK) return status;
  pthread_mutex_lock(&w->mutex);
  cmkd_shard_entry *entry = w->entries + k;
  entry->size = file_size;
  memcpy(entry->block_sha256, sha256, sizeof sha256);
  uint64_t rows = (uint64_t)shard->meta.samples * w->config.views;
  w->stats.rows += rows;
  for (uint32_t a = 0; a < w->config.layout_count; a++)
    w->stats.raw_bytes += rows * cmkd_layout_row_bytes(w->config.layouts + a);
  w->stats.file_bytes += file_size;
  w->stats.write_seconds += cmkd_seconds() - start;
  pthread_mutex_unlock(&w->mutex);
  return CMKD_OK;
}

static int shard_is_ours(cmkd_cache_writer *w, uint32_t k, int fd, const char *path) {
  cmkd_user_block block;
  cmkd_cache_config config = {0};
  cmkd_shard_meta meta = {0};
  uint8_t *bytes = NULL;
  char hex[CMKD_SHA256_HEX];
  if (cmkd_user_block_read(fd, path, CMKD_USER_BLOCK_SHARD, &bytes, &block, NULL) != CMKD_OK) return 0;
  int ours = cmkd_shard_json_parse(block.json, block.json_size, block.file_size - block.block_size, path, &config,
                                   &meta, NULL) == CMKD_OK &&
             cmkd_cache_config_is(&config, w->config_text) && meta.index == k &&
             cmkd_payload_sha256(fd, &block, path, hex, NULL) == CMKD_OK && !strcmp(hex, block.payload_sha256);
  if (ours) {
    w->entries[k].size = block.file_size;
    cmkd_sha256(bytes, (size_t)block.block_size, w->entries[k].block_sha256);
  }
  cmkd_cache_config_free(&config);
  cmkd_shard_meta_free(&meta);
  free(bytes);
  return ours;
}

int cmkd_writer_check(cmkd_cache_writer *w, uint32_t k) {
  if (w->entries[k].block_sha256[0]) return 1;
  char *path = cmkd_writer_shard_path(w, k);
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  int done = fd >= 0 && shard_is_ours(w, k, fd, path);
  if (fd >= 0) close(fd);
  free(path);
  return done;
}

static cmkd_status missing(cmkd_cache_writer *w, cmkd_error *err) {
  char list[128] = "";
  uint32_t count = 0;
  for (uint32_t k = 0; k < w->config.shards; k++) {
    if (cmkd_writer_check(w, k)) continue;
    size_t at = strlen(list);
    if (count++ < 8) snprintf(list + at, sizeof list - at, "%s%u", at ? ", " : "", k);
  }
  if (!count) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_FORMAT,
                   "%s: %u of %u shards are missing or damaged (%s%s); run the same build again, or its missing parts",
                   w->folder, count, w->config.shards, list, count > 8 ? ", ..." : "");
}

static cmkd_status write_master(cmkd_cache_writer *w, cmkd_error *err) {
  cmkd_master_meta meta = {.config = w->config, .shards = w->entries};
  char sha256[CMKD_SHA256_HEX];
  uint64_t file_size;
  if ((size_t)snprintf(meta.folder, sizeof meta.folder, "%s", w->folder_name) >= sizeof meta.folder)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: the name is too long", w->path);
  CMKD_TRY(cmkd_master_content_sha256(&meta, err));
  CMKD_TRY(cmkd_hdf5_master(&meta, &w->image, err));
  char *json = cmkd_master_json(&meta);
  cmkd_status status = write_file(w->path, CMKD_USER_BLOCK_MASTER, json, &w->image, sha256, &file_size, err);
  free(json);
  return status;
}

cmkd_status cmkd_writer_publish_master(cmkd_cache_writer *w, cmkd_error *err) {
  CMKD_TRY(missing(w, err));
  char *path = cmkd_path_join(w->folder, "master.lock");
  cmkd_lock lock;
  int taken;
  if (!path) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a file name");
  /* another builder of the same cache writes the same bytes: in turn */
  cmkd_status status = cmkd_lock_take(path, 1, &lock, &taken, err);
  if (status == CMKD_OK) status = write_master(w, err);
  cmkd_lock_release(&lock);
  free(path);
  return status;
}
