/* What programs read from the environment on behalf of the library; and that the library itself reads nothing there. */
#include "tests/support.h"
#include <stdlib.h>
#include "base/cpu.h"
#include "base/program/environment.h"

static cmkd_error err;

/* An IDX split of two images of 28 x 28 in `dir`. */
static void put_mnist(const char *dir) {
  static const char *const make =
      "cd '%s' && { printf '\\000\\000\\010\\003\\000\\000\\000\\002\\000\\000\\000\\034\\000\\000\\000\\034'; "
      "head -c 1568 /dev/zero; } > train-images-idx3-ubyte && "
      "printf '\\000\\000\\010\\001\\000\\000\\000\\002\\003\\007' > train-labels-idx1-ubyte";
  assert_int_equal(run_command(NULL, make, dir), 0);
}

static void data_sets_are_found(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  char root[1100], folder[1200];
  cmkd_dataset *data;
  snprintf(root, sizeof root, "%s/sets", dir);
  snprintf(folder, sizeof folder, "%s/mnist", root);
  assert_int_equal(run_command(NULL, "mkdir -p '%s'", folder), 0);
  put_mnist(folder);
  setenv("CMKD_DATA", root, 1);
  assert_ok(cmkd_environment_dataset("mnist", "train", &data, &err));
  assert_string_equal(data->path, folder);
  assert_int_equal(data->labels[1], 7);
  cmkd_dataset_close(data);
  /* the library by itself does not look there */
  if (cmkd_dataset_open("mnist", "train", NULL, &data, &err) == CMKD_OK) {
    assert_string_not_equal(data->path, folder);
    cmkd_dataset_close(data);
  }
  unsetenv("CMKD_DATA");
  setenv("HOME", root, 1);
  assert_ok(cmkd_environment_dataset("mnist:~/mnist", "train", &data, &err));
  assert_string_equal(data->path, folder);
  cmkd_dataset_close(data);
}

static void instruction_sets_are_lowered(void **state) {
  (void)state;
  cmkd_cpu_lower_isa("");
  const cmkd_isa machine = cmkd_cpu_isa();
  for (int isa = CMKD_ISA_BASELINE; isa <= CMKD_ISA_AVX512; isa++) {
    setenv("CMKD_ISA", cmkd_isa_name((cmkd_isa)isa), 1);
    cmkd_environment_lower_isa();
    assert_int_equal(cmkd_cpu_isa(), isa < (int)machine ? isa : (int)machine); /* never raised */
  }
  setenv("CMKD_ISA", "nonsense", 1);
  cmkd_environment_lower_isa();
  assert_int_equal(cmkd_cpu_isa(), machine);
  unsetenv("CMKD_ISA");
}

/* The rule that keeps it so. tests/ and bench/ are programs. */
static void only_programs_read_it(void **state) {
  (void)state;
  const char *output;
  assert_int_equal(run_command(&output, "grep -rnw getenv --include=*.c --include=*.h --include=*.cu base formats "
                                        "include kernels nets precompute train | grep -v '^base/program/'"),
                   1);
  assert_string_equal(output, "");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(data_sets_are_found),
                                     cmocka_unit_test(instruction_sets_are_lowered),
                                     cmocka_unit_test(only_programs_read_it)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
