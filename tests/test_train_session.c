/* Many students over one session: each computes the bits that it computes alone, in a session of its own and in the
 * program cmkd-train, whoever trains beside it, whoever fails, and however their turns lie. */
#include "tests/support_train.h"
#include <math.h>
#include "base/program/environment.h"
#include "cmkd/build.h"
#include "cmkd/train.h"

enum { STUDENTS = 3 };
static const char *train, *cache;
static char dir[1200], teacher[1300], cached[1300];

/* ---- what is trained ---- */

static void set_one(cmkd_student_options *o) {
  o->arch = "resnet8";
  o->loss = "cmkd";
  o->seed = 5;
  o->batch = 32;
  o->epochs = 2;
}
static void set_two(cmkd_student_options *o) {
  o->arch = RUN_LENGTH("resnet14", "resnet8");
  o->loss = "kd:T=2";
  o->seed = 6;
  o->batch = 20;
  o->epochs = RUN_LENGTH(3, 2);
  o->val = 7;
  o->nesterov = 1;
}
static void set_three(cmkd_student_options *o) {
  o->arch = "resnet8";
  o->loss = "dkd+cmkd";
  o->seed = 5;
  o->batch = 32;
  o->epochs = 2;
  o->schedule = "cosine";
  o->lr = 0.01;
  o->save_every = 2;
  o->label_smoothing = 0.1;
}
static void (*const settings[STUDENTS])(cmkd_student_options *options) = {set_one, set_two, set_three};
static const char *const words[STUDENTS] = {
    "--student resnet8 --loss cmkd --seed 5 --batch 32 --epochs 2",
    "--student " RUN_LENGTH("resnet14", "resnet8") " --loss kd:T=2 --seed 6 --batch 20 --epochs " RUN_LENGTH(
        "3", "2") " --val 7 --nesterov",
    "--student resnet8 --loss dkd+cmkd --seed 5 --batch 32 --epochs 2 --schedule cosine --lr 0.01 --save-every 2 "
    "--label-smoothing 0.1"};

/* The cache that the set-up builds, or the teacher that it was built with, live. */
typedef struct kind {
  const char *name;
  int live;
} kind;
static const kind from_cache = {"cache", 0}, from_teacher = {"live", 1};
static const char *const live_words = "--cache-seed 11 --views 3 --clean-view --augment crop+flip";

static cmkd_session *open_session(const kind *k) {
  cmkd_session_options o;
  cmkd_session *session;
  cmkd_error err;
  cmkd_session_options_default(&o);
  o.data = tiny_data();
  o.device = "cpu";
  o.threads = 2;
  if (k->live) {
    o.teacher = teacher;
    o.cache_seed = 11;
    o.views = "3";
    o.clean_view = 1;
    o.augment = "crop+flip";
  } else
    o.cache = cached;
  assert_ok(cmkd_session_open(&o, &session, &err));
  const char *note;
  assert_ok(cmkd_session_load_test_logits(session, NULL, &note, &err));
  assert_null(note);
  return session;
}

/* Student `i` of folder "<dir>/<group>-<kind>-<i>", optionally with changed settings. */
static cmkd_student *open_student(cmkd_session *session, const kind *k, const char *group, int i) {
  cmkd_student_options o;
  cmkd_student *student;
  cmkd_error err;
  char out[1400];
  cmkd_student_options_default(&o);
  settings[i](&o);
  snprintf(out, sizeof out, "%s/%s-%s-%d", dir, group, k->name, i);
  o.out = out;
  o.log_steps = 1;
  assert_ok(cmkd_student_open(session, &o, &student, &err));
  memset(out, 'x', sizeof out); /* strings are copied */
  return student;
}

static int is_done(const cmkd_student *student) {
  cmkd_student_progress p;
  cmkd_student_get_progress(student, &p);
  return p.epoch == p.epochs;
}

/* One turn: up to `most` steps, and whatever must happen around them. */
static cmkd_status turn(cmkd_student *student, int most, int *in_epoch, cmkd_error *err) {
  int more;
  if (!*in_epoch) CMKD_TRY(cmkd_student_begin(student, err));
  *in_epoch = 1;
  CMKD_TRY(cmkd_student_step(student, most, &more, err));
  if (more) return CMKD_OK;
  *in_epoch = 0;
  return cmkd_student_end(student, NULL, NULL, err);
}

static void finish(cmkd_student *student, int most) {
  int in_epoch = 0;
  cmkd_error err;
  while (!is_done(student))
    assert_ok(turn(student, most, &in_epoch, &err));
}

