#include "tests/support_train.h"
#include <math.h>
#include "base/file.h"
#include "tests/support_cache.h"
#include "train/evaluate.h"
#include "train/source.h"

enum { N = 101, HELD = 13 };
static int32_t labels[N];
static const cmkd_dataset data = {.name = "mnist", .split = "train", .n = N, .classes = 10, .labels = labels};

static const cmkd_source_inputs inputs = {.data = &data};

static cmkd_settings settings(uint32_t block) {
  cmkd_settings s = {
      .session = {.source = CMKD_SOURCE_LABELS, .classes = 10, .channels = 1, .policy = CMKD_AUGMENT_CROP},
      .samples = N,
      .val = HELD,
      .seed = 7,
      .shuffle_block = block};
  return s;
}

/* Rows and seeds of one epoch in pieces of `piece`, from place `at`. */
static void collect(cmkd_source *source, uint32_t epoch, uint32_t at, uint32_t piece, uint32_t *rows, uint64_t *seeds) {
  cmkd_error err;
  assert_ok(cmkd_source_epoch(source, epoch, at, &err));
  while (at < source->n) {
    uint32_t count = source->n - at < piece ? source->n - at : piece;
    assert_ok(cmkd_source_next(source, count, &(cmkd_source_rows){.rows = rows + at, .seeds = seeds + at}, &err));
    at += count;
  }
  assert_int_equal(cmkd_source_next(source, 1, &(cmkd_source_rows){.rows = rows, .seeds = seeds}, &err),
                   CMKD_ERR_VALUE);
}

static void every_sample_once_whatever_the_pieces(void **state) {
  (void)state;
  for (uint32_t block = 0; block <= 8; block += 8) {
    cmkd_settings s = settings(block);
    cmkd_source source;
    cmkd_error err;
    uint32_t rows[N], other[N];
    uint64_t seeds[N], other_seeds[N];
    assert_ok(cmkd_source_open(&source, &s, &inputs, &err));
    assert_int_equal(source.n, N - HELD);
    assert_int_equal(source.held, HELD);
    collect(&source, 2, 0, 16, rows, seeds);
    int seen[N] = {0};
    for (uint32_t i = 0; i < source.n; i++)
      seen[rows[i]]++;
    for (uint32_t i = 0; i < HELD; i++)
      seen[source.val_rows[i]] += 10;
    for (int i = 0; i < N; i++)
      assert_true(seen[i] == 1 || seen[i] == 10);
    collect(&source, 2, 0, 5, other, other_seeds);
    assert_memory_equal(rows, other, source.n * sizeof *rows);
    assert_memory_equal(seeds, other_seeds, source.n * sizeof *seeds);
    memset(other, 0xff, sizeof other);
    collect(&source, 2, 48, 16, other, other_seeds); /* a resume in the middle */
    assert_memory_equal(rows + 48, other + 48, (source.n - 48) * sizeof *rows);
    assert_memory_equal(seeds + 48, other_seeds + 48, (source.n - 48) * sizeof *seeds);
    collect(&source, 3, 0, 16, other, other_seeds);
    assert_memory_not_equal(rows, other, source.n * sizeof *rows);
    for (uint32_t i = 0; i < source.n; i++)
      for (uint32_t j = 0; j < source.n; j++)
        if (rows[i] == other[j]) assert_true(seeds[i] != other_seeds[j]); /* fresh pixels every epoch */
    cmkd_source_close(&source);
  }
}

static void the_seed_chooses_who_is_held_out(void **state) {
  (void)state;
  cmkd_source one, two;
  cmkd_error err;
  cmkd_settings s = settings(0), t = settings(0);
  t.seed = 8;
  assert_ok(cmkd_source_open(&one, &s, &inputs, &err));
  assert_ok(cmkd_source_open(&two, &t, &inputs, &err));
  assert_memory_not_equal(one.val_rows, two.val_rows, HELD * sizeof(uint32_t));
  cmkd_source_close(&two);
  assert_ok(cmkd_source_open(&two, &s, &inputs, &err));
  assert_memory_equal(one.val_rows, two.val_rows, HELD * sizeof(uint32_t));
  cmkd_source_close(&one);
  cmkd_source_close(&two);
}

/* The reader knows no options: the message of the program does. */
static void too_little_memory_names_the_options(void **state) {
  (void)state;
  const synthetic cached = {.samples = 1000, .views = 1, .classes = 50, .chunk_samples = 10, .codec = "f16", .seed = 9};
  char *path = cmkd_format("%s/cache.h5", scratch_dir());
  cmkd_settings s = settings(0);
  cmkd_source_inputs from = {.data = &data, .memory = 20 * 1000};
  cmkd_source source;
  cmkd_error err;
  s.session.source = CMKD_SOURCE_CACHE;
  s.session.views = 1;
  s.session.classes = 50;
  s.samples = 1000;
  assert_ok(synthetic_build(&cached, path, NULL, &err));
  assert_ok(cmkd_cache_open(path, &from.cache, &err));
  assert_ok(cmkd_source_open(&source, &s, &from, &err));
  assert_int_equal(cmkd_source_epoch(&source, 0, 0, &err), CMKD_ERR_MEMORY);
  assert_non_null(strstr(err.message, "GB"));
  assert_non_null(strstr(err.message, "--stream-memory"));
  assert_non_null(strstr(err.message, "--shuffle-block"));
  cmkd_source_close(&source);
  cmkd_cache_close(from.cache);
  free(path);
}

static void ties_go_to_the_lower_class(void **state) {
  (void)state;
  cmkd_accuracy a = {0};
  const float flat[8] = {1, 1, 1, 1, 1, 1, 1, 1}, peak[8] = {0, 0, 9, 0, 0, 0, 0, 0}, two[2] = {1000, -1000};
  cmkd_accuracy_add(&a, flat, 8, 0);
  assert_true(a.top1 == 1 && a.top5 == 1 && fabs(a.loss - log(8)) < 1e-12);
  cmkd_accuracy_add(&a, flat, 8, 4);
  assert_true(a.top1 == 1 && a.top5 == 2);
  cmkd_accuracy_add(&a, flat, 8, 5);
  assert_true(a.top1 == 1 && a.top5 == 2);
  cmkd_accuracy_add(&a, peak, 8, 2);
  assert_true(a.top1 == 2 && a.top5 == 3);
  cmkd_accuracy_add(&a, peak, 8, 4); /* classes 2, 0, 1, 3 are before it */
  assert_true(a.top5 == 4 && a.rows == 5);
  a.loss = 0;
  cmkd_accuracy_add(&a, two, 2, 1);
  assert_true(a.loss == 2000 && a.top5 == 5);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_sample_once_whatever_the_pieces), cmocka_unit_test(the_seed_chooses_who_is_held_out),
      cmocka_unit_test(too_little_memory_names_the_options), cmocka_unit_test(ties_go_to_the_lower_class)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
