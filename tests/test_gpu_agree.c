/* bench/gpu/agree with files of answers: what they carry is what the other side computes, another run's file is refused
 * by name, a damaged one in one line, and a wrong answer is found. */
#include "tests/support_train.h"
#include <jansson.h>
#include <math.h>
#include <unistd.h>
#include "base/file.h"
#include "base/rng.h"
#include "bench/gpu/reference.c" /* not in the library: its writer makes the files that are wrong */

#define TINY "--arch resnet8 --side 16 --batch 8 --threads 1"
/* Nine steps: a captured graph of eight and one alone. */
#define CURVE "--mode curve --arch resnet8 --side 8 --batch 4 --threads 1"

static const char *agree;
static char dir[1200], step_file[1300], curve_file[1300];

static int setup(void **state) {
  (void)state;
  const char *out;
  agree = program("bench/gpu/agree");
  if (!agree) return 0;
  snprintf(dir, sizeof dir, "%s", scratch_dir());
  snprintf(step_file, sizeof step_file, "%s/step.reference", dir);
  snprintf(curve_file, sizeof curve_file, "%s/curve.reference", dir);
  if (run_command(&out, "%s --mode step " TINY " --make %s && %s " CURVE " --steps 9 --make %s", agree, step_file,
                  agree, curve_file) == 0)
    return 0;
  printf("%s\n", out);
  return -1;
}

/* What agree printed; the caller gives it back. */
static json_t *answer(const char *options) {
  const char *out;
  if (run_command(&out, "%s %s", agree, options) != 0) fail_msg("%s: %s", options, out);
  json_t *o = json_loads(out, 0, NULL);
  if (!o) fail_msg("%s: %s", options, out);
  return o;
}
#define ANSWER(...) (snprintf(options_, sizeof options_, __VA_ARGS__), answer(options_))
static char options_[4000];

/* Refused: one line, exit status 1, that names the file, the remedy and `word`. */
static void refused(const char *file, const char *word, const char *options) {
  const char *out;
  const int status = run_command(&out, "%s %s --device cpu --against %s", agree, options, file);
  const char *end = strchr(out, '\n');
  if (status != 1 || !end || end[1] || !strstr(out, file) || !strstr(out, word) || !strstr(out, "make gpu-reference"))
    fail_msg("%s: exit status %d: %s", options, status, out);
}

static json_t *step_of(json_t *o, size_t i) { return json_array_get(json_object_get(o, "steps"), i); }
static double real_of(json_t *o, const char *key) { return json_real_value(json_object_get(o, key)); }
static int is_within(json_t *o) { return json_is_true(json_object_get(o, "within")); }

static void a_step_file_is_the_reference(void **state) {
  (void)state;
  static const char *const stored[] = {"statistics_after", "logits_after"};
  static const char *const derived[] = {"gradients", "momentum", "weights_after"};
  if (!agree) skip();
  json_t *file = ANSWER("--mode step " TINY " --device cpu --against %s", step_file);
  json_t *ref = ANSWER("--mode step " TINY " --device cpu --against ref");
  assert_true(is_within(file) && is_within(ref));
  assert_string_equal(json_string_value(json_object_get(file, "against")), "double reference (step.reference)");
  assert_int_equal(json_array_size(json_object_get(file, "steps")), 3);
  for (size_t i = 0; i < 3; i++) {
    json_t *a = step_of(file, i), *b = step_of(ref, i);
    assert_true(json_equal(json_object_get(a, "loss_there"), json_object_get(b, "loss_there")));
    for (int k = 0; k < 2; k++)
      assert_true(json_equal(json_object_get(a, stored[k]), json_object_get(b, stored[k])));
    for (int k = 0; k < 3; k++) {
      json_t *x = json_object_get(a, derived[k]), *y = json_object_get(b, derived[k]);
      if (i == 0)
        assert_true(real_of(x, "largest") <= real_of(y, "largest") + 0x1p-22); /* of fewer entries */
      else
        assert_true(fabs(real_of(x, "largest") - real_of(y, "largest")) <= 0x1p-22);
    }
    json_t *cpu = json_incref(json_object_get(a, "cpu")); /* the very same run */
    json_object_del(a, "cpu");
    assert_true(json_equal(a, cpu));
    json_decref(cpu);
  }
  json_decref(file);
  json_decref(ref);
}

