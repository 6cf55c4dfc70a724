#include "tests/support.h"

static void fills_and_returns(void **state) {
  (void)state;
  cmkd_error err = {0};
  assert_int_equal(cmkd_fail(&err, CMKD_ERR_IO, "%s: %d", "a", 3), CMKD_ERR_IO);
  assert_int_equal(err.status, CMKD_ERR_IO);
  assert_string_equal(err.message, "a: 3");
  assert_int_equal(cmkd_fail(NULL, CMKD_ERR_FORMAT, "x"), CMKD_ERR_FORMAT);
}

static void stays_one_line(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_fail(&err, CMKD_ERR_IO, "a\nb");
  assert_string_equal(err.message, "a?b");
  char big[5000];
  memset(big, 'x', sizeof big - 1);
  big[sizeof big - 1] = 0;
  cmkd_fail(&err, CMKD_ERR_IO, "%s", big);
  assert_int_equal(strlen(err.message), sizeof err.message - 1);
  cmkd_fail(&err, CMKD_ERR_IO, "again: %.10s", err.message); /* its own text as argument */
  assert_string_equal(err.message, "again: xxxxxxxxxx");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(fills_and_returns), cmocka_unit_test(stays_one_line)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
