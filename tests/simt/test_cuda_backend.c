/* The CUDA backend as a whole, against the double reference and the CPU: losses, figures, every gradient, several steps
 * through captured graphs, partial batches, streamed images; inference with batch norm folded; 16-bit precisions;
 * determinism; bad values; devices that run out of memory or fail. In the emulation work is deferred until somebody
 * waits, so that memory reused too early shows. */
#include <jansson.h>
#include <math.h>
#include "formats/cache/codec.h"
#include "tests/simt/gpu.h"
#include "tests/support_backend.h"

const cmkd_backend_table *cmkd_backend_plugin(void); /* kernels/cuda/plugin.c */
cmkd_status cmkd_cuda_selfcheck(const cmkd_backend_table *table, cmkd_backend *backend,
                                cmkd_error *err); /* kernels/cuda/selfcheck.c */
static cmkd_error err;
static const cmkd_backend_table *cuda;

#ifdef ON_DEVICE
static void defer(int on) { (void)on; }
#else
static void defer(int on) { cmkd_simt_defer(on); }
#endif

static int setup(void **state) {
  (void)state;
  setenv("CMKD_CUDA_SELFCHECK", "0", 1); /* once is enough */
  const char *why;
  char plans[4096];
  /* One choice for all tests, or for all processes where it is set: who is a little faster changes from time to time,
   * and with it the bytes; and measuring takes most of the time. */
  snprintf(plans, sizeof plans, "%s/plans.json", scratch_dir());
  setenv("CMKD_CUDA_PLANS", plans, 0);
  if (!gpu) gpu = gpu_open(&why);
  if (gpu) cuda = GPU(cmkd_backend_plugin)();
  set_order(1, 1);
  defer(1);
  return 0;
}
static int teardown(void **state) {
  (void)state;
  defer(0);
  return 0;
}

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

