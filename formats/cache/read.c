/* Opening a cache, its small arrays, and bulk reads. User block, pread and zstd only. Everything a file says is checked
 * before it is used: the master binds every shard's user block by hash, and that binds the chunk table. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/cpu.h"
#include "base/file.h"
#include "formats/cache/hash.h"
#include "formats/cache/paths.h"
#include "formats/cache/reader.h"

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
  if (status == CMKD_OK)
    status = cmkd_master_json_parse(block.json, block.json_size, block.file_size, cache->path, &cache->master, err);
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
    memcpy(cache->master_payload_sha256, block.payload_sha256, sizeof block.payload_sha256);
    cache->master_block = block.block_size;
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
  cmkd_cache_head head = {0};
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
    status = cmkd_shard_json_parse(block.json, block.json_size, block.file_size - block.block_size, shard->path, &head,
                                   &shard->meta, err);
  shard->block_size = block.block_size;
  shard->file_size = block.file_size;
  memcpy(shard->payload_sha256, block.payload_sha256, sizeof block.payload_sha256);
  free(bytes);
  if (status != CMKD_OK) return status;
  char *mine = cmkd_cache_head_text(&cache->master.head), *its = cmkd_cache_head_text(&head);
  if (!mine || !its || strcmp(mine, its) != 0 || shard->meta.index != k)
    status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: belongs to another cache than %s", shard->path, cache->path);
  free(mine);
  free(its);
  cmkd_cache_head_free(&head);
  shard->rows = cmkd_shard_chunk_rows(&cache->master.head, shard->meta.samples);
  if (cache->master.head.shards > KEEP_OPEN) {
    close(shard->fd);
    shard->fd = -1;
  }
  return status;
}

static void fill_info(cmkd_cache *cache) {
  const cmkd_cache_head *head = &cache->master.head;
  cmkd_cache_info *info = &cache->info;
  info->identity = head->identity;
  info->samples = head->samples;
  info->views = head->views;
  info->classes = head->classes;
  info->kept = cache->codec->thin ? cmkd_codec_keep(head->identity.codec) : head->classes;
  info->class_names = (const char *const *)head->class_names;
  info->shards = head->shards;
  info->bytes = cache->master_size;
  for (uint32_t k = 0; k < head->shards; k++) {
    const cmkd_shard *shard = cache->shards + k;
    info->bytes += shard->file_size;
    for (size_t i = 0; i < (size_t)head->views * shard->meta.blocks; i++)
      info->logit_bytes += shard->meta.logits[i].size;
  }
  memcpy(info->sha256, cache->master.fingerprint, sizeof info->sha256);
}

cmkd_status cmkd_cache_open(const char *path, cmkd_cache **out, cmkd_error *err) {
  cmkd_cache *cache = calloc(1, sizeof *cache);
  *out = NULL;
  if (!cache) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
  pthread_mutex_init(&cache->mutex, NULL);
  cache->path = strdup(path);
  char *folder = NULL;
  cmkd_status status = cache->path ? open_master(cache, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
  if (status == CMKD_OK) status = cmkd_codec_find(cache->master.head.identity.codec, &cache->codec, err);
  if (status == CMKD_OK) {
    cache->shards = calloc(cache->master.head.shards, sizeof *cache->shards);
    folder = find_folder(cache);
    if (!cache->shards || !folder) status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
    for (uint32_t k = 0; cache->shards && k < cache->master.head.shards; k++)
      cache->shards[k].fd = -1;
  }
  for (uint32_t k = 0; status == CMKD_OK && k < cache->master.head.shards; k++)
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
  for (uint32_t k = 0; cache->shards && k < cache->master.head.shards; k++) {
    if (cache->shards[k].fd >= 0) close(cache->shards[k].fd);
    cmkd_shard_meta_free(&cache->shards[k].meta);
    free(cache->shards[k].path);
  }
  free(cache->shards);
  for (int i = 0; i < 2; i++)
    if (cache->spare[i].size) munmap(cache->spare[i].bytes, cache->spare[i].size);
  cmkd_master_meta_free(&cache->master);
  pthread_mutex_destroy(&cache->mutex);
  free(cache->labels);
  free(cache->ids);
  free(cache->path);
  free(cache);
}

#define HUGE ((size_t)2 << 20)

cmkd_region cmkd_region_take(cmkd_cache *cache, size_t size) {
  cmkd_region found = {NULL, 0};
  if (size > SIZE_MAX / 2) return found;
  size = (size + HUGE - 1) / HUGE * HUGE;
  pthread_mutex_lock(&cache->mutex);
  for (int i = 0; i < 2 && !found.size; i++)
    if (cache->spare[i].size >= size) {
      found = cache->spare[i];
      cache->spare[i] = (cmkd_region){NULL, 0};
    }
  pthread_mutex_unlock(&cache->mutex);
  if (found.size) return found;
  uint8_t *bytes = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) return found;
  size_t before = (HUGE - (uintptr_t)bytes % HUGE) % HUGE; /* huge pages want their own alignment */
  if (before) munmap(bytes, before);
  if (HUGE - before) munmap(bytes + before + size, HUGE - before);
  madvise(bytes + before, size, MADV_HUGEPAGE);
  return (cmkd_region){bytes + before, size};
}

