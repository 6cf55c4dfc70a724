#include "base/program/print.h"
#include <stdio.h>
#include <stdlib.h>

cmkd_status cmkd_json_print(json_t *value, int precision, cmkd_error *err) {
  char *text = value ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(precision)) : NULL;
  json_decref(value);
  if (!text) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory to print the result as JSON");
  puts(text);
  free(text);
  return CMKD_OK;
}
