/* What data parallelism and distillation from more than logits need of the CUDA backend: a hook between backward and
 * update that sees all gradients as one block of floats, also where they are computed in 16 bits, and is part of the
 * captured step; a batch's mean entropy from the step; further outputs with targets of their own. */
#include <math.h>
#include "base/rng.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/step.h"
#include "nets/builder.h"
#include "tests/simt/backend.h"

enum { HALF = 4, WHOLE = 2 * HALF, STEPS = 4 };

/* Without batch norm, so that the gradient of a batch is the mean of its halves'. */
static cmkd_graph *net_plain(void) {
  cmkd_net_builder b;
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_start(&b, "plain", (cmkd_net_shape){8, 8, 3, CLASSES}, &err));
  int x = cmkd_net_act(&b, cmkd_net_conv(&b, "c0", 0, 16, 3, 1, 1), CMKD_ACT_RELU);
  x = cmkd_net_act(&b, cmkd_net_conv(&b, "c1", x, 24, 3, 2, 1), CMKD_ACT_RELU);
  cmkd_net_classifier(&b, "fc", cmkd_net_globalpool(&b, x));
  assert_ok(cmkd_net_finish(&b, &graph));
  return graph;
}

/* Two ranks that take turns on one stream: the first keeps its gradients, the second takes the mean of both. All of it
 * is done by the plugin's own kernels, so that this runs on a device too. */
typedef struct ranks {
  int rank, calls;
  size_t count;
  float *kept;
  cmkd_cuda_state *half; /* device memory: scale 0.5 */
} ranks;

static cmkd_status reduce(void *self, float *gradients, size_t count, void *stream, cmkd_error *error) {
  ranks *r = self;
  const cmkd_op add = {.kind = CMKD_OP_ADD};
  const cmkd_shape chunk = {1, CMKD_CUDA_CHUNK / 8, 8};
  const int chunks = (int)(count / CMKD_CUDA_CHUNK);
  r->calls++;
  r->count = count;
  if (r->rank == 0) return GPU(cmkd_cuda_to_float)(gradients, CMKD_F32, (int64_t)count / 8, 8, r->kept, stream, error);
  const cmkd_cuda_call sum = {.op = &add,
                              .n = chunks,
                              .dtype = CMKD_F32,
                              .in = {chunk, chunk},
                              .out = chunk,
                              .x = {gradients, r->kept},
                              .y = gradients};
  CMKD_TRY(GPU(cmkd_cuda_forward)(&sum, stream, error));
  return GPU(cmkd_cuda_scale)(gradients, (int64_t)count, r->half, stream, error);
}

typedef struct device {
  cmkd_backend *backend;
  cmkd_be_images *images;
} device;

static device open_device(const char *precision, const data *d) {
  device g;
  const cmkd_backend_options options = options_of(0, precision);
  const cmkd_image_set set = set_of(d);
  assert_ok(cuda->open(&options, &g.backend, &err));
  assert_ok(cuda->images_create(g.backend, &set, &g.images, &err));
  return g;
}
static void close_device(device *g) {
  cuda->images_free(g->images);
  cuda->close(g->backend);
}

/* Mean entropy of rows of logits. */
static double entropy_of(const float *logits, int rows) {
  double sum = 0;
  for (int r = 0; r < rows; r++) {
    double z = 0, weighted = 0;
    for (int c = 0; c < CLASSES; c++) {
      const double e = exp((double)logits[r * CLASSES + c]);
      z += e;
      weighted += e * (double)logits[r * CLASSES + c];
    }
    sum += log(z) - weighted / z;
  }
  return sum / rows;
}

typedef struct halves {
  cmkd_graph *graph;
  data d;
  cmkd_loss *loss;
  cmkd_params start, gradients[2], values[2]; /* of the whole batch; of the halves */
} halves;

static void train_one(cmkd_be_model *model, const device *g, const cmkd_step *step, cmkd_step_result *result) {
  int k = 1;
  assert_ok(cuda->run(model, CMKD_LIST_TRAIN, g->images, step, 1, NULL, &err));
  assert_ok(cuda->read(model, result, &k, &err));
  assert_int_equal(k, 1);
}

/* STEPS steps on a whole batch and on two halves with a hook; `given`: the halves know the whole's mean entropy. The
 * largest distance between gradients, relative. */