void cmkd_region_return(cmkd_cache *cache, cmkd_region region) {
  if (!region.size) return;
  pthread_mutex_lock(&cache->mutex);
  int smaller = cache->spare[0].size <= cache->spare[1].size ? 0 : 1;
  if (cache->spare[smaller].size < region.size) {
    cmkd_region other = cache->spare[smaller];
    cache->spare[smaller] = region;
    region = other;
  }
  pthread_mutex_unlock(&cache->mutex);
  if (region.size) munmap(region.bytes, region.size);
}

const cmkd_cache_info *cmkd_cache_get_info(const cmkd_cache *cache) { return &cache->info; }

cmkd_status cmkd_shard_bytes(const cmkd_shard *shard, const cmkd_extent *extent, void *out, cmkd_error *err) {
  int fd = shard->fd;
  if (fd < 0) CMKD_TRY(open_file(shard->path, &fd, err));
  cmkd_status status =
      cmkd_pread_full(fd, out, (size_t)extent->size, shard->block_size + extent->offset, shard->path, err);
  if (shard->fd < 0) close(fd);
  return status;
}

cmkd_status cmkd_shard_array(const cmkd_shard *shard, const cmkd_extent *extent, const char *what, void *out,
                             cmkd_error *err) {
  CMKD_TRY(cmkd_shard_bytes(shard, extent, out, err));
  if (cmkd_xxh64(out, (size_t)extent->size) == extent->hash) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %s is corrupt; delete that file and run the same build again",
                   shard->path, what);
}

cmkd_status cmkd_shard_chunk(const cmkd_cache *cache, const cmkd_shard *shard, uint32_t view, uint32_t block,
                             cmkd_chunk_coder *coder, uint8_t *stored, uint8_t *raw, cmkd_error *err) {
  const cmkd_extent *extent = shard->meta.logits + (size_t)view * shard->meta.blocks + block;
  CMKD_TRY(cmkd_shard_bytes(shard, extent, stored, err));
  cmkd_error inner = {0};
  cmkd_status status =
      cmkd_chunk_decode(coder, stored, (size_t)extent->size, raw, cmkd_cache_raw(cache, shard), "it", &inner);
  if (status == CMKD_OK) return CMKD_OK;
  return cmkd_fail(err, status,
                   "%s: chunk %u of view %u is corrupt; delete that file and run the same build again (cmkd-cache "
                   "verify lists all such)",
                   shard->path, block, view);
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
  uint8_t *out = malloc((size_t)cache->info.samples * item); /* the shards' tables vouch for that many bytes on disk */
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

static cmkd_status check_view(const cmkd_cache *cache, uint32_t view, cmkd_error *err) {
  if (view < cache->info.views) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_USAGE, "%s: view %u does not exist; it has %u", cache->path, view, cache->info.views);
}

