/* Rows of one view in a given order. Worker threads read and decompress chunks in the order of their first use, into slots; the caller's
 * thread turns rows of those chunks into floats, right into the caller's buffer. A slot is free again when the last row of its chunk has
 * been delivered, so the memory is what the order itself needs plus a little read-ahead.
 *
 * A slot holds the chunk as zstd gives it (byte planes, 2 bytes a class for f16): half of what floats would take. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cpu.h"
#include "formats/cache_reader.h"

#define DEFAULT_MEMORY (1ull << 30)
#define SHARE 65536 /* classes in a delivery that is worth waking the workers for */
#define LOCATE 32 /* rows whose places are looked up, and prefetched, before the first of them is decoded */

/* x / d for 32-bit numbers by one multiplication (Lemire, Kaser, Kurz 2019): d > 1. */
typedef struct divider { uint64_t magic; uint32_t d; } divider;
static divider divider_of(uint32_t d) { return (divider){d > 1 ? UINT64_MAX / d + 1 : 0, d}; }
static inline uint32_t divide(divider by, uint32_t x) { return by.d > 1 ? (uint32_t)((unsigned __int128)by.magic * x >> 64) : x; }

typedef struct stream_chunk { uint32_t shard, block, rows_left; int32_t slot; atomic_int ready; } stream_chunk;

struct cmkd_stream {
  cmkd_cache *cache;
  uint32_t view, n, at;            /* at: rows delivered */
  int shared;                      /* every chunk is in its slot and stays there */
  const uint32_t *order;
  divider by_shard, by_chunk, by_last_chunk; /* the last shard may have smaller chunks */
  uint32_t last_shard, *first_chunk;         /* (shards): number of a shard's first chunk */
  stream_chunk *chunks; uint32_t chunk_count;
  uint32_t *schedule, scheduled;             /* chunks in order of first use */
  cmkd_region region; size_t slot_size; uint32_t slot_count; /* slots, one after the other */
  uint64_t *seeds;                 /* (samples) of the view, loaded when first asked for */
  uint16_t *row_max, *row_range;   /* (samples) or NULL */
  pthread_t *threads; int thread_count;
  pthread_mutex_t mutex;           /* guards the rest */
  pthread_cond_t work, chunk_ready; /* a slot came free or a delivery is to be shared; a chunk is there */
  uint32_t next;                   /* schedule entry that a worker takes next */
  int32_t *free_slots; uint32_t free_count;
  int stop, waiting;
  uint32_t decoded;                /* chunks */
  cmkd_error failure;
  /* A large delivery out of chunks that are all there is shared with the workers. */
  const uint32_t *job_order; float *job_out; uint32_t job_count, job_serial; int job_helpers;
  atomic_uint job_next;
  pthread_cond_t job_done;
};

typedef struct place { uint32_t chunk, row; } place;
static inline place locate(const cmkd_stream *s, uint32_t sample) {
  uint32_t shard = divide(s->by_shard, sample), inside = sample - shard * s->by_shard.d;
  divider by = shard == s->last_shard ? s->by_last_chunk : s->by_chunk;
  uint32_t block = divide(by, inside);
  return (place){s->first_chunk[shard] + block, inside - block * by.d};
}

static inline uint8_t *slot_bytes(const cmkd_stream *s, int32_t slot) { return s->region.bytes + (size_t)slot * s->slot_size; }

static void decode_rows(const cmkd_stream *s, const stream_chunk *chunk, uint32_t row, uint32_t rows, float *out) {
  const cmkd_shard *shard = s->cache->shards + chunk->shard;
  size_t C = s->cache->info.classes, first = shard->meta.first + (size_t)chunk->block * shard->rows;
  cmkd_chunk_view view = {slot_bytes(s, chunk->slot), (size_t)shard->rows * C, C, s->row_max ? s->row_max + first : NULL, s->row_max ? s->row_range + first : NULL};
  s->cache->codec->decode(&view, row, rows, out);
}

static void prefetch(const cmkd_stream *s, const stream_chunk *chunk, uint32_t row) {
  const cmkd_shard *shard = s->cache->shards + chunk->shard;
  size_t C = s->cache->info.classes, plane = shard->rows * C;
  for (int p = 0; p < s->cache->codec->item; p++) {
    const uint8_t *at = slot_bytes(s, chunk->slot) + (size_t)p * plane + row * C;
    for (size_t i = 0; i < C && i < 512; i += 64) __builtin_prefetch(at + i);
    __builtin_prefetch(at + C - 1);
  }
}

