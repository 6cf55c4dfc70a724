#include "base/program/environment.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cpu.h"

/* Some 0.2 ms: longer than threads with equal shares wait for each other, shorter than a time slice. */
#define SPINS "10000"

void cmkd_environment_lower_isa(void) {
  const char *asked = getenv("CMKD_ISA");
  if (asked) cmkd_cpu_lower_isa(asked);
}

void cmkd_environment_start(char **argv) {
  if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT") && setenv("GOMP_SPINCOUNT", SPINS, 1) == 0)
    execv("/proc/self/exe", argv);
  cmkd_environment_lower_isa();
}

cmkd_dataset_options cmkd_environment_dataset_options(void) {
  return (cmkd_dataset_options){.search = getenv("CMKD_DATA"), .home = getenv("HOME")};
}

cmkd_status cmkd_environment_dataset(const char *spec, const char *split, cmkd_dataset **out, cmkd_error *err) {
  const cmkd_dataset_options options = cmkd_environment_dataset_options();
  return cmkd_dataset_open(spec, split, &options, out, err);
}

const char *cmkd_environment_recipes(void) { return getenv("CMKD_RECIPES"); }

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
