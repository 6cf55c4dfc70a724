/* The CPU backend against the double reference: losses, figures, every gradient, several steps, partial batches, thread
 * counts; inference with batch norm folded; determinism; who sits beside a row does not matter. Every network is run
 * with each way of convolving. */
#include "tests/support_backend.h"
#include <math.h>
#include "base/cpu.h"
#include "base/limits.h"
#include "kernels/cpu/conv/dnnl.h"
#include "kernels/cpu/kernels.h"

static cmkd_error err;

/* Four steps of falling size on both sides: gradients after the first, momentum and parameters after the first two,
 * results after each, parameters and logits at the end. */
static void train_both(network *make, int threads, int nesterov) {
  static const int counts[] = {7, 7, 3, 5};
  cmkd_graph *graph = make();
  data d = make_data(graph->tensor[0].h, graph->tensor[0].w, graph->tensor[0].c);
  cmkd_loss *loss = loss_of("ce+kd");
  cmkd_params start = start_params(graph), a, b;
  assert_ok(cmkd_params_create(graph, &a, &err));
  assert_ok(cmkd_params_create(graph, &b, &err));
  side cpu = open_side(&cmkd_backend_cpu, threads, NULL, graph, &d, loss, 7, nesterov),
       ref = open_side(&cmkd_backend_ref, 1, NULL, graph, &d, loss, 7, nesterov);
  assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_ok(ref.table->upload(ref.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  for (int i = 0, first = 0; i < 4; first += counts[i++]) {
    cmkd_step step = step_of(&d, first, counts[i], 0.05);
    cmkd_step_result x, y;
    int k = 1;
    assert_ok(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, &err));
    assert_ok(ref.table->run(ref.model, CMKD_LIST_TRAIN, ref.images, &step, 1, NULL, &err));
    assert_ok(cpu.table->read(cpu.model, &x, &k, &err));
    assert_int_equal(k, 1);
    assert_ok(ref.table->read(ref.model, &y, &k, &err));
    close_to(x.loss.loss, y.loss.loss, i ? 5e-3 : 1e-5, "loss", graph->arch);
    assert_int_equal(x.count, counts[i]);
    assert_int_equal(x.agreement.rows, counts[i]);
    if (i > 1) continue;
    assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_MOMENTUM, a.value, &err));
    assert_ok(ref.table->download(ref.model, CMKD_SLOT_MOMENTUM, b.value, &err));
    compare_params(graph, &a, &b, 1e-2, i ? 1e-2 : 2e-4, i ? "momentum after two steps" : "momentum after one step");
    assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_VALUE, a.value, &err));
    assert_ok(ref.table->download(ref.model, CMKD_SLOT_VALUE, b.value, &err));
    compare_params(graph, &a, &b, i ? 1e-3 : 1e-4, i ? 2e-3 : 1e-4,
                   i ? "value after two steps" : "value after one step");
    if (i) continue;
    assert_int_equal(x.top1, y.top1);
    assert_int_equal(x.top5, y.top5);
    close_to(x.agreement.pearson, y.agreement.pearson, 1e-4, "Pearson", graph->arch);
    assert_ok(cpu.table->gradients(cpu.model, a.value, &err));
    assert_ok(ref.table->gradients(ref.model, b.value, &err));
    compare_params(graph, &a, &b, 1e-2, 2e-4,
                   "gradient"); /* the floor: a bias in front of a batch norm has no gradient but rounding */
  }
  assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_VALUE, a.value, &err));
  assert_ok(ref.table->download(ref.model, CMKD_SLOT_VALUE, b.value, &err));
  compare_params(graph, &a, &b, 1e-3, 1e-2, "value");
  float x[7 * CLASSES], y[7 * CLASSES];
  cmkd_step step = step_of(&d, 30, 7, 0);
  assert_ok(ref.table->upload(ref.model, CMKD_SLOT_VALUE, (const float *const *)a.value, &err));
  assert_ok(cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){x},
                           &err)); /* folded anew after training */
  assert_ok(ref.table->run(ref.model, CMKD_LIST_INFER, ref.images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){y}, &err));
  assert_true(distance(x, y, 7 * CLASSES, 0) < 1e-5);
  close_side(&cpu);
  close_side(&ref);
  cmkd_params_free(&start);
  cmkd_params_free(&a);
  cmkd_params_free(&b);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