/* The log without the two figures that a clock gives. */
static char *log_of(const char *group, const kind *k, int i) {
  static const char *const keys[] = {",\"seconds\":", ",\"images_per_s\":"};
  char *text = strdup(text_of("%s/%s-%s-%d/log.jsonl", dir, group, k->name, i));
  assert_non_null(text);
  for (int key = 0; key < 2; key++)
    for (char *at; (at = strstr(text, keys[key]));) {
      char *end = at + 1 + strcspn(at + 1, ",}");
      memmove(at, end, strlen(end) + 1);
    }
  return text;
}

static void assert_same(const kind *k, int i, const char *one, const char *two) {
  static const char *const files[] = {"last.safetensors", "best.safetensors", "steps.jsonl"};
  for (int f = 0; f < 3; f++) {
    const char *a = sha256_of("%s/%s-%s-%d/%s", dir, one, k->name, i, files[f]),
               *b = sha256_of("%s/%s-%s-%d/%s", dir, two, k->name, i, files[f]);
    assert_int_equal(strlen(a), 64);
    if (strcmp(a, b)) fail_msg("%s of student %d from %s: %s and %s differ", files[f], i, k->name, one, two);
  }
  char *a = log_of(one, k, i), *b = log_of(two, k, i);
  assert_true(strlen(a) > 300);
  assert_string_equal(a, b);
  free(a);
  free(b);
}

/* ---- the runs they are compared with ---- */

static int run_programs(const kind *k) {
  const char *out;
  for (int i = 0; i < STUDENTS; i++) {
    char source[2700];
    if (k->live)
      snprintf(source, sizeof source, "--teacher %s %s", teacher, live_words);
    else
      snprintf(source, sizeof source, "--cache %s", cached);
    if (run_command(&out, "%s --device cpu --threads 2 --data %s %s %s --log-steps --out %s/program-%s-%d", train,
                    tiny_data(), source, words[i], dir, k->name, i) != 0) {
      printf("%s\n", out);
      return -1;
    }
  }
  return 0;
}

/* A barely trained teacher, a cache of it, and each student by the program. */
static int make_all(void **state) {
  (void)state;
  const char *out;
  train = program("cmkd-train");
  cache = program("cmkd-cache");
  if (!train || !cache) return 0;
  snprintf(dir, sizeof dir, "%s", scratch_dir());
  snprintf(teacher, sizeof teacher, "%s/teacher/last.safetensors", dir);
  snprintf(cached, sizeof cached, "%s/t.h5", dir);
  if (run_command(&out, "%s --device cpu --data %s --arch resnet8 --epochs 1 --batch 43 --seed 3 --out %s/teacher",
                  train, tiny_data(), dir) != 0 ||
      run_command(&out,
                  "%s build --quiet --device cpu --threads 2 --teacher %s --data %s --seed 11 --codec f32 --views 3 "
                  "--clean-view --augment crop+flip --with-test --out %s",
                  cache, teacher, tiny_data(), cached) != 0) {
    printf("%s\n", out);
    return -1;
  }
  return run_programs(&from_cache) || run_programs(&from_teacher) ? -1 : 0;
}

static void need_programs(void) {
  if (!train || !cache) skip();
}

/* ---- tests ---- */

/* Block by block in turn, each turn of another length. */
static void three_at_once(const kind *k) {
  need_programs();
  cmkd_session *session = open_session(k);
  cmkd_student *students[STUDENTS];
  cmkd_error err;
  int in_epoch[STUDENTS] = {0}, turns[STUDENTS] = {0}, left = STUDENTS;
  for (int i = 0; i < STUDENTS; i++)
    students[i] = open_student(session, k, "together", i);
  for (int round = 0; left; round++) {
    left = 0;
    for (int i = 0; i < STUDENTS; i++) {
      if (is_done(students[i])) continue;
      assert_ok(turn(students[i], 1 + (round + i) % 3, &in_epoch[i], &err));
      turns[i]++;
      left++;
    }
  }
  for (int i = 0; i < STUDENTS; i++) {
    assert_true(turns[i] >= 4); /* they did take turns */
    assert_true(cmkd_student_last(students[i])->top1 >= 0 && !isnan(cmkd_student_last(students[i])->test_pearson));
    cmkd_student_close(students[i]);
    assert_same(k, i, "together", "program");
  }
  cmkd_session_close(session);
}

