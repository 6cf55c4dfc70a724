/* Inside of the reader. open.c opens caches and reads chunks and small arrays; bulk.c and stream.c deliver rows,
 * verify.c checks all of them; order.c plans what a stream reads, region.c keeps its memory. */
#ifndef CMKD_FORMATS_CACHE_READER_READER_H
#define CMKD_FORMATS_CACHE_READER_READER_H
#include <pthread.h>
#include "formats/cache/chunk.h"
#include "formats/cache/meta.h"

typedef struct cmkd_shard {
  char *path;
  int fd; /* kept open in caches of few shards, else -1: opened for each read */
  uint64_t block_size, file_size;
  char payload_sha256[CMKD_SHA256_HEX];
  cmkd_shard_meta meta;
} cmkd_shard;

/* Mapped memory, 2 MB aligned, in huge pages where the system gives them. */
typedef struct cmkd_region {
  uint8_t *bytes;
  size_t size; /* 0: none */
} cmkd_region;

struct cmkd_cache {
  char *path;
  cmkd_master_meta master;
  uint64_t master_size;
  cmkd_shard *shards; /* (master.config.shards) */
  cmkd_cache_info info;
  cmkd_cache_array arrays[CMKD_CACHE_MAX_ARRAYS]; /* of info */
  pthread_mutex_t mutex;                          /* guards what follows */
  cmkd_region spare[2];                           /* of finished streams: the next one's memory needs no page faults */
  int32_t *labels;                                /* (samples), loaded on first use */
  uint64_t *ids;
};

cmkd_status cmkd_cache_check_view(const cmkd_cache *cache, uint32_t view, cmkd_error *err);
/* The layout of that name; NULL and "logits" are those of the logits, 0. */
cmkd_status cmkd_cache_layout(const cmkd_cache *cache, const char *name, uint32_t *layout, cmkd_error *err);
static inline const cmkd_array_layout *cmkd_cache_layout_at(const cmkd_cache *cache, uint32_t layout) {
  return cache->master.config.layouts + layout;
}

/* Bytes of an extent into `out` (its size), their XXH64 checked; `what` for the message. */
cmkd_status cmkd_shard_array(const cmkd_shard *shard, const cmkd_extent *extent, const char *what, void *out,
                             cmkd_error *err);

/* Which chunk. */
typedef struct cmkd_chunk_place {
  const cmkd_shard *shard;
  uint32_t layout, view, chunk; /* chunk: along the sample axis */
} cmkd_chunk_place;
static inline const cmkd_extent *cmkd_chunk_extent(cmkd_chunk_place at) {
  const cmkd_chunk_table *table = at.shard->meta.tables + at.layout;
  return table->extents + (size_t)at.view * table->chunks_per_view + at.chunk;
}
/* Reads and decompresses a chunk: raw bytes, still shuffled, into `raw` (a whole chunk's); `stored` as cmkd_chunk_bound
 * of it. */
cmkd_status cmkd_shard_chunk(const cmkd_cache *cache, cmkd_chunk_place at, cmkd_chunk_coder *coder, uint8_t *stored,
                             uint8_t *raw, cmkd_error *err);
/* Row numbers of all rows of one view of a shard: max, range (samples of the shard). Only for codecs that have them. */
cmkd_status cmkd_shard_row_numbers(const cmkd_shard *shard, uint32_t view, uint16_t *max, uint16_t *range,
                                   cmkd_error *err);
/* SHA-256 of the shard's HDF5 image, to be compared with payload_sha256. */
cmkd_status cmkd_shard_payload_sha256(const cmkd_shard *shard, char hex[CMKD_SHA256_HEX], cmkd_error *err);
/* At least `size` bytes; of size 0 when there is no memory. Given back with cmkd_region_return. Any thread. */
cmkd_region cmkd_region_take(cmkd_cache *cache, size_t size);
void cmkd_region_return(cmkd_cache *cache, cmkd_region region);
void cmkd_regions_free(cmkd_cache *cache); /* the spare ones */
#endif
