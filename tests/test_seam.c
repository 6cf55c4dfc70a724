/* The seam between a training loop and a backend, on ref and cpu alike: named outputs, further objectives on them, the
 * mean entropy of a global batch, and the hook between backward and update, with which two half batches make the
 * gradient of the whole. Inputs are drawn anew each time ($CMKD_TEST_SEED repeats them). */
#include <math.h>
#include <time.h>
#include "base/rng.h"
#include "kernels/step.h"
#include "nets/builder.h"
#include "tests/support_backend.h"

enum { BATCH = 8, HALF = BATCH / 2, HIDDEN = 10, MOST_WIDTH = 2048 };
static cmkd_error err;
static uint64_t seed;
static const cmkd_backend_table *const backends[] = {&cmkd_backend_ref, &cmkd_backend_cpu};

/* ---- networks ---- */

static int named(cmkd_net_builder *b, const char *name, int tensor) {
  assert_int_not_equal(cmkd_graph_output_set(b->graph, name, tensor), -1);
  return tensor;
}

/* No batch norm, so that a row's gradient depends on that row alone. "middle" is read by two operations, "features" by
 * the rest of the classifier. */
static cmkd_graph *net_plain(void) {
  cmkd_net_builder b;
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_start(&b, "plain", (cmkd_net_shape){9, 8, 3, CLASSES}, &err));
  int x = cmkd_net_act(&b, cmkd_net_conv_bias(&b, "c0", 0, 12, 3, 1, 1), CMKD_ACT_RELU);
  x = named(&b, "middle", cmkd_net_maxpool(&b, x, 3, 2, 1));
  int y = cmkd_net_act(&b, cmkd_net_conv_bias(&b, "c1", x, 12, 3, 1, 1), CMKD_ACT_RELU);
  x = cmkd_net_add(&b, y, x, CMKD_ACT_NONE);
  x = named(&b, "features", cmkd_net_linear(&b, "hidden", cmkd_net_globalpool(&b, x), HIDDEN));
  x = cmkd_net_linear(&b, "fc", cmkd_net_act(&b, x, CMKD_ACT_RELU6), CLASSES);
  named(&b, "logits", x);
  assert_ok(cmkd_net_finish(&b, &graph));
  return graph;
}

/* Outputs beside and after batch norms: "middle" is the result of one whose shortcut's gradient is its own masked one,
 * and is read by another's shortcut; "sum" is read by a batch norm and by an addition. */
static cmkd_graph *net_normed(void) {
  cmkd_net_builder b;
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_start(&b, "normed", (cmkd_net_shape){9, 8, 3, CLASSES}, &err));
  int x = cmkd_net_norm(&b, "n0", cmkd_net_conv(&b, "c0", 0, 12, 3, 2, 1), -1, CMKD_ACT_RELU);
  x = named(&b, "middle", cmkd_net_norm(&b, "n1", cmkd_net_conv(&b, "c1", x, 12, 3, 1, 1), x, CMKD_ACT_RELU));
  x = cmkd_net_norm(&b, "n2", cmkd_net_conv(&b, "c2", x, 12, 3, 1, 1), x, CMKD_ACT_RELU);
  x = named(&b, "sum", cmkd_net_add(&b, cmkd_net_conv(&b, "c3", x, 12, 1, 1, 0), x, CMKD_ACT_NONE));
  int y = cmkd_net_norm(&b, "n3", x, -1, CMKD_ACT_RELU);
  x = cmkd_net_add(&b, cmkd_net_conv(&b, "c4", y, 12, 3, 1, 1), x, CMKD_ACT_NONE);
  cmkd_net_classifier(&b, "fc", cmkd_net_globalpool(&b, x));
  assert_ok(cmkd_net_finish(&b, &graph));
  return graph;
}

/* ---- one run ---- */

/* What a reduce hook did and is to do. */
typedef struct hook {
  int calls;
  cmkd_status fails;
  const float *add; /* another rank's gradients; NULL: this one is left alone */
  float *seen;      /* (count) copy of what came in; NULL: none wanted */
  size_t count;
} hook;

