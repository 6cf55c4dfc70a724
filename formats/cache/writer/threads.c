/* The writer's threads: some compress chunks, one publishes the sealed shard. Chunks land in fixed places, so the order
 * of work does not show in the file. */
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "formats/cache/chunk.h"
#include "formats/cache/writer/writer.h"

static void fail_locked(cmkd_cache_writer *w, const cmkd_error *err) {
  if (w->failure.status == CMKD_OK) w->failure = *err;
  pthread_cond_broadcast(&w->changed);
  pthread_cond_broadcast(&w->space);
}

/* `planes` holds any raw chunk of this cache. 0: failed. */
static int compress_one(cmkd_cache_writer *w, cmkd_chunk_coder *coder, uint8_t *planes, const cmkd_chunk_job *job) {
  const cmkd_array_layout *layout = w->config.layouts + job->layout;
  cmkd_chunk_buffer *chunk = job->shard->chunks + job->chunk;
  size_t elements = (size_t)job->shard->meta.tables[job->layout].chunk_samples * layout->array.elements;
  chunk->stored = cmkd_writer_buffer_take(w);
  if (coder && planes && chunk->stored)
    chunk->size = cmkd_chunk_encode(coder, chunk->items, elements, layout->codec->item, planes, chunk->stored);
  cmkd_writer_buffer_return(w, chunk->items);
  chunk->items = NULL;
  return chunk->size != 0;
}

static void *compressor(void *argument) {
  cmkd_cache_writer *w = argument;
  cmkd_chunk_coder *coder = cmkd_chunk_coder_create();
  uint8_t *planes = malloc(cmkd_writer_buffer_size(w));
  pthread_mutex_lock(&w->mutex);
  for (;;) {
    while (!w->queued && !w->stop)
      pthread_cond_wait(&w->job, &w->mutex);
    if (!w->queued) break;
    cmkd_chunk_job job = w->queue[w->head_at];
    w->head_at = (w->head_at + 1) % CMKD_WRITER_QUEUE;
    w->queued--;
    pthread_cond_signal(&w->space);
    pthread_mutex_unlock(&w->mutex);
    double start = cmkd_seconds();
    int fine = compress_one(w, coder, planes, &job);
    double seconds = cmkd_seconds() - start;
    pthread_mutex_lock(&w->mutex);
    w->stats.compress_seconds += seconds;
    if (!fine) {
      cmkd_error err;
      cmkd_fail(&err, CMKD_ERR_MEMORY, "%s: no memory to compress; use smaller shards or fewer threads", w->path);
      fail_locked(w, &err);
    }
    if (--job.shard->pending == 0) pthread_cond_broadcast(&w->changed);
  }
  pthread_mutex_unlock(&w->mutex);
  cmkd_chunk_coder_free(coder);
  free(planes);
  return NULL;
}

static void *publisher(void *argument) {
  cmkd_cache_writer *w = argument;
  pthread_mutex_lock(&w->mutex);
  for (;;) {
    while (!(w->sealed && !w->sealed->pending) && !(w->stop && !w->sealed))
      pthread_cond_wait(&w->changed, &w->mutex);
    if (!w->sealed) break;
    cmkd_shard_buffer *shard = w->sealed;
    cmkd_status status = w->failure.status;
    pthread_mutex_unlock(&w->mutex);
    cmkd_error err = {0};
    if (status == CMKD_OK) status = cmkd_writer_publish(w, shard, &err);
    cmkd_shard_buffer_free(w, shard);
    pthread_mutex_lock(&w->mutex);
    if (status != CMKD_OK) fail_locked(w, &err);
    w->sealed = NULL;
    pthread_cond_broadcast(&w->changed);
  }
  pthread_mutex_unlock(&w->mutex);
  return NULL;
}

