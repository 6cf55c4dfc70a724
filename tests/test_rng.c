#include "tests/support.h"
#include <math.h>
#include "base/rng.h"

/* Random123 kat_vectors, philox4x32 10. The key words are (low(seed), high(seed) ^ stream * 0x9E3779B9); stream 0
 * leaves the key alone. */
static void known_answers(void **state) {
  (void)state;
  static const struct {
    uint32_t counter[4], key[2], want[4];
  } kat[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (size_t i = 0; i < sizeof kat / sizeof *kat; i++) {
    const uint32_t *c = kat[i].counter, *k = kat[i].key;
    uint64_t a = c[0] | (uint64_t)c[1] << 32, b = c[2] | (uint64_t)c[3] << 32;
    cmkd_philox got = cmkd_philox_block(k[0] | (uint64_t)k[1] << 32, 0, a, b);
    assert_memory_equal(got.word, kat[i].want, 16);
    for (uint32_t stream = 1; stream < 9; stream++) { /* the stream moves the high key word alone */
      uint64_t seed = k[0] | (uint64_t)(k[1] ^ stream * 0x9E3779B9u) << 32;
      got = cmkd_philox_block(seed, stream, a, b);
      assert_memory_equal(got.word, kat[i].want, 16);
    }
  }
}

static void reader_follows_counters(void **state) {
  (void)state;
  cmkd_rng rng = cmkd_rng_start(7, CMKD_STREAM_TEST, 11);
  for (uint64_t b = 0; b < 5; b++) {
    cmkd_philox block = cmkd_philox_block(7, CMKD_STREAM_TEST, 11, b);
    for (int i = 0; i < 4; i++)
      assert_int_equal(cmkd_rng_u32(&rng), block.word[i]);
  }
  cmkd_rng low = cmkd_rng_start(7, CMKD_STREAM_TEST, 11);
  cmkd_philox first = cmkd_philox_block(7, CMKD_STREAM_TEST, 11, 0);
  assert_true(cmkd_rng_u64(&low) == (first.word[0] | (uint64_t)first.word[1] << 32));
}

static void below_is_uniform(void **state) {
  (void)state;
  cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, 0);
  int count[7] = {0};
  for (int i = 0; i < 70000; i++)
    count[cmkd_rng_below(&rng, 7)]++;
  for (int i = 0; i < 7; i++)
    assert_in_range(count[i], 9600, 10400); /* 4.3 sigma */
  for (int i = 0; i < 100; i++)
    assert_int_equal(cmkd_rng_below(&rng, 1), 0);
  int high = 0;
  for (int i = 0; i < 30000; i++) { /* a bound where rejection happens a quarter of the time */
    uint32_t x = cmkd_rng_below(&rng, 0xC0000000u);
    assert_true(x < 0xC0000000u);
    high += x >= 0x80000000u;
  }
  assert_in_range(high, 9650, 10350);
}

static void uniform_and_normal_moments(void **state) {
  (void)state;
  enum { N = 100000 };
  cmkd_rng rng = cmkd_rng_start(2, CMKD_STREAM_TEST, 0);
  double sum = 0, square = 0, fourth = 0;
  for (int i = 0; i < N; i++) {
    double u = cmkd_rng_uniform(&rng);
    assert_true(u >= 0 && u < 1);
    sum += u;
  }
  assert_true(fabs(sum / N - 0.5) < 0.005);
  sum = 0;
  for (int i = 0; i < N; i++) {
    double x = cmkd_rng_normal(&rng);
    assert_true(isfinite(x));
    sum += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  assert_true(fabs(sum / N) < 0.015);
  assert_true(fabs(square / N - 1) < 0.02);
  assert_true(fabs(fourth / N - 3) < 0.15);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(known_answers), cmocka_unit_test(reader_follows_counters),
                                     cmocka_unit_test(below_is_uniform), cmocka_unit_test(uniform_and_normal_moments)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
