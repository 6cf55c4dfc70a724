#include "tests/support.h"
#include <math.h>
#include "train/command_options.h"
#include "train/settings.h"

static cmkd_dataset cifar(void) {
  cmkd_dataset d = {.name = "cifar100",
                    .split = "train",
                    .n = 50000,
                    .height = 32,
                    .width = 32,
                    .channels = 3,
                    .classes = 100,
                    .mean = {0.5071f, 0.4867f, 0.4408f},
                    .std = {0.2675f, 0.2565f, 0.2761f},
                    .fingerprint = "f00d"};
  return d;
}
static cmkd_cache_info cached(void) {
  cmkd_cache_info info = {.samples = 50000, .views = 8, .classes = 100, .kept = 100};
  cmkd_cache_identity *id = &info.identity;
  strcpy(id->rng_version, CMKD_RNG_VERSION);
  id->policy = CMKD_AUGMENT_CROP_FLIP;
  id->cache_seed = 5;
  id->teacher_batch = 128;
  return info;
}
static cmkd_train_options defaults(void) {
  cmkd_train_options o;
  cmkd_train_options_default(&o);
  return o;
}
/* Both halves of what a run resolves to. */
static cmkd_status resolve(const cmkd_train_options *o, const cmkd_dataset *d, const cmkd_cache_info *info,
                           cmkd_settings *s, cmkd_error *err) {
  cmkd_session_settings shared;
  memset(s, 0, sizeof *s);
  CMKD_TRY(cmkd_session_settings_resolve(&o->session, d, info, &shared, err));
  return cmkd_settings_resolve(&shared, &o->session, &o->student, d, info, s, err);
}
static cmkd_status parse(cmkd_train_options *o, int argc, char **argv, cmkd_error *err) {
  cmkd_option table[CMKD_TRAIN_OPTIONS];
  cmkd_train_options_default(o);
  cmkd_train_options_table(o, table);
  const cmkd_command command = {"cmkd-train", "", "", "", table, 0, 0};
  return cmkd_options_parse(&command, argc, argv, NULL, NULL, NULL, err);
}

static void defaults_of_a_cache(void **state) {
  (void)state;
  cmkd_train_options o = defaults();
  cmkd_dataset d = cifar();
  cmkd_cache_info info = cached();
  cmkd_settings s;
  cmkd_error err;
  o.session.cache = "t.h5";
  assert_ok(resolve(&o, &d, &info, &s, &err));
  assert_string_equal(s.arch, "resnet20");
  assert_int_equal(s.epochs, 240);
  assert_int_equal(s.batch, 64);
  assert_int_equal(s.schedule.steps_per_epoch, 782); /* the last, of 16, is trained too */
  assert_true(s.schedule.lr == 0.05 && s.momentum == 0.9 && s.weight_decay == 5e-4 && !s.nesterov);
  assert_int_equal(s.schedule.milestone[0], 150);
  assert_int_equal(s.session.views, 8);
  assert_int_equal(s.session.cache_seed, 5);
  assert_non_null(strstr(cmkd_loss_text(s.loss), "cmkd:"));
  char *out = cmkd_default_out(o.student.loss, &s);
  assert_string_equal(out, "runs/resnet20-cmkd-1");
  free(out);
  cmkd_settings_free(&s);
}

static void defaults_of_labels(void **state) {
  (void)state;
  cmkd_train_options o = defaults();
  cmkd_dataset d = cifar();
  cmkd_settings s;
  cmkd_error err;
  o.student.arch = "shufflenetv1_cifar";
  assert_ok(resolve(&o, &d, NULL, &s, &err));
  assert_false(cmkd_loss_needs_teacher(s.loss));
  assert_true(s.schedule.lr == 0.01);
  assert_int_equal(s.session.policy, CMKD_AUGMENT_CROP_FLIP);
  assert_int_equal(s.session.views, 0);
  cmkd_settings_free(&s);
  strcpy(d.name, "fashion-mnist");
  o.student.arch = NULL;
  assert_ok(resolve(&o, &d, NULL, &s, &err));
  assert_string_equal(s.arch, "resnet8");
  cmkd_settings_free(&s);
}

static void live_views(void **state) {
  (void)state;
  cmkd_train_options o = defaults();
  cmkd_dataset d = cifar();
  cmkd_settings s;
  cmkd_error err;
  o.session.teacher = "t.safetensors";
  assert_ok(resolve(&o, &d, NULL, &s, &err));
  assert_true(s.session.all_variants && s.session.views == 162 && s.session.teacher_batch == 128);
  cmkd_settings_free(&s);
  o.session.views = "7";
  o.session.clean_view = 1;
  assert_ok(resolve(&o, &d, NULL, &s, &err));
  assert_true(!s.session.all_variants && s.session.views == 8 && s.session.clean_view);
  cmkd_settings_free(&s);
  const char *const bad[] = {"0", "-1", "7x", "", "99999999", "+3"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    o.session.views = bad[i];
    assert_int_equal(resolve(&o, &d, NULL, &s, &err), CMKD_ERR_USAGE);
    cmkd_settings_free(&s);
  }
}

