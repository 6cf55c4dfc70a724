/* Teacher caches: open, inspect, stream. The reader uses the files' user block, pread and zstd, never libhdf5.
 * docs/cache-format.md is the specification. */
#ifndef CMKD_CACHE_H
#define CMKD_CACHE_H
#include <stdint.h>
#include "cmkd/status.h"
#include "cmkd/views.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Who made the logits, from what, how: everything a trainer must agree with. Strings are owned by the cache. */
typedef struct cmkd_cache_identity {
  char teacher_sha256[65], teacher_arch[64], teacher_name[128];
  float mean[3], std[3];
  int channels; /* the teacher's normalisation */
  char precision[16];
  int teacher_batch;      /* of inference: "fp32", the fixed padded batch */
  double precision_error; /* root mean square difference of its logits from fp32's, measured on a sample; 0: fp32, or
                             not measured */
  char dataset[32], split[8], fingerprint[65];
  uint32_t dataset_n; /* of the whole split */
  cmkd_policy policy;
  char rng_version[32];
  uint64_t cache_seed;
  int all_variants, clean_view; /* `--views all`; last view is the clean one */
  char codec[16];
  char tool_version[32];
} cmkd_cache_identity;

typedef struct cmkd_cache_info {
  cmkd_cache_identity identity;
  uint64_t samples;
  uint32_t views, classes; /* logits (samples, views, classes); views includes a clean view */
  uint32_t kept; /* logits of a row that are the teacher's: classes, or K of codec topk:K, where the rest is one tie */
  const char *const *class_names; /* (classes) or NULL; owned by the cache */
  uint32_t shards;
  uint64_t bytes, logit_bytes; /* on disk, all files; compressed logits alone */
  char sha256[65];             /* fingerprint of the whole cache */
} cmkd_cache_info;

typedef struct cmkd_cache cmkd_cache; /* read-only, shared freely between threads */

/* Reads and checks the master and every shard's user block. A missing or wrong shard fails here, by name. */
CMKD_API cmkd_status cmkd_cache_open(const char *path, cmkd_cache **out, cmkd_error *err);
CMKD_API void cmkd_cache_close(cmkd_cache *cache);
CMKD_API const cmkd_cache_info *cmkd_cache_get_info(const cmkd_cache *cache);

/* All labels (samples), sample ids (samples), seeds of one view (samples); arrays owned by the cache, valid until
 * close. Loaded and hash-checked on first use. */
CMKD_API cmkd_status cmkd_cache_labels(cmkd_cache *cache, const int32_t **labels, cmkd_error *err);
CMKD_API cmkd_status cmkd_cache_ids(cmkd_cache *cache, const uint64_t **ids, cmkd_error *err);
CMKD_API cmkd_status cmkd_cache_seeds(cmkd_cache *cache, uint32_t view, uint64_t *seeds, cmkd_error *err);

/* Decoded logits of samples [first, first+count) of one view, float32, into the caller's (count, classes). All cores.
 */
CMKD_API cmkd_status cmkd_cache_read(cmkd_cache *cache, uint32_t view, uint64_t first, uint64_t count, float *logits,
                                     cmkd_error *err);

/* The same rows as the cache stores them, for programs that decode on a device: items (count, classes) in
 * cmkd_cache_item bytes each, little endian (docs/cache-format.md); row_max, row_range (count) halves of codec u8sqrt,
 * else NULL. Codecs that a device does not know (topk) fail with CMKD_ERR_UNSUPPORTED. */
CMKD_API int cmkd_cache_item(const cmkd_cache *cache);
CMKD_API cmkd_status cmkd_cache_read_items(cmkd_cache *cache, uint32_t view, uint64_t first, uint64_t count,
                                           void *items, uint16_t *row_max, uint16_t *row_range, cmkd_error *err);

/* Streams rows of one view in the given order, prefetching ahead on its own threads. */
typedef struct cmkd_stream cmkd_stream;
typedef struct cmkd_stream_options {
  int threads;     /* 0: all cores. With two and more, a caller whose rows are not there yet is one of them */
  uint64_t memory; /* cap in bytes for decoded rows kept at one time; 0: 1 GiB. Too small for the order: fails and says
                      which option helps */
} cmkd_stream_options;
/* `order`: n sample positions (0 .. samples-1), borrowed until the stream is freed. */
CMKD_API cmkd_status cmkd_stream_open(cmkd_cache *cache, uint32_t view, const uint32_t *order, uint32_t n,
                                      const cmkd_stream_options *options, cmkd_stream **out, cmkd_error *err);
/* The next `count` rows of the order as float32 into logits (count, classes); seeds (count) may be NULL. Past the end:
 * fails. */
CMKD_API cmkd_status cmkd_stream_next(cmkd_stream *stream, uint32_t count, float *logits, uint64_t *seeds,
                                      cmkd_error *err);
CMKD_API void cmkd_stream_free(cmkd_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
