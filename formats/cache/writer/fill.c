/* Filling shards: what comes in is checked, encoded into chunks and handed to the threads. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/file.h"
#include "formats/cache/writer/writer.h"

cmkd_status cmkd_cache_writer_begin(cmkd_cache_writer *w, uint32_t k, cmkd_cache_shard_state *state, cmkd_error *err) {
  if (w->filling || k >= w->head.shards)
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
    if (!known) w->stats.reused_rows += (uint64_t)w->entries[k].samples * w->head.views;
    pthread_mutex_unlock(&w->mutex);
    *state = CMKD_CACHE_SHARD_DONE;
    return CMKD_OK;
  }
  status = cmkd_shard_work_create(w, k, &w->filling, err);
  if (w->filling)
    w->filling->lock = lock;
  else
    cmkd_lock_release(&lock);
  if (status != CMKD_OK) cmkd_cache_writer_abandon(w);
  *state = CMKD_CACHE_SHARD_NEEDED;
  return status;
}

cmkd_status cmkd_cache_writer_samples(cmkd_cache_writer *w, const uint64_t *ids, const int32_t *labels,
                                      const uint64_t *seeds, cmkd_error *err) {
  cmkd_shard_work *s = w->filling;
  if (!s) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: no shard was begun", w->path);
  size_t n = s->meta.samples, views = w->head.views;
  for (size_t i = 0; i < n; i++) {
    if (labels[i] >= 0 && (uint32_t)labels[i] < w->head.classes) continue;
    return cmkd_fail(err, CMKD_ERR_VALUE, "sample %" PRIu64 ": label %d is outside 0..%u; is this the right data set?",
                     ids[i], labels[i], w->head.classes - 1);
  }
  memcpy(s->ids, ids, n * 8);
  memcpy(s->labels, labels, n * 4);
  for (size_t v = 0; v < views; v++)
    for (size_t i = 0; i < n; i++)
      s->seeds[v * n + i] = seeds[i * views + v];
  s->have_samples = 1;
  return CMKD_OK;
}

/* Rows [at, at + count) of one chunk; contiguous logits. */
static void fill(cmkd_cache_writer *w, uint32_t view, uint32_t first, uint32_t count, const float *logits,
                 size_t stride) {
  cmkd_shard_work *s = w->filling;
  size_t C = w->head.classes, n = s->meta.samples, row = C * (size_t)w->codec->item;
  cmkd_chunk_work *chunk = s->chunks + (size_t)view * s->meta.blocks + first / s->rows;
  uint8_t *target = chunk->items + first % s->rows * row;
  uint16_t *max = s->row_max ? s->row_max + view * n + first : NULL,
           *range = s->row_max ? s->row_range + view * n + first : NULL;
  if (w->thin)
    for (size_t i = 0; i < count; i++) {
      w->codec->thin(logits + i * stride, C, w->keep, w->thin);
      w->codec->encode(w->thin, 1, C, target + i * row, NULL, NULL);
    }
  else if (stride == C)
    w->codec->encode(logits, count, C, target, max, range);
  else
    for (size_t i = 0; i < count; i++)
      w->codec->encode(logits + i * stride, 1, C, target + i * row, max ? max + i : NULL, range ? range + i : NULL);
}

static cmkd_status check_values(cmkd_cache_writer *w, uint32_t view, uint32_t first, uint32_t count,
                                const float *logits, size_t stride, cmkd_error *err) {
  size_t C = w->head.classes;
  int64_t bad = -1;
  if (stride == C)
    bad = cmkd_codec_first_bad(logits, count * C, w->codec->limit);
  else
    for (size_t i = 0; i < count && bad < 0; i++) {
      int64_t at = cmkd_codec_first_bad(logits + i * stride, C, w->codec->limit);
      if (at >= 0) bad = (int64_t)(i * C) + at;
    }
  if (bad < 0) return CMKD_OK;
  size_t row = (size_t)bad / C, class = (size_t)bad % C;
  float value = logits[row * stride + class];
  uint64_t sample = w->filling->meta.first + first + row;
  if (value - value != 0)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "sample %" PRIu64
                     " (view %u, class %zu): the teacher's logit is not finite; check its weights and --mean/--std",
                     sample, view, class);
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "sample %" PRIu64
                   " (view %u, class %zu): logit %g is beyond +-%g, the range of codec %s; use --codec f32",
                   sample, view, class, (double)value, w->codec->limit, w->codec->name);
}

