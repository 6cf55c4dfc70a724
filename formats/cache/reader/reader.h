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
  uint32_t rows; /* of its chunks */
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
  const cmkd_codec *codec;
  cmkd_shard *shards; /* (master.head.shards) */
  cmkd_cache_info info;
  pthread_mutex_t mutex; /* guards what follows */
  cmkd_region spare[2];  /* of finished streams: the next epoch's memory needs no page faults */
  int32_t *labels;       /* (samples), loaded on first use */
  uint64_t *ids;
};

cmkd_status cmkd_cache_check_view(const cmkd_cache *cache, uint32_t view, cmkd_error *err);
static inline size_t cmkd_cache_raw(const cmkd_cache *cache, const cmkd_shard *shard) {
  return (size_t)shard->rows * cache->master.head.classes * (size_t)cache->codec->item;
}
static inline size_t cmkd_cache_stored_bound(const cmkd_cache *cache) { /* of any chunk */
  return cmkd_chunk_bound((size_t)cache->master.head.chunk_rows * cache->master.head.classes *
                          (size_t)cache->codec->item);
}
/* Bytes of an extent into `out` (its size), not checked. */
cmkd_status cmkd_shard_bytes(const cmkd_shard *shard, const cmkd_extent *extent, void *out, cmkd_error *err);
/* The same with its XXH64 checked; `what` for the message. */
cmkd_status cmkd_shard_array(const cmkd_shard *shard, const cmkd_extent *extent, const char *what, void *out,
                             cmkd_error *err);
/* Reads and decompresses one chunk: raw bytes, still shuffled, into `raw` (cmkd_cache_raw); stored: room of
 * cmkd_cache_stored_bound. */
cmkd_status cmkd_shard_chunk(const cmkd_cache *cache, const cmkd_shard *shard, uint32_t view, uint32_t block,
                             cmkd_chunk_coder *coder, uint8_t *stored, uint8_t *raw, cmkd_error *err);
/* Row numbers of all rows of one view of a shard: max, range (samples of the shard). Only for codecs that have them. */
cmkd_status cmkd_shard_row_numbers(const cmkd_shard *shard, uint32_t view, uint16_t *max, uint16_t *range,
                                   cmkd_error *err);
/* At least `size` bytes, zero size: failed. Given back with cmkd_region_return. */
cmkd_region cmkd_region_take(cmkd_cache *cache, size_t size);
void cmkd_region_return(cmkd_cache *cache, cmkd_region region);
void cmkd_regions_free(cmkd_cache *cache); /* the spare ones */
#endif