static double run_halves(halves *h, const char *precision, int given) {
  device g = open_device(precision, &h->d);
  cmkd_cuda_state half = {.scale = 0.5f};
  const size_t room = sizeof(float) * (1 << 20);
  ranks rank[2] = {{.rank = 0, .kept = gpu_buffer(room), .half = gpu_put(&half, sizeof half)}, {.rank = 1}};
  rank[1].kept = rank[0].kept;
  rank[1].half = rank[0].half;
  cmkd_be_model *whole, *model[2];
  cmkd_model_config config = config_of(h->graph, h->loss, WHOLE, 0);
  double worst = 0;
  assert_ok(cuda->model_create(g.backend, &config, &whole, &err));
  assert_ok(cuda->upload(whole, CMKD_SLOT_VALUE, (const float *const *)h->start.value, &err));
  config.batch = HALF;
  for (int r = 0; r < 2; r++) {
    config.reduce = (cmkd_reduce){&rank[r], reduce};
    assert_ok(cuda->model_create(g.backend, &config, &model[r], &err));
    assert_ok(cuda->upload(model[r], CMKD_SLOT_VALUE, (const float *const *)h->start.value, &err));
  }
  for (int i = 0; i < STEPS; i++) {
    cmkd_step step = step_of(&h->d, i * WHOLE, WHOLE, 0.05);
    cmkd_step_result want, got[2];
    train_one(whole, &g, &step, &want);
    for (int r = 0; r < 2; r++) {
      cmkd_step part = step_of(&h->d, i * WHOLE + r * HALF, HALF, 0.05);
      if (given) part.entropy_mean = entropy_of(step.target[CMKD_TARGET_TEACHER].values, WHOLE);
      train_one(model[r], &g, &part, &got[r]);
      assert_true(rank[r].count % CMKD_CUDA_CHUNK == 0 && rank[r].count * sizeof(float) <= room);
    }
    if (given) {
      const double mean = (got[0].loss.loss + got[1].loss.loss) / 2;
      close_to(mean, want.loss.loss, precision ? 2e-3 : 1e-5, "loss of two halves", h->graph->arch);
    }
    assert_ok(cuda->gradients(whole, h->gradients[0].value, &err));
    assert_ok(cuda->gradients(model[1], h->gradients[1].value, &err));
    for (int p = 0; p < h->graph->params; p++)
      worst = fmax(worst, distance(h->gradients[1].value[p], h->gradients[0].value[p], h->graph->param[p].count, 1e-3));
    /* both ranks go on from what the second one, which had the mean, made of it */
    assert_ok(cuda->download(whole, CMKD_SLOT_VALUE, h->values[0].value, &err));
    assert_ok(cuda->download(model[1], CMKD_SLOT_VALUE, h->values[1].value, &err));
    if (given) compare_params(h->graph, &h->values[1], &h->values[0], 1e-3, precision ? 1e-2 : 1e-5, "value");
    assert_ok(cuda->upload(model[0], CMKD_SLOT_VALUE, (const float *const *)h->values[1].value, &err));
  }
  for (int r = 0; r < 2; r++) /* the first step was queued, the second captured, the others launched again */
    assert_true(rank[r].calls >= 1 && rank[r].calls < STEPS);
  for (int r = 0; r < 2; r++)
    cuda->model_free(model[r]);
  cuda->model_free(whole);
  close_device(&g);
  gpu_clear();
  return worst;
}

static halves make_halves(const char *loss) {
  halves h = {.graph = net_plain(), .d = make_data(8, 8, 3), .loss = loss_of(loss)};
  h.start = start_params(h.graph);
  for (int i = 0; i < 2; i++) {
    assert_ok(cmkd_params_create(h.graph, &h.gradients[i], &err));
    assert_ok(cmkd_params_create(h.graph, &h.values[i], &err));
  }
  for (int i = 0; i < 64 * CLASSES; i++) /* every other half batch has a sharp teacher */
    if (i / CLASSES / HALF % 2) h.d.teacher[i] *= 3;
  return h;
}
static void free_halves(halves *h) {
  for (int i = 0; i < 2; i++) {
    cmkd_params_free(&h->gradients[i]);
    cmkd_params_free(&h->values[i]);
  }
  cmkd_params_free(&h->start);
  cmkd_loss_free(h->loss);
  free_data(&h->d);
  cmkd_graph_free(h->graph);
}