static inline uint32_t run_of(const place *places, uint32_t count) { /* neighbours in one chunk */
  uint32_t run = 1;
  while (run < count && places[run].chunk == places->chunk && places[run].row == places->row + run) run++;
  return run;
}

/* Rows of chunks that are all there. */
static void gather(const cmkd_stream *s, const uint32_t *order, uint32_t count, float *out) {
  place places[LOCATE];
  size_t C = s->cache->info.classes;
  for (uint32_t at = 0; at < count; at += LOCATE) {
    uint32_t rows = count - at < LOCATE ? count - at : LOCATE;
    for (uint32_t i = 0; i < rows; i++) {
      places[i] = locate(s, order[at + i]);
      prefetch(s, s->chunks + places[i].chunk, places[i].row);
    }
    for (uint32_t i = 0, run; i < rows; i += run) {
      run = run_of(places + i, rows - i);
      decode_rows(s, s->chunks + places[i].chunk, places[i].row, run, out + (at + i) * C);
    }
  }
}

static void share(cmkd_stream *s) {
  enum { PIECE = 2 * LOCATE };
  for (uint32_t at; (at = atomic_fetch_add(&s->job_next, PIECE)) < s->job_count;)
    gather(s, s->job_order + at, s->job_count - at < PIECE ? s->job_count - at : PIECE, s->job_out + (size_t)at * s->cache->info.classes);
}

/* Decodes the chunk that the schedule has next. The mutex is held on entry and exit. */
static void take_chunk(cmkd_stream *s, cmkd_chunk_coder *coder, uint8_t *stored, cmkd_error *err) {
  stream_chunk *chunk = s->chunks + s->schedule[s->next++];
  int32_t slot = s->free_slots[--s->free_count];
  pthread_mutex_unlock(&s->mutex);
  cmkd_status status = cmkd_shard_chunk(s->cache, s->cache->shards + chunk->shard, s->view, chunk->block, coder, stored, slot_bytes(s, slot), err);
  chunk->slot = slot;
  pthread_mutex_lock(&s->mutex);
  if (status == CMKD_OK) {
    atomic_store_explicit(&chunk->ready, 1, memory_order_release);
    s->decoded++;
  }
  if (s->waiting) pthread_cond_signal(&s->chunk_ready);
}

static void *worker(void *argument) {
  cmkd_stream *s = argument;
  cmkd_chunk_coder *coder = cmkd_chunk_coder_create();
  uint8_t *stored = malloc(cmkd_cache_stored_bound(s->cache));
  uint32_t seen = 0;
  cmkd_error err = {0};
  if (!coder || !stored) cmkd_fail(&err, CMKD_ERR_MEMORY, "%s: no memory to read it", s->cache->path);
  pthread_mutex_lock(&s->mutex);
  while (err.status == CMKD_OK && !s->stop) {
    if (s->job_count && s->job_serial != seen) {
      seen = s->job_serial;
      s->job_helpers++;
      pthread_mutex_unlock(&s->mutex);
      share(s);
      pthread_mutex_lock(&s->mutex);
      if (!--s->job_helpers) pthread_cond_signal(&s->job_done);
    } else if (s->next < s->scheduled && s->free_count) take_chunk(s, coder, stored, &err);
    else pthread_cond_wait(&s->work, &s->mutex);
  }
  if (err.status != CMKD_OK) {
    if (s->failure.status == CMKD_OK) s->failure = err;
    s->stop = 1;
    pthread_cond_broadcast(&s->work);
    pthread_cond_signal(&s->chunk_ready);
  }
  pthread_mutex_unlock(&s->mutex);
  cmkd_chunk_coder_free(coder);
  free(stored);
  return NULL;
}

