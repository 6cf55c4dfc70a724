#include "tests/support_backend.h"
#include <math.h>
#include "base/program/environment.h"
#include "base/rng.h"
#include "nets/builder.h"

static cmkd_error err;

data make_data(int h, int w, int c) {
  data d = {.h = h, .w = w, .c = c};
  cmkd_rng rng = cmkd_rng_start(7, CMKD_STREAM_TEST, 1);
  d.pixels = malloc((size_t)IMAGES * (size_t)(h * w * c));
  d.teacher = malloc(sizeof(float) * 64 * CLASSES);
  for (int i = 0; i < IMAGES * h * w * c; i++)
    d.pixels[i] = (uint8_t)cmkd_rng_u32(&rng);
  for (int i = 0; i < IMAGES; i++)
    d.labels[i] = (int32_t)cmkd_rng_below(&rng, CLASSES);
  for (int i = 0; i < 64; i++) {
    d.rows[i] = cmkd_rng_below(&rng, IMAGES);
    d.seeds[i] = cmkd_rng_u64(&rng);
  }
  for (int i = 0; i < 64 * CLASSES; i++)
    d.teacher[i] = (float)cmkd_rng_normal(&rng);
  return d;
}
void free_data(data *d) {
  free(d->pixels);
  free(d->teacher);
}

static cmkd_graph *built(cmkd_net_builder *b, int x) {
  cmkd_graph *graph = NULL;
  cmkd_net_classifier(b, "fc", cmkd_net_globalpool(b, x));
  assert_ok(cmkd_net_finish(b, &graph));
  return graph;
}
static cmkd_graph *resnet(const char *arch, int pixels, int channels) {
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_build(arch, (cmkd_net_shape){pixels, pixels, channels, CLASSES}, &graph, &err));
  return graph;
}
cmkd_graph *net_resnet8(void) { return resnet("resnet8", 12, 3); }
cmkd_graph *net_resnet14_grey(void) { return resnet("resnet14", 9, 1); }
cmkd_graph *net_resnet8_pad(void) { return resnet("resnet8_pad", 10, 3); }
cmkd_graph *net_resnet8x4(void) { return resnet("resnet8x4", 8, 3); }

cmkd_graph *net_mixed(void) {
  cmkd_net_builder b;
  assert_ok(cmkd_net_start(&b, "mixed", (cmkd_net_shape){13, 11, 3, CLASSES}, &err));
  int x = cmkd_net_conv_bias(&b, "stem", 0, 12, 5, 2, 2), y;
  x = cmkd_net_act(&b, cmkd_net_maxpool(&b, x, 3, 1, 1), CMKD_ACT_RELU);
  y = cmkd_net_shuffle(&b, cmkd_net_norm(&b, "n0", x, -1, CMKD_ACT_RELU6), 3);
  y = cmkd_net_concat(&b, cmkd_net_slice(&b, y, 4, 8), cmkd_net_slice(&b, y, 0, 4));
  x = cmkd_net_add(&b, x, y, CMKD_ACT_RELU);
  x = cmkd_net_padshortcut(&b, cmkd_net_avgpool(&b, x, 2, 1, 1), 18, 2);
  y = cmkd_net_conv_bias(&b, "wide", x, 18, 1, 1, 0);
  x = cmkd_net_add(&b, y, x, CMKD_ACT_NONE);
  int pixels = cmkd_net_norm(&b, "n1", x, -1, CMKD_ACT_RELU);
  x = cmkd_net_linear(&b, "hidden", pixels, 10);
  cmkd_graph_output_set(b.graph, "features", x);
  x = cmkd_net_linear(&b, "fc", cmkd_net_act(&b, x, CMKD_ACT_RELU6), CLASSES);
  cmkd_graph_output_set(b.graph, "logits", x);
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_finish(&b, &graph));
  return graph;
}

cmkd_graph *net_grouped(void) {
  cmkd_net_builder b;
  assert_ok(cmkd_net_start(&b, "grouped", (cmkd_net_shape){12, 12, 3, CLASSES}, &err));
  int x = cmkd_net_norm(&b, "n0", cmkd_net_conv(&b, "c0", 0, 21, 3, 1, 1), -1, CMKD_ACT_RELU6), y;
  y = cmkd_net_norm(&b, "n1", cmkd_net_conv_groups(&b, "d1", x, 21, 3, 1, 1, 21), x, CMKD_ACT_RELU);
  y = cmkd_net_norm(&b, "n2", cmkd_net_conv_groups(&b, "d2", y, 21, 3, 2, 1, 21), -1, CMKD_ACT_NONE);
  y = cmkd_net_norm(&b, "n3", cmkd_net_conv_groups(&b, "g3", y, 30, 1, 1, 0, 3), -1, CMKD_ACT_RELU);
  x = cmkd_net_norm(&b, "n4", cmkd_net_conv_groups(&b, "g4", y, 30, 3, 2, 1, 3), -1, CMKD_ACT_RELU6);
  x = cmkd_net_norm(&b, "n5", cmkd_net_conv_groups(&b, "g5", x, 60, 3, 1, 1, 30), -1,
                    CMKD_ACT_RELU); /* two outputs a group */
  return built(&b, x);
}

