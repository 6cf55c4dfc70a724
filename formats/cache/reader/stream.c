/* Rows of one view in a given order. Threads read and decompress chunks in the order of their first use, into slots; a
 * slot is free again when the last row of its chunk has been delivered, so the memory is what the order itself needs
 * plus a little read-ahead. A slot holds the chunk as zstd gives it (byte planes, 2 bytes a class for f16): half of
 * what floats would take.
 *
 * Where the order runs straight, the caller turns rows of a slot into floats, right into its buffer. Where it jumps,
 * each row is a few cache misses: then threads also gather the rows of the next pieces of the order, still as byte
 * planes, into a small ring, and the caller converts from there. Where it jumps all over the cache, nearly everything
 * has to be decoded before the first row: then no slots are kept, and the rows of a chunk, while it is in the core's
 * cache, are scattered to their place in the order with stores that read nothing; gathering is sequential afterwards. A
 * caller whose rows are not there yet takes part in this work instead of sleeping. */
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "base/cpu.h"
#include "formats/cache/reader/order.h"

#define DEFAULT_MEMORY (1ull << 30)
#define PIECE_BYTES 65536 /* of a gathered piece: what a core's own cache holds beside the rest */
#define AHEAD 16          /* rows whose places are looked up and fetched before they are copied */
#define TOGETHER 32       /* rows that are scattered together */
#define SLACK 64          /* bytes that copies may run over */

typedef struct stream_slot {
  int32_t index;
  atomic_uint ready;
} stream_slot; /* of a chunk */

/* One piece of the order: item byte p of row r, class c at bytes[p * plane + r * C + c]. */
typedef struct stream_piece {
  uint8_t *bytes;
  uint16_t *row_max, *row_range;
  atomic_uint holds;
} stream_piece; /* holds: piece + 1 */

typedef struct worker {
  cmkd_chunk_coder *coder;
  uint8_t *stored, *raw, *row;
} worker; /* what a thread works with; raw, row: to scatter */

struct cmkd_stream {
  cmkd_cache *cache;
  uint32_t view, at; /* at: rows delivered */
  cmkd_order_plan plan;
  stream_slot *slots; /* (plan.chunk_count): where a chunk is */
  cmkd_region region;
  size_t slot_size;
  uint32_t slot_count; /* slots, then pieces */
  uint8_t *table;
  size_t stride; /* scattered rows (plan.n), each one plane after the other */
  stream_piece *ring;
  uint32_t ring_size;
  size_t plane;                  /* empty when the plan has no pieces */
  uint64_t *seeds;               /* (samples) of the view, loaded when first asked for */
  uint16_t *row_max, *row_range; /* (samples) or NULL */
  pthread_t *threads;
  int thread_count, helps; /* helps: the caller works, too */
  worker caller;
  pthread_mutex_t mutex;                    /* guards the rest */
  pthread_cond_t work, progress;            /* there is something to do; a chunk or a piece is there */
  uint32_t next, prefix;                    /* schedule: taken; all there up to here */
  uint32_t next_piece, gathered, delivered; /* pieces: taken; all there; converted */
  uint32_t retired;                         /* of plan.retire */
  int32_t *free_slots;
  uint32_t free_count;
  int stop, waiting, sleeping;
  cmkd_error failure;
};

static inline size_t round_up(size_t size) { return (size + 63) / 64 * 64; }

static inline uint8_t *slot_bytes(const cmkd_stream *s, uint32_t chunk) {
  return s->region.bytes + (size_t)s->slots[chunk].index * s->slot_size;
}

static void decode_rows(const cmkd_stream *s, cmkd_row_location at, uint32_t rows, float *out) {
  const cmkd_order_chunk *chunk = s->plan.chunks + at.chunk;
  const cmkd_shard *shard = s->cache->shards + chunk->shard;
  size_t C = s->cache->info.classes, first = shard->meta.first + (size_t)chunk->block * shard->rows;
  cmkd_chunk_view view = {slot_bytes(s, at.chunk), (size_t)shard->rows * C, C, s->row_max ? s->row_max + first : NULL,
                          s->row_max ? s->row_range + first : NULL};
  s->cache->codec->decode(&view, at.row, rows, out);
}

