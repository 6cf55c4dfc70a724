/* Trained teachers, batch norm folded, at the padded batch the cache builder uses: their logits against float64
 * PyTorch, and against themselves when the rows change places. The tiny one is checked in (tests/data), so that this
 * comparison is made on every machine; those of CIFAR's size need the shared material. */
#include "tests/support.h"
#include <math.h>
#include <unistd.h>
#include "base/program/environment.h"
#include "cmkd/dataset.h"
#include "kernels/backend.h"
#include "kernels/cpu/kernels.h"
#include "nets/net.h"

static cmkd_error err;

typedef struct golden {
  const char *weights, *logits, *data; /* files; data set with its folder */
  const char *device;
  uint32_t rows, batch; /* rows: the first ones of the test split, a multiple of batch */
  double limit;         /* of the difference, relative to the largest logit */
} golden;

/* The rows of the first batch in another order give the same bits. */
static void compare_turned(const golden *g, const cmkd_backend_table *t, cmkd_be_model *model,
                           const cmkd_be_images *images, const float *logits, size_t classes) {
  uint32_t *turned = malloc(g->batch * sizeof *turned);
  float *again = malloc(g->batch * classes * sizeof *again);
  for (uint32_t i = 0; i < g->batch; i++)
    turned[i] = (i * 37 + 11) % g->batch;
  const cmkd_step step = {.count = (int)g->batch, .rows = turned};
  assert_ok(t->run(model, CMKD_LIST_INFER, images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){again}, &err));
  for (uint32_t i = 0; i < g->batch; i++)
    assert_memory_equal(again + i * classes, logits + turned[i] * classes, classes * sizeof *logits);
  free(turned);
  free(again);
}

static void compare(const golden *g, const float *logits, const double *want, size_t count) {
  double largest = 0, scale = 0;
  for (size_t i = 0; i < count; i++) {
    largest = fmax(largest, fabs(logits[i] - want[i]));
    scale = fmax(scale, fabs(want[i]));
  }
  printf("note: %s on %s: largest difference %.2g of logits up to %.1f\n", g->weights, g->device, largest, scale);
  if (!(largest <= g->limit * scale)) fail_msg("%s: logits are off by %g, of %g", g->weights, largest, scale);
}

static void run(const golden *g) {
  cmkd_weights *weights, *expected;
  cmkd_dataset *data;
  cmkd_model_spec spec;
  cmkd_graph *graph;
  cmkd_params params;
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
  const cmkd_backend_table *t;
  cmkd_backend_options options = {.threads = 2};
  cmkd_environment_backend(&options);
  assert_ok(cmkd_backend_find(g->device, &options, &t, &err));
  assert_ok(cmkd_dataset_open(g->data, "test", NULL, &data, &err));
  assert_ok(cmkd_weights_read(g->weights, &weights, &err));
  assert_ok(cmkd_weights_read(g->logits, &expected, &err));
  assert_ok(cmkd_model_spec_read(weights, NULL, NULL, NULL, &spec, &err));
  assert_ok(cmkd_net_build(spec.arch, (cmkd_net_shape){data->height, data->width, data->channels, spec.classes}, &graph,
                           &err));
  assert_ok(cmkd_params_create(graph, &params, &err));
  assert_ok(cmkd_params_load(graph, weights, &params, &err));
  cmkd_model_config config = {.graph = graph,
                              .batch = (int)g->batch,
                              .mean = {spec.mean[0], spec.mean[1], spec.mean[2]},
                              .std = {spec.std[0], spec.std[1], spec.std[2]}};
  assert_ok(t->open(&options, &backend, &err));
  const cmkd_image_set set = {data->pixels, data->labels, data->n, data->height, data->width, data->channels};
  assert_ok(t->images_create(backend, &set, &images, &err));
  assert_ok(t->model_create(backend, &config, &model, &err));
  assert_ok(t->upload(model, CMKD_SLOT_VALUE, (const float *const *)params.value, &err));
  const size_t classes = (size_t)spec.classes;
  const cmkd_tensor *want = cmkd_weights_find(expected, "logits");
  assert_true(want && want->dtype == CMKD_F64 && want->count >= (int64_t)(g->rows * classes));
  uint32_t *rows = malloc(g->rows * sizeof *rows);
  float *logits = malloc(g->rows * classes * sizeof *logits);
  for (uint32_t i = 0; i < g->rows; i++)
    rows[i] = i;
  for (uint32_t i = 0; i < g->rows; i += g->batch) {
    const cmkd_step step = {.count = (int)g->batch, .rows = rows + i};
    assert_ok(
        t->run(model, CMKD_LIST_INFER, images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){logits + i * classes}, &err));
  }
  compare_turned(g, t, model, images, logits, classes);
  compare(g, logits, want->data, g->rows * classes);
  free(rows);
  free(logits);
  t->model_free(model);
  t->images_free(images);
  t->close(backend);
  cmkd_params_free(&params);
  cmkd_graph_free(graph);
  cmkd_weights_free(weights);
  cmkd_weights_free(expected);
  cmkd_dataset_close(data);
}