/* Every refusal names the cache and both values. */
static void refuses(cmkd_train_options o, cmkd_cache_info info, const char *one, const char *other) {
  cmkd_dataset d = cifar();
  cmkd_settings s;
  cmkd_error err;
  o.session.cache = "t.h5";
  assert_int_equal(resolve(&o, &d, &info, &s, &err), CMKD_ERR_MISMATCH);
  if (!strstr(err.message, "t.h5") || !strstr(err.message, one) || !strstr(err.message, other))
    fail_msg("%s: lacks %s or %s", err.message, one, other);
  cmkd_settings_free(&s);
}
static void refuses_what_the_cache_lacks(void **state) {
  (void)state;
  cmkd_train_options o = defaults();
  cmkd_cache_info thin = cached();
  thin.kept = 10;
  refuses(o, thin, "10 of 100", "--loss cmkd");
  o.student.loss = "kd+cmkd";
  refuses(o, thin, "10 of 100", "kd+cmkd");
  o = defaults();
  o.session.augment = "none";
  refuses(o, cached(), "crop+flip", "none");
  o = defaults();
  o.student.samples = 50001;
  refuses(o, cached(), "50000", "50001");
  o = defaults();
  o.session.views = "9";
  refuses(o, cached(), "8", "9");
  o = defaults();
  o.session.cache_seed = 6;
  o.session.cache_seed_given = 1;
  refuses(o, cached(), "5", "6");
  o = defaults();
  o.session.teacher_batch = 64;
  refuses(o, cached(), "128", "64");
  o = defaults();
  o.session.clean_view = 1;
  refuses(o, cached(), "clean view", "clean-view");
  cmkd_cache_info old = cached();
  strcpy(old.identity.rng_version, "philox4x32-10/0");
  refuses(defaults(), old, "philox4x32-10/0", CMKD_RNG_VERSION);
}

static void repeats_of_the_caches_word_are_fine(void **state) {
  (void)state;
  cmkd_train_options o = defaults();
  cmkd_dataset d = cifar();
  cmkd_cache_info info = cached();
  cmkd_settings s;
  cmkd_error err;
  o.session.cache = "t.h5";
  o.session.augment = "crop+flip";
  o.session.views = "8";
  o.session.cache_seed = 5;
  o.session.cache_seed_given = 1;
  o.session.teacher_batch = 128;
  for (int c = 0; c < 3; c++)
    o.student.mean[c] = o.student.std[c] = 0.5f; /* the student's own */
  assert_ok(resolve(&o, &d, &info, &s, &err));
  assert_true(s.mean[1] == 0.5f);
  cmkd_settings_free(&s);
}

static cmkd_status check(const cmkd_train_options *o, cmkd_error *err) {
  CMKD_TRY(cmkd_session_options_check(&o->session, err));
  return cmkd_student_options_check(&o->student, err);
}

/* What the parser of the command line refuses, a program's struct may still hold. */
static void numbers_out_of_range(void **state) {
  (void)state;
  cmkd_error err;
  for (int i = 0; i < 12; i++) {
    cmkd_train_options o = defaults();
    assert_ok(check(&o, &err));
    switch (i) {
    case 0: o.student.epochs = -1; break;
    case 1: o.student.batch = 1 << 20; break;
    case 2: o.student.momentum = 1; break;
    case 3: o.student.lr = INFINITY; break;
    case 4: o.student.lr = -0.1; break;
    case 5: o.student.weight_decay = -1; break;
    case 6: o.student.dkd_beta = 1e9; break;
    case 7: o.student.val = INT64_MAX; break;
    case 8: o.student.mean[0] = o.student.std[0] = 0.5f; break; /* the others are not numbers */
    case 9: o.session.threads = -1; break;
    case 10: o.session.teacher_batch = INT64_MIN; break;
    default: o.student.label_smoothing = 1; break;
    }
    if (check(&o, &err) != CMKD_ERR_USAGE) fail_msg("case %d was taken", i);
  }
}

/* Every field of a student, by hand: the table must know it. */
static void defaults_fill_only_what_is_open(void **state) {
  (void)state;
  static const cmkd_student_options under = {.arch = "a",
                                             .loss = "b",
                                             .dkd_beta = 3,
                                             .samples = 4,
                                             .val = 5,
                                             .epochs = 6,
                                             .batch = 7,
                                             .lr = 8,
                                             .schedule = "c",
                                             .milestones = "d",
                                             .warmup = 9,
                                             .momentum = 10,
                                             .nesterov = 1,
                                             .weight_decay = 11,
                                             .label_smoothing = 12,
                                             .mean = {1, 2, 3},
                                             .std = {4, 5, 6},
                                             .shuffle_block = 13,
                                             .seed = 14,
                                             .out = "e",
                                             .resume = 1,
                                             .eval_every = 15,
                                             .save_every = 16,
                                             .log_steps = 1};
  cmkd_student_options open, given;
  cmkd_student_options_default(&open);
  assert_int_equal(open.seed, 1);
  open.seed = 14; /* never open */
  cmkd_student_options_fill(&open, &under);
  assert_memory_equal(&open, &under, sizeof open);
  cmkd_student_options_default(&given);
  given.momentum = given.weight_decay = given.warmup = 0; /* zeros that were meant */
  cmkd_student_options_fill(&given, &under);
  assert_true(given.momentum == 0 && given.weight_decay == 0 && given.warmup == 0 && given.seed == 1);
  assert_true(given.lr == 8 && given.std[2] == 6);
}

