/* What the threads of a stream do: read chunks into slots or scatter their rows, gather rows into pieces. */
#include "formats/cache/reader/stream_work.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#include <stdlib.h>
#include <string.h>

#define AHEAD 16    /* rows whose places are looked up and fetched before they are copied */
#define TOGETHER 32 /* rows that are scattered together */

/* ---- gathering: rows of many chunks into one piece ---- */

typedef struct source {
  const uint8_t *bytes;
  size_t plane;
} source;

static inline source look_up(const cmkd_stream *s, uint32_t row, int item, size_t C) {
  if (s->table) return (source){s->table + row * s->stride, C};
  uint32_t sample = s->plan.order[row];
  cmkd_row_location at = cmkd_order_locate(&s->plan, sample);
  size_t plane = cmkd_order_chunk_samples(&s->plan, s->plan.chunks[at.chunk].shard) * C;
  source from = {cmkd_stream_slot_bytes(s, at.chunk) + at.row * C, plane};
  for (int p = 0; p < item; p++) {
    const uint8_t *bytes = from.bytes + (size_t)p * plane;
    for (size_t i = 0; i < C && i < 512; i += 64)
      __builtin_prefetch(bytes + i);
    __builtin_prefetch(bytes + C - 1);
  }
  return from;
}

/* Copies in steps of 32 bytes: up to 31 beyond `size` are written, which the next row overwrites. */
static inline void copy_over(uint8_t *to, const uint8_t *from, size_t size) {
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
static void scatter(const cmkd_stream *s, const cmkd_order_chunk *chunk, const cmkd_stream_worker *with) {
  const cmkd_shard *shard = s->cache->shards + chunk->shard;
  const uint32_t whole = cmkd_order_chunk_samples(&s->plan, chunk->shard);
  size_t C = s->elements, plane = whole * C, item = (size_t)s->codec->item;
  uint32_t start = chunk->number * whole, left = shard->meta.samples - start, rows = left < whole ? left : whole;
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

static void gather(const cmkd_stream *s, uint32_t piece, cmkd_stream_piece *target) {
  const cmkd_order_plan *plan = &s->plan;
  size_t C = s->elements;
  int item = s->codec->item;
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

void cmkd_stream_wake(cmkd_stream *s) {
  if (s->waiting) pthread_cond_signal(&s->progress);
  if (s->sleeping && (piece_due(s) || chunk_due(s))) pthread_cond_signal(&s->due);
}

void cmkd_stream_retire(cmkd_stream *s, uint32_t done) {
  const cmkd_order_plan *plan = &s->plan;
  for (; !s->table && s->retired < plan->scheduled && plan->chunks[plan->retire[s->retired]].last < done; s->retired++)
    s->free_slots[s->free_count++] = s->slots[plan->retire[s->retired]].index;
}

static void take_piece(cmkd_stream *s) {
  uint32_t piece = s->next_piece++;
  cmkd_stream_piece *target = s->ring + piece % s->ring_size;
  pthread_mutex_unlock(&s->mutex);
  gather(s, piece, target);
  pthread_mutex_lock(&s->mutex);
  atomic_store_explicit(&target->holds, piece + 1, memory_order_release);
  while (s->gathered < s->next_piece &&
         atomic_load_explicit(&s->ring[s->gathered % s->ring_size].holds, memory_order_relaxed) == s->gathered + 1)
    s->gathered++;
  cmkd_stream_retire(s, s->gathered < s->plan.pieces ? s->gathered * s->plan.piece_rows : s->plan.n);
}

static cmkd_status take_chunk(cmkd_stream *s, const cmkd_stream_worker *with, cmkd_error *err) {
  uint32_t number = s->plan.schedule[s->next++];
  const cmkd_order_chunk *chunk = s->plan.chunks + number;
  cmkd_stream_slot *slot = s->slots + number;
  if (!s->table) slot->index = s->free_slots[--s->free_count];
  pthread_mutex_unlock(&s->mutex);
  const cmkd_chunk_place place = {s->cache->shards + chunk->shard, s->layout, s->view, chunk->number};
  cmkd_status status = cmkd_shard_chunk(s->cache, place, with->coder, with->stored,
                                        s->table ? with->raw : cmkd_stream_slot_bytes(s, number), err);
  if (s->table && status == CMKD_OK) scatter(s, chunk, with);
  pthread_mutex_lock(&s->mutex);
  if (status != CMKD_OK) return status;
  atomic_store_explicit(&slot->ready, 1, memory_order_release);
  while (s->prefix < s->next &&
         atomic_load_explicit(&s->slots[s->plan.schedule[s->prefix]].ready, memory_order_relaxed))
    s->prefix++;
  return CMKD_OK;
}

int cmkd_stream_work_once(cmkd_stream *s, const cmkd_stream_worker *with) {
  cmkd_error err = {0};
  if (piece_due(s))
    take_piece(s);
  else if (!chunk_due(s))
    return 0;
  else if (take_chunk(s, with, &err) != CMKD_OK) {
    if (s->failure.status == CMKD_OK) s->failure = err;
    s->stop = 1;
    pthread_cond_broadcast(&s->due);
  }
  cmkd_stream_wake(s);
  return 1;
}

int cmkd_stream_worker_make(cmkd_stream_worker *worker, const cmkd_stream *s) {
  const cmkd_array_layout *layout = cmkd_cache_layout_at(s->cache, s->layout);
  const size_t raw = cmkd_layout_chunk_bytes(layout), row = cmkd_layout_row_bytes(layout);
  *worker = (cmkd_stream_worker){.coder = cmkd_chunk_coder_create(), .stored = malloc(cmkd_chunk_bound(raw))};
  if (!s->table) return worker->coder && worker->stored;
  worker->raw = malloc(raw + CMKD_STREAM_SLACK);
  worker->row = aligned_alloc(64, TOGETHER * ((row + 63) / 64 * 64) + CMKD_STREAM_SLACK);
  return worker->coder && worker->stored && worker->raw && worker->row;
}
void cmkd_stream_worker_free(cmkd_stream_worker *worker) {
  cmkd_chunk_coder_free(worker->coder);
  free(worker->stored);
  free(worker->raw);
  free(worker->row);
}

void *cmkd_stream_run(void *argument) {
  cmkd_stream *s = argument;
  cmkd_stream_worker mine;
  int fine = cmkd_stream_worker_make(&mine, s);
  pthread_mutex_lock(&s->mutex);
  if (!fine) {
    if (s->failure.status == CMKD_OK)
      cmkd_fail(&s->failure, CMKD_ERR_MEMORY, "%s: no memory to read it", s->cache->path);
    s->stop = 1;
    cmkd_stream_wake(s);
  }
  while (!s->stop) {
    if (cmkd_stream_work_once(s, &mine)) continue;
    s->sleeping++;
    pthread_cond_wait(&s->due, &s->mutex);
    s->sleeping--;
  }
  pthread_mutex_unlock(&s->mutex);
  cmkd_stream_worker_free(&mine);
  return NULL;
}
