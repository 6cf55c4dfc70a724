/* Named arrays beside the logits: what is put comes back by name in any order; libhdf5 sees them; an interrupted or
 * shared build ends in the same bytes. Orders and delays are drawn from the test's seed. */
#include "tests/support.h"
#include <hdf5.h>
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/file.h"
#include "base/hash.h"
#include "base/rng.h"
#include "formats/cache/reader/verify.h"
#include "tests/support_cache.h"

static cmkd_error err;

static cmkd_cache *opened(const char *path) {
  cmkd_cache *cache;
  assert_ok(cmkd_cache_open(path, &cache, &err));
  return cache;
}

static void check_items(cmkd_cache *cache) {
  uint8_t mask[230 * 7];
  float decoded[230 * 7];
  assert_ok(cmkd_cache_read_array_items(cache, "mask", 1, 10, 200, mask, &err));
  assert_ok(cmkd_cache_read_array(cache, "mask", 1, 10, 200, decoded, &err));
  for (int i = 0; i < 200 * 7; i++)
    assert_true(decoded[i] == mask[i]);
  assert_ok(cmkd_cache_read_array_items(cache, "aux", 0, 3, 5, decoded, &err));
  float row[SYNTHETIC_ELEMENTS];
  synthetic_array_row(&synthetic_small, 0, 4, 0, row);
  assert_memory_equal(decoded + 5, row, 5 * sizeof *row);
  assert_int_equal(cmkd_cache_read_array_items(cache, "nothing", 0, 0, 1, mask, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_read_array(cache, "mask", 2, 0, 1, decoded, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_read_array(cache, "mask", 0, 230, 1, decoded, &err), CMKD_ERR_USAGE);
  cmkd_stream *stream;
  assert_int_equal(cmkd_stream_open(cache, 0, NULL, 0, &(cmkd_stream_options){.array = "nothing"}, &stream, &err),
                   CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "nothing"));
}

static void what_is_put_comes_back(void **state) {
  (void)state;
  static const char *const codecs[] = {"f16", "f32", "u8sqrt", "topk:3"};
  uint32_t order[1000];
  for (int k = 0; k < 4; k++) {
    const char *dir = scratch_dir();
    char *path = cmkd_path_join(dir, "t.h5"), *plain_path = cmkd_path_join(dir, "plain.h5");
    synthetic s = synthetic_small, plain;
    cmkd_verify_report report;
    s.codec = codecs[k];
    plain = s;
    plain.arrays = 0;
    assert_ok(synthetic_build(&s, path, NULL, &err));
    assert_ok(synthetic_build(&plain, plain_path, NULL, &err));
    cmkd_cache *cache = opened(path), *without = opened(plain_path);
    const cmkd_cache_info *info = cmkd_cache_get_info(cache);
    assert_int_equal(info->array_count, SYNTHETIC_ARRAYS);
    for (int a = 0; a < SYNTHETIC_ARRAYS; a++) {
      assert_string_equal(info->arrays[a].name, synthetic_arrays[a].name);
      assert_true(info->arrays[a].dtype == synthetic_arrays[a].dtype &&
                  info->arrays[a].dims == synthetic_arrays[a].dims);
      assert_memory_equal(info->arrays[a].shape, synthetic_arrays[a].shape, sizeof info->arrays[a].shape);
      assert_int_equal(info->arrays[a].elements, synthetic_elements(a));
    }
    assert_int_equal(info->arrays[0].chunk_samples, 17);
    for (uint32_t i = 0; i < s.samples; i++)
      order[i] = i;
    synthetic_check(&s, cache, order, s.samples);
    for (uint32_t block = 0; block <= 20; block += 20) {
      cmkd_epoch_order(test_seed(), 0, s.samples, block, order);
      synthetic_check(&s, cache, order, s.samples);
    }
    for (uint32_t i = 0; i < 1000; i++)
      order[i] = i * 31 % s.samples; /* samples that come more than once */
    synthetic_check(&s, cache, order, 1000);
    check_items(cache);
    float a[10 * 230], b[10 * 230]; /* the logits are those of a cache without arrays */
    assert_ok(cmkd_cache_read(cache, 1, 0, 230, a, &err));
    assert_ok(cmkd_cache_read(without, 1, 0, 230, b, &err));
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(info->logit_bytes, cmkd_cache_get_info(without)->logit_bytes);
    assert_int_equal(cmkd_cache_get_info(without)->array_count, 0);
    assert_string_not_equal(info->content_sha256, cmkd_cache_get_info(without)->content_sha256);
    cmkd_cache_verify(cache, 1, 1, NULL, NULL, &report);
    assert_int_equal(report.problems, 0);
    cmkd_cache_close(cache);
    cmkd_cache_close(without);
    free(path);
    free(plain_path);
  }
}

/* Rows of thousands of numbers: chunks of few samples, of their own size in every shard. */
static void long_rows(void **state) {
  (void)state;
  const cmkd_cache_array wide = {.name = "wide", .dtype = CMKD_F16, .dims = 3, .shape = {8, 8, 129}};
  enum { N = 90, WIDTH = 8 * 8 * 129 };
  char *path = cmkd_path_join(scratch_dir(), "t.h5");
  synthetic s = synthetic_small;
  cmkd_cache_spec spec;
  cmkd_cache_writer *w;
  cmkd_cache_shard_state shard_state;
  float *values = malloc((size_t)N * WIDTH * sizeof *values), *rows = malloc((size_t)N * WIDTH * sizeof *rows);
  uint64_t ids[N] = {0}, seeds[2 * N] = {0};
  int32_t labels[N] = {0};
  float logits[10 * N] = {0};
  uint32_t order[N];
  assert_true(values && rows);
  for (size_t i = 0; i < (size_t)N * WIDTH; i++)
    values[i] = (float)((int)(i * 2654435761u >> 8 & 1023) - 512);
  s.arrays = 0;
  s.samples = N;
  synthetic_spec(&s, &spec);
  spec.arrays = &wide;
  spec.array_count = 1;
  assert_ok(cmkd_cache_writer_open(path, &spec, &w, &err));
  for (uint32_t k = 0; k < cmkd_cache_writer_shards(w); k++) {
    uint64_t first;
    uint32_t n;
    cmkd_cache_writer_range(w, k, &first, &n);
    assert_ok(cmkd_cache_writer_begin(w, k, &shard_state, &err));
    assert_ok(cmkd_cache_writer_samples(w, ids, labels, seeds, &err));
    for (uint32_t v = 0; v < 2; v++) {
      assert_ok(cmkd_cache_writer_put(w, v, 0, n, logits, 10, &err));
      for (uint32_t i = n; i-- > 0;) /* backwards */
        assert_ok(cmkd_cache_writer_put_array(w, "wide", v, i, 1, values + (first + i) * WIDTH, WIDTH, &err));
    }
    assert_ok(cmkd_cache_writer_end(w, &err));
  }
  assert_ok(cmkd_cache_writer_finish(w, &err));
  cmkd_cache_writer_close(w);
  cmkd_cache *cache = opened(path);
  assert_int_equal(cmkd_cache_get_info(cache)->arrays[0].chunk_samples, 16); /* 264 KB of 16.5 KB rows */
  for (uint32_t block = 0; block <= 16; block += 16) {
    const cmkd_stream_options options = {.array = "wide"};
    cmkd_stream *stream;
    cmkd_epoch_order(test_seed(), 1, N, block, order);
    assert_ok(cmkd_stream_open(cache, 1, order, N, &options, &stream, &err));
    assert_ok(cmkd_stream_next(stream, N, rows, NULL, &err));
    for (uint32_t i = 0; i < N; i++)
      assert_memory_equal(rows + (size_t)i * WIDTH, values + (size_t)order[i] * WIDTH, WIDTH * sizeof *rows);
    cmkd_stream_free(stream);
  }
  cmkd_cache_close(cache);
  free(values);
  free(rows);
  free(path);
}

/* --hdf5 FILE: another process, since this one's libhdf5 has the writer's stand-in for the filter. Prints each dataset
 * of every type and the sum of its numbers. */
static int print_hdf5(const char *path) {
  hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  for (int a = -1; a < SYNTHETIC_ARRAYS; a++) {
    const char *name = a < 0 ? "logits" : synthetic_arrays[a].name;
    static float numbers[50 * 2 * 10];
    hsize_t dims[8], chunk[8];
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT), space = H5Dget_space(set), create = H5Dget_create_plist(set);
    int rank = H5Sget_simple_extent_dims(space, dims, NULL);
    if (rank < 3 || H5Pget_chunk(create, 8, chunk) != rank) return 1;
    if (H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, numbers) < 0) return 1;
    printf("%s", name);
    double sum = 0;
    hsize_t count = 1;
    for (int d = 0; d < rank; d++) {
      printf(" %d/%d", (int)dims[d], (int)chunk[d]);
      count *= dims[d];
    }
    for (hsize_t i = 0; i < count; i++)
      sum += numbers[i] * (double)(i % 97);
    printf(" %d filters, %.6f\n", H5Pget_nfilters(create), sum);
    H5Pclose(create);
    H5Sclose(space);
    H5Dclose(set);
  }
  H5Fclose(file);
  return 0;
}