cmkd_graph *net_preact(void) {
  cmkd_net_builder b;
  assert_ok(cmkd_net_start(&b, "preact", (cmkd_net_shape){8, 8, 3, CLASSES}, &err));
  int x = cmkd_net_conv(&b, "c0", 0, 16, 3, 1, 1);
  for (int i = 0; i < 2; i++) {
    cmkd_net_scope(&b, "b%d.", i);
    int out = i ? 24 : 16, y = cmkd_net_norm(&b, "n1", x, -1, CMKD_ACT_RELU),
        shortcut = i ? cmkd_net_conv(&b, "s", y, out, 1, 2, 0) : x;
    y = cmkd_net_norm(&b, "n2", cmkd_net_conv(&b, "c1", y, out, 3, i + 1, 1), -1, CMKD_ACT_RELU);
    x = cmkd_net_add(&b, cmkd_net_conv(&b, "c2", y, out, 3, 1, 1), shortcut, CMKD_ACT_NONE);
  }
  cmkd_net_scope(&b, "%s", "");
  return built(&b, cmkd_net_norm(&b, "last", x, -1, CMKD_ACT_RELU));
}

/* ---- the two sides ---- */

cmkd_loss *loss_of(const char *text) {
  cmkd_loss *loss = NULL;
  assert_ok(cmkd_loss_parse(text, CMKD_LOSS_CIFAR, &loss, &err));
  return loss;
}

cmkd_backend_options options_of(int threads, const char *precision) {
  cmkd_backend_options options = {.threads = threads, .precision = precision};
  cmkd_environment_backend(&options);
  return options;
}

cmkd_image_set set_of(const data *d) { return (cmkd_image_set){d->pixels, d->labels, IMAGES, d->h, d->w, d->c}; }

cmkd_model_config config_of(const cmkd_graph *graph, const cmkd_loss *loss, int batch, int nesterov) {
  return (cmkd_model_config){.graph = graph,
                             .batch = batch,
                             .train = loss != NULL,
                             .mean = {0.5f, 0.45f, 0.4f},
                             .std = {0.25f, 0.3f, 0.2f},
                             .policy = CMKD_AUGMENT_CROP_FLIP,
                             .loss = loss,
                             .momentum = 0.9f,
                             .weight_decay = 5e-4f,
                             .nesterov = nesterov,
                             .kappa = 2};
}

side open_config(const cmkd_backend_table *table, int threads, const char *precision, const data *d,
                 const cmkd_model_config *config) {
  side s = {.table = table};
  const cmkd_backend_options options = options_of(threads, precision);
  const cmkd_image_set set = set_of(d);
  assert_ok(table->open(&options, &s.backend, &err));
  assert_ok(table->images_create(s.backend, &set, &s.images, &err));
  assert_ok(table->model_create(s.backend, config, &s.model, &err));
  return s;
}

side open_side(const cmkd_backend_table *table, int threads, const char *precision, const cmkd_graph *graph,
               const data *d, const cmkd_loss *loss, int batch, int nesterov) {
  const cmkd_model_config config = config_of(graph, loss, batch, nesterov);
  return open_config(table, threads, precision, d, &config);
}

void close_side(side *s) {
  s->table->model_free(s->model);
  s->table->images_free(s->images);
  s->table->close(s->backend);
}

cmkd_params start_params(const cmkd_graph *graph) {
  cmkd_params p;
  cmkd_rng rng = cmkd_rng_start(3, CMKD_STREAM_TEST, 2);
  assert_ok(cmkd_params_create(graph, &p, &err));
  cmkd_params_init(graph, 5, &p);
  for (int i = 0; i < graph->params; i++)
    for (int64_t j = 0; j < graph->param[i].count; j++)
      switch (graph->param[i].kind) {
      case CMKD_PARAM_SCALE:
      case CMKD_PARAM_VAR: p.value[i][j] = 0.5f + (float)cmkd_rng_uniform(&rng); break;
      case CMKD_PARAM_SHIFT:
      case CMKD_PARAM_BIAS:
      case CMKD_PARAM_MEAN: p.value[i][j] = 0.3f * (float)cmkd_rng_normal(&rng); break;
      default: break;
      }
  return p;
}

