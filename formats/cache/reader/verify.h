/* Checks that go beyond opening a cache: every byte's hash, and every number. */
#ifndef CMKD_FORMATS_CACHE_VERIFY_H
#define CMKD_FORMATS_CACHE_VERIFY_H
#include "cmkd/cache.h"

typedef struct cmkd_verify_report {
  uint64_t shards, bytes, chunks, rows; /* looked at; chunks and rows only when deep */
  uint32_t problems;                    /* damaged shards; `first` tells the first */
  cmkd_error first;
} cmkd_verify_report;

/* An open cache has a good master and good user blocks. This hashes everything behind them and reads the small arrays;
 * with `deep` it also checks each chunk's own hash, decodes it, and looks for numbers that are not finite and labels
 * out of range. Goes on after a damaged shard; `each` (may be NULL) hears of every shard as it is done, err NULL when
 * it is good. Always CMKD_OK so far: damage is in the report. */
cmkd_status cmkd_cache_verify(cmkd_cache *cache, int deep, int threads,
                              void (*each)(void *context, uint32_t shard, const cmkd_error *err), void *context,
                              cmkd_verify_report *report, cmkd_error *err);
#endif