static void libhdf5_reads_them(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *output, *build = getenv("CMKD_BUILD");
  char *path = cmkd_path_join(dir, "t.h5");
  float row[SYNTHETIC_ELEMENTS];
  static const char *const shapes[] = {"50/17 2/1 5/5 3 filters", "50/50 2/1 3/3 2/2 3 filters",
                                       "50/50 2/1 1/1 7/7 1/1 2 filters"};
  assert_ok(synthetic_build(&synthetic_small, path, NULL, &err));
  if (run_command(&output,
                  "HDF5_PLUGIN_PATH='%s' '%s/tests/test_cache_arrays' --hdf5 '%s/t.shards/shard-00001-of-00005.h5'",
                  filter_folder(), build ? build : "build", dir) != 0)
    fail_msg("%s", output);
  assert_non_null(strstr(output, "logits 50/20 2/1 10/10 3 filters"));
  for (int a = 0; a < SYNTHETIC_ARRAYS; a++) {
    double sum = 0;
    size_t at = 0;
    for (uint32_t i = 0; i < 50; i++)
      for (uint32_t v = 0; v < 2; v++) {
        synthetic_array_row(&synthetic_small, a, 50 + i, v, row);
        for (uint32_t e = 0; e < synthetic_elements(a); e++, at++)
          sum += row[e] * (double)(at % 97);
      }
    char *want = cmkd_format("%s %s, %.6f\n", synthetic_arrays[a].name, shapes[a], sum);
    if (!strstr(output, want)) fail_msg("%s is not in\n%s", want, output);
    free(want);
  }
  free(path);
}