static void a_curve_file_is_the_cpu(void **state) {
  (void)state;
  static const char *const keys[] = {"curve", "curve_there", "curve_yardstick", "apart", "yardstick", "within"};
  if (!agree) skip();
  json_t *file = ANSWER(CURVE " --steps 9 --device cpu --against %s", curve_file);
  json_t *cpu = ANSWER(CURVE " --steps 9 --device cpu --against cpu");
  for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
    assert_true(json_equal(json_object_get(file, keys[k]), json_object_get(cpu, keys[k])));
  assert_true(is_within(file) && real_of(file, "apart") == 0 && real_of(file, "yardstick") > 0);
  assert_true(json_equal(json_object_get(file, "curve"), json_object_get(file, "curve_there")));
  json_decref(file);
  json_decref(cpu);
}

static void of_another_run(void **state) {
  (void)state;
  const char *out;
  if (!agree) skip();
  refused(step_file, "arch \"resnet8\", not \"resnet14\"", "--mode step --arch resnet14 --side 16 --batch 8");
  refused(step_file, "batch 8, not 16", "--mode step --arch resnet8 --side 16 --batch 16");
  refused(step_file, "side 16, not 8", "--mode step --arch resnet8 --side 8 --batch 8");
  refused(step_file, "lr 0.05", "--mode step " TINY " --lr 0.1");
  refused(step_file, "classes 100, not 10;", "--mode step " TINY " --classes 10");
  refused(step_file, "loss \"ce:1+dkd", "--mode step " TINY " --loss kd");
  refused(step_file, "mode \"step\", not \"curve\"", "--mode curve " TINY);
  refused(curve_file, "steps 9, not 10", CURVE " --steps 10");
  refused("/none/there.reference", "No such file", "--mode step " TINY);
  refused("there.reference", "No such file", "--mode curve " TINY);
  assert_int_equal(run_command(&out, "%s --make %s/x.reference --device cpu", agree, dir), 2);
  assert_int_equal(run_command(&out, "%s --make cuda", agree), 2);
  assert_int_equal(run_command(&out, "%s --make %s/x.reference --mode time", agree, dir), 2);
  assert_int_equal(run_command(&out, "%s " CURVE " --steps 1 --make /none/x.reference", agree), 1);
  assert_non_null(strstr(out, "/none/x.reference"));
  assert_int_equal(run_command(&out, "ls %s", dir), 0);
  assert_string_equal(out, "curve.reference\nstep.reference\n");
}

/* ---- files that are damaged or wrong ---- */

/* A copy of just this size, so that AddressSanitizer sees every step too far. 1: it was read. */
static int parses(const uint8_t *bytes, size_t size) {
  cmkd_error err = {0};
  json_t *about;
  uint8_t *numbers, *copy = malloc(size + !size);
  size_t numbers_size;
  memcpy(copy, bytes, size);
  const cmkd_status status = bench_reference_parse(copy, size, "a.reference", &about, &numbers, &numbers_size, &err);
  free(copy);
  if (status == CMKD_OK) {
    json_decref(about);
    free(numbers);
    return 1;
  }
  if (status != CMKD_ERR_FORMAT || !strstr(err.message, "a.reference") || !strstr(err.message, "make gpu-reference"))
    fail_msg("status %d: %s", status, err.message);
  assert_true(!about && !numbers);
  return 0;
}

/* Writes the right hash over what follows it. */
static void seal(uint8_t *bytes, size_t size) {
  char hex[CMKD_SHA256_HEX];
  cmkd_sha256(bytes + HEAD_SIZE, size - HEAD_SIZE, hex);
  memcpy(bytes + MAGIC_SIZE, hex, CMKD_SHA256_HEX - 1);
}

static void mutate(const char *path, size_t few) {
  cmkd_error err = {0};
  cmkd_rng rng = cmkd_rng_start(5, CMKD_STREAM_TEST, 0);
  uint8_t *bytes;
  size_t size;
  assert_ok(cmkd_file_read(path, 1 << 24, &bytes, &size, &err));
  assert_true(parses(bytes, size));
  for (size_t n = 0; n < size; n += n < 200 || n + 20 > size ? 1 : 1 + size / few)
    assert_false(parses(bytes, n));
  for (int i = 0; i < 200; i++) {
    uint8_t *at = bytes + (i < 100 ? (size_t)i : cmkd_rng_below(&rng, (uint32_t)size));
    const uint8_t bit = (uint8_t)(1u << cmkd_rng_below(&rng, 8));
    *at ^= bit;
    assert_false(parses(bytes, size));
    *at ^= bit;
  }
  /* the same with the right hash: what is behind it must stand alone */
  for (size_t n = HEAD_SIZE; n < size; n += n < HEAD_SIZE + 200 || n + 20 > size ? 1 : 1 + size / few) {
    seal(bytes, n);
    assert_false(parses(bytes, n));
  }
  for (int i = 0; i < 200; i++) {
    uint8_t *at = bytes + HEAD_SIZE + (i < 100 ? (size_t)i : cmkd_rng_below(&rng, (uint32_t)(size - HEAD_SIZE)));
    const uint8_t old = *at;
    *at = (uint8_t)cmkd_rng_u32(&rng);
    seal(bytes, size);
    parses(bytes, size);
    *at = old;
  }
  free(bytes);
}

