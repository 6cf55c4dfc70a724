/* The seed, view and order contract. Known answers come from an independent Python model of the rules in
 * docs/architecture.md. */
#include "tests/support.h"
#include "base/views.h"
#include <time.h>

static uint64_t fnv(const uint32_t *a, uint32_t n) {
  uint64_t h = 0xcbf29ce484222325u;
  for (uint32_t i = 0; i < n; i++)
    h = (h ^ a[i]) * 0x100000001b3u;
  return h;
}

static void policies(void **state) {
  (void)state;
  cmkd_error err = {0};
  static const uint32_t variants[] = {1, 2, 81, 162};
  for (int p = 0; p < 4; p++) {
    cmkd_policy back;
    assert_ok(cmkd_policy_parse(cmkd_policy_name((cmkd_policy)p), &back, &err));
    assert_int_equal(back, p);
    assert_int_equal(cmkd_policy_variants((cmkd_policy)p), variants[p]);
  }
  cmkd_policy out;
  assert_int_equal(cmkd_policy_parse("crop+flp", &out, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "did you mean 'crop+flip'"));
  assert_int_equal(cmkd_policy_parse("", &out, &err), CMKD_ERR_USAGE);
}

static void numbers_of_views(void **state) {
  (void)state;
  static const char *const refused[] = {
      "", "0", "-1", " 4", "4 ", "4x", "+4", "65536", "4294967297", "99999999999999", "every"};
  cmkd_error err = {0};
  uint32_t count = 7;
  assert_ok(cmkd_views_parse("all", &count, &err));
  assert_int_equal(count, 0);
  assert_ok(cmkd_views_parse("4", &count, &err));
  assert_int_equal(count, 4);
  assert_ok(cmkd_views_parse("65535", &count, &err));
  assert_int_equal(count, CMKD_CACHE_MAX_VIEWS - 1); /* the clean view is one more */
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
    assert_int_equal(cmkd_views_parse(refused[i], &count, &err), CMKD_ERR_USAGE);
    assert_non_null(strstr(err.message, "1 to 65535, or all"));
  }
}

static void transforms_are_bijective(void **state) {
  (void)state;
  for (int p = 0; p < 4; p++) {
    char seen[9][9][2] = {{{0}}};
    uint32_t variants = cmkd_policy_variants((cmkd_policy)p);
    for (uint64_t seed = 0; seed < variants; seed++) {
      cmkd_view_transform m = cmkd_view_transform_of((cmkd_policy)p, seed);
      assert_in_range(m.dy, 0, 8);
      assert_in_range(m.dx, 0, 8);
      assert_in_range(m.flip, 0, 1);
      assert_int_equal(seen[m.dy][m.dx][m.flip]++, 0);
      if (!(p & CMKD_AUGMENT_CROP)) {
        assert_int_equal(m.dy, 4);
        assert_int_equal(m.dx, 4);
      }
      cmkd_view_transform again = cmkd_view_transform_of((cmkd_policy)p, seed + variants * 1000000007ull);
      assert_true(again.dy == m.dy && again.dx == m.dx && again.flip == m.flip);
    }
    cmkd_view_transform clean = cmkd_view_transform_of((cmkd_policy)p, cmkd_clean_seed((cmkd_policy)p));
    assert_true(clean.dy == 4 && clean.dx == 4 && clean.flip == 0);
  }
  cmkd_view_transform m = cmkd_view_transform_of(CMKD_AUGMENT_CROP_FLIP, 1 + 2 * 5 + 18 * 7);
  assert_true(m.flip == 1 && m.dx == 5 && m.dy == 7);
  m = cmkd_view_transform_of(CMKD_AUGMENT_CROP, 5 + 9 * 7);
  assert_true(m.flip == 0 && m.dx == 5 && m.dy == 7);
}

