/* Verifies shard by shard, several at a time. */
#include "formats/cache/reader/verify.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cpu.h"
#include "base/file.h"
#include "formats/cache/hash.h"
#include "formats/cache/reader/reader.h"

typedef struct verify {
  cmkd_cache *cache;
  int deep;
  void (*each)(void *context, uint32_t shard, const cmkd_error *err);
  void *context;
  cmkd_verify_report *report;
  pthread_mutex_t mutex; /* guards next, report and calls of each */
  uint32_t next;
} verify;

typedef struct scratch {
  uint8_t *stored, *raw, *small;
  float *rows;
  uint16_t *numbers;
  cmkd_chunk_coder *coder;
} scratch;
#define STEP (1u << 20)

static cmkd_status hash_payload(const cmkd_shard *shard, uint8_t *buffer, cmkd_error *err) {
  char hex[CMKD_SHA256_HEX] = "";
  cmkd_hasher *hasher = cmkd_hasher_start();
  cmkd_status status = hasher ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to check it", shard->path);
  for (uint64_t at = shard->block_size; at < shard->file_size && status == CMKD_OK;) {
    cmkd_extent extent = {at - shard->block_size, shard->file_size - at < STEP ? shard->file_size - at : STEP, 0};
    status = cmkd_shard_bytes(shard, &extent, buffer, err);
    if (status == CMKD_OK) cmkd_hasher_update(hasher, buffer, (size_t)extent.size);
    at += extent.size;
  }
  cmkd_hasher_finish(hasher, hex);
  if (status == CMKD_OK && strcmp(hex, shard->payload_sha256) != 0)
    status = cmkd_fail(err, CMKD_ERR_FORMAT,
                       "%s: corrupt (its hash does not match); delete it and run the same build again", shard->path);
  return status;
}

static cmkd_status check_arrays(const verify *v, const cmkd_shard *shard, const scratch *s, cmkd_error *err) {
  uint32_t n = shard->meta.samples;
  CMKD_TRY(cmkd_shard_array(shard, &shard->meta.sample_id, "/sample_id", s->small, err));
  for (uint32_t view = 0; view < v->cache->info.views; view++) {
    CMKD_TRY(cmkd_shard_array(shard, shard->meta.seeds + view, "/seeds", s->small, err));
    if (v->cache->codec->row_numbers) CMKD_TRY(cmkd_shard_row_numbers(shard, view, s->numbers, s->numbers + n, err));
  }
  CMKD_TRY(cmkd_shard_array(shard, &shard->meta.label, "/label", s->small, err));
  for (uint32_t i = 0; i < n; i++) {
    int32_t label;
    memcpy(&label, s->small + 4 * (size_t)i, 4);
    if (label < 0 || (uint32_t)label >= v->cache->info.classes)
      return cmkd_fail(err, CMKD_ERR_VALUE, "%s: label %d of sample %" PRIu64 " is outside 0..%u", shard->path, label,
                       shard->meta.first + i, v->cache->info.classes - 1);
  }
  return CMKD_OK;
}

static cmkd_status check_chunk(const verify *v, const cmkd_shard *shard, uint32_t view, uint32_t block,
                               const scratch *s, cmkd_error *err) {
  const cmkd_cache *cache = v->cache;
  size_t C = cache->info.classes, offset = (size_t)block * shard->rows,
         rows = shard->meta.samples - offset < shard->rows ? shard->meta.samples - offset : shard->rows;
  const cmkd_extent *extent = shard->meta.logits + (size_t)view * shard->meta.blocks + block;
  CMKD_TRY(cmkd_shard_chunk(cache, shard, view, block, s->coder, s->stored, s->raw, err));
  if (cmkd_xxh64(s->stored, (size_t)extent->size) != extent->hash)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: chunk %u of view %u does not match its hash; delete that file and run the same build again",
                     shard->path, block, view);
  uint16_t *max = s->numbers ? s->numbers + offset : NULL,
           *range = s->numbers ? s->numbers + shard->meta.samples + offset : NULL;
  cmkd_chunk_view chunk = {s->raw, (size_t)shard->rows * C, C, max, range};
  cache->codec->decode(&chunk, 0, rows, s->rows);
  int64_t bad = cmkd_codec_first_bad(s->rows, rows * C, 3.4e38);
  if (bad >= 0)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "%s: the logit of sample %" PRIu64
                     ", view %u, class %zu is not finite; build it again from sound weights",
                     shard->path, shard->meta.first + offset + (uint64_t)bad / C, view, (size_t)bad % C);
  return CMKD_OK;
}

