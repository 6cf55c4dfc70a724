/* Reading many rows of one view at once, all cores. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "base/cpu.h"
#include "formats/cache/reader/reader.h"

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
  CMKD_TRY(cmkd_cache_check_view(cache, b->view, err));
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