static cmkd_status run_hook(void *self, float *gradients, size_t count, void *stream, cmkd_error *error) {
  hook *h = self;
  h->calls++;
  assert_null(stream);
  if (h->fails) return cmkd_fail(error, h->fails, "the other rank is gone");
  if (!h->count) {
    h->count = count;
    h->seen = malloc(count * sizeof *h->seen);
    memcpy(h->seen, gradients, count * sizeof *gradients);
  }
  assert_int_equal(h->count, count);
  for (size_t i = 0; h->add && i < count; i++)
    gradients[i] = 0.5f * (gradients[i] + h->add[i]);
  return CMKD_OK;
}

typedef struct world {
  cmkd_graph *graph;
  cmkd_loss *loss;
  data d;
  cmkd_params params;
  cmkd_model_config config;
  float *target[CMKD_MAX_TARGETS]; /* (64, width) beyond the teacher */
} world;

static void open_world(world *w, network *make, const char *loss) {
  memset(w, 0, sizeof *w);
  w->graph = make();
  w->loss = loss_of(loss);
  w->d = make_data(w->graph->tensor[0].h, w->graph->tensor[0].w, w->graph->tensor[0].c);
  w->params = start_params(w->graph);
  w->config = config_of(w->graph, w->loss, BATCH, 1);
  cmkd_rng rng = cmkd_rng_start(seed, CMKD_STREAM_TEST, 4);
  for (int i = 0; i < IMAGES * w->d.h * w->d.w * w->d.c; i++)
    w->d.pixels[i] = (uint8_t)cmkd_rng_u32(&rng);
  /* the first half of a batch has a surer teacher than the second */
  for (int i = 0; i < 64 * CLASSES; i++)
    w->d.teacher[i] = (i / CLASSES % BATCH < HALF ? 3.0f : 0.8f) * (float)cmkd_rng_normal(&rng);
  for (int t = 1; t < 4; t++) {
    w->target[t] = malloc(64 * MOST_WIDTH * sizeof(float));
    for (int i = 0; i < 64 * MOST_WIDTH; i++)
      w->target[t][i] = (float)cmkd_rng_normal(&rng);
  }
}

static void close_world(world *w) {
  for (int t = 1; t < 4; t++)
    free(w->target[t]);
  cmkd_params_free(&w->params);
  free_data(&w->d);
  cmkd_loss_free(w->loss);
  cmkd_graph_free(w->graph);
}

/* One more objective, with a target of its own. */
static void add_objective(world *w, const char *output, const char *target, double weight) {
  cmkd_model_config *c = &w->config;
  if (!c->targets) c->target[c->targets++] = (cmkd_target_spec){"teacher", CLASSES};
  const size_t width = cmkd_graph_output_width(w->graph, cmkd_graph_output_find(w->graph, output));
  assert_true(width <= MOST_WIDTH);
  if (strcmp(target, "teacher")) c->target[c->targets++] = (cmkd_target_spec){target, (int)width};
  c->objective[c->objectives++] = (cmkd_objective){output, target, weight};
}

static cmkd_step step_from(const world *w, int first, int count, double lr) {
  cmkd_step step = step_of(&w->d, first, count, lr);
  for (int t = 1; t < w->config.targets; t++)
    step.target[t].values = w->target[t] + (size_t)first * (size_t)w->config.target[t].width;
  return step;
}

static side open_world_side(const world *w, const cmkd_backend_table *table, int threads) {
  side s = open_config(table, threads, NULL, &w->d, &w->config);
  assert_ok(table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)w->params.value, &err));
  return s;
}

static cmkd_step_result train(const side *s, const cmkd_step *step) {
  cmkd_step_result result;
  int k = 1;
  assert_ok(s->table->run(s->model, CMKD_LIST_TRAIN, s->images, step, 1, NULL, &err));
  assert_ok(s->table->read(s->model, &result, &k, &err));
  assert_int_equal(k, 1);
  return result;
}

static double total_of(const world *w, const cmkd_step_result *r) {
  double total = r->loss.loss;
  for (int i = 0; i < w->config.objectives; i++)
    total += w->config.objective[i].weight * r->objective[i];
  return total;
}