static void two_halves_reduce_to_the_whole(void **state) {
  (void)state;
  NEED_GPU();
  static const struct {
    const char *precision;
    double limit;
  } cases[] = {{NULL, 1e-5}, {"fp16", 1e-2}, {"bf16", 5e-2}};
  halves h = make_halves("ce+kd");
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const double worst = run_halves(&h, cases[i].precision, 1);
    if (!(worst <= cases[i].limit))
      fail_msg("%s: gradients are off by %g", cases[i].precision ? cases[i].precision : "fp32", worst);
  }
  free_halves(&h);
}

/* The gate of CMKD compares each row's entropy with the batch's mean: halves need the whole's. */
static void halves_know_the_mean_entropy(void **state) {
  (void)state;
  NEED_GPU();
  halves h = make_halves("cmkd");
  const double given = run_halves(&h, NULL, 1), own = run_halves(&h, NULL, 0);
  if (!(given <= 1e-5)) fail_msg("gradients are off by %g", given);
  if (!(own > 1e-2)) fail_msg("gates of the halves' own means change the gradient by %g only", own);
  free_halves(&h);
}

/* A hook that fails fails the step, captured or not, and leaves the model usable. */
static cmkd_status refuse(void *self, float *gradients, size_t count, void *stream, cmkd_error *error) {
  (void)gradients;
  (void)count;
  (void)stream;
  return --*(int *)self < 0 ? cmkd_fail(error, CMKD_ERR_IO, "a rank is gone") : CMKD_OK;
}
static void a_hook_that_fails_fails_the_step(void **state) {
  (void)state;
  NEED_GPU();
  halves h = make_halves("ce");
  device g = open_device(NULL, &h.d);
  for (int good = 0; good < 2; good++) { /* while queued; while captured */
    int left = good;
    cmkd_be_model *model;
    cmkd_step_result result;
    int k = 1;
    cmkd_model_config config = config_of(h.graph, h.loss, HALF, 0);
    config.reduce = (cmkd_reduce){&left, refuse};
    assert_ok(cuda->model_create(g.backend, &config, &model, &err));
    assert_ok(cuda->upload(model, CMKD_SLOT_VALUE, (const float *const *)h.start.value, &err));
    const cmkd_step step = step_of(&h.d, 0, HALF, 0.05);
    for (int i = 0; i < good; i++)
      train_one(model, &g, &step, &result);
    assert_int_equal(cuda->run(model, CMKD_LIST_TRAIN, g.images, &step, 1, NULL, &err), CMKD_ERR_IO);
    assert_string_equal(err.message, "a rank is gone");
    left = 1;
    assert_ok(cuda->run(model, CMKD_LIST_TRAIN, g.images, &step, 1, NULL, &err));
    assert_ok(cuda->read(model, &result, &k, &err));
    assert_int_equal(k, 1);
    cuda->model_free(model);
  }
  close_device(&g);
  free_halves(&h);
}

/* A profile captures one step to count its launches and never launches it: the hook is called for that capture too, and
 * the run ends in the same bytes. */
