/* The loss expression: what is understood, what it means in full, what is refused and how; argument checks of
 * evaluation. */
#include "tests/support.h"
#include <locale.h>
#include <math.h>
#include "kernels/loss.h"

static void expect_text(const char *expression, cmkd_loss_family family, const char *text) {
  cmkd_error err;
  cmkd_loss *loss, *again;
  assert_ok(cmkd_loss_parse(expression, family, &loss, &err));
  assert_string_equal(cmkd_loss_text(loss), text);
  for (int other = 0; other < 2; other++) { /* the full text means the same under either family */
    assert_ok(cmkd_loss_parse(text, (cmkd_loss_family)other, &again, &err));
    assert_string_equal(cmkd_loss_text(again), text);
    assert_int_equal(again->terms, loss->terms);
    for (int i = 0; i < loss->terms; i++)
      assert_memory_equal(&again->term[i], &loss->term[i], sizeof loss->term[i]);
    cmkd_loss_free(again);
  }
  cmkd_loss_free(loss);
}

#define CMKD_TEXT "cmkd:1,T=4,beta=4,gamma=2,kappa=2,gate=easy-spearman,zscore=on"

static void names_stand_for_settings(void **state) {
  (void)state;
  expect_text("ce", CMKD_LOSS_CIFAR, "ce:1");
  expect_text("kd", CMKD_LOSS_CIFAR, "ce:0.1+kd:0.9,T=4");
  expect_text("kd", CMKD_LOSS_IMAGENET, "ce:0.5+kd:0.5,T=1");
  expect_text("cmkd", CMKD_LOSS_CIFAR, "ce:1+" CMKD_TEXT);
  expect_text("cmkd", CMKD_LOSS_IMAGENET, "ce:1+cmkd:1,T=1,beta=4,gamma=2,kappa=2,gate=easy-spearman,zscore=on");
  expect_text("dkd", CMKD_LOSS_CIFAR, "ce:1+dkd:1,T=4,alpha=1,beta=8,warmup=20");
  expect_text("dkd", CMKD_LOSS_IMAGENET, "ce:1+dkd:1,T=1,alpha=1,beta=0.5,warmup=1");
  expect_text("dist", CMKD_LOSS_CIFAR, "ce:1+dist:1,T=4,beta=2,gamma=2");
  expect_text("dist", CMKD_LOSS_IMAGENET, "ce:1+dist:1,T=1,beta=2,gamma=2");
  expect_text("nkd", CMKD_LOSS_CIFAR, "ce:1+nkd:1,T=3,gamma=3.5");
  expect_text("nkd", CMKD_LOSS_IMAGENET, "ce:1+nkd:1,T=1,gamma=1.5");
  expect_text("dkd+cmkd", CMKD_LOSS_CIFAR, "ce:1+dkd:1,T=4,alpha=1,beta=8,warmup=20+" CMKD_TEXT);
}

static void expressions_are_sums(void **state) {
  (void)state;
  expect_text("ce:1+cmkd:beta=4,gamma=2,T=4+dkd:beta=8,T=4,warmup=20", CMKD_LOSS_IMAGENET,
              "ce:1+dkd:1,T=4,alpha=1,beta=8,warmup=20+" CMKD_TEXT);
  expect_text(" ce : 2 + cmkd : gate = off , kappa=.5 ", CMKD_LOSS_CIFAR,
              "ce:2+cmkd:1,T=4,beta=4,gamma=2,kappa=0.5,gate=off,zscore=on");
  expect_text("cmkd:gate=hard-spearman,zscore=off,weight=3", CMKD_LOSS_CIFAR,
              "ce:1+cmkd:3,T=4,beta=4,gamma=2,kappa=2,gate=hard-spearman,zscore=off");
  expect_text("ce:0+kd:1", CMKD_LOSS_CIFAR, "ce:0+kd:1,T=4");
  expect_text("ce:1+kd", CMKD_LOSS_CIFAR, "ce:1+kd:0.9,T=4");
  expect_text("kd:T=2", CMKD_LOSS_CIFAR, "ce:0.1+kd:0.9,T=2");
  expect_text("kd+cmkd", CMKD_LOSS_CIFAR, "ce:1+kd:0.9,T=4+" CMKD_TEXT); /* CE's weight of .1 is for KD alone */
  expect_text("cmkd:alpha=.25", CMKD_LOSS_CIFAR, "ce:0.25+" CMKD_TEXT);  /* the paper's alpha is CE's weight */
  expect_text("ce:.25+cmkd:alpha=.25", CMKD_LOSS_CIFAR, "ce:0.25+" CMKD_TEXT);
  expect_text("kd:1e+2,T=2.5e-1", CMKD_LOSS_CIFAR, "ce:0.1+kd:100,T=0.25"); /* a '+' inside a number */
  expect_text("kd:0.30000000000000004", CMKD_LOSS_CIFAR, "ce:0.1+kd:0.30000000000000004,T=4");
  expect_text("nkd+dist+kd+ce:3", CMKD_LOSS_CIFAR, "ce:3+kd:0.9,T=4+nkd:1,T=3,gamma=3.5+dist:1,T=4,beta=2,gamma=2");
}

