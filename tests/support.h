/* What every test file needs: cmocka in the right order, the shared material, scratch folders, comparisons.
 * A test program runs from the root of the repository; $CMKD_BUILD is the build folder (build), and $CMKD_TEST the test
 * to run alone (a name, or a pattern with * and ?). */
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
#include "base/cpu.h"
#include "cmkd/status.h"

/* "<shared>/name" in a static buffer, or NULL after printing "SKIP ..." when it is not there. $CMKD_SHARED or
 * ../shared. */
const char *shared_path(const char *name);
/* Folder of the unpacked CIFAR set ("cifar-10", "cifar-100"), unpacked once under the build folder; NULL after a SKIP
 * line. */
const char *shared_cifar(const char *name);
/* The Python that has all of `modules` ("h5py, numpy"; "" for any): "/usr/bin/python3" or the first in $PATH. NULL
 * after a SKIP line where there is none. */
const char *python_with(const char *modules);
/* Whether the shell finds `program`; 0 after a SKIP line. Tests ask for every program beyond a C compiler's own and
 * what the smallest Debian has (coreutils, diffutils, findutils, grep, sed, awk, tar), so that its absence is a skip.
 */
int has_program(const char *program);
/* Sets $CMKD_ISA for this process and its children and asserts that this set is taken. 0 after a SKIP line where the
 * machine does not have it; $CMKD_ISA is unset then. */
int use_isa(cmkd_isa isa);
void use_best_isa(void);
/* The seed of tests that draw at random: $CMKD_TEST_SEED, or from the clock. Printed when first asked for, so that a
 * failure can be repeated. */
uint64_t test_seed(void);
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