static void three_at_once_from_a_cache(void **state) {
  (void)state;
  three_at_once(&from_cache);
}
static void three_at_once_from_a_live_teacher(void **state) {
  (void)state;
  three_at_once(&from_teacher);
}

/* Each in a session of its own, in blocks as large as they get. */
static void each_alone(void **state) {
  (void)state;
  need_programs();
  for (int live = 0; live < 2; live++) {
    const kind *k = live ? &from_teacher : &from_cache;
    for (int i = 0; i < STUDENTS; i++) {
      cmkd_session *session = open_session(k);
      cmkd_student *student = open_student(session, k, "alone", i);
      finish(student, 0);
      cmkd_student_close(student);
      cmkd_session_close(session);
      assert_same(k, i, "alone", "together");
    }
  }
}

/* Backend, teacher and rows on the device keep nothing of whoever used them before: the same student twice, and another
 * one in between. */
static void nothing_stays_of_who_was_before(void **state) {
  (void)state;
  need_programs();
  cmkd_session *session = open_session(&from_teacher);
  static const char *const groups[] = {"first", "between", "second"};
  for (int g = 0; g < 3; g++) {
    const int which = g == 1 ? 1 : 0;
    cmkd_student *student = open_student(session, &from_teacher, groups[g], which);
    finish(student, 1 + g);
    cmkd_student_close(student);
    assert_same(&from_teacher, which, groups[g], "program");
  }
  cmkd_session_close(session);
}

/* A student whose numbers run away, one that cannot be opened, one that is dropped in the middle of an epoch. */
static void one_fails_the_others_go_on(void **state) {
  (void)state;
  need_programs();
  cmkd_session *session = open_session(&from_cache);
  cmkd_student *good = open_student(session, &from_cache, "beside", 0), *wild, *dropped, *none;
  cmkd_student_options o;
  cmkd_error err;
  char out[1400];
  int in_epoch[3] = {0}, more;
  cmkd_student_options_default(&o);
  o.arch = "resnet8";
  o.loss = "ce";
  o.lr = 1e6;
  o.batch = 8;
  snprintf(out, sizeof out, "%s/wild", dir);
  o.out = out;
  assert_ok(cmkd_student_open(session, &o, &wild, &err));
  assert_int_equal(cmkd_student_open(session, &o, &none, &err), CMKD_ERR_IO); /* the folder is taken */
  assert_null(none);
  snprintf(out, sizeof out, "%s/dropped", dir);
  o.lr = NAN;
  assert_ok(cmkd_student_open(session, &o, &dropped, &err));
  o.arch = "resnet9";
  assert_int_equal(cmkd_student_open(session, &o, &none, &err), CMKD_ERR_USAGE);
  assert_null(none);
  cmkd_status status = CMKD_OK;
  for (int round = 0; !is_done(good); round++) {
    assert_ok(turn(good, 1, &in_epoch[0], &err));
    if (status == CMKD_OK) status = turn(wild, 2, &in_epoch[1], &err);
    if (round < 2)
      assert_ok(turn(dropped, 3, &in_epoch[2], &err));
    else if (round == 2) {
      cmkd_student_close(dropped);
      dropped = NULL;
    }
  }
  for (int i = 0; status == CMKD_OK && i < 1000; i++)
    status = turn(wild, 2, &in_epoch[1], &err);
  assert_int_equal(status, CMKD_ERR_VALUE);
  if (!strstr(err.message, "sample") && !strstr(err.message, "finite")) fail_msg("%s", err.message);
  assert_int_equal(cmkd_student_step(wild, 1, &more, &err), CMKD_ERR_VALUE); /* stays failed */
  assert_non_null(strstr(err.message, "failed before"));
  assert_int_equal(cmkd_student_save(wild, &err), CMKD_ERR_VALUE); /* its last good state stays */
  assert_non_null(strstr(err.message, "failed before"));
  assert_null(dropped);
  cmkd_student_close(wild);
  cmkd_student_close(good);
  cmkd_session_close(session);
  assert_same(&from_cache, 0, "beside", "program");
}

static int stop_now(void *self) {
  ++*(int *)self;
  return 1;
}

