/* Whole training steps of a device beside another's (the CPU backend's, or the double reference's): the same graph, weights, images, seeds
 * and teacher rows on both. One line of JSON.
 *   agree --mode step  --arch resnet20 --precision fp32     one step: loss, every gradient, weights and running statistics after it, logits
 *   agree --mode curve --arch resnet20 --precision bf16     200 steps: the two loss curves
 *
 * step: a difference is taken relative to the largest entry of its tensor, but not of less than 1 % of the largest of all tensors: the
 * gradient of a shift that the next norm takes out again is a sum that cancels to zero but for rounding. The gradient of a ReLU network jumps where
 * a pre-activation crosses zero, and among millions a few lie within rounding of it: two correct float32 backends then differ by 1e-3 to 1e-1. So
 * the step is first compared `away_from_kinks`, with norms that leave every pre-activation several deviations from a kink, some channels on,
 * some off: there everything must agree. Then `as_initialised`: there the loss and the running statistics must, which do not jump; the
 * gradients' difference is shown. `within`: nothing that must agree is further apart than --limit.
 * curve: training is chaotic, so two correct implementations drift apart. How far is shown by the yardstick: the other device a second time from
 * initial weights moved by the rounding of the precision. `within`: windows of 20 steps differ by no more than 3 yardsticks plus 1 % of the loss. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/options.h"
#include "base/rng.h"
#include "bench/gpu/world.h"

enum { WINDOW = 20, IMAGES = 2048 };

static const char *arch = "resnet20", *mode = "step", *device = "cuda", *against = "cpu", *precision = "fp32", *loss_text;
static int64_t batch = 64, steps = 200, threads, classes = 100, side = 32;
static double limit = 1e-4, lr = 0.05;

typedef struct world { cmkd_graph *graph; cmkd_loss *loss; cmkd_params params; bench_data data; } world;

static cmkd_status world_open(world *w, cmkd_error *err) {
  const cmkd_net_shape shape = {(int)side, (int)side, 3, (int)classes};
  CMKD_TRY(cmkd_net_build(arch, shape, &w->graph, err));
  CMKD_TRY(cmkd_loss_parse(loss_text, CMKD_LOSS_CIFAR, &w->loss, err));
  CMKD_TRY(cmkd_params_create(w->graph, &w->params, err));
  cmkd_params_init(w->graph, 1, &w->params);
  return bench_data_create(shape, IMAGES, 1, &w->data, err);
}

static void world_close(world *w) {
  bench_data_free(&w->data);
  cmkd_params_free(&w->params);
  cmkd_loss_free(w->loss);
  cmkd_graph_free(w->graph);
}

/* Norms that put pre-activations at 2.5 +- 0.5, far from ReLU's and ReLU6's kinks, or at -2.5 +- 0.5 in every fourth channel: there only where
 * dense convolutions read the result. A sum could come to lie anywhere, and a depthwise convolution of an idle channel has no variance,
 * which the next norm turns into a factor of 1 / sqrt(eps). */
static void leave_kinks(world *w) {
  const cmkd_graph *g = w->graph;
  for (int i = 0; i < g->ops; i++) {
    const cmkd_op *op = &g->op[i];
    int on = op->in[1] >= 0;
    if (op->kind != CMKD_OP_NORM) continue;
    for (int j = i + 1; j < g->ops; j++) {
      const cmkd_op *reader = &g->op[j];
      on |= (reader->in[0] == op->out || reader->in[1] == op->out) && !(reader->kind == CMKD_OP_CONV && reader->groups == 1);
    }
    for (int64_t c = 0; c < g->param[op->param[0]].count; c++) {
      w->params.value[op->param[0]][c] = 0.5f;
      w->params.value[op->param[1]][c] = on || c % 4 != 2 ? 2.5f : -2.5f;
    }
  }
}

/* ---- one step ------------------------------------------------------------------------------------------------------------ */

typedef struct answers { char who[256]; cmkd_step_result result; cmkd_params gradient, value, momentum; float *logits; } answers;