static void every_objective(world *w, int normed) {
  add_objective(w, "middle", "hint", 0.7);
  add_objective(w, normed ? "sum" : "features", "second", 0.4);
  add_objective(w, "logits", "teacher", 0.3); /* with the loss on one output */
  add_objective(w, "features", "third", -0.2);
}

/* ---- objectives ---- */

/* Differences of the whole objective in double, at numbers spread over every parameter. */
static void gradients_are_differences(void **state) {
  (void)state;
  for (int normed = 0; normed < 2; normed++) {
    world w;
    cmkd_params grad;
    int checked = 0, wrong = 0;
    open_world(&w, normed ? net_normed : net_plain, "ce+kd");
    every_objective(&w, normed);
    side s = open_world_side(&w, &cmkd_backend_ref, 1);
    const cmkd_step step = step_from(&w, 0, BATCH - 1, 0);
    assert_ok(cmkd_params_create(w.graph, &grad, &err));
    train(&s, &step);
    assert_ok(s.table->gradients(s.model, grad.value, &err));
    for (int i = 0; i < w.graph->params; i++) {
      const cmkd_param *p = &w.graph->param[i];
      if (!CMKD_PARAM_TRAINED(p->kind)) continue;
      for (int64_t j = 0; j < p->count; j += 1 + p->count / 4, checked++) {
        const float old = w.params.value[i][j], at[2] = {old + 4e-6f, old - 4e-6f}; /* a step across a kink is rare */
        double total[2];
        for (int k = 0; k < 2; k++) {
          w.params.value[i][j] = at[k];
          assert_ok(s.table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)w.params.value, &err));
          const cmkd_step_result r = train(&s, &step);
          total[k] = total_of(&w, &r);
        }
        w.params.value[i][j] = old;
        const double want = (total[0] - total[1]) / ((double)at[0] - (double)at[1]), got = (double)grad.value[i][j];
        if (fabs(want - got) > 1e-5 + 1e-3 * fabs(want)) {
          printf("%s: %s[%d]: gradient %.9g, differences %.9g\n", w.graph->arch, p->name, (int)j, got, want);
          wrong++;
        }
      }
    }
    assert_true(checked > 20);
    assert_true(wrong <= checked / 20); /* a step across a kink of ReLU or max */
    close_side(&s);
    cmkd_params_free(&grad);
    close_world(&w);
  }
}

/* Values, gradients, and two steps. */
static void objectives_as_the_reference(void **state) {
  (void)state;
  for (int normed = 0; normed < 2; normed++)
    for (int threads = 1; threads <= 3; threads += 2) {
      world w;
      cmkd_params a, b;
      open_world(&w, normed ? net_normed : net_plain, "ce+kd");
      every_objective(&w, normed);
      side cpu = open_world_side(&w, &cmkd_backend_cpu, threads), ref = open_world_side(&w, &cmkd_backend_ref, 1);
      assert_ok(cmkd_params_create(w.graph, &a, &err));
      assert_ok(cmkd_params_create(w.graph, &b, &err));
      for (int i = 0; i < 2; i++) {
        const cmkd_step step = step_from(&w, i * BATCH, BATCH - i, 0.01);
        const cmkd_step_result x = train(&cpu, &step), y = train(&ref, &step);
        close_to(x.loss.loss, y.loss.loss, i ? 1e-3 : 1e-5, "loss", w.graph->arch);
        for (int j = 0; j < CMKD_MAX_OUTPUTS; j++)
          close_to(x.objective[j], y.objective[j], i ? 1e-3 : 1e-5, "objective", w.graph->arch);
        assert_true(y.objective[0] > 0 && y.objective[3] > 0 && y.objective[4] == 0);
        if (!i) {
          assert_ok(cpu.table->gradients(cpu.model, a.value, &err));
          assert_ok(ref.table->gradients(ref.model, b.value, &err));
          compare_params(w.graph, &a, &b, 1e-2, 5e-4, "gradient");
        }
        for (int slot = CMKD_SLOT_VALUE; slot <= CMKD_SLOT_MOMENTUM; slot++) {
          assert_ok(cpu.table->download(cpu.model, (cmkd_param_slot)slot, a.value, &err));
          assert_ok(ref.table->download(ref.model, (cmkd_param_slot)slot, b.value, &err));
          compare_params(w.graph, &a, &b, 1e-2, i ? 1e-2 : 1e-3, slot ? "momentum" : "value");
        }
      }
      close_side(&cpu);
      close_side(&ref);
      cmkd_params_free(&a);
      cmkd_params_free(&b);
      close_world(&w);
    }
}

