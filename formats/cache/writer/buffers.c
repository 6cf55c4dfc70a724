/* Memory of a shard that is being written, and the buffers its chunks go through. */
#include <stdlib.h>
#include "formats/cache/chunk.h"
#include "formats/cache/writer/writer.h"

/* Buffers are used again and again: a few hundred KB from malloc would be fresh pages each time. */
size_t cmkd_writer_buffer_size(const cmkd_cache_writer *w) {
  size_t raw = 0;
  for (uint32_t a = 0; a < w->config.layout_count; a++) {
    size_t of_layout = cmkd_layout_chunk_bytes(w->config.layouts + a);
    if (of_layout > raw) raw = of_layout;
  }
  return cmkd_chunk_bound(raw);
}

uint8_t *cmkd_writer_buffer_take(cmkd_cache_writer *w) {
  pthread_mutex_lock(&w->buffer_mutex);
  cmkd_free_buffer *buffer = w->free_buffers;
  if (buffer) w->free_buffers = buffer->next;
  pthread_mutex_unlock(&w->buffer_mutex);
  if (buffer) return (uint8_t *)buffer;
  size_t size = cmkd_writer_buffer_size(w);
  return malloc(size < sizeof *buffer ? sizeof *buffer : size);
}

void cmkd_writer_buffer_return(cmkd_cache_writer *w, uint8_t *bytes) {
  if (!bytes) return;
  cmkd_free_buffer *buffer = (cmkd_free_buffer *)(void *)bytes;
  pthread_mutex_lock(&w->buffer_mutex);
  buffer->next = w->free_buffers;
  w->free_buffers = buffer;
  pthread_mutex_unlock(&w->buffer_mutex);
}

void cmkd_writer_buffers_free(cmkd_cache_writer *w) {
  for (cmkd_free_buffer *next; w->free_buffers; w->free_buffers = next) {
    next = w->free_buffers->next;
    free(w->free_buffers);
  }
}

cmkd_status cmkd_shard_buffer_create(cmkd_cache_writer *w, uint32_t k, cmkd_shard_buffer **out, cmkd_error *err) {
  const int row_numbers = w->config.layouts[0].codec->row_numbers;
  cmkd_shard_buffer *s = calloc(1, sizeof *s);
  *out = s;
  if (!s) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for shard %u", k);
  s->lock = (cmkd_lock)CMKD_LOCK_NONE;
  s->meta.index = k;
  CMKD_TRY(cmkd_shard_meta_alloc(&s->meta, &w->config, err));
  for (uint32_t a = 0; a < w->config.layout_count; a++) {
    s->first_chunk[a] = s->chunk_count;
    s->chunk_count += (uint64_t)w->config.views * s->meta.tables[a].chunks_per_view;
  }
  size_t n = s->meta.samples, cells = n * w->config.views;
  s->chunks = calloc(s->chunk_count, sizeof *s->chunks);
  s->seeds = malloc(cells * 8 + n * 8 + n * 4 + (row_numbers ? cells * 4 : 0)); /* seeds | ids | labels | max | range */
  if (!s->chunks || !s->seeds)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for shard %u (%zu rows); use smaller shards", k, cells);
  s->ids = s->seeds + cells;
  s->labels = (int32_t *)(s->ids + n);
  s->row_max = row_numbers ? (uint16_t *)(s->labels + n) : NULL;
  s->row_range = row_numbers ? s->row_max + cells : NULL;
  return CMKD_OK;
}

void cmkd_shard_buffer_free(cmkd_cache_writer *w, cmkd_shard_buffer *shard) {
  if (!shard) return;
  for (uint64_t i = 0; shard->chunks && i < shard->chunk_count; i++) {
    cmkd_writer_buffer_return(w, shard->chunks[i].items);
    cmkd_writer_buffer_return(w, shard->chunks[i].stored);
  }
  free(shard->chunks);
  free(shard->seeds);
  cmkd_shard_meta_free(&shard->meta);
  cmkd_lock_release(&shard->lock);
  free(shard);
}