cmkd_status cmkd_cache_seeds(cmkd_cache *cache, uint32_t view, uint64_t *seeds, cmkd_error *err) {
  CMKD_TRY(check_view(cache, view, err));
  for (uint32_t k = 0; k < cache->info.shards; k++) {
    const cmkd_shard *shard = cache->shards + k;
    CMKD_TRY(cmkd_shard_array(shard, shard->meta.seeds + view, "/seeds", seeds + shard->meta.first, err));
  }
  return CMKD_OK;
}

/* A bulk read is a list of (shard, block) pieces that threads take in turn. */
typedef struct bulk {
  const cmkd_cache *cache;
  uint32_t view;
  uint64_t first, count;
  float *logits; /* decoded, or NULL and: */
  uint8_t *items;
  uint16_t *row_max, *row_range; /* as stored */
  uint32_t first_shard, shards;
  atomic_uint_fast64_t next;
  uint64_t pieces;
  atomic_int failed;
  pthread_mutex_t mutex;
  cmkd_error failure;
} bulk;

/* Rows [first, first + rows) of a chunk, bytes put together again. */
static void copy_items(const bulk *b, const cmkd_chunk_view *chunk, size_t first, size_t rows, uint64_t at) {
  const size_t item = (size_t)b->cache->codec->item, count = rows * chunk->classes;
  uint8_t *out = b->items + at * chunk->classes * item;
  for (size_t p = 0; p < item; p++) {
    const uint8_t *plane = chunk->raw + p * chunk->plane + first * chunk->classes;
    for (size_t e = 0; e < count; e++)
      out[e * item + p] = plane[e];
  }
  if (!chunk->row_max) return;
  memcpy(b->row_max + at, chunk->row_max + first, rows * sizeof *b->row_max);
  memcpy(b->row_range + at, chunk->row_range + first, rows * sizeof *b->row_range);
}

static cmkd_status bulk_piece(bulk *b, uint32_t k, uint32_t block, cmkd_chunk_coder *coder, uint8_t *stored,
                              uint8_t *raw, uint16_t *numbers, uint32_t *numbers_of, cmkd_error *err) {
  const cmkd_cache *cache = b->cache;
  const cmkd_shard *shard = cache->shards + k;
  uint64_t start = shard->meta.first + (uint64_t)block * shard->rows, end = start + shard->rows,
           C = cache->info.classes;
  if (end > shard->meta.first + shard->meta.samples) end = shard->meta.first + shard->meta.samples;
  uint64_t from = start > b->first ? start : b->first, to = end < b->first + b->count ? end : b->first + b->count;
  if (from >= to) return CMKD_OK;
  uint16_t *range = numbers ? numbers + cache->master.head.shard_rows : NULL;
  if (numbers && *numbers_of != k) {
    CMKD_TRY(cmkd_shard_row_numbers(shard, b->view, numbers, range, err));
    *numbers_of = k;
  }
  CMKD_TRY(cmkd_shard_chunk(cache, shard, b->view, block, coder, stored, raw, err));
  size_t offset = (size_t)block * shard->rows;
  cmkd_chunk_view chunk = {raw, (size_t)shard->rows * C, C, numbers ? numbers + offset : NULL,
                           numbers ? range + offset : NULL};
  if (b->items)
    copy_items(b, &chunk, (size_t)(from - start), (size_t)(to - from), from - b->first);
  else
    cache->codec->decode(&chunk, (size_t)(from - start), (size_t)(to - from), b->logits + (from - b->first) * C);
  return CMKD_OK;
}