static cmkd_status check_shard(const verify *v, uint32_t k, const scratch *s, cmkd_error *err) {
  const cmkd_shard *shard = v->cache->shards + k;
  CMKD_TRY(hash_payload(shard, s->small, err));
  CMKD_TRY(check_arrays(v, shard, s, err));
  for (uint32_t view = 0; v->deep && view < v->cache->info.views; view++) {
    if (v->cache->codec->row_numbers)
      CMKD_TRY(cmkd_shard_row_numbers(shard, view, s->numbers, s->numbers + shard->meta.samples, err));
    for (uint32_t block = 0; block < shard->meta.blocks; block++)
      CMKD_TRY(check_chunk(v, shard, view, block, s, err));
  }
  return CMKD_OK;
}

static void *run(void *argument) {
  verify *v = argument;
  const cmkd_cache_head *head = &v->cache->master.head;
  size_t elements = (size_t)head->chunk_rows * head->classes,
         most = head->shard_rows < head->samples ? head->shard_rows : (size_t)head->samples;
  scratch s = {malloc(cmkd_cache_stored_bound(v->cache)),
               malloc(elements * (size_t)v->cache->codec->item),
               malloc(most * 8 > STEP ? most * 8 : STEP),
               malloc(elements * sizeof *s.rows),
               NULL,
               cmkd_chunk_coder_create()};
  if (v->cache->codec->row_numbers) s.numbers = malloc(most * 4);
  int fine = s.stored && s.raw && s.small && s.rows && s.coder && (s.numbers || !v->cache->codec->row_numbers);
  pthread_mutex_lock(&v->mutex);
  while (v->next < head->shards) {
    uint32_t k = v->next++;
    pthread_mutex_unlock(&v->mutex);
    cmkd_error err = {0};
    cmkd_status status = fine ? check_shard(v, k, &s, &err)
                              : cmkd_fail(&err, CMKD_ERR_MEMORY, "%s: no memory to check it", v->cache->shards[k].path);
    pthread_mutex_lock(&v->mutex);
    cmkd_verify_report *report = v->report;
    report->shards++;
    report->bytes += v->cache->shards[k].file_size;
    if (v->deep) report->chunks += (uint64_t)v->cache->shards[k].meta.blocks * head->views;
    if (v->deep) report->rows += (uint64_t)v->cache->shards[k].meta.samples * head->views;
    if (status != CMKD_OK && !report->problems++) report->first = err;
    if (v->each) v->each(v->context, k, status == CMKD_OK ? NULL : &err);
  }
  pthread_mutex_unlock(&v->mutex);
  free(s.stored);
  free(s.raw);
  free(s.small);
  free(s.rows);
  free(s.numbers);
  cmkd_chunk_coder_free(s.coder);
  return NULL;
}

cmkd_status cmkd_cache_verify(cmkd_cache *cache, int deep, int threads,
                              void (*each)(void *context, uint32_t shard, const cmkd_error *err), void *context,
                              cmkd_verify_report *report, cmkd_error *err) {
  (void)err;
  enum { MOST = 64 };
  pthread_t started[MOST];
  verify v = {.cache = cache,
              .deep = deep,
              .each = each,
              .context = context,
              .report = report,
              .mutex = PTHREAD_MUTEX_INITIALIZER};
  int wanted = threads > 0 ? threads : cmkd_cpu_count(), count = 0;
  memset(report, 0, sizeof *report);
  if (wanted > MOST) wanted = MOST;
  if ((uint32_t)wanted > cache->info.shards) wanted = (int)cache->info.shards;
  while (count < wanted - 1 && pthread_create(started + count, NULL, run, &v) == 0)
    count++;
  run(&v);
  for (int i = 0; i < count; i++)
    pthread_join(started[i], NULL);
  return CMKD_OK;
}
