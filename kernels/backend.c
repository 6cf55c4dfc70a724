/* The registry of backends. `cpu` and `ref` are linked in; `cuda` is a shared object opened at run time, so that one
 * build starts on machines with and without a GPU. Will not do: fall back from a backend that was asked for by name. */
#include "kernels/backend.h"
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/text.h"

#define PLUGIN "libcmkd-cuda.so"

static const char *const names[] = {"auto", "cpu", "cuda", "ref", NULL};

/* Folders that may hold the plugin, nearest first: the program's, an installed program's lib, the shared library's own,
 * the installed one. */
enum { FOLDERS = 4 };
static void plugin_folders(char *folder[FOLDERS]) {
  char exe[PATH_MAX];
  Dl_info self;
  ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (length > 0) {
    exe[length] = 0;
    folder[0] = cmkd_path_dir(exe);
    folder[1] = folder[0] ? cmkd_path_join(folder[0], "../lib") : NULL;
  }
  if (dladdr((const void *)names, &self) && self.dli_fname && strchr(self.dli_fname, '/'))
    folder[2] = cmkd_path_dir(self.dli_fname);
  folder[3] = strdup(CMKD_LIBDIR);
}

static void *open_plugin(const char *asked, char **path, cmkd_error *err) {
  char *folder[FOLDERS] = {0};
  void *handle = NULL;
  *path = NULL;
  if (asked && *asked)
    *path = strdup(asked);
  else {
    plugin_folders(folder);
    for (int i = 0; i < FOLDERS && !*path; i++) {
      char *candidate = folder[i] ? cmkd_path_join(folder[i], PLUGIN) : NULL;
      if (candidate && cmkd_file_exists(candidate))
        *path = candidate;
      else
        free(candidate);
    }
    for (int i = 0; i < FOLDERS; i++)
      free(folder[i]);
    if (!*path) *path = strdup(PLUGIN); /* the loader's own search path comes last */
  }
  if (!*path) {
    cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
    return NULL;
  }
  handle = dlopen(*path, RTLD_NOW | RTLD_LOCAL);
  if (!handle && !strcmp(*path, PLUGIN))
    cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
              "--device cuda: " PLUGIN
              " is not here; build it with the CUDA toolkit (make), set CMKD_CUDA_PLUGIN, or use --device cpu");
  else if (!handle) {
    const char *reason = dlerror();
    cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
              "--device cuda: cannot load %s: %s; install what is missing or use --device cpu", *path,
              reason ? reason : "unknown error");
  }
  return handle;
}

static cmkd_status find_cuda(const char *plugin, const cmkd_backend_table **out, cmkd_error *err) {
  char *path;
  void *handle = open_plugin(plugin, &path, err);
  cmkd_status status = CMKD_ERR_UNSUPPORTED;
  if (!handle) {
    free(path);
    return status;
  }
  /* ISO C has no cast from void * to a function */
  union {
    void *object;
    cmkd_backend_entry *entry;
  } symbol = {dlsym(handle, CMKD_BACKEND_ENTRY)};
  const cmkd_backend_table *table = symbol.object ? symbol.entry() : NULL;
  if (!table)
    cmkd_fail(err, status, "--device cuda: %s is not a CMKD plugin; build it anew (make)", path);
  else if (table->version != CMKD_BACKEND_VERSION)
    cmkd_fail(err, status,
              "--device cuda: %s has backend table version %d, this program needs %d; build both anew (make)", path,
              table->version, CMKD_BACKEND_VERSION);
  else {
    *out = table; /* static: the handle stays open */
    status = CMKD_OK;
  }
  if (status != CMKD_OK) dlclose(handle);
  free(path);
  return status;
}

int cmkd_backend_index(const char *device) { return strncmp(device, "cuda:", 5) ? 0 : atoi(device + 5); }

cmkd_status cmkd_backend_find(const char *device, const cmkd_backend_options *options, const cmkd_backend_table **out,
                              cmkd_error *err) {
  cmkd_backend_options probe_options = options ? *options : (cmkd_backend_options){0};
  probe_options.precision = NULL;
  probe_options.device = 0;
  *out = NULL;
  if (!strcmp(device, "cpu") || !strcmp(device, "ref")) {
    *out = device[0] == 'c' ? &cmkd_backend_cpu : &cmkd_backend_ref;
    return CMKD_OK;
  }
  if (!strcmp(device, "cuda") ||
      (!strncmp(device, "cuda:", 5) && device[5] && strspn(device + 5, "0123456789") == strlen(device + 5)))
    return find_cuda(probe_options.plugin, out, err);
  if (strcmp(device, "auto")) {
    const char *nearest = strcmp(device, "gpu") ? cmkd_nearest(device, names) : "cuda";
    return cmkd_fail(err, CMKD_ERR_USAGE, "--device %.100s: unknown; %s%s%s", device,
                     nearest ? "did you mean " : "there are auto, cpu, cuda, ref", nearest ? nearest : "",
                     nearest ? "?" : "");
  }
  const cmkd_backend_table *cuda;
  cmkd_backend *probe = NULL;
  if (find_cuda(probe_options.plugin, &cuda, NULL) == CMKD_OK && cuda->open(&probe_options, &probe, NULL) == CMKD_OK) {
    cuda->close(probe);
    *out = cuda;
    return CMKD_OK;
  }
  *out = &cmkd_backend_cpu;
  return CMKD_OK;
}