/* ---- gathering: rows of many chunks into one piece ---- */

typedef struct source {
  const uint8_t *bytes;
  size_t plane;
} source;

static inline source look_up(const cmkd_stream *s, uint32_t row, int item, size_t C) {
  if (s->table) return (source){s->table + row * s->stride, C};
  uint32_t sample = s->plan.order[row];
  cmkd_row_location at = cmkd_order_locate(&s->plan, sample);
  size_t plane = s->cache->shards[s->plan.chunks[at.chunk].shard].rows * C;
  source from = {slot_bytes(s, at.chunk) + at.row * C, plane};
  for (int p = 0; p < item; p++) {
    const uint8_t *bytes = from.bytes + (size_t)p * plane;
    for (size_t i = 0; i < C && i < 512; i += 64)
      __builtin_prefetch(bytes + i);
    __builtin_prefetch(bytes + C - 1);
  }
  return from;
}

static inline void copy_over(uint8_t *to, const uint8_t *from,
                             size_t size) { /* up to 31 bytes more, which the next row overwrites */
  for (size_t i = 0; i < size; i += 32)
    memcpy(to + i, from + i, 32);
}

static inline void store_line(uint8_t *to, const uint8_t *from) {
#if defined(__SSE2__)
  for (int i = 0; i < 64; i += 16)
    _mm_stream_si128((__m128i *)(void *)(to + i), _mm_load_si128((const __m128i *)(const void *)(from + i)));
#else
  memcpy(to, from, 64);
#endif
}

