/* The cuDNN library, opened at run time and held by a handle on one stream; only its header is needed to build. Without
 * the header: functions that say so. */
#include "kernels/cuda/conv/cudnn_internal.h"
#ifdef CONV_CUDNN
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "libcudnn.so.9"

static cmkd_status open_library(cmkd_cudnn *lib, const char *path, cmkd_error *err) {
  static const struct {
    const char *name;
    size_t field;
  } functions[] = {
#define FUNCTION(name) {#name, offsetof(cmkd_cudnn, name)},
      CONV_CUDNN_FUNCTIONS(FUNCTION)
#undef FUNCTION
  };
  if (!path || !*path) path = LIBRARY;
  if (!strcmp(path, "off")) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "cuDNN is left out (CMKD_CUDNN=off)");
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* never closed: its parts register handlers that run at exit */
  if (!library) {
    const char *why = dlerror();
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "cannot load cuDNN 9 (%s): %s; install it or set CMKD_CUDNN=PATH", path,
                     why ? why : "unknown error");
  }
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    void *symbol = dlsym(library, functions[i].name);
    if (!symbol)
      return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s has no %s; install cuDNN 9 or set CMKD_CUDNN=PATH", path,
                       functions[i].name);
    memcpy((char *)lib + functions[i].field, &symbol, sizeof symbol);
  }
  lib->version = (int)lib->cudnnGetVersion();
  return CMKD_OK;
}

cmkd_status cmkd_cudnn_open(const char *path, void *stream, const char *device_json, cmkd_cudnn **out,
                            cmkd_error *err) {
  *out = NULL;
  cmkd_cudnn *lib = calloc(1, sizeof *lib);
  if (!lib) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_status status = open_library(lib, path, err);
  if (status != CMKD_OK) {
    free(lib);
    return status;
  }
  bag b = {.lib = lib};
  if (device_json) {
    if (lib->version < 90800)
      status = cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "cuDNN %d makes no plans without their device; 90800 does",
                         lib->version);
    lib->device = status == CMKD_OK ? make(&b, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR) : NULL;
    if (lib->device)
      set(&b, lib->device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(device_json) + 1,
          device_json);
    if (lib->device) finish(&b, lib->device, "the device's description");
  } else if (!failed(&b, lib->cudnnCreate(&lib->handle), "a handle"))
    failed(&b, lib->cudnnSetStream(lib->handle, stream), "a stream");
  if (b.status != CUDNN_STATUS_SUCCESS) {
    cudnn_fail(lib, err, b.status, b.what);
    status = CMKD_ERR_UNSUPPORTED;
    if (err) err->status = status;
  }
  if (status != CMKD_OK) {
    cmkd_cudnn_close(lib);
    return status;
  }
  *out = lib;
  return CMKD_OK;
}

void cmkd_cudnn_close(cmkd_cudnn *lib) {
  if (!lib) return;
  if (lib->device) lib->cudnnBackendDestroyDescriptor(lib->device);
  if (lib->handle) lib->cudnnDestroy(lib->handle);
  free(lib);
}

int cmkd_cudnn_version(const cmkd_cudnn *lib) { return lib->version; }

#else /* a build without the header: nothing is ever open */

cmkd_status cmkd_cudnn_open(const char *path, void *stream, const char *device_json, cmkd_cudnn **out,
                            cmkd_error *err) {
  (void)path;
  (void)stream;
  (void)device_json;
  *out = NULL;
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                   "this build knows no cuDNN; build it anew where cudnn.h of version 9.8 or later is installed");
}
void cmkd_cudnn_close(cmkd_cudnn *lib) { (void)lib; }
int cmkd_cudnn_version(const cmkd_cudnn *lib) {
  (void)lib;
  return 0;
}
cmkd_status cmkd_cudnn_plans(cmkd_cudnn *lib, const cmkd_conv_request *request, size_t workspace_limit, int capacity,
                             cmkd_cudnn_plan **plans, int *count, cmkd_error *err) {
  (void)lib;
  (void)request;
  (void)workspace_limit;
  (void)capacity;
  (void)plans;
  (void)err;
  *count = 0;
  return CMKD_OK;
}
cmkd_status cmkd_cudnn_plan_named(cmkd_cudnn *lib, const cmkd_conv_request *request, const char *name,
                                  cmkd_cudnn_plan **out, cmkd_error *err) {
  (void)lib;
  (void)request;
  (void)name;
  (void)err;
  *out = NULL;
  return CMKD_OK;
}
void cmkd_cudnn_plan_free(cmkd_cudnn_plan *plan) { (void)plan; }
const char *cmkd_cudnn_plan_name(const cmkd_cudnn_plan *plan) {
  (void)plan;
  return "";
}
size_t cmkd_cudnn_plan_workspace(const cmkd_cudnn_plan *plan) {
  (void)plan;
  return 0;
}
cmkd_dtype cmkd_cudnn_plan_dw_dtype(const cmkd_cudnn_plan *plan) {
  (void)plan;
  return CMKD_F32;
}
cmkd_status cmkd_cudnn_run(cmkd_cudnn *lib, const cmkd_cudnn_plan *plan, const void *a, const void *b, void *c,
                           const cmkd_cuda_epilogue *epilogue, void *workspace, cmkd_error *err) {
  (void)lib;
  (void)plan;
  (void)a;
  (void)b;
  (void)c;
  (void)epilogue;
  (void)workspace;
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "this build knows no cuDNN");
}
#endif
