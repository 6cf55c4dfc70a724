/* The CUDA backend under test: its table, opened once a program. In the emulation work is deferred until it is waited
 * for, so that memory that is reused too early shows. */
#ifndef CMKD_TESTS_SIMT_BACKEND_H
#define CMKD_TESTS_SIMT_BACKEND_H
#include "tests/simt/gpu.h"
#include "tests/support_backend.h"

const cmkd_backend_table *cmkd_backend_plugin(void); /* kernels/cuda/plugin.c */
static cmkd_error err;
static const cmkd_backend_table *cuda;

static inline void defer(int on) {
#ifdef ON_DEVICE
  (void)on;
#else
  cmkd_simt_defer(on);
#endif
}

static inline int setup(void **state) {
  (void)state;
  setenv("CMKD_CUDA_SELFCHECK", "0", 1); /* test_cuda_failures.c tests it */
  const char *why;
  char file[4096];
  /* Algorithms are selected once for all tests, or for all processes where the variable is set: which one is a little
   * faster changes from time to time, and with it the bytes; and measuring takes most of the time. */
  snprintf(file, sizeof file, "%s/plans.json", scratch_dir());
  setenv("CMKD_CUDA_PLANS", file, 0);
  if (!gpu) gpu = gpu_open(&why);
  if (gpu) cuda = GPU(cmkd_backend_plugin)();
  set_order(1, 1);
  defer(1);
  return 0;
}
static inline int teardown(void **state) {
  (void)state;
  defer(0);
  return 0;
}
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#endif
