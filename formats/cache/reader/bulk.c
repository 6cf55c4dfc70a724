/* Reading many rows of one view at once, all cores. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "base/cpu.h"
#include "formats/cache/reader/reader.h"

/* A bulk read is a list of chunks that threads take in turn. Every shard has as many numbers as the first shard has
 * chunks a view: those that a shorter last shard leaves unused are passed over. */
typedef struct bulk {
  const cmkd_cache *cache;
  uint32_t layout, view;
  uint64_t first, count; /* samples */
  float *values;         /* (count, elements) decoded, or NULL and: */
  uint8_t *items;        /* (count, elements) as stored */
  uint16_t *row_max, *row_range;
  uint32_t first_shard;
  uint32_t chunks_per_shard; /* of the view in the first shard; numbers of every shard */
  atomic_uint_fast64_t next;
  uint64_t chunks;
  atomic_int failed;
  pthread_mutex_t mutex; /* guards failure */
  cmkd_error failure;
} bulk;

/* What a thread works with. */
typedef struct scratch {
  cmkd_chunk_coder *coder;
  uint8_t *stored, *raw; /* a chunk as in the file, and decompressed */
  uint16_t *max, *range; /* row numbers of `numbers_of`'s rows, or NULL; one allocation */
  const cmkd_shard *numbers_of;
} scratch;

/* Rows [first, first + rows) of a chunk, bytes put together again. */
static void copy_items(const bulk *b, const cmkd_chunk_view *chunk, size_t first, size_t rows, uint64_t at) {
  const size_t item = (size_t)cmkd_cache_layout_at(b->cache, b->layout)->codec->item, count = rows * chunk->classes;
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

static cmkd_status read_chunk(const bulk *b, const cmkd_shard *shard, uint32_t number, scratch *with, cmkd_error *err) {
  const cmkd_array_layout *layout = cmkd_cache_layout_at(b->cache, b->layout);
  const uint32_t rows = shard->meta.tables[b->layout].chunk_samples;
  const size_t C = layout->array.elements, offset = (size_t)number * rows;
  uint64_t start = shard->meta.first + offset, end = start + rows;
  if (end > shard->meta.first + shard->meta.samples) end = shard->meta.first + shard->meta.samples;
  uint64_t from = start > b->first ? start : b->first, to = end < b->first + b->count ? end : b->first + b->count;
  if (from >= to) return CMKD_OK;
  if (with->max && with->numbers_of != shard) {
    CMKD_TRY(cmkd_shard_row_numbers(shard, b->view, with->max, with->range, err));
    with->numbers_of = shard;
  }
  const cmkd_chunk_place place = {shard, b->layout, b->view, number};
  CMKD_TRY(cmkd_shard_chunk(b->cache, place, with->coder, with->stored, with->raw, err));
  const cmkd_chunk_view chunk = {with->raw, rows * C, C, with->max ? with->max + offset : NULL,
                                 with->max ? with->range + offset : NULL};
  if (b->items)
    copy_items(b, &chunk, (size_t)(from - start), (size_t)(to - from), from - b->first);
  else
    layout->codec->decode(&chunk, (size_t)(from - start), (size_t)(to - from), b->values + (from - b->first) * C);
  return CMKD_OK;
}

static void *run(void *argument) {
  bulk *b = argument;
  const cmkd_cache *cache = b->cache;
  const cmkd_array_layout *layout = cmkd_cache_layout_at(cache, b->layout);
  const size_t raw = cmkd_layout_chunk_bytes(layout), shard_samples = cache->master.config.shard_samples;
  scratch with = {.coder = cmkd_chunk_coder_create(), .stored = malloc(cmkd_chunk_bound(raw)), .raw = malloc(raw)};
  cmkd_error err = {0};
  if (layout->codec->row_numbers) with.max = malloc(shard_samples * 4);
  if (with.max) with.range = with.max + shard_samples;
  if (!with.coder || !with.stored || !with.raw || (layout->codec->row_numbers && !with.max))
    cmkd_fail(&err, CMKD_ERR_MEMORY, "%s: no memory to read it", cache->path);
  while (err.status == CMKD_OK && !atomic_load(&b->failed)) {
    uint64_t number = atomic_fetch_add(&b->next, 1);
    if (number >= b->chunks) break;
    const cmkd_shard *shard = cache->shards + b->first_shard + number / b->chunks_per_shard;
    const uint32_t chunk = (uint32_t)(number % b->chunks_per_shard);
    if (chunk < shard->meta.tables[b->layout].chunks_per_view) read_chunk(b, shard, chunk, &with, &err);
  }
  if (err.status != CMKD_OK) {
    pthread_mutex_lock(&b->mutex);
    if (b->failure.status == CMKD_OK) b->failure = err;
    pthread_mutex_unlock(&b->mutex);
    atomic_store(&b->failed, 1);
  }
  cmkd_chunk_coder_free(with.coder);
  free(with.stored);
  free(with.raw);
  free(with.max);
  return NULL;
}

/* Fills in what follows from layout, view, first and count, and has it done by as many threads as there are cores. */
static cmkd_status bulk_read(cmkd_cache *cache, bulk *b, cmkd_error *err) {
  CMKD_TRY(cmkd_cache_check_view(cache, b->view, err));
  if (b->first > cache->info.samples || b->count > cache->info.samples - b->first)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: samples %" PRIu64 "..%" PRIu64 " do not exist; it has %" PRIu64,
                     cache->path, b->first, b->first + b->count, cache->info.samples);
  if (!b->count) return CMKD_OK;
  const uint32_t shard_samples = cache->master.config.shard_samples,
                 last = (uint32_t)((b->first + b->count - 1) / shard_samples);
  b->cache = cache;
  b->first_shard = (uint32_t)(b->first / shard_samples);
  b->chunks_per_shard = cache->shards[0].meta.tables[b->layout].chunks_per_view;
  b->chunks = (uint64_t)(last - b->first_shard + 1) * b->chunks_per_shard;
  pthread_mutex_init(&b->mutex, NULL);
  enum { MOST_THREADS = 64 };
  pthread_t threads[MOST_THREADS];
  uint64_t touched = b->count / cmkd_cache_layout_at(cache, b->layout)->array.chunk_samples + 1;
  int wanted = cmkd_cpu_count(), started = 0;
  if (wanted > MOST_THREADS) wanted = MOST_THREADS;
  if ((uint64_t)wanted > touched) wanted = (int)touched;
  while (started < wanted - 1 && pthread_create(threads + started, NULL, run, b) == 0)
    started++;
  run(b);
  for (int i = 0; i < started; i++)
    pthread_join(threads[i], NULL);
  pthread_mutex_destroy(&b->mutex);
  if (b->failure.status != CMKD_OK && err) *err = b->failure;
  return b->failure.status;
}

