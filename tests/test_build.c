/* Building a cache with a teacher behind a callback (cmkd/build.h): the same bytes from one run, from an interrupted
 * one and from two processes; logits that are the teacher's of the replayed pixels; our own network behind a callback
 * gives the bits it gives by itself; and every way a callback can be wrong is one line. */
#include "tests/support.h"
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/rng.h"
#include "cmkd/build.h"
#include "kernels/augment.h"
#include "nets/teacher.h"

#define N 40
#define SIDE 12
#define CHANNELS 3
#define IMAGE (SIDE * SIDE * CHANNELS)
#define CLASSES 7
#define BATCH 8
#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static cmkd_error err;
static uint8_t pixels[N * IMAGE];
static int32_t labels[N];
static cmkd_dataset data = {.name = "tiny",
                            .split = "train",
                            .n = N,
                            .height = SIDE,
                            .width = SIDE,
                            .channels = CHANNELS,
                            .classes = CLASSES,
                            .pixels = pixels,
                            .labels = labels,
                            .fingerprint = SHA};

static int setup(void **state) {
  (void)state;
  cmkd_rng rng = cmkd_rng_start(2, CMKD_STREAM_TEST, 0);
  for (size_t i = 0; i < sizeof pixels; i++)
    pixels[i] = (uint8_t)cmkd_rng_below(&rng, 256);
  for (int i = 0; i < N; i++)
    labels[i] = i % CLASSES;
  return 0;
}

/* ---- teachers ---- */

/* Logit k of an image: the mean of its bytes k, k + CLASSES, ...; any change of a pixel or its place shows. */
static void simple_logits(const uint8_t *image, float *logits) {
  for (int k = 0; k < CLASSES; k++) {
    logits[k] = 0;
    for (int i = k; i < IMAGE; i += CLASSES)
      logits[k] += (float)(image[i] * (i + 1)) / 65536;
  }
}

typedef struct simple {
  int calls, bad_call; /* the call that goes wrong, from 1; 0: none */
  enum { NAN_ROW, SHORT, FAILS, SILENT } how;
} simple;

static cmkd_status simple_run(void *self, const uint8_t *images, int count, float *logits, cmkd_error *error) {
  simple *s = self;
  const int bad = ++s->calls == s->bad_call;
  assert_int_equal(count, BATCH);
  if (bad && s->how == FAILS) return cmkd_fail(error, CMKD_ERR_DEVICE, "the accelerator is on fire");
  if (bad && s->how == SILENT) return CMKD_ERR_DEVICE;
  for (int i = 0; i < (bad && s->how == SHORT ? count - 1 : count); i++)
    simple_logits(images + (size_t)i * IMAGE, logits + (size_t)i * CLASSES);
  if (bad && s->how == NAN_ROW) logits[3 * CLASSES + 2] = NAN;
  return CMKD_OK;
}

static cmkd_teacher *simple_teacher(simple *s) {
  const cmkd_teacher_callback callback = {
      .self = s, .run = simple_run, .batch = BATCH, .sha256 = SHA, .name = "simple", .arch = "sums"};
  cmkd_teacher *teacher;
  assert_ok(cmkd_teacher_from_callback(&callback, &data, CMKD_AUGMENT_CROP_FLIP, &teacher, &err));
  return teacher;
}

static cmkd_build_options small(const char *out) {
  return (cmkd_build_options){
      .out = out, .views = 3, .clean_view = 1, .cache_seed = 5, .codec = "f32", .shard_samples = 11, .threads = 1};
}

static const char *out_in(const char *dir) {
  static char path[8][1200];
  static int next;
  char *out = path[next++ % 8];
  snprintf(out, 1200, "%s/t.h5", dir);
  return out;
}

/* The whole cache, built in one go. */
static const char *whole(void) {
  static const char *dir;
  if (dir) return dir;
  simple s = {0};
  cmkd_teacher *teacher = simple_teacher(&s);
  cmkd_build_result result;
  const char *folder = scratch_dir();
  const cmkd_build_options options = small(out_in(folder));
  assert_ok(cmkd_build_cache(&options, teacher, NULL, &result, &err));
  assert_true(result.finished && result.shards == 4 && result.shards_done == 4);
  assert_true(result.samples == N && result.views == 4 && result.teacher_rows == N * 4);
  cmkd_teacher_close(teacher);
  return dir = folder;
}

static void assert_same(const char *dir) {
  const char *output;
  if (run_command(&output, "diff -r '%s' '%s'", whole(), dir) != 0) fail_msg("%s", output);
}

/* ---- tests ---- */