/* A recipe's published beta counts where none is written, and only for DKD. */
static void defaults_of_the_caller(void **state) {
  (void)state;
  static const char *const cases[][2] = {
      {"dkd", "ce:1+dkd:1,T=4,alpha=1,beta=2.5,warmup=20"},
      {"dkd:T=2", "ce:1+dkd:1,T=2,alpha=1,beta=2.5,warmup=20"},
      {"dkd:beta=3", "ce:1+dkd:1,T=4,alpha=1,beta=3,warmup=20"},
      {"dkd:beta=0", "ce:1+dkd:1,T=4,alpha=1,beta=0,warmup=20"},
      {"cmkd + dkd:.5", "ce:1+dkd:0.5,T=4,alpha=1,beta=2.5,warmup=20+" CMKD_TEXT},
      {"dist", "ce:1+dist:1,T=4,beta=2,gamma=2"},
  };
  const cmkd_loss_defaults none = {0}, defaults = {.dkd_beta = 2.5};
  cmkd_loss *loss;
  cmkd_error err;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_ok(cmkd_loss_parse_with(cases[i][0], CMKD_LOSS_CIFAR, &defaults, &loss, &err));
    assert_string_equal(cmkd_loss_text(loss), cases[i][1]);
    cmkd_loss_free(loss);
    expect_text(cases[i][1], CMKD_LOSS_IMAGENET, cases[i][1]);
  }
  assert_ok(cmkd_loss_parse_with("dkd", CMKD_LOSS_IMAGENET, &none, &loss, &err));
  assert_string_equal(cmkd_loss_text(loss), "ce:1+dkd:1,T=1,alpha=1,beta=0.5,warmup=1");
  cmkd_loss_free(loss);
  const double bad[] = {-1, 2e6, NAN};
  for (size_t i = 0; i < 3; i++) {
    const cmkd_loss_defaults refused = {.dkd_beta = bad[i]};
    assert_int_equal(cmkd_loss_parse_with("dkd", CMKD_LOSS_CIFAR, &refused, &loss, &err), CMKD_ERR_VALUE);
    assert_null(loss);
    assert_non_null(strstr(err.message, "dkd's beta"));
  }
}

