/* The CUDA functions: linked in (emulated), or with -DON_DEVICE those of libcmkd-cuda.so on device 0. NULL: *why says
 * what is missing. The file is $CMKD_CUDA_PLUGIN, else in $CMKD_BUILD, else in the folder above the program's. */
#ifndef CMKD_TESTS_SIMT_OPEN_H
#define CMKD_TESTS_SIMT_OPEN_H
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kernels/cuda/functions.h"

static __attribute__((unused)) void *plugin_handle; /* NULL: emulated, the functions are in this program */

#ifdef ON_DEVICE
static const char *plugin_path(void) {
  static char path[PATH_MAX + 32];
  const char *named = getenv("CMKD_CUDA_PLUGIN"), *build = getenv("CMKD_BUILD");
  if (named && *named) return named;
  if (build && *build)
    snprintf(path, sizeof path, "%s/libcmkd-cuda.so", build);
  else {
    char exe[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[length > 0 ? length : 0] = 0;
    char *slash = strrchr(exe, '/');
    if (slash) *slash = 0;
    snprintf(path, sizeof path, "%s/../libcmkd-cuda.so", slash ? exe : ".");
  }
  return path;
}
#endif

static const cmkd_cuda_functions *open_functions(const char **why) {
#ifdef ON_DEVICE
  static cmkd_error err;
  static char name[256];
  const char *path = plugin_path();
  *why = err.message;
  void *plugin = plugin_handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!plugin) {
    const char *reason = dlerror();
    cmkd_fail(&err, CMKD_ERR_UNSUPPORTED,
              "cannot load %s: %s; build it with the CUDA toolkit (make), or set "
              "CMKD_CUDA_PLUGIN",
              path, reason ? reason : "unknown error");
    return NULL;
  }
  union {
    void *object;
    const cmkd_cuda_functions *(*entry)(void);
  } symbol = {dlsym(plugin, CMKD_CUDA_FUNCTIONS_ENTRY)};
  const cmkd_cuda_functions *table = symbol.object ? symbol.entry() : NULL;
  if (!table || table->version != CMKD_CUDA_FUNCTIONS_VERSION) {
    cmkd_fail(&err, CMKD_ERR_UNSUPPORTED, "%s is of another build; build both anew (make)", path);
    return NULL;
  }
  if (table->device(name, &err) != CMKD_OK) return NULL;
  printf("note: on %s\n", name);
  return table;
#else
  *why = "";
  return cmkd_cuda_functions_table();
#endif
}
#endif