/* A third output comes out of inference as the first two do; what the caller does not ask for is left out. */
static void outputs_by_name(void **state) {
  (void)state;
  world w;
  open_world(&w, net_plain, "ce");
  assert_int_equal(cmkd_graph_output_find(w.graph, "features"), CMKD_OUTPUT_FEATURES);
  const int middle = cmkd_graph_output_find(w.graph, "middle");
  assert_int_equal(middle, 2);
  const size_t width = cmkd_graph_output_width(w.graph, middle);
  float *got[2], logits[2 * 5 * CLASSES];
  w.config.train = 0;
  for (int i = 0; i < 2; i++) {
    side s = open_world_side(&w, backends[i], 2);
    const cmkd_step steps[] = {step_of(&w.d, 0, 3, 0), step_of(&w.d, 3, 2, 0)};
    float *outputs[CMKD_MAX_OUTPUTS] = {NULL};
    got[i] = outputs[middle] = malloc(5 * width * sizeof(float));
    assert_ok(s.table->run(s.model, CMKD_LIST_INFER, s.images, steps, 2, outputs, &err));
    outputs[middle] = NULL;
    outputs[CMKD_OUTPUT_LOGITS] = logits + i * 5 * CLASSES;
    assert_ok(s.table->run(s.model, CMKD_LIST_INFER, s.images, steps, 2, outputs, &err));
    assert_ok(s.table->run(s.model, CMKD_LIST_INFER, s.images, steps, 2, NULL, &err));
    close_side(&s);
  }
  assert_true(distance(got[1], got[0], (int64_t)(5 * width), 0) < 1e-5);
  assert_true(distance(logits + 5 * CLASSES, logits, 5 * CLASSES, 0) < 1e-5);
  free(got[0]);
  free(got[1]);
  close_world(&w);
}

/* ---- the hook ---- */

/* A hook that does nothing changes no bit of three steps, and is called once for each. */
static void an_idle_hook_changes_nothing(void **state) {
  (void)state;
  for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
    world w;
    cmkd_params end[2][2];
    open_world(&w, net_normed, "ce+cmkd");
    every_objective(&w, 1);
    for (int hooked = 0; hooked < 2; hooked++) {
      hook h = {0};
      if (hooked) w.config.reduce = (cmkd_reduce){&h, run_hook};
      side s = open_world_side(&w, backends[b], 3);
      for (int i = 0; i < 3; i++) {
        const cmkd_step step = step_from(&w, i * BATCH, BATCH - i, 0.05);
        train(&s, &step);
      }
      assert_int_equal(h.calls, hooked ? 3 : 0);
      for (int slot = 0; slot < 2; slot++) {
        assert_ok(cmkd_params_create(w.graph, &end[hooked][slot], &err));
        assert_ok(s.table->download(s.model, (cmkd_param_slot)slot, end[hooked][slot].value, &err));
      }
      close_side(&s);
      free(h.seen);
    }
    for (int slot = 0; slot < 2; slot++) {
      for (int i = 0; i < w.graph->params; i++)
        assert_memory_equal(end[0][slot].value[i], end[1][slot].value[i],
                            sizeof(float) * (size_t)w.graph->param[i].count);
      cmkd_params_free(&end[0][slot]);
      cmkd_params_free(&end[1][slot]);
    }
    close_world(&w);
  }
}