/* ---- writing ---- */

static void digest(const char *dir, char hex[CMKD_SHA256_HEX]) {
  const char *output;
  if (run_command(&output, "find '%s' -name '*.tmp' -o -name '*.lock' | grep .", dir) == 0)
    fail_msg("left behind: %s", output);
  if (run_command(&output, "cd '%s' && find . -type f | sort | xargs sha256sum", dir) != 0) fail_msg("%s", output);
  cmkd_sha256(output, strlen(output), hex);
}

static void a_killed_build_is_continued(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *whole = scratch_dir(), *output;
  char *path = cmkd_path_join(dir, "t.h5"), *reference = cmkd_path_join(whole, "t.h5"), expected[CMKD_SHA256_HEX],
       found[CMKD_SHA256_HEX];
  cmkd_rng rng = cmkd_rng_start(test_seed(), CMKD_STREAM_TEST, 3);
  struct timespec from, to;
  int killed = 0;
  clock_gettime(CLOCK_MONOTONIC, &from);
  assert_ok(synthetic_build(&synthetic_small, reference, NULL, &err));
  clock_gettime(CLOCK_MONOTONIC, &to);
  uint32_t micros = (uint32_t)((to.tv_sec - from.tv_sec) * 1000000 + (to.tv_nsec - from.tv_nsec) / 1000);
  digest(whole, expected);
  for (int i = 0; i < 40; i++) {
    pid_t child = fork();
    if (child == 0) _exit(synthetic_build(&synthetic_small, path, NULL, &err) != CMKD_OK);
    nanosleep(&(struct timespec){0, (long)cmkd_rng_below(&rng, micros < 900000 ? micros : 900000) * 1000}, NULL);
    kill(child, SIGKILL);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    killed += WIFSIGNALED(status);
    if (i % 4 != 3) continue;
    assert_ok(synthetic_build(&synthetic_small, path, NULL, &err));
    digest(dir, found);
    assert_string_equal(found, expected);
    if (run_command(&output, "rm -rf '%s'/*", dir) != 0) fail_msg("%s", output);
  }
  print_message("killed %d of 40 builds before their end\n", killed);
  assert_true(killed > 0);
  free(path);
  free(reference);
}

