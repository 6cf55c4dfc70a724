/* Filling shards: what comes in is checked, encoded into chunks and handed to the threads. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/file.h"
#include "formats/cache/writer/writer.h"

cmkd_status cmkd_cache_writer_begin(cmkd_cache_writer *w, uint32_t k, cmkd_cache_shard_state *state, cmkd_error *err) {
  if (w->filling || k >= w->config.shards)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: shard %u cannot be begun now", w->path, k);
  CMKD_TRY(cmkd_writer_failed(w, err));
  char *shard = cmkd_writer_shard_path(w, k), *path = shard ? cmkd_format("%s.lock", shard) : NULL;
  cmkd_lock lock = CMKD_LOCK_NONE;
  int taken = 0;
  cmkd_status status =
      path ? cmkd_lock_take(path, 0, &lock, &taken, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a file name");
  free(shard);
  free(path);
  if (status != CMKD_OK) return status;
  if (!taken) {
    *state = CMKD_CACHE_SHARD_BUSY;
    return CMKD_OK;
  }
  int known = w->entries[k].block_sha256[0] != 0;
  if (cmkd_writer_check(w, k)) {
    cmkd_lock_release(&lock);
    pthread_mutex_lock(&w->mutex);
    if (!known) w->stats.reused_rows += (uint64_t)w->entries[k].samples * w->config.views;
    pthread_mutex_unlock(&w->mutex);
    *state = CMKD_CACHE_SHARD_DONE;
    return CMKD_OK;
  }
  status = cmkd_shard_buffer_create(w, k, &w->filling, err);
  if (w->filling)
    w->filling->lock = lock;
  else
    cmkd_lock_release(&lock);
  if (status != CMKD_OK) cmkd_cache_writer_abandon(w);
  *state = CMKD_CACHE_SHARD_NEEDED;
  return status;
}

static cmkd_status check_labels(const cmkd_cache_writer *w, size_t count, const uint64_t *ids, const int32_t *labels,
                                cmkd_error *err) {
  for (size_t i = 0; i < count; i++)
    if (labels[i] < 0 || (uint32_t)labels[i] >= w->config.classes)
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "sample %" PRIu64 ": label %d is outside 0..%u; is this the right data set?", ids[i], labels[i],
                       w->config.classes - 1);
  return CMKD_OK;
}

/* Samples [at, at + count) of the shard that is being filled. */
static void take_samples(cmkd_cache_writer *w, size_t at, size_t count, const uint64_t *ids, const int32_t *labels,
                         const uint64_t *seeds) {
  cmkd_shard_buffer *s = w->filling;
  const size_t n = s->meta.samples, views = w->config.views;
  memcpy(s->ids + at, ids, count * sizeof *ids);
  memcpy(s->labels + at, labels, count * sizeof *labels);
  for (size_t v = 0; v < views; v++)
    for (size_t i = 0; i < count; i++)
      s->seeds[v * n + at + i] = seeds[i * views + v];
}

cmkd_status cmkd_cache_writer_samples(cmkd_cache_writer *w, const uint64_t *ids, const int32_t *labels,
                                      const uint64_t *seeds, cmkd_error *err) {
  if (!w->filling) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: no shard was begun", w->path);
  CMKD_TRY(check_labels(w, w->filling->meta.samples, ids, labels, err));
  take_samples(w, 0, w->filling->meta.samples, ids, labels, seeds);
  w->filling->have_samples = 1;
  return CMKD_OK;
}

/* Rows [first, first + count) of one view of the shard that is being filled, of one layout. */
typedef struct rows {
  uint32_t layout, view, first, count;
  const float *values; /* (count, elements), the next row `stride` floats on */
  size_t stride;
} rows;