static void refuses_with_a_hint(void **state) {
  (void)state;
  const struct {
    const char *expression, *says;
  } cases[] = {
      {"cmdk", "did you mean 'cmkd'"},
      {"dkd+cmkx", "did you mean 'cmkd'"},
      {"cmkd:bta=1", "did you mean 'beta'"},
      {"cmkd:gate=of", "did you mean 'off'"},
      {"cmkd:gate=easy-spearmen", "did you mean 'easy-spearman'"},
      {"cmkd:zscore=no", "known: off, on"},
      {"kd:kappa=1", "unknown key of kd 'kappa'"},
      {"ce:T=1", "unknown key of ce 'T'"},
      {"xyzzy", "known: ce, kd, dkd, nkd, dist, cmkd"},
      {"takd", "two runs"},
      {"", "a term is missing"},
      {"+", "a term is missing"},
      {"kd+", "a term is missing"},
      {"kd++ce", "a term is missing"},
      {"kd:", "wants a number"},
      {"kd:,", "wants a number"},
      {"cmkd:beta", "beta=VALUE"},
      {"cmkd:beta=", "wants a number"},
      {"kd:T=4x", "wants a number, not '4x'"},
      {"kd:T=nan", "wants a number"},
      {"kd:T=inf", "wants a number"},
      {"kd:T=0x10", "wants a number"},
      {"kd:T=1e999", "out of range"},
      {"kd:T=--1", "wants a number"},
      {"kd:T=1.2.3", "wants a number"},
      {"kd:T=-1", "out of range"},
      {"kd:T=0", "out of range"},
      {"cmkd:beta=-4", "out of range"},
      {"ce:-1", "out of range"},
      {"cmkd:kappa=0", "out of range"},
      {"cmkd:kappa=-2", "out of range"},
      {"dkd:warmup=-3", "out of range"},
      {"kd:T=1e6", "out of range"},
      {"ce:0", "every weight is 0"},
      {"ce:0+kd:0", "every weight is 0"},
      {"ce:1+ce:2", "named twice"},
      {"kd+kd", "named twice"},
      {"kd:T=1,T=2", "given twice"},
      {"kd:1,weight=2", "given twice"},
      {"ce:1+cmkd:alpha=2", "leave one of them out"},
      {"kd T=4", "expected"},
      {"kd;ce", "expected"},
      {"kd:T=4 5", "expected"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    cmkd_error err = {0};
    cmkd_loss *loss = (cmkd_loss *)1;
    if (cmkd_loss_parse(cases[i].expression, CMKD_LOSS_CIFAR, &loss, &err) != CMKD_ERR_USAGE)
      fail_msg("'%s' was not refused", cases[i].expression);
    if (!strstr(err.message, cases[i].says))
      fail_msg("'%s': \"%s\" does not say \"%s\"", cases[i].expression, err.message, cases[i].says);
    assert_null(loss);
    assert_null(strchr(err.message, '\n'));
  }
  cmkd_loss *loss;
  cmkd_error err;
  char *longest = calloc(1, 100000);
  memset(longest, 'k', 99999);
  assert_int_equal(cmkd_loss_parse(longest, CMKD_LOSS_CIFAR, &loss, &err), CMKD_ERR_USAGE);
  memset(longest, '1', 900);
  memcpy(longest, "kd:", 3);
  longest[900] = 0;
  assert_int_equal(cmkd_loss_parse(longest, CMKD_LOSS_CIFAR, &loss, &err), CMKD_ERR_USAGE);
  free(longest);
  assert_int_equal(cmkd_loss_parse(NULL, CMKD_LOSS_CIFAR, &loss, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_loss_parse("kd", (cmkd_loss_family)7, &loss, &err), CMKD_ERR_USAGE);
}

static void parts_and_needs(void **state) {
  (void)state;
  cmkd_error err;
  cmkd_loss *loss;
  assert_ok(cmkd_loss_parse("ce", CMKD_LOSS_CIFAR, &loss, &err));
  assert_int_equal(cmkd_loss_needs_teacher(loss), 0);
  assert_int_equal(cmkd_loss_needs_full_row(loss), 0);
  assert_int_equal(cmkd_loss_parts(loss), 1);
  cmkd_loss_free(loss);
  assert_ok(cmkd_loss_parse("kd", CMKD_LOSS_CIFAR, &loss, &err));
  assert_int_equal(cmkd_loss_needs_teacher(loss), 1);
  assert_int_equal(cmkd_loss_needs_full_row(loss), 0);
  cmkd_loss_free(loss);
  assert_ok(cmkd_loss_parse("kd+dkd+nkd+dist+cmkd", CMKD_LOSS_CIFAR, &loss, &err));
  assert_int_equal(cmkd_loss_needs_full_row(loss), 1);
  const char *const names[] = {"ce",         "kd",         "dkd_target", "dkd_nontarget", "nkd_target", "nkd_nontarget",
                               "dist_inter", "dist_intra", "pearson",    "spearman"};
  assert_int_equal(cmkd_loss_parts(loss), 10);
  for (int i = 0; i < 10; i++)
    assert_string_equal(cmkd_loss_part_name(loss, i), names[i]);
  assert_null(cmkd_loss_part_name(loss, -1));
  assert_null(cmkd_loss_part_name(loss, 10));
  cmkd_loss_free(loss);
  cmkd_loss_free(NULL);
}

static void warm_up_ramps(void **state) {
  (void)state;
  cmkd_error err;
  cmkd_loss *loss;
  assert_ok(cmkd_loss_parse("dkd:.5,warmup=20", CMKD_LOSS_CIFAR, &loss, &err));
  const cmkd_loss_term *dkd = cmkd_loss_find(loss, CMKD_TERM_DKD);
  assert_true(cmkd_term_weight(dkd, 1) == .5 / 20);
  assert_true(cmkd_term_weight(dkd, 10) == .25);
  assert_true(cmkd_term_weight(dkd, 20) == .5);
  assert_true(cmkd_term_weight(dkd, 240) == .5);
  assert_true(cmkd_term_weight(dkd, CMKD_LOSS_NO_WARMUP) == .5);
  /* half of the ramp halves the term, in value and gradient, and leaves cross-entropy alone */
  float s[6] = {1, -2, .5f, 0, 3, 1}, t[6] = {2, 1, -1, -3, 0, 5}, full[6], half[6], ce[6];
  int32_t y[2] = {0, 2};
  for (int impl = 0; impl < 2; impl++) {
    const char *name = impl ? "cpu" : "ref";
    cmkd_loss *plain;
    assert_ok(cmkd_loss_parse("ce", CMKD_LOSS_CIFAR, &plain, &err));
    cmkd_loss_result r, h, c;
    cmkd_loss_batch b = {.batch = 2,
                         .classes = 3,
                         .student = s,
                         .teacher = t,
                         .labels = y,
                         .grad = full,
                         .epoch = 240,
                         .entropy_mean = NAN};
    size_t size = cmkd_loss_scratch(loss, name, 2, 3);
    void *scratch = aligned_alloc(64, (size + 127) / 64 * 64);
    assert_ok(cmkd_loss_eval(loss, name, &b, scratch, &r, &err));
    b.epoch = 10;
    b.grad = half;
    assert_ok(cmkd_loss_eval(loss, name, &b, scratch, &h, &err));
    b.grad = ce;
    assert_ok(cmkd_loss_eval(plain, name, &b, scratch, &c, &err));
    assert_true(fabs((r.loss - c.loss) - 2 * (h.loss - c.loss)) < 1e-6);
    for (int i = 0; i < 6; i++)
      assert_true(fabsf((full[i] - ce[i]) - 2 * (half[i] - ce[i])) < 1e-5f);
    assert_true(r.part[1] == h.part[1] && r.part[2] == h.part[2]); /* parts are logged unweighted */
    free(scratch);
    cmkd_loss_free(plain);
  }
  cmkd_loss_free(loss);
}

static void arguments_are_checked(void **state) {
  (void)state;
  cmkd_error err;
  cmkd_loss *loss;
  assert_ok(cmkd_loss_parse("cmkd", CMKD_LOSS_CIFAR, &loss, &err));
  float s[4] = {0, 1, 2, 3};
  int32_t y[2] = {0, 1};
  const cmkd_loss_batch good = {
      .batch = 2, .classes = 2, .student = s, .teacher = s, .labels = y, .epoch = 1, .entropy_mean = NAN};
  cmkd_loss_result r;
  void *scratch = aligned_alloc(64, 1 << 20);
  assert_ok(cmkd_loss_eval(loss, "cpu", &good, scratch, &r, &err));
  assert_int_equal(r.bad_row, -1);
#define REFUSED(status, change) \
  do { \
    cmkd_loss_batch b = good; \
    change; \
    assert_int_equal(cmkd_loss_eval(loss, "cpu", &b, scratch, &r, &err), status); \
    assert_true(isnan(r.loss)); \
  } while (0)
  REFUSED(CMKD_ERR_VALUE, b.classes = 1);
  REFUSED(CMKD_ERR_VALUE, b.classes = 131073);
  REFUSED(CMKD_ERR_VALUE, b.classes = -1);
  REFUSED(CMKD_ERR_VALUE, b.batch = 0);
  REFUSED(CMKD_ERR_VALUE, b.batch = INT64_MAX);
  REFUSED(CMKD_ERR_VALUE, b.student = NULL);
  REFUSED(CMKD_ERR_VALUE, b.labels = NULL);
  REFUSED(CMKD_ERR_VALUE, b.teacher = NULL);
  REFUSED(CMKD_ERR_UNSUPPORTED, b.teacher_dtype = CMKD_I32);
  REFUSED(CMKD_ERR_VALUE, b.label_smoothing = 1);
  REFUSED(CMKD_ERR_VALUE, b.label_smoothing = NAN);
  REFUSED(CMKD_ERR_VALUE, b.epoch = NAN);
  REFUSED(CMKD_ERR_VALUE, b.entropy_mean = INFINITY);
  assert_int_equal(cmkd_loss_eval(loss, "gpu", &good, scratch, &r, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_loss_eval(loss, NULL, &good, scratch, &r, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_loss_eval(loss, "cpu", &good, NULL, &r, &err), CMKD_ERR_VALUE);
  assert_int_equal(cmkd_loss_scratch(loss, "cpu", 0, 10), 0);
  assert_int_equal(cmkd_loss_scratch(loss, "cpu", 1, 1), 0);
  assert_int_equal(cmkd_loss_scratch(loss, "nothing", 1, 10), 0);
  free(scratch);
  cmkd_loss_free(loss);
}

static void decimal_point_whatever_the_locale(void **state) {
  (void)state;
  const char *const locales[] = {"de_DE.UTF-8", "de_DE", "fr_FR.UTF-8", "ru_RU.UTF-8", NULL};
  int found = 0;
  for (int i = 0; locales[i] && !found; i++)
    found = setlocale(LC_ALL, locales[i]) != NULL;
  if (!found) {
    printf("SKIP: no locale with a decimal comma is installed\n");
    skip();
  }
  expect_text("kd:.5,T=2.5", CMKD_LOSS_CIFAR, "ce:0.1+kd:0.5,T=2.5");
  setlocale(LC_ALL, "C");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(names_stand_for_settings), cmocka_unit_test(expressions_are_sums),
      cmocka_unit_test(defaults_of_the_caller),   cmocka_unit_test(refuses_with_a_hint),
      cmocka_unit_test(parts_and_needs),          cmocka_unit_test(warm_up_ramps),
      cmocka_unit_test(arguments_are_checked),    cmocka_unit_test(decimal_point_whatever_the_locale),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
