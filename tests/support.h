/* What every test file needs: cmocka in the right order, the shared material, scratch folders, comparisons. */
#ifndef CMKD_TESTS_SUPPORT_H
#define CMKD_TESTS_SUPPORT_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cmkd/status.h"

/* "<shared>/name" in a static buffer, or NULL after printing "SKIP ..." when it is not there. $CMKD_SHARED or
 * ../shared. */
const char *shared_path(const char *name);
/* Folder of the unpacked CIFAR set ("cifar-10", "cifar-100"), unpacked once under the build folder; NULL after a SKIP
 * line. */
const char *shared_cifar(const char *name);
/* A fresh empty folder for this test under $TMPDIR; removed at exit. */
const char *scratch_dir(void);
/* Runs a shell command; returns its exit status, output (stdout and stderr) into a static buffer. $CMKD_BUILD holds the
 * programs. */
int run_command(const char **output, const char *format, ...) CMKD_PRINTF(2, 3);

#define assert_ok(expression) \
  do { \
    if ((expression) != CMKD_OK) fail_msg("%s: %s", #expression, err.message); \
  } while (0)
#endif