/* A hook that fails stops the step: nothing is changed, nothing is told, and the next step works. */
static void a_failing_hook_stops_the_step(void **state) {
  (void)state;
  for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
    world w;
    cmkd_params end;
    cmkd_step_result result;
    int k = 1;
    open_world(&w, net_normed, "ce");
    hook h = {.fails = CMKD_ERR_DEVICE};
    w.config.reduce = (cmkd_reduce){&h, run_hook};
    side s = open_world_side(&w, backends[b], 2);
    const cmkd_step step = step_from(&w, 0, BATCH, 0.05);
    assert_ok(cmkd_params_create(w.graph, &end, &err));
    assert_int_equal(s.table->run(s.model, CMKD_LIST_TRAIN, s.images, &step, 1, NULL, &err), CMKD_ERR_DEVICE);
    assert_string_equal(err.message, "the other rank is gone");
    assert_ok(s.table->read(s.model, &result, &k, &err));
    assert_int_equal(k, 0);
    assert_ok(s.table->download(s.model, CMKD_SLOT_VALUE, end.value, &err));
    for (int i = 0; i < w.graph->params; i++)
      assert_memory_equal(end.value[i], w.params.value[i], sizeof(float) * (size_t)w.graph->param[i].count);
    h.fails = CMKD_OK;
    train(&s, &step);
    free(h.seen);
    close_side(&s);
    cmkd_params_free(&end);
    close_world(&w);
  }
}

/* A bad row ends the step before the hook (backend.h says so to whoever reduces over ranks). */
static void a_bad_row_ends_the_step_before_the_hook(void **state) {
  (void)state;
  for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
    world w;
    cmkd_params end;
    cmkd_step_result result;
    int k = 1;
    open_world(&w, net_normed, "ce+kd");
    hook h = {0};
    w.config.reduce = (cmkd_reduce){&h, run_hook};
    w.d.teacher[3 * CLASSES + 1] = NAN;
    side s = open_world_side(&w, backends[b], 2);
    const cmkd_step step = step_from(&w, 0, BATCH, 0.05);
    assert_int_equal(s.table->run(s.model, CMKD_LIST_TRAIN, s.images, &step, 1, NULL, &err), CMKD_ERR_VALUE);
    assert_ok(s.table->read(s.model, &result, &k, &err));
    assert_true(k == 1 && result.loss.bad_row == 3);
    assert_int_equal(h.calls, 0);
    assert_ok(cmkd_params_create(w.graph, &end, &err));
    assert_ok(s.table->download(s.model, CMKD_SLOT_VALUE, end.value, &err));
    for (int i = 0; i < w.graph->params; i++)
      assert_memory_equal(end.value[i], w.params.value[i], sizeof(float) * (size_t)w.graph->param[i].count);
    cmkd_params_free(&end);
    close_side(&s);
    close_world(&w);
  }
}

static double entropy_mean(const float *teacher, int rows) {
  double sum = 0;
  for (int i = 0; i < rows; i++, teacher += CLASSES) {
    double top = (double)teacher[0], total = 0, weighted = 0;
    for (int c = 1; c < CLASSES; c++)
      top = fmax(top, (double)teacher[c]);
    for (int c = 0; c < CLASSES; c++) {
      total += exp((double)teacher[c] - top);
      weighted += exp((double)teacher[c] - top) * ((double)teacher[c] - top);
    }
    sum += log(total) - weighted / total;
  }
  return sum / rows;
}

/* The two halves of a batch on a rank each, the second rank's hook averaging with the first's gradients. Gives the mean
 * of the losses, and the second rank's parameters after its step. */
static double train_halves(const world *given, const cmkd_backend_table *table, double mean, float **gradients,
                           cmkd_params *end) {
  world w = *given;
  hook h[2] = {{0}, {0}};
  double total = 0;
  for (int rank = 0; rank < 2; rank++) {
    cmkd_step step = step_from(&w, rank * HALF, HALF, 0.05);
    step.entropy_mean = mean;
    if (rank) h[1].add = h[0].seen;
    w.config.reduce = (cmkd_reduce){&h[rank], run_hook};
    side s = open_world_side(&w, table, 2);
    const cmkd_step_result r = train(&s, &step);
    total += total_of(&w, &r) / 2;
    if (rank) assert_ok(s.table->download(s.model, CMKD_SLOT_VALUE, end->value, &err));
    close_side(&s);
  }
  *gradients = h[0].seen;
  for (size_t i = 0; i < h[0].count; i++)
    (*gradients)[i] = 0.5f * (h[0].seen[i] + h[1].seen[i]);
  free(h[1].seen);
  return total;
}

