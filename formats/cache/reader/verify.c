/* Verifies shard by shard, several at a time. */
#include "formats/cache/reader/verify.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/cpu.h"
#include "formats/cache/hash.h"
#include "formats/cache/reader/reader.h"

typedef struct verify {
  cmkd_cache *cache;
  int deep;
  void (*each)(void *self, uint32_t shard, const cmkd_error *err);
  void *self;
  cmkd_verify_report *report;
  pthread_mutex_t mutex; /* guards next, report and calls of each */
  uint32_t next;
} verify;

/* What a thread works with. */
typedef struct scratch {
  cmkd_chunk_coder *coder;
  uint8_t *stored, *raw; /* a chunk as in the file, and decompressed */
  float *rows;           /* decoded */
  uint8_t *small;        /* ids, labels or seeds of a shard */
  uint16_t *numbers;     /* row numbers of a shard and view: max, then range */
} scratch;

static int has_row_numbers(const verify *v) { return cmkd_cache_layout_at(v->cache, 0)->codec->row_numbers; }

static cmkd_status check_payload(const cmkd_shard *shard, cmkd_error *err) {
  char hex[CMKD_SHA256_HEX];
  CMKD_TRY(cmkd_shard_payload_sha256(shard, hex, err));
  if (!strcmp(hex, shard->payload_sha256)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_FORMAT,
                   "%s: corrupt (its hash does not match); delete it and run the same build again", shard->path);
}