static void damaged(void **state) {
  (void)state;
  static const char *const how[] = {"head -c 0 %s > %s", "head -c 40 %s > %s", "head -c 5000 %s > %s",
                                    "tail -c +2 %s > %s", "(cat %s; echo) > %s"};
  char path[1300], command[4000];
  if (!agree) skip();
  mutate(step_file, 100);
  mutate(curve_file, 1 << 20);
  snprintf(path, sizeof path, "%s/damaged.reference", dir);
  for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
    snprintf(command, sizeof command, how[i], step_file, path);
    assert_int_equal(run_command(NULL, "%s", command), 0);
    refused(path, "damaged.reference", "--mode step " TINY);
  }
}

static void any_numbers(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_graph *graph;
  bench_answers a;
  cmkd_params start;
  cmkd_rng rng = cmkd_rng_start(6, CMKD_STREAM_TEST, 0);
  assert_ok(cmkd_net_build("resnet8", (cmkd_net_shape){16, 16, 3, 100}, &graph, &err));
  assert_ok(cmkd_params_create(graph, &start, &err));
  assert_ok(bench_answers_create(graph, 8, &a, &err));
  for (int i = 0; i < 8; i++) {
    const bench_packing packing = {graph, &start, 0.05, 5e-4, 8, i % 2 ? 64 : 0};
    const size_t size = bench_packed_size(&packing);
    uint8_t *packed = malloc(size);
    for (size_t j = 0; j < size; j++)
      packed[j] = (uint8_t)(i < 2 ? 0xff : cmkd_rng_u32(&rng));
    assert_int_equal(bench_answers_unpack(&packing, packed, &a, &err), CMKD_ERR_FORMAT);
    memset(packed, 0, size);
    assert_ok(bench_answers_unpack(&packing, packed, &a, &err));
    free(packed);
  }
  /* answers that a file could not hold */
  const bench_packing packing = {graph, &start, 0.05, 5e-4, 8, 0};
  uint8_t *packed = malloc(bench_packed_size(&packing));
  assert_ok(bench_answers_pack(&packing, &a, packed, &err));
  a.gradient.value[0][3] = NAN;
  assert_int_equal(bench_answers_pack(&packing, &a, packed, &err), CMKD_ERR_VALUE);
  a.gradient.value[0][3] = 1; /* and no momentum */
  assert_int_equal(bench_answers_pack(&packing, &a, packed, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, graph->param[0].name));
  free(packed);
  bench_answers_free(&a);
  cmkd_params_free(&start);
  cmkd_graph_free(graph);
}

/* step_file with other numbers or another description: `change` makes them. */
typedef void change(json_t *about, uint8_t *numbers, size_t *size);

static const char *changed(change *how) {
  static char path[1300];
  cmkd_error err = {0};
  json_t *about;
  uint8_t *numbers;
  size_t size;
  snprintf(path, sizeof path, "%s/changed.reference", dir);
  assert_ok(bench_reference_read(step_file, &about, &numbers, &size, &err));
  how(about, numbers, &size);
  assert_ok(bench_reference_write(path, about, numbers, size, &err));
  json_decref(about);
  free(numbers);
  return path;
}