cmkd_status cmkd_cache_read(cmkd_cache *cache, uint32_t view, uint64_t first, uint64_t count, float *logits,
                            cmkd_error *err) {
  bulk b = {.view = view, .first = first, .count = count, .values = logits};
  return bulk_read(cache, &b, err);
}

cmkd_status cmkd_cache_read_array(cmkd_cache *cache, const char *name, uint32_t view, uint64_t first, uint64_t count,
                                  float *values, cmkd_error *err) {
  bulk b = {.view = view, .first = first, .count = count, .values = values};
  CMKD_TRY(cmkd_cache_layout(cache, name, &b.layout, err));
  return bulk_read(cache, &b, err);
}

int cmkd_cache_logit_bytes(const cmkd_cache *cache) { return cmkd_cache_layout_at(cache, 0)->codec->item; }

cmkd_status cmkd_cache_read_items(cmkd_cache *cache, uint32_t view, uint64_t first, uint64_t count, void *items,
                                  uint16_t *row_max, uint16_t *row_range, cmkd_error *err) {
  bulk b = {.view = view, .first = first, .count = count, .items = items, .row_max = row_max, .row_range = row_range};
  const cmkd_codec *codec = cmkd_cache_layout_at(cache, 0)->codec;
  if (codec->thin)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: codec %s is read decoded only", cache->path,
                     cache->info.identity.codec);
  if (codec->row_numbers && (!row_max || !row_range))
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: codec %s has numbers for each row; give room for them", cache->path,
                     cache->info.identity.codec);
  return bulk_read(cache, &b, err);
}

cmkd_status cmkd_cache_read_array_items(cmkd_cache *cache, const char *name, uint32_t view, uint64_t first,
                                        uint64_t count, void *items, cmkd_error *err) {
  bulk b = {.view = view, .first = first, .count = count, .items = items};
  CMKD_TRY(cmkd_cache_layout(cache, name, &b.layout, err));
  if (!b.layout) return cmkd_cache_read_items(cache, view, first, count, items, NULL, NULL, err);
  return bulk_read(cache, &b, err);
}
