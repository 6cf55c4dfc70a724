/* Write, read back, stream: every codec, odd shapes, every order; h5py as another reader. */
#include "tests/support.h"
#include <math.h>
#include "base/file.h"
#include "base/half.h"
#include "base/rng.h"
#include "formats/cache/chunk.h"
#include "formats/cache/codec.h"
#include "tests/support_cache.h"

static cmkd_error err;
static cmkd_cache *open_built(const synthetic *s, const char *path) {
  cmkd_cache *cache;
  assert_ok(synthetic_build(s, path, NULL, &err));
  assert_ok(cmkd_cache_open(path, &cache, &err));
  return cache;
}

static void check_row(const synthetic *s, const float *original, const float *found) {
  float max = original[0], min = original[0];
  uint32_t top = 0, top_found = 0;
  for (uint32_t c = 1; c < s->classes; c++) {
    if (original[c] > max) {
      max = original[c];
      top = c;
    }
    if (original[c] < min) min = original[c];
    if (found[c] > found[top_found]) top_found = c;
  }
  for (uint32_t c = 0; c < s->classes; c++) {
    if (!strcmp(s->codec, "f32"))
      assert_memory_equal(original + c, found + c, 4);
    else if (!strcmp(s->codec, "f16")) {
      if (cmkd_half_to_float(cmkd_float_to_half(original[c])) != found[c])
        fail_msg("f16: %g became %g", original[c], found[c]);
    } else if (fabsf(original[c] - found[c]) > (max - min) / 128 + fabsf(max) / 1024)
      fail_msg("u8sqrt: %g became %g", original[c], found[c]);
  }
  if (!strcmp(s->codec, "u8sqrt")) assert_int_equal(top, top_found);
}

