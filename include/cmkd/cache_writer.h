/* Teacher caches: writing. A cache is a master file and a folder of shards beside it (docs/cache-format.md); a shard
 * appears under its name complete or not at all. A build that was killed is continued by opening the same spec on the
 * same path again: shards that are whole and were made from an equal spec are found done. Several processes may build
 * one cache at a time, each shard is written by one of them.
 *
 * Order of calls: open; for each shard that is needed begin, samples, put... for every row of the logits and
 * put_array... for every row of each named array, end (or add, which does all of that for a cache without named
 * arrays); finish; close. docs/examples/cache_writer.c is a whole program.
 *
 * Threads: one thread at a time calls the functions of one writer; different writers are independent. A writer has
 * threads of its own that compress rows and publish a finished shard while the caller fills the next one, so a failure
 * of theirs (a full disk) is returned by a later call. After a failure of end, wait or finish the writer is only good
 * for cmkd_cache_writer_close; nothing unfinished stays behind under a final name.
 *
 * No pointer may be NULL unless that is said; `err` may always be. */
#ifndef CMKD_CACHE_WRITER_H
#define CMKD_CACHE_WRITER_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/cache.h"
#ifdef __cplusplus
extern "C" {
#endif

/* What the cache will hold and who made it. Everything is copied by cmkd_cache_writer_open. */
typedef struct cmkd_cache_spec {
  cmkd_cache_identity identity;   /* teacher_sha256 and codec must be set, the rest may be zeros */
  uint64_t samples;               /* 1 to 2^32 - 1 */
  uint32_t views;                 /* with the clean one; 1 to CMKD_CACHE_MAX_VIEWS */
  uint32_t classes;               /* 1 to CMKD_CACHE_MAX_CLASSES */
  const char *const *class_names; /* (classes) UTF-8, or NULL */
  uint32_t shard_samples;         /* samples of a shard; 0: chosen from the shape */
  uint32_t chunk_samples;         /* samples of a chunk, the unit of reading; 0: chosen from the shape */
  int threads;                    /* that compress; 0: as many as there are cores. Does not show in the files */
  const cmkd_cache_array *arrays; /* (array_count) named arrays beside the logits, or NULL */
  uint32_t array_count;           /* 0 to CMKD_CACHE_MAX_ARRAYS */
} cmkd_cache_spec;

typedef struct cmkd_cache_writer cmkd_cache_writer;

typedef enum cmkd_cache_shard_state {
  CMKD_CACHE_SHARD_NEEDED, /* the caller fills and ends it now, or calls cmkd_cache_writer_abandon */
  CMKD_CACHE_SHARD_DONE,   /* on disk, made from an equal spec, its hash is right */
  CMKD_CACHE_SHARD_BUSY    /* another process is writing it: ask again later */
} cmkd_cache_shard_state;

typedef struct cmkd_cache_writer_stats {
  uint64_t rows;           /* samples * views written by this writer */
  uint64_t raw_bytes;      /* of their numbers before compression */
  uint64_t file_bytes;     /* of the shards written */
  uint64_t reused_rows;    /* samples * views in shards that were found done */
  double compress_seconds; /* summed over threads */
  double write_seconds;    /* building file images, hashing, write, fsync, rename */
} cmkd_cache_writer_stats;

/* Checks the spec, makes the folder of shards and starts the threads. `path` is the master's name, best ending in .h5;
 * it is created by finish. Fails with CMKD_ERR_USAGE for a spec that makes no cache, CMKD_ERR_MISMATCH where `path`
 * holds something else (another cache, a foreign file) or a build of another spec is running there, CMKD_ERR_IO where
 * the folder can't be written. *out is NULL after a failure. */
CMKD_API cmkd_status cmkd_cache_writer_open(const char *path, const cmkd_cache_spec *spec, cmkd_cache_writer **out,
                                            cmkd_error *err);
/* The same for a folder that holds at least one shard, with the spec that is found there: for checking and finishing a
 * cache whose parts were built by others. */
CMKD_API cmkd_status cmkd_cache_writer_join(const char *path, cmkd_cache_writer **out, cmkd_error *err);
/* Drops a shard that was begun and not ended, waits for those that were ended, stops the threads. NULL does nothing. */
CMKD_API void cmkd_cache_writer_close(cmkd_cache_writer *writer);

/* How many shards there are; which samples shard k < shards holds: *first and *count; samples of a chunk: rows put in
 * multiples of that, from a multiple of it, are compressed soonest. */
CMKD_API uint32_t cmkd_cache_writer_shards(const cmkd_cache_writer *writer);
CMKD_API void cmkd_cache_writer_range(const cmkd_cache_writer *writer, uint32_t k, uint64_t *first, uint32_t *count);
CMKD_API uint32_t cmkd_cache_writer_chunk_samples(const cmkd_cache_writer *writer);

/* Claims shard k, in any order; one shard is filled at a time. Only after *state CMKD_CACHE_SHARD_NEEDED may samples,
 * put, end and abandon follow. */
CMKD_API cmkd_status cmkd_cache_writer_begin(cmkd_cache_writer *writer, uint32_t k, cmkd_cache_shard_state *state,
                                             cmkd_error *err);
/* All n samples of the shard: ids (n), positions in the data set's split; labels (n), each in [0, classes); seeds
 * (n, views). Copied. Once, before end. CMKD_ERR_VALUE names a sample whose label is out of range. */
CMKD_API cmkd_status cmkd_cache_writer_samples(cmkd_cache_writer *writer, const uint64_t *ids, const int32_t *labels,
                                               const uint64_t *seeds, cmkd_error *err);
/* Logits of samples [first, first + count) of the shard, one view: (count, classes) floats, the next row `stride` >=
 * classes floats on. Copied. Each row once, in any order (a row put twice is not always noticed, and another is then
 * missing). CMKD_ERR_VALUE names the sample of a number that is not
 * finite or that the codec can't hold. */
CMKD_API cmkd_status cmkd_cache_writer_put(cmkd_cache_writer *writer, uint32_t view, uint32_t first, uint32_t count,
                                           const float *logits, size_t stride, cmkd_error *err);
/* The same for rows of the named array: values (count, elements), the next row `stride` >= elements floats on.
 * CMKD_ERR_USAGE for a name that the spec did not declare. */
CMKD_API cmkd_status cmkd_cache_writer_put_array(cmkd_cache_writer *writer, const char *name, uint32_t view,
                                                 uint32_t first, uint32_t count, const float *values, size_t stride,
                                                 cmkd_error *err);
/* The shard is full: hands it to the threads and returns while it is still being written. Waits for the shard before,
 * so at most two are in memory. CMKD_ERR_USAGE when rows or samples are missing. */
CMKD_API cmkd_status cmkd_cache_writer_end(cmkd_cache_writer *writer, cmkd_error *err);
/* Drops the shard that was begun; nothing happens when there is none. */
CMKD_API void cmkd_cache_writer_abandon(cmkd_cache_writer *writer);

/* The next `count` samples of the cache, whole and in order: ids (count), labels (count), seeds (count, views), logits
 * (count, views, classes). Begins and ends shards by itself; samples of shards that are done are skipped, and a shard
 * that another process is writing is waited for. Not to be mixed with begin, and not for caches with named arrays. */
CMKD_API cmkd_status cmkd_cache_writer_add(cmkd_cache_writer *writer, uint32_t count, const uint64_t *ids,
                                           const int32_t *labels, const uint64_t *seeds, const float *logits,
                                           cmkd_error *err);

/* Waits until every ended shard is on disk. */
CMKD_API cmkd_status cmkd_cache_writer_wait(cmkd_cache_writer *writer, cmkd_error *err);
/* Waits, checks that all shards are there (those of other processes, too) and writes the master. CMKD_ERR_FORMAT lists
 * the shards that are missing. */
CMKD_API cmkd_status cmkd_cache_writer_finish(cmkd_cache_writer *writer, cmkd_error *err);
/* What was written so far. */
CMKD_API void cmkd_cache_writer_get_stats(cmkd_cache_writer *writer, cmkd_cache_writer_stats *out);

#ifdef __cplusplus
}
#endif
#endif