/* Edge chunks are stored full: zeros behind the last row. */
static uint8_t *new_items(cmkd_cache_writer *w, uint32_t rows, uint32_t used) {
  size_t row = w->head.classes * (size_t)w->codec->item;
  uint8_t *items = cmkd_writer_buffer_take(w);
  if (items) memset(items + used * row, 0, (rows - used) * row);
  return items;
}

cmkd_status cmkd_cache_writer_put(cmkd_cache_writer *w, uint32_t view, uint32_t first, uint32_t count,
                                  const float *logits, size_t stride, cmkd_error *err) {
  cmkd_shard_work *s = w->filling;
  if (!s || view >= w->head.views || first > s->meta.samples || count > s->meta.samples - first ||
      stride < w->head.classes)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: rows %u..%u of view %u are outside the shard", w->path, first,
                     first + count, view);
  CMKD_TRY(check_values(w, view, first, count, logits, stride, err));
  while (count) {
    uint32_t block = first / s->rows, left = (block + 1) * s->rows - first, step = count < left ? count : left;
    uint32_t whole = s->meta.samples - block * s->rows < s->rows ? s->meta.samples - block * s->rows : s->rows;
    uint64_t index = (uint64_t)view * s->meta.blocks + block;
    cmkd_chunk_work *chunk = s->chunks + index;
    if (!chunk->items && !chunk->filled) chunk->items = new_items(w, s->rows, whole);
    if (chunk->filled + step > whole)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: rows %u.. of view %u came twice", w->path, first, view);
    if (!chunk->items)
      return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for shard %u; lower --shard-rows", s->meta.index);
    fill(w, view, first, step, logits, stride);
    chunk->filled += step;
    if (chunk->filled == whole) {
      s->full++;
      CMKD_TRY(cmkd_writer_submit(w, s, index, err));
    }
    first += step;
    count -= step;
    logits += step * stride;
  }
  return CMKD_OK;
}

cmkd_status cmkd_cache_writer_end(cmkd_cache_writer *w, cmkd_error *err) {
  cmkd_shard_work *s = w->filling;
  if (!s || !s->have_samples || s->full != s->chunk_count)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: a shard was ended before it was filled", w->path);
  CMKD_TRY(cmkd_writer_seal(w, s, err));
  w->filling = NULL;
  return CMKD_OK;
}

void cmkd_cache_writer_abandon(cmkd_cache_writer *w) {
  if (!w->filling) return;
  cmkd_writer_drain(w, w->filling);
  cmkd_shard_work_free(w, w->filling);
  w->filling = NULL;
}

/* Begins the shard that sample w->added opens, waiting for another process that has it in work. */
static cmkd_status add_begin(cmkd_cache_writer *w, cmkd_error *err) {
  uint32_t k = (uint32_t)(w->added / w->head.shard_rows);
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
  size_t views = w->head.views, C = w->head.classes;
  while (count) {
    if (w->added >= w->head.samples)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: more than the promised %" PRIu64 " samples", w->path, w->head.samples);
    if (!w->add_open) CMKD_TRY(add_begin(w, err));
    uint32_t at = (uint32_t)(w->added % w->head.shard_rows),
             n = cmkd_shard_samples(&w->head, (uint32_t)(w->added / w->head.shard_rows));
    uint32_t step = count < n - at ? count : n - at;
    cmkd_shard_work *s = w->filling;
    for (uint32_t i = 0; !w->add_skip && i < step; i++) {
      if (labels[i] < 0 || (uint32_t)labels[i] >= C)
        return cmkd_fail(err, CMKD_ERR_VALUE, "sample %" PRIu64 ": label %d is outside 0..%zu", ids[i], labels[i],
                         C - 1);
      s->ids[at + i] = ids[i];
      s->labels[at + i] = labels[i];
      for (size_t v = 0; v < views; v++)
        s->seeds[v * n + at + i] = seeds[i * views + v];
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
