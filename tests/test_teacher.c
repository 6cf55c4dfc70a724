/* The teacher runner: a row's bits depend on the row and its seed alone. On the plain backend and, by table, on any
 * other. */
#include "base/program/environment.h"
#include "tests/support.h"
#include <math.h>
#include "base/rng.h"
#include "nets/teacher.h"

#define N 40
#define SIDE 12
#define CLASSES 7
#define FEATURES 64
static cmkd_error err;

static uint8_t pixels[N * SIDE * SIDE * 3];
static int32_t labels[N];
static cmkd_dataset data = {.name = "tiny",
                            .split = "test",
                            .n = N,
                            .height = SIDE,
                            .width = SIDE,
                            .channels = 3,
                            .classes = CLASSES,
                            .pixels = pixels,
                            .labels = labels};

static const char *weights_file(float poison) {
  static char path[1200];
  cmkd_graph *g;
  cmkd_params params;
  assert_ok(cmkd_net_build("resnet8", (cmkd_net_shape){32, 32, 3, CLASSES}, &g, &err));
  assert_ok(cmkd_params_create(g, &params, &err));
  cmkd_params_init(g, 5, &params);
  if (poison > 0) params.value[g->params - 1][0] = poison, params.value[g->params - 2][0] = poison;
  const char *keys[] = {"arch", "mean", "std"}, *values[] = {"resnet8", "0.5,0.4,0.3", "0.2,0.25,0.3"};
  snprintf(path, sizeof path, "%s/teacher.safetensors", scratch_dir());
  assert_ok(cmkd_params_save(g, &params, 1, path, keys, values, 3, &err));
  cmkd_params_free(&params);
  cmkd_graph_free(g);
  cmkd_rng rng = cmkd_rng_start(2, CMKD_STREAM_TEST, 0);
  for (size_t i = 0; i < sizeof pixels; i++)
    pixels[i] = (uint8_t)cmkd_rng_below(&rng, 256);
  return path;
}

static void rows_stand_alone(const char *device) {
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_teacher *teacher;
  cmkd_backend_options backend_options = {0};
  cmkd_environment_backend(&backend_options);
  if (cmkd_backend_find(device, &backend_options, &table, &err) == CMKD_ERR_UNSUPPORTED) {
    printf("SKIP: %s\n", err.message);
    skip();
  }
  assert_ok(table->open(&backend_options, &backend, &err));
  cmkd_teacher_options options = {.weights = weights_file(0), .batch = 8, .policy = CMKD_AUGMENT_CROP_FLIP};
  assert_ok(cmkd_teacher_open(&options, table, backend, &data, &teacher, &err));
  assert_true(cmkd_teacher_batch(teacher) == 8 && cmkd_teacher_feature_size(teacher) == FEATURES &&
              strlen(cmkd_teacher_sha256(teacher)) == 64);
  assert_string_equal(cmkd_teacher_spec(teacher)->arch, "resnet8");
  uint32_t rows[N];
  uint64_t seeds[N];
  static float logits[N * CLASSES], features[N * FEATURES], again[N * CLASSES], more[N * FEATURES];
  for (uint32_t i = 0; i < N; i++)
    rows[i] = i, seeds[i] = (uint64_t)i * 7919;
  assert_ok(cmkd_teacher_run(teacher, rows, seeds, N, logits, features, &err));
  assert_memory_not_equal(logits, logits + CLASSES, CLASSES * sizeof(float));
  cmkd_rng rng = cmkd_rng_start(3, CMKD_STREAM_TEST, 0);
  for (uint32_t i = N; i > 1; i--) { /* permuted neighbours */
    uint32_t j = cmkd_rng_below(&rng, i), r = rows[i - 1];
    uint64_t s = seeds[i - 1];
    rows[i - 1] = rows[j], rows[j] = r, seeds[i - 1] = seeds[j], seeds[j] = s;
  }
  for (uint32_t count = 1; count <= N; count += 3) { /* short, exact and long counts */
    assert_ok(cmkd_teacher_run(teacher, rows, seeds, count, again, more, &err));
    for (uint32_t i = 0; i < count; i++) {
      assert_memory_equal(again + i * CLASSES, logits + rows[i] * CLASSES, CLASSES * sizeof(float));
      assert_memory_equal(more + i * FEATURES, features + rows[i] * FEATURES, FEATURES * sizeof(float));
    }
  }
  memset(again, 0, sizeof again), memset(more, 0, sizeof more);
  assert_ok(cmkd_teacher_run(teacher, rows, seeds, 5, again, NULL, &err));
  assert_ok(cmkd_teacher_run(teacher, rows, seeds, 9, NULL, more, &err));
  assert_memory_equal(again, logits + rows[0] * CLASSES, CLASSES * sizeof(float));
  assert_memory_equal(more + 8 * FEATURES, features + rows[8] * FEATURES, FEATURES * sizeof(float));
  uint64_t clean = cmkd_clean_seed(CMKD_AUGMENT_CROP_FLIP);
  assert_ok(cmkd_teacher_run(teacher, rows, NULL, 1, logits, NULL, &err));
  assert_ok(cmkd_teacher_run(teacher, rows, &clean, 1, again, NULL, &err));
  assert_memory_equal(again, logits, CLASSES * sizeof(float));
  rows[1] = N;
  assert_int_equal(cmkd_teacher_run(teacher, rows, seeds, 3, again, NULL, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "sample 40"));
  cmkd_teacher_close(teacher);
  table->close(backend);
}

static void on_ref(void **state) {
  (void)state;
  rows_stand_alone("ref");
}
static void on_cpu(void **state) {
  (void)state;
  rows_stand_alone("cpu");
}

static void misfits_are_refused(void **state) {
  (void)state;
  cmkd_backend *backend;
  cmkd_teacher *teacher;
  assert_ok(cmkd_backend_ref.open(NULL, &backend, &err));
  cmkd_teacher_options options = {.weights = weights_file(0), .batch = 4};
  data.classes = CLASSES + 1;
  assert_int_equal(cmkd_teacher_open(&options, &cmkd_backend_ref, backend, &data, &teacher, &err), CMKD_ERR_MISMATCH);
  assert_non_null(strstr(err.message, "a teacher of 7 classes, but tiny has 8"));
  data.classes = CLASSES, data.channels = 1;
  assert_int_equal(cmkd_teacher_open(&options, &cmkd_backend_ref, backend, &data, &teacher, &err), CMKD_ERR_MISMATCH);
  data.channels = 3, options.batch = -1;
  assert_int_equal(cmkd_teacher_open(&options, &cmkd_backend_ref, backend, &data, &teacher, &err), CMKD_ERR_USAGE);
  options.batch = 4, options.weights = "/nonexistent/w.safetensors";
  assert_int_not_equal(cmkd_teacher_open(&options, &cmkd_backend_ref, backend, &data, &teacher, &err), CMKD_OK);
  assert_non_null(strstr(err.message, "/nonexistent/w.safetensors"));
  options.weights = weights_file(3.4e38f); /* finite weights, infinite logits */
  assert_ok(cmkd_teacher_open(&options, &cmkd_backend_ref, backend, &data, &teacher, &err));
  uint32_t rows[2] = {11, 12};
  float logits[2 * CLASSES];
  assert_int_equal(cmkd_teacher_run(teacher, rows, NULL, 2, logits, NULL, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "sample 11"));
  cmkd_teacher_close(teacher);
  cmkd_backend_ref.close(backend);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(on_ref), cmocka_unit_test(on_cpu),
                                     cmocka_unit_test(misfits_are_refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