/* Rows as stored, decoded here by the codec, are the rows that the reader decodes. */
static void check_items(const synthetic *s, cmkd_cache *cache, uint32_t view) {
  const uint32_t first = s->samples / 5, count = s->samples - first;
  const size_t C = s->classes, numbers = count * C;
  const cmkd_codec *codec;
  assert_ok(cmkd_codec_find(s->codec, &codec, &err));
  assert_int_equal(cmkd_cache_logit_bytes(cache), codec->item);
  uint8_t *items = malloc(numbers * 4), *planes = malloc(numbers * 4);
  uint16_t *max = malloc(count * 2), *range = malloc(count * 2);
  float *want = malloc(numbers * 4), *got = malloc(numbers * 4);
  assert_ok(cmkd_cache_read(cache, view, first, count, want, &err));
  assert_ok(cmkd_cache_read_items(cache, view, first, count, items, max, range, &err));
  cmkd_byte_shuffle(items, planes, numbers, codec->item);
  codec->decode(&(cmkd_chunk_view){planes, numbers, C, max, range}, 0, count, got);
  assert_memory_equal(got, want, numbers * 4);
  if (codec->row_numbers)
    assert_int_equal(cmkd_cache_read_items(cache, view, first, count, items, NULL, NULL, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_read_items(cache, view, s->samples, 1, items, max, range, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_read_items(cache, s->views, 0, 1, items, max, range, &err), CMKD_ERR_USAGE);
  void *const owned[] = {items, planes, max, range, want, got};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    free(owned[i]);
}

static void check_all(const synthetic *s, cmkd_cache *cache) {
  size_t C = s->classes;
  float *all = malloc(s->samples * C * sizeof *all), *part = malloc(s->samples * C * sizeof *all), row[2048];
  uint64_t *seeds = malloc(s->samples * 8);
  const int32_t *labels;
  const uint64_t *ids;
  assert_ok(cmkd_cache_labels(cache, &labels, &err));
  assert_ok(cmkd_cache_ids(cache, &ids, &err));
  for (uint32_t v = 0; v < s->views; v++) {
    assert_ok(cmkd_cache_read(cache, v, 0, s->samples, all, &err));
    assert_ok(cmkd_cache_seeds(cache, v, seeds, &err));
    for (uint32_t i = 0; i < s->samples; i++) {
      synthetic_row(s, i, v, row);
      check_row(s, row, all + i * C);
      assert_true(seeds[i] == synthetic_seed(s, i, v) && ids[i] == i && labels[i] == synthetic_label(s, i));
    }
    uint32_t first = s->samples / 3, count = s->samples / 2;
    assert_ok(cmkd_cache_read(cache, v, first, count, part, &err));
    assert_memory_equal(part, all + first * C, count * C * sizeof *part);
    check_items(s, cache, v);
  }
  free(all);
  free(part);
  free(seeds);
}

static void reads_what_was_written(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  const synthetic shapes[] = {
      {.samples = 1000,
       .views = 3,
       .classes = 100,
       .shard_samples = 300,
       .chunk_samples = 128,
       .codec = "f16",
       .seed = 1},
      {.samples = 257,
       .views = 2,
       .classes = 10,
       .shard_samples = 100,
       .chunk_samples = 32,
       .codec = "f32",
       .seed = UINT64_MAX,
       .names = 1},
      {.samples = 513,
       .views = 2,
       .classes = 37,
       .shard_samples = 200,
       .chunk_samples = 64,
       .codec = "u8sqrt",
       .seed = 3},
      {.samples = 70, .views = 1, .classes = 1000, .codec = "f16", .seed = 4},
      {.samples = 1, .views = 1, .classes = 2, .codec = "u8sqrt", .seed = 5},
      {.samples = 33, .views = 5, .classes = 1, .shard_samples = 32, .codec = "f16", .seed = 6},
  };
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    char *path = cmkd_format("%s/cache%zu.h5", dir, i);
    cmkd_cache *cache = open_built(shapes + i, path);
    const cmkd_cache_info *info = cmkd_cache_get_info(cache);
    assert_int_equal(info->samples, shapes[i].samples);
    assert_int_equal(info->views, shapes[i].views);
    assert_true(info->identity.cache_seed == shapes[i].seed && info->identity.mean[1] == 0.5f + 1.0f / 30);
    assert_true((info->class_names != NULL) == (shapes[i].names != 0));
    if (info->class_names) assert_string_equal(info->class_names[2], "cat");
    check_all(shapes + i, cache);
    cmkd_cache_close(cache);
    free(path);
  }
}

static void check_stream(cmkd_cache *cache, uint32_t view, const uint32_t *order, uint32_t n, uint64_t memory,
                         uint32_t step) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  size_t C = info->classes;
  float *all = malloc(info->samples * C * sizeof *all), *rows = malloc((size_t)step * C * sizeof *rows);
  uint64_t *seeds = malloc(info->samples * 8), *got = malloc(step * 8);
  assert_ok(cmkd_cache_read(cache, view, 0, info->samples, all, &err));
  assert_ok(cmkd_cache_seeds(cache, view, seeds, &err));
  cmkd_stream *stream;
  cmkd_stream_options options = {.threads = 2, .memory = memory};
  assert_ok(cmkd_stream_open(cache, view, order, n, &options, &stream, &err));
  for (uint32_t at = 0; at < n; at += step) {
    uint32_t count = n - at < step ? n - at : step;
    assert_ok(cmkd_stream_next(stream, count, rows, got, &err));
    for (uint32_t i = 0; i < count; i++) {
      assert_memory_equal(rows + i * C, all + order[at + i] * C, C * sizeof *rows);
      assert_true(got[i] == seeds[order[at + i]]);
    }
  }
  assert_int_equal(cmkd_stream_next(stream, 1, rows, NULL, &err), CMKD_ERR_USAGE);
  cmkd_stream_free(stream);
  free(all);
  free(rows);
  free(seeds);
  free(got);
}

static void streams_any_order(void **state) {
  (void)state;
  const char *codecs[] = {"f16", "f32", "u8sqrt"};
  for (int k = 0; k < 3; k++) {
    synthetic s = {.samples = 5000,
                   .views = 2,
                   .classes = 20,
                   .shard_samples = 1700,
                   .chunk_samples = 100,
                   .codec = codecs[k],
                   .seed = 9};
    char *path = cmkd_format("%s/cache.h5", scratch_dir());
    cmkd_cache *cache = open_built(&s, path);
    uint32_t order[5000];
    for (uint32_t i = 0; i < s.samples; i++)
      order[i] = i;
    check_stream(cache, 0, order, s.samples, 0, 64);
    check_stream(cache, 1, order, s.samples, 100 * 20 * 4, 777); /* memory for one chunk */
    cmkd_epoch_order(7, 0, s.samples, 0, order);
    check_stream(cache, 1, order, s.samples, 0, 64);
    check_stream(cache, 0, order, 1, 0, 1);
    cmkd_epoch_order(7, 1, s.samples, 100, order);
    check_stream(cache, 0, order, s.samples, 0, 4999);
    for (uint32_t i = 0; i < s.samples; i++)
      order[i] = (i * 31) % 7; /* the same few rows again and again */
    check_stream(cache, 0, order, s.samples, 0, 100);
    cmkd_cache_close(cache);
    free(path);
  }
}

/* Rows of 128 bytes and more are scattered in whole cache lines; parts of an epoch, a last short chunk, several
 * threads. */