static cmkd_status one_step(const world *w, const char *name, const char *precision_of, int count, answers *a, cmkd_error *err) {
  bench_side s = {0};
  bench_steps block = {0};
  int k = 1;
  cmkd_status status = bench_side_open(name, precision_of, (int)threads, w->graph, w->loss, (int)batch, &w->data, &w->params, &s, err);
  if (status == CMKD_OK) status = bench_steps_create(1, (int)batch, (int)classes, &block, err);
  if (status == CMKD_OK) status = cmkd_params_create(w->graph, &a->gradient, err);
  if (status == CMKD_OK) status = cmkd_params_create(w->graph, &a->value, err);
  if (status == CMKD_OK) status = cmkd_params_create(w->graph, &a->momentum, err);
  if (status == CMKD_OK && !(a->logits = malloc((size_t)(count * classes) * sizeof *a->logits))) status = cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  if (status == CMKD_OK && !s.table->gradients) status = cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s does not hand out gradients", name);
  if (status == CMKD_OK) {
    snprintf(a->who, sizeof a->who, "%s", s.table->describe(s.backend));
    bench_steps_fill(&block, &w->data, 0, count, cmkd_loss_needs_teacher(w->loss), lr);
    status = s.table->run(s.model, CMKD_LIST_TRAIN, s.images, block.step, 1, NULL, NULL, err);
  }
  if (status == CMKD_OK) status = s.table->read(s.model, &a->result, &k, err);
  if (status == CMKD_OK) status = s.table->gradients(s.model, a->gradient.value, err);
  if (status == CMKD_OK) status = s.table->download(s.model, CMKD_SLOT_VALUE, a->value.value, err);
  if (status == CMKD_OK) status = s.table->download(s.model, CMKD_SLOT_MOMENTUM, a->momentum.value, err);
  if (status == CMKD_OK) status = s.table->run(s.model, CMKD_LIST_INFER, s.images, block.step, 1, a->logits, NULL, err);
  bench_steps_free(&block);
  bench_side_close(&s);
  return status;
}

static void answers_free(answers *a) {
  cmkd_params_free(&a->gradient);
  cmkd_params_free(&a->value);
  cmkd_params_free(&a->momentum);
  free(a->logits);
}

typedef struct worst { double relative, difference, squares, of; const char *name; } worst;

static double largest(const float *x, int64_t n) {
  double most = 0;
  for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)x[i]));
  return most;
}

static void compare(worst *w, const char *name, const float *a, const float *b, int64_t n, double floor) {
  double most = 0;
  for (int64_t i = 0; i < n; i++) {
    const double d = (double)a[i] - (double)b[i];
    most = isnan(d) ? INFINITY : fmax(most, fabs(d));
    w->squares += d * d;
    w->of += (double)b[i] * (double)b[i];
  }
  const double scale = fmax(largest(b, n), floor), relative = most == 0 ? 0 : most / scale;
  if (!w->name || relative > w->relative) *w = (worst){relative, most, w->squares, w->of, name};
}

/* Parameters that are trained, or the running statistics. */
static worst compare_params(const cmkd_graph *g, const cmkd_params *a, const cmkd_params *b, int trained) {
  worst w = {0};
  double floor = 0;
  for (int i = 0; i < g->params; i++)
    if (CMKD_PARAM_TRAINED(g->param[i].kind) == trained) floor = fmax(floor, 0.01 * largest(b->value[i], g->param[i].count));
  for (int i = 0; i < g->params; i++)
    if (CMKD_PARAM_TRAINED(g->param[i].kind) == trained) compare(&w, g->param[i].name, a->value[i], b->value[i], g->param[i].count, floor);
  return w;
}

static void add_worst(json_t *o, const char *what, worst w, int must, int *within) {
  if (!w.name) return;
  if (must && !(w.relative <= limit)) *within = 0;
  json_object_set_new(o, what, json_pack("{s:f, s:s, s:f, s:f}", "largest", fmin(w.relative, 1e300), "in", w.name, "difference", fmin(w.difference, 1e300), "l2", w.of > 0 ? fmin(sqrt(w.squares / w.of), 1e300) : 0));
}

static cmkd_status compare_step(const world *w, const char *where, int must, int count, json_t *out, int *within, cmkd_error *err) {
  answers a = {0}, b = {0};
  cmkd_status status = one_step(w, device, precision, count, &a, err);
  if (status == CMKD_OK) status = one_step(w, against, "fp32", count, &b, err);
  if (status == CMKD_OK) {
    json_t *o = json_pack("{s:s, s:i, s:f, s:f}", "weights", where, "rows", count, "loss", a.result.loss.loss, "loss_there", b.result.loss.loss);
    const double loss = fabs(a.result.loss.loss - b.result.loss.loss) / fabs(b.result.loss.loss);
    worst logits = {0};
    compare(&logits, "logits", a.logits, b.logits, count * classes, 0);
    json_object_set_new(o, "loss_relative", json_real(isfinite(loss) ? loss : 1e300));
    if (!(loss <= limit)) *within = 0;
    add_worst(o, "gradients", compare_params(w->graph, &a.gradient, &b.gradient, 1), must, within);
    add_worst(o, "momentum", compare_params(w->graph, &a.momentum, &b.momentum, 1), must, within);
    add_worst(o, "weights_after", compare_params(w->graph, &a.value, &b.value, 1), must, within);
    add_worst(o, "statistics_after", compare_params(w->graph, &a.value, &b.value, 0), 1, within);
    add_worst(o, "logits_after", logits, must, within);
    json_array_append_new(json_object_get(out, "steps"), o);
    json_object_set_new(out, "backend", json_string(a.who));
    json_object_set_new(out, "against", json_string(b.who));
  }
  answers_free(&a);
  answers_free(&b);
  return status;
}

