/* The device of a test: the emulation, or with -DON_DEVICE (programs test_device_*) the GPU behind libcmkd-cuda.so,
 * where every test is skipped by name when there is none. The same tests run on both. */
#ifndef CMKD_TESTS_SIMT_GPU_H
#define CMKD_TESTS_SIMT_GPU_H
#include "kernels/cuda/functions.h"
#include "tests/simt/emulate.h"
#include "tests/support.h"

#ifdef ON_DEVICE
enum { ORDERS = 1 };
static inline void set_order(int order, unsigned seed) {
  (void)order;
  (void)seed;
}
#else
enum { ORDERS = CMKD_SIMT_ORDERS };
static inline void set_order(int order, unsigned seed) { cmkd_simt_order(order, seed); }
#endif

const cmkd_cuda_functions *gpu_open(const char **why); /* NULL: *why says what is missing */
extern const cmkd_cuda_functions *gpu;                 /* set by NEED_GPU */
#define NEED_GPU() \
  do { \
    const char *why_; \
    if (!gpu && !(gpu = gpu_open(&why_))) { \
      printf("SKIP: %s: %s\n", __func__, why_); \
      skip(); \
    } \
  } while (0)

/* Runs a program's tests, an array that is not const; to be used in main instead of cmocka_run_group_tests. Tests named
 * in $CMKD_TESTS_DONE (a,b,c) are left out and not counted. So whoever measures on a GPU cuts a program that hangs or
 * crashes and goes on in a new process with the tests that have not ended; after a failed one as well, since an error
 * on a device can stay with the process and fail every test that follows. */
#define RUN_TESTS(tests) \
  (gpu_prepare_tests(tests, sizeof(tests) / sizeof *(tests)), cmocka_run_group_tests(tests, NULL, NULL))
void gpu_prepare_tests(struct CMUnitTest *tests, size_t n);

/* A device function by its name, from the emulation linked into this program or from libcmkd-cuda.so:
 * GPU(cmkd_cuda_forward)(&call, NULL, &err) */
void *gpu_symbol(const char *name);
#define GPU(function) ((__typeof__(&function))gpu_symbol(#function))

/* Device memory of this test, all freed by gpu_clear: a copy of host memory; fresh memory full of 0xFF. NULL and 0
 * bytes give NULL. */
void *gpu_put(const void *host, size_t bytes);
void *gpu_buffer(size_t bytes);
void gpu_get(void *host, const void *device, size_t bytes);
void gpu_clear(void);
#endif
