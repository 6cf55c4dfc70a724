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
#include <stdlib.h>
#include <string.h>
#include "base/cpu.h"
#include "formats/cache/reader/stream_work.h"

#define DEFAULT_MEMORY (1ull << 30)
#define PIECE_BYTES 65536 /* of a gathered piece: what a core's own cache holds beside the rest */

/* ---- opening ---- */

static cmkd_status load_row_numbers(cmkd_stream *s, cmkd_error *err) {
  const cmkd_cache *cache = s->cache;
  if (!s->codec->row_numbers) return CMKD_OK;
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

static inline size_t round_up(size_t size) { return (size + 63) / 64 * 64; }

/* Plans order (n), and divides the memory that the stream may use. */
static cmkd_status plan_memory(cmkd_stream *s, const uint32_t *order, uint32_t n, uint64_t memory, int threads,
                               cmkd_error *err) {
  const cmkd_array_layout *layout = cmkd_cache_layout_at(s->cache, s->layout);
  const size_t item = (size_t)s->codec->item, row = cmkd_layout_row_bytes(layout),
               raw = cmkd_layout_chunk_bytes(layout);
  const uint64_t most = memory / raw;
  const uint32_t piece_rows = (uint32_t)(PIECE_BYTES / row + 16);
  s->stride = row < 128 ? row : round_up(row);
  const cmkd_order_limits limits = {.piece_rows = piece_rows, .live = most, .rows = memory / s->stride};
  CMKD_TRY(cmkd_order_plan_make(&s->plan, s->cache, s->layout, order, n, &limits, err));
  if (most < s->plan.live) {
    return cmkd_fail(err, CMKD_ERR_MEMORY,
                     "%s: this order needs %.2f GB of decoded chunks at once, the limit is %.2f GB; raise "
                     "it, or shuffle parts of the samples by themselves (of %u each, for example)",
                     s->cache->path, (double)s->plan.live * (double)raw / 1e9, (double)memory / 1e9,
                     layout->array.chunk_samples);
  }
  /* some more chunks bridge the time in which the system runs other threads; many more would only leave the core's
   * cache */
  const uint64_t wanted = (uint64_t)s->plan.live + 8 + 8 * (uint64_t)threads;
  s->slot_count = (uint32_t)(wanted < most ? wanted : most);
  if (s->slot_count > s->plan.scheduled) s->slot_count = s->plan.scheduled;
  if (s->plan.position) s->slot_count = 0;
  s->slot_size = round_up(raw);
  s->ring_size = s->plan.pieces ? 4 + 4 * (uint32_t)threads : 0;
  s->plane = round_up((size_t)piece_rows * s->elements) + CMKD_STREAM_SLACK;
  size_t piece_size = item * s->plane + round_up((size_t)piece_rows * 4),
         slots_size =
             round_up(s->plan.position ? s->plan.n * s->stride : s->slot_count * s->slot_size) + CMKD_STREAM_SLACK;
  s->region = cmkd_region_take(s->cache, slots_size + s->ring_size * piece_size);
  s->free_slots = malloc(((size_t)s->slot_count + 1) * sizeof *s->free_slots);
  s->slots = calloc((size_t)s->plan.chunk_count, sizeof *s->slots);
  s->ring = calloc((size_t)s->ring_size + 1, sizeof *s->ring);
  s->threads = calloc((size_t)threads, sizeof *s->threads);
  if (!s->region.size || !s->free_slots || !s->slots || !s->ring || !s->threads)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to stream it", s->cache->path);
  if (s->plan.position) s->table = s->region.bytes;
  if (!cmkd_stream_worker_make(&s->caller, s))
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to stream it", s->cache->path);
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
  uint32_t layout;
  CMKD_TRY(cmkd_cache_check_view(cache, view, err));
  CMKD_TRY(cmkd_cache_layout(cache, options ? options->array : NULL, &layout, err));
  cmkd_stream *s = calloc(1, sizeof *s);
  if (!s) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to stream it", cache->path);
  int threads = options && options->threads > 0 ? options->threads : cmkd_cpu_count();
  s->cache = cache;
  s->view = view;
  s->layout = layout;
  s->codec = cmkd_cache_layout_at(cache, layout)->codec;
  s->elements = cmkd_cache_layout_at(cache, layout)->array.elements;
  s->helps = threads > 1;
  threads -= s->helps; /* the caller is one of them whenever it would wait */
  pthread_mutex_init(&s->mutex, NULL);
  pthread_cond_init(&s->due, NULL);
  pthread_cond_init(&s->progress, NULL);
  const uint64_t memory = options && options->memory ? options->memory : DEFAULT_MEMORY;
  cmkd_status status = plan_memory(s, order, n, memory, threads, err);
  if (status == CMKD_OK) status = load_row_numbers(s, err);
  if ((uint32_t)threads > s->plan.scheduled) threads = s->plan.scheduled ? (int)s->plan.scheduled : 1;
  while (status == CMKD_OK && s->thread_count < threads &&
         pthread_create(s->threads + s->thread_count, NULL, cmkd_stream_run, s) == 0)
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
  pthread_cond_broadcast(&s->due);
  pthread_mutex_unlock(&s->mutex);
  for (int i = 0; i < s->thread_count; i++)
    pthread_join(s->threads[i], NULL);
  cmkd_region_return(s->cache, s->region);
  pthread_mutex_destroy(&s->mutex);
  pthread_cond_destroy(&s->due);
  pthread_cond_destroy(&s->progress);
  cmkd_order_plan_free(&s->plan);
  cmkd_stream_worker_free(&s->caller);
  free(s->threads);
  free(s->free_slots);
  free(s->slots);
  free(s->ring);
  free(s->seeds);
  free(s->row_max);
  free(s);
}

/* ---- delivering ---- */

static void decode_rows(const cmkd_stream *s, cmkd_row_location at, uint32_t rows, float *out) {
  const cmkd_order_chunk *chunk = s->plan.chunks + at.chunk;
  const uint32_t whole = cmkd_order_chunk_samples(&s->plan, chunk->shard);
  const size_t first = s->cache->shards[chunk->shard].meta.first + (size_t)chunk->number * whole;
  cmkd_chunk_view view = {cmkd_stream_slot_bytes(s, at.chunk), whole * s->elements, s->elements,
                          s->row_max ? s->row_max + first : NULL, s->row_max ? s->row_range + first : NULL};
  s->codec->decode(&view, at.row, rows, out);
}

/* Until *word is `value`: the ready of a chunk's slot (1) or what a piece of the ring holds. */
static cmkd_status wait_for(cmkd_stream *s, const atomic_uint *word, uint32_t value, cmkd_error *err) {
  if (atomic_load_explicit(word, memory_order_acquire) == value) return CMKD_OK;
  cmkd_status status = CMKD_OK;
  pthread_mutex_lock(&s->mutex);
  while (atomic_load_explicit(word, memory_order_relaxed) != value && (status = s->failure.status) == CMKD_OK) {
    if (s->helps && cmkd_stream_work_once(s, &s->caller)) continue;
    s->waiting = 1;
    pthread_cond_wait(&s->progress, &s->mutex);
    s->waiting = 0;
  }
  if (status != CMKD_OK && err) *err = s->failure;
  pthread_mutex_unlock(&s->mutex);
  return status;
}

static cmkd_status deliver_straight(cmkd_stream *s, uint32_t count, float *out, cmkd_error *err) {
  const cmkd_order_plan *plan = &s->plan;
  size_t C = s->elements;
  for (uint32_t i = 0, run; i < count; i += run) {
    const uint32_t *order = plan->order + s->at;
    cmkd_row_location at = cmkd_order_locate(plan, *order);
    run = cmkd_order_run(plan, order, count - i, at);
    CMKD_TRY(wait_for(s, &s->slots[at.chunk].ready, 1, err));
    decode_rows(s, at, run, out + i * C);
    s->at += run;
    if (plan->chunks[at.chunk].last >= s->at) continue;
    pthread_mutex_lock(&s->mutex);
    cmkd_stream_retire(s, s->at);
    cmkd_stream_wake(s);
    pthread_mutex_unlock(&s->mutex);
  }
  return CMKD_OK;
}

static cmkd_status deliver_pieces(cmkd_stream *s, uint32_t count, float *out, cmkd_error *err) {
  size_t C = s->elements;
  for (uint32_t i = 0, rows; i < count; i += rows) {
    uint32_t piece = s->at / s->plan.piece_rows, first = s->at % s->plan.piece_rows, left = s->plan.piece_rows - first;
    const cmkd_stream_piece *from = s->ring + piece % s->ring_size;
    rows = count - i < left ? count - i : left;
    CMKD_TRY(wait_for(s, &from->holds, piece + 1, err));
    cmkd_chunk_view view = {from->bytes, s->plane, C, s->row_max ? from->row_max : NULL,
                            s->row_max ? from->row_range : NULL};
    s->codec->decode(&view, first, rows, out + i * C);
    s->at += rows;
    if (rows < left) continue;
    pthread_mutex_lock(&s->mutex);
    s->delivered++;
    if (s->gathered - s->delivered <= s->ring_size / 2) cmkd_stream_wake(s); /* several pieces for one waking */
    pthread_mutex_unlock(&s->mutex);
  }
  return CMKD_OK;
}

cmkd_status cmkd_stream_next(cmkd_stream *s, uint32_t count, float *out, uint64_t *seeds, cmkd_error *err) {
  if (count > s->plan.n - s->at)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u rows asked for, %u are left of the order", s->cache->path, count,
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
  return s->plan.pieces ? deliver_pieces(s, count, out, err) : deliver_straight(s, count, out, err);
}
