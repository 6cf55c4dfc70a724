/* Building a cache: a teacher's logits of every view of every image of a data set's split. The teacher is yours
 * (cmkd/teacher.h); the order of the work, the views, resuming, parts of several processes, the identity and the file
 * are this library's. `cmkd-cache build` is a command over the same function. docs/examples/build.c is a whole program.
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
#include "cmkd/teacher.h"
#ifdef __cplusplus
extern "C" {
#endif

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
  unsigned part;          /* 0 to parts - 1: builds the shards k with k % parts == part */
  unsigned parts; /* processes that share the build; 0 and 1: this one alone, which then also writes the master */
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
  uint32_t samples;       /* of the cache */
  uint32_t views;         /* of a sample, the clean one included */
  uint32_t shards;        /* of this part */
  uint32_t shards_done;   /* of those, by this process or another */
  uint64_t teacher_rows;  /* that the teacher computed, padding not counted */
  double seconds;         /* wall time */
  double teacher_seconds; /* of that inside the teacher */
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
