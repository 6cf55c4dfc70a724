/* The CUDA backend against the double reference: losses, figures, every gradient, several steps through captured
 * graphs, partial batches; inference with batch norm folded; 16-bit precisions. */
#include <math.h>
#include "tests/simt/backend.h"

/* Relative; `later`: of a loss after CALM steps. From then on a ReLU that rounding flips may have set two runs of the
 * same arithmetic apart: in double and float the CPU backend drifts as far. */
typedef struct limits {
  double loss, later, gradient, value;
} limits;

enum { CALM = 6 };

/* Steps of several sizes on both sides, queued at once after the first. */
static void train_both(network *make, const char *precision, int nesterov, limits l) {
  static const int counts[] = {5, 5, 2, 5, 5, 5, 5, 5, 5, 5, 5, 3};
  enum { STEPS = sizeof counts / sizeof *counts };
  cmkd_graph *graph = make();
  data d = make_data(graph->tensor[0].h, graph->tensor[0].w, graph->tensor[0].c);
  cmkd_loss *loss = loss_of("dkd+cmkd");
  cmkd_params start = start_params(graph), a, b;
  assert_ok(cmkd_params_create(graph, &a, &err));
  assert_ok(cmkd_params_create(graph, &b, &err));
  side gpu_side = open_side(cuda, 0, precision, graph, &d, loss, 5, nesterov),
       ref = open_side(&cmkd_backend_ref, 1, NULL, graph, &d, loss, 5, nesterov);
  assert_ok(gpu_side.table->upload(gpu_side.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_ok(ref.table->upload(ref.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  cmkd_step steps[STEPS];
  cmkd_step_result got[STEPS], want[STEPS];
  for (int i = 0, first = 0; i < STEPS; first += counts[i++]) {
    steps[i] = step_of(&d, first, counts[i], 0.02);
    steps[i].epoch = i + 1; /* the warm-up moves */
  }
  assert_ok(gpu_side.table->run(gpu_side.model, CMKD_LIST_TRAIN, gpu_side.images, steps, 1, NULL, &err));
  assert_ok(ref.table->run(ref.model, CMKD_LIST_TRAIN, ref.images, steps, 1, NULL, &err));
  assert_ok(gpu_side.table->gradients(gpu_side.model, a.value, &err));
  assert_ok(ref.table->gradients(ref.model, b.value, &err));
  compare_params(graph, &a, &b, 1e-2, l.gradient,
                 "gradient"); /* the floor: a bias in front of a batch norm has no gradient but rounding */
  assert_ok(gpu_side.table->download(gpu_side.model, CMKD_SLOT_VALUE, a.value, &err));
  assert_ok(ref.table->download(ref.model, CMKD_SLOT_VALUE, b.value, &err));
  compare_params(graph, &a, &b, 1e-4, l.value, "value after one step");
  assert_ok(gpu_side.table->download(gpu_side.model, CMKD_SLOT_MOMENTUM, a.value, &err));
  assert_ok(ref.table->download(ref.model, CMKD_SLOT_MOMENTUM, b.value, &err));
  compare_params(graph, &a, &b, 1e-2, l.gradient, "momentum after one step");
  assert_ok(gpu_side.table->run(gpu_side.model, CMKD_LIST_TRAIN, gpu_side.images, steps + 1, STEPS - 1, NULL, &err));
  assert_ok(ref.table->run(ref.model, CMKD_LIST_TRAIN, ref.images, steps + 1, STEPS - 1, NULL, &err));
  int k = STEPS;
  assert_ok(gpu_side.table->read(gpu_side.model, got, &k, &err));
  assert_int_equal(k, STEPS);
  assert_ok(ref.table->read(ref.model, want, &k, &err));
  for (int i = 0; i < STEPS; i++) {
    const double limit = !i ? l.loss : i < CALM ? 10 * l.loss : l.later;
    close_to(got[i].loss.loss, want[i].loss.loss, limit, "loss", graph->arch);
    for (int p = 0; p < cmkd_loss_parts(loss); p++)
      close_to(got[i].loss.part[p], want[i].loss.part[p], 10 * limit, cmkd_loss_part_name(loss, p), graph->arch);
    assert_int_equal(got[i].count, counts[i]);
    assert_int_equal(got[i].agreement.rows, counts[i]);
    assert_int_equal(got[i].loss.bad_row, -1);
    if (i) continue;
    close_to(got[i].agreement.pearson, want[i].agreement.pearson, 10 * l.loss, "Pearson", graph->arch);
    if (precision) continue;
    assert_int_equal(got[i].top1, want[i].top1);
    assert_int_equal(got[i].top5, want[i].top5);
  }
  assert_ok(gpu_side.table->download(gpu_side.model, CMKD_SLOT_VALUE, a.value, &err));
  assert_ok(ref.table->download(ref.model, CMKD_SLOT_VALUE, b.value, &err));
  compare_params(graph, &a, &b, 1e-3, 3 * l.later, "value");
  float x[7 * CLASSES], y[7 * CLASSES]; /* folded anew after training */
  cmkd_step step = step_of(&d, 50, 5, 0);
  assert_ok(ref.table->upload(ref.model, CMKD_SLOT_VALUE, (const float *const *)a.value, &err));
  assert_ok(gpu_side.table->run(gpu_side.model, CMKD_LIST_INFER, gpu_side.images, &step, 1,
                                (float *[CMKD_MAX_OUTPUTS]){x}, &err));
  assert_ok(ref.table->run(ref.model, CMKD_LIST_INFER, ref.images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){y}, &err));
  double off = distance(x, y, 5 * CLASSES, 0);
  if (!(off < (precision ? l.gradient : 1e-5))) fail_msg("%s: logits after training are off by %g", graph->arch, off);
  close_side(&gpu_side);
  close_side(&ref);
  cmkd_params_free(&start);
  cmkd_params_free(&a);
  cmkd_params_free(&b);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

static const limits fp32 = {2e-6, 3e-2, 5e-6, 1e-6};

static void resnet_trains(void **state) {
  (void)state;
  NEED_GPU();
  train_both(net_resnet8_pad, NULL, 0, fp32);
  train_both(net_resnet8, NULL, 1, fp32);
}

static void every_op_trains(void **state) {
  (void)state;
  NEED_GPU();
  train_both(net_mixed, NULL, 0, fp32);
}

static void grouped_trains(void **state) {
  (void)state;
  NEED_GPU();
  train_both(net_grouped, NULL, 0, fp32);
}

static void preact_trains(void **state) {
  (void)state;
  NEED_GPU();
  train_both(net_preact, NULL, 1, fp32);
}

static void sixteen_bits_train(void **state) {
  (void)state;
  NEED_GPU();
  train_both(net_preact, "fp16", 0,
             (limits){5e-3, 5e-2, 4e-2, 2e-3}); /* 11 bits: 0.05 % a rounding, some forty of them in a row, and flips */
  train_both(net_preact, "bf16", 0, (limits){2e-2, 8e-2, 0.12, 1e-2}); /* 8 bits: 0.4 % */
}

static void inference_folds(void **state) {
  (void)state;
  NEED_GPU();
  network *const nets[] = {net_resnet8_pad, net_mixed, net_grouped, net_preact};
  for (size_t i = 0; i < sizeof nets / sizeof *nets; i++)
    infers_as_the_reference(cuda, 0, NULL, nets[i], 1e-5);
  infers_as_the_reference(cuda, 0, "tf32", net_resnet14_grey, 1e-2);
  infers_as_the_reference(cuda, 0, "fp16", net_mixed, 1e-2);
  infers_as_the_reference(cuda, 0, "bf16", net_grouped, 5e-2);
}

static void rows_do_not_depend_on_neighbours(void **state) {
  (void)state;
  NEED_GPU();
  rows_stand_alone(cuda, 1);
}

int main(void) {
  struct CMUnitTest tests[] = {
      TEST(resnet_trains),
      TEST(every_op_trains),
      TEST(grouped_trains),
      TEST(preact_trains),
      TEST(sixteen_bits_train),
      TEST(inference_folds),
      TEST(rows_do_not_depend_on_neighbours),
  };
  return RUN_TESTS(tests);
}
