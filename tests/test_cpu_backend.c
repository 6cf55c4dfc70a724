/* The CPU backend against the double reference: losses, figures, every gradient, several steps, partial batches, thread counts; inference
 * with batch norm folded; determinism; who sits beside a row does not matter. Every network is run with each way of convolving. */
#include "tests/support.h"
#include <math.h>
#include "base/rng.h"
#include "kernels/backend.h"
#include "kernels/cpu/conv_dnnl.h"
#include "nets/builder.h"
#include "nets/net.h"

enum { IMAGES = 24, CLASSES = 11 };
static cmkd_error err;

typedef struct data { int h, w, c; uint8_t *pixels; int32_t labels[IMAGES]; uint32_t rows[64]; uint64_t seeds[64]; float *teacher; } data;

static data make_data(int h, int w, int c) {
  data d = {.h = h, .w = w, .c = c};
  cmkd_rng rng = cmkd_rng_start(7, CMKD_STREAM_TEST, 1);
  d.pixels = malloc((size_t)IMAGES * (size_t)(h * w * c));
  d.teacher = malloc(sizeof(float) * 64 * CLASSES);
  for (int i = 0; i < IMAGES * h * w * c; i++) d.pixels[i] = (uint8_t)cmkd_rng_u32(&rng);
  for (int i = 0; i < IMAGES; i++) d.labels[i] = (int32_t)cmkd_rng_below(&rng, CLASSES);
  for (int i = 0; i < 64; i++) { d.rows[i] = cmkd_rng_below(&rng, IMAGES); d.seeds[i] = cmkd_rng_u64(&rng); }
  for (int i = 0; i < 64 * CLASSES; i++) d.teacher[i] = (float)cmkd_rng_normal(&rng);
  return d;
}
static void free_data(data *d) { free(d->pixels); free(d->teacher); }

typedef cmkd_graph *network(void);
static cmkd_graph *built(net_builder *b, int x) {
  cmkd_graph *graph = NULL;
  net_classifier(b, "fc", net_globalpool(b, x));
  assert_ok(cmkd_net_finish(b, &graph));
  return graph;
}
static cmkd_graph *resnet(const char *arch, int side, int channels) {
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_build(arch, (cmkd_net_shape){side, side, channels, CLASSES}, &graph, &err));
  return graph;
}
static cmkd_graph *net_resnet8(void) { return resnet("resnet8", 12, 3); }
static cmkd_graph *net_resnet14_grey(void) { return resnet("resnet14", 9, 1); }
static cmkd_graph *net_resnet8_pad(void) { return resnet("resnet8_pad", 10, 3); }
static cmkd_graph *net_resnet8x4(void) { return resnet("resnet8x4", 8, 3); }

/* pools, biases, relu6, all channel moves, a kernel larger than 3, a classifier over pixels */
static cmkd_graph *net_mixed(void) {
  net_builder b;
  assert_ok(cmkd_net_start(&b, "mixed", (cmkd_net_shape){13, 11, 3, CLASSES}, &err));
  int x = cmkd_net_conv_full(&b, "stem", 0, 12, 5, 2, 2, 1, 1), y;
  x = net_act(&b, net_maxpool(&b, x, 3, 1, 1), CMKD_ACT_RELU);
  y = net_shuffle(&b, net_norm(&b, "n0", x, -1, CMKD_ACT_RELU6), 3);
  y = net_concat(&b, net_slice(&b, y, 4, 8), net_slice(&b, y, 0, 4));
  x = net_add(&b, x, y, CMKD_ACT_RELU);
  x = net_padshortcut(&b, net_avgpool(&b, x, 2, 1, 1), 18, 2);
  y = cmkd_net_conv_full(&b, "wide", x, 18, 1, 1, 0, 1, 1);
  x = net_add(&b, y, x, CMKD_ACT_NONE);
  int pixels = net_norm(&b, "n1", x, -1, CMKD_ACT_RELU);
  b.graph->features = net_linear(&b, "hidden", pixels, 10);
  x = net_act(&b, b.graph->features, CMKD_ACT_RELU6);
  b.graph->logits = net_linear(&b, "fc", x, CLASSES);
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_finish(&b, &graph));
  return graph;
}