static cmkd_status build_part(const char *path, uint32_t part, uint32_t parts) {
  cmkd_cache_spec spec;
  cmkd_cache_writer *w;
  synthetic_spec(&synthetic_small, &spec);
  CMKD_TRY(cmkd_cache_writer_open(path, &spec, &w, &err));
  cmkd_status status = CMKD_OK;
  for (uint32_t k = part; k < cmkd_cache_writer_shards(w) && status == CMKD_OK; k += parts) {
    cmkd_cache_shard_state shard_state;
    status = cmkd_cache_writer_begin(w, k, &shard_state, &err);
    if (status == CMKD_OK && shard_state == CMKD_CACHE_SHARD_NEEDED)
      status = synthetic_build_shard(&synthetic_small, w, k, &err);
  }
  if (status == CMKD_OK) status = cmkd_cache_writer_wait(w, &err);
  cmkd_cache_writer_close(w);
  return status;
}

static void parts_are_joined(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *whole = scratch_dir();
  char *path = cmkd_path_join(dir, "t.h5"), *reference = cmkd_path_join(whole, "t.h5"), expected[CMKD_SHA256_HEX],
       found[CMKD_SHA256_HEX];
  assert_ok(synthetic_build(&synthetic_small, reference, NULL, &err));
  digest(whole, expected);
  for (uint32_t part = 0; part < 3; part++)
    assert_ok(build_part(path, part, 3));
  cmkd_cache_writer *w;
  assert_ok(cmkd_cache_writer_join(path, &w, &err));
  assert_ok(cmkd_cache_writer_finish(w, &err));
  cmkd_cache_writer_close(w);
  digest(dir, found);
  assert_string_equal(found, expected);
  synthetic other = synthetic_small; /* the declarations decide what is the same cache */
  other.arrays = 0;
  assert_int_equal(synthetic_build(&other, path, NULL, &err), CMKD_ERR_MISMATCH);
  free(path);
  free(reference);
}

static void bad_declarations_are_refused(void **state) {
  (void)state;
  static const cmkd_cache_array bad[] = {
      {.name = "", .dims = 1, .shape = {4}},
      {.name = "logits", .dims = 1, .shape = {4}},
      {.name = "seeds", .dims = 1, .shape = {4}},
      {.name = "../x", .dims = 1, .shape = {4}},
      {.name = "features/a", .dims = 1, .shape = {4}},
      {.name = ".", .dims = 1, .shape = {4}},
      {.name = "-x", .dims = 1, .shape = {4}},
      {.name = "a b", .dims = 1, .shape = {4}},
      {.name = "\xc3\xa4", .dims = 1, .shape = {4}},
      {.name = "x", .dims = 0},
      {.name = "x", .dims = 7, .shape = {1, 1, 1, 1, 1, 1}},
      {.name = "x", .dims = 2, .shape = {4, 0}},
      {.name = "x", .dims = 1, .shape = {(1 << 18) + 1}},
      {.name = "x", .dims = 6, .shape = {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}},
      {.name = "x", .dims = 1, .shape = {1 << 14}, .chunk_samples = 17},
      {.name = "x", .dtype = CMKD_BF16, .dims = 1, .shape = {4}},
      {.name = "x", .dtype = CMKD_I64, .dims = 1, .shape = {4}},
  };
  char *path = cmkd_path_join(scratch_dir(), "t.h5");
  cmkd_cache_array full = {.dims = 1, .shape = {4}}, many[CMKD_CACHE_MAX_ARRAYS + 1];
  cmkd_cache_spec spec;
  cmkd_cache_writer *w;
  synthetic s = synthetic_small;
  s.arrays = 0;
  synthetic_spec(&s, &spec);
  spec.array_count = 1;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    spec.arrays = bad + i;
    if (cmkd_cache_writer_open(path, &spec, &w, &err) != CMKD_ERR_USAGE || w || strchr(err.message, '\n'))
      fail_msg("declaration %zu (\"%s\"): %s", i, bad[i].name, err.message);
  }
  memset(full.name, 'x', sizeof full.name); /* no end */
  spec.arrays = &full;
  assert_int_equal(cmkd_cache_writer_open(path, &spec, &w, &err), CMKD_ERR_USAGE);
  for (int i = 0; i <= CMKD_CACHE_MAX_ARRAYS; i++) {
    many[i] = (cmkd_cache_array){.dims = 1, .shape = {4}};
    snprintf(many[i].name, sizeof many[i].name, "x%d", i);
  }
  spec.arrays = many;
  spec.array_count = CMKD_CACHE_MAX_ARRAYS + 1;
  assert_int_equal(cmkd_cache_writer_open(path, &spec, &w, &err), CMKD_ERR_USAGE);
  spec.array_count = CMKD_CACHE_MAX_ARRAYS;
  assert_ok(cmkd_cache_writer_open(path, &spec, &w, &err));
  cmkd_cache_writer_close(w);
  many[7] = many[3];
  assert_int_equal(cmkd_cache_writer_open(path, &spec, &w, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "\"x3\""));
  free(path);
}

