/* The CUDA plugin as programs meet it: `--device cuda` works or says in one line what is missing, and `auto` always
 * ends with a backend that trains. Runs with and without toolkit, driver and GPU. */
#include "tests/support.h"
#include <unistd.h>
#include "base/program/environment.h"
#include "kernels/backend.h"

static void cuda_says_what_is_missing(void **state) {
  (void)state;
  cmkd_error err = {0};
  const cmkd_backend_table *table = NULL;
  cmkd_backend *backend = NULL;
  cmkd_backend_options options = {0};
  cmkd_environment_backend(&options);
  cmkd_status status = cmkd_backend_find("cuda", &options, &table, &err);
  if (status == CMKD_OK) {
    assert_string_equal(table->name, "cuda");
    assert_int_equal(table->version, CMKD_BACKEND_VERSION);
    assert_true(table->computes_off_cpu);
    assert_string_equal(table->precisions[0], "fp16");
    status = table->open(&options, &backend, &err);
  }
  if (status == CMKD_OK) { /* there is a GPU */
    assert_non_null(strstr(table->describe(backend), "cuda: "));
    table->close(backend);
    return;
  }
  assert_true(status == CMKD_ERR_UNSUPPORTED || status == CMKD_ERR_DEVICE);
  assert_null(backend);
  assert_non_null(strstr(err.message, "--device cpu"));
  assert_null(strchr(err.message, '\n'));
}

static void auto_trains(void **state) {
  (void)state;
  cmkd_error err;
  const cmkd_backend_table *table;
  cmkd_backend_options options = {0};
  cmkd_environment_backend(&options);
  assert_ok(cmkd_backend_find("auto", &options, &table, &err));
  cmkd_backend *backend = NULL;
  assert_ok(table->open(&options, &backend, &err));
  table->close(backend);
}

/* The plugin loads where there is no CUDA library at all: it needs none. */
static void plugin_needs_no_cuda_library(void **state) {
  (void)state;
  char path[4096];
  const char *build = getenv("CMKD_BUILD"), *out;
  snprintf(path, sizeof path, "%s/libcmkd-cuda.so", build ? build : "build");
  FILE *file = fopen(path, "rb");
  if (!file) {
    printf("SKIP: plugin_needs_no_cuda_library: no libcmkd-cuda.so in this build\n");
    skip();
  }
  fclose(file);
  if (!has_program("objdump")) skip();
  assert_int_equal(run_command(&out, "objdump -p '%s' | grep NEEDED", path), 0);
  assert_null(strstr(out, "cuda"));
  assert_null(strstr(out, "cudnn"));
  assert_null(strstr(out, "cublas"));
}

/* The programs in BUILD/bench/gpu and BUILD/tests find the plugin in BUILD, from any folder, and name the file that
 * they could not load. */
static void programs_beside_find_it(void **state) {
  (void)state;
  const char *out, *set = getenv("CMKD_BUILD");
  char build[4096], so[4200];
  if (!realpath(set ? set : "build", build)) fail_msg("%s is not there", set ? set : "build");
  snprintf(so, sizeof so, "%s/libcmkd-cuda.so", build);
  const int there = access(so, R_OK) == 0;
#define OUTSIDE "cd / && env -u CMKD_CUDA_PLUGIN "
#define STEP OUTSIDE "'%s/bench/gpu/step' --arch resnet8 --batch 8 --steps 2 --blocks 1 --images 64"
  const int status = run_command(&out, STEP, build);
  assert_true(status == 0 || status == 1);
  assert_null(strstr(out, "is not here"));
  assert_null(strstr(out, "cannot load"));
  if (!there)
    assert_non_null(strstr(out, "/../../libcmkd-cuda.so; build it"));
  else
    assert_null(strstr(out, "there is no /"));
  if (status == 1) assert_non_null(strstr(out, "step: --device cuda: "));

#define TEST(set) run_command(&out, OUTSIDE set " '%s/tests/test_device_ops'", build)
  assert_int_equal(TEST("CMKD_CUDA_PLUGIN=/nowhere/plugin.so"), 0);
  assert_non_null(strstr(out, "SKIP: pools: cannot load /nowhere/plugin.so: /nowhere/plugin.so: cannot open "));
  assert_int_equal(TEST("CMKD_BUILD=/nowhere"), 0);
  assert_non_null(strstr(out, "SKIP: pools: cannot load /nowhere/libcmkd-cuda.so: "));
  assert_int_equal(TEST("-u CMKD_BUILD"), 0);
  if (there)
    assert_null(strstr(out, "cannot load"));
  else
    assert_non_null(strstr(out, "/tests/../libcmkd-cuda.so: "));
}

