#include "base/program/environment.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int is_set(const char *name) {
  const char *value = getenv(name);
  return value && *value && strcmp(value, "0");
}

/* NULL: nowhere. */
static const char *algorithm_file(void) {
  static char path[PATH_MAX];
  const char *asked = getenv("CMKD_CUDA_PLANS"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  int length;
  if (asked) return asked;
  if (cache && *cache)
    length = snprintf(path, sizeof path, "%s/cmkd/plans.json", cache);
  else if (home && *home)
    length = snprintf(path, sizeof path, "%s/.cache/cmkd/plans.json", home);
  else
    return NULL;
  return (size_t)length < sizeof path ? path : NULL;
}

void cmkd_environment_backend(cmkd_backend_options *options) {
  const char *resident = getenv("CMKD_CUDA_RESIDENT"), *selfcheck = getenv("CMKD_CUDA_SELFCHECK");
  options->conv = is_set("CMKD_NO_ONEDNN") ? "direct" : getenv("CMKD_CONV");
  options->plugin = getenv("CMKD_CUDA_PLUGIN");
  options->cudnn = getenv("CMKD_CUDNN");
  options->algorithm_file = algorithm_file();
  options->profile = getenv("CMKD_CUDA_PROFILE");
  options->check = is_set("CMKD_CUDA_CHECK");
  options->streamed = resident && !is_set("CMKD_CUDA_RESIDENT");
  options->skip_selfcheck = selfcheck && !strcmp(selfcheck, "0");
}
