/* Synthetic caches for tests and benchmarks: logits that look like a trained network's, a function of (sample, view,
 * class) alone. */
#ifndef CMKD_TESTS_SUPPORT_CACHE_H
#define CMKD_TESTS_SUPPORT_CACHE_H
#include "cmkd/cache.h"
#include "cmkd/cache_writer.h"

typedef struct synthetic {
  uint32_t samples, views, classes, shard_samples, chunk_samples;
  const char *codec;
  uint64_t seed;
  int threads;
  int names;  /* 1: with class names, when there are 10 classes */
  int arrays; /* 1: with the named arrays of synthetic_arrays */
} synthetic;
/* 230 samples, 2 views and 10 classes in f16, five shards, with arrays and names. */
extern const synthetic synthetic_small;
/* Named arrays of every type, and numbers for them that their type holds exactly. */
enum { SYNTHETIC_ARRAYS = 3, SYNTHETIC_ELEMENTS = 7 }; /* elements: of the widest row */
extern const cmkd_cache_array synthetic_arrays[SYNTHETIC_ARRAYS];
uint32_t synthetic_elements(int array);
void synthetic_array_row(const synthetic *s, int array, uint64_t sample, uint32_t view, float *row);

void synthetic_row(const synthetic *s, uint64_t sample, uint32_t view, float *row);
uint64_t synthetic_seed(const synthetic *s, uint64_t sample, uint32_t view);
int32_t synthetic_label(const synthetic *s, uint64_t sample);
void synthetic_spec(const synthetic *s, cmkd_cache_spec *spec);
/* train-images and train-labels in IDX under `dir`: random pixels (samples, side, side), the synthetic labels. */
void synthetic_images(const synthetic *s, const char *dir, uint32_t side);
/* Writes (or continues) the cache at `path`. */
cmkd_status synthetic_build(const synthetic *s, const char *path, cmkd_cache_writer_stats *stats, cmkd_error *err);
/* Fills and ends shard k, which was begun. */
cmkd_status synthetic_build_shard(const synthetic *s, cmkd_cache_writer *w, uint32_t k, cmkd_error *err);
/* Asserts that the logits of every view are readable and its named arrays what was put, in order and streamed in
 * `order` (n). */
void synthetic_check(const synthetic *s, cmkd_cache *cache, const uint32_t *order, uint32_t n);
/* cmkd-cache ARGUMENTS in `dir`; fails the test unless it succeeds. */
void run_cache_program(const char *dir, const char *arguments);
/* A folder with the HDF5 filter alone, for HDF5_PLUGIN_PATH: libhdf5 opens every library in there, and a sanitized one
 * stops Python. */
const char *filter_folder(void);
#endif
