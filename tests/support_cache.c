#include "tests/support.h"
#include <unistd.h>
#include "tests/support_cache.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/rng.h"

void synthetic_row(const synthetic *s, uint64_t sample, uint32_t view, float *row) {
  cmkd_rng rng = cmkd_rng_start(s->seed, CMKD_STREAM_TEST, sample * 65536 + view);
  for (uint32_t c = 0; c < s->classes; c++)
    row[c] = (float)(2.5 * cmkd_rng_normal(&rng));
  row[synthetic_label(s, sample)] += 8;
}
uint64_t synthetic_seed(const synthetic *s, uint64_t sample, uint32_t view) {
  return cmkd_view_seed(s->seed, sample, view, CMKD_AUGMENT_CROP_FLIP, 0);
}
int32_t synthetic_label(const synthetic *s, uint64_t sample) {
  return (int32_t)((sample * 2654435761u >> 7) % s->classes);
}

const synthetic synthetic_small = {.samples = 230,
                                   .views = 2,
                                   .classes = 10,
                                   .shard_samples = 50,
                                   .chunk_samples = 20,
                                   .codec = "f16",
                                   .seed = 5,
                                   .threads = 2,
                                   .names = 1,
                                   .arrays = 1};

const cmkd_cache_array synthetic_arrays[SYNTHETIC_ARRAYS] = {
    {.name = "aux", .dtype = CMKD_F32, .dims = 1, .shape = {5}, .chunk_samples = 17},
    {.name = "map.layer-3", .dtype = CMKD_F16, .dims = 2, .shape = {3, 2}},
    {.name = "mask", .dtype = CMKD_U8, .dims = 3, .shape = {1, 7, 1}},
};
uint32_t synthetic_elements(int array) {
  uint32_t elements = 1;
  for (int d = 0; d < synthetic_arrays[array].dims; d++)
    elements *= synthetic_arrays[array].shape[d];
  return elements;
}
void synthetic_array_row(const synthetic *s, int array, uint64_t sample, uint32_t view, float *row) {
  cmkd_rng rng = cmkd_rng_start(s->seed + 1 + (uint64_t)array, CMKD_STREAM_TEST, sample * 65536 + view);
  for (uint32_t e = 0; e < synthetic_elements(array); e++)
    switch (synthetic_arrays[array].dtype) {
    case CMKD_F32: row[e] = (float)cmkd_rng_normal(&rng); break;
    case CMKD_F16: row[e] = (float)((int)cmkd_rng_below(&rng, 4097) - 2048) / 64; break;
    default: row[e] = (float)cmkd_rng_below(&rng, 256);
    }
}