/* A run of `steps` at one precision; the end's parameters and losses. */
typedef struct ran {
  cmkd_params end;
  cmkd_step_result result[20];
} ran;
static ran run_once(const cmkd_graph *graph, data *d, const char *precision, int at_once, int order) {
  ran r;
  cmkd_loss *loss = loss_of("cmkd");
  cmkd_params start = start_params(graph);
  side s = open_side(cuda, 0, precision, graph, d, loss, 4, 0);
  assert_ok(cmkd_params_create(graph, &r.end, &err));
  assert_ok(s.table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  set_order(order, 7);
  cmkd_step steps[12];
  float logits[4 * CLASSES];
  int k = 12;
  for (int i = 0; i < 12; i++)
    steps[i] = step_of(d, i * 4, i == 11 ? 2 : 4, 0.02);
  for (int i = 0; i < 12; i += at_once) {
    assert_ok(
        s.table->run(s.model, CMKD_LIST_TRAIN, s.images, steps + i, i + at_once > 12 ? 12 - i : at_once, NULL, &err));
    if (at_once == 1 && i == 5)
      assert_ok(s.table->run(s.model, CMKD_LIST_INFER, s.images, steps, 1, (float *[CMKD_MAX_OUTPUTS]){logits}, &err));
  }
  assert_ok(s.table->read(s.model, r.result, &k, &err));
  assert_int_equal(k, 12);
  assert_ok(s.table->download(s.model, CMKD_SLOT_VALUE, r.end.value, &err));
  close_side(&s);
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  return r;
}

static void same_run(const cmkd_graph *graph, ran *a, ran *b) {
  for (int i = 0; i < graph->params; i++)
    assert_memory_equal(a->end.value[i], b->end.value[i], sizeof(float) * (size_t)graph->param[i].count);
  for (int i = 0; i < 12; i++)
    assert_true(a->result[i].loss.loss == b->result[i].loss.loss && a->result[i].top1 == b->result[i].top1);
  cmkd_params_free(&b->end);
}

/* The same run gives the same bytes: in one go or step by step, with inference in between, in any order of threads,
 * with images on the device or streamed, with and without captured graphs. */
static void runs_are_the_same_bytes(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  ran first = run_once(graph, &d, NULL, 12, 0), again = run_once(graph, &d, NULL, 1, 1);
  same_run(graph, &first, &again);
  setenv("CMKD_CUDA_RESIDENT", "0", 1);
  again = run_once(graph, &d, NULL, 5, 2);
  unsetenv("CMKD_CUDA_RESIDENT");
  same_run(graph, &first, &again);
  setenv("CMKD_CUDA_CHECK", "1", 1);
  again = run_once(graph, &d, NULL, 12, 0);
  unsetenv("CMKD_CUDA_CHECK");
  same_run(graph, &first, &again);
  char path[4096];
  snprintf(path, sizeof path, "%s/profile.json", scratch_dir());
  setenv("CMKD_CUDA_PROFILE", path, 1);
  again = run_once(graph, &d, NULL, 12, 0);
  unsetenv("CMKD_CUDA_PROFILE");
  same_run(graph, &first, &again);
  json_t *profile = json_load_file(path, 0, NULL);
  assert_int_equal(json_integer_value(json_object_get(profile, "steps")), 11);
  assert_true(json_integer_value(json_object_get(profile, "kernels_per_step")) > 40);
  assert_true(json_number_value(json_object_get(json_object_get(profile, "ms"), "conv backward weights")) > 0);
  json_decref(profile);
  cmkd_params_free(&first.end);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* A run that is cut after six steps and goes on in another model with what was saved ends in the same bytes, fp16's
 * loss scale included; a text that nobody wrote is refused. */
static void a_cut_run_goes_on(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce+kd");
  cmkd_params start = start_params(graph), value[2], momentum[2];
  cmkd_step steps[12];
  for (int i = 0; i < 12; i++)
    steps[i] = step_of(&d, i * 4, 4, 0.02);
  for (int cut = 0; cut < 2; cut++) {
    assert_ok(cmkd_params_create(graph, &value[cut], &err));
    assert_ok(cmkd_params_create(graph, &momentum[cut], &err));
    side s = open_side(cuda, 0, "fp16", graph, &d, loss, 4, 0);
    assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, cut ? 6 : 12, NULL, &err));
    if (cut) {
      char *text;
      int used = 0;
      assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, value[1].value, &err));
      assert_ok(cuda->download(s.model, CMKD_SLOT_MOMENTUM, momentum[1].value, &err));
      assert_ok(cuda->save(s.model, &text, &err));
      assert_null(strchr(text, '\n'));
      close_side(&s);
      s = open_side(cuda, 0, "fp16", graph, &d, loss, 4, 0);
      static const char *const bad[] = {"", "{}", "[1]", "{\"plans\": {}, \"scale\": 0.5, \"good\": 1}",
                                        "{\"plans\": 3, \"scale\": 2, \"good\": -1}"};
      for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(cuda->load(s.model, bad[i], &used, &err), CMKD_ERR_FORMAT);
      assert_ok(cuda->load(s.model, text, &used, &err));
      assert_int_equal(used, 1);
      assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)value[1].value, &err));
      assert_ok(cuda->upload(s.model, CMKD_SLOT_MOMENTUM, (const float *const *)momentum[1].value, &err));
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps + 6, 6, NULL, &err));
      free(text);
    }
    assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, value[cut].value, &err));
    assert_ok(cuda->download(s.model, CMKD_SLOT_MOMENTUM, momentum[cut].value, &err));
    close_side(&s);
  }
  for (int i = 0; i < graph->params; i++) {
    assert_memory_equal(value[0].value[i], value[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
    assert_memory_equal(momentum[0].value[i], momentum[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
  }
  for (int cut = 0; cut < 2; cut++)
    cmkd_params_free(&value[cut]), cmkd_params_free(&momentum[cut]);
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* Teacher rows that are resident in any codec, picked by index, train as the same rows given as floats do, to the bit.
 */
static void resident_teacher_rows_are_the_same_bytes(void **state) {
  (void)state;
  NEED_GPU();
  enum { ROWS = 40 };
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("cmkd");
  cmkd_params start = start_params(graph), end[2];
  static const char *const codecs[] = {"f32", "f16", "u8sqrt"};
  for (size_t c = 0; c < sizeof codecs / sizeof *codecs; c++) {
    const cmkd_codec *codec;
    uint8_t stored[ROWS * CLASSES * 4], planes[sizeof stored];
    uint16_t top[ROWS], range[ROWS];
    float decoded[ROWS * CLASSES], rows[4 * 4 * CLASSES];
    uint32_t index[16];
    assert_ok(cmkd_codec_find(codecs[c], &codec, &err));
    codec->encode(d.teacher, ROWS, CLASSES, stored, top, range);
    cmkd_shuffle(stored, planes, ROWS * CLASSES, codec->item);
    cmkd_chunk_view chunk = {planes, ROWS * CLASSES, CLASSES, top, range};
    codec->decode(&chunk, 0, ROWS, decoded);
    for (int i = 0; i < 16; i++) {
      index[i] = (uint32_t)(i * 7 + 3) % ROWS;
      memcpy(rows + i * CLASSES, decoded + index[i] * CLASSES, sizeof(float) * CLASSES);
    }
    for (int resident = 0; resident < 2; resident++) {
      side s = open_side(cuda, 0, NULL, graph, &d, loss, 4, 0);
      cmkd_be_rows *store = NULL;
      cmkd_step steps[4];
      cmkd_step_result result[4];
      int k = 4;
      if (resident) {
        assert_ok(cuda->rows_create(s.backend, codecs[c], ROWS, CLASSES, &store, &err));
        for (int first = 0; first < ROWS; first += 8)
          assert_ok(cuda->rows_write(store, (uint64_t)first, 8, stored + (size_t)first * CLASSES * (size_t)codec->item,
                                     top + first, range + first, &err));
      }
      assert_ok(cmkd_params_create(graph, &end[resident], &err));
      for (int i = 0; i < 4; i++) {
        steps[i] = step_of(&d, i * 4, 4, 0.02);
        steps[i].target[CMKD_TARGET_TEACHER].values = resident ? NULL : rows + i * 4 * CLASSES;
        if (resident)
          steps[i].target[CMKD_TARGET_TEACHER].rows = store, steps[i].target[CMKD_TARGET_TEACHER].index = index + i * 4;
      }
      assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, 4, NULL, &err));
      assert_ok(cuda->read(s.model, result, &k, &err));
      assert_int_equal(result[3].agreement.rows, 4);
      assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, end[resident].value, &err));
      index[5] = ROWS;
      if (resident)
        assert_int_equal(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps + 1, 1, NULL, &err), CMKD_ERR_VALUE);
      if (resident) assert_int_equal(cuda->rows_write(store, ROWS - 1, 2, stored, top, range, &err), CMKD_ERR_VALUE);
      index[5] = (5 * 7 + 3) % ROWS;
      if (resident) cuda->rows_free(store);
      close_side(&s);
    }
    for (int i = 0; i < graph->params; i++)
      assert_memory_equal(end[0].value[i], end[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
    for (int i = 0; i < 2; i++)
      cmkd_params_free(&end[i]);
  }
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

static void rows_do_not_depend_on_neighbours(void **state) {
  (void)state;
  NEED_GPU();
  rows_stand_alone(cuda, 1);
}

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

/* More steps than the queue has slots for, in one go or in several, with a teacher that comes along later: the same
 * bytes. */
static void long_runs_go_in_parts(void **state) {
  (void)state;
  NEED_GPU();
  enum { STEPS = 75 };
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_params start = start_params(graph), end[2];
  cmkd_step steps[STEPS];
  static cmkd_step_result result[2][STEPS];
  static float logits[2][STEPS * CLASSES];
  for (int i = 0; i < STEPS; i++) {
    steps[i] = step_of(&d, i % 40, 1, 0.001);
    if (i < 20) steps[i].target[CMKD_TARGET_TEACHER].values = NULL;
  }
  for (int parts = 0; parts < 2; parts++) {
    side s = open_side(cuda, 0, NULL, graph, &d, loss, 1, 0);
    int k = STEPS;
    assert_ok(cmkd_params_create(graph, &end[parts], &err));
    assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    if (!parts) assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, STEPS, NULL, &err));
    for (int i = 0; parts && i < STEPS; i += 15)
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps + i, 15, NULL, &err));
    assert_ok(cuda->read(s.model, result[parts], &k, &err));
    assert_int_equal(k, STEPS);
    assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, end[parts].value, &err));
    if (!parts)
      assert_ok(
          cuda->run(s.model, CMKD_LIST_INFER, s.images, steps, STEPS, (float *[CMKD_MAX_OUTPUTS]){logits[0]}, &err));
    for (int i = 0; parts && i < STEPS; i += 15)
      assert_ok(cuda->run(s.model, CMKD_LIST_INFER, s.images, steps + i, 15,
                          (float *[CMKD_MAX_OUTPUTS]){logits[1] + i * CLASSES}, &err));
    close_side(&s);
  }
  for (int i = 0; i < STEPS; i++)
    assert_true(result[0][i].loss.loss == result[1][i].loss.loss && result[0][i].agreement.rows == (i >= 20) &&
                result[1][i].agreement.rows == (i >= 20));
  for (int i = 0; i < graph->params; i++)
    assert_memory_equal(end[0].value[i], end[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
  assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
  for (int i = 0; i < 2; i++)
    cmkd_params_free(&end[i]);
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
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

/* A graph holds no kernel that has not been launched before, whatever kind of teacher comes along when: loading may not
 * be possible in a capture. */
static void kernels_are_loaded_before_they_are_captured(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  static const char *const codecs[] = {"f32", "f16", "u8sqrt"};
  uint32_t index[4] = {0, 1, 0, 1};
  uint16_t planes[2] = {0x3C00, 0x3C00};
  float rows[2 * CLASSES] = {0}, logits[4 * CLASSES];
  cmkd_step step = step_of(&d, 0, 4, 0.02);
  side s = open_side(cuda, 0, "fp16", graph, &d, loss, 4, 0);
  cmkd_be_rows *store[3];
  cmkd_simt_unload();
  for (int kind = 0; kind < 5; kind++) {
    step.target[CMKD_TARGET_TEACHER].values = kind == 1 ? d.teacher : NULL;
    if (kind >= 2) {
      assert_ok(cuda->rows_create(s.backend, codecs[kind - 2], 2, CLASSES, &store[kind - 2], &err));
      assert_ok(cuda->rows_write(store[kind - 2], 0, 2, rows, planes, planes, &err));
      step.target[CMKD_TARGET_TEACHER].rows = store[kind - 2], step.target[CMKD_TARGET_TEACHER].index = index;
    }
    for (int i = 0; i < 3; i++)
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, &step, 1, NULL, &err));
  }
  for (int i = 0; i < 3; i++)
    assert_ok(cuda->run(s.model, CMKD_LIST_INFER, s.images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){logits}, &err));
  assert_string_equal(cmkd_simt_unloaded(), "");
  for (int i = 0; i < 3; i++)
    cuda->rows_free(store[i]);
  close_side(&s);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* Backends on two devices take turns in one thread, and a device's is freed while the other is the current one. */