static cmkd_status step_mode(world *w, json_t *out, cmkd_error *err) {
  int within = 1;
  json_object_set_new(out, "steps", json_array());
  CMKD_TRY(compare_step(w, "as_initialised", 0, (int)batch, out, &within, err));
  leave_kinks(w);
  CMKD_TRY(compare_step(w, "away_from_kinks", 1, (int)batch, out, &within, err));
  if (batch > 4) CMKD_TRY(compare_step(w, "away_from_kinks", 1, (int)batch / 4, out, &within, err)); /* the last, partial batch of an epoch */
  json_object_set_new(out, "limit", json_real(limit));
  json_object_set_new(out, "within", json_boolean(within));
  return CMKD_OK;
}

/* ---- 200 steps ----------------------------------------------------------------------------------------------------------- */

/* Weights times 1 + rounding * U(-1, 1). */
static void move_weights(const cmkd_graph *g, cmkd_params *p, double rounding) {
  cmkd_rng rng = cmkd_rng_start(2, CMKD_STREAM_TEST, 0);
  for (int i = 0; i < g->params; i++)
    for (int64_t j = 0; CMKD_PARAM_TRAINED(g->param[i].kind) && j < g->param[i].count; j++) p->value[i][j] *= (float)(1 + rounding * (2 * cmkd_rng_uniform(&rng) - 1));
}

/* Loss of every step into `curve`. */
static cmkd_status one_curve(const world *w, const char *name, const char *precision_of, double moved, double *curve, char who[256], cmkd_error *err) {
  bench_side s = {0};
  bench_steps block = {0};
  cmkd_params start = {0};
  cmkd_status status = cmkd_params_create(w->graph, &start, err);
  if (status == CMKD_OK) {
    cmkd_params_init(w->graph, 1, &start);
    move_weights(w->graph, &start, moved);
    status = bench_side_open(name, precision_of, (int)threads, w->graph, w->loss, (int)batch, &w->data, &start, &s, err);
  }
  if (status == CMKD_OK) status = bench_steps_create(1, (int)batch, (int)classes, &block, err);
  if (status == CMKD_OK && who) snprintf(who, 256, "%s", s.table->describe(s.backend));
  for (int64_t i = 0; status == CMKD_OK && i < steps; i++) {
    cmkd_step_result result;
    int k = 1;
    bench_steps_fill(&block, &w->data, i, (int)batch, cmkd_loss_needs_teacher(w->loss), lr);
    status = s.table->run(s.model, CMKD_LIST_TRAIN, s.images, block.step, 1, NULL, NULL, err);
    if (status == CMKD_OK) status = s.table->read(s.model, &result, &k, err);
    if (status == CMKD_OK) curve[i] = result.loss.loss;
  }
  bench_steps_free(&block);
  bench_side_close(&s);
  cmkd_params_free(&start);
  return status;
}

static double window_mean(const double *curve, int64_t from) {
  double sum = 0;
  int64_t n = steps - from < WINDOW ? steps - from : WINDOW;
  for (int64_t i = 0; i < n; i++) sum += curve[from + i];
  return sum / (double)n;
}

static double rounding_of(const char *name) {
  if (!strcmp(name, "bf16")) return 0x1p-9;
  return !strcmp(name, "fp16") || !strcmp(name, "tf32") ? 0x1p-12 : 0x1p-24;
}