static void all_variants_permute(void **state) {
  (void)state;
  uint64_t out[164];
  int same = 0;
  for (uint64_t id = 0; id < 300; id++)
    for (int p = 1; p < 4; p++) {
      uint32_t variants = cmkd_policy_variants((cmkd_policy)p);
      char seen[162] = {0};
      cmkd_view_seeds(42, id, variants + 2, (cmkd_policy)p, 1, out);
      for (uint32_t v = 0; v < variants; v++) {
        assert_true(out[v] < variants);
        assert_int_equal(seen[out[v]]++, 0);
        if (id < 8) assert_true(cmkd_view_seed(42, id, v, (cmkd_policy)p, 1) == out[v]);
      }
      assert_true(out[variants] == cmkd_clean_seed((cmkd_policy)p) &&
                  out[variants + 1] == cmkd_clean_seed((cmkd_policy)p));
      assert_true(cmkd_view_seed(42, id, variants, (cmkd_policy)p, 1) == cmkd_clean_seed((cmkd_policy)p));
      if (p == 3) same += out[0] == cmkd_view_seed(43, id, 0, (cmkd_policy)p, 1);
    }
  assert_true(same < 20); /* about 300 / 162 by chance */
}

static void drawn_seeds(void **state) {
  (void)state;
  uint64_t out[8];
  cmkd_view_seeds(7, 5, 8, CMKD_AUGMENT_CROP_FLIP, 0, out);
  for (uint32_t v = 0; v < 8; v++) {
    assert_true(out[v] == cmkd_view_seed(7, 5, v, CMKD_AUGMENT_CROP_FLIP, 0));
    assert_true(out[v] == cmkd_view_seed(7, 5, v, CMKD_AUGMENT_FLIP, 0)); /* the draw does not depend on the policy */
    for (uint32_t u = 0; u < v; u++)
      assert_true(out[u] != out[v]);
  }
  cmkd_view_seeds(7, 5, 8, CMKD_AUGMENT_NONE, 0, out);
  for (int v = 0; v < 8; v++)
    assert_true(out[v] == cmkd_clean_seed(CMKD_AUGMENT_NONE));
  assert_true(cmkd_view_seed(7, 5, 1, CMKD_AUGMENT_NONE, 1) == cmkd_clean_seed(CMKD_AUGMENT_NONE));
  for (int kind = 0; kind < 4; kind++) { /* one at a time or all at once: the same seeds, and the clean one last */
    const cmkd_view_draw draw = {7, CMKD_AUGMENT_CROP, 6, kind & 1, kind >> 1};
    uint64_t drawn[6];
    cmkd_view_draw_seeds(&draw, 5, drawn);
    for (uint32_t v = 0; v < 6; v++) {
      const int clean = draw.clean_view && v == 5;
      assert_true(drawn[v] == cmkd_view_draw_seed(&draw, 5, v));
      assert_true(drawn[v] == (clean ? 40 : cmkd_view_seed(7, 5, v, CMKD_AUGMENT_CROP, draw.all_variants)));
    }
  }
}