/* grouped and depthwise convolutions at both strides, channel counts that fit no vector */
static cmkd_graph *net_grouped(void) {
  net_builder b;
  assert_ok(cmkd_net_start(&b, "grouped", (cmkd_net_shape){12, 12, 3, CLASSES}, &err));
  int x = net_norm(&b, "n0", net_conv(&b, "c0", 0, 21, 3, 1, 1), -1, CMKD_ACT_RELU6), y;
  y = net_norm(&b, "n1", net_conv_groups(&b, "d1", x, 21, 3, 1, 1, 21), x, CMKD_ACT_RELU);
  y = net_norm(&b, "n2", net_conv_groups(&b, "d2", y, 21, 3, 2, 1, 21), -1, CMKD_ACT_NONE);
  y = net_norm(&b, "n3", net_conv_groups(&b, "g3", y, 30, 1, 1, 0, 3), -1, CMKD_ACT_RELU);
  x = net_norm(&b, "n4", net_conv_groups(&b, "g4", y, 30, 3, 2, 1, 3), -1, CMKD_ACT_RELU6);
  x = net_norm(&b, "n5", net_conv_groups(&b, "g5", x, 60, 3, 1, 1, 30), -1, CMKD_ACT_RELU); /* two outputs a group */
  return built(&b, x);
}

/* pre-activation: a norm reads a sum that others read too; its output goes two ways */
static cmkd_graph *net_preact(void) {
  net_builder b;
  assert_ok(cmkd_net_start(&b, "preact", (cmkd_net_shape){8, 8, 3, CLASSES}, &err));
  int x = net_conv(&b, "c0", 0, 16, 3, 1, 1);
  for (int i = 0; i < 2; i++) {
    net_scope(&b, "b%d.", i);
    int out = i ? 24 : 16, y = net_norm(&b, "n1", x, -1, CMKD_ACT_RELU), shortcut = i ? net_conv(&b, "s", y, out, 1, 2, 0) : x;
    y = net_norm(&b, "n2", net_conv(&b, "c1", y, out, 3, i + 1, 1), -1, CMKD_ACT_RELU);
    x = net_add(&b, net_conv(&b, "c2", y, out, 3, 1, 1), shortcut, CMKD_ACT_NONE);
  }
  net_scope(&b, "%s", "");
  return built(&b, net_norm(&b, "last", x, -1, CMKD_ACT_RELU));
}

/* ---- the two sides ------------------------------------------------------------------------------------------------------- */

typedef struct side { const cmkd_backend_table *table; cmkd_backend *backend; cmkd_be_images *images; cmkd_be_model *model; } side;

static cmkd_loss *loss_of(const char *text) {
  cmkd_loss *loss = NULL;
  assert_ok(cmkd_loss_parse(text, CMKD_LOSS_CIFAR, &loss, &err));
  return loss;
}

static side open_side(const cmkd_backend_table *table, int threads, const cmkd_graph *graph, const data *d, const cmkd_loss *loss, int batch, int nesterov) {
  side s = {.table = table};
  cmkd_model_config config = {.graph = graph, .batch = batch, .train = loss != NULL, .mean = {0.5f, 0.45f, 0.4f}, .std = {0.25f, 0.3f, 0.2f}, .policy = CMKD_AUGMENT_CROP_FLIP,
                              .loss = loss, .momentum = 0.9f, .weight_decay = 5e-4f, .nesterov = nesterov, .kappa = 2};
  assert_ok(table->open(&(cmkd_backend_options){.threads = threads}, &s.backend, &err));
  assert_ok(table->images_create(s.backend, d->pixels, d->labels, IMAGES, d->h, d->w, d->c, &s.images, &err));
  assert_ok(table->model_create(s.backend, &config, &s.model, &err));
  return s;
}
static void close_side(side *s) {
  s->table->model_free(s->model);
  s->table->images_free(s->images);
  s->table->close(s->backend);
}

static cmkd_params start_params(const cmkd_graph *graph) {
  cmkd_params p;
  cmkd_rng rng = cmkd_rng_start(3, CMKD_STREAM_TEST, 2);
  assert_ok(cmkd_params_create(graph, &p, &err));
  cmkd_params_init(graph, 5, &p);
  for (int i = 0; i < graph->params; i++)
    for (int64_t j = 0; j < graph->param[i].count; j++)
      switch (graph->param[i].kind) {
      case CMKD_PARAM_SCALE: case CMKD_PARAM_VAR: p.value[i][j] = 0.5f + (float)cmkd_rng_uniform(&rng); break;
      case CMKD_PARAM_SHIFT: case CMKD_PARAM_BIAS: case CMKD_PARAM_MEAN: p.value[i][j] = 0.3f * (float)cmkd_rng_normal(&rng); break;
      default: break;
      }
  return p;
}