/* ---- the tiny one: on every backend and instruction set ---- */

#define TINY "tests/data/tiny-teacher"
enum { TINY_IMAGES = 40 };
static void tiny(const char *device, double limit) {
  run(&(golden){.weights = TINY "/teacher.safetensors",
                .logits = TINY "/logits.safetensors",
                .data = "fashion-mnist:" TINY,
                .device = device,
                .rows = TINY_IMAGES,
                .batch = TINY_IMAGES / 2,
                .limit = limit});
}

static void tiny_ref(void **state) {
  (void)state;
  tiny("ref", 1e-7); /* doubles, rounded to float at the end */
}
static void tiny_on_cpu(cmkd_isa isa) {
  if (!use_isa(isa)) skip();
  assert_string_equal(cmkd_cpu_kernels_get()->name, cmkd_isa_name(isa));
  tiny("cpu", 2e-6);
  use_best_isa();
}
static void tiny_cpu_baseline(void **state) {
  (void)state;
  tiny_on_cpu(CMKD_ISA_BASELINE);
}
static void tiny_cpu_avx2(void **state) {
  (void)state;
  tiny_on_cpu(CMKD_ISA_AVX2);
}
static void tiny_cpu_avx512(void **state) {
  (void)state;
  tiny_on_cpu(CMKD_ISA_AVX512);
}
static void tiny_cuda_emulated(void **state) {
  (void)state;
  const char *build = getenv("CMKD_BUILD");
  char plugin[1300];
  snprintf(plugin, sizeof plugin, "%s/simt/libcmkd-cuda.so", build ? build : "build");
  if (access(plugin, R_OK) != 0) {
    printf("SKIP: %s is not built\n", plugin);
    skip();
  }
  setenv("CMKD_CUDA_PLUGIN", plugin, 1);
  setenv("CMKD_CUDA_PLANS", "", 1);
  setenv("CMKD_CUDA_SELFCHECK", "0", 1);
  unsetenv("CMKD_CUDNN");
  tiny("cuda", 2e-6);
}

/* ---- those of the shared material ---- */

static void cifar(const char *name, const char *set) {
  char file[160], spec[1100];
  snprintf(file, sizeof file, "teachers/%s.safetensors", name);
  const char *weights = shared_path(file);
  snprintf(file, sizeof file, "golden/logits/logits-%s-test-first256.safetensors", name);
  const char *logits = shared_path(file), *folder = shared_cifar(set);
  if (!weights || !logits || !folder) skip();
  snprintf(spec, sizeof spec, "%s:%s", strcmp(set, "cifar-10") ? "cifar100" : "cifar10", folder);
  run(&(golden){
      .weights = weights, .logits = logits, .data = spec, .device = "cpu", .rows = 256, .batch = 128, .limit = 1e-5});
}
static void resnet20(void **state) {
  (void)state;
  cifar("resnet20-cifar100", "cifar-100");
}
static void resnet56(void **state) {
  (void)state;
  cifar("resnet56-cifar100", "cifar-100");
}
static void pad20(void **state) {
  (void)state;
  cifar("resnet20-padshortcut-cifar10", "cifar-10");
}
static void pad56(void **state) {
  (void)state;
  cifar("resnet56-padshortcut-cifar10", "cifar-10");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tiny_ref),
      cmocka_unit_test(tiny_cpu_baseline),
      cmocka_unit_test(tiny_cpu_avx2),
      cmocka_unit_test(tiny_cpu_avx512),
      cmocka_unit_test(tiny_cuda_emulated),
      cmocka_unit_test(resnet20),
      cmocka_unit_test(resnet56),
      cmocka_unit_test(pad20),
      cmocka_unit_test(pad56),
  };
  return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
