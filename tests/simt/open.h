/* The CUDA functions: linked in (emulated), or with -DON_DEVICE those of $CMKD_BUILD/libcmkd-cuda.so on device 0. NULL: *why says what is missing. */
#ifndef CMKD_TESTS_OPEN_H
#define CMKD_TESTS_OPEN_H
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include "kernels/cuda/kernels.h"

static __attribute__((unused)) void *plugin_handle; /* NULL: emulated, the functions are in this program */

static const cmkd_cuda_functions_table *open_functions(const char **why) {
#ifdef ON_DEVICE
  static cmkd_error err;
  static char name[256], text[512];
  const char *build = getenv("CMKD_BUILD");
  snprintf(text, sizeof text, "%s/libcmkd-cuda.so", build ? build : "build");
  void *plugin = plugin_handle = dlopen(text, RTLD_NOW | RTLD_LOCAL);
  if (!plugin) { *why = "no libcmkd-cuda.so in this build"; return NULL; }
  union { void *object; const cmkd_cuda_functions_table *(*entry)(void); } symbol = {dlsym(plugin, CMKD_CUDA_FUNCTIONS_ENTRY)};
  const cmkd_cuda_functions_table *table = symbol.object ? symbol.entry() : NULL;
  if (!table || table->version != CMKD_CUDA_FUNCTIONS_VERSION) { *why = "libcmkd-cuda.so is of another build"; return NULL; }
  if (table->device(name, &err) != CMKD_OK) { *why = err.message; return NULL; }
  printf("note: on %s\n", name);
  return table;
#else
  *why = "";
  return cmkd_cuda_functions();
#endif
}
#endif
