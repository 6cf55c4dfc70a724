#include "tests/support.h"
#include <math.h>
#include "base/half.h"

/* The value of a half from its definition, in double. */
static double defined(uint16_t h) {
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  double magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                     : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                                    : ldexp(mantissa, -24);
  return h & 0x8000 ? -magnitude : magnitude;
}

static void every_half_round_trips(void **state) {
  (void)state;
  for (uint32_t h = 0; h < 65536; h++) {
    float f = cmkd_half_to_float((uint16_t)h);
    double want = defined((uint16_t)h);
    if (isnan(want)) {
      assert_true(isnan(f));
      assert_true(isnan(cmkd_half_to_float(cmkd_float_to_half(f))));
      continue;
    }
    assert_true((double)f == want && !signbit(f) == !signbit(want));
    assert_int_equal(cmkd_float_to_half(f), h);
  }
}

/* Between neighbours a < b: the midpoint goes to the even one, its float neighbours to the nearer one. */
static void rounds_to_nearest_even(void **state) {
  (void)state;
  for (uint16_t h = 0; h < 0x7BFF; h++) {
    float a = cmkd_half_to_float(h), b = cmkd_half_to_float((uint16_t)(h + 1));
    float mid = (float)(((double)a + (double)b) / 2); /* exact */
    assert_int_equal(cmkd_float_to_half(mid), h & 1 ? h + 1 : h);
    assert_int_equal(cmkd_float_to_half(nextafterf(mid, 0)), h);
    assert_int_equal(cmkd_float_to_half(nextafterf(mid, INFINITY)), h + 1);
    assert_int_equal(cmkd_float_to_half(-mid), 0x8000 | (h & 1 ? h + 1 : h));
  }
  assert_int_equal(cmkd_float_to_half(65519.99609375f), 0x7BFF);
  assert_int_equal(cmkd_float_to_half(65520.0f), 0x7C00);
  assert_int_equal(cmkd_float_to_half(3.4e38f), 0x7C00);
  assert_int_equal(cmkd_float_to_half(-INFINITY), 0xFC00);
  assert_int_equal(cmkd_float_to_half(0x1p-26f), 0);
}

static void bf16_is_the_upper_half(void **state) {
  (void)state;
  assert_true(cmkd_bf16_to_float(0x3F80) == 1.0f);
  assert_true(cmkd_bf16_to_float(0xC040) == -3.0f);
  assert_true(isinf(cmkd_bf16_to_float(0x7F80)) && isnan(cmkd_bf16_to_float(0x7FC0)));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_half_round_trips), cmocka_unit_test(rounds_to_nearest_even),
                                     cmocka_unit_test(bf16_is_the_upper_half)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