static void a_profile_leaves_the_hook_alone(void **state) {
  (void)state;
  NEED_GPU();
  halves h = make_halves("ce");
  cmkd_cuda_state half = {.scale = 0.5f};
  const size_t room = sizeof(float) * (1 << 20);
  char path[4096];
  snprintf(path, sizeof path, "%s/hook.json", scratch_dir());
  for (int profiled = 0; profiled < 2; profiled++) {
    /* without gradients of another rank: halves its own */
    ranks own = {.rank = 1, .kept = gpu_buffer(room), .half = gpu_put(&half, sizeof half)};
    float *zeros = calloc(1, room);
    assert_non_null(zeros);
    assert_ok(gpu->put(own.kept, zeros, room, &err));
    free(zeros);
    if (profiled) setenv("CMKD_CUDA_PROFILE", path, 1);
    device g = open_device(NULL, &h.d);
    unsetenv("CMKD_CUDA_PROFILE");
    cmkd_model_config config = config_of(h.graph, h.loss, HALF, 0);
    cmkd_be_model *model;
    cmkd_step_result result;
    config.reduce = (cmkd_reduce){&own, reduce};
    assert_ok(cuda->model_create(g.backend, &config, &model, &err));
    assert_ok(cuda->upload(model, CMKD_SLOT_VALUE, (const float *const *)h.start.value, &err));
    for (int i = 0; i < STEPS; i++) {
      const cmkd_step step = step_of(&h.d, i * HALF, HALF, 0.05);
      train_one(model, &g, &step, &result);
    }
    assert_int_equal(own.calls, profiled ? STEPS + 1 : 2); /* every step and the capture; queued and captured */
    assert_ok(cuda->download(model, CMKD_SLOT_VALUE, h.values[profiled].value, &err));
    cuda->model_free(model);
    close_device(&g);
    gpu_clear();
  }
  for (int p = 0; p < h.graph->params; p++)
    assert_memory_equal(h.values[0].value[p], h.values[1].value[p], sizeof(float) * (size_t)h.graph->param[p].count);
  free_halves(&h);
}

/* ---- further outputs and targets ---- */

enum { TEACHER, MAP, FEATURE, TARGETS, MAP_C = 12, FEATURE_C = 20, SIDE_PIXELS = 6, MAP_WIDTH = 36 * MAP_C };

/* Outputs besides the usual two: a convolution's result that a norm reads, which then cannot be folded, and a tensor
 * that is read twice. */
static cmkd_graph *net_tapped(void) {
  cmkd_net_builder b;
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_start(&b, "tapped", (cmkd_net_shape){SIDE_PIXELS, SIDE_PIXELS, 3, CLASSES}, &err));
  const int raw = cmkd_net_conv(&b, "c0", 0, MAP_C, 3, 1, 1), map = cmkd_net_norm(&b, "n0", raw, -1, CMKD_ACT_RELU);
  int x = cmkd_net_norm(&b, "n1", cmkd_net_conv(&b, "c1", map, MAP_C, 3, 1, 1), map, CMKD_ACT_RELU);
  x = cmkd_net_norm(&b, "n2", cmkd_net_conv(&b, "c2", x, FEATURE_C, 3, 2, 1), -1, CMKD_ACT_RELU);
  cmkd_net_classifier(&b, "fc", cmkd_net_globalpool(&b, x));
  assert_int_equal(cmkd_graph_output_set(b.graph, "raw", raw), 2);
  assert_int_equal(cmkd_graph_output_set(b.graph, "map", map), 3);
  assert_ok(cmkd_net_finish(&b, &graph));
  return graph;
}

typedef struct tapped {
  cmkd_graph *graph;
  data d;
  cmkd_loss *loss;
  cmkd_params start;
  float *target[TARGETS]; /* (64, width) */
  int width[TARGETS];
} tapped;

static tapped make_tapped(void) {
  tapped t = {.graph = net_tapped(),
              .d = make_data(SIDE_PIXELS, SIDE_PIXELS, 3),
              .loss = loss_of("ce+kd"),
              .width = {CLASSES, MAP_WIDTH, FEATURE_C}};
  cmkd_rng rng = cmkd_rng_start(11, CMKD_STREAM_TEST, 4);
  t.start = start_params(t.graph);
  for (int k = 0; k < TARGETS; k++) {
    t.target[k] = malloc(sizeof(float) * 64 * (size_t)t.width[k]);
    for (int i = 0; i < 64 * t.width[k]; i++)
      t.target[k][i] = k == TEACHER ? t.d.teacher[i] : (float)cmkd_rng_normal(&rng);
  }
  return t;
}
static void free_tapped(tapped *t) {
  for (int k = 0; k < TARGETS; k++)
    free(t->target[k]);
  cmkd_params_free(&t->start);
  cmkd_loss_free(t->loss);
  free_data(&t->d);
  cmkd_graph_free(t->graph);
}

