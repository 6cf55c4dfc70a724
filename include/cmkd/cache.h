/* Teacher caches: open, inspect, stream. A cache is a master file and a folder of shards beside it
 * (docs/cache-format.md); cmkd/cache_writer.h makes one, docs/examples/cache.c reads one. Files may be damaged or
 * hostile: every function fails with one line rather than give wrong numbers.
 *
 * Threads: one open cache may be used by any number of threads at once, a stream by one thread at a time. No pointer
 * may be NULL unless that is said; `err` may always be. Errors beside those named: CMKD_ERR_IO (the system refused),
 * CMKD_ERR_FORMAT (damage; the message names the file), CMKD_ERR_MEMORY, CMKD_ERR_USAGE (arguments out of range). */
#ifndef CMKD_CACHE_H
#define CMKD_CACHE_H
#include <stdint.h>
#include "cmkd/api.h"
#include "cmkd/dtype.h"
#include "cmkd/status.h"
#include "cmkd/views.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Limits of a cache; that of its views, CMKD_CACHE_MAX_VIEWS, is in cmkd/views.h. */
#define CMKD_CACHE_MAX_CLASSES 131072
#define CMKD_CACHE_MAX_ARRAYS 32 /* named arrays */
#define CMKD_CACHE_ARRAY_DIMS 6  /* dimensions of one row of a named array */

/* Who made the logits, from what, how: everything a trainer must agree with. Strings are UTF-8, "" where unknown. */
typedef struct cmkd_cache_identity {
  char teacher_sha256[65]; /* of the weight file, 64 lower-case hex digits */
  char teacher_arch[64];
  char teacher_name[128];
  float mean[3], std[3];  /* the teacher's normalisation, x = (pixel / 255 - mean) / std */
  int channels;           /* how many of the three are in use; 0: unknown */
  char precision[16];     /* of inference: "fp32", "tf32", "bf16", "fp16" */
  int teacher_batch;      /* images of one inference; short batches were padded to it */
  double precision_error; /* root mean square difference of its logits from fp32's on some views; 0: fp32, or not
                             measured */
  char dataset[32];       /* "cifar100" */
  char split[8];          /* "train" or "test" */
  char fingerprint[65];   /* of the data set's whole split, SHA-256 (cmkd/dataset.h), or "" */
  uint32_t dataset_n;     /* samples of the whole split */
  cmkd_policy policy;     /* how a view's pixels follow from its seed */
  char rng_version[32];   /* the rules that drew the seeds */
  uint64_t cache_seed;    /* from which they were drawn */
  int all_variants;       /* 1: the views of a sample are all variants of the policy, in an order of its own */
  int clean_view;         /* 1: the last view is the image as it is */
  char codec[16];         /* how logits are stored: "f16", "f32", "u8sqrt", "topk:K" */
  char tool_version[32];  /* of the writer */
} cmkd_cache_identity;

/* An array of (samples, views) + shape beside the logits: features, say. A row of it belongs to one (sample, view). */
typedef struct cmkd_cache_array {
  char name[64];    /* letters, digits, '_', and after the first also '-' and '.'; not "logits" nor another array of the
                       format (docs/cache-format.md) */
  cmkd_dtype dtype; /* as stored: CMKD_F32; CMKD_F16, magnitudes to 65504; CMKD_U8, whole numbers from 0 to 255 */
  int dims;         /* of a row, 1 to CMKD_CACHE_ARRAY_DIMS */
  uint32_t shape[CMKD_CACHE_ARRAY_DIMS]; /* of a row; at most 1 MiB as stored */
  uint32_t elements;                     /* numbers in a row, the product of shape; not read by the writer */
  uint32_t chunk_samples;                /* samples of a chunk; the writer takes 0 for: chosen from the shape */
} cmkd_cache_array;

typedef struct cmkd_cache_info {
  cmkd_cache_identity identity;
  uint64_t samples;
  uint32_t views;                 /* a clean view included */
  uint32_t classes;               /* logits have shape (samples, views, classes) */
  uint32_t kept;                  /* logits of a row that are the teacher's: classes, or K of codec topk:K */
  const char *const *class_names; /* (classes) or NULL */
  const cmkd_cache_array *arrays; /* (array_count), those whose type this library knows */
  uint32_t array_count;
  uint32_t unknown_arrays; /* of types that it does not know: passed over */
  uint32_t shards;
  uint64_t bytes;          /* on disk, all files */
  uint64_t logit_bytes;    /* of them compressed logits */
  char content_sha256[65]; /* of the whole cache: equal for equal content, whatever the file names */
} cmkd_cache_info;