static void write_idx(const char *dir, const char *name, const uint32_t *dims, int count, const uint8_t *data) {
  char path[1300];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  FILE *file = fopen(path, "wb");
  size_t size = 1;
  if (!file) abort();
  fwrite((const uint8_t[]){0, 0, 8, (uint8_t)count}, 1, 4, file);
  for (int i = 0; i < count; i++) {
    fwrite((const uint8_t[]){(uint8_t)(dims[i] >> 24), (uint8_t)(dims[i] >> 16), (uint8_t)(dims[i] >> 8),
                             (uint8_t)dims[i]},
           1, 4, file);
    size *= dims[i];
  }
  if (fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
}

void synthetic_images(const synthetic *s, const char *dir, uint32_t side) {
  size_t pixels = (size_t)s->samples * side * side;
  uint8_t *images = malloc(pixels), *labels = malloc(s->samples);
  if (!images || !labels) abort();
  cmkd_rng rng = cmkd_rng_start(s->seed, CMKD_STREAM_TEST, 7);
  for (size_t i = 0; i < pixels; i++)
    images[i] = (uint8_t)cmkd_rng_u32(&rng);
  for (uint32_t i = 0; i < s->samples; i++)
    labels[i] = (uint8_t)synthetic_label(s, i);
  write_idx(dir, "train-images-idx3-ubyte", (const uint32_t[]){s->samples, side, side}, 3, images);
  write_idx(dir, "train-labels-idx1-ubyte", &s->samples, 1, labels);
  free(images);
  free(labels);
}

static const char *const names[] = {"ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"};

void synthetic_spec(const synthetic *s, cmkd_cache_spec *spec) {
  memset(spec, 0, sizeof *spec);
  cmkd_cache_identity *id = &spec->identity;
  memset(id->teacher_sha256, 'a', 64);
  memset(id->fingerprint, 'b', 64);
  strcpy(id->teacher_arch, "resnet20");
  strcpy(id->teacher_name, "synthetic.safetensors");
  strcpy(id->precision, "fp32");
  strcpy(id->dataset, "cifar100");
  strcpy(id->split, "train");
  strcpy(id->rng_version, CMKD_RNG_VERSION);
  strcpy(id->tool_version, "test");
  snprintf(id->codec, sizeof id->codec, "%s", s->codec);
  for (int c = 0; c < 3; c++) {
    id->mean[c] = 0.5f + (float)c / 30;
    id->std[c] = 0.25f;
  }
  id->channels = 3;
  id->teacher_batch = 128;
  id->dataset_n = s->samples;
  id->policy = CMKD_AUGMENT_CROP_FLIP;
  id->cache_seed = s->seed;
  spec->samples = s->samples;
  spec->views = s->views;
  spec->classes = s->classes;
  spec->shard_samples = s->shard_samples;
  spec->chunk_samples = s->chunk_samples;
  spec->threads = s->threads;
  spec->class_names = s->names && s->classes == 10 ? names : NULL;
  spec->arrays = synthetic_arrays;
  spec->array_count = s->arrays ? SYNTHETIC_ARRAYS : 0;
}

static cmkd_status put_arrays(const synthetic *s, cmkd_cache_writer *w, uint64_t first, uint32_t i, cmkd_error *err) {
  float row[SYNTHETIC_ELEMENTS];
  for (int a = 0; a < SYNTHETIC_ARRAYS; a++)
    for (uint32_t v = 0; v < s->views; v++) {
      synthetic_array_row(s, a, first + i, v, row);
      CMKD_TRY(cmkd_cache_writer_put_array(w, synthetic_arrays[a].name, v, i, 1, row, synthetic_elements(a), err));
    }
  return CMKD_OK;
}

cmkd_status synthetic_build_shard(const synthetic *s, cmkd_cache_writer *w, uint32_t k, cmkd_error *err) {
  uint64_t first;
  uint32_t n;
  cmkd_cache_writer_range(w, k, &first, &n);
  uint64_t *ids = malloc(n * 8), *seeds = malloc((size_t)n * s->views * 8);
  int32_t *labels = malloc(n * 4);
  float *row = malloc(s->classes * sizeof *row);
  if (!ids || !seeds || !labels || !row) abort();
  for (uint32_t i = 0; i < n; i++) {
    ids[i] = first + i;
    labels[i] = synthetic_label(s, first + i);
    for (uint32_t v = 0; v < s->views; v++)
      seeds[(size_t)i * s->views + v] = synthetic_seed(s, first + i, v);
  }
  cmkd_status status = cmkd_cache_writer_samples(w, ids, labels, seeds, err);
  for (uint32_t i = 0; i < n && status == CMKD_OK; i++) {
    for (uint32_t v = 0; v < s->views && status == CMKD_OK; v++) {
      synthetic_row(s, first + i, v, row);
      status = cmkd_cache_writer_put(w, v, i, 1, row, s->classes, err);
    }
    if (status == CMKD_OK && s->arrays) status = put_arrays(s, w, first, i, err);
  }
  free(ids);
  free(seeds);
  free(labels);
  free(row);
  return status == CMKD_OK ? cmkd_cache_writer_end(w, err) : status;
}

cmkd_status synthetic_build(const synthetic *s, const char *path, cmkd_cache_writer_stats *stats, cmkd_error *err) {
  cmkd_cache_spec spec;
  cmkd_cache_writer *w;
  synthetic_spec(s, &spec);
  CMKD_TRY(cmkd_cache_writer_open(path, &spec, &w, err));
  cmkd_status status = CMKD_OK;
  for (uint32_t k = 0; k < cmkd_cache_writer_shards(w) && status == CMKD_OK; k++) {
    cmkd_cache_shard_state state;
    status = cmkd_cache_writer_begin(w, k, &state, err);
    if (status == CMKD_OK && state == CMKD_CACHE_SHARD_NEEDED) status = synthetic_build_shard(s, w, k, err);
  }
  if (status == CMKD_OK) status = cmkd_cache_writer_finish(w, err);
  if (stats) cmkd_cache_writer_get_stats(w, stats);
  cmkd_cache_writer_close(w);
  return status;
}

void synthetic_check(const synthetic *s, cmkd_cache *cache, const uint32_t *order, uint32_t n) {
  cmkd_error err;
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  float *all = malloc((size_t)s->samples * 2048 * sizeof *all), *rows = malloc((size_t)n * 2048 * sizeof *rows);
  uint64_t *seeds = malloc(n * sizeof *seeds);
  float row[SYNTHETIC_ELEMENTS];
  assert_true(all && rows && seeds);
  for (int a = -1; a < SYNTHETIC_ARRAYS; a++)
    for (uint32_t v = 0; v < s->views; v++) {
      const char *name = a < 0 ? "logits" : synthetic_arrays[a].name;
      const size_t width = a < 0 ? info->classes : synthetic_elements(a);
      assert_ok(cmkd_cache_read_array(cache, name, v, 0, s->samples, all, &err));
      for (uint32_t i = 0; a >= 0 && i < s->samples; i++) {
        synthetic_array_row(s, a, i, v, row);
        assert_memory_equal(all + i * width, row, width * sizeof *row);
      }
      const cmkd_stream_options options = {.threads = 2, .array = a < 0 ? NULL : name};
      cmkd_stream *stream;
      assert_ok(cmkd_stream_open(cache, v, order, n, &options, &stream, &err));
      for (uint32_t at = 0, step; at < n; at += step) {
        step = n - at < 33 ? n - at : 33;
        assert_ok(cmkd_stream_next(stream, step, rows, seeds, &err));
        for (uint32_t i = 0; i < step; i++) {
          assert_memory_equal(rows + i * width, all + order[at + i] * width, width * sizeof *rows);
          assert_true(seeds[i] == synthetic_seed(s, order[at + i], v));
        }
      }
      cmkd_stream_free(stream);
    }
  free(all);
  free(rows);
  free(seeds);
}

void run_cache_program(const char *dir, const char *arguments) {
  const char *output, *build = getenv("CMKD_BUILD");
  if (run_command(&output, "cd '%s' && '%s/cmkd-cache' %s", dir, build ? build : "build", arguments) != 0)
    fail_msg("%s: %s", arguments, output);
}

const char *filter_folder(void) {
  static char folder[512];
  if (folder[0]) return folder;
  const char *build = getenv("CMKD_BUILD");
  char *real = realpath(build ? build : "build", NULL), *library = cmkd_format("%s/libh5zstd.so", real), *link;
  snprintf(folder, sizeof folder, "%s", scratch_dir());
  link = cmkd_format("%s/libh5zstd.so", folder);
  if (symlink(library, link) != 0) abort();
  free(real);
  free(library);
  free(link);
  return folder;
}