/* Stopped in the test of an epoch, the call is repeated; stopped in an epoch, another process goes on. */
static void interrupted_and_resumed(void **state) {
  (void)state;
  need_programs();
  cmkd_session *session = open_session(&from_cache);
  cmkd_student *student = open_student(session, &from_cache, "cut", 0);
  cmkd_error err;
  cmkd_student_progress p;
  const char *text;
  int more = 1, asked = 0;
  const cmkd_watch watch = {.self = &asked, .stop = stop_now};
  assert_int_equal(cmkd_student_step(student, 1, &more, &err), CMKD_ERR_VALUE); /* no epoch has begun */
  assert_ok(cmkd_student_begin(student, &err));
  assert_int_equal(cmkd_student_end(student, NULL, NULL, &err), CMKD_ERR_VALUE); /* steps are left */
  for (more = 1; more;)
    assert_ok(cmkd_student_step(student, 1, &more, &err));
  assert_int_equal(cmkd_student_end(student, &watch, NULL, &err), CMKD_ERR_INTERRUPTED);
  assert_int_equal(asked, 1);
  cmkd_epoch_report report;
  assert_ok(cmkd_student_end(student, NULL, &report, &err));
  assert_true(report.score.epoch == 1 && report.score.top1 == cmkd_student_last(student)->top1 && report.lr == 0.05);
  assert_ok(cmkd_student_begin(student, &err));
  assert_ok(cmkd_student_step(student, 2, &more, &err));
  assert_ok(cmkd_student_save(student, &err));
  cmkd_student_get_progress(student, &p);
  assert_true(p.epoch == 1 && p.step == 2 && p.total_steps == 5 && p.total_images == TINY_TRAIN + 64 && !p.resumed);
  cmkd_student_close(student);
  cmkd_session_close(session);
  if (run_command(&text,
                  "%s --device cpu --threads 2 --data %s --cache %s %s --log-steps --resume --out %s/cut-cache-0",
                  train, tiny_data(), cached, words[0], dir))
    fail_msg("%s", text);
  assert_non_null(strstr(text, "goes on after epoch 1 and 2 steps"));
  assert_same(&from_cache, 0, "cut", "program");
  /* and the other way: the finished run of the program is resumed here, with nothing left to do */
  session = open_session(&from_cache);
  cmkd_student_options o;
  char out[1400];
  cmkd_student_options_default(&o);
  set_one(&o);
  snprintf(out, sizeof out, "%s/cut-cache-0", dir);
  o.out = out;
  o.resume = 1;
  assert_ok(cmkd_student_open(session, &o, &student, &err));
  assert_true(is_done(student) && cmkd_student_best(student)->epoch >= 1);
  assert_string_equal(cmkd_student_folder(student), out);
  assert_int_equal(cmkd_student_begin(student, &err), CMKD_ERR_VALUE);
  cmkd_student_close(student);
  cmkd_session_close(session);
}

/* ---- a teacher behind a callback ---- */

typedef struct linear {
  int calls, fails;
} linear;

/* Logits that are linear in the pixels. */
static cmkd_status run_linear(void *self, const uint8_t *pixels, int count, float *logits, cmkd_error *err) {
  linear *l = self;
  l->calls++;
  if (l->fails) return cmkd_fail(err, CMKD_ERR_IO, "the line is dead");
  for (int i = 0; i < count; i++)
    for (int c = 0; c < 10; c++) {
      int sum = 0;
      for (int k = 0; k < 28 * 28; k++)
        sum += pixels[i * 28 * 28 + k] * ((k * 7 + c * 13) % 17 - 8);
      logits[i * 10 + c] = (float)sum * 1e-4f;
    }
  return CMKD_OK;
}

static cmkd_student *open_by(const cmkd_session_options *options, const char *name, cmkd_session **session) {
  cmkd_student_options o;
  cmkd_student *student;
  cmkd_error err;
  char out[1400];
  assert_ok(cmkd_session_open(options, session, &err));
  assert_ok(cmkd_session_load_test_logits(*session, NULL, NULL, &err));
  cmkd_student_options_default(&o);
  set_one(&o);
  snprintf(out, sizeof out, "%s/%s", dir, name);
  o.out = out;
  assert_ok(cmkd_student_open(*session, &o, &student, &err));
  return student;
}