/* The rows lie in one chunk. */
static void encode(cmkd_cache_writer *w, const rows *r, uint8_t *items) {
  const cmkd_shard_buffer *s = w->filling;
  const cmkd_array_layout *layout = w->config.layouts + r->layout;
  const cmkd_codec *codec = layout->codec;
  const size_t C = layout->array.elements, n = s->meta.samples, row = cmkd_layout_row_bytes(layout);
  uint8_t *target = items + r->first % s->meta.tables[r->layout].chunk_samples * row;
  uint16_t *max = codec->row_numbers ? s->row_max + r->view * n + r->first : NULL,
           *range = codec->row_numbers ? s->row_range + r->view * n + r->first : NULL;
  if (codec->thin)
    for (size_t i = 0; i < r->count; i++) {
      codec->thin(r->values + i * r->stride, C, w->keep, w->thin);
      codec->encode(w->thin, 1, C, target + i * row, NULL, NULL);
    }
  else if (r->stride == C)
    codec->encode(r->values, r->count, C, target, max, range);
  else
    for (size_t i = 0; i < r->count; i++)
      codec->encode(r->values + i * r->stride, 1, C, target + i * row, max ? max + i : NULL, range ? range + i : NULL);
}

static cmkd_status refuse_value(const cmkd_cache_writer *w, const rows *r, size_t bad, cmkd_error *err) {
  const cmkd_array_layout *layout = w->config.layouts + r->layout;
  const size_t C = layout->array.elements, row = bad / C, at = bad % C;
  const float value = r->values[row * r->stride + at];
  const uint64_t sample = w->filling->meta.first + r->first + row;
  if (r->layout)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "sample %" PRIu64 " (view %u): number %zu of its row of /%s, %g, is none that %s can hold", sample,
                     r->view, at, layout->array.name, (double)value, layout->codec->name);
  if (value - value != 0)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "sample %" PRIu64
                     " (view %u, class %zu): the teacher's logit is not finite; check its weights, mean and std",
                     sample, r->view, at);
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "sample %" PRIu64
                   " (view %u, class %zu): logit %g is beyond +-%g, the range of codec %s; use codec f32",
                   sample, r->view, at, (double)value, layout->codec->limit, layout->codec->name);
}

static cmkd_status check_values(const cmkd_cache_writer *w, const rows *r, cmkd_error *err) {
  const cmkd_array_layout *layout = w->config.layouts + r->layout;
  const size_t C = layout->array.elements;
  int64_t bad = -1;
  if (r->stride == C)
    bad = cmkd_codec_first_refused(layout->codec, r->values, r->count * C);
  else
    for (size_t i = 0; i < r->count && bad < 0; i++) {
      int64_t at = cmkd_codec_first_refused(layout->codec, r->values + i * r->stride, C);
      if (at >= 0) bad = (int64_t)(i * C) + at;
    }
  return bad < 0 ? CMKD_OK : refuse_value(w, r, (size_t)bad, err);
}

/* Edge chunks are stored full: zeros behind the last row. */
static uint8_t *new_items(cmkd_cache_writer *w, uint32_t layout, uint32_t rows_of_chunk, uint32_t used) {
  size_t row = cmkd_layout_row_bytes(w->config.layouts + layout);
  uint8_t *items = cmkd_writer_buffer_take(w);
  if (items) memset(items + used * row, 0, (rows_of_chunk - used) * row);
  return items;
}

static cmkd_status put(cmkd_cache_writer *w, rows r, cmkd_error *err) {
  cmkd_shard_buffer *s = w->filling;
  if (!s || r.view >= w->config.views || r.first > s->meta.samples || r.count > s->meta.samples - r.first ||
      r.stride < w->config.layouts[r.layout].array.elements)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: rows %u..%u of view %u are outside the shard", w->path, r.first,
                     r.first + r.count, r.view);
  CMKD_TRY(check_values(w, &r, err));
  const cmkd_chunk_table *table = s->meta.tables + r.layout;
  for (uint32_t left = r.count; left; left -= r.count) {
    uint32_t number = r.first / table->chunk_samples, start = number * table->chunk_samples;
    uint32_t whole = s->meta.samples - start < table->chunk_samples ? s->meta.samples - start : table->chunk_samples;
    uint64_t index = s->first_chunk[r.layout] + (uint64_t)r.view * table->chunks_per_view + number;
    cmkd_chunk_buffer *chunk = s->chunks + index;
    r.count = left < start + table->chunk_samples - r.first ? left : start + table->chunk_samples - r.first;
    if (!chunk->items && !chunk->filled) chunk->items = new_items(w, r.layout, table->chunk_samples, whole);
    if (chunk->filled + r.count > whole)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: rows %u.. of view %u came twice", w->path, r.first, r.view);
    if (!chunk->items)
      return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for shard %u; use smaller shards", s->meta.index);
    encode(w, &r, chunk->items);
    chunk->filled += r.count;
    if (chunk->filled == whole) {
      s->full++;
      CMKD_TRY(cmkd_writer_submit(w, (cmkd_chunk_job){s, r.layout, index}, err));
    }
    r.first += r.count;
    r.values += r.count * r.stride;
  }
  return CMKD_OK;
}

