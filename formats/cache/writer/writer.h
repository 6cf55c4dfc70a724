/* Inside of the writer. Who calls whom: open.c (what callers open and close) -> fill.c (what they put) -> threads.c
 * (compression, publishing in the background) -> publish.c (files) -> buffers.c (memory). */
#ifndef CMKD_FORMATS_CACHE_WRITER_WRITER_H
#define CMKD_FORMATS_CACHE_WRITER_WRITER_H
#include <pthread.h>
#include "base/lock.h"
#include "cmkd/cache_writer.h"
#include "formats/cache/meta.h"
#include "formats/cache/writer/hdf5.h"

/* One chunk: items (rows as the codec stores them) while it fills, then stored (compressed), then neither. */
typedef struct cmkd_chunk_buffer {
  uint8_t *items, *stored; /* buffers of the pool, or NULL */
  uint32_t filled;         /* rows put so far */
  size_t size;             /* of stored; 0: compression failed */
} cmkd_chunk_buffer;

/* A shard, from begin until its file is written. */
typedef struct cmkd_shard_buffer {
  cmkd_shard_meta meta;
  uint64_t *seeds;               /* (views, n); one allocation with the arrays up to row_range */
  uint64_t *ids;                 /* (n) */
  int32_t *labels;               /* (n) */
  uint16_t *row_max, *row_range; /* (views, n) float16, or NULL */
  cmkd_chunk_buffer *chunks;     /* layout after layout, each (views, chunks_per_view) */
  uint64_t chunk_count;
  uint64_t first_chunk[1 + CMKD_CACHE_MAX_ARRAYS]; /* (layouts) */
  uint64_t full;                                   /* chunks whose rows are all there */
  uint64_t pending; /* chunks queued or being compressed; guarded by the writer's mutex */
  int have_samples; /* ids, labels and seeds are there */
  cmkd_lock lock;
} cmkd_shard_buffer;

typedef struct cmkd_chunk_job {
  cmkd_shard_buffer *shard;
  uint32_t layout;
  uint64_t chunk; /* of shard->chunks */
} cmkd_chunk_job;

#define CMKD_WRITER_QUEUE 64

/* A free buffer; the list is kept in the buffers themselves. */
typedef struct cmkd_free_buffer {
  struct cmkd_free_buffer *next;
} cmkd_free_buffer;

struct cmkd_cache_writer {
  char *path, *dir;           /* the master; the folder it lies in */
  char *folder, *folder_name; /* of the shards: whole path, last part */
  cmkd_cache_config config;
  char *config_text;          /* builds with equal text make equal caches */
  uint32_t keep;              /* of codecs that keep K logits: K, else 0 */
  float *thin;                /* (classes) for them, else NULL */
  cmkd_shard_entry *entries;  /* (shards); block_sha256 is empty until known to be done */
  cmkd_lock build_lock;       /* shared by all builders of this configuration */
  cmkd_shard_buffer *filling; /* begun and not ended, or NULL */
  uint64_t added;             /* cmkd_cache_writer_add: samples so far */
  int add_open, add_skip;     /* a shard was begun by add; it was found done */
  cmkd_file_image image;      /* of the shard being published, then of the master */

  pthread_mutex_t buffer_mutex;
  cmkd_free_buffer *free_buffers; /* each fit for any chunk, raw or compressed; guarded by buffer_mutex */

  pthread_mutex_t mutex;  /* guards all that follows, and the entries */
  pthread_cond_t job;     /* a job came */
  pthread_cond_t space;   /* a job left the queue */
  pthread_cond_t changed; /* a shard was ended or published, its last chunk was compressed, or something failed */
  pthread_t *threads, publisher;
  int thread_count, threads_started, publisher_started, stop;
  cmkd_chunk_job queue[CMKD_WRITER_QUEUE]; /* a ring: `queued` jobs from head_at on */
  unsigned head_at, queued;
  cmkd_shard_buffer *sealed; /* ended and not yet published; at most one */
  cmkd_error failure;        /* first error of the background work */
  cmkd_cache_writer_stats stats;
};

/* threads.c. Each returns the failure of the background work, if there is one. */
cmkd_status cmkd_writer_threads_start(cmkd_cache_writer *w, cmkd_error *err);
void cmkd_writer_threads_stop(cmkd_cache_writer *w); /* after what is queued and sealed */
cmkd_status cmkd_writer_failed(cmkd_cache_writer *w, cmkd_error *err);
/* Queues a chunk for compression; waits while the queue is full. */
cmkd_status cmkd_writer_submit(cmkd_cache_writer *w, cmkd_chunk_job job, cmkd_error *err);
/* Takes a full shard for publishing; waits for the one before. */
cmkd_status cmkd_writer_seal(cmkd_cache_writer *w, cmkd_shard_buffer *shard, cmkd_error *err);
/* Waits until no chunk of the shard is queued or being compressed. */
void cmkd_writer_drain(cmkd_cache_writer *w, const cmkd_shard_buffer *shard);

/* publish.c */
cmkd_status cmkd_writer_publish(cmkd_cache_writer *w, cmkd_shard_buffer *shard, cmkd_error *err);
/* Fails unless all shards are there. */
cmkd_status cmkd_writer_publish_master(cmkd_cache_writer *w, cmkd_error *err);
/* Is shard k on disk, whole, with our configuration? Fills its entry if so. */
int cmkd_writer_check(cmkd_cache_writer *w, uint32_t k);
char *cmkd_writer_shard_path(const cmkd_cache_writer *w, uint32_t k); /* fresh memory, NULL when out of it */

/* buffers.c */
/* *out is to be freed after a failure, too. */
cmkd_status cmkd_shard_buffer_create(cmkd_cache_writer *w, uint32_t k, cmkd_shard_buffer **out, cmkd_error *err);
void cmkd_shard_buffer_free(cmkd_cache_writer *w, cmkd_shard_buffer *shard); /* releases its lock; NULL is fine */
/* Buffers for chunks, raw or compressed. Any thread. */
size_t cmkd_writer_buffer_size(const cmkd_cache_writer *w);
uint8_t *cmkd_writer_buffer_take(cmkd_cache_writer *w);                /* NULL when out of memory */
void cmkd_writer_buffer_return(cmkd_cache_writer *w, uint8_t *buffer); /* NULL is fine */
void cmkd_writer_buffers_free(cmkd_cache_writer *w);
#endif
