#include "tests/simt/gpu.h"
#include "tests/simt/open.h"

const cmkd_cuda_functions_table *gpu;
static void *held[64];
static int count;

const cmkd_cuda_functions_table *gpu_open(const char **why) { return open_functions(why); }

void *gpu_symbol(const char *name) {
  void *symbol = dlsym(plugin_handle ? plugin_handle : RTLD_DEFAULT, name);
  if (!symbol) fail_msg("%s is not there", name);
  return symbol;
}

void *gpu_room(size_t bytes) {
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
  void *device = gpu_room(bytes);
  assert_ok(gpu->put(device, host, bytes, &err));
  return device;
}

void gpu_get(void *host, const void *device, size_t bytes) {
  cmkd_error err;
  assert_ok(gpu->get(host, device, bytes, &err));
}

void gpu_clear(void) {
  while (count) gpu->release(held[--count]);
}
