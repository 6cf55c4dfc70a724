#include "tests/support_train.h"
#include <math.h>
#include "kernels/loss.h"
#include "train/recipe_apply.h"
#include "train/settings.h"

static cmkd_recipe_use use;

static double beta_of(const char *expression) {
  cmkd_train_options o;
  cmkd_session_settings shared;
  cmkd_settings s;
  cmkd_error err;
  const cmkd_dataset d = {.name = "cifar100", .split = "train", .n = 100, .classes = 100, .channels = 3};
  cmkd_train_options_default(&o);
  o.recipe = "resnet56-resnet20"; /* publishes a beta of 2 */
  o.session.teacher = "t.safetensors";
  o.student.loss = expression;
  assert_ok(cmkd_recipe_apply(&use, &o, &err));
  assert_ok(cmkd_session_settings_resolve(&o.session, &d, NULL, &shared, &err));
  assert_ok(cmkd_settings_resolve(&shared, &o.session, &o.student, &d, NULL, &s, &err));
  const cmkd_loss_term *dkd = cmkd_loss_find(s.loss, CMKD_TERM_DKD);
  double beta = dkd ? dkd->beta : NAN;
  cmkd_settings_free(&s);
  return beta;
}

static void dkd_takes_the_pairs_beta(void **state) {
  (void)state;
  assert_true(beta_of("dkd") == 2);
  assert_true(beta_of("dkd:T=2") == 2);
  assert_true(beta_of(" cmkd + dkd ") == 2);
  assert_true(beta_of("ce:1+dkd:0.5+cmkd:beta=4") == 2);
  assert_true(beta_of("dkd:beta=3") == 3);
  assert_true(isnan(beta_of("cmkd")));
}

static void fills_only_what_is_open(void **state) {
  (void)state;
  cmkd_train_options o;
  cmkd_error err;
  cmkd_train_options_default(&o);
  o.recipe = "resnet32x4-shufflenetv1";
  o.session.cache = "t.h5";
  assert_ok(cmkd_recipe_apply(&use, &o, &err));
  assert_string_equal(o.student.arch, "shufflenetv1_cifar");
  assert_true(o.student.lr == 0.01 && o.student.epochs == 240 && o.student.batch == 64 && o.student.momentum == 0.9 &&
              o.student.weight_decay == 5e-4);
  assert_string_equal(o.student.milestones, "150,180,210");
  assert_string_equal(o.student.loss, "cmkd");
  assert_string_equal(o.session.augment, "crop+flip");
  assert_null(o.session.data); /* the cache names it */
  assert_true(cmkd_recipe_published(&use.recipe, o.student.loss) == 75.71);

  cmkd_train_options_default(&o);
  o.recipe = "resnet56-resnet20";
  o.session.teacher = "t.safetensors", o.student.loss = "dkd+cmkd", o.student.arch = "resnet14",
  o.student.schedule = "cosine";
  o.student.epochs = 60, o.student.lr = 0.1, o.student.batch = 128;
  assert_ok(cmkd_recipe_apply(&use, &o, &err));
  assert_string_equal(o.student.arch, "resnet14");
  assert_string_equal(o.student.loss, "dkd+cmkd"); /* as it was given; the beta comes beside it */
  assert_true(o.student.dkd_beta == 2);
  assert_string_equal(o.session.data, "cifar100");
  assert_true(o.student.lr == 0.1 && o.student.epochs == 60 && o.student.batch == 128 && use.shortened);
  assert_null(o.student.milestones);
}

static void labels_and_assistants(void **state) {
  (void)state;
  cmkd_train_options o;
  cmkd_error err;
  cmkd_train_options_default(&o);
  o.recipe = "resnet56-resnet20";
  assert_ok(cmkd_recipe_apply(&use, &o, &err)); /* no teacher: the student alone */
  assert_string_equal(o.student.loss, "ce");
  assert_true(cmkd_recipe_published(&use.recipe, o.student.loss) == 69.06);
  cmkd_train_options_default(&o);
  o.recipe = "takd-resnet56-resnet20:2", o.session.cache = "t.h5";
  assert_ok(cmkd_recipe_apply(&use, &o, &err));
  assert_string_equal(o.student.arch, "resnet20");
  assert_string_equal(o.student.loss, "kd");
  assert_true(cmkd_recipe_published(&use.recipe, o.student.loss) == 70.83 &&
              cmkd_recipe_result(&use.recipe, "teacher") == 72.37);
}

static void refuses(void **state) {
  (void)state;
  cmkd_train_options o;
  cmkd_error err;
  cmkd_train_options_default(&o);
  o.recipe = "imagenet-resnet34-resnet18";
  assert_int_equal(cmkd_recipe_apply(&use, &o, &err), CMKD_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.message, "imagenet"));
  o.recipe = "resnet56-resnet20", o.session.cache = "t.h5";
  assert_ok(cmkd_recipe_apply(&use, &o, &err));
  cmkd_dataset d = {.name = "cifar10"};
  assert_int_equal(cmkd_recipe_check(&use, &d, "resnet56", "t.h5", &err), CMKD_ERR_MISMATCH);
  strcpy(d.name, "cifar100");
  assert_ok(cmkd_recipe_check(&use, &d, "resnet56", "t.h5", &err));
  assert_ok(cmkd_recipe_check(&use, &d, NULL, "t.h5", &err));
  assert_int_equal(cmkd_recipe_check(&use, &d, "resnet110", "t.h5", &err), CMKD_ERR_MISMATCH);
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