/* Two terms on one output, one on logits, whose target is the teacher. */
static cmkd_model_config tapped_config(const tapped *t, int batch) {
  cmkd_model_config config = config_of(t->graph, t->loss, batch, 0);
  const cmkd_objective terms[] = {{"map", "map", 0.5},
                                  {"features", "feature", 2},
                                  {"raw", "map", 0.25},
                                  {"logits", "teacher", 0.1},
                                  {"features", "feature", 1}};
  config.targets = TARGETS;
  config.target[TEACHER] = (cmkd_target_spec){"teacher", CLASSES};
  config.target[MAP] = (cmkd_target_spec){"map", MAP_WIDTH};
  config.target[FEATURE] = (cmkd_target_spec){"feature", FEATURE_C};
  config.objectives = sizeof terms / sizeof *terms;
  memcpy(config.objective, terms, sizeof terms);
  return config;
}
static cmkd_step tapped_step(const tapped *t, int first, int count) {
  cmkd_step step = step_of(&t->d, first, count, 0.01);
  for (int k = 0; k < TARGETS; k++)
    step.target[k].values = t->target[k] + (size_t)first * (size_t)t->width[k];
  return step;
}

static side open_tapped(const cmkd_backend_table *table, const char *precision, const tapped *t, int batch) {
  const cmkd_model_config config = tapped_config(t, batch);
  side s = open_config(table, 1, precision, &t->d, &config);
  assert_ok(table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)t->start.value, &err));
  return s;
}

static void infer_tapped(side *s, const tapped *t, float *outputs[CMKD_MAX_OUTPUTS]) {
  const cmkd_step steps[2] = {tapped_step(t, 0, 5), tapped_step(t, 5, 3)};
  for (int o = 0; o < t->graph->outputs; o++)
    outputs[o] = malloc(sizeof(float) * 8 * cmkd_graph_output_width(t->graph, o));
  assert_ok(s->table->run(s->model, CMKD_LIST_INFER, s->images, steps, 2, outputs, &err));
}

/* Gradients into four tensors, several steps and a partial batch through captured graphs, and all outputs, against the
 * double reference. */
static void tapped_case(const char *precision, double loss, double gradient, double output) {
  static const int counts[] = {5, 5, 3, 5, 5, 5};
  enum { RUNS = sizeof counts / sizeof *counts };
  tapped t = make_tapped();
  side a = open_tapped(cuda, precision, &t, 5), b = open_tapped(&cmkd_backend_ref, NULL, &t, 5);
  cmkd_params got, want;
  cmkd_step steps[RUNS];
  cmkd_step_result results[2][RUNS];
  float *outputs[2][CMKD_MAX_OUTPUTS];
  infer_tapped(&a, &t, outputs[0]);
  infer_tapped(&b, &t, outputs[1]);
  for (int o = 0; o < t.graph->outputs; o++) {
    const double off = distance(outputs[0][o], outputs[1][o], 8 * (int64_t)cmkd_graph_output_width(t.graph, o), 1e-6);
    if (!(off <= output)) fail_msg("%s: output `%s` is off by %g", t.graph->arch, t.graph->output[o].name, off);
    free(outputs[0][o]);
    free(outputs[1][o]);
  }
  assert_ok(cmkd_params_create(t.graph, &got, &err));
  assert_ok(cmkd_params_create(t.graph, &want, &err));
  for (int i = 0, first = 0; i < RUNS; first += counts[i++])
    steps[i] = tapped_step(&t, first, counts[i]);
  for (int i = 0; i < RUNS; i++) {
    int k[2] = {1, 1};
    assert_ok(a.table->run(a.model, CMKD_LIST_TRAIN, a.images, &steps[i], 1, NULL, &err));
    assert_ok(b.table->run(b.model, CMKD_LIST_TRAIN, b.images, &steps[i], 1, NULL, &err));
    assert_ok(a.table->read(a.model, &results[0][i], &k[0], &err));
    assert_ok(b.table->read(b.model, &results[1][i], &k[1], &err));
    close_to(results[0][i].loss.loss, results[1][i].loss.loss, loss, "loss", t.graph->arch);
    for (int o = 0; o < 5; o++)
      close_to(results[0][i].objective[o], results[1][i].objective[o], loss, "objective", t.graph->arch);
    assert_true(results[0][i].objective[0] > 0.1 && results[0][i].objective[5] == 0);
    assert_ok(a.table->gradients(a.model, got.value, &err));
    assert_ok(b.table->gradients(b.model, want.value, &err));
    /* in 16 bits the two runs drift apart */
    if (!i || !precision) compare_params(t.graph, &got, &want, 1e-2, i ? 20 * gradient : gradient, "gradient");
  }
  close_side(&a);
  close_side(&b);
  cmkd_params_free(&got);
  cmkd_params_free(&want);
  free_tapped(&t);
}

