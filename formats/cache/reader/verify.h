/* Checks that go beyond opening a cache: every byte's hash, and every number. */
#ifndef CMKD_FORMATS_CACHE_VERIFY_H
#define CMKD_FORMATS_CACHE_VERIFY_H
#include "cmkd/cache.h"

typedef struct cmkd_verify_report {
  uint64_t shards, bytes; /* looked at */
  uint64_t chunks, rows;  /* decoded: only when deep. rows: samples * views */
  uint32_t problems;      /* damaged shards */
  cmkd_error first;       /* the first of them */
} cmkd_verify_report;

/* An open cache has a good master and good user blocks. This hashes everything behind them and reads the small arrays;
 * with `deep` it also checks each chunk's own hash, decodes it, and looks for numbers that are not finite, in the
 * logits and in named arrays. Goes on after a damaged shard: what is wrong is in the report. `each` (may be NULL)
 * is called for every shard when it is done, err NULL when it is good: one call at a time, on any of the `threads` (0:
 * as many as there are cores). */
void cmkd_cache_verify(cmkd_cache *cache, int deep, int threads,
                       void (*each)(void *self, uint32_t shard, const cmkd_error *err), void *self,
                       cmkd_verify_report *report);
#endif