double distance(const float *a, const float *b, int64_t n, double floor) {
  double d = 0, norm = 0;
  for (int64_t i = 0; i < n; i++) {
    d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    norm += (double)b[i] * b[i];
  }
  return sqrt(d) / (sqrt(norm) + floor);
}

void compare_params(const cmkd_graph *graph, const cmkd_params *a, const cmkd_params *b, double floor, double limit,
                    const char *what) {
  for (int i = 0; i < graph->params; i++) {
    double d = distance(a->value[i], b->value[i], graph->param[i].count, floor);
    if (!(d <= limit))
      fail_msg("%s: %s of `%s` is off by %g (limit %g)", graph->arch, what, graph->param[i].name, d, limit);
  }
}

cmkd_step step_of(const data *d, int first, int count, double lr) {
  return (cmkd_step){.count = count,
                     .rows = d->rows + first,
                     .seeds = d->seeds + first,
                     .target[CMKD_TARGET_TEACHER].values = d->teacher + first * CLASSES,
                     .lr = lr,
                     .epoch = 3};
}

void close_to(double a, double b, double limit, const char *what, const char *arch) {
  if (!(fabs(a - b) <= limit * (1 + fabs(b)))) fail_msg("%s: %s is %.9g, not %.9g", arch, what, a, b);
}

void infers_as_the_reference(const cmkd_backend_table *table, int threads, const char *precision, network *make,
                             double limit) {
  cmkd_graph *graph = make();
  data d = make_data(graph->tensor[0].h, graph->tensor[0].w, graph->tensor[0].c);
  cmkd_params start = start_params(graph);
  int width = graph->tensor[cmkd_graph_features(graph)].c;
  side a = open_side(table, threads, precision, graph, &d, NULL, 8, 0),
       b = open_side(&cmkd_backend_ref, 1, NULL, graph, &d, NULL, 8, 0);
  float x[11 * CLASSES], y[11 * CLASSES], *fx = malloc(sizeof(float) * (size_t)(11 * width)),
                                          *fy = malloc(sizeof(float) * (size_t)(11 * width));
  cmkd_step steps[] = {step_of(&d, 0, 7, 0), step_of(&d, 7, 4, 0)};
  steps[1].seeds = NULL; /* clean */
  assert_ok(a.table->upload(a.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_ok(b.table->upload(b.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_ok(a.table->run(a.model, CMKD_LIST_INFER, a.images, steps, 2, (float *[CMKD_MAX_OUTPUTS]){x, fx}, &err));
  assert_ok(b.table->run(b.model, CMKD_LIST_INFER, b.images, steps, 2, (float *[CMKD_MAX_OUTPUTS]){y, fy}, &err));
  double dl = distance(x, y, 11 * CLASSES, 0), df = distance(fx, fy, 11 * width, 0);
  if (!(dl < limit && df < limit)) fail_msg("%s: logits off by %g, features by %g", graph->arch, dl, df);
  free(fx);
  free(fy);
  close_side(&a);
  close_side(&b);
  cmkd_params_free(&start);
  free_data(&d);
  cmkd_graph_free(graph);
}

void rows_stand_alone(const cmkd_backend_table *table, int threads) {
  enum { ROWS = 8 };
  cmkd_graph *graph = net_grouped();
  data d = make_data(12, 12, 3);
  cmkd_params start = start_params(graph);
  float first[ROWS * CLASSES], second[ROWS * CLASSES];
  uint32_t rows[ROWS];
  uint64_t seeds[ROWS];
  for (int i = 0; i < ROWS; i++) {
    rows[i] = d.rows[(i * 5 + 3) % ROWS];
    seeds[i] = d.seeds[(i * 5 + 3) % ROWS];
  }
  for (int t = 1; t <= threads; t++) {
    side s = open_side(table, t, NULL, graph, &d, NULL, ROWS, 0);
    cmkd_step a = step_of(&d, 0, ROWS, 0), b = {.count = ROWS, .rows = rows, .seeds = seeds};
    assert_ok(table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    if (t == 1)
      assert_ok(table->run(s.model, CMKD_LIST_INFER, s.images, &a, 1, (float *[CMKD_MAX_OUTPUTS]){first}, &err));
    assert_ok(table->run(s.model, CMKD_LIST_INFER, s.images, &b, 1, (float *[CMKD_MAX_OUTPUTS]){second}, &err));
    for (int i = 0; i < ROWS; i++)
      assert_memory_equal(second + i * CLASSES, first + (i * 5 + 3) % ROWS * CLASSES, sizeof(float) * CLASSES);
    close_side(&s);
  }
  cmkd_params_free(&start);
  free_data(&d);
  cmkd_graph_free(graph);
}