/* What each variable means, set, empty and unset; restores those of the other tests. */
static const char *const variables[] = {"CMKD_CUDA_PLUGIN",    "CMKD_CUDNN",      "CMKD_CUDA_PLANS",
                                        "CMKD_CUDA_PROFILE",   "CMKD_CUDA_CHECK", "CMKD_CUDA_RESIDENT",
                                        "CMKD_CUDA_SELFCHECK", "XDG_CACHE_HOME",  "HOME"};
enum { VARIABLES = sizeof variables / sizeof *variables };
static char *kept[VARIABLES];

static int keep_variables(void **state) {
  (void)state;
  for (int i = 0; i < VARIABLES; i++) {
    const char *value = getenv(variables[i]);
    kept[i] = value ? strdup(value) : NULL;
    unsetenv(variables[i]);
  }
  return 0;
}
static int restore_variables(void **state) {
  (void)state;
  for (int i = 0; i < VARIABLES; i++) {
    unsetenv(variables[i]);
    if (kept[i]) setenv(variables[i], kept[i], 1);
    free(kept[i]);
  }
  return 0;
}

static cmkd_backend_options options_with(const char *name, const char *value) {
  cmkd_backend_options options = {.threads = 3, .device = 2, .precision = "bf16"};
  if (value) setenv(name, value, 1);
  cmkd_environment_backend(&options);
  assert_int_equal(options.threads, 3);
  assert_int_equal(options.device, 2);
  assert_string_equal(options.precision, "bf16");
  return options;
}

static void variables_become_options(void **state) {
  (void)state;
  static const struct {
    const char *value;
    int check, streamed, skips;
  } flags[] = {{NULL, 0, 0, 0}, {"", 0, 1, 0}, {"0", 0, 1, 1}, {"1", 1, 0, 0}};
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    assert_int_equal(options_with("CMKD_CUDA_CHECK", flags[i].value).check, flags[i].check);
    assert_int_equal(options_with("CMKD_CUDA_RESIDENT", flags[i].value).streamed, flags[i].streamed);
    assert_int_equal(options_with("CMKD_CUDA_SELFCHECK", flags[i].value).skip_selfcheck, flags[i].skips);
  }
  assert_null(options_with("", NULL).plugin);
  assert_null(options_with("", NULL).cudnn);
  assert_null(options_with("", NULL).profile);
  assert_string_equal(options_with("CMKD_CUDA_PLUGIN", "/a/plugin.so").plugin, "/a/plugin.so");
  assert_string_equal(options_with("CMKD_CUDNN", "off").cudnn, "off");
  assert_string_equal(options_with("CMKD_CUDA_PROFILE", "/a/profile").profile, "/a/profile");
  assert_null(options_with("", NULL).algorithm_file); /* no home */
  assert_string_equal(options_with("HOME", "/home/a").algorithm_file, "/home/a/.cache/cmkd/plans.json");
  assert_string_equal(options_with("XDG_CACHE_HOME", "/cache").algorithm_file, "/cache/cmkd/plans.json");
  assert_string_equal(options_with("CMKD_CUDA_PLANS", "").algorithm_file, ""); /* nowhere */
  assert_string_equal(options_with("CMKD_CUDA_PLANS", "/a/plans").algorithm_file, "/a/plans");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(cuda_says_what_is_missing),
      cmocka_unit_test(auto_trains),
      cmocka_unit_test(plugin_needs_no_cuda_library),
      cmocka_unit_test(programs_beside_find_it),
      cmocka_unit_test_setup_teardown(variables_become_options, keep_variables, restore_variables),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