static void a_callback_and_its_cache_are_one_teacher(void **state) {
  (void)state;
  need_programs(); /* for `dir` */
  linear l = {0, 0};
  cmkd_teacher_callback callback = {.self = &l, .run = run_linear, .batch = 16, .name = "linear"};
  char identity[65], path[1400];
  memset(identity, '7', 64);
  identity[64] = 0;
  callback.sha256 = identity;
  snprintf(path, sizeof path, "%s/linear.h5", dir);
  const cmkd_build_options build = {.out = path, .views = 3, .cache_seed = 4, .codec = "f32"};
  cmkd_dataset *data;
  cmkd_teacher *built;
  cmkd_session *session;
  cmkd_error err;
  assert_ok(cmkd_dataset_open(tiny_data(), "train", NULL, &data, &err));
  assert_ok(cmkd_teacher_from_callback(&callback, data, CMKD_AUGMENT_CROP_FLIP, &built, &err));
  assert_ok(cmkd_build_cache(&build, built, NULL, NULL, &err));
  cmkd_teacher_close(built);
  cmkd_dataset_close(data);
  cmkd_session_options o;
  cmkd_session_options_default(&o);
  o.data = tiny_data();
  o.device = "cpu";
  o.threads = 2;
  o.cache = path;
  cmkd_student *student = open_by(&o, "linear-cache", &session);
  finish(student, 2);
  assert_true(isnan(cmkd_student_last(student)->test_pearson)); /* the cache has no companion */
  cmkd_student_close(student);
  cmkd_session_close(session);
  o.cache = NULL;
  o.callback = &callback;
  o.augment = "crop+flip";
  o.views = "3";
  o.cache_seed = 4;
  l.calls = 0;
  student = open_by(&o, "linear-live", &session);
  memset(identity, 'x', 64); /* copied, like the callback itself */
  memset(&callback, 0, sizeof callback);
  assert_int_equal(l.calls, (TINY_TEST + 15) / 16);
  finish(student, 2);
  assert_int_equal(l.calls, (TINY_TEST + 15) / 16 + 2 * ((TINY_TRAIN + 15) / 16));
  assert_false(isnan(cmkd_student_last(student)->test_pearson));
  cmkd_student_close(student);
  assert_string_equal(sha256_of("%s/linear-cache/last.safetensors", dir),
                      sha256_of("%s/linear-live/last.safetensors", dir));
  /* what the callback says of a failure is what the student fails with */
  cmkd_student_options again;
  int more;
  cmkd_student_options_default(&again);
  set_one(&again);
  snprintf(path, sizeof path, "%s/linear-dead", dir);
  again.out = path;
  assert_ok(cmkd_student_open(session, &again, &student, &err));
  l.fails = 1;
  assert_ok(cmkd_student_begin(student, &err));
  assert_int_equal(cmkd_student_step(student, 1, &more, &err), CMKD_ERR_IO);
  assert_non_null(strstr(err.message, "linear: the line is dead"));
  cmkd_student_close(student);
  cmkd_session_close(session);
}

static void sessions_refuse(void **state) {
  (void)state;
  cmkd_session_options o;
  cmkd_session *session;
  cmkd_error err;
  cmkd_session_options_default(&o);
  o.data = "mnist:/nowhere";
  o.device = "cpu";
  assert_int_not_equal(cmkd_session_open(&o, &session, &err), CMKD_OK);
  assert_null(session);
  o.data = tiny_data();
  o.cache = "a";
  o.callback = &(cmkd_teacher_callback){.run = run_linear};
  assert_int_equal(cmkd_session_open(&o, &session, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "exclude each other"));
  o.cache = NULL; /* a callback without an identity */
  assert_int_equal(cmkd_session_open(&o, &session, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "sha256"));
  o.callback = NULL;
  o.threads = -3;
  assert_int_equal(cmkd_session_open(&o, &session, NULL), CMKD_ERR_USAGE);
  assert_null(session);
  o.threads = 1;
  o.device = "abacus";
  assert_int_equal(cmkd_session_open(&o, &session, &err), CMKD_ERR_USAGE);
  assert_null(session);
  cmkd_session_close(NULL);
  cmkd_student_close(NULL);
}

int main(int argc, char **argv) {
  (void)argc;
  cmkd_environment_start(argv); /* threads that wait do not spin for long: students train in this process */
  const struct CMUnitTest tests[] = {cmocka_unit_test(three_at_once_from_a_cache),
                                     cmocka_unit_test(three_at_once_from_a_live_teacher),
                                     cmocka_unit_test(each_alone),
                                     cmocka_unit_test(nothing_stays_of_who_was_before),
                                     cmocka_unit_test(one_fails_the_others_go_on),
                                     cmocka_unit_test(interrupted_and_resumed),
                                     cmocka_unit_test(a_callback_and_its_cache_are_one_teacher),
                                     cmocka_unit_test(sessions_refuse)};
  return cmocka_run_group_tests(tests, make_all, NULL);
}
