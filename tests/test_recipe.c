#include "tests/support.h"
#include "train/recipe.h"

static const char *const pairs[] = {"resnet32x4-resnet8x4",    "resnet56-resnet20",     "resnet110-resnet32",
                                    "wrn-40-2-wrn-40-1",       "wrn-40-2-wrn-16-2",     "vgg13-vgg8",
                                    "resnet32x4-shufflenetv1", "wrn-40-2-shufflenetv1", "resnet32x4-shufflenetv2",
                                    "resnet50-mobilenetv2",    "vgg13-mobilenetv2",     "wrn-40-2-resnet8x4"};

static int use_shipped(void **state) {
  (void)state;
  return setenv("CMKD_RECIPES", "recipes", 1);
}

static void every_published_pair_loads(void **state) {
  (void)state;
  cmkd_error err;
  cmkd_recipe r;
  int run;
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    assert_ok(cmkd_recipe_load(pairs[i], &r, &run, &err));
    assert_string_equal(r.name, pairs[i]);
    assert_int_equal(run, 0);
    assert_int_equal(r.epochs, 240);
    assert_int_equal(r.batch, 64);
    assert_int_equal(r.milestones, 3);
    int small = strstr(pairs[i], "-shufflenet") || strstr(pairs[i], "-mobilenet");
    assert_true(r.lr == (small ? 0.01 : 0.05));
    assert_true(r.published >= 8);
    for (int k = 0; k < r.published; k++)
      assert_true(r.result[k].top1 > 60 && r.result[k].top1 < 100);
  }
}

static void two_runs_of_an_assistant(void **state) {
  (void)state;
  cmkd_error err;
  cmkd_recipe r;
  int run;
  assert_ok(cmkd_recipe_load("takd-resnet56-resnet20:2", &r, &run, &err));
  assert_int_equal(run, 1);
  assert_string_equal(r.run[0].student, r.run[1].teacher);
  assert_int_equal(cmkd_recipe_load("resnet56-resnet20:2", &r, &run, &err), CMKD_ERR_USAGE);
}

static void unknown_names_suggest(void **state) {
  (void)state;
  cmkd_error err;
  cmkd_recipe r;
  int run;
  assert_int_equal(cmkd_recipe_load("resnet56-resnet2O", &r, &run, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "'resnet56-resnet20'"));
}

static void bad_files_are_named(void **state) {
  (void)state;
  static const char *const bad[] = {"",
                                    "[]",
                                    "{",
                                    "{\"name\":\"x\"}",
                                    "{\"name\":\"x\",\"dataset\":\"d\",\"title\":\"t\",\"runs\":[{\"teacher\":\"a\","
                                    "\"student\":\"b\"}],\"settings\":{\"batch\":1e99}}",
                                    "{\"name\":3,\"dataset\":\"d\"}"};
  cmkd_error err;
  cmkd_recipe r;
  int run;
  char path[1200];
  snprintf(path, sizeof path, "%s/bad.json", scratch_dir());
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(bad[i], f);
    fclose(f);
    assert_int_equal(cmkd_recipe_load(path, &r, &run, &err), CMKD_ERR_FORMAT);
    assert_non_null(strstr(err.message, "bad.json"));
  }
}

static void the_table_prints(void **state) {
  (void)state;
  cmkd_error err;
  char *text = NULL;
  size_t size = 0;
  FILE *out = open_memstream(&text, &size);
  assert_ok(cmkd_recipe_print(out, 0, &err));
  fclose(out);
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    assert_non_null(strstr(text, pairs[i]));
  free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_published_pair_loads),
                                     cmocka_unit_test(two_runs_of_an_assistant),
                                     cmocka_unit_test(unknown_names_suggest), cmocka_unit_test(bad_files_are_named),
                                     cmocka_unit_test(the_table_prints)};
  return cmocka_run_group_tests(tests, use_shipped, NULL);
}
