#include "tests/support.h"
#include <math.h>
#include "train/schedule.h"

static cmkd_schedule plain(cmkd_schedule_kind kind, int epochs) {
  cmkd_schedule s = {.kind = kind, .lr = 0.05, .epochs = epochs, .steps_per_epoch = 10};
  return s;
}
#define near(a, b) assert_true(fabs((a) - (b)) < 1e-12)

static void published_milestones(void **state) {
  (void)state;
  cmkd_schedule s = plain(CMKD_SCHEDULE_STEP, 240);
  cmkd_error err;
  assert_ok(cmkd_schedule_milestones(&s, NULL, &err));
  assert_int_equal(s.milestones, 3);
  assert_int_equal(s.milestone[0], 150);
  assert_int_equal(s.milestone[1], 180);
  assert_int_equal(s.milestone[2], 210);
  near(cmkd_schedule_rate(&s, 149, 9), 0.05); /* epoch 150 counted from 1 is the last at full rate */
  near(cmkd_schedule_rate(&s, 150, 0), 0.005);
  near(cmkd_schedule_rate(&s, 180, 0), 0.0005);
  near(cmkd_schedule_rate(&s, 239, 9), 0.00005);
}

static void milestones_scale_with_short_runs(void **state) {
  (void)state;
  cmkd_error err;
  for (int epochs = 1; epochs <= 40; epochs++) {
    cmkd_schedule s = plain(CMKD_SCHEDULE_STEP, epochs);
    assert_ok(cmkd_schedule_milestones(&s, NULL, &err));
    for (int i = 0; i < s.milestones; i++) {
      assert_in_range(s.milestone[i], 1, epochs - 1);
      if (i) assert_true(s.milestone[i] > s.milestone[i - 1]);
    }
    near(cmkd_schedule_rate(&s, 0, 0), 0.05); /* the first epoch is never cut */
    if (epochs >= 8) assert_int_equal(s.milestones, 3);
  }
}

static void milestones_given(void **state) {
  (void)state;
  cmkd_schedule s = plain(CMKD_SCHEDULE_STEP, 5);
  cmkd_error err;
  assert_ok(cmkd_schedule_milestones(&s, "2,4", &err));
  near(cmkd_schedule_rate(&s, 1, 9), 0.05);
  near(cmkd_schedule_rate(&s, 2, 0), 0.005);
  near(cmkd_schedule_rate(&s, 4, 0), 0.0005);
  const char *const bad[] = {"0",
                             "4,2",
                             "2,2",
                             "2,,4",
                             "2,",
                             ",2",
                             "x",
                             "2 4",
                             "-3",
                             "99999999999999999999",
                             "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_int_equal(cmkd_schedule_milestones(&s, bad[i], &err), CMKD_ERR_USAGE);
}

static void warm_up_rises_by_step(void **state) {
  (void)state;
  cmkd_schedule s = plain(CMKD_SCHEDULE_CONSTANT, 5);
  s.warmup = 2;
  near(cmkd_schedule_rate(&s, 0, 0), 0.05 / 20);
  near(cmkd_schedule_rate(&s, 1, 0), 0.05 * 11 / 20);
  near(cmkd_schedule_rate(&s, 1, 9), 0.05);
  near(cmkd_schedule_rate(&s, 4, 9), 0.05);
}

static void cosine_falls_to_zero(void **state) {
  (void)state;
  cmkd_schedule s = plain(CMKD_SCHEDULE_COSINE, 4);
  near(cmkd_schedule_rate(&s, 0, 0), 0.05);
  near(cmkd_schedule_rate(&s, 2, 0), 0.025);
  double before = 1;
  for (int epoch = 0; epoch < 4; epoch++)
    for (int step = 0; step < 10; step++) {
      double rate = cmkd_schedule_rate(&s, epoch, step);
      assert_true(rate < before && rate > 0);
      before = rate;
    }
  s.warmup = 4; /* nothing is left of the cosine */
  near(cmkd_schedule_rate(&s, 3, 9), 0.05);
}

static void names(void **state) {
  (void)state;
  cmkd_schedule_kind kind;
  cmkd_error err;
  for (int i = 0; i < 3; i++) {
    assert_ok(cmkd_schedule_parse(cmkd_schedule_name((cmkd_schedule_kind)i), &kind, &err));
    assert_int_equal(kind, i);
  }
  assert_int_equal(cmkd_schedule_parse("cosin", &kind, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "cosine"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(published_milestones), cmocka_unit_test(milestones_scale_with_short_runs),
      cmocka_unit_test(milestones_given),     cmocka_unit_test(warm_up_rises_by_step),
      cmocka_unit_test(cosine_falls_to_zero), cmocka_unit_test(names)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
