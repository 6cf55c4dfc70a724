/* Trained teachers on the CPU backend, batch norm folded, at the padded batch the cache builder uses: logits of 256
 * test images against float64 PyTorch, and against themselves when the rows change places. */
#include "base/program/environment.h"
#include "tests/support.h"
#include <math.h>
#include "cmkd/dataset.h"
#include "kernels/backend.h"
#include "nets/net.h"

static cmkd_error err;
enum { ROWS = 256, BATCH = 128 };

static void golden(const char *name, const char *set) {
  char file[160], spec_text[1100];
  snprintf(file, sizeof file, "teachers/%s.safetensors", name);
  const char *path = shared_path(file);
  snprintf(file, sizeof file, "golden/logits/logits-%s-test-first256.safetensors", name);
  const char *golden_path = shared_path(file), *folder = shared_cifar(set);
  if (!path || !golden_path || !folder) skip();
  cmkd_weights *weights, *expected;
  cmkd_dataset *data;
  cmkd_model_spec spec;
  cmkd_graph *graph;
  cmkd_params params;
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
  const cmkd_backend_table *t = &cmkd_backend_cpu;
  snprintf(spec_text, sizeof spec_text, "%s:%s", strcmp(set, "cifar-10") ? "cifar100" : "cifar10", folder);
  assert_ok(cmkd_dataset_open(spec_text, "test", NULL, &data, &err));
  assert_ok(cmkd_weights_read(path, &weights, &err));
  assert_ok(cmkd_weights_read(golden_path, &expected, &err));
  assert_ok(cmkd_model_spec_read(weights, NULL, NULL, NULL, &spec, &err));
  assert_ok(cmkd_net_build(spec.arch, (cmkd_net_shape){32, 32, 3, spec.classes}, &graph, &err));
  assert_ok(cmkd_params_create(graph, &params, &err));
  assert_ok(cmkd_params_load(graph, weights, &params, &err));
  cmkd_model_config config = {.graph = graph,
                              .batch = BATCH,
                              .mean = {spec.mean[0], spec.mean[1], spec.mean[2]},
                              .std = {spec.std[0], spec.std[1], spec.std[2]}};
  cmkd_backend_options options = {.threads = 2};
  cmkd_environment_backend(&options);
  assert_ok(t->open(&options, &backend, &err));
  assert_ok(
      t->images_create(backend, &(cmkd_image_set){data->pixels, data->labels, data->n, 32, 32, 3}, &images, &err));
  assert_ok(t->model_create(backend, &config, &model, &err));
  assert_ok(t->upload(model, CMKD_SLOT_VALUE, (const float *const *)params.value, &err));
  const size_t classes = (size_t)spec.classes;
  uint32_t rows[ROWS], turned[BATCH];
  for (uint32_t i = 0; i < ROWS; i++)
    rows[i] = i;
  for (uint32_t i = 0; i < BATCH; i++)
    turned[i] = (i * 37 + 11) % BATCH;
  float *logits = malloc(ROWS * classes * sizeof *logits), *again = malloc(BATCH * classes * sizeof *again);
  const cmkd_step steps[2] = {{.count = BATCH, .rows = rows}, {.count = BATCH, .rows = rows + BATCH}},
                  other = {.count = BATCH, .rows = turned};
  assert_ok(t->run(model, CMKD_LIST_INFER, images, steps, 2, (float *[CMKD_MAX_OUTPUTS]){logits}, &err));
  assert_ok(t->run(model, CMKD_LIST_INFER, images, &other, 1, (float *[CMKD_MAX_OUTPUTS]){again}, &err));
  for (uint32_t i = 0; i < BATCH; i++)
    assert_memory_equal(again + i * classes, logits + turned[i] * classes, classes * sizeof *logits);
  const double *want = cmkd_weights_find(expected, "logits")->data;
  double largest = 0, scale = 0;
  for (size_t i = 0; i < ROWS * classes; i++) {
    largest = fmax(largest, fabs(logits[i] - want[i]));
    scale = fmax(scale, fabs(want[i]));
  }
  printf("note: %s: largest difference %.2g of logits up to %.1f\n", name, largest, scale);
  if (!(largest <= 1e-5 * scale)) fail_msg("%s: logits are off by %g, of %g", name, largest, scale);
  free(logits);
  free(again);
  t->model_free(model);
  t->images_free(images);
  t->close(backend);
  cmkd_params_free(&params);
  cmkd_graph_free(graph);
  cmkd_weights_free(weights);
  cmkd_weights_free(expected);
  cmkd_dataset_close(data);
}

static void test_resnet20(void **state) {
  (void)state;
  golden("resnet20-cifar100", "cifar-100");
}
static void test_resnet56(void **state) {
  (void)state;
  golden("resnet56-cifar100", "cifar-100");
}
static void test_pad20(void **state) {
  (void)state;
  golden("resnet20-padshortcut-cifar10", "cifar-10");
}
static void test_pad56(void **state) {
  (void)state;
  golden("resnet56-padshortcut-cifar10", "cifar-10");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_resnet20), cmocka_unit_test(test_resnet56),
                                     cmocka_unit_test(test_pad20), cmocka_unit_test(test_pad56)};
  return cmocka_run_group_tests_name("cpu_golden", tests, NULL, NULL);
}