static int by_number(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

/* Fills schedule and rows_left; *live: most chunks that are needed at one time. */
static cmkd_status plan(cmkd_stream *s, uint32_t *live, cmkd_error *err) {
  uint32_t *first = malloc(((size_t)s->chunk_count + 1) * 2 * sizeof *first), *last = first ? first + s->chunk_count : NULL;
  if (!first) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to plan an epoch", s->cache->path);
  for (uint32_t i = 0; i < s->n; i++) {
    if (s->order[i] >= s->cache->info.samples) {
      free(first);
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: row %u of the order asks for sample %u; there are %llu", s->cache->path, i, s->order[i], (unsigned long long)s->cache->info.samples);
    }
    uint32_t g = locate(s, s->order[i]).chunk;
    if (!s->chunks[g].rows_left++) { s->schedule[s->scheduled] = g; first[s->scheduled++] = i; }
    last[g] = i;
  }
  uint32_t ends = 0; /* gather the last uses of the scheduled chunks, in order */
  for (uint32_t g = 0; g < s->chunk_count; g++) if (s->chunks[g].rows_left) last[ends++] = last[g];
  qsort(last, ends, sizeof *last, by_number);
  *live = 0;
  for (uint32_t i = 0, ended = 0; i < s->scheduled; i++) {
    while (ended < ends && last[ended] < first[i]) ended++;
    if (i + 1 - ended > *live) *live = i + 1 - ended;
  }
  free(first);
  return CMKD_OK;
}

static cmkd_status allocate(cmkd_stream *s, cmkd_error *err) {
  const cmkd_cache *cache = s->cache;
  const cmkd_cache_head *head = &cache->master.head;
  s->first_chunk = malloc(head->shards * sizeof *s->first_chunk);
  for (uint32_t k = 0; s->first_chunk && k < head->shards; k++) { s->first_chunk[k] = s->chunk_count; s->chunk_count += cache->shards[k].meta.blocks; }
  s->chunks = calloc(s->chunk_count, sizeof *s->chunks);
  s->schedule = malloc(s->chunk_count * sizeof *s->schedule);
  if (!s->first_chunk || !s->chunks || !s->schedule) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to plan an epoch", cache->path);
  for (uint32_t k = 0, g = 0; k < head->shards; k++)
    for (uint32_t b = 0; b < cache->shards[k].meta.blocks; b++, g++) { s->chunks[g].shard = k; s->chunks[g].block = b; }
  s->last_shard = head->shards - 1;
  s->by_shard = divider_of(head->shard_rows);
  s->by_chunk = divider_of(head->chunk_rows);
  s->by_last_chunk = divider_of(cache->shards[s->last_shard].rows);
  if (!cache->codec->row_numbers) return CMKD_OK;
  s->row_max = malloc(cache->info.samples * 4);
  if (!s->row_max) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for its row numbers", cache->path);
  s->row_range = s->row_max + cache->info.samples;
  for (uint32_t k = 0; k < head->shards; k++) {
    const cmkd_shard *shard = cache->shards + k;
    CMKD_TRY(cmkd_shard_row_numbers(shard, s->view, s->row_max + shard->meta.first, s->row_range + shard->meta.first, err));
  }
  return CMKD_OK;
}

static cmkd_status make_slots(cmkd_stream *s, uint32_t live, uint64_t memory, cmkd_error *err) {
  const cmkd_cache_head *head = &s->cache->master.head;
  uint64_t raw = (uint64_t)head->chunk_rows * head->classes * (uint64_t)s->cache->codec->item, most = memory / raw;
  if (most < live) {
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: this order needs %.2f GB of decoded chunks at once, the limit is %.2f GB; use --shuffle-block (for example %u) or raise the limit (--stream-memory MB)", s->cache->path,
                     (double)live * (double)raw / 1e9, (double)memory / 1e9, head->chunk_rows);
  }
  uint64_t wanted = (uint64_t)live + 8 + 16 * (uint64_t)s->thread_count; /* rides out a busy scheduler; more would only leave the cache */
  s->slot_count = (uint32_t)(wanted < most ? wanted : most);
  if (s->slot_count > s->scheduled) s->slot_count = s->scheduled;
  s->slot_size = ((size_t)raw + 63) / 64 * 64;
  s->region = cmkd_region_take(s->cache, (s->slot_count + 1) * s->slot_size);
  s->free_slots = malloc((s->slot_count + 1) * sizeof *s->free_slots);
  s->threads = calloc((size_t)s->thread_count, sizeof *s->threads);
  if (!s->region.size || !s->free_slots || !s->threads) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to stream it", s->cache->path);
  for (uint32_t i = 0; i < s->slot_count; i++) s->free_slots[s->free_count++] = (int32_t)(s->slot_count - 1 - i);
  return CMKD_OK;
}