typedef struct cmkd_cache cmkd_cache;

/* Reads and checks the master and the header of every shard. A missing or foreign shard fails here, by name:
 * CMKD_ERR_IO, CMKD_ERR_MISMATCH. *out is NULL after a failure. */
CMKD_API cmkd_status cmkd_cache_open(const char *path, cmkd_cache **out, cmkd_error *err);
/* Frees it and all that it owns; its streams must be freed before. NULL does nothing. */
CMKD_API void cmkd_cache_close(cmkd_cache *cache);
/* Owned by the cache, with all that it points to; valid until it is closed. */
CMKD_API const cmkd_cache_info *cmkd_cache_get_info(const cmkd_cache *cache);

/* Labels (samples), each in [0, classes), and sample ids (samples), positions in the data set's split: arrays owned by
 * the cache, valid until it is closed, read and checked on first use. */
CMKD_API cmkd_status cmkd_cache_labels(cmkd_cache *cache, const int32_t **labels, cmkd_error *err);
CMKD_API cmkd_status cmkd_cache_ids(cmkd_cache *cache, const uint64_t **ids, cmkd_error *err);
/* The seeds of one view into the caller's (samples). */
CMKD_API cmkd_status cmkd_cache_seeds(cmkd_cache *cache, uint32_t view, uint64_t *seeds, cmkd_error *err);

/* Decoded logits of samples [first, first + count) of one view into the caller's (count, classes). Uses all cores. */
CMKD_API cmkd_status cmkd_cache_read(cmkd_cache *cache, uint32_t view, uint64_t first, uint64_t count, float *logits,
                                     cmkd_error *err);

/* Bytes of one logit as the cache stores it: 1, 2 or 4. */
CMKD_API int cmkd_cache_logit_bytes(const cmkd_cache *cache);
/* The same rows as they are stored, for programs that decode on a device: items (count, classes) of
 * cmkd_cache_logit_bytes bytes, little endian; row_max, row_range (count) the float16 numbers of each row of codec
 * u8sqrt, ignored and best NULL for the others. CMKD_ERR_UNSUPPORTED for topk, whose rows are read decoded only. */
CMKD_API cmkd_status cmkd_cache_read_items(cmkd_cache *cache, uint32_t view, uint64_t first, uint64_t count,
                                           void *items, uint16_t *row_max, uint16_t *row_range, cmkd_error *err);

/* Rows of the named array (or of "logits") as cmkd_cache_read and cmkd_cache_read_items give them: values (count,
 * elements) float32, items (count, elements) numbers of the array's dtype. CMKD_ERR_USAGE for a name that is not
 * there. */
CMKD_API cmkd_status cmkd_cache_read_array(cmkd_cache *cache, const char *name, uint32_t view, uint64_t first,
                                           uint64_t count, float *values, cmkd_error *err);
CMKD_API cmkd_status cmkd_cache_read_array_items(cmkd_cache *cache, const char *name, uint32_t view, uint64_t first,
                                                 uint64_t count, void *items, cmkd_error *err);

/* Rows of one view in a given order, read ahead by threads of the stream's own. */
typedef struct cmkd_stream cmkd_stream;
typedef struct cmkd_stream_options {
  int threads;       /* 0: as many as there are cores. With two and more, a caller that would wait works instead */
  uint64_t memory;   /* most bytes of decompressed rows at one time; 0: 1 GiB */
  const char *array; /* the named array whose rows are streamed; NULL: the logits */
} cmkd_stream_options;

/* `order`: n sample positions below info.samples, any of them any number of times; borrowed until the stream is freed.
 * `options` NULL: all defaults. CMKD_ERR_MEMORY when the order needs more memory than the options allow; the message
 * says what helps. *out is NULL after a failure. */
CMKD_API cmkd_status cmkd_stream_open(cmkd_cache *cache, uint32_t view, const uint32_t *order, uint32_t n,
                                      const cmkd_stream_options *options, cmkd_stream **out, cmkd_error *err);
/* The next `count` rows of the order into the caller's rows (count, classes), of a named array (count, elements); their
 * seeds into seeds (count) unless NULL. CMKD_ERR_USAGE past the end. */
CMKD_API cmkd_status cmkd_stream_next(cmkd_stream *stream, uint32_t count, float *rows, uint64_t *seeds,
                                      cmkd_error *err);
/* Stops its threads, also in the middle of the order. NULL does nothing. */
CMKD_API void cmkd_stream_free(cmkd_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
