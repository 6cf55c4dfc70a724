/* Some rows of a cache run through its teacher once more. */
#ifndef CMKD_PRECOMPUTE_RECOMPUTE_H
#define CMKD_PRECOMPUTE_RECOMPUTE_H
#include <stdint.h>
#include "cmkd/cache.h"

typedef struct cmkd_recompute_options {
  const char *cache;         /* its path, for messages */
  const char *teacher;       /* path of the weights; must be those that the cache names */
  const char *data;          /* NULL: the cache's data set, in the usual places */
  const char *device, *arch; /* arch NULL: the cache's */
  const float *mean, *std;   /* NULL: the cache's */
  int threads;               /* 0: all cores */
  uint32_t rows;             /* how many, drawn at random, some perhaps twice */
  uint64_t seed;             /* of that draw */
} cmkd_recompute_options;

typedef struct cmkd_recomputed {
  uint64_t rows;           /* 0: none were recomputed */
  double mean;             /* over rows, of the largest difference in a row */
  double largest, allowed; /* of the row that comes closest to its limit, or passes it by most */
  uint64_t sample;         /* that row */
  uint32_t view;
} cmkd_recomputed;

/* 1: every row is within what its codec and another device may change. */
int cmkd_recomputed_good(const cmkd_recomputed *r);

/* Weights or data that are not the cache's are CMKD_ERR_MISMATCH. Rows that differ are not an error here. */
cmkd_status cmkd_recompute(cmkd_cache *cache, const cmkd_recompute_options *options, cmkd_recomputed *out,
                           cmkd_error *err);
#endif
