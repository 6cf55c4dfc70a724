/* Inside of the writer, shared by write.c (what callers see), compress.c (threads) and publish.c (files). */
#ifndef CMKD_FORMATS_CACHE_WRITER_H
#define CMKD_FORMATS_CACHE_WRITER_H
#include <pthread.h>
#include "formats/cache/hdf5.h"
#include "formats/cache/lock.h"
#include "formats/cache/meta.h"
#include "cmkd/cache_writer.h"

typedef struct cmkd_chunk_work {
  uint8_t *items;
  uint32_t filled;
  uint8_t *stored;
  size_t size;
} cmkd_chunk_work;

typedef struct cmkd_shard_work {
  cmkd_shard_meta meta;
  uint32_t rows; /* of a chunk */
  int32_t *labels;
  uint64_t *ids, *seeds;
  uint16_t *row_max, *row_range;       /* (n), (n), (views, n) ... in one allocation */
  cmkd_chunk_work *chunks;             /* (views, blocks) */
  uint64_t chunk_count, full, pending; /* full: filled; pending: queued or being compressed */
  int have_samples;
  cmkd_lock lock;
} cmkd_shard_work;

typedef struct cmkd_chunk_job {
  cmkd_shard_work *shard;
  uint64_t chunk;
} cmkd_chunk_job;
#define CMKD_WRITER_QUEUE 64
typedef struct cmkd_free_buffer {
  struct cmkd_free_buffer *next;
} cmkd_free_buffer; /* a free buffer, linked through itself */

struct cmkd_cache_writer {
  char *path, *dir, *folder; /* the master; its folder; DIR/NAME.shards */
  char *folder_name;
  cmkd_cache_head head;
  char *head_text; /* the configuration */
  const cmkd_codec *codec;
  uint32_t keep;
  float *thin;               /* of codecs that keep K logits: K, one row (classes) */
  cmkd_shard_entry *entries; /* (shards); block_sha256 is empty until known to be done */
  cmkd_lock session;
  cmkd_shard_work *filling;
  uint64_t added;                 /* cmkd_cache_writer_add: samples so far */
  int add_open, add_skip;         /* a shard was begun by add; it was found done */
  cmkd_image image;               /* of the shard being published, then of the master */
  pthread_mutex_t buffer_mutex;   /* guards rooms */
  cmkd_free_buffer *free_buffers; /* free buffers, each fit for a chunk, raw or compressed */
  /* everything below is guarded by `mutex` */
  pthread_mutex_t mutex;
  pthread_cond_t work, space, changed; /* a job came; a job left; a shard was sealed or published, or an error */
  pthread_t *threads, publisher;
  int thread_count, threads_started, publisher_started, stop;
  cmkd_chunk_job queue[CMKD_WRITER_QUEUE];
  unsigned head_at, queued;
  cmkd_shard_work *sealed; /* being finished; at most one */
  cmkd_error failure;      /* first error of the background work */
  cmkd_cache_writer_stats stats;
};

/* compress.c */
cmkd_status cmkd_writer_threads_start(cmkd_cache_writer *w, cmkd_error *err);
void cmkd_writer_threads_stop(cmkd_cache_writer *w);
cmkd_status cmkd_writer_submit(cmkd_cache_writer *w, cmkd_shard_work *shard, uint64_t chunk,
                               cmkd_error *err);                                             /* waits for room */
cmkd_status cmkd_writer_seal(cmkd_cache_writer *w, cmkd_shard_work *shard, cmkd_error *err); /* takes the shard */
void cmkd_writer_drain(cmkd_cache_writer *w,
                       const cmkd_shard_work *shard);                  /* waits until none of its chunks is in work */
cmkd_status cmkd_writer_failed(cmkd_cache_writer *w, cmkd_error *err); /* the background's error, if any */
uint8_t *cmkd_writer_buffer_take(cmkd_cache_writer *w);                /* NULL when out of memory */
void cmkd_writer_buffer_return(cmkd_cache_writer *w, uint8_t *buffer); /* NULL is fine */
void cmkd_writer_buffers_free(cmkd_cache_writer *w);

/* publish.c */
void cmkd_shard_work_free(cmkd_cache_writer *w, cmkd_shard_work *shard);
cmkd_status cmkd_writer_publish(cmkd_cache_writer *w, cmkd_shard_work *shard, cmkd_error *err);
/* Is shard k on disk, whole, with our configuration? Fills its entry if so. */
int cmkd_writer_check(cmkd_cache_writer *w, uint32_t k);
char *cmkd_writer_shard_path(const cmkd_cache_writer *w, uint32_t k);
#endif
