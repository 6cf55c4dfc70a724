/* What several commands of cmkd-cache do with caches: open the inputs, judge the codec, begin and drop an output,
 * report it. */
#ifndef CMKD_PRECOMPUTE_SHARED_CACHES_H
#define CMKD_PRECOMPUTE_SHARED_CACHES_H
#include "cmkd/cache.h"

/* Opens all, in order; on failure closes those already open. */
cmkd_status cmkd_open_all(const char *const *paths, int count, cmkd_cache **caches, cmkd_error *err);
void cmkd_close_all(cmkd_cache **caches, int count);

/* Refuses a codec that drops logits unless `allowed`, the user's --allow-top-k. */
cmkd_status cmkd_codec_allowed(const char *codec, int allowed, cmkd_error *err);

/* CMKD_ERR_MISMATCH when OUT or its folder of shards exists. */
cmkd_status cmkd_output_is_new(const char *out, cmkd_error *err);
/* Removes OUT and its shards: what a command that failed has written. */
void cmkd_output_remove(const char *out);
/* "OUT: 123 samples x 4 views x 10 classes, 4567 bytes, ..." or a JSON object, to stdout. */
cmkd_status cmkd_output_report(const char *out, int json, cmkd_error *err);
#endif