static void logits_are_the_teachers(void **state) {
  (void)state;
  cmkd_cache *cache;
  static float got[N * CLASSES], want[CLASSES];
  static uint8_t image[IMAGE], plain[IMAGE];
  assert_ok(cmkd_cache_open(out_in(whole()), &cache, &err));
  const cmkd_cache_identity *id = &cmkd_cache_get_info(cache)->identity;
  assert_string_equal(id->teacher_name, "simple");
  assert_string_equal(id->teacher_arch, "sums");
  assert_string_equal(id->teacher_sha256, SHA);
  assert_string_equal(id->precision, "fp32");
  assert_int_equal(id->teacher_batch, BATCH);
  assert_int_equal(id->channels, 0);
  for (uint32_t view = 0; view < 4; view++) {
    assert_ok(cmkd_cache_read(cache, view, 0, N, got, &err));
    for (uint32_t i = 0; i < N; i++) {
      const uint64_t seed =
          view == 3 ? cmkd_clean_seed(CMKD_AUGMENT_CROP_FLIP) : cmkd_view_seed(5, i, view, CMKD_AUGMENT_CROP_FLIP, 0);
      assert_ok(cmkd_dataset_replay(&data, CMKD_AUGMENT_CROP_FLIP, &i, &seed, 1, image, &err));
      cmkd_augment_ref(CMKD_AUGMENT_CROP_FLIP, seed, pixels + i * IMAGE, plain, SIDE, SIDE, CHANNELS);
      assert_memory_equal(image, plain, IMAGE);
      simple_logits(image, want);
      assert_memory_equal(got + i * CLASSES, want, sizeof want);
    }
  }
  cmkd_cache_close(cache);
}

static void replay_takes_any_rows(void **state) {
  (void)state;
  enum { COUNT = 200 };
  static uint8_t many[COUNT * IMAGE], one[IMAGE];
  uint32_t rows[COUNT];
  uint64_t seeds[COUNT];
  for (uint32_t i = 0; i < COUNT; i++) {
    rows[i] = i * 7 % N;
    seeds[i] = i * 31;
  }
  assert_ok(cmkd_dataset_replay(&data, CMKD_AUGMENT_CROP, rows, seeds, COUNT, many, &err));
  for (uint32_t i = 0; i < COUNT; i++) {
    cmkd_augment_ref(CMKD_AUGMENT_CROP, seeds[i], pixels + rows[i] * IMAGE, one, SIDE, SIDE, CHANNELS);
    assert_memory_equal(many + i * IMAGE, one, IMAGE);
  }
  assert_ok(cmkd_dataset_replay(&data, CMKD_AUGMENT_CROP_FLIP, rows, NULL, COUNT, many, &err));
  assert_memory_equal(many + 5 * IMAGE, pixels + rows[5] * IMAGE, IMAGE);
  rows[9] = N;
  assert_int_equal(cmkd_dataset_replay(&data, CMKD_AUGMENT_CROP, rows, seeds, COUNT, many, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "sample 40"));
}

/* Stops when asked for the `left`th time, and checks what it is told. */
typedef struct asker {
  int left, told;
  cmkd_build_progress last;
} asker;
static int ask(void *self) {
  asker *a = self;
  return a->left && !--a->left;
}
static void tell(void *self, const cmkd_build_progress *progress) {
  asker *a = self;
  if (!a->told++) assert_true(progress->done == 0 && progress->reused == 0 && progress->total == N * 4);
  assert_true(progress->done >= a->last.done && progress->done <= progress->total);
  a->last = *progress;
}

static void an_interrupted_build_goes_on(void **state) {
  (void)state;
  whole();
  const char *dir = scratch_dir();
  const cmkd_build_options options = small(out_in(dir));
  cmkd_build_result result;
  simple s = {0};
  cmkd_teacher *teacher = simple_teacher(&s);
  int stops = 0;
  for (int left = 5;;
       left += 3) { /* a shard has 44 rows: a call of one batch, then larger ones, then no question left */
    asker a = {.left = left};
    const cmkd_build_watch watch = {&a, ask, tell};
    const cmkd_status status = cmkd_build_cache(&options, teacher, &watch, &result, &err);
    assert_true(a.last.reused == result.writer.reused_rows);
    if (status == CMKD_OK) {
      assert_int_equal(a.last.done, N * 4);
      break;
    }
    assert_int_equal(status, CMKD_ERR_INTERRUPTED);
    assert_non_null(strstr(err.message, "running the same command again continues"));
    assert_false(result.finished);
    stops++;
  }
  assert_true(stops >= 1 && result.writer.reused_rows > 0 && result.finished);
  assert_same(dir);
  const int before = s.calls; /* all is there: nothing to do */
  assert_ok(cmkd_build_cache(&options, teacher, NULL, &result, &err));
  assert_true(s.calls == before && result.teacher_rows == 0 && result.writer.reused_rows == N * 4);
  cmkd_teacher_close(teacher);
}

