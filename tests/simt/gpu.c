#include "tests/simt/gpu.h"
#include "tests/simt/open.h"

const cmkd_cuda_functions *gpu;
static void *held[64];
static int count;

const cmkd_cuda_functions *gpu_open(const char **why) { return open_functions(why); }

static int is_listed(const char *name, const char *list) {
  const size_t length = strlen(name);
  for (const char *p = list; (p = strstr(p, name)); p += length)
    if ((p == list || p[-1] == ',') && (!p[length] || p[length] == ',')) return 1;
  return 0;
}

void gpu_prepare_tests(struct CMUnitTest *tests, size_t n) {
  const char *done = getenv("CMKD_TESTS_DONE");
  setvbuf(stdout, NULL, _IOLBF, 0); /* a program that is killed has told what it did, in a file too */
#ifndef ON_DEVICE
  unsetenv("CMKD_CUDNN"); /* a library that is named must be there, and the emulation has none */
#endif
  for (size_t i = 0; done && i < n; i++)
    if (is_listed(tests[i].name, done)) tests[i] = (struct CMUnitTest){0}; /* cmocka leaves out what has no name */
}

void *gpu_symbol(const char *name) {
  void *symbol = dlsym(plugin_handle ? plugin_handle : RTLD_DEFAULT, name);
  if (!symbol) fail_msg("%s is not there", name);
  return symbol;
}

void *gpu_buffer(size_t bytes) {
  cmkd_error err;
  if (!bytes) return NULL;
  assert_true(count < (int)(sizeof held / sizeof *held));
  assert_ok(gpu->alloc(&held[count], bytes, &err));
  assert_ok(gpu->fill(held[count], 0xFF, bytes, &err));
  return held[count++];
}

void *gpu_put(const void *host, size_t bytes) {
  cmkd_error err;
  if (!host) return NULL;
  void *device = gpu_buffer(bytes);
  assert_ok(gpu->put(device, host, bytes, &err));
  return device;
}

void gpu_get(void *host, const void *device, size_t bytes) {
  cmkd_error err;
  assert_ok(gpu->get(host, device, bytes, &err));
}

void gpu_clear(void) {
  while (count)
    gpu->release(held[--count]);
}
