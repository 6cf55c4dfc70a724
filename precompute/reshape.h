/* One cache made of rows of others: the engine behind repack, merge and subset. A shape says, for every sample and view
 * of the output, which input it comes from; rows of named arrays go with those of the logits. Memory holds one shard.
 * Whether the inputs belong together is for the caller to judge, but for the declarations of named arrays, which must
 * be equal. An average has no named arrays, and arrays of unknown types stay behind: a line on stderr says so. */
#ifndef CMKD_PRECOMPUTE_RESHAPE_H
#define CMKD_PRECOMPUTE_RESHAPE_H
#include "cmkd/cache.h"
#include "cmkd/cache_writer.h"

typedef struct cmkd_reshape_view {
  int input; /* -1: the one that the sample is from */
  uint32_t view;
} cmkd_reshape_view;

typedef struct cmkd_reshape {
  const char *out, *label;   /* label: of the progress bar */
  cmkd_cache_spec spec;      /* shape, identity and codec of the output */
  cmkd_cache *const *inputs; /* (count) open caches, borrowed */
  int count;
  const int *input_of;            /* (samples) whose ids, labels and (view.input -1) rows; NULL: input 0 */
  const uint32_t *position;       /* (samples) place in that input; views of other inputs are read at the same place */
  const cmkd_reshape_view *views; /* (spec.views) */
  int average;                    /* every row is the mean over all inputs, in input order, in double */
  int quiet;                      /* no progress bar */
  int allow_top_k;                /* a codec that drops logits is meant */
} cmkd_reshape;

/* Writes the output. It must not exist, nor its folder of shards; after a failure or Ctrl-C nothing of it is left. */
cmkd_status cmkd_reshape_run(const cmkd_reshape *shape, cmkd_cache_writer_stats *stats, cmkd_error *err);

/* A spec that says what `info` says, with the codec replaced unless NULL. */
void cmkd_reshape_spec(const cmkd_cache_info *info, const char *codec, cmkd_cache_spec *spec);
#endif