static void *bulk_run(void *argument) {
  bulk *b = argument;
  const cmkd_cache *cache = b->cache;
  uint32_t most = (cache->master.head.shard_rows + cache->master.head.chunk_rows - 1) / cache->master.head.chunk_rows,
           numbers_of = UINT32_MAX;
  size_t stored_capacity = cmkd_cache_stored_bound(cache),
         raw_capacity = (size_t)cache->master.head.chunk_rows * cache->info.classes * (size_t)cache->codec->item;
  cmkd_chunk_coder *coder = cmkd_chunk_coder_create();
  uint8_t *stored = malloc(stored_capacity), *raw = malloc(raw_capacity);
  uint16_t *numbers = cache->codec->row_numbers ? malloc((size_t)cache->master.head.shard_rows * 4) : NULL;
  cmkd_error err = {0};
  if (!coder || !stored || !raw || (cache->codec->row_numbers && !numbers))
    cmkd_fail(&err, CMKD_ERR_MEMORY, "%s: no memory to read it", cache->path);
  for (uint64_t piece;
       err.status == CMKD_OK && !atomic_load(&b->failed) && (piece = atomic_fetch_add(&b->next, 1)) < b->pieces;) {
    uint32_t k = b->first_shard + (uint32_t)(piece / most), block = (uint32_t)(piece % most);
    if (block >= cache->shards[k].meta.blocks) continue;
    if (bulk_piece(b, k, block, coder, stored, raw, numbers, &numbers_of, &err) != CMKD_OK) break;
  }
  if (err.status != CMKD_OK) {
    pthread_mutex_lock(&b->mutex);
    if (b->failure.status == CMKD_OK) b->failure = err;
    pthread_mutex_unlock(&b->mutex);
    atomic_store(&b->failed, 1);
  }
  cmkd_chunk_coder_free(coder);
  free(stored);
  free(raw);
  free(numbers);
  return NULL;
}

/* Fills in what follows from view, first and count, and has it done by as many threads as there are cores. */
static cmkd_status bulk_do(cmkd_cache *cache, bulk *b, cmkd_error *err) {
  CMKD_TRY(check_view(cache, b->view, err));
  if (b->first > cache->info.samples || b->count > cache->info.samples - b->first)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: samples %" PRIu64 "..%" PRIu64 " do not exist; it has %" PRIu64,
                     cache->path, b->first, b->first + b->count, cache->info.samples);
  if (!b->count) return CMKD_OK;
  const cmkd_cache_head *head = &cache->master.head;
  const uint32_t last = (uint32_t)((b->first + b->count - 1) / head->shard_rows),
                 most = (head->shard_rows + head->chunk_rows - 1) / head->chunk_rows;
  b->cache = cache;
  b->first_shard = (uint32_t)(b->first / head->shard_rows);
  b->shards = last - b->first_shard + 1;
  b->pieces = (uint64_t)b->shards * most;
  pthread_mutex_init(&b->mutex, NULL);
  enum { MOST_THREADS = 64 };
  pthread_t threads[MOST_THREADS];
  uint64_t touched = b->count / head->chunk_rows + 1;
  int wanted = cmkd_cpu_count(), started = 0;
  if (wanted > MOST_THREADS) wanted = MOST_THREADS;
  if ((uint64_t)wanted > touched) wanted = (int)touched;
  while (started < wanted - 1 && pthread_create(threads + started, NULL, bulk_run, b) == 0)
    started++;
  bulk_run(b);
  for (int i = 0; i < started; i++)
    pthread_join(threads[i], NULL);
  pthread_mutex_destroy(&b->mutex);
  if (b->failure.status != CMKD_OK && err) *err = b->failure;
  return b->failure.status;
}

cmkd_status cmkd_cache_read(cmkd_cache *cache, uint32_t view, uint64_t first, uint64_t count, float *logits,
                            cmkd_error *err) {
  bulk b = {.view = view, .first = first, .count = count, .logits = logits};
  return bulk_do(cache, &b, err);
}

int cmkd_cache_item(const cmkd_cache *cache) { return cache->codec->item; }

cmkd_status cmkd_cache_read_items(cmkd_cache *cache, uint32_t view, uint64_t first, uint64_t count, void *items,
                                  uint16_t *row_max, uint16_t *row_range, cmkd_error *err) {
  bulk b = {.view = view, .first = first, .count = count, .items = items, .row_max = row_max, .row_range = row_range};
  if (cache->codec->thin)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: codec %s is read decoded only", cache->path,
                     cache->info.identity.codec);
  if (cache->codec->row_numbers && (!row_max || !row_range))
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: codec %s has numbers for each row; give room for them", cache->path,
                     cache->info.identity.codec);
  return bulk_do(cache, &b, err);
}