/* With the entropy of the global batch, two halves make the loss, the gradient and the step of the whole; without it
 * each half sorts its rows into easy and hard ones by its own mean, and they do not. */
static void halves_make_the_whole(void **state) {
  (void)state;
  for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
    world w;
    cmkd_params whole, halves;
    hook h = {0};
    float *gradients;
    open_world(&w, net_plain, "ce+cmkd:beta=4,gamma=1,gate=easy-spearman");
    every_objective(&w, 0);
    assert_ok(cmkd_params_create(w.graph, &whole, &err));
    assert_ok(cmkd_params_create(w.graph, &halves, &err));
    w.config.reduce = (cmkd_reduce){&h, run_hook};
    side s = open_world_side(&w, backends[b], 2);
    const cmkd_step step = step_from(&w, 0, BATCH, 0.05);
    const cmkd_step_result r = train(&s, &step);
    const double want = total_of(&w, &r), mean = entropy_mean(w.d.teacher, BATCH);
    assert_ok(s.table->download(s.model, CMKD_SLOT_VALUE, whole.value, &err));
    close_side(&s);
    for (int global = 0; global < 2; global++) {
      const double got = train_halves(&w, backends[b], global ? mean : 0, &gradients, &halves);
      const double off = distance(gradients, h.seen, (int64_t)h.count, 0);
      free(gradients);
      if (!global) {
        assert_true(fabs(got - want) > 1e-5 && off > 1e-3);
        continue;
      }
      close_to(got, want, 1e-6, "loss of two halves", backends[b]->name);
      if (off > 1e-5) fail_msg("%s: the halves' gradient is off by %g", backends[b]->name, off);
      compare_params(w.graph, &halves, &whole, 1e-3, 1e-6, "value after two halves");
    }
    free(h.seen);
    cmkd_params_free(&whole);
    cmkd_params_free(&halves);
    close_world(&w);
  }
}

/* ---- what is refused, and what backends share ---- */

static void refuses_model(const cmkd_model_config *config, cmkd_status status, const char *words) {
  for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
    cmkd_backend *backend;
    cmkd_be_model *model = NULL;
    assert_ok(backends[b]->open(NULL, &backend, &err));
    assert_int_equal(backends[b]->model_create(backend, config, &model, &err), status);
    assert_null(model);
    if (!strstr(err.message, words)) fail_msg("`%s` lacks `%s`", err.message, words);
    backends[b]->close(backend);
  }
}

static void configurations_are_checked(void **state) {
  (void)state;
  world w;
  open_world(&w, net_plain, "ce");
  add_objective(&w, "middle", "hint", 1);
  cmkd_model_config c = w.config;
  c.objective[0].output = "nowhere";
  refuses_model(&c, CMKD_ERR_VALUE, "no output `nowhere`");
  c = w.config;
  c.objective[0].target = "nobody";
  refuses_model(&c, CMKD_ERR_VALUE, "no target `nobody`");
  c = w.config;
  c.target[1].width--;
  refuses_model(&c, CMKD_ERR_MISMATCH, "`middle` has");
  c = w.config;
  c.target[1].name = "teacher";
  refuses_model(&c, CMKD_ERR_VALUE, "two targets");
  c = w.config;
  c.target[0].width++;
  refuses_model(&c, CMKD_ERR_VALUE, "first target");
  c = w.config;
  c.objective[0].weight = NAN;
  refuses_model(&c, CMKD_ERR_VALUE, "not finite");
  c = w.config;
  c.objectives = CMKD_MAX_OUTPUTS + 1;
  refuses_model(&c, CMKD_ERR_VALUE, "at most");
  close_world(&w);
}

static void refuses_step(const side *s, cmkd_step step, cmkd_status status, const char *words) {
  assert_int_equal(s->table->run(s->model, CMKD_LIST_TRAIN, s->images, &step, 1, NULL, &err), status);
  if (!strstr(err.message, words)) fail_msg("`%s` lacks `%s`", err.message, words);
}

