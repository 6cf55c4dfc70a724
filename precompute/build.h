/* The builder without its command line: one cache from one teacher over one split. */
#ifndef CMKD_PRECOMPUTE_BUILD_H
#define CMKD_PRECOMPUTE_BUILD_H
#include "cmkd/cache.h"
#include "cmkd/dataset.h"
#include "cmkd/cache_writer.h"
#include "nets/teacher.h"
#include "base/program/part.h"

typedef struct cmkd_build_job {
  const char *out, *teacher_path;
  cmkd_teacher *teacher;
  const cmkd_dataset *data;
  uint32_t samples, views; /* views without the clean one */
  cmkd_policy policy;
  int all_variants, clean_view;
  uint64_t cache_seed;
  const char *codec;
  const char *precision;
  double precision_error; /* of the teacher's arithmetic (precision.h) */
  uint32_t shard_rows;    /* 0: chosen */
  int threads;
  cmkd_part part;
  int quiet;
  const char *label;        /* of the progress bar */
  int (*interrupted)(void); /* asked between batches; NULL: never */
} cmkd_build_job;

typedef struct cmkd_build_result {
  cmkd_cache_writer_stats writer;
  double seconds, teacher_seconds; /* wall time; of that inside the teacher */
  uint64_t teacher_rows;
  uint32_t shards, shards_done; /* of this part */
  int finished;                 /* the master is there */
} cmkd_build_result;

/* Builds what is missing, then the master (unless it is one part of several). CMKD_ERR_INTERRUPTED: the message says
 * how to go on. */
cmkd_status cmkd_build_cache(const cmkd_build_job *job, cmkd_build_result *result, cmkd_error *err);
#endif