static void streams_shuffles_of_long_rows(void **state) {
  (void)state;
  const char *codecs[] = {"f16", "f32", "u8sqrt"};
  for (int k = 0; k < 3; k++) {
    synthetic s = {.samples = 3333,
                   .views = 2,
                   .classes = 157,
                   .shard_samples = 960,
                   .chunk_samples = 48,
                   .codec = codecs[k],
                   .seed = 3};
    char *path = cmkd_format("%s/cache.h5", scratch_dir());
    cmkd_cache *cache = open_built(&s, path);
    uint32_t order[3333];
    for (uint32_t epoch = 0; epoch < 3; epoch++) {
      cmkd_epoch_order(5, epoch, s.samples, 0, order);
      check_stream(cache, epoch & 1, order, epoch == 2 ? 1700 : s.samples, 0, 1 + epoch * 500);
    }
    order[1000] = order[2000]; /* a sample that comes twice has no one place */
    check_stream(cache, 0, order, s.samples, 0, 999);
    cmkd_epoch_order(5, 3, s.samples, 48, order);
    check_stream(cache, 1, order, s.samples, 20 * 48 * 157 * 4, 100);
    cmkd_cache_close(cache);
    free(path);
  }
}

static void one_row_chunks_do_not_deadlock(void **state) {
  (void)state;
  synthetic s = {
      .samples = 300, .views = 1, .classes = 50, .shard_samples = 50, .chunk_samples = 1, .codec = "f16", .seed = 9};
  char *path = cmkd_format("%s/cache.h5", scratch_dir());
  cmkd_cache *cache = open_built(&s, path);
  uint32_t order[300];
  cmkd_epoch_order(7, 0, s.samples, 0, order);
  check_stream(cache, 0, order, s.samples, 100, 300);
  cmkd_cache_close(cache);
  free(path);
}