static cmkd_status check_arrays(const verify *v, const cmkd_shard *shard, const scratch *s, cmkd_error *err) {
  uint32_t n = shard->meta.samples;
  CMKD_TRY(cmkd_shard_array(shard, &shard->meta.sample_id, "/sample_id", s->small, err));
  for (uint32_t view = 0; view < v->cache->info.views; view++) {
    CMKD_TRY(cmkd_shard_array(shard, shard->meta.seeds + view, "/seeds", s->small, err));
    if (has_row_numbers(v)) CMKD_TRY(cmkd_shard_row_numbers(shard, view, s->numbers, s->numbers + n, err));
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

static cmkd_status refuse_value(const cmkd_cache *cache, cmkd_chunk_place at, uint64_t sample, size_t number,
                                cmkd_error *err) {
  if (!at.layout)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "%s: the logit of sample %" PRIu64
                     ", view %u, class %zu is not finite; build it again from sound weights",
                     at.shard->path, sample, at.view, number);
  return cmkd_fail(err, CMKD_ERR_VALUE, "%s: number %zu of the row of /%s of sample %" PRIu64 ", view %u is not finite",
                   at.shard->path, number, cmkd_cache_layout_at(cache, at.layout)->array.name, sample, at.view);
}

static cmkd_status check_chunk(const verify *v, cmkd_chunk_place at, const scratch *s, cmkd_error *err) {
  const cmkd_cache *cache = v->cache;
  const cmkd_array_layout *layout = cmkd_cache_layout_at(cache, at.layout);
  const uint32_t samples = at.shard->meta.samples, whole = at.shard->meta.tables[at.layout].chunk_samples;
  size_t C = layout->array.elements, offset = (size_t)at.chunk * whole,
         rows = samples - offset < whole ? samples - offset : whole;
  const cmkd_extent *extent = cmkd_chunk_extent(at);
  CMKD_TRY(cmkd_shard_chunk(cache, at, s->coder, s->stored, s->raw, err));
  if (cmkd_xxh64(s->stored, (size_t)extent->size) != extent->hash)
    return cmkd_fail(
        err, CMKD_ERR_FORMAT,
        "%s: chunk %u of view %u%s%s does not match its hash; delete that file and run the same build again",
        at.shard->path, at.chunk, at.view, at.layout ? " of /" : "", at.layout ? layout->array.name : "");
  cmkd_chunk_view chunk = {s->raw, whole * C, C, NULL, NULL};
  if (layout->codec->row_numbers) {
    chunk.row_max = s->numbers + offset;
    chunk.row_range = s->numbers + samples + offset;
  }
  layout->codec->decode(&chunk, 0, rows, s->rows);
  int64_t bad = cmkd_codec_first_bad(s->rows, rows * C, 3.4e38);
  if (bad < 0) return CMKD_OK;
  return refuse_value(cache, at, at.shard->meta.first + offset + (uint64_t)bad / C, (size_t)bad % C, err);
}

static cmkd_status check_shard(const verify *v, uint32_t k, const scratch *s, cmkd_error *err) {
  const cmkd_shard *shard = v->cache->shards + k;
  CMKD_TRY(check_payload(shard, err));
  CMKD_TRY(check_arrays(v, shard, s, err));
  for (uint32_t view = 0; v->deep && view < v->cache->info.views; view++) {
    if (has_row_numbers(v))
      CMKD_TRY(cmkd_shard_row_numbers(shard, view, s->numbers, s->numbers + shard->meta.samples, err));
    for (uint32_t a = 0; a < v->cache->master.config.layout_count; a++)
      for (uint32_t chunk = 0; chunk < shard->meta.tables[a].chunks_per_view; chunk++)
        CMKD_TRY(check_chunk(v, (cmkd_chunk_place){shard, a, view, chunk}, s, err));
  }
  return CMKD_OK;
}

static uint64_t chunks_of(const cmkd_cache_config *config, const cmkd_shard *shard) {
  uint64_t chunks = 0;
  for (uint32_t a = 0; a < config->layout_count; a++)
    chunks += (uint64_t)shard->meta.tables[a].chunks_per_view * config->views;
  return chunks;
}

static void *run(void *argument) {
  verify *v = argument;
  const cmkd_cache_config *config = &v->cache->master.config;
  const size_t samples = config->shard_samples < config->samples ? config->shard_samples : (size_t)config->samples;
  size_t raw = 0, elements = 0;
  for (uint32_t a = 0; a < config->layout_count; a++) {
    const cmkd_array_layout *layout = config->layouts + a;
    const size_t numbers = (size_t)layout->array.chunk_samples * layout->array.elements;
    if (numbers > elements) elements = numbers;
    if (cmkd_layout_chunk_bytes(layout) > raw) raw = cmkd_layout_chunk_bytes(layout);
  }
  scratch s = {.stored = malloc(cmkd_chunk_bound(raw)),
               .raw = malloc(raw),
               .small = malloc(samples * 8),
               .rows = malloc(elements * sizeof *s.rows),
               .numbers = malloc(samples * 4),
               .coder = cmkd_chunk_coder_create()};
  int fine = s.stored && s.raw && s.small && s.rows && s.numbers && s.coder;
  pthread_mutex_lock(&v->mutex);
  while (v->next < config->shards) {
    uint32_t k = v->next++;
    pthread_mutex_unlock(&v->mutex);
    cmkd_error err = {0};
    cmkd_status status = fine ? check_shard(v, k, &s, &err)
                              : cmkd_fail(&err, CMKD_ERR_MEMORY, "%s: no memory to check it", v->cache->shards[k].path);
    pthread_mutex_lock(&v->mutex);
    cmkd_verify_report *report = v->report;
    report->shards++;
    report->bytes += v->cache->shards[k].file_size;
    if (v->deep) report->chunks += chunks_of(config, v->cache->shards + k);
    if (v->deep) report->rows += (uint64_t)v->cache->shards[k].meta.samples * config->views;
    if (status != CMKD_OK && !report->problems++) report->first = err;
    if (v->each) v->each(v->self, k, status == CMKD_OK ? NULL : &err);
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

void cmkd_cache_verify(cmkd_cache *cache, int deep, int threads,
                       void (*each)(void *self, uint32_t shard, const cmkd_error *err), void *self,
                       cmkd_verify_report *report) {
  enum { MOST = 64 };
  pthread_t started[MOST];
  verify v = {
      .cache = cache, .deep = deep, .each = each, .self = self, .report = report, .mutex = PTHREAD_MUTEX_INITIALIZER};
  int wanted = threads > 0 ? threads : cmkd_cpu_count(), count = 0;
  memset(report, 0, sizeof *report);
  if (wanted > MOST) wanted = MOST;
  if ((uint32_t)wanted > cache->info.shards) wanted = (int)cache->info.shards;
  while (count < wanted - 1 && pthread_create(started + count, NULL, run, &v) == 0)
    count++;
  run(&v);
  for (int i = 0; i < count; i++)
    pthread_join(started[i], NULL);
}
