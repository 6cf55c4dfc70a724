/* What the CUDA backend refuses and how it fails: bad values, a device that computes something else, memory that runs
 * out at any allocation, launches that fail. */
#include <math.h>
#include "tests/simt/backend.h"

cmkd_status cmkd_cuda_selfcheck(const cmkd_backend_table *table, cmkd_backend *backend,
                                cmkd_error *err); /* kernels/cuda/selfcheck.c */

/* Broken weights or labels stop the run at that step: the row is named, steps queued behind it change nothing, and
 * training may go on. */
static void bad_values_stop(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_params start = start_params(graph), good, end;
  assert_ok(cmkd_params_create(graph, &good, &err));
  assert_ok(cmkd_params_create(graph, &end, &err));
  side s = open_side(cuda, 0, NULL, graph, &d, loss, 8, 0);
  cmkd_step_result results[8];
  int k = 8, row = 0;
  cmkd_step steps[4] = {step_of(&d, 0, 8, 0.1), step_of(&d, 8, 8, 0.1), step_of(&d, 16, 8, 0.1),
                        step_of(&d, 24, 8, 0.1)};
  for (int i = 0; i < 4; i++)
    steps[i].target[CMKD_TARGET_TEACHER].values = NULL;
  assert_ok(s.table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_ok(s.table->run(s.model, CMKD_LIST_TRAIN, s.images, steps, 1, NULL, &err));
  assert_ok(s.table->download(s.model, CMKD_SLOT_VALUE, good.value, &err));
  uint32_t image = IMAGES;
  for (uint32_t i = 0; i < IMAGES && image == IMAGES; i++) { /* one that the second step has and the first has not */
    int in0 = 0, in1 = 0;
    for (int j = 0; j < 8; j++)
      in0 |= steps[0].rows[j] == i, in1 |= steps[1].rows[j] == i;
    if (in1 && !in0) image = i;
  }
  int32_t label = d.labels[image];
  d.labels[image] = CLASSES;
  while (steps[1].rows[row] != image)
    row++;
  cmkd_status status = s.table->run(s.model, CMKD_LIST_TRAIN, s.images, steps + 1, 3, NULL, &err);
  assert_true(status == CMKD_OK || status == CMKD_ERR_VALUE);
  assert_int_equal(s.table->read(s.model, results, &k, &err), CMKD_ERR_VALUE);
  assert_int_equal(k, 2);
  assert_int_equal(results[0].loss.bad_row, -1);
  assert_int_equal(results[1].loss.bad_row, row);
  assert_ok(s.table->download(s.model, CMKD_SLOT_VALUE, end.value, &err));
  for (int i = 0; i < graph->params; i++)
    assert_memory_equal(good.value[i], end.value[i], sizeof(float) * (size_t)graph->param[i].count);
  d.labels[image] = label;
  assert_ok(s.table->run(s.model, CMKD_LIST_TRAIN, s.images, steps + 1, 3, NULL, &err));
  k = 8;
  assert_ok(s.table->read(s.model, results, &k, &err));
  assert_int_equal(k, 3);
  int last = graph->params - 1;
  float logits[8 * CLASSES];
  start.value[last][3] = INFINITY;
  assert_ok(s.table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_int_equal(
      s.table->run(s.model, CMKD_LIST_INFER, s.images, steps, 1, (float *[CMKD_MAX_OUTPUTS]){logits}, &err),
      CMKD_ERR_VALUE);
  assert_ok(s.table->run(s.model, CMKD_LIST_TRAIN, s.images, steps, 1, NULL, &err));
  k = 8;
  assert_int_equal(s.table->read(s.model, results, &k, &err), CMKD_ERR_VALUE);
  assert_int_equal(results[0].loss.bad_row, 0);
  steps[0].count = 9;
  assert_int_equal(s.table->run(s.model, CMKD_LIST_TRAIN, s.images, steps, 1, NULL, &err), CMKD_ERR_VALUE);
  close_side(&s);
  cmkd_params_free(&start);
  cmkd_params_free(&good);
  cmkd_params_free(&end);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* A device that takes other steps than the CPU, by 2 % or with a loss that is off, is not opened; a good one passes in
 * every precision. */
static cmkd_status wrong_run(cmkd_be_model *model, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps,
                             int k, float *const *outputs, cmkd_error *error) {
  cmkd_step changed[8];
  memcpy(changed, steps, (size_t)k * sizeof *steps);
  for (int i = 0; i < k; i++)
    changed[i].lr *= 1.02;
  return cuda->run(model, list, images, changed, k, outputs, error);
}

static cmkd_status wrong_read(cmkd_be_model *model, cmkd_step_result *results, int *k, cmkd_error *error) {
  CMKD_TRY(cuda->read(model, results, k, error));
  results[0].loss.loss *= 1.01;
  return CMKD_OK;
}

static void a_device_that_computes_something_else_is_refused(void **state) {
  (void)state;
  NEED_GPU();
  static const char *const precisions[] = {"fp32", "tf32", "fp16", "bf16"};
  unsetenv("CMKD_CUDA_SELFCHECK");
  for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
    cmkd_backend *backend;
    cmkd_backend_table other = *cuda, third = *cuda;
    other.run = wrong_run;
    third.read = wrong_read;
    const cmkd_backend_options options = options_of(0, precisions[i]);
    assert_ok(cuda->open(&options, &backend, &err));
    if (i == 0) assert_int_equal(GPU(cmkd_cuda_selfcheck)(&other, backend, &err), CMKD_ERR_DEVICE);
    assert_int_equal(GPU(cmkd_cuda_selfcheck)(&third, backend, &err), CMKD_ERR_DEVICE);
    assert_non_null(strstr(err.message, "--device cpu"));
    cuda->close(backend);
  }
}

static void refusals_are_one_line(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_backend *backend = NULL;
  cmkd_backend_options options = options_of(0, "fp8");
  assert_int_equal(cuda->open(&options, &backend, &err), CMKD_ERR_USAGE);
  assert_non_null(strstr(err.message, "bf16"));
  options = options_of(0, NULL);
  options.device = 99;
  assert_int_equal(cuda->open(&options, &backend, &err), CMKD_ERR_UNSUPPORTED);
  assert_null(backend);
}

#ifndef ON_DEVICE
/* Memory that runs out at any allocation: one line with what is needed and what to do, nothing leaks, and with enough
 * memory all is well. */
static void out_of_memory_says_what_to_do(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_model_config config = {.graph = graph,
                              .batch = 4,
                              .train = 1,
                              .mean = {.5f, .5f, .5f},
                              .std = {.25f, .25f, .25f},
                              .policy = CMKD_AUGMENT_CROP_FLIP,
                              .loss = loss,
                              .kappa = 2};
  const size_t before = cmkd_simt_memory_used();
  int refused = 0, again = 0, worked = 0;
  for (size_t limit = 1 << 14; limit < (size_t)1 << 28 && !worked; limit += limit / 8) {
    cmkd_backend *backend = NULL;
    cmkd_be_images *images = NULL;
    cmkd_be_model *model = NULL;
    cmkd_step step = step_of(&d, 0, 4, 0.1);
    cmkd_step_result result;
    int k = 1;
    cmkd_simt_memory(limit);
    const cmkd_backend_options options = options_of(0, NULL);
    const cmkd_image_set set = set_of(&d);
    cmkd_status status = cuda->open(&options, &backend, &err);
    if (status == CMKD_OK) status = cuda->images_create(backend, &set, &images, &err);
    if (status == CMKD_OK) status = cuda->model_create(backend, &config, &model, &err);
    if (status == CMKD_OK) status = cuda->run(model, CMKD_LIST_TRAIN, images, &step, 1, NULL, &err);
    if (status == CMKD_OK) status = cuda->read(model, &result, &k, &err);
    if (status == CMKD_OK)
      worked = 1;
    else {
      refused++;
      assert_int_equal(status, CMKD_ERR_MEMORY);
      assert_non_null(strstr(err.message, "--batch"));
      cmkd_simt_memory(0);
      if (model) { /* nothing of the refusal sticks */
        assert_ok(cuda->run(model, CMKD_LIST_TRAIN, images, &step, 1, NULL, &err));
        assert_ok(cuda->read(model, &result, &k, &err));
        again++;
      }
    }
    cuda->model_free(model);
    cuda->images_free(images);
    cuda->close(backend);
    assert_int_equal(cmkd_simt_memory_used(), before);
  }
  cmkd_simt_memory(0);
  assert_true(refused > 1 && again && worked);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* A device that fails in the middle: the failure reaches the caller of run, read or download as CMKD_ERR_DEVICE, and
 * everything can be freed. */
static void a_failing_device_is_told(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_params start = start_params(graph);
  for (int check = 0; check < 2; check++)
    for (long launch = 0; launch < 60; launch += 19) {
      if (check) setenv("CMKD_CUDA_CHECK", "1", 1);
      side s = open_side(cuda, 0, NULL, graph, &d, loss, 4, 0);
      cmkd_step step = step_of(&d, 0, 4, 0.1);
      cmkd_step_result result;
      int k = 1;
      step.target[CMKD_TARGET_TEACHER].values = NULL;
      assert_ok(s.table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
      assert_ok(s.table->run(s.model, CMKD_LIST_TRAIN, s.images, &step, 1, NULL, &err));
      assert_ok(s.table->read(s.model, &result, &k, &err));
      cmkd_simt_fail_launch(launch);
      cmkd_status status = s.table->run(s.model, CMKD_LIST_TRAIN, s.images, &step, 1, NULL, &err);
      if (status == CMKD_OK) status = s.table->read(s.model, &result, &k, &err);
      assert_int_equal(status, CMKD_ERR_DEVICE);
      if (check && launch == 19) assert_non_null(strstr(err.message, "of operation"));
      assert_int_equal(s.table->download(s.model, CMKD_SLOT_VALUE, start.value, &err), CMKD_ERR_DEVICE);
      close_side(&s);
      cmkd_simt_reset();
      (void)cmkd_simt_problem();
      unsetenv("CMKD_CUDA_CHECK");
    }
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

#endif

int main(void) {
  struct CMUnitTest tests[] = {
      TEST(bad_values_stop),
      TEST(a_device_that_computes_something_else_is_refused),
      TEST(refusals_are_one_line),
#ifndef ON_DEVICE
      TEST(out_of_memory_says_what_to_do),
      TEST(a_failing_device_is_told),
#endif
  };
  return RUN_TESTS(tests);
}