static void two_processes_share_the_work(void **state) {
  (void)state;
  whole();
  const char *dir = scratch_dir();
  cmkd_build_options options = small(out_in(dir));
  options.parts = 2;
  const pid_t child = fork();
  options.part = child == 0;
  simple s = {0};
  cmkd_teacher *teacher = simple_teacher(&s);
  cmkd_build_result result;
  const cmkd_status status = cmkd_build_cache(&options, teacher, NULL, &result, &err);
  if (child == 0) _exit(status != CMKD_OK || result.shards != 2);
  int code;
  assert_int_equal(waitpid(child, &code, 0), child);
  assert_int_equal(code, 0);
  assert_int_equal(status, CMKD_OK);
  assert_true(!result.finished && result.shards == 2 && result.shards_done == 2);
  cmkd_teacher_close(teacher);
  cmkd_cache_writer *writer;
  assert_ok(cmkd_cache_writer_join(options.out, &writer, &err));
  assert_ok(cmkd_cache_writer_finish(writer, &err));
  cmkd_cache_writer_close(writer);
  assert_same(dir);
}

static void wrong_answers_are_refused(void **state) {
  (void)state;
  static const struct {
    int how;
    cmkd_status status;
    const char *says;
  } cases[] = {
      {NAN_ROW, CMKD_ERR_VALUE, "teacher simple: logits of sample "},
      {SHORT, CMKD_ERR_VALUE, "teacher simple: the callback left the logits of sample "},
      {FAILS, CMKD_ERR_DEVICE, "teacher simple: the accelerator is on fire"},
      {SILENT, CMKD_ERR_DEVICE, "teacher simple: the callback failed and does not say why"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *dir = scratch_dir();
    const cmkd_build_options options = small(out_in(dir));
    simple s = {.bad_call = 9, .how = cases[i].how};
    cmkd_teacher *teacher = simple_teacher(&s);
    assert_int_equal(cmkd_build_cache(&options, teacher, NULL, NULL, &err), cases[i].status);
    if (!strstr(err.message, cases[i].says)) fail_msg("'%s' does not say '%s'", err.message, cases[i].says);
    assert_null(strchr(err.message, '\n'));
    assert_ok(cmkd_build_cache(&options, teacher, NULL, NULL, &err)); /* that call was the only bad one */
    cmkd_teacher_close(teacher);
    assert_same(dir);
  }
}

static void nonsense_is_refused(void **state) {
  (void)state;
  simple s = {0};
  const cmkd_teacher_callback good = {.self = &s, .run = simple_run, .batch = BATCH, .sha256 = SHA};
  const float half[3] = {0.5f, 0.5f, 0.5f};
  cmkd_teacher *teacher;
  const struct {
    cmkd_teacher_callback callback;
    cmkd_status status;
    const char *says;
  } cases[] = {
      {{.run = NULL, .sha256 = SHA}, CMKD_ERR_USAGE, "run is NULL"},
      {{.run = simple_run}, CMKD_ERR_USAGE, "sha256"},
      {{.run = simple_run, .sha256 = "abc"}, CMKD_ERR_USAGE, "64"},
      {{.run = simple_run, .sha256 = SHA, .batch = 65537}, CMKD_ERR_USAGE, "65536"},
      {{.run = simple_run, .sha256 = SHA, .mean = half}, CMKD_ERR_USAGE, "mean and std"},
      {{.run = simple_run, .sha256 = SHA, .classes = 8}, CMKD_ERR_MISMATCH, "8 classes, but tiny has 7"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_int_equal(cmkd_teacher_from_callback(&cases[i].callback, &data, CMKD_AUGMENT_NONE, &teacher, &err),
                     cases[i].status);
    assert_null(teacher);
    if (!strstr(err.message, cases[i].says)) fail_msg("'%s' does not say '%s'", err.message, cases[i].says);
  }
  assert_ok(cmkd_teacher_from_callback(&good, &data, CMKD_AUGMENT_NONE, &teacher, &err));
  const char *out = out_in(scratch_dir());
  const cmkd_build_options wrong[] = {{.out = NULL},
                                      {.out = out, .views = 2},
                                      {.out = out, .samples = N + 1},
                                      {.out = out, .part = 3, .parts = 3},
                                      {.out = out, .codec = "mp3"}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    assert_int_equal(cmkd_build_cache(&wrong[i], teacher, NULL, NULL, &err), CMKD_ERR_USAGE);
  /* without augmentation there is one view, and it is the clean one */
  cmkd_build_result result;
  const cmkd_build_options plain = {.out = out, .clean_view = 1, .all_variants = 1, .samples = 9};
  assert_ok(cmkd_build_cache(&plain, teacher, NULL, &result, &err));
  assert_true(result.views == 1 && result.samples == 9);
  float features;
  const uint32_t row = 0;
  assert_int_equal(cmkd_teacher_run(teacher, &row, NULL, 1, NULL, &features, &err), CMKD_ERR_UNSUPPORTED);
  cmkd_teacher_close(teacher);
}

/* ---- our own network, by itself and behind a callback ---- */

typedef struct own {
  cmkd_backend *backend;
  const char *weights;
} own;

static const char *weights_file(void) {
  static char path[1200];
  cmkd_graph *graph;
  cmkd_params params;
  const char *keys[] = {"arch", "mean", "std"}, *values[] = {"resnet8", "0.5,0.4,0.3", "0.2,0.25,0.3"};
  assert_ok(cmkd_net_build("resnet8", (cmkd_net_shape){SIDE, SIDE, CHANNELS, CLASSES}, &graph, &err));
  assert_ok(cmkd_params_create(graph, &params, &err));
  cmkd_params_init(graph, 5, &params);
  snprintf(path, sizeof path, "%s/teacher.safetensors", scratch_dir());
  assert_ok(cmkd_params_save(graph, &params, 1, path, keys, values, 3, &err));
  cmkd_params_free(&params);
  cmkd_graph_free(graph);
  return path;
}

/* The batch it is given becomes a data set whose images are taken as they are. */
static cmkd_status own_run(void *self, const uint8_t *images, int count, float *logits, cmkd_error *error) {
  const own *o = self;
  uint32_t rows[BATCH];
  cmkd_dataset batch = data;
  cmkd_teacher *network;
  const cmkd_teacher_options options = {.weights = o->weights, .batch = BATCH};
  batch.n = (uint32_t)count;
  batch.pixels = (uint8_t *)images;
  for (int i = 0; i < count; i++)
    rows[i] = (uint32_t)i;
  CMKD_TRY(cmkd_teacher_open(&options, &cmkd_backend_cpu, o->backend, &batch, &network, error));
  const cmkd_status status = cmkd_teacher_run(network, rows, NULL, (uint32_t)count, logits, NULL, error);
  cmkd_teacher_close(network);
  return status;
}

static void our_network_behind_a_callback(void **state) {
  (void)state;
  own o = {.weights = weights_file()};
  cmkd_teacher *network, *callback;
  static float direct[N * CLASSES], wrapped[N * CLASSES];
  uint32_t rows[N];
  uint64_t seeds[N];
  for (uint32_t i = 0; i < N; i++) {
    rows[i] = (i * 3) % N;
    seeds[i] = i * 7919;
  }
  const cmkd_backend_options one = {.threads = 1};
  assert_ok(cmkd_backend_cpu.open(&one, &o.backend, &err));
  const cmkd_teacher_options options = {.weights = o.weights, .batch = BATCH, .policy = CMKD_AUGMENT_CROP_FLIP};
  const cmkd_teacher_callback wrapper = {.self = &o, .run = own_run, .batch = BATCH, .sha256 = SHA};
  assert_ok(cmkd_teacher_open(&options, &cmkd_backend_cpu, o.backend, &data, &network, &err));
  assert_ok(cmkd_teacher_from_callback(&wrapper, &data, CMKD_AUGMENT_CROP_FLIP, &callback, &err));
  assert_ok(cmkd_teacher_run(network, rows, seeds, N - 3, direct, NULL, &err));
  assert_ok(cmkd_teacher_run(callback, rows, seeds, N - 3, wrapped, NULL, &err));
  assert_memory_equal(direct, wrapped, (N - 3) * CLASSES * sizeof(float));
  cmkd_teacher_close(network);
  cmkd_teacher_close(callback);
  cmkd_backend_cpu.close(o.backend);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(logits_are_the_teachers),       cmocka_unit_test(replay_takes_any_rows),
      cmocka_unit_test(an_interrupted_build_goes_on),  cmocka_unit_test(two_processes_share_the_work),
      cmocka_unit_test(wrong_answers_are_refused),     cmocka_unit_test(nonsense_is_refused),
      cmocka_unit_test(our_network_behind_a_callback),
  };
  return cmocka_run_group_tests(tests, setup, NULL);
}