static void steps_are_checked(void **state) {
  (void)state;
  for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
    world w;
    open_world(&w, net_plain, "ce+kd");
    add_objective(&w, "middle", "hint", 1);
    side s = open_world_side(&w, backends[b], 1);
    const cmkd_step good = step_from(&w, 0, 4, 0.1);
    cmkd_step step = good;
    step.target[1].values = NULL;
    refuses_step(&s, step, CMKD_ERR_VALUE, "without target `hint`");
    step = good;
    step.target[CMKD_TARGET_TEACHER].values = NULL;
    refuses_step(&s, step, CMKD_ERR_VALUE, "needs teacher logits");
    step = good;
    step.target[1].resident = (const cmkd_be_rows *)&step;
    refuses_step(&s, step, CMKD_ERR_UNSUPPORTED, "keeps no rows");
    step = good;
    step.entropy_mean = -1;
    refuses_step(&s, step, CMKD_ERR_VALUE, "mean entropy");
    step = good;
    step.epoch = 0;
    refuses_step(&s, step, CMKD_ERR_VALUE, "epoch");
    step = good;
    step.lr = NAN;
    refuses_step(&s, step, CMKD_ERR_VALUE, "learning rate");
    step = good;
    step.count = BATCH + 1;
    refuses_step(&s, step, CMKD_ERR_VALUE, "takes 1 to");
    w.target[1][2 * w.config.target[1].width + 3] = INFINITY;
    refuses_step(&s, good, CMKD_ERR_VALUE, "`hint` is not finite");
    cmkd_step_result result;
    int k = 1;
    assert_ok(s.table->read(s.model, &result, &k, &err));
    assert_true(k == 1 && result.loss.bad_row == 2);
    close_side(&s);
    close_world(&w);
  }
}

static void ranks_and_results(void **state) {
  (void)state;
  const float logits[] = {1, 3, 3, 2, 3};
  const double wide[] = {1, 3, 3, 2, 3};
  static const int rank[] = {4, 0, 1, 3, 2};
  for (int i = 0; i < 5; i++) {
    assert_int_equal(cmkd_label_rank(logits, 5, i), rank[i]);
    assert_int_equal(cmkd_label_rank_double(wide, 5, i), rank[i]);
  }
  cmkd_results results = {0};
  cmkd_step_result *one, out[150];
  int k = 5;
  cmkd_results_take(&results, out, &k);
  assert_int_equal(k, 0);
  for (int i = 0; i < 150; i++) {
    assert_ok(cmkd_results_add(&results, &one, &err));
    assert_true(one->loss.bad_row == -1 && isnan(one->loss.blocks) && one->count == 0);
    one->count = i;
  }
  for (int i = 0; i < 150; i += k) {
    k = 40;
    cmkd_results_take(&results, out, &k);
    assert_int_equal(k, i < 120 ? 40 : 30);
    for (int j = 0; j < k; j++)
      assert_int_equal(out[j].count, i + j);
  }
  assert_int_equal(results.count, 0);
  cmkd_results_free(&results);
}

int main(void) {
  const char *asked = getenv("CMKD_TEST_SEED");
  seed = asked ? strtoull(asked, NULL, 10) : (uint64_t)time(NULL);
  printf("note: inputs by CMKD_TEST_SEED=%llu\n", (unsigned long long)seed);
  const struct CMUnitTest tests[] = {cmocka_unit_test(gradients_are_differences),
                                     cmocka_unit_test(objectives_as_the_reference),
                                     cmocka_unit_test(outputs_by_name),
                                     cmocka_unit_test(an_idle_hook_changes_nothing),
                                     cmocka_unit_test(a_failing_hook_stops_the_step),
                                     cmocka_unit_test(a_bad_row_ends_the_step_before_the_hook),
                                     cmocka_unit_test(halves_make_the_whole),
                                     cmocka_unit_test(configurations_are_checked),
                                     cmocka_unit_test(steps_are_checked),
                                     cmocka_unit_test(ranks_and_results)};
  return cmocka_run_group_tests_name("seam", tests, NULL, NULL);
}