static void bad_numbers_are_refused(void **state) {
  (void)state;
  char *path = cmkd_path_join(scratch_dir(), "t.h5");
  cmkd_cache_spec spec;
  cmkd_cache_writer *w;
  cmkd_cache_shard_state shard_state;
  float row[SYNTHETIC_ELEMENTS] = {0};
  uint64_t ids[50] = {0}, seeds[100] = {0};
  int32_t labels[50] = {0};
  static const struct {
    int array;
    float value;
  } bad[] = {{0, NAN}, {0, INFINITY}, {1, 65520}, {1, -65520}, {1, -INFINITY},
             {2, -1},  {2, 0.5f},     {2, 256},   {2, NAN},    {2, -0.25f}};
  synthetic_spec(&synthetic_small, &spec);
  assert_ok(cmkd_cache_writer_open(path, &spec, &w, &err));
  assert_int_equal(cmkd_cache_writer_put_array(w, "aux", 0, 0, 1, row, 5, &err), CMKD_ERR_USAGE); /* not begun */
  assert_ok(cmkd_cache_writer_begin(w, 1, &shard_state, &err));
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    const char *name = synthetic_arrays[bad[i].array].name;
    row[3] = bad[i].value;
    assert_int_equal(cmkd_cache_writer_put_array(w, name, 1, 4, 1, row, 7, &err), CMKD_ERR_VALUE);
    assert_non_null(strstr(err.message, "sample 54"));
    assert_non_null(strstr(err.message, name));
  }
  row[3] = 255;
  for (int a = 0; a < SYNTHETIC_ARRAYS; a++)
    assert_ok(cmkd_cache_writer_put_array(w, synthetic_arrays[a].name, 1, 4, 1, row, 7, &err));
  assert_int_equal(cmkd_cache_writer_put_array(w, "aux", 2, 4, 1, row, 7, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_writer_put_array(w, "aux", 1, 50, 1, row, 7, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_writer_put_array(w, "aux", 1, 5, 1, row, 4, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_writer_put_array(w, "logits", 1, 5, 1, row, 10, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_writer_put_array(w, "other", 1, 5, 1, row, 7, &err), CMKD_ERR_USAGE);
  /* all logits and samples, but rows of the arrays are missing */
  float zeros[50 * 10] = {0};
  assert_ok(cmkd_cache_writer_samples(w, ids, labels, seeds, &err));
  assert_ok(cmkd_cache_writer_put(w, 0, 0, 50, zeros, 10, &err));
  assert_ok(cmkd_cache_writer_put(w, 1, 0, 50, zeros, 10, &err));
  assert_int_equal(cmkd_cache_writer_end(w, &err), CMKD_ERR_USAGE);
  cmkd_cache_writer_abandon(w);
  assert_int_equal(cmkd_cache_writer_add(w, 1, ids, labels, seeds, zeros, &err), CMKD_ERR_USAGE);
  cmkd_cache_writer_close(w);
  assert_int_equal(cmkd_file_exists(path), 0);
  free(path);
}

/* ---- repack, subset, merge ---- */

static void reshaping_carries_them(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *output, *build = getenv("CMKD_BUILD");
  char *path = cmkd_path_join(dir, "full.h5"), *plain = cmkd_path_join(dir, "plain.h5"),
       *whole = cmkd_path_join(dir, "whole.h5"), *odd = cmkd_path_join(dir, "odd.h5");
  uint32_t order[230];
  float rows[230 * 7], row[SYNTHETIC_ELEMENTS];
  synthetic s = synthetic_small, without = synthetic_small;
  s.codec = without.codec = "f32";
  without.arrays = 0;
  without.seed = 5;
  assert_ok(synthetic_build(&s, path, NULL, &err));
  assert_ok(synthetic_build(&without, plain, NULL, &err));
  for (uint32_t i = 0; i < 230; i++)
    order[i] = i;
  run_cache_program(dir, "repack full.h5 small.h5 --codec u8sqrt --quiet");
  run_cache_program(dir, "subset full.h5 odd.h5 --samples 7,100-199 --views 1 --quiet");
  run_cache_program(dir, "subset full.h5 a.h5 --samples 0-99 --quiet");
  run_cache_program(dir, "subset full.h5 b.h5 --samples 100-229 --quiet");
  run_cache_program(dir, "merge whole.h5 a.h5 b.h5 --quiet");
  static const char *const same[] = {"small.h5", "whole.h5"};
  for (int i = 0; i < 2; i++) {
    char *name = cmkd_path_join(dir, same[i]);
    cmkd_cache *cache = opened(name);
    synthetic_check(&s, cache, order, 230);
    cmkd_cache_close(cache);
    free(name);
  }
  cmkd_cache *cache = opened(odd);
  const uint64_t *ids;
  assert_ok(cmkd_cache_ids(cache, &ids, &err));
  assert_int_equal(cmkd_cache_get_info(cache)->samples, 101);
  for (int a = 0; a < SYNTHETIC_ARRAYS; a++) {
    assert_ok(cmkd_cache_read_array(cache, synthetic_arrays[a].name, 0, 0, 101, rows, &err));
    for (uint32_t i = 0; i < 101; i++) {
      synthetic_array_row(&s, a, ids[i], 1, row);
      assert_memory_equal(rows + i * synthetic_elements(a), row, synthetic_elements(a) * sizeof *row);
    }
  }
  cmkd_cache_close(cache);
  run_cache_program(dir, "subset plain.h5 c.h5 --samples 100-229 --quiet");
  if (run_command(&output, "cd '%s' && '%s/cmkd-cache' info full.h5 && '%s/cmkd-cache' info --json full.h5", dir,
                  build ? build : "build", build ? build : "build") != 0)
    fail_msg("%s", output);
  for (int a = 0; a < SYNTHETIC_ARRAYS; a++) {
    char line[512];
    snprintf(line, sizeof line, "  array     %s, %s, rows of %u", synthetic_arrays[a].name,
             cmkd_dtype_name(synthetic_arrays[a].dtype), synthetic_arrays[a].shape[0]);
    assert_non_null(strstr(output, line));
    snprintf(line, sizeof line, "{\"name\":\"%s\",\"dtype\":\"%s\",\"shape\":[%u", synthetic_arrays[a].name,
             cmkd_dtype_name(synthetic_arrays[a].dtype), synthetic_arrays[a].shape[0]);
    assert_non_null(strstr(output, line));
  }
  if (run_command(&output, "cd '%s' && '%s/cmkd-cache' merge z.h5 a.h5 c.h5 --quiet", dir, build ? build : "build") !=
          1 ||
      !strstr(output, "named arrays"))
    fail_msg("%s", output);
  if (run_command(&output, "cd '%s' && '%s/cmkd-cache' merge mean.h5 full.h5 plain.h5 --average --quiet", dir,
                  build ? build : "build") != 0 ||
      !strstr(output, "without the named arrays"))
    fail_msg("%s", output);
  free(path);
  free(plain);
  free(whole);
  free(odd);
}

int main(int argc, char **argv) {
  if (argc == 3 && !strcmp(argv[1], "--hdf5")) return print_hdf5(argv[2]);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_put_comes_back),  cmocka_unit_test(long_rows),
      cmocka_unit_test(libhdf5_reads_them),      cmocka_unit_test(a_killed_build_is_continued),
      cmocka_unit_test(parts_are_joined),        cmocka_unit_test(bad_declarations_are_refused),
      cmocka_unit_test(bad_numbers_are_refused), cmocka_unit_test(reshaping_carries_them),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