cmkd_status cmkd_writer_threads_start(cmkd_cache_writer *w, cmkd_error *err) {
  w->threads = calloc((size_t)w->thread_count, sizeof *w->threads);
  if (!w->threads) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for threads");
  for (; w->threads_started < w->thread_count; w->threads_started++)
    if (pthread_create(w->threads + w->threads_started, NULL, compressor, w) != 0)
      return cmkd_fail(err, CMKD_ERR_MEMORY, "cannot start %d threads; use fewer", w->thread_count);
  if (pthread_create(&w->publisher, NULL, publisher, w) != 0)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "cannot start a thread; use fewer");
  w->publisher_started = 1;
  return CMKD_OK;
}

void cmkd_writer_threads_stop(cmkd_cache_writer *w) {
  pthread_mutex_lock(&w->mutex);
  w->stop = 1;
  pthread_cond_broadcast(&w->job);
  pthread_cond_broadcast(&w->changed);
  pthread_mutex_unlock(&w->mutex);
  if (w->publisher_started) pthread_join(w->publisher, NULL);
  for (int i = 0; i < w->threads_started; i++)
    pthread_join(w->threads[i], NULL);
  free(w->threads);
}

static cmkd_status failed_locked(const cmkd_cache_writer *w, cmkd_error *err) {
  if (w->failure.status != CMKD_OK && err) *err = w->failure;
  return w->failure.status;
}

cmkd_status cmkd_writer_failed(cmkd_cache_writer *w, cmkd_error *err) {
  pthread_mutex_lock(&w->mutex);
  cmkd_status status = failed_locked(w, err);
  pthread_mutex_unlock(&w->mutex);
  return status;
}

cmkd_status cmkd_writer_submit(cmkd_cache_writer *w, cmkd_chunk_job job, cmkd_error *err) {
  pthread_mutex_lock(&w->mutex);
  unsigned most = (unsigned)w->thread_count * 2 < CMKD_WRITER_QUEUE ? (unsigned)w->thread_count * 2 : CMKD_WRITER_QUEUE;
  while (w->queued >= most && w->failure.status == CMKD_OK)
    pthread_cond_wait(&w->space, &w->mutex);
  cmkd_status status = failed_locked(w, err);
  if (status == CMKD_OK) {
    w->queue[(w->head_at + w->queued) % CMKD_WRITER_QUEUE] = job;
    w->queued++;
    job.shard->pending++;
    pthread_cond_signal(&w->job);
  }
  pthread_mutex_unlock(&w->mutex);
  return status;
}

cmkd_status cmkd_writer_seal(cmkd_cache_writer *w, cmkd_shard_buffer *shard, cmkd_error *err) {
  pthread_mutex_lock(&w->mutex);
  while (w->sealed && w->failure.status == CMKD_OK)
    pthread_cond_wait(&w->changed, &w->mutex);
  cmkd_status status = failed_locked(w, err);
  if (status == CMKD_OK) {
    w->sealed = shard;
    pthread_cond_broadcast(&w->changed);
  }
  pthread_mutex_unlock(&w->mutex);
  return status;
}

void cmkd_writer_drain(cmkd_cache_writer *w, const cmkd_shard_buffer *shard) {
  pthread_mutex_lock(&w->mutex);
  while (shard->pending)
    pthread_cond_wait(&w->changed, &w->mutex);
  pthread_mutex_unlock(&w->mutex);
}

cmkd_status cmkd_cache_writer_wait(cmkd_cache_writer *w, cmkd_error *err) {
  pthread_mutex_lock(&w->mutex);
  while (w->sealed && w->failure.status == CMKD_OK)
    pthread_cond_wait(&w->changed, &w->mutex);
  cmkd_status status = failed_locked(w, err);
  pthread_mutex_unlock(&w->mutex);
  return status;
}

void cmkd_cache_writer_get_stats(cmkd_cache_writer *w, cmkd_cache_writer_stats *out) {
  pthread_mutex_lock(&w->mutex);
  *out = w->stats;
  pthread_mutex_unlock(&w->mutex);
}