cmkd_status cmkd_stream_open(cmkd_cache *cache, uint32_t view, const uint32_t *order, uint32_t n, const cmkd_stream_options *options, cmkd_stream **out, cmkd_error *err) {
  *out = NULL;
  if (view >= cache->info.views) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: view %u does not exist; it has %u", cache->path, view, cache->info.views);
  cmkd_stream *s = calloc(1, sizeof *s);
  if (!s) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to stream it", cache->path);
  uint64_t memory = options && options->memory ? options->memory : DEFAULT_MEMORY;
  int threads = options && options->threads > 0 ? options->threads : cmkd_cpu_count();
  uint32_t live = 0;
  s->cache = cache;
  s->view = view;
  s->order = order;
  s->n = n;
  pthread_mutex_init(&s->mutex, NULL);
  pthread_cond_init(&s->work, NULL);
  pthread_cond_init(&s->chunk_ready, NULL);
  pthread_cond_init(&s->job_done, NULL);
  cmkd_status status = allocate(s, err);
  if (status == CMKD_OK) status = plan(s, &live, err);
  int workers = (uint32_t)threads < s->scheduled ? threads : (int)s->scheduled;
  s->thread_count = workers > 0 ? workers : 1;
  if (status == CMKD_OK) status = make_slots(s, live, memory, err);
  int started = 0;
  while (status == CMKD_OK && started < s->thread_count && pthread_create(s->threads + started, NULL, worker, s) == 0) started++;
  s->thread_count = started;
  if (status == CMKD_OK && !started) status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: cannot start a thread", cache->path);
  if (status != CMKD_OK) { cmkd_stream_free(s); return status; }
  *out = s;
  return CMKD_OK;
}

void cmkd_stream_free(cmkd_stream *s) {
  if (!s) return;
  pthread_mutex_lock(&s->mutex);
  s->stop = 1;
  pthread_cond_broadcast(&s->work);
  pthread_mutex_unlock(&s->mutex);
  for (int i = 0; s->threads && i < s->thread_count; i++) pthread_join(s->threads[i], NULL);
  cmkd_region_return(s->cache, s->region);
  pthread_mutex_destroy(&s->mutex);
  pthread_cond_destroy(&s->work);
  pthread_cond_destroy(&s->chunk_ready);
  pthread_cond_destroy(&s->job_done);
  free(s->threads);
  free(s->free_slots);
  free(s->first_chunk);
  free(s->chunks);
  free(s->schedule);
  free(s->seeds);
  free(s->row_max);
  free(s);
}

static cmkd_status wait_for(cmkd_stream *s, stream_chunk *chunk, cmkd_error *err) {
  if (atomic_load_explicit(&chunk->ready, memory_order_acquire)) return CMKD_OK;
  pthread_mutex_lock(&s->mutex);
  s->waiting = 1;
  while (!atomic_load_explicit(&chunk->ready, memory_order_relaxed) && s->failure.status == CMKD_OK) pthread_cond_wait(&s->chunk_ready, &s->mutex);
  s->waiting = 0;
  cmkd_status status = atomic_load_explicit(&chunk->ready, memory_order_relaxed) ? CMKD_OK : s->failure.status;
  if (status != CMKD_OK && err) *err = s->failure;
  pthread_mutex_unlock(&s->mutex);
  return status;
}

static void release(cmkd_stream *s, stream_chunk *chunk) {
  pthread_mutex_lock(&s->mutex);
  s->free_slots[s->free_count++] = chunk->slot;
  pthread_cond_signal(&s->work);
  pthread_mutex_unlock(&s->mutex);
}

/* Up to LOCATE rows: waits for the first one's chunk, looks at as many others as are there, decodes run by run. Waiting for a later one
 * could wait for a slot that only the rows before it free. *done: rows delivered, at least one. */