static void known_answers(void **state) {
  (void)state;
  assert_string_equal(CMKD_RNG_VERSION, "philox4x32-10/1");
  assert_true(cmkd_view_seed(1, 0, 0, CMKD_AUGMENT_CROP_FLIP, 0) == 0xcc3359502137c0d4u);
  assert_true(cmkd_view_seed(1, 49999, 3, CMKD_AUGMENT_CROP_FLIP, 0) == 0x28f7075787693f36u);
  assert_true(cmkd_view_seed(UINT64_MAX, 7, 161, CMKD_AUGMENT_CROP_FLIP, 0) == 0xa86628026018dc2u);
  assert_true(cmkd_fresh_seed(3, 2, (1ull << 32) + 17) != cmkd_fresh_seed(3, 2, 17));
  assert_true(cmkd_fresh_seed(3, 2, 17) == 0x74a8ace603af38eu);
  uint64_t all[162];
  cmkd_view_seeds(1, 0, 162, CMKD_AUGMENT_CROP_FLIP, 1, all);
  static const uint64_t first[] = {41, 47, 155, 4, 89, 90, 59, 134}, last[] = {159, 42, 129, 2},
                        crop[] = {7, 67, 61, 10};
  assert_memory_equal(all, first, sizeof first);
  cmkd_view_seeds(5, 123456789012, 162, CMKD_AUGMENT_CROP_FLIP, 1, all);
  assert_memory_equal(all + 158, last, sizeof last);
  cmkd_view_seeds(5, 3, 4, CMKD_AUGMENT_CROP, 1, all);
  assert_memory_equal(all, crop, sizeof crop);
  assert_true(cmkd_view_seed(5, 3, 0, CMKD_AUGMENT_FLIP, 1) == 1);
  static const uint32_t views4[] = {1, 3, 2, 0, 3, 0, 2, 1, 0, 2, 1, 3}, views162[] = {9, 95, 6, 48, 158, 51};
  for (uint32_t e = 0; e < 12; e++)
    assert_int_equal(cmkd_epoch_view(9, e, 4), views4[e]);
  for (uint32_t e = 0; e < 6; e++)
    assert_int_equal(cmkd_epoch_view(9, e, 162), views162[e]);
  static const struct {
    uint32_t block, head[4];
    uint64_t hash;
  } orders[] = {{0, {748, 364, 567, 291}, 0x59822e41d80523bfu},
                {1, {82, 238, 364, 837}, 0x51526fe3798604cfu},
                {7, {237, 971, 556, 105}, 0x186da282e64ee1a9u},
                {64, {9, 709, 780, 472}, 0x2fbed3f7b12421e9u},
                {1001, {0}, 0x8d897e9167243ae7u}};
  uint32_t *out = malloc(50000 * sizeof *out);
  for (size_t k = 0; k < sizeof orders / sizeof *orders; k++) {
    cmkd_epoch_order(3, 2, 1000, orders[k].block, out);
    if (orders[k].block < 1000) assert_memory_equal(out, orders[k].head, sizeof orders[k].head);
    assert_true(fnv(out, 1000) == orders[k].hash);
  }
  cmkd_epoch_order(12345678901, 99, 50000, 0, out);
  assert_true(fnv(out, 50000) == 0x970a0a37740210f7u);
  free(out);
}

static void epoch_view_visits_each_once(void **state) {
  (void)state;
  static const uint32_t counts[] = {1, 2, 4, 7, 162, 163};
  for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
    uint32_t views = counts[k];
    for (uint32_t round = 0; round < 3; round++) {
      char seen[200] = {0};
      for (uint32_t e = 0; e < views; e++) {
        uint32_t v = cmkd_epoch_view(11, round * views + e, views);
        assert_true(v < views);
        assert_int_equal(seen[v]++, 0);
      }
    }
  }
  int differs = 0;
  for (uint32_t e = 0; e < 162; e++)
    differs += cmkd_epoch_view(11, e, 162) != cmkd_epoch_view(12, e, 162);
  assert_true(differs > 140);
  assert_int_equal(cmkd_epoch_view(11, 5, 0), 0);
}

static void orders_are_permutations(void **state) {
  (void)state;
  static const uint32_t sizes[] = {1, 2, 8, 63, 64, 65, 1000, 1024};
  uint32_t out[1024], other[1024];
  for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
    uint32_t n = sizes[k], blocks[] = {0, 1, 7, 64, n + 1, UINT32_MAX};
    for (int b = 0; b < 6; b++) {
      char seen[1024] = {0};
      cmkd_epoch_order(5, 1, n, blocks[b], out);
      for (uint32_t i = 0; i < n; i++) {
        assert_true(out[i] < n);
        assert_int_equal(seen[out[i]]++, 0);
      }
      if (n < 63) continue;
      cmkd_epoch_order(5, 1, n, blocks[b], other);
      assert_memory_equal(out, other, n * sizeof *out);
      cmkd_epoch_order(5, 2, n, blocks[b], other);
      assert_memory_not_equal(out, other, n * sizeof *out);
      cmkd_epoch_order(6, 1, n, blocks[b], other);
      assert_memory_not_equal(out, other, n * sizeof *out);
    }
  }
  cmkd_epoch_order(5, 1, 0, 0, NULL);
}

