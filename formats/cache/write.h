/* Writing a cache: say who and what, hand over rows in any order within a shard, finish. Compression runs on threads of
 * the writer's own and a finished shard is published while the next one fills. A shard appears under its name complete
 * or not at all; a build that died is continued by opening the same spec again. docs/cache-format.md is the
 * specification.
 *
 *   cmkd_cache_writer_open(path, &spec, &w, &err);
 *   for k in 0 .. cmkd_cache_writer_shards(w):              // any subset, any order; or cmkd_cache_writer_add for all
 * at once cmkd_cache_writer_begin(w, k, &state, &err);          // DONE or BUSY: go on with another one
 *     cmkd_cache_writer_samples(w, ids, labels, seeds, &err);
 *     cmkd_cache_writer_put(w, view, first, count, logits, &err) ...
 *     cmkd_cache_writer_end(w, &err);
 *   cmkd_cache_writer_finish(w, &info, &err);               // every shard is there: writes the master
 *   cmkd_cache_writer_close(w);
 *
 * One thread calls; errors of the background work come out of the next call. */
#ifndef CMKD_FORMATS_CACHE_WRITE_H
#define CMKD_FORMATS_CACHE_WRITE_H
#include <stddef.h>
#include "cmkd/cache.h"

typedef struct cmkd_cache_spec {
  cmkd_cache_identity identity; /* identity.codec names the codec */
  uint64_t samples;
  uint32_t views, classes;         /* views includes the clean one */
  const char *const *class_names;  /* (classes) UTF-8, or NULL; copied */
  uint32_t shard_rows, chunk_rows; /* samples; 0: chosen from the shape */
  int threads;                     /* of compression; 0: all cores */
} cmkd_cache_spec;

typedef struct cmkd_cache_writer cmkd_cache_writer;
typedef enum cmkd_shard_state {
  CMKD_SHARD_NEEDED, /* the caller fills it now, or calls cmkd_cache_writer_abandon */
  CMKD_SHARD_DONE,   /* on disk, same configuration, hash checked */
  CMKD_SHARD_BUSY    /* another process is writing it: ask again later */
} cmkd_shard_state;

typedef struct cmkd_writer_stats {
  uint64_t rows, raw_bytes, file_bytes; /* written by this writer; rows = samples * views, raw = before compression */
  uint64_t reused_rows;                 /* found done */
  double compress_seconds;              /* summed over threads */
  double write_seconds;                 /* image, hashes, write, fsync, rename */
} cmkd_writer_stats;

/* Makes the folder, refuses a PATH that holds something else (another cache, a foreign file) and a running build of
 * another configuration. */
cmkd_status cmkd_cache_writer_open(const char *path, const cmkd_cache_spec *spec, cmkd_cache_writer **out,
                                   cmkd_error *err);
/* The same for a folder of finished shards whose spec is theirs (`cmkd-cache finish`): begin/finish only. */
cmkd_status cmkd_cache_writer_join(const char *path, cmkd_cache_writer **out, cmkd_error *err);
void cmkd_cache_writer_close(cmkd_cache_writer *w); /* drops a shard in work; waits for sealed ones */

uint32_t cmkd_cache_writer_shards(const cmkd_cache_writer *w);
void cmkd_cache_writer_range(const cmkd_cache_writer *w, uint32_t k, uint64_t *first, uint32_t *count);
uint32_t cmkd_cache_writer_chunk_rows(const cmkd_cache_writer *w);

cmkd_status cmkd_cache_writer_begin(cmkd_cache_writer *w, uint32_t k, cmkd_shard_state *state, cmkd_error *err);
/* All samples of the shard: ids (n), labels (n) in [0, classes), seeds (n, views). Copied. */
cmkd_status cmkd_cache_writer_samples(cmkd_cache_writer *w, const uint64_t *ids, const int32_t *labels,
                                      const uint64_t *seeds, cmkd_error *err);
/* Rows first .. first + count of the shard, one view: logits (count, classes), the next row `stride` floats on. Each
 * row once. Refuses numbers that the codec can't hold, naming the sample. */
cmkd_status cmkd_cache_writer_put(cmkd_cache_writer *w, uint32_t view, uint32_t first, uint32_t count,
                                  const float *logits, size_t stride, cmkd_error *err);
/* Seals: every row was put. Returns while the shard is still being written. */
cmkd_status cmkd_cache_writer_end(cmkd_cache_writer *w, cmkd_error *err);
void cmkd_cache_writer_abandon(cmkd_cache_writer *w);

/* Whole samples in order, all views: ids (count), labels (count), seeds (count, views), logits (count, views, classes).
 * Begins and ends shards by itself; samples of shards that are done are skipped, a shard that another process writes is
 * waited for. */
cmkd_status cmkd_cache_writer_add(cmkd_cache_writer *w, uint32_t count, const uint64_t *ids, const int32_t *labels,
                                  const uint64_t *seeds, const float *logits, cmkd_error *err);

/* Waits until every sealed shard is published. */
cmkd_status cmkd_cache_writer_wait(cmkd_cache_writer *w, cmkd_error *err);
/* Checks that all shards are there and writes the master. Missing ones fail by number. */
cmkd_status cmkd_cache_writer_finish(cmkd_cache_writer *w, cmkd_error *err);
void cmkd_cache_writer_stats(cmkd_cache_writer *w, cmkd_writer_stats *out);
#endif