static cmkd_status deliver(cmkd_stream *s, const uint32_t *order, uint32_t count, float *logits, uint32_t *done, cmkd_error *err) {
  place places[LOCATE];
  size_t C = s->cache->info.classes;
  for (uint32_t i = 0; i < count; i++) {
    places[i] = locate(s, order[i]);
    if (!i) CMKD_TRY(wait_for(s, s->chunks + places[i].chunk, err));
    else if (!atomic_load_explicit(&s->chunks[places[i].chunk].ready, memory_order_acquire)) { count = i; break; }
    prefetch(s, s->chunks + places[i].chunk, places[i].row);
  }
  for (uint32_t i = 0, run; i < count; i += run) {
    stream_chunk *chunk = s->chunks + places[i].chunk;
    run = run_of(places + i, count - i);
    decode_rows(s, chunk, places[i].row, run, logits + i * C);
    if (!(chunk->rows_left -= run)) release(s, chunk);
  }
  *done = count;
  return CMKD_OK;
}

/* Rows that follow each other in one chunk need no look-up each. */
static uint32_t straight_run(const cmkd_stream *s, const uint32_t *order, uint32_t count, place at) {
  const stream_chunk *chunk = s->chunks + at.chunk;
  const cmkd_shard *shard = s->cache->shards + chunk->shard;
  uint32_t end = (chunk->block + 1) * shard->rows, most = (end < shard->meta.samples ? end : shard->meta.samples) - chunk->block * shard->rows - at.row, run = 1;
  if (count < most) most = count;
  while (run < most && order[run] == order[0] + run) run++;
  return run;
}

/* Everything that is left of the order is decoded: from here on no slot needs to come free. */
static int all_there(cmkd_stream *s) {
  pthread_mutex_lock(&s->mutex);
  int all = s->decoded == s->scheduled;
  pthread_mutex_unlock(&s->mutex);
  return all;
}

static void deliver_shared(cmkd_stream *s, const uint32_t *order, uint32_t count, float *logits) {
  pthread_mutex_lock(&s->mutex);
  s->job_order = order;
  s->job_out = logits;
  s->job_count = count;
  s->job_serial++;
  atomic_store(&s->job_next, 0);
  pthread_cond_broadcast(&s->work);
  pthread_mutex_unlock(&s->mutex);
  share(s);
  pthread_mutex_lock(&s->mutex);
  s->job_count = 0; /* late wakers stay out */
  while (s->job_helpers) pthread_cond_wait(&s->job_done, &s->mutex);
  pthread_mutex_unlock(&s->mutex);
}

cmkd_status cmkd_stream_next(cmkd_stream *s, uint32_t count, float *logits, uint64_t *seeds, cmkd_error *err) {
  size_t C = s->cache->info.classes;
  if (count > s->n - s->at) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u rows asked for, %u are left of this epoch", s->cache->path, count, s->n - s->at);
  const uint32_t *order = s->order + s->at;
  if (seeds && !s->seeds) {
    s->seeds = malloc(s->cache->info.samples * sizeof *s->seeds);
    if (!s->seeds) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for its seeds", s->cache->path);
    cmkd_status status = cmkd_cache_seeds(s->cache, s->view, s->seeds, err);
    if (status != CMKD_OK) { free(s->seeds); s->seeds = NULL; return status; }
  }
  for (uint32_t i = 0; seeds && i < count; i++) seeds[i] = s->seeds[order[i]];
  if (s->shared || (s->slot_count == s->scheduled && s->thread_count > 1 && count * C >= SHARE && all_there(s))) {
    s->shared = 1;
    if (count * C >= SHARE) deliver_shared(s, order, count, logits);
    else gather(s, order, count, logits);
    s->at += count;
    return CMKD_OK;
  }
  for (uint32_t i = 0; i < count;) {
    place at = locate(s, order[i]);
    stream_chunk *chunk = s->chunks + at.chunk;
    uint32_t run = straight_run(s, order + i, count - i, at), step;
    if (run >= 4) {
      step = run;
      CMKD_TRY(wait_for(s, chunk, err));
      decode_rows(s, chunk, at.row, run, logits + i * C);
      if (!(chunk->rows_left -= run)) release(s, chunk);
    } else {
      step = count - i < LOCATE ? count - i : LOCATE;
      CMKD_TRY(deliver(s, order + i, step, logits + i * C, &step, err));
    }
    i += step;
    s->at += step;
  }
  return CMKD_OK;
}
