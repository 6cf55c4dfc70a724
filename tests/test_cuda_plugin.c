/* The CUDA plugin as programs meet it: `--device cuda` works or says in one line what is missing, and `auto` always ends with a backend that
 * trains. Runs with and without toolkit, driver and GPU. */
#include "tests/support.h"
#include "kernels/backend.h"

static void cuda_says_what_is_missing(void **state) {
  cmkd_error err = {0};
  const cmkd_backend_table *table = NULL;
  cmkd_backend *backend = NULL;
  cmkd_status status = cmkd_backend_find("cuda", &table, &err);
  if (status == CMKD_OK) {
    assert_string_equal(table->name, "cuda");
    assert_int_equal(table->version, CMKD_BACKEND_VERSION);
    status = table->open(&(cmkd_backend_options){0}, &backend, &err);
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
  cmkd_error err;
  const cmkd_backend_table *table;
  assert_ok(cmkd_backend_find("auto", &table, &err));
  cmkd_backend *backend = NULL;
  assert_ok(table->open(&(cmkd_backend_options){0}, &backend, &err));
  table->close(backend);
}

/* The plugin loads where there is no CUDA library at all: it needs none. */
static void plugin_needs_no_cuda_library(void **state) {
  char path[4096];
  const char *build = getenv("CMKD_BUILD"), *out;
  snprintf(path, sizeof path, "%s/libcmkd-cuda.so", build ? build : "build");
  FILE *file = fopen(path, "rb");
  if (!file) { printf("SKIP: plugin_needs_no_cuda_library: no libcmkd-cuda.so in this build\n"); skip(); }
  fclose(file);
  assert_int_equal(run_command(&out, "objdump -p '%s' | grep NEEDED", path), 0);
  assert_null(strstr(out, "cuda"));
  assert_null(strstr(out, "cudnn"));
  assert_null(strstr(out, "cublas"));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(cuda_says_what_is_missing), cmocka_unit_test(auto_trains), cmocka_unit_test(plugin_needs_no_cuda_library)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