static void objectives_are_the_reference(void **state) {
  (void)state;
  NEED_GPU();
  tapped_case(NULL, 1e-5, 1e-5, 1e-5);
  tapped_case("fp16", 2e-2, 4e-2, 1e-2);
  tapped_case("bf16", 5e-2, 0.2, 5e-2);
}

/* A target by index from resident rows gives the bytes that it gives by value; a NaN in one stops the step. */
static void a_target_may_be_resident(void **state) {
  (void)state;
  NEED_GPU();
  enum { RUNS = 4 };
  tapped t = make_tapped();
  cmkd_params end[2];
  uint32_t index[64];
  for (uint32_t i = 0; i < 64; i++)
    index[i] = i;
  for (int resident = 0; resident < 2; resident++) {
    side s = open_tapped(cuda, "bf16", &t, 4);
    cmkd_be_rows *rows = NULL;
    cmkd_step steps[RUNS];
    cmkd_step_result results[RUNS + 1];
    int k = RUNS;
    assert_ok(cuda->rows_create(s.backend, "f32", 64, FEATURE_C, &rows, &err));
    assert_ok(cuda->rows_write(rows, 0, 64, t.target[FEATURE], NULL, NULL, &err));
    for (int i = 0; i < RUNS; i++) {
      steps[i] = tapped_step(&t, i * 4, 4);
      if (resident) steps[i].target[FEATURE] = (cmkd_target){.resident = rows, .index = index + i * 4};
    }
    assert_ok(cmkd_params_create(t.graph, &end[resident], &err));
    assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, RUNS, NULL, &err));
    assert_ok(cuda->read(s.model, results, &k, &err));
    assert_int_equal(k, RUNS);
    assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, end[resident].value, &err));
    if (resident) { /* rows of another width, an index beyond them, no rows at all */
      cmkd_step bad = steps[0];
      bad.target[MAP] = bad.target[FEATURE];
      assert_int_equal(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, &bad, 1, NULL, &err), CMKD_ERR_VALUE);
      index[2] = 64;
      assert_int_equal(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, 1, NULL, &err), CMKD_ERR_VALUE);
      bad = steps[1];
      bad.target[FEATURE] = (cmkd_target){0};
      assert_int_equal(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, &bad, 1, NULL, &err), CMKD_ERR_VALUE);
      assert_non_null(strstr(err.message, "feature"));
    } else { /* the third row's target is not a number */
      cmkd_params after;
      const float kept = t.target[FEATURE][2 * FEATURE_C + 7];
      t.target[FEATURE][2 * FEATURE_C + 7] = NAN;
      k = 1;
      assert_ok(cmkd_params_create(t.graph, &after, &err));
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, 1, NULL, &err));
      assert_int_equal(cuda->read(s.model, results, &k, &err), CMKD_ERR_VALUE);
      assert_int_equal(results[0].loss.bad_row, 2);
      assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, after.value, &err));
      for (int p = 0; p < t.graph->params; p++)
        assert_memory_equal(after.value[p], end[0].value[p], sizeof(float) * (size_t)t.graph->param[p].count);
      cmkd_params_free(&after);
      t.target[FEATURE][2 * FEATURE_C + 7] = kept;
    }
    cuda->rows_free(rows);
    close_side(&s);
  }
  for (int p = 0; p < t.graph->params; p++)
    assert_memory_equal(end[0].value[p], end[1].value[p], sizeof(float) * (size_t)t.graph->param[p].count);
  for (int i = 0; i < 2; i++)
    cmkd_params_free(&end[i]);
  free_tapped(&t);
}

int main(void) {
  struct CMUnitTest tests[] = {
      TEST(two_halves_reduce_to_the_whole),  TEST(halves_know_the_mean_entropy), TEST(a_hook_that_fails_fails_the_step),
      TEST(a_profile_leaves_the_hook_alone), TEST(objectives_are_the_reference), TEST(a_target_may_be_resident),
  };
  return RUN_TESTS(tests);
}