static cmkd_status curve_mode(const world *w, json_t *out, cmkd_error *err) {
  double *curve = calloc(3 * (size_t)steps, sizeof *curve), *there = curve + steps, *yardstick = there + steps;
  char who[2][256];
  if (!curve) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_status status = one_curve(w, device, precision, 0, curve, who[0], err);
  if (status == CMKD_OK) status = one_curve(w, against, "fp32", 0, there, who[1], err);
  if (status == CMKD_OK) status = one_curve(w, against, "fp32", rounding_of(precision), yardstick, NULL, err);
  if (status == CMKD_OK) {
    json_t *a = json_array(), *b = json_array(), *c = json_array();
    double apart = 0, yard = 0, loss = 0;
    int finite = 1;
    for (int64_t i = 0; i < steps; i += WINDOW) {
      const double x = window_mean(curve, i), y = window_mean(there, i), z = window_mean(yardstick, i);
      finite &= isfinite(x) && isfinite(y) && isfinite(z);
      json_array_append_new(a, finite ? json_real(x) : json_null());
      json_array_append_new(b, finite ? json_real(y) : json_null());
      json_array_append_new(c, finite ? json_real(z) : json_null());
      apart = fmax(apart, fabs(x - y));
      yard = fmax(yard, fabs(z - y));
      loss = fmax(loss, y);
    }
    json_object_set_new(out, "backend", json_string(who[0]));
    json_object_set_new(out, "against", json_string(who[1]));
    json_object_set_new(out, "window", json_integer(WINDOW));
    json_object_set_new(out, "curve", a);
    json_object_set_new(out, "curve_there", b);
    json_object_set_new(out, "curve_yardstick", c);
    json_object_set_new(out, "first_loss_relative", finite ? json_real(fabs(curve[0] - there[0]) / there[0]) : json_null());
    json_object_set_new(out, "apart", finite ? json_real(apart) : json_null());
    json_object_set_new(out, "yardstick", finite ? json_real(yard) : json_null());
    json_object_set_new(out, "within", json_boolean(finite && apart <= 3 * yard + 0.01 * loss));
  }
  free(curve);
  return status;
}

int main(int argc, char **argv) {
  const cmkd_option options[] = {
    {"--mode", "step|curve", CMKD_OPT_STRING, &mode, "what to compare [step]", 0, 0, NULL},
    {"--arch", "NAME", CMKD_OPT_STRING, &arch, "network [resnet20]", 0, 0, NULL},
    {"--device", "NAME", CMKD_OPT_STRING, &device, "who is compared [cuda]", 0, 0, NULL},
    {"--against", "NAME", CMKD_OPT_STRING, &against, "with whom: cpu, ref [cpu]", 0, 0, NULL},
    {"--precision", "NAME", CMKD_OPT_STRING, &precision, "of --device: fp32, tf32, bf16, fp16 [fp32]", 0, 0, NULL},
    {"--loss", "EXPR", CMKD_OPT_STRING, &loss_text, "[step: dkd, whose gradient does not jump; curve: dkd+cmkd]", 0, 0, NULL},
    {"--batch", "N", CMKD_OPT_INT, &batch, "[64]", 1, 65536, NULL},
    {"--steps", "N", CMKD_OPT_INT, &steps, "of a curve [200]", 1, 1000000, NULL},
    {"--limit", "X", CMKD_OPT_DOUBLE, &limit, "largest relative difference of a step [1e-4]", 0, 1, NULL},
    {"--lr", "X", CMKD_OPT_DOUBLE, &lr, "learning rate [0.05]", 0, 10, NULL},
    {"--classes", "N", CMKD_OPT_INT, &classes, "[100]", 2, 100000, NULL},
    {"--side", "N", CMKD_OPT_INT, &side, "height and width of an image [32]", 8, 512, NULL},
    {"--threads", "N", CMKD_OPT_INT, &threads, "of the CPU [all cores]", 1, 4096, NULL},
    {0}};
  const cmkd_command command = {.name = "agree", .summary = "a device's training steps beside another's", .usage = "[options]", .options = options};
  cmkd_error err = {0};
  world w = {0};
  int help = 0;
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status == CMKD_OK && help) return 0;
  if (status == CMKD_OK && strcmp(mode, "step") && strcmp(mode, "curve")) status = cmkd_fail(&err, CMKD_ERR_USAGE, "--mode %.40s: there are step and curve", mode);
  if (!loss_text) loss_text = mode[0] == 's' ? "dkd" : "dkd+cmkd";
  if (status == CMKD_OK) status = world_open(&w, &err);
  if (status == CMKD_OK) {
    json_t *out = json_pack("{s:s, s:s, s:s, s:I, s:s, s:f}", "mode", mode, "arch", arch, "precision", precision, "batch", (json_int_t)batch, "loss", loss_text, "lr", lr);
    status = mode[0] == 's' ? step_mode(&w, out, &err) : curve_mode(&w, out, &err);
    if (status == CMKD_OK) {
      json_dumpf(out, stdout, JSON_REAL_PRECISION(6));
      putchar('\n');
    }
    json_decref(out);
  }
  world_close(&w);
  return cmkd_exit_status("agree", &err, status);
}