static void two_devices_take_turns(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_params start = start_params(graph);
  cmkd_model_config config = {.graph = graph,
                              .batch = 4,
                              .train = 1,
                              .mean = {.5f, .5f, .5f},
                              .std = {.25f, .25f, .25f},
                              .policy = CMKD_AUGMENT_CROP_FLIP,
                              .loss = loss,
                              .kappa = 2};
  cmkd_backend *backend[2];
  cmkd_be_images *images[2];
  cmkd_be_model *model[2];
  cmkd_step step = step_of(&d, 0, 4, 0.1);
  cmkd_step_result result[2][3];
  cmkd_backend_options options = options_of(0, "bf16");
  const cmkd_image_set set = set_of(&d);
  for (options.device = 0; options.device < 2; options.device++)
    assert_ok(cuda->open(&options, &backend[options.device], &err));
  for (int i = 0; i < 2; i++)
    assert_ok(cuda->images_create(backend[i], &set, &images[i], &err));
  for (int i = 0; i < 2; i++)
    assert_ok(cuda->model_create(backend[i], &config, &model[i], &err));
  for (int i = 0; i < 2; i++)
    assert_ok(cuda->upload(model[i], CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  for (int round = 0; round < 3; round++)
    for (int i = 0; i < 2; i++)
      assert_ok(cuda->run(model[i], CMKD_LIST_TRAIN, images[i], &step, 1, NULL, &err));
  for (int i = 0, k = 3; i < 2; i++)
    assert_ok(cuda->read(model[i], result[i], &k, &err));
  for (int i = 0; i < 3; i++)
    assert_true(result[0][i].loss.loss == result[1][i].loss.loss);
  for (int i = 0; i < 2; i++)
    cuda->model_free(model[i]), cuda->images_free(images[i]);
  for (int i = 0; i < 2; i++)
    cuda->close(backend[i]);
  (void)GPU(cmkd_cuda_functions)()->device((char[256]){0}, &err); /* back to device 0 */
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}
#endif

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void) {
  struct CMUnitTest tests[] = {
      TEST(resnet_trains),
      TEST(every_op_trains),
      TEST(grouped_trains),
      TEST(preact_trains),
      TEST(sixteen_bits_train),
      TEST(inference_folds),
      TEST(runs_are_the_same_bytes),
      TEST(a_cut_run_goes_on),
      TEST(resident_teacher_rows_are_the_same_bytes),
      TEST(long_runs_go_in_parts),
      TEST(rows_do_not_depend_on_neighbours),
      TEST(bad_values_stop),
      TEST(refusals_are_one_line),
      TEST(a_device_that_computes_something_else_is_refused),
#ifndef ON_DEVICE
      TEST(out_of_memory_says_what_to_do),
      TEST(a_failing_device_is_told),
      TEST(kernels_are_loaded_before_they_are_captured),
      TEST(two_devices_take_turns),
#endif
  };
  return RUN_TESTS(tests);
}