/* The rows of a decoded chunk go to their places in the order. */
static void scatter(const cmkd_stream *s, const cmkd_order_chunk *chunk, const worker *with) {
  const cmkd_shard *shard = s->cache->shards + chunk->shard;
  size_t C = s->cache->info.classes, plane = shard->rows * C, item = (size_t)s->cache->codec->item;
  uint32_t start = chunk->block * shard->rows, left = shard->meta.samples - start,
           rows = left < shard->rows ? left : shard->rows;
  const uint32_t *position = s->plan.position + shard->meta.first + start;
  if (s->stride % 64) { /* short rows */
    for (uint32_t r = 0; r < rows; r++)
      for (size_t p = 0; p < item && position[r] != UINT32_MAX; p++)
        memcpy(s->table + position[r] * s->stride + p * C, with->raw + p * plane + r * C, C);
    return;
  }
  /* Several rows are put together before the first of them leaves: reading back what was just written would wait behind
   * the stores. */
  for (uint32_t r = 0, step; r < rows; r += step) {
    step = rows - r < TOGETHER ? rows - r : TOGETHER;
    for (uint32_t i = 0; i < step; i++)
      for (size_t p = 0; p < item; p++)
        copy_over(with->row + i * s->stride + p * C, with->raw + p * plane + (r + i) * C, C);
    for (uint32_t i = 0; i < step; i++)
      for (size_t k = 0; k < s->stride && position[r + i] != UINT32_MAX; k += 64)
        store_line(s->table + position[r + i] * s->stride + k, with->row + i * s->stride + k);
  }
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

static void gather(const cmkd_stream *s, uint32_t piece, stream_piece *target) {
  const cmkd_order_plan *plan = &s->plan;
  size_t C = s->cache->info.classes;
  int item = s->cache->codec->item;
  uint32_t start = piece * plan->piece_rows,
           rows = plan->n - start < plan->piece_rows ? plan->n - start : plan->piece_rows;
  const uint32_t *order = plan->order + start;
  source sources[2 * AHEAD];
  for (uint32_t i = 0; i < rows + AHEAD; i++) {
    if (i >= AHEAD) {
      const source *from = sources + (i - AHEAD) % (2 * AHEAD);
      for (int p = 0; p < item; p++)
        copy_over(target->bytes + (size_t)p * s->plane + (i - AHEAD) * C, from->bytes + (size_t)p * from->plane, C);
    }
    if (i < rows) sources[i % (2 * AHEAD)] = look_up(s, start + i, item, C);
  }
  for (uint32_t i = 0; s->row_max && i < rows; i++) {
    target->row_max[i] = s->row_max[order[i]];
    target->row_range[i] = s->row_range[order[i]];
  }
}

/* ---- work, taken by any thread; the mutex is held on entry and exit ---- */

static int piece_due(const cmkd_stream *s) {
  return s->next_piece < s->plan.pieces && s->plan.needs[s->next_piece] <= s->prefix &&
         s->next_piece - s->delivered < s->ring_size;
}
static int chunk_due(const cmkd_stream *s) { return s->next < s->plan.scheduled && (s->table || s->free_count); }

static void wake(cmkd_stream *s) {
  if (s->waiting) pthread_cond_signal(&s->progress);
  if (s->sleeping && (piece_due(s) || chunk_due(s))) pthread_cond_signal(&s->work);
}

/* Slots whose last row lies before row `done` of the order come free. */
static void retire(cmkd_stream *s, uint32_t done) {
  const cmkd_order_plan *plan = &s->plan;
  for (; !s->table && s->retired < plan->scheduled && plan->chunks[plan->retire[s->retired]].last < done; s->retired++)
    s->free_slots[s->free_count++] = s->slots[plan->retire[s->retired]].index;
}

static void take_piece(cmkd_stream *s) {
  uint32_t piece = s->next_piece++;
  stream_piece *target = s->ring + piece % s->ring_size;
  pthread_mutex_unlock(&s->mutex);
  gather(s, piece, target);
  pthread_mutex_lock(&s->mutex);
  atomic_store_explicit(&target->holds, piece + 1, memory_order_release);
  while (s->gathered < s->next_piece &&
         atomic_load_explicit(&s->ring[s->gathered % s->ring_size].holds, memory_order_relaxed) == s->gathered + 1)
    s->gathered++;
  retire(s, s->gathered < s->plan.pieces ? s->gathered * s->plan.piece_rows : s->plan.n);
}

static cmkd_status take_chunk(cmkd_stream *s, const worker *with, cmkd_error *err) {
  uint32_t number = s->plan.schedule[s->next++];
  const cmkd_order_chunk *chunk = s->plan.chunks + number;
  stream_slot *slot = s->slots + number;
  if (!s->table) slot->index = s->free_slots[--s->free_count];
  pthread_mutex_unlock(&s->mutex);
  cmkd_status status = cmkd_shard_chunk(s->cache, s->cache->shards + chunk->shard, s->view, chunk->block, with->coder,
                                        with->stored, s->table ? with->raw : slot_bytes(s, number), err);
  if (s->table && status == CMKD_OK) scatter(s, chunk, with);
  pthread_mutex_lock(&s->mutex);
  if (status != CMKD_OK) return status;
  atomic_store_explicit(&slot->ready, 1, memory_order_release);
  while (s->prefix < s->next &&
         atomic_load_explicit(&s->slots[s->plan.schedule[s->prefix]].ready, memory_order_relaxed))
    s->prefix++;
  return CMKD_OK;
}

/* Does one thing that is due; 0: nothing is. */
static int work_once(cmkd_stream *s, const worker *with) {
  cmkd_error err = {0};
  if (piece_due(s))
    take_piece(s);
  else if (!chunk_due(s))
    return 0;
  else if (take_chunk(s, with, &err) != CMKD_OK) {
    if (s->failure.status == CMKD_OK) s->failure = err;
    s->stop = 1;
    pthread_cond_broadcast(&s->work);
  }
  wake(s);
  return 1;
}

static int worker_make(worker *h, const cmkd_stream *s) {
  size_t row = s->cache->info.classes * (size_t)s->cache->codec->item;
  *h = (worker){.coder = cmkd_chunk_coder_create(), .stored = malloc(cmkd_cache_stored_bound(s->cache))};
  if (!s->table) return h->coder && h->stored;
  h->raw = malloc(s->cache->master.head.chunk_rows * row + SLACK);
  h->row = aligned_alloc(64, TOGETHER * round_up(row) + SLACK);
  return h->coder && h->stored && h->raw && h->row;
}
static void worker_free(worker *h) {
  cmkd_chunk_coder_free(h->coder);
  free(h->stored);
  free(h->raw);
  free(h->row);
}

static void *run_worker(void *argument) {
  cmkd_stream *s = argument;
  worker mine;
  int fine = worker_make(&mine, s);
  pthread_mutex_lock(&s->mutex);
  if (!fine) {
    if (s->failure.status == CMKD_OK)
      cmkd_fail(&s->failure, CMKD_ERR_MEMORY, "%s: no memory to read it", s->cache->path);
    s->stop = 1;
    wake(s);
  }
  while (!s->stop) {
    if (work_once(s, &mine)) continue;
    s->sleeping++;
    pthread_cond_wait(&s->work, &s->mutex);
    s->sleeping--;
  }
  pthread_mutex_unlock(&s->mutex);
  worker_free(&mine);
  return NULL;
}

/* ---- opening ---- */

static cmkd_status load_row_numbers(cmkd_stream *s, cmkd_error *err) {
  const cmkd_cache *cache = s->cache;
  if (!cache->codec->row_numbers) return CMKD_OK;
  s->row_max = malloc(cache->info.samples * 4);
  if (!s->row_max) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for its row numbers", cache->path);
  s->row_range = s->row_max + cache->info.samples;
  for (uint32_t k = 0; k < cache->info.shards; k++) {
    const cmkd_shard *shard = cache->shards + k;
    CMKD_TRY(
        cmkd_shard_row_numbers(shard, s->view, s->row_max + shard->meta.first, s->row_range + shard->meta.first, err));
  }
  return CMKD_OK;
}

static cmkd_status evict_chunks(cmkd_stream *s, uint64_t memory, int threads, cmkd_error *err) {
  const cmkd_cache_head *head = &s->cache->master.head;
  size_t item = (size_t)s->cache->codec->item, row = head->classes * item, raw = head->chunk_rows * row;
  uint64_t most = memory / raw, wanted;
  uint32_t piece_rows = (uint32_t)(PIECE_BYTES / row + 16);
  s->stride = row < 128 ? row : round_up(row);
  CMKD_TRY(
      cmkd_order_plan_make(&s->plan, s->cache, s->plan.order, s->plan.n, piece_rows, most, memory / s->stride, err));
  if (most < s->plan.live) {
    return cmkd_fail(err, CMKD_ERR_MEMORY,
                     "%s: this order needs %.2f GB of decoded chunks at once, the limit is %.2f GB; use "
                     "--shuffle-block (for example %u) "
                     "or raise the limit (--stream-memory MB)",
                     s->cache->path, (double)s->plan.live * (double)raw / 1e9, (double)memory / 1e9, head->chunk_rows);
  }
  wanted = (uint64_t)s->plan.live + 8 +
           8 * (uint64_t)threads; /* rides out a busy scheduler; more would only leave the cache */
  s->slot_count = (uint32_t)(wanted < most ? wanted : most);
  if (s->slot_count > s->plan.scheduled) s->slot_count = s->plan.scheduled;
  if (s->plan.position) s->slot_count = 0;
  s->slot_size = round_up(raw);
  s->ring_size = s->plan.pieces ? 4 + 4 * (uint32_t)threads : 0;
  s->plane = round_up((size_t)piece_rows * head->classes) + SLACK;
  size_t piece_size = item * s->plane + round_up((size_t)piece_rows * 4),
         slots_size = round_up(s->plan.position ? s->plan.n * s->stride : s->slot_count * s->slot_size) + SLACK;
  s->region = cmkd_region_take(s->cache, slots_size + s->ring_size * piece_size);
  s->free_slots = malloc(((size_t)s->slot_count + 1) * sizeof *s->free_slots);
  s->slots = calloc((size_t)s->plan.chunk_count, sizeof *s->slots);
  s->ring = calloc((size_t)s->ring_size + 1, sizeof *s->ring);
  s->threads = calloc((size_t)threads, sizeof *s->threads);
  if (!s->region.size || !s->free_slots || !s->slots || !s->ring || !s->threads)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to stream it", s->cache->path);
  if (s->plan.position) s->table = s->region.bytes;
  if (!worker_make(&s->caller, s)) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to stream it", s->cache->path);
  for (uint32_t i = 0; i < s->slot_count; i++)
    s->free_slots[s->free_count++] = (int32_t)(s->slot_count - 1 - i);
  for (uint32_t i = 0; i < s->ring_size; i++) {
    s->ring[i].bytes = s->region.bytes + slots_size + i * piece_size;
    s->ring[i].row_max = (uint16_t *)(void *)(s->ring[i].bytes + item * s->plane);
    s->ring[i].row_range = s->ring[i].row_max + piece_rows;
  }
  return CMKD_OK;
}

cmkd_status cmkd_stream_open(cmkd_cache *cache, uint32_t view, const uint32_t *order, uint32_t n,
                             const cmkd_stream_options *options, cmkd_stream **out, cmkd_error *err) {
  *out = NULL;
  CMKD_TRY(cmkd_cache_check_view(cache, view, err));
  cmkd_stream *s = calloc(1, sizeof *s);
  if (!s) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to stream it", cache->path);
  int threads = options && options->threads > 0 ? options->threads : cmkd_cpu_count();
  s->cache = cache;
  s->view = view;
  s->plan.order = order;
  s->plan.n = n;
  s->helps = threads > 1;
  threads -= s->helps; /* the caller is one of them whenever it would wait */
  pthread_mutex_init(&s->mutex, NULL);
  pthread_cond_init(&s->work, NULL);
  pthread_cond_init(&s->progress, NULL);
  cmkd_status status = evict_chunks(s, options && options->memory ? options->memory : DEFAULT_MEMORY, threads, err);
  if (status == CMKD_OK) status = load_row_numbers(s, err);
  if ((uint32_t)threads > s->plan.scheduled) threads = s->plan.scheduled ? (int)s->plan.scheduled : 1;
  while (status == CMKD_OK && s->thread_count < threads &&
         pthread_create(s->threads + s->thread_count, NULL, run_worker, s) == 0)
    s->thread_count++;
  if (status == CMKD_OK && !s->thread_count)
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: cannot start a thread", cache->path);
  if (status != CMKD_OK) {
    cmkd_stream_free(s);
    return status;
  }
  *out = s;
  return CMKD_OK;
}

void cmkd_stream_free(cmkd_stream *s) {
  if (!s) return;
  pthread_mutex_lock(&s->mutex);
  s->stop = 1;
  pthread_cond_broadcast(&s->work);
  pthread_mutex_unlock(&s->mutex);
  for (int i = 0; i < s->thread_count; i++)
    pthread_join(s->threads[i], NULL);
  cmkd_region_return(s->cache, s->region);
  pthread_mutex_destroy(&s->mutex);
  pthread_cond_destroy(&s->work);
  pthread_cond_destroy(&s->progress);
  cmkd_order_plan_free(&s->plan);
  worker_free(&s->caller);
  free(s->threads);
  free(s->free_slots);
  free(s->slots);
  free(s->ring);
  free(s->seeds);
  free(s->row_max);
  free(s);
}

/* ---- delivering ---- */

/* Until *word is `value`: the ready of a chunk's slot (1) or what a piece of the ring holds. */
static cmkd_status wait_for(cmkd_stream *s, const atomic_uint *word, uint32_t value, cmkd_error *err) {
  if (atomic_load_explicit(word, memory_order_acquire) == value) return CMKD_OK;
  cmkd_status status = CMKD_OK;
  pthread_mutex_lock(&s->mutex);
  while (atomic_load_explicit(word, memory_order_relaxed) != value && (status = s->failure.status) == CMKD_OK) {
    if (s->helps && work_once(s, &s->caller)) continue;
    s->waiting = 1;
    pthread_cond_wait(&s->progress, &s->mutex);
    s->waiting = 0;
  }
  if (status != CMKD_OK && err) *err = s->failure;
  pthread_mutex_unlock(&s->mutex);
  return status;
}

static cmkd_status deliver_straight(cmkd_stream *s, uint32_t count, float *logits, cmkd_error *err) {
  const cmkd_order_plan *plan = &s->plan;
  size_t C = s->cache->info.classes;
  for (uint32_t i = 0, run; i < count; i += run) {
    const uint32_t *order = plan->order + s->at;
    cmkd_row_location at = cmkd_order_locate(plan, *order);
    run = cmkd_order_run(plan, order, count - i, at);
    CMKD_TRY(wait_for(s, &s->slots[at.chunk].ready, 1, err));
    decode_rows(s, at, run, logits + i * C);
    s->at += run;
    if (plan->chunks[at.chunk].last >= s->at) continue;
    pthread_mutex_lock(&s->mutex);
    retire(s, s->at);
    wake(s);
    pthread_mutex_unlock(&s->mutex);
  }
  return CMKD_OK;
}

static cmkd_status deliver_pieces(cmkd_stream *s, uint32_t count, float *logits, cmkd_error *err) {
  size_t C = s->cache->info.classes;
  for (uint32_t i = 0, rows; i < count; i += rows) {
    uint32_t piece = s->at / s->plan.piece_rows, first = s->at % s->plan.piece_rows, left = s->plan.piece_rows - first;
    const stream_piece *from = s->ring + piece % s->ring_size;
    rows = count - i < left ? count - i : left;
    CMKD_TRY(wait_for(s, &from->holds, piece + 1, err));
    cmkd_chunk_view view = {from->bytes, s->plane, C, s->row_max ? from->row_max : NULL,
                            s->row_max ? from->row_range : NULL};
    s->cache->codec->decode(&view, first, rows, logits + i * C);
    s->at += rows;
    if (rows < left) continue;
    pthread_mutex_lock(&s->mutex);
    s->delivered++;
    if (s->gathered - s->delivered <= s->ring_size / 2) wake(s); /* several pieces for one waking */
    pthread_mutex_unlock(&s->mutex);
  }
  return CMKD_OK;
}

cmkd_status cmkd_stream_next(cmkd_stream *s, uint32_t count, float *logits, uint64_t *seeds, cmkd_error *err) {
  if (count > s->plan.n - s->at)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u rows asked for, %u are left of this epoch", s->cache->path, count,
                     s->plan.n - s->at);
  if (seeds && !s->seeds) {
    s->seeds = malloc(s->cache->info.samples * sizeof *s->seeds);
    if (!s->seeds) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for its seeds", s->cache->path);
    cmkd_status status = cmkd_cache_seeds(s->cache, s->view, s->seeds, err);
    if (status != CMKD_OK) {
      free(s->seeds);
      s->seeds = NULL;
      return status;
    }
  }
  for (uint32_t i = 0; seeds && i < count; i++)
    seeds[i] = s->seeds[s->plan.order[s->at + i]];
  return s->plan.pieces ? deliver_pieces(s, count, logits, err) : deliver_straight(s, count, logits, err);
}