static void stream_refuses(void **state) {
  (void)state;
  synthetic s = {.samples = 1000, .views = 1, .classes = 50, .chunk_samples = 10, .codec = "f16", .seed = 9};
  char *path = cmkd_format("%s/cache.h5", scratch_dir());
  cmkd_cache *cache = open_built(&s, path);
  uint32_t order[1000];
  cmkd_stream *stream;
  cmkd_epoch_order(7, 0, s.samples, 0, order);
  cmkd_stream_options small = {.threads = 1, .memory = 20 * 1000};
  assert_int_equal(cmkd_stream_open(cache, 0, order, 1000, &small, &stream, &err), CMKD_ERR_MEMORY);
  assert_non_null(strstr(err.message, "shuffle parts of the samples"));
  assert_int_equal(cmkd_stream_open(cache, 1, order, 1000, NULL, &stream, &err), CMKD_ERR_USAGE);
  order[3] = 1000;
  assert_int_equal(cmkd_stream_open(cache, 0, order, 1000, NULL, &stream, &err), CMKD_ERR_USAGE);
  float row[50];
  assert_int_equal(cmkd_cache_read(cache, 0, 1000, 1, row, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_read(cache, 1, 0, 1, row, &err), CMKD_ERR_USAGE);
  cmkd_cache_close(cache);
  free(path);
}

static void portable_equals_vector(void **state) {
  (void)state;
  const char *codecs[] = {"f16", "f32", "u8sqrt"};
  const cmkd_isa sets[] = {CMKD_ISA_AVX2, CMKD_ISA_BASELINE};
  if (!use_isa(CMKD_ISA_AVX2)) skip();
  for (int k = 0; k < 3; k++) {
    const char *first = scratch_dir(), *second = scratch_dir();
    const char *output;
    const char *self = getenv("CMKD_BUILD");
    /* another process, since the choice is made once; it says which set it took */
    for (int i = 0; i < 2; i++) {
      assert_true(use_isa(sets[i]));
      if (run_command(&output, "'%s/tests/test_cache_read' --dump %s '%s/c.h5'", self ? self : "build", codecs[k],
                      i ? second : first) != 0)
        fail_msg("%s", output);
      assert_string_equal(output, cmkd_isa_name(sets[i]));
    }
    use_best_isa();
    if (run_command(
            &output,
            "cmp '%s/c.h5' '%s/c.h5' && cmp '%s/c.h5.rows' '%s/c.h5.rows' && diff -r '%s/c.shards' '%s/c.shards'",
            first, second, first, second, first, second) != 0)
      fail_msg("%s: %s", codecs[k], output);
  }
}

static void h5py_reads_it(void **state) {
  (void)state;
  const char *output, *python = python_with("h5py, numpy");
  if (!python) skip();
  const char *codecs[] = {"f16", "f32", "u8sqrt"};
  for (int k = 0; k < 3; k++) {
    synthetic s = {.samples = 700,
                   .views = 3,
                   .classes = 10,
                   .shard_samples = 300,
                   .chunk_samples = 128,
                   .codec = codecs[k],
                   .seed = 11,
                   .names = 1};
    const char *dir = scratch_dir();
    char *path = cmkd_format("%s/teacher.h5", dir), *npy = cmkd_format("%s/rows.f32", dir);
    cmkd_cache *cache = open_built(&s, path);
    float *rows = malloc(700 * 3 * 10 * sizeof *rows);
    for (uint32_t v = 0; v < 3; v++)
      assert_ok(cmkd_cache_read(cache, v, 0, 700, rows + v * 7000, &err));
    cmkd_piece piece = {rows, 700 * 3 * 10 * sizeof *rows};
    assert_ok(cmkd_file_write(npy, &piece, 1, &err));
    const char *script =
        "import sys, h5py, numpy as np\n"
        "rows = np.fromfile(sys.argv[2], np.float32).reshape(3, 700, 10)\n"
        "f = h5py.File(sys.argv[1], 'r')\n"
        "assert f.attrs['codec'].decode() == sys.argv[3] and f.attrs['classes'] == 10 and f.attrs['cache_seed'] == 11\n"
        "assert [n.decode() for n in f['class_names']][8] == 'ibis'\n"
        "shards = sorted(k for k in f if k.startswith('shard-'))\n"
        "assert len(shards) == 3\n"
        "at = 0\n"
        "for k in shards:\n"
        "  s = f[k]\n"
        "  x = s['logits'][...]\n"
        "  if sys.argv[3] == 'u8sqrt':\n"
        "    q = x.astype(np.float32)\n"
        "    x = s['row_max'][...].astype(np.float32)[..., None] - s['row_range'][...].astype(np.float32)[..., None] / "
        "np.float32(65025) * (q * q)\n"
        "  else: assert x.dtype == ('f2' if sys.argv[3] == 'f16' else 'f4')\n"
        "  n = len(x)\n"
        "  assert np.array_equal(x.astype(np.float32), rows[:, at:at + n].transpose(1, 0, 2))\n"
        "  assert np.array_equal(s['sample_id'][...], np.arange(at, at + n)) and s['seeds'].shape == (n, 3) and "
        "s['seeds'].dtype == 'u8'\n"
        "  assert s['label'].dtype == 'i4' and s.attrs['first_sample'] == at\n"
        "  at += n\n"
        "assert at == 700\n";
    if (run_command(&output, "HDF5_PLUGIN_PATH='%s' '%s' -c \"%s\" '%s' '%s' %s", filter_folder(), python, script, path,
                    npy, codecs[k]) != 0)
      fail_msg("%s", output);
    free(rows);
    cmkd_cache_close(cache);
    free(path);
    free(npy);
  }
}

/* --dump CODEC FILE: builds a cache with this process's instruction set and writes all decoded rows beside it */
static int dump(const char *codec, const char *path) {
  synthetic s = {
      .samples = 333, .views = 2, .classes = 77, .shard_samples = 200, .chunk_samples = 64, .codec = codec, .seed = 2};
  cmkd_cache *cache;
  float *rows = malloc(333 * 77 * 2 * sizeof *rows);
  char *name = cmkd_format("%s.rows", path);
  cmkd_piece piece = {rows, 333 * 77 * 2 * sizeof *rows};
  if (synthetic_build(&s, path, NULL, &err) != CMKD_OK || cmkd_cache_open(path, &cache, &err) != CMKD_OK) {
    puts(err.message);
    return 1;
  }
  for (uint32_t v = 0; v < 2; v++)
    if (cmkd_cache_read(cache, v, 0, 333, rows + v * 333 * 77, &err) != CMKD_OK) {
      puts(err.message);
      return 1;
    }
  cmkd_cache_close(cache);
  int status = cmkd_file_write(name, &piece, 1, &err) != CMKD_OK;
  free(name);
  free(rows);
  printf("%s", cmkd_isa_name(cmkd_cpu_isa()));
  return status;
}

int main(int argc, char **argv) {
  if (argc == 4 && !strcmp(argv[1], "--dump")) return dump(argv[2], argv[3]);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_what_was_written),
      cmocka_unit_test(streams_any_order),
      cmocka_unit_test(streams_shuffles_of_long_rows),
      cmocka_unit_test(one_row_chunks_do_not_deadlock),
      cmocka_unit_test(stream_refuses),
      cmocka_unit_test(portable_equals_vector),
      cmocka_unit_test(h5py_reads_it),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
