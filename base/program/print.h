/* Results on standard output. */
#ifndef CMKD_BASE_PROGRAM_PRINT_H
#define CMKD_BASE_PROGRAM_PRINT_H
#include "base/json.h"

/* Prints `value` as one line to stdout, reals with `precision` significant digits. Takes over `value`; NULL, a failure
 * when it was built, is CMKD_ERR_MEMORY and prints nothing. */
cmkd_status cmkd_json_print(json_t *value, int precision, cmkd_error *err);
#endif