/* |a - b| / |b| over a whole parameter; `floor` keeps numbers that are all but zero from counting */
static double distance(const float *a, const float *b, int64_t n, double floor) {
  double d = 0, norm = 0;
  for (int64_t i = 0; i < n; i++) { d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]); norm += (double)b[i] * b[i]; }
  return sqrt(d) / (sqrt(norm) + floor);
}

static void compare_params(const cmkd_graph *graph, const cmkd_params *a, const cmkd_params *b, double floor, double limit, const char *what) {
  for (int i = 0; i < graph->params; i++) {
    double d = distance(a->value[i], b->value[i], graph->param[i].count, floor);
    if (!(d <= limit)) fail_msg("%s: %s of `%s` is off by %g (limit %g)", graph->arch, what, graph->param[i].name, d, limit);
  }
}

static cmkd_step step_of(const data *d, int first, int count, double lr) {
  return (cmkd_step){.count = count, .rows = d->rows + first, .seeds = d->seeds + first, .teacher = d->teacher + first * CLASSES, .lr = lr, .epoch = 3};
}

static void close_to(double a, double b, double limit, const char *what, const char *arch) {
  if (!(fabs(a - b) <= limit * (1 + fabs(b)))) fail_msg("%s: %s is %.9g, not %.9g", arch, what, a, b);
}

/* Four steps of falling size on both sides: gradients after the first, results after each, parameters, momentum and logits at the end. */
static void train_both(network *make, int threads, int nesterov) {
  static const int counts[] = {7, 7, 3, 5};
  cmkd_graph *graph = make();
  data d = make_data(graph->tensor[0].h, graph->tensor[0].w, graph->tensor[0].c);
  cmkd_loss *loss = loss_of("ce+kd");
  cmkd_params start = start_params(graph), a, b;
  assert_ok(cmkd_params_create(graph, &a, &err));
  assert_ok(cmkd_params_create(graph, &b, &err));
  side cpu = open_side(&cmkd_backend_cpu, threads, graph, &d, loss, 7, nesterov), ref = open_side(&cmkd_backend_ref, 1, graph, &d, loss, 7, nesterov);
  assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_ok(ref.table->upload(ref.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  for (int i = 0, first = 0; i < 4; first += counts[i++]) {
    cmkd_step step = step_of(&d, first, counts[i], 0.05);
    cmkd_step_result x, y;
    int k = 1;
    assert_ok(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, NULL, &err));
    assert_ok(ref.table->run(ref.model, CMKD_LIST_TRAIN, ref.images, &step, 1, NULL, NULL, &err));
    assert_ok(cpu.table->read(cpu.model, &x, &k, &err));
    assert_int_equal(k, 1);
    assert_ok(ref.table->read(ref.model, &y, &k, &err));
    close_to(x.loss.loss, y.loss.loss, i ? 5e-3 : 1e-5, "loss", graph->arch);
    assert_int_equal(x.count, counts[i]);
    assert_int_equal(x.agreement.rows, counts[i]);
    if (i) continue;
    assert_int_equal(x.top1, y.top1);
    assert_int_equal(x.top5, y.top5);
    close_to(x.agreement.pearson, y.agreement.pearson, 1e-4, "Pearson", graph->arch);
    assert_ok(cpu.table->gradients(cpu.model, a.value, &err));
    assert_ok(ref.table->gradients(ref.model, b.value, &err));
    compare_params(graph, &a, &b, 1e-2, 2e-4, "gradient"); /* the floor: a bias in front of a batch norm has no gradient but rounding */
    assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_VALUE, a.value, &err));
    assert_ok(ref.table->download(ref.model, CMKD_SLOT_VALUE, b.value, &err));
    compare_params(graph, &a, &b, 1e-4, 1e-4, "value after one step");
  }
  assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_VALUE, a.value, &err));
  assert_ok(ref.table->download(ref.model, CMKD_SLOT_VALUE, b.value, &err));
  compare_params(graph, &a, &b, 1e-3, 1e-2, "value");
  float x[7 * CLASSES], y[7 * CLASSES];
  cmkd_step step = step_of(&d, 30, 7, 0);
  assert_ok(ref.table->upload(ref.model, CMKD_SLOT_VALUE, (const float *const *)a.value, &err));
  assert_ok(cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, &step, 1, x, NULL, &err)); /* folded anew after training */
  assert_ok(ref.table->run(ref.model, CMKD_LIST_INFER, ref.images, &step, 1, y, NULL, &err));
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
  if (*state) setenv("CMKD_CONV", *state, 1);
  else unsetenv("CMKD_CONV");
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

