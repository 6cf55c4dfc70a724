/* One cache made of rows of others: the engine behind repack, merge and subset. A shape says, for every sample and view
 * of the output, which input it comes from; rows of named arrays go with those of the logits. Memory holds one shard.
 * Not here: running a teacher, judging whether inputs belong together, but for the declarations of named arrays, which
 * must be equal. An average has no named arrays, and arrays of unknown types stay behind: a line on stderr says so. */
#ifndef CMKD_PRECOMPUTE_RESHAPE_H
#define CMKD_PRECOMPUTE_RESHAPE_H
#include "cmkd/cache.h"
#include "cmkd/cache_writer.h"

typedef struct cmkd_reshape_view {
  int input;
  uint32_t view;
} cmkd_reshape_view; /* input -1: the sample's own */

typedef struct cmkd_reshape {
  const char *out, *label;   /* label: of the progress bar */
  cmkd_cache_spec spec;      /* shape, identity and codec of the output */
  cmkd_cache *const *inputs; /* (count) open caches, borrowed */
  int count;
  const int *input_of;            /* (samples) whose ids, labels and (view.input -1) rows; NULL: input 0 */
  const uint32_t *position;       /* (samples) place in that input; views of other inputs are read at the same place */
  const cmkd_reshape_view *views; /* (spec.views) */
  int average;                    /* every row is the mean over all inputs, in input order, in double */
  int quiet, allow_top_k;         /* allow_top_k: rows may be thinned */
} cmkd_reshape;

/* Writes the output. It must not exist, nor its folder of shards; after a failure or Ctrl-C nothing of it is left. */
cmkd_status cmkd_reshape_run(const cmkd_reshape *shape, cmkd_cache_writer_stats *stats, cmkd_error *err);

/* The two halves of that rule, for other writers: CMKD_ERR_MISMATCH when OUT or its folder exists; removes OUT and its
 * shards. */
cmkd_status cmkd_reshape_target(const char *out, cmkd_error *err);
void cmkd_reshape_remove(const char *out);

/* Refuses a codec that drops logits unless `allowed`, the user's --allow-top-k. */
cmkd_status cmkd_codec_allowed(const char *codec, int allowed, cmkd_error *err);

/* A spec that says what `info` says, with the codec replaced unless NULL. */
void cmkd_reshape_spec(const cmkd_cache_info *info, const char *codec, cmkd_cache_spec *spec);
/* "OUT: 123 rows, 45.6 bytes a row" or a JSON object, to stdout. */
cmkd_status cmkd_reshape_report(const char *out, int json, cmkd_error *err);
/* Opens all, in order; on failure closes those already open. */
cmkd_status cmkd_open_all(const char *const *paths, int count, cmkd_cache **caches, cmkd_error *err);
void cmkd_close_all(cmkd_cache **caches, int count);
#endif