static void nothing(json_t *about, uint8_t *numbers, size_t *size) {
  (void)about;
  (void)numbers;
  (void)size;
}
static void a_number_less(json_t *about, uint8_t *numbers, size_t *size) {
  (void)about;
  (void)numbers;
  --*size;
}
static void a_loss_of_nan(json_t *about, uint8_t *numbers, size_t *size) {
  (void)about;
  (void)size;
  memset(numbers, 0xff, sizeof(double));
}
static void no_cpu(json_t *about, uint8_t *numbers, size_t *size) {
  (void)numbers;
  (void)size;
  json_object_del(about, "steps");
}
static void no_backend(json_t *about, uint8_t *numbers, size_t *size) {
  (void)numbers;
  (void)size;
  json_object_del(about, "backend");
}
static void other_images(json_t *about, uint8_t *numbers, size_t *size) {
  (void)numbers;
  (void)size;
  json_object_set_new(json_object_get(about, "settings"), "images", json_string("0"));
}
static void another_loss(json_t *about, uint8_t *numbers, size_t *size) {
  (void)about;
  (void)size;
  double loss;
  memcpy(&loss, numbers, sizeof loss);
  loss *= 1.001;
  memcpy(numbers, &loss, sizeof loss);
}
/* The last comparison's planes come last: the first weight's lowest byte, then its highest. */
static uint8_t *plane_from_the_end(uint8_t *numbers, size_t size, int planes) {
  cmkd_graph *graph;
  assert_int_equal(cmkd_net_build("resnet8", (cmkd_net_shape){16, 16, 3, 100}, &graph, NULL), CMKD_OK);
  const size_t plane = (size_t)cmkd_graph_parameters(graph);
  cmkd_graph_free(graph);
  return numbers + size - (size_t)planes * plane;
}
static void a_rounding(json_t *about, uint8_t *numbers, size_t *size) {
  (void)about;
  ++*plane_from_the_end(numbers, *size, 1);
}
static void another_gradient(json_t *about, uint8_t *numbers, size_t *size) {
  (void)about;
  *plane_from_the_end(numbers, *size, 3) ^= 1;
}

static void wrong_answers(void **state) {
  (void)state;
  static const struct {
    change *how;
    int within;
  } found[] = {{nothing, 1}, {a_rounding, 1}, {another_loss, 0}, {another_gradient, 0}};
  if (!agree) skip();
  for (size_t i = 0; i < sizeof found / sizeof *found; i++) {
    json_t *o = ANSWER("--mode step " TINY " --device cpu --against %s", changed(found[i].how));
    assert_int_equal(is_within(o), found[i].within);
    if (found[i].how == another_gradient) {
      json_t *gradients = json_object_get(step_of(o, 2), "gradients");
      assert_string_equal(json_string_value(json_object_get(gradients, "in")), "conv1.weight");
      assert_true(real_of(gradients, "largest") > 1e-4);
    }
    json_decref(o);
  }
  refused(changed(a_number_less), "size", "--mode step " TINY);
  refused(changed(a_loss_of_nan), "not finite", "--mode step " TINY);
  refused(changed(no_cpu), "how far the CPU", "--mode step " TINY);
  refused(changed(no_backend), "who computed it", "--mode step " TINY);
  refused(changed(other_images), "images", "--mode step " TINY);
}

/* The emulated GPU's steps and curve beside what was computed without it. */
static void on_a_gpu(void **state) {
  (void)state;
  const char *build = getenv("CMKD_BUILD");
  char plugin[1300];
  if (!agree) skip();
  snprintf(plugin, sizeof plugin, "%s/simt/libcmkd-cuda.so", build ? build : "build");
  if (access(plugin, R_OK) != 0) {
    printf("SKIP: %s is not built\n", plugin);
    skip();
  }
  setenv("CMKD_CUDA_PLUGIN", plugin, 1);
  setenv("CMKD_CUDA_PLANS", "", 1);
  setenv("CMKD_CUDA_SELFCHECK", "0", 1); /* slow in emulation */
  json_t *step = ANSWER("--mode step " TINY " --device cuda --precision fp32 --against %s", step_file);
  assert_true(is_within(step));
  assert_non_null(strstr(json_string_value(json_object_get(step, "backend")), "emulated, fp32"));
  assert_true(real_of(json_object_get(step_of(step, 1), "gradients"), "largest") > 0);
  json_t *curve = ANSWER(CURVE " --steps 9 --device cuda --precision bf16 --against %s", curve_file);
  assert_true(is_within(curve));
  assert_non_null(strstr(json_string_value(json_object_get(curve, "against")), "(curve.reference)"));
  assert_true(real_of(curve, "apart") > 0 && real_of(curve, "yardstick") > 0);
  json_decref(step);
  json_decref(curve);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_step_file_is_the_reference),
                                     cmocka_unit_test(a_curve_file_is_the_cpu),
                                     cmocka_unit_test(of_another_run),
                                     cmocka_unit_test(damaged),
                                     cmocka_unit_test(any_numbers),
                                     cmocka_unit_test(wrong_answers),
                                     cmocka_unit_test(on_a_gpu)};
  return cmocka_run_group_tests(tests, setup, NULL);
}