/* A reader that loads a block when its first sample comes and drops it after its last never holds more than the window.
 */
static void a_window_suffices(void **state) {
  (void)state;
  static const uint32_t blocks[] = {1, 2, 7, 64, 200};
  const uint32_t n = 5003;
  uint32_t *out = malloc(n * sizeof *out), *left = malloc(n * sizeof *left);
  for (size_t k = 0; k < sizeof blocks / sizeof *blocks; k++)
    for (uint32_t epoch = 0; epoch < 5; epoch++) {
      uint32_t block = blocks[k], held = 0, most = 0, in_sequence = 0;
      cmkd_epoch_order(1, epoch, n, block, out);
      for (uint32_t b = 0; b * block < n; b++)
        left[b] = n - b * block < block ? n - b * block : block;
      for (uint32_t i = 0; i < n; i++) {
        uint32_t b = out[i] / block, size = n - b * block < block ? n - b * block : block;
        held += left[b] == size;
        if (held > most) most = held;
        held -= --left[b] == 0;
        in_sequence += i && out[i] == out[i - 1] + 1;
      }
      assert_true(most <= CMKD_SHUFFLE_WINDOW);
      if (block > 1) assert_int_equal(most, CMKD_SHUFFLE_WINDOW); /* it mixes as widely as it may */
      assert_true(in_sequence < n / 8);
    }
  free(left);
  free(out);
}

/* Every position is equally likely to land in each tenth of the order; chi-square of a 10 x 10 table, 81 degrees of
 * freedom. */
static void orders_are_uniform(void **state) {
  (void)state;
  uint32_t out[1000];
  double table[10][10] = {{0}}, chi = 0;
  for (uint32_t epoch = 0; epoch < 200; epoch++) {
    cmkd_epoch_order(77, epoch, 1000, 0, out);
    for (int i = 0; i < 1000; i++)
      table[i / 100][out[i] / 100]++;
  }
  for (int i = 0; i < 10; i++)
    for (int j = 0; j < 10; j++)
      chi += (table[i][j] - 2000) * (table[i][j] - 2000) / 2000;
  assert_true(chi > 40 && chi < 140);
}

static void speed(void **state) {
  (void)state;
  uint32_t *out = malloc(50000 * sizeof *out);
  uint64_t seeds[162], sum = 0;
  struct timespec a, b, c;
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (uint32_t e = 0; e < 10; e++)
    cmkd_epoch_order(1, e, 50000, 0, out);
  clock_gettime(CLOCK_MONOTONIC, &b);
  for (uint64_t i = 0; i < 1000; i++) {
    cmkd_view_seeds(1, i, 162, CMKD_AUGMENT_CROP_FLIP, 1, seeds);
    sum += seeds[3];
  }
  clock_gettime(CLOCK_MONOTONIC, &c);
  printf("note: order of 50000 in %.2f ms, 162 view seeds in %.2f us\n",
         ((b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6) / 10,
         ((c.tv_sec - b.tv_sec) * 1e9 + (c.tv_nsec - b.tv_nsec)) / 1e6);
  assert_true(sum > 0);
  free(out);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(policies),
                                     cmocka_unit_test(numbers_of_views),
                                     cmocka_unit_test(transforms_are_bijective),
                                     cmocka_unit_test(all_variants_permute),
                                     cmocka_unit_test(drawn_seeds),
                                     cmocka_unit_test(known_answers),
                                     cmocka_unit_test(epoch_view_visits_each_once),
                                     cmocka_unit_test(orders_are_permutations),
                                     cmocka_unit_test(a_window_suffices),
                                     cmocka_unit_test(orders_are_uniform),
                                     cmocka_unit_test(speed)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