static void set_conv(void **state) {
  if (*state)
    setenv("CMKD_CONV", *state, 1);
  else
    unsetenv("CMKD_CONV");
}

static void test_resnets(void **state) {
  set_conv(state);
  train_both(net_resnet8, 1, 0);
  train_both(net_resnet8, 2, 1);
  train_both(net_resnet14_grey, 3, 0);
  train_both(net_resnet8_pad, 2, 0);
  train_both(net_resnet8x4, 2, 0);
}
static void test_every_op(void **state) {
  set_conv(state);
  train_both(net_mixed, 2, 0);
  train_both(net_preact, 2, 1);
}
static void test_grouped(void **state) {
  set_conv(state);
  train_both(net_grouped, 1, 0);
  train_both(net_grouped, 3, 0);
}

/* What older machines run, and this one's best. */
static void trains_with(void **state, cmkd_isa isa) {
  if (!use_isa(isa)) skip();
  assert_string_equal(cmkd_cpu_kernels_get()->name, cmkd_isa_name(isa));
  set_conv(state);
  train_both(net_resnet8, 2, 0);
  train_both(net_grouped, 2, 0);
  train_both(net_mixed, 1, 0);
  use_best_isa();
}
static void test_baseline(void **state) { trains_with(state, CMKD_ISA_BASELINE); }
static void test_avx2(void **state) { trains_with(state, CMKD_ISA_AVX2); }
static void test_avx512(void **state) { trains_with(state, CMKD_ISA_AVX512); }

static void test_infer(void **state) {
  set_conv(state);
  network *const nets[] = {net_resnet8, net_resnet8_pad, net_mixed, net_grouped, net_preact};
  for (size_t n = 0; n < sizeof nets / sizeof *nets; n++)
    infers_as_the_reference(&cmkd_backend_cpu, 2, NULL, nets[n], 1e-5);
}

static void test_rows_alone(void **state) {
  set_conv(state);
  rows_stand_alone(&cmkd_backend_cpu, 3);
}

/* The same run twice gives the same bytes, also when it is interrupted by inference and read in one go. */
static void test_deterministic(void **state) {
  set_conv(state);
  cmkd_graph *graph = net_resnet8();
  data d = make_data(12, 12, 3);
  cmkd_loss *loss = loss_of("cmkd");
  cmkd_params start = start_params(graph), end[2];
  cmkd_step_result results[2][3];
  for (int run = 0; run < 2; run++) {
    side cpu = open_side(&cmkd_backend_cpu, 3, NULL, graph, &d, loss, 16, 0);
    assert_ok(cmkd_params_create(graph, &end[run], &err));
    assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    cmkd_step steps[] = {step_of(&d, 0, 16, 0.1), step_of(&d, 16, 16, 0.1), step_of(&d, 32, 5, 0.1)};
    float logits[5 * CLASSES];
    int k = 3;
    if (run) {
      for (int i = 0; i < 3; i++) {
        assert_ok(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &steps[i], 1, NULL, &err));
        assert_ok(cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, &steps[2], 1,
                                 (float *[CMKD_MAX_OUTPUTS]){logits}, &err));
      }
    } else
      assert_ok(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, steps, 3, NULL, &err));
    assert_ok(cpu.table->read(cpu.model, results[run], &k, &err));
    assert_int_equal(k, 3);
    assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_VALUE, end[run].value, &err));
    close_side(&cpu);
  }
  for (int i = 0; i < graph->params; i++)
    assert_memory_equal(end[0].value[i], end[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
  for (int i = 0; i < 3; i++)
    assert_true(results[0][i].loss.loss == results[1][i].loss.loss && results[0][i].top1 == results[1][i].top1);
  for (int run = 0; run < 2; run++)
    cmkd_params_free(&end[run]);
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* Broken weights or labels stop the step: the row is named, nothing is changed. */
static void test_bad_values(void **state) {
  set_conv(state);
  cmkd_graph *graph = net_resnet8();
  data d = make_data(12, 12, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_params start = start_params(graph), end;
  assert_ok(cmkd_params_create(graph, &end, &err));
  side cpu = open_side(&cmkd_backend_cpu, 2, NULL, graph, &d, loss, 8, 0);
  cmkd_step_result result;
  int k = 1, last = graph->params - 1;
  cmkd_step step = step_of(&d, 0, 8, 0.1);
  float good = start.value[last][3], logits[8 * CLASSES];
  start.value[last][3] = INFINITY;
  assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_int_equal(
      cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){logits}, &err),
      CMKD_ERR_VALUE);
  assert_int_equal(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, &err), CMKD_ERR_VALUE);
  assert_ok(cpu.table->read(cpu.model, &result, &k, &err));
  assert_int_equal(k, 1);
  assert_int_equal(result.loss.bad_row, 0);
  start.value[last][3] = good;
  assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  int32_t label = d.labels[d.rows[5]];
  d.labels[d.rows[5]] = CLASSES;
  assert_int_equal(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, &err), CMKD_ERR_VALUE);
  assert_ok(cpu.table->read(cpu.model, &result, &k, &err));
  int first = 0;
  while (d.labels[d.rows[first]] != CLASSES)
    first++;
  assert_int_equal(result.loss.bad_row, first);
  d.labels[d.rows[5]] = label;
  assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_VALUE, end.value, &err));
  for (int i = 0; i < graph->params; i++)
    assert_memory_equal(start.value[i], end.value[i], sizeof(float) * (size_t)graph->param[i].count);
  assert_ok(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, &err));
  step.count = 9;
  assert_int_equal(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, &err), CMKD_ERR_VALUE);
  close_side(&cpu);
  cmkd_params_free(&start);
  cmkd_params_free(&end);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* Refusals in one line. */
