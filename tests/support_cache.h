/* Synthetic caches for tests and benchmarks: logits that look like a trained network's, a function of (sample, view,
 * class) alone. */
#ifndef CMKD_TESTS_SUPPORT_CACHE_H
#define CMKD_TESTS_SUPPORT_CACHE_H
#include "cmkd/cache.h"
#include "cmkd/cache_writer.h"

typedef struct synthetic {
  uint32_t samples, views, classes, shard_rows, chunk_rows;
  const char *codec;
  uint64_t seed;
  int threads, names;
} synthetic;
void synthetic_row(const synthetic *s, uint64_t sample, uint32_t view, float *row);
uint64_t synthetic_seed(const synthetic *s, uint64_t sample, uint32_t view);
int32_t synthetic_label(const synthetic *s, uint64_t sample);
void synthetic_spec(const synthetic *s, cmkd_cache_spec *spec);
/* train-images and train-labels in IDX under `dir`: random pixels (samples, side, side), the synthetic labels. */
void synthetic_images(const synthetic *s, const char *dir, uint32_t side);
/* Writes (or continues) the cache at `path`. */
cmkd_status synthetic_build(const synthetic *s, const char *path, cmkd_cache_writer_stats *stats, cmkd_error *err);
/* A folder with the HDF5 filter alone, for HDF5_PLUGIN_PATH: libhdf5 opens every library in there, and a sanitized one
 * stops Python. */
const char *filter_folder(void);
#endif
