/* The registry: names, and what a missing, foreign or outdated plugin says. Plugins are compiled on the spot. */
#include "tests/support.h"
#include <unistd.h>
#include "base/file.h"
#include "kernels/backend.h"

static cmkd_error err;
static const cmkd_backend_table *table;

/* A shared object from one line of C; skips where no compiler is at hand. */
static char *plugin(const char *code) {
  const char *dir = scratch_dir(), *output;
  char *so = cmkd_path_join(dir, "libcmkd-cuda.so");
  if (run_command(&output, "printf '%%s\\n' '%s' > '%s/p.c' && ${CC:-cc} -shared -fPIC -I. -Iinclude -o '%s' '%s/p.c'",
                  code, dir, so, dir) != 0) {
    printf("SKIP: no C compiler for a plugin: %s\n", output);
    free(so);
    skip();
  }
  return so;
}

static void refuses_plugin(const char *path, const char *expect) {
  const cmkd_backend_options options = {.plugin = path};
  assert_int_equal(cmkd_backend_find("cuda", &options, &table, &err), CMKD_ERR_UNSUPPORTED);
  assert_null(table);
  if (!strstr(err.message, expect) || !strstr(err.message, "--device cuda"))
    fail_msg("'%s' does not say '%s'", err.message, expect);
  assert_int_equal(cmkd_backend_find("auto", &options, &table, &err), CMKD_OK); /* falls back, silently */
  assert_string_equal(table->name, "cpu");
}

static void linked_in_by_name(void **state) {
  (void)state;
  assert_ok(cmkd_backend_find("cpu", NULL, &table, &err));
  assert_string_equal(table->name, "cpu");
  assert_int_equal(table->version, CMKD_BACKEND_VERSION);
  assert_false(table->computes_off_cpu);
  assert_null(table->precisions);
  assert_ok(cmkd_backend_find("ref", NULL, &table, &err));
  assert_string_equal(table->name, "ref");
}

static void unknown_names(void **state) {
  (void)state;
  assert_int_equal(cmkd_backend_find("cdua", NULL, &table, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "did you mean cuda?"));
  assert_int_equal(cmkd_backend_find("gpu", NULL, &table, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "did you mean cuda?"));
  assert_int_equal(cmkd_backend_find("tpu-v4-pod", NULL, &table, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "auto, cpu, cuda, ref"));
}

static void device_numbers(void **state) {
  (void)state;
  assert_int_equal(cmkd_backend_index("cuda:3"), 3);
  assert_int_equal(cmkd_backend_index("cuda"), 0);
  assert_int_equal(cmkd_backend_index("auto"), 0);
  static const char *const wrong[] = {"cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cpu:1"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    assert_int_equal(cmkd_backend_find(wrong[i], NULL, &table, &err), CMKD_ERR_USAGE);
}

static void bad_plugins(void **state) {
  (void)state;
  char *junk = cmkd_path_join(scratch_dir(), "junk.so"), *foreign = plugin("int x;"),
       *old = plugin("#include \"kernels/backend.h\"\nstatic const cmkd_backend_table t = {.version = "
                     "CMKD_BACKEND_VERSION + 7, .name = \"cuda\"};\n"
                     "const cmkd_backend_table *cmkd_backend_plugin(void) { return &t; }");
  assert_ok(cmkd_file_write(junk, &(cmkd_piece){"not an ELF file", 15}, 1, &err));
  refuses_plugin("/no/such/libcmkd-cuda.so", "cannot load");
  refuses_plugin(junk, "cannot load");
  refuses_plugin(foreign, "not a CMKD plugin");
  refuses_plugin(old, "build both anew");
  free(junk);
  free(foreign);
  free(old);
}

/* A plugin that loads but finds no device: by name it is found (open() will say what is missing), auto takes the CPU.
 */
static void device_that_does_not_open(void **state) {
  (void)state;
  char *so =
      plugin("#include \"kernels/backend.h\"\nstatic cmkd_status no(const cmkd_backend_options *o, cmkd_backend **b, "
             "cmkd_error *e) { *b = 0; return CMKD_ERR_DEVICE; }\n"
             "static const cmkd_backend_table t = {.version = CMKD_BACKEND_VERSION, .name = \"cuda\", .open = no};\n"
             "const cmkd_backend_table *cmkd_backend_plugin(void) { return &t; }");
  const cmkd_backend_options options = {.plugin = so};
  assert_ok(cmkd_backend_find("cuda", &options, &table, &err));
  assert_string_equal(table->name, "cuda");
  assert_ok(cmkd_backend_find("auto", &options, &table, &err));
  assert_string_equal(table->name, "cpu");
  free(so);
}

/* A plugin whose device opens: auto takes it. */
static void device_that_opens(void **state) {
  (void)state;
  char *so =
      plugin("#include \"kernels/backend.h\"\nstatic int device;\nstatic cmkd_status yes(const cmkd_backend_options "
             "*o, cmkd_backend **b, cmkd_error *e) { *b = (cmkd_backend *)&device; return CMKD_OK; }\n"
             "static void off(cmkd_backend *b) {}\n"
             "static const cmkd_backend_table t = {.version = CMKD_BACKEND_VERSION, .name = \"cuda\", .open = yes, "
             ".close = off};\n"
             "const cmkd_backend_table *cmkd_backend_plugin(void) { return &t; }");
  assert_ok(cmkd_backend_find("auto", &(cmkd_backend_options){.plugin = so}, &table, &err));
  assert_string_equal(table->name, "cuda");
  free(so);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(linked_in_by_name),
                                     cmocka_unit_test(unknown_names),
                                     cmocka_unit_test(device_numbers),
                                     cmocka_unit_test(bad_plugins),
                                     cmocka_unit_test(device_that_does_not_open),
                                     cmocka_unit_test(device_that_opens)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