static void test_refusals(void **state) {
  set_conv(state);
  cmkd_backend *backend = NULL;
  cmkd_be_model *model = NULL;
  assert_int_equal(cmkd_backend_cpu.open(&(cmkd_backend_options){.precision = "bf16"}, &backend, &err),
                   CMKD_ERR_UNSUPPORTED);
  assert_int_equal(cmkd_backend_cpu.open(&(cmkd_backend_options){.threads = -1}, &backend, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_backend_cpu.open(&(cmkd_backend_options){.threads = CMKD_MAX_THREADS + 1}, &backend, &err),
                   CMKD_ERR_USAGE);
  assert_ok(cmkd_backend_cpu.open(NULL, &backend, &err));
  assert_non_null(strstr(cmkd_backend_cpu.describe(backend), "cpu: "));
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_build("resnet20", (cmkd_net_shape){2048, 2048, 3, CLASSES}, &graph, &err));
  cmkd_loss *loss = loss_of("ce");
  cmkd_model_config config = {.graph = graph, .batch = CMKD_MAX_BATCH, .train = 1, .loss = loss, .std = {1, 1, 1}};
  assert_int_equal(cmkd_backend_cpu.model_create(backend, &config, &model, &err), CMKD_ERR_MEMORY);
  assert_non_null(strstr(err.message, "--batch"));
  config.batch = CMKD_MAX_BATCH + 1;
  assert_int_equal(cmkd_backend_cpu.model_create(backend, &config, &model, &err), CMKD_ERR_VALUE);
  config.batch = 1;
  config.std[1] = 0;
  assert_int_equal(cmkd_backend_cpu.model_create(backend, &config, &model, &err), CMKD_ERR_VALUE);
  cmkd_backend_cpu.close(backend);
  cmkd_loss_free(loss);
  cmkd_graph_free(graph);
}

#define WITH(conv) \
  {"resnets " conv, test_resnets, NULL, NULL, conv}, {"every op " conv, test_every_op, NULL, NULL, conv}, \
      {"grouped " conv, test_grouped, NULL, NULL, conv}, {"infer " conv, test_infer, NULL, NULL, conv}, \
      {"rows alone " conv, test_rows_alone, NULL, NULL, conv}, { \
    "deterministic " conv, test_deterministic, NULL, NULL, conv \
  }
int main(void) {
  const struct CMUnitTest tests[] = {WITH("direct"),
                                     {"test_baseline", test_baseline, NULL, NULL, "direct"},
                                     {"test_avx2", test_avx2, NULL, NULL, "direct"},
                                     {"test_avx512", test_avx512, NULL, NULL, "direct"},
                                     cmocka_unit_test(test_bad_values),
                                     cmocka_unit_test(test_refusals)};
  const struct CMUnitTest onednn[] = {WITH("onednn")};
  int failed = cmocka_run_group_tests_name("cpu_backend", tests, NULL, NULL);
  if (cmkd_conv_dnnl_available()) return failed + cmocka_run_group_tests_name("cpu_backend_onednn", onednn, NULL, NULL);
  printf("SKIP: convolutions by oneDNN: not in this build\n");
  return failed;
}
