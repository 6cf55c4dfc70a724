#include "tests/support_train.h"
#include <math.h>
#include "train/recipe_apply.h"

static const char *expand(const char *expression) {
  static char out[256];
  assert_true(cmkd_recipe_loss(expression, 8, out, sizeof out));
  return out;
}

static void dkd_takes_the_pairs_beta(void **state) {
  (void)state;
  cmkd_loss *loss;
  cmkd_error err;
  static const char *const cases[][2] = {{"dkd", "dkd:beta=8"},
                                         {"dkd:T=2", "dkd:T=2,beta=8"},
                                         {"dkd:beta=3", "dkd:beta=3"},
                                         {"dkd+cmkd", "dkd:beta=8+cmkd"},
                                         {"cmkd+dkd", "cmkd+dkd:beta=8"},
                                         {"ce:1+dkd:0.5+cmkd:beta=4", "ce:1+dkd:0.5,beta=8+cmkd:beta=4"},
                                         {"cmkd", "cmkd"},
                                         {"ce", "ce"},
                                         {"kd", "kd"},
                                         {" dkd + cmkd", " dkd:beta=8+ cmkd"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_string_equal(expand(cases[i][0]), cases[i][1]);
    assert_ok(cmkd_loss_parse(cases[i][1], CMKD_LOSS_CIFAR, &loss, &err));
    cmkd_loss_free(loss);
  }
  char small[12];
  assert_false(cmkd_recipe_loss("dkd+cmkd", 8, small, sizeof small));
  assert_false(cmkd_recipe_loss("cmkd:beta=4,gamma=2", 8, small, sizeof small));
}

static void fills_only_what_is_open(void **state) {
  (void)state;
  cmkd_train_options o;
  cmkd_error err;
  cmkd_train_options_default(&o);
  o.recipe = "resnet32x4-shufflenetv1";
  o.cache = "t.h5";
  assert_ok(cmkd_recipe_apply(&o, &err));
  assert_string_equal(o.arch, "shufflenetv1_cifar");
  assert_true(o.lr == 0.01 && o.epochs == 240 && o.batch == 64 && o.momentum == 0.9 && o.weight_decay == 5e-4);
  assert_string_equal(o.milestones, "150,180,210");
  assert_string_equal(o.loss, "cmkd");
  assert_string_equal(o.augment, "crop+flip");
  assert_null(o.data); /* the cache names it */
  assert_true(cmkd_recipe_published(&o.recipe_loaded, o.recipe_asked) == 75.71);

  cmkd_train_options_default(&o);
  o.recipe = "resnet56-resnet20";
  o.teacher = "t.safetensors", o.loss = "dkd+cmkd", o.arch = "resnet14", o.schedule = "cosine";
  o.epochs = 60, o.epochs_seen = 1, o.lr = 0.1, o.lr_seen = 1, o.batch = 128, o.batch_seen = 1;
  assert_ok(cmkd_recipe_apply(&o, &err));
  assert_string_equal(o.arch, "resnet14");
  assert_string_equal(o.loss, "dkd:beta=2+cmkd");
  assert_string_equal(o.recipe_asked, "dkd+cmkd");
  assert_string_equal(o.data, "cifar100");
  assert_true(o.lr == 0.1 && o.epochs == 60 && o.batch == 128 && o.recipe_shortened);
  assert_null(o.milestones);
}

static void labels_and_assistants(void **state) {
  (void)state;
  cmkd_train_options o;
  cmkd_error err;
  cmkd_train_options_default(&o);
  o.recipe = "resnet56-resnet20";
  assert_ok(cmkd_recipe_apply(&o, &err)); /* no teacher: the student alone */
  assert_string_equal(o.loss, "ce");
  assert_true(cmkd_recipe_published(&o.recipe_loaded, o.recipe_asked) == 69.06);
  cmkd_train_options_default(&o);
  o.recipe = "takd-resnet56-resnet20:2", o.cache = "t.h5";
  assert_ok(cmkd_recipe_apply(&o, &err));
  assert_string_equal(o.arch, "resnet20");
  assert_string_equal(o.loss, "kd");
  assert_true(cmkd_recipe_published(&o.recipe_loaded, o.recipe_asked) == 70.83 &&
              cmkd_recipe_published(&o.recipe_loaded, "teacher") == 72.37);
}

static void refuses(void **state) {
  (void)state;
  cmkd_train_options o;
  cmkd_error err;
  cmkd_train_options_default(&o);
  o.recipe = "imagenet-resnet34-resnet18";
  assert_int_equal(cmkd_recipe_apply(&o, &err), CMKD_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.message, "imagenet"));
  o.recipe = "resnet56-resnet20", o.cache = "t.h5";
  assert_ok(cmkd_recipe_apply(&o, &err));
  cmkd_dataset d = {.name = "cifar10"};
  assert_int_equal(cmkd_recipe_check(&o, &d, "resnet56", &err), CMKD_ERR_MISMATCH);
  strcpy(d.name, "cifar100");
  assert_ok(cmkd_recipe_check(&o, &d, "resnet56", &err));
  assert_ok(cmkd_recipe_check(&o, &d, NULL, &err));
  assert_int_equal(cmkd_recipe_check(&o, &d, "resnet110", &err), CMKD_ERR_MISMATCH);
  assert_non_null(strstr(err.message, "resnet56"));
  assert_non_null(strstr(err.message, "resnet110"));
}

int main(void) {
  setenv("CMKD_RECIPES", "recipes", 0);
  const struct CMUnitTest tests[] = {cmocka_unit_test(dkd_takes_the_pairs_beta),
                                     cmocka_unit_test(fills_only_what_is_open), cmocka_unit_test(labels_and_assistants),
                                     cmocka_unit_test(refuses)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
