/* base/json: a builder that remembers failures, texts of any bytes, numbers that are none. */
#include "base/json.h"
#include "base/program/print.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "tests/support.h"

static void check_dump(json_t *value, const char *expected) {
  char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
  assert_non_null(text);
  assert_string_equal(text, expected);
  free(text);
  json_decref(value);
}

static json_t *make(void) {
  cmkd_json list = cmkd_json_array(), o = cmkd_json_object();
  for (int i = 0; i < 3; i++)
    cmkd_json_append(&list, json_integer(i));
  cmkd_json_set(&o, "list", cmkd_json_end(&list));
  cmkd_json_set(&o, "text", cmkd_json_string("a \xc3\xa4"));
  return cmkd_json_end(&o);
}

static void values_are_built(void **state) {
  (void)state;
  check_dump(make(), "{\"list\":[0,1,2],\"text\":\"a \xc3\xa4\"}");
}

static void failure_is_remembered(void **state) {
  (void)state;
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "a", json_integer(1));
  cmkd_json_set(&o, "b", json_real(NAN)); /* jansson: NULL */
  cmkd_json_set(&o, "c", json_integer(3));
  assert_null(cmkd_json_end(&o));
  assert_null(cmkd_json_end(&o)); /* empty, and says so */

  cmkd_json inner = cmkd_json_array(), outer = cmkd_json_object();
  cmkd_json_append(&inner, NULL);
  cmkd_json_set(&outer, "inner", cmkd_json_end(&inner));
  assert_null(cmkd_json_end(&outer));

  cmkd_json array = cmkd_json_array();
  cmkd_json_set(&array, "key", json_integer(1)); /* not an object */
  assert_null(cmkd_json_end(&array));
}

static int allocations_left;
static void *short_malloc(size_t size) { return allocations_left-- > 0 ? malloc(size) : NULL; }

static void every_allocation_may_fail(void **state) {
  (void)state;
  json_malloc_t before_malloc;
  json_free_t before_free;
  json_get_alloc_funcs(&before_malloc, &before_free);
  json_set_alloc_funcs(short_malloc, free);
  int failures = 0;
  json_t *value = NULL;
  for (int allowed = 0; allowed < 200 && !value; allowed++) {
    allocations_left = allowed;
    value = make();
    failures += !value;
  }
  json_set_alloc_funcs(before_malloc, before_free);
  assert_true(failures > 5);
  check_dump(value, "{\"list\":[0,1,2],\"text\":\"a \xc3\xa4\"}");
}

static void strings_of_any_bytes(void **state) {
  (void)state;
  check_dump(cmkd_json_string(""), "\"\"");
  check_dump(cmkd_json_string("x\xff"
                              "y\xc3"),
             "\"x\xef\xbf\xbdy\xef\xbf\xbd\"");
  check_dump(cmkd_json_string("\xe2\x82\xac\x80\xf0\x9f\x98\x80"), "\"\xe2\x82\xac\xef\xbf\xbd\xf0\x9f\x98\x80\"");
}

static void numbers_that_are_none(void **state) {
  (void)state;
  check_dump(cmkd_json_number(0.5), "0.5");
  check_dump(cmkd_json_number(NAN), "null");
  check_dump(cmkd_json_number(-INFINITY), "null");
}

static void a_failed_value_is_not_printed(void **state) {
  (void)state;
  cmkd_error err;
  assert_int_equal(cmkd_json_print(NULL, 9, &err), CMKD_ERR_MEMORY);
  assert_non_null(strstr(err.message, "JSON"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(values_are_built),          cmocka_unit_test(failure_is_remembered),
      cmocka_unit_test(every_allocation_may_fail), cmocka_unit_test(strings_of_any_bytes),
      cmocka_unit_test(numbers_that_are_none),     cmocka_unit_test(a_failed_value_is_not_printed),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