cmkd_status cmkd_cache_writer_put(cmkd_cache_writer *w, uint32_t view, uint32_t first, uint32_t count,
                                  const float *logits, size_t stride, cmkd_error *err) {
  return put(w, (rows){0, view, first, count, logits, stride}, err);
}

cmkd_status cmkd_cache_writer_put_array(cmkd_cache_writer *w, const char *name, uint32_t view, uint32_t first,
                                        uint32_t count, const float *values, size_t stride, cmkd_error *err) {
  uint32_t layout = 0;
  if (!cmkd_layout_find(&w->config, w->config.layout_count, name, &layout) || !layout)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: no named array \"%.64s\" was declared", w->path, name);
  return put(w, (rows){layout, view, first, count, values, stride}, err);
}

cmkd_status cmkd_cache_writer_end(cmkd_cache_writer *w, cmkd_error *err) {
  cmkd_shard_buffer *s = w->filling;
  if (!s || !s->have_samples || s->full != s->chunk_count)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: a shard was ended before it was filled", w->path);
  CMKD_TRY(cmkd_writer_seal(w, s, err));
  w->filling = NULL;
  return CMKD_OK;
}

void cmkd_cache_writer_abandon(cmkd_cache_writer *w) {
  if (!w->filling) return;
  cmkd_writer_drain(w, w->filling);
  cmkd_shard_buffer_free(w, w->filling);
  w->filling = NULL;
}

/* Begins the shard that sample w->added opens, waiting while another process writes it. */
static cmkd_status add_begin(cmkd_cache_writer *w, cmkd_error *err) {
  uint32_t k = (uint32_t)(w->added / w->config.shard_samples);
  cmkd_cache_shard_state state;
  for (;;) {
    CMKD_TRY(cmkd_cache_writer_begin(w, k, &state, err));
    if (state != CMKD_CACHE_SHARD_BUSY) break;
    nanosleep(&(struct timespec){0, 100000000}, NULL);
  }
  w->add_open = 1;
  w->add_skip = state == CMKD_CACHE_SHARD_DONE;
  if (w->filling) w->filling->have_samples = 1; /* they arrive with the rows */
  return CMKD_OK;
}

cmkd_status cmkd_cache_writer_add(cmkd_cache_writer *w, uint32_t count, const uint64_t *ids, const int32_t *labels,
                                  const uint64_t *seeds, const float *logits, cmkd_error *err) {
  size_t views = w->config.views, C = w->config.classes;
  if (w->config.layout_count > 1)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: has named arrays, so shards are begun, put and ended", w->path);
  while (count) {
    if (w->added >= w->config.samples)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: more than the promised %" PRIu64 " samples", w->path,
                       w->config.samples);
    if (!w->add_open) CMKD_TRY(add_begin(w, err));
    uint32_t at = (uint32_t)(w->added % w->config.shard_samples),
             n = cmkd_shard_samples(&w->config, (uint32_t)(w->added / w->config.shard_samples));
    uint32_t step = count < n - at ? count : n - at;
    if (!w->add_skip) {
      CMKD_TRY(check_labels(w, step, ids, labels, err));
      take_samples(w, at, step, ids, labels, seeds);
    }
    for (uint32_t v = 0; !w->add_skip && v < views; v++)
      CMKD_TRY(cmkd_cache_writer_put(w, v, at, step, logits + v * C, views * C, err));
    if (at + step == n) {
      if (!w->add_skip) CMKD_TRY(cmkd_cache_writer_end(w, err));
      w->add_open = 0;
    }
    w->added += step;
    count -= step;
    ids += step;
    labels += step;
    seeds += step * views;
    logits += step * views * C;
  }
  return CMKD_OK;
}

cmkd_status cmkd_cache_writer_finish(cmkd_cache_writer *w, cmkd_error *err) {
  if (w->filling) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: shard %u is not filled", w->path, w->filling->meta.index);
  CMKD_TRY(cmkd_cache_writer_wait(w, err));
  return cmkd_writer_publish_master(w, err);
}
