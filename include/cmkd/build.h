/* Building a cache: a teacher's logits of every view of every image of a data set's split. The teacher is yours, behind
 * a callback that turns a batch of pixels into logits; the order of the work, the views, resuming, parts of several
 * processes, the identity and the file are this library's. `cmkd-cache build` is a command over the same function.
 * docs/examples/build.c is a whole program.
 *
 * Threads: a teacher serves one call at a time, and its callback runs on the thread that called cmkd_build_cache, never
 * twice at once. Builds with teachers of their own are independent.
 *
 * Errors: messages call an option by its name on the command line of cmkd-cache: "--shard-rows" is the field
 * shard_samples. No pointer may be NULL unless that is said; `err` may always be. */
#ifndef CMKD_BUILD_H
#define CMKD_BUILD_H
#include <stdint.h>
#include "cmkd/cache_writer.h"
#include "cmkd/dataset.h"
#ifdef __cplusplus
extern "C" {
#endif

#define CMKD_TEACHER_BATCH 128 /* default of cmkd_teacher_callback.batch */

typedef struct cmkd_teacher cmkd_teacher;

/* A teacher of any make. Everything but `self` is copied by cmkd_teacher_from_callback; `self` must live as long as the
 * teacher. Zero and NULL mean the default that is named. */
typedef struct cmkd_teacher_callback {
  void *self; /* handed to run */
  /* Logits (count, classes) of pixels (count, height, width, channels), uint8, moved by their views' seeds and not
   * normalised. `count` is always `batch`: a short batch is padded, so that a row's bits need not depend on how many
   * there are. The answer for a row must depend on its pixels alone. On failure return a status other than CMKD_OK and
   * fill `err` with one line (cmkd_fail); the build ends with it. */
  cmkd_status (*run)(void *self, const uint8_t *pixels, int count, float *logits, cmkd_error *err);
  int classes; /* of the logits; must be the data set's; 0: the data set's */
  int batch;   /* images of one call, 1 to 65536, recorded in the cache; 0: CMKD_TEACHER_BATCH */
  /* Who it is, recorded in the cache. Builds of one cache are continued only by a teacher of the same identity. */
  const char *sha256;      /* 64 lower-case hex digits that change whenever the teacher does: of its weight file, say */
  const char *name;        /* of the weight file, for people; NULL: "callback" */
  const char *arch;        /* NULL: "" */
  const float *mean, *std; /* (channels of the data set) x = (pixel / 255 - mean) / std; NULL, both: not recorded */
  const char *precision;   /* "fp32", "fp16", ...; NULL: "fp32" */
  double precision_error;  /* root mean square difference of its logits from fp32's; 0: none or not measured */
} cmkd_teacher_callback;

/* A teacher over the images of `data`, whose views are those of `policy`. `data` is borrowed and must outlive it. Fails
 * with CMKD_ERR_USAGE for a callback that says nonsense, CMKD_ERR_MISMATCH for another number of classes than the data
 * set's. *out is NULL after a failure. */
CMKD_API cmkd_status cmkd_teacher_from_callback(const cmkd_teacher_callback *callback, const cmkd_dataset *data,
                                                cmkd_policy policy, cmkd_teacher **out, cmkd_error *err);
/* NULL does nothing. */
CMKD_API void cmkd_teacher_close(cmkd_teacher *teacher);

/* What to build. All zero but `out` is a good start; strings are borrowed during the call. */
typedef struct cmkd_build_options {
  const char *out;        /* the cache, best ending in .h5; its shards go to a folder beside it */
  uint32_t samples;       /* the first so many of the split; 0: all */
  uint32_t views;         /* augmented views of an image, 1 to 65535; 0: 4, or 1 without augmentation */
  int all_variants;       /* 1: the views are all variants of the policy; `views` is ignored */
  int clean_view;         /* 1: one more view, the image as it is; without augmentation that is the one there is */
  uint64_t cache_seed;    /* that views are drawn from */
  const char *codec;      /* "f16", "f32", "u8sqrt", "topk:K" (docs/cache-format.md); NULL: "f16" */
  uint32_t shard_samples; /* samples of a shard; 0: about 4 MB of raw logits */
  int threads;            /* that compress; 0: all cores */
  unsigned part;          /* this process builds the shards k with k % parts == part, */
  unsigned parts;         /* and the master only where it builds all; 0: 1 */
} cmkd_build_options;

typedef struct cmkd_build_progress {
  uint64_t done, total; /* rows (an image under one view) of this part */
  uint64_t reused;      /* of done: found finished, by an earlier run or another process */
  int waiting;          /* 1: all that is left is being built by another process */
} cmkd_build_progress;

/* Asked and told on the calling thread, between teacher batches. Either function may be NULL. */
typedef struct cmkd_build_watch {
  void *self;                                                        /* handed to each function */
  int (*stop)(void *self);                                           /* non-zero: stop, CMKD_ERR_INTERRUPTED */
  void (*progress)(void *self, const cmkd_build_progress *progress); /* first with nothing done */
} cmkd_build_watch;

typedef struct cmkd_build_result {
  uint32_t samples, views;         /* of the cache, the clean view included */
  uint32_t shards, shards_done;    /* of this part; done by anybody */
  uint64_t teacher_rows;           /* that the teacher computed, padding not counted */
  double seconds, teacher_seconds; /* wall time; of that inside the teacher */
  cmkd_cache_writer_stats writer;
  int finished; /* 1: the master is there */
} cmkd_build_result;

/* Builds what is missing at options->out, then the master, unless this is one part of several (`cmkd-cache finish`, or
 * cmkd_cache_writer_join and cmkd_cache_writer_finish, join them). `watch` and `result` may be NULL; *result is filled
 * on failure, too. Errors: CMKD_ERR_USAGE for options that make no cache; CMKD_ERR_MISMATCH where the path holds
 * another cache, or a build of another spec; CMKD_ERR_VALUE for logits that are not finite, that the codec cannot hold
 * or that the callback did not write, naming the sample; CMKD_ERR_INTERRUPTED when watch->stop said so; what the
 * callback returned. Finished shards are kept in every case, and the same call continues. */
CMKD_API cmkd_status cmkd_build_cache(const cmkd_build_options *options, cmkd_teacher *teacher,
                                      const cmkd_build_watch *watch, cmkd_build_result *result, cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
