/* What an order of rows asks of a cache: which chunks, when first, when last. Arithmetic only; stream.c does the
 * reading. */
#ifndef CMKD_FORMATS_CACHE_ORDER_H
#define CMKD_FORMATS_CACHE_ORDER_H
#include "formats/cache/reader/reader.h"

/* x / d for 32-bit numbers by one multiplication (Lemire, Kaser, Kurz 2019): d > 1. */
typedef struct cmkd_divider {
  uint64_t magic;
  uint32_t d;
} cmkd_divider;
static inline uint32_t cmkd_divide(cmkd_divider by, uint32_t x) {
  return by.d > 1 ? (uint32_t)((unsigned __int128)by.magic * x >> 64) : x;
}

typedef struct cmkd_order_chunk {
  uint32_t shard, number; /* number: along the sample axis of the shard */
  uint32_t first, last;   /* rows of the order that use it */
} cmkd_order_chunk;

typedef struct cmkd_order_plan {
  const cmkd_cache *cache;
  uint32_t layout;
  const uint32_t *order; /* (n) samples, borrowed */
  uint32_t n;
  cmkd_divider by_shard, by_chunk, by_last_chunk; /* the last shard may have smaller chunks */
  uint32_t last_shard, *first_chunk;              /* (shards): number of a shard's first chunk */
  cmkd_order_chunk *chunks;                       /* (chunk_count) */
  uint32_t chunk_count;
  uint32_t *schedule, *retire; /* (scheduled) the chunks in use, in order of first use; in order of last use */
  uint32_t scheduled;
  uint32_t live;      /* most chunks needed at one time */
  uint32_t *position; /* (samples): row of the order that wants it, or UINT32_MAX. Only for orders all over the cache,
                         else NULL */
  /* An order that jumps is cut into pieces, each gathered as a whole. */
  uint32_t piece_rows;
  uint32_t pieces; /* 0: most rows follow each other, no need to */
  uint32_t *needs; /* (pieces): entries of the schedule that must have been read before */
} cmkd_order_plan;

/* What the plan may spend. */
typedef struct cmkd_order_limits {
  uint32_t piece_rows; /* of a piece, unless that needs more than `live` chunks at once: then there are none */
  uint64_t live;       /* chunks */
  uint64_t rows;       /* an order all over the cache is planned by position if it is no longer */
} cmkd_order_limits;

/* Whatever happens, the plan is to be freed. */
cmkd_status cmkd_order_plan_make(cmkd_order_plan *plan, const cmkd_cache *cache, uint32_t layout, const uint32_t *order,
                                 uint32_t n, const cmkd_order_limits *limits, cmkd_error *err);
void cmkd_order_plan_free(cmkd_order_plan *plan);

/* Samples of a chunk of that shard. */
static inline uint32_t cmkd_order_chunk_samples(const cmkd_order_plan *p, uint32_t shard) {
  return shard == p->last_shard ? p->by_last_chunk.d : p->by_chunk.d;
}

/* A sample's chunk, and its row in it. */
typedef struct cmkd_row_location {
  uint32_t chunk, row;
} cmkd_row_location;
static inline cmkd_row_location cmkd_order_locate(const cmkd_order_plan *p, uint32_t sample) {
  uint32_t shard = cmkd_divide(p->by_shard, sample), inside = sample - shard * p->by_shard.d;
  cmkd_divider by = shard == p->last_shard ? p->by_last_chunk : p->by_chunk;
  uint32_t number = cmkd_divide(by, inside);
  return (cmkd_row_location){p->first_chunk[shard] + number, inside - number * by.d};
}

/* How many of order[0 .. count) follow each other in the chunk of the first, whose place is `at`. */
static inline uint32_t cmkd_order_run(const cmkd_order_plan *p, const uint32_t *order, uint32_t count,
                                      cmkd_row_location at) {
  const cmkd_order_chunk *chunk = p->chunks + at.chunk;
  const uint32_t rows = cmkd_order_chunk_samples(p, chunk->shard);
  uint32_t left = p->cache->shards[chunk->shard].meta.samples - chunk->number * rows,
           most = (left < rows ? left : rows) - at.row, run = 1;
  if (count < most) most = count;
  while (run < most && order[run] == order[0] + run)
    run++;
  return run;
}
#endif