/* What older machines run. A machine that has neither AVX2 nor AVX-512 runs the baseline each time. */
static void test_lower_isas(void **state) {
  static const char *const isas[] = {"baseline", "avx2"};
  set_conv(state);
  for (int i = 0; i < 2; i++) {
    setenv("CMKD_ISA", isas[i], 1);
    train_both(net_resnet8, 2, 0);
    train_both(net_grouped, 2, 0);
    train_both(net_mixed, 1, 0);
  }
  unsetenv("CMKD_ISA");
}

/* Inference alone: folded logits and features against the reference, which does not fold. */
static void test_infer(void **state) {
  set_conv(state);
  network *const nets[] = {net_resnet8, net_resnet8_pad, net_mixed, net_grouped, net_preact};
  for (size_t n = 0; n < sizeof nets / sizeof *nets; n++) {
    cmkd_graph *graph = nets[n]();
    data d = make_data(graph->tensor[0].h, graph->tensor[0].w, graph->tensor[0].c);
    cmkd_params start = start_params(graph);
    int width = graph->tensor[graph->features].c;
    side cpu = open_side(&cmkd_backend_cpu, 2, graph, &d, NULL, 20, 0), ref = open_side(&cmkd_backend_ref, 1, graph, &d, NULL, 20, 0);
    float x[20 * CLASSES], y[20 * CLASSES], *fx = malloc(sizeof(float) * (size_t)(20 * width)), *fy = malloc(sizeof(float) * (size_t)(20 * width));
    cmkd_step steps[] = {step_of(&d, 0, 13, 0), step_of(&d, 13, 7, 0)};
    assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    assert_ok(ref.table->upload(ref.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    assert_ok(cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, steps, 2, x, fx, &err));
    assert_ok(ref.table->run(ref.model, CMKD_LIST_INFER, ref.images, steps, 2, y, fy, &err));
    double dl = distance(x, y, 20 * CLASSES, 0), df = distance(fx, fy, 20 * width, 0);
    if (!(dl < 1e-5 && df < 1e-5)) fail_msg("%s: logits off by %g, features by %g", graph->arch, dl, df);
    free(fx);
    free(fy);
    close_side(&cpu);
    close_side(&ref);
    cmkd_params_free(&start);
    free_data(&d);
    cmkd_graph_free(graph);
  }
}

/* A row's logits are the same bits wherever it sits, whoever sits beside it, and for every thread count. */
static void test_rows_alone(void **state) {
  set_conv(state);
  cmkd_graph *graph = net_grouped();
  data d = make_data(12, 12, 3);
  cmkd_params start = start_params(graph);
  float first[16 * CLASSES], second[16 * CLASSES];
  uint32_t rows[16];
  uint64_t seeds[16];
  for (int i = 0; i < 16; i++) { rows[i] = d.rows[(i * 5 + 3) % 16]; seeds[i] = d.seeds[(i * 5 + 3) % 16]; }
  for (int threads = 1; threads <= 3; threads++) {
    side cpu = open_side(&cmkd_backend_cpu, threads, graph, &d, NULL, 16, 0);
    cmkd_step a = step_of(&d, 0, 16, 0), b = {.count = 16, .rows = rows, .seeds = seeds};
    assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    if (threads == 1) assert_ok(cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, &a, 1, first, NULL, &err));
    assert_ok(cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, &b, 1, second, NULL, &err));
    for (int i = 0; i < 16; i++) assert_memory_equal(second + i * CLASSES, first + (i * 5 + 3) % 16 * CLASSES, sizeof(float) * CLASSES);
    close_side(&cpu);
  }
  cmkd_params_free(&start);
  free_data(&d);
  cmkd_graph_free(graph);
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
    side cpu = open_side(&cmkd_backend_cpu, 3, graph, &d, loss, 16, 0);
    assert_ok(cmkd_params_create(graph, &end[run], &err));
    assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    cmkd_step steps[] = {step_of(&d, 0, 16, 0.1), step_of(&d, 16, 16, 0.1), step_of(&d, 32, 5, 0.1)};
    float logits[5 * CLASSES];
    int k = 3;
    if (run) {
      for (int i = 0; i < 3; i++) {
        assert_ok(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &steps[i], 1, NULL, NULL, &err));
        assert_ok(cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, &steps[2], 1, logits, NULL, &err));
      }
    } else assert_ok(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, steps, 3, NULL, NULL, &err));
    assert_ok(cpu.table->read(cpu.model, results[run], &k, &err));
    assert_int_equal(k, 3);
    assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_VALUE, end[run].value, &err));
    close_side(&cpu);
  }
  for (int i = 0; i < graph->params; i++) assert_memory_equal(end[0].value[i], end[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
  for (int i = 0; i < 3; i++) assert_true(results[0][i].loss.loss == results[1][i].loss.loss && results[0][i].top1 == results[1][i].top1);
  for (int run = 0; run < 2; run++) cmkd_params_free(&end[run]);
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
  side cpu = open_side(&cmkd_backend_cpu, 2, graph, &d, loss, 8, 0);
  cmkd_step_result result;
  int k = 1, last = graph->params - 1;
  cmkd_step step = step_of(&d, 0, 8, 0.1);
  float good = start.value[last][3], logits[8 * CLASSES];
  start.value[last][3] = INFINITY;
  assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_int_equal(cpu.table->run(cpu.model, CMKD_LIST_INFER, cpu.images, &step, 1, logits, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, NULL, &err), CMKD_ERR_VALUE);
  assert_ok(cpu.table->read(cpu.model, &result, &k, &err));
  assert_int_equal(k, 1);
  assert_int_equal(result.loss.bad_row, 0);
  start.value[last][3] = good;
  assert_ok(cpu.table->upload(cpu.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  int32_t label = d.labels[d.rows[5]];
  d.labels[d.rows[5]] = CLASSES;
  assert_int_equal(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, NULL, &err), CMKD_ERR_VALUE);
  assert_ok(cpu.table->read(cpu.model, &result, &k, &err));
  int first = 0;
  while (d.labels[d.rows[first]] != CLASSES) first++;
  assert_int_equal(result.loss.bad_row, first);
  d.labels[d.rows[5]] = label;
  assert_ok(cpu.table->download(cpu.model, CMKD_SLOT_VALUE, end.value, &err));
  for (int i = 0; i < graph->params; i++) assert_memory_equal(start.value[i], end.value[i], sizeof(float) * (size_t)graph->param[i].count);
  assert_ok(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, NULL, &err));
  step.count = 9;
  assert_int_equal(cpu.table->run(cpu.model, CMKD_LIST_TRAIN, cpu.images, &step, 1, NULL, NULL, &err), CMKD_ERR_VALUE);
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
  assert_int_equal(cmkd_backend_cpu.open(&(cmkd_backend_options){.precision = "bf16"}, &backend, &err), CMKD_ERR_UNSUPPORTED);
  assert_int_equal(cmkd_backend_cpu.open(&(cmkd_backend_options){.threads = -1}, &backend, &err), CMKD_ERR_USAGE);
  assert_ok(cmkd_backend_cpu.open(NULL, &backend, &err));
  assert_non_null(strstr(cmkd_backend_cpu.describe(backend), "cpu: "));
  cmkd_graph *graph = resnet("resnet20", 512, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_model_config config = {.graph = graph, .batch = 1 << 20, .train = 1, .loss = loss, .std = {1, 1, 1}};
  assert_int_equal(cmkd_backend_cpu.model_create(backend, &config, &model, &err), CMKD_ERR_MEMORY);
  assert_non_null(strstr(err.message, "--batch"));
  config.batch = 1;
  config.std[1] = 0;
  assert_int_equal(cmkd_backend_cpu.model_create(backend, &config, &model, &err), CMKD_ERR_VALUE);
  cmkd_backend_cpu.close(backend);
  cmkd_loss_free(loss);
  cmkd_graph_free(graph);
}

#define WITH(conv) \
  {"resnets " conv, test_resnets, NULL, NULL, conv}, {"every op " conv, test_every_op, NULL, NULL, conv}, {"grouped " conv, test_grouped, NULL, NULL, conv}, \
  {"infer " conv, test_infer, NULL, NULL, conv}, {"rows alone " conv, test_rows_alone, NULL, NULL, conv}, {"deterministic " conv, test_deterministic, NULL, NULL, conv}
int main(void) {
  const struct CMUnitTest tests[] = {WITH("direct"), {"lower instruction sets", test_lower_isas, NULL, NULL, "direct"}, cmocka_unit_test(test_bad_values), cmocka_unit_test(test_refusals)};
  const struct CMUnitTest onednn[] = {WITH("onednn")};
  int failed = cmocka_run_group_tests_name("cpu_backend", tests, NULL, NULL);
  if (cmkd_conv_dnnl_available()) return failed + cmocka_run_group_tests_name("cpu_backend_onednn", onednn, NULL, NULL);
  printf("SKIP: convolutions by oneDNN: not in this build\n");
  return failed;
}