static void contradictions(void **state) {
  (void)state;
  char *const lines[][8] = {{"t", "--cache", "a", "--teacher", "b"},
                            {"t", "--mean", "0.5,0.5,0.5"},
                            {"t", "--mean", "0.5,0.5,0.5", "--std", "0,1,1"},
                            {"t", "--views", "3"},
                            {"t", "--cache-seed", "3"},
                            {"t", "--clean-view"},
                            {"t", "--test-cache", "x"},
                            {"t", "--lr", "0"},
                            {"t", "--cache", "a", "--teacher-arch", "resnet20"},
                            {"t", "--stream-memory", "3"},
                            {"t", "--teacher", "a", "--test-cache", "x"}};
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
    cmkd_train_options o;
    cmkd_error err;
    int argc = 0;
    while (argc < 8 && lines[i][argc])
      argc++;
    assert_ok(parse(&o, argc, (char **)lines[i], &err));
    if (check(&o, &err) != CMKD_ERR_USAGE) fail_msg("%s was taken", lines[i][1]);
  }
}

static void losses_without_a_teacher(void **state) {
  (void)state;
  cmkd_train_options o = defaults();
  cmkd_dataset d = cifar();
  cmkd_settings s;
  cmkd_error err;
  o.student.loss = "dkd+cmkd";
  assert_int_equal(resolve(&o, &d, NULL, &s, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "--cache"));
  cmkd_settings_free(&s);
}

static void comparison_names_the_difference(void **state) {
  (void)state;
  cmkd_train_options o = defaults();
  cmkd_dataset d = cifar();
  cmkd_settings s;
  cmkd_error err;
  assert_ok(resolve(&o, &d, NULL, &s, &err));
  json_t *one = cmkd_settings_json(&s, &d, NULL, NULL);
  char *text = json_dumps(one, JSON_COMPACT);
  json_t *again = json_loads(text, 0, NULL); /* what a resume reads */
  assert_ok(cmkd_settings_compare(again, one, "runs/x", &err));
  free(text);
  json_decref(again);
  s.schedule.lr = 0.1;
  json_t *other = cmkd_settings_json(&s, &d, NULL, NULL);
  assert_int_equal(cmkd_settings_compare(one, other, "runs/x", &err), CMKD_ERR_MISMATCH);
  assert_non_null(strstr(err.message, "runs/x"));
  assert_non_null(strstr(err.message, "lr is 0.05 there and 0.1 here"));
  json_decref(other);
  s.schedule.lr = 0.05;
  other = cmkd_settings_json(&s, &d, "abc", NULL); /* a key that only one of them has */
  assert_int_equal(cmkd_settings_compare(one, other, "runs/x", &err), CMKD_ERR_MISMATCH);
  assert_non_null(strstr(err.message, "cache_sha256"));
  assert_int_equal(cmkd_settings_compare(other, one, "runs/x", &err), CMKD_ERR_MISMATCH);
  json_decref(other);
  json_decref(one);
  cmkd_settings_free(&s);
}

static void folder_names_are_plain(void **state) {
  (void)state;
  cmkd_train_options o = defaults();
  cmkd_settings s = {.arch = "resnet8", .seed = 18446744073709551615u, .session = {.source = CMKD_SOURCE_CACHE}};
  o.student.loss = "ce:1+cmkd:beta=4,gamma=2/../x y";
  char *out = cmkd_default_out(o.student.loss, &s);
  assert_string_equal(out, "runs/resnet8-ce_1+cmkd_beta=4_gamma=2_.._x_y-18446744073709551615");
  free(out);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(defaults_of_a_cache),
                                     cmocka_unit_test(defaults_of_labels),
                                     cmocka_unit_test(live_views),
                                     cmocka_unit_test(refuses_what_the_cache_lacks),
                                     cmocka_unit_test(repeats_of_the_caches_word_are_fine),
                                     cmocka_unit_test(contradictions),
                                     cmocka_unit_test(numbers_out_of_range),
                                     cmocka_unit_test(defaults_fill_only_what_is_open),
                                     cmocka_unit_test(losses_without_a_teacher),
                                     cmocka_unit_test(comparison_names_the_difference),
                                     cmocka_unit_test(folder_names_are_plain)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
