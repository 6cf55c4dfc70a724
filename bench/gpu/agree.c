/* Whole training steps of a device beside others: the same graph, weights, images, seeds and teacher rows on all. One
 * line of JSON.
 *   agree --mode step  --arch resnet20 --precision fp32    loss, gradients, weights and statistics after a step, logits
 *   agree --mode curve --arch resnet20 --precision bf16    200 steps: the two loss curves
 * --against cpu, or ref (the double reference), computes the other side here. Where time is short, on a GPU that is
 * lent, it comes in a file, and only --device's side is computed:
 *   agree --mode step --arch resnet20 --batch 32 --make resnet20.reference                         beforehand, anywhere
 *   agree --mode step --arch resnet20 --batch 32 --precision fp32 --against resnet20.reference     the same for curves
 * A step's file holds the double reference's answers and how far the CPU's float32 lies from them (`cpu` of each
 * step), a curve's the CPU's curve and a yardstick for each rounding. One made for other options or inputs is refused.
 *
 * step: a difference is taken relative to the largest entry of its tensor, but not of less than 1 % of the largest of
 * all tensors: the gradient of a shift that the next norm takes out again is a sum that cancels to zero but for
 * rounding. The gradient of a ReLU network jumps where a pre-activation crosses zero, and among millions a few lie
 * within rounding of it: two correct float32 backends then differ by 1e-3 to 1e-1. So the step is first compared
 * `as_initialised`: there the loss and the running statistics must agree, which do not jump; the gradients' difference
 * is shown. Then `away_from_kinks`, a full batch and a quarter of one, with norms that leave every pre-activation
 * several deviations from a kink, some channels on, some off: there everything must. `within`: nothing that must agree
 * is further apart than --limit, from the double reference with --against ref or a file, from float32 with --against
 * cpu. With a file, three times the CPU's own distance is allowed where that is more (up to 1e-3): a norm of nearly
 * constant input magnifies float32's rounding on any device. A file's gradients are within 2^-24 of their tensor's
 * largest entry; as initialised, where they are only shown, it has up to 2048 entries of each tensor, and what it shows
 * is of those.
 * curve: training is chaotic, so two correct implementations drift apart. How far is shown by the yardstick: the other
 * device a second time from initial weights moved by the rounding of the precision. `within`: windows of 20 steps
 * differ by no more than 3 yardsticks plus 1 % of the loss. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/program/options.h"
#include "base/rng.h"
#include "bench/gpu/inputs.h"
#include "bench/gpu/reference.h"
#include "bench/gpu/world.h"

/* BLOCK: steps of a curve's run() calls; a GPU takes them as captured graphs of several, as in cmkd-train. */
enum { WINDOW = 20, BLOCK = 50, IMAGES = 2048, SAMPLED = 2048 };
/* bench_side_open's; --make finds out if it no longer is */
static const double weight_decay = (double)5e-4f;

static const char *arch = "resnet20", *mode = "step", *device = "cuda", *against = "cpu", *precision = "fp32",
                  *loss_text, *make;
static int64_t batch = 64, steps = 200, threads, classes = 100, side = 32;
static double limit = 1e-4, lr = 0.05;

/* away: `params` with norms that leave the kinks */
typedef struct world {
  cmkd_graph *graph;
  cmkd_loss *loss;
  cmkd_params params, away;
  bench_data data;
} world;

/* Norms that put pre-activations at 2.5 +- 0.5, far from ReLU's and ReLU6's kinks, or at -2.5 +- 0.5 in every fourth
 * channel: there only where dense convolutions read the result. A sum could come to lie anywhere, and a depthwise
 * convolution of an idle channel has no variance, which the next norm turns into a factor of 1 / sqrt(eps). */
static void leave_kinks(const cmkd_graph *g, cmkd_params *p) {
  for (int i = 0; i < g->ops; i++) {
    const cmkd_op *op = &g->op[i];
    int on = op->in[1] >= 0;
    if (op->kind != CMKD_OP_NORM) continue;
    for (int j = i + 1; j < g->ops; j++) {
      const cmkd_op *reader = &g->op[j];
      const int dense = reader->kind == CMKD_OP_CONV && reader->groups == 1;
      on |= (reader->in[0] == op->out || reader->in[1] == op->out) && !dense;
    }
    for (int64_t c = 0; c < g->param[op->param[0]].count; c++) {
      p->value[op->param[0]][c] = 0.5f;
      p->value[op->param[1]][c] = on || c % 4 != 2 ? 2.5f : -2.5f;
    }
  }
}

static cmkd_status world_open(world *w, cmkd_error *err) {
  const cmkd_net_shape shape = {(int)side, (int)side, 3, (int)classes};
  CMKD_TRY(cmkd_net_build(arch, shape, &w->graph, err));
  CMKD_TRY(cmkd_loss_parse(loss_text, CMKD_LOSS_CIFAR, &w->loss, err));
  CMKD_TRY(cmkd_params_create(w->graph, &w->params, err));
  CMKD_TRY(cmkd_params_create(w->graph, &w->away, err));
  cmkd_params_init(w->graph, 1, &w->params);
  cmkd_params_init(w->graph, 1, &w->away);
  leave_kinks(w->graph, &w->away);
  return bench_data_create(shape, IMAGES, 1, &w->data, err);
}

static void world_close(world *w) {
  bench_data_free(&w->data);
  cmkd_params_free(&w->away);
  cmkd_params_free(&w->params);
  cmkd_loss_free(w->loss);
  cmkd_graph_free(w->graph);
}

static cmkd_status side_open(const world *w, const char *name, const char *precision_of, const cmkd_params *start,
                             bench_side *out, cmkd_error *err) {
  return bench_side_open(&(bench_setup){.device = name,
                                        .precision = precision_of,
                                        .threads = (int)threads,
                                        .batch = (int)batch,
                                        .graph = w->graph,
                                        .loss = w->loss,
                                        .data = &w->data,
                                        .params = start},
                         out, err);
}

/* ---- files of answers ---- */

typedef struct reference {
  json_t *about;
  uint8_t *numbers;
  size_t size;
} reference;

static void reference_close(reference *r) {
  json_decref(r->about);
  free(r->numbers);
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* --against names a file, not a backend. */
static int is_file(const char *name) {
  static const char ending[] = ".reference";
  const size_t length = strlen(name), tail = sizeof ending - 1;
  return strchr(name, '/') || (length >= tail && !strcmp(name + length - tail, ending));
}

/* All that the answers depend on, apart from the device. */
static cmkd_status settings_of(const world *w, json_t **out, cmkd_error *err) {
  const int curve = mode[0] == 'c';
  json_t *o = json_pack("{s:s, s:s, s:s, s:f}", "mode", mode, "arch", arch, "loss", cmkd_loss_text(w->loss), "lr", lr);
  *out = o;
  if (!o) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  json_object_set_new(o, "batch", json_integer(batch));
  json_object_set_new(o, "classes", json_integer(classes));
  json_object_set_new(o, "side", json_integer(side));
  json_object_set_new(o, "steps", json_integer(curve ? steps : 1));
  json_object_set_new(o, "weight decay", json_real(weight_decay));
  CMKD_TRY(bench_digest_params(o, "initial weights", w->graph, &w->params, err));
  if (!curve) CMKD_TRY(bench_digest_params(o, "weights away from kinks", w->graph, &w->away, err));
  return bench_digest_inputs(o, &w->data, w->loss, (int)batch, curve ? steps : 1, err);
}

/* A file that was made for just this, with `size` bytes of numbers. */
static cmkd_status reference_open(const world *w, size_t size, reference *r, cmkd_error *err) {
  json_t *settings = NULL;
  cmkd_status status = bench_reference_read(against, &r->about, &r->numbers, &r->size, err);
  if (status == CMKD_OK) status = settings_of(w, &settings, err);
  if (status == CMKD_OK) status = bench_reference_match(r->about, settings, against, err);
  if (status == CMKD_OK && r->size != size)
    status = bench_reference_bad(against, "damaged: it has not the size of its network's numbers", err);
  if (status == CMKD_OK && !json_is_string(json_object_get(r->about, "backend")))
    status = bench_reference_bad(against, "damaged: it does not say who computed it", err);
  json_decref(settings);
  return status;
}

/* Writes --make's file; takes over `more` beside the settings. */
static cmkd_status reference_make(const world *w, json_t *more, const void *numbers, size_t size, json_t *out,
                                  cmkd_error *err) {
  json_t *settings = NULL, *about = json_object();
  cmkd_status status = settings_of(w, &settings, err);
  json_object_set_new(about, "settings", settings);
  json_object_update(about, more);
  if (status == CMKD_OK) status = bench_reference_write(make, about, numbers, size, err);
  json_object_set_new(out, "file", json_string(base_name(make)));
  json_decref(about);
  json_decref(more);
  return status;
}

/* ---- one step ---- */

/* must: gradients, and what follows from them, have to agree. sampled: entries of a gradient in a file, 0: all. */
typedef struct comparison {
  const char *weights;
  int must, rows, sampled;
} comparison;

static int comparisons(comparison out[3]) {
  out[0] = (comparison){"as_initialised", 0, (int)batch, SAMPLED};
  out[1] = (comparison){"away_from_kinks", 1, (int)batch, 0};
  out[2] = (comparison){"away_from_kinks", 1, (int)batch / 4, 0}; /* the last, partial batch of an epoch */
  return batch > 4 ? 3 : 2;
}

static const cmkd_params *start_of(const world *w, const comparison *c) { return c->must ? &w->away : &w->params; }

static bench_packing packing_of(const world *w, const comparison *c) {
  return (bench_packing){w->graph, start_of(w, c), lr, weight_decay, c->rows, c->sampled};
}

/* From the comparison's weights and zero momentum; `a` fresh. */
static cmkd_status one_step(const world *w, const bench_side *s, const comparison *c, bench_answers *a,
                            cmkd_error *err) {
  bench_steps block;
  const float *const *start = (const float *const *)start_of(w, c)->value;
  const float *const *zero = (const float *const *)a->momentum.value;
  if (!s->table->gradients)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s does not hand out gradients", s->table->name);
  cmkd_status status = bench_steps_create(1, (int)batch, (int)classes, &block, err);
  if (status == CMKD_OK) status = s->table->upload(s->model, CMKD_SLOT_VALUE, start, err);
  if (status == CMKD_OK) status = s->table->upload(s->model, CMKD_SLOT_MOMENTUM, zero, err);
  if (status == CMKD_OK) {
    bench_steps_fill(&block, &w->data, 0, c->rows, cmkd_loss_needs_teacher(w->loss), lr);
    status = bench_steps_train(s, &block, 1, &a->loss, err);
  }
  if (status == CMKD_OK) status = s->table->gradients(s->model, a->gradient.value, err);
  if (status == CMKD_OK) status = s->table->download(s->model, CMKD_SLOT_VALUE, a->value.value, err);
  if (status == CMKD_OK) status = s->table->download(s->model, CMKD_SLOT_MOMENTUM, a->momentum.value, err);
  if (status == CMKD_OK)
    status =
        s->table->run(s->model, CMKD_LIST_INFER, s->images, block.step, 1, (float *[CMKD_MAX_OUTPUTS]){a->logits}, err);
  bench_steps_free(&block);
  return status;
}

typedef struct worst {
  double relative, difference, squares, of;
  const char *name;
} worst;

/* Of every stride'th entry. */
static void compare(worst *w, const char *name, const float *a, const float *b, int64_t n, int64_t stride,
                    double floor) {
  double most = 0;
  for (int64_t i = 0; i < n; i += stride) {
    const double d = (double)a[i] - (double)b[i];
    most = isnan(d) ? INFINITY : fmax(most, fabs(d));
    w->squares += d * d;
    w->of += (double)b[i] * (double)b[i];
  }
  const double scale = fmax(bench_largest(b, n, stride), floor), relative = most == 0 ? 0 : most / scale;
  if (!w->name || relative > w->relative) *w = (worst){relative, most, w->squares, w->of, name};
}

/* Parameters that are trained, or the running statistics. sampled: entries of each, 0: all. */
static worst compare_params(const cmkd_graph *g, const cmkd_params *a, const cmkd_params *b, int trained, int sampled) {
  worst w = {0};
  double floor = 0;
  for (int i = 0; i < g->params; i++) {
    const int64_t n = g->param[i].count;
    if (CMKD_PARAM_TRAINED(g->param[i].kind) == trained)
      floor = fmax(floor, 0.01 * bench_largest(b->value[i], n, bench_stride(n, sampled)));
  }
  for (int i = 0; i < g->params; i++) {
    const int64_t n = g->param[i].count;
    if (CMKD_PARAM_TRAINED(g->param[i].kind) == trained)
      compare(&w, g->param[i].name, a->value[i], b->value[i], n, bench_stride(n, sampled), floor);
  }
  return w;
}

/* How far apart `what` may be; cpu: what the file says of the CPU, or NULL. */
static double allowed(const json_t *cpu, const char *what) {
  const double theirs = json_number_value(json_object_get(json_object_get(cpu, what), "largest"));
  return fmax(limit, fmin(3 * theirs, 1e-3));
}

static void add_worst(json_t *o, const char *what, worst w, const json_t *cpu, int must, int *within) {
  if (!w.name) return;
  if (must && !(w.relative <= allowed(cpu, what))) *within = 0;
  const double l2 = w.of > 0 ? fmin(sqrt(w.squares / w.of), 1e300) : 0;
  json_object_set_new(o, what,
                      json_pack("{s:f, s:s, s:f, s:f}", "largest", fmin(w.relative, 1e300), "in", w.name, "difference",
                                fmin(w.difference, 1e300), "l2", l2));
}

static json_t *compare_answers(const world *w, const comparison *c, int sampled, const bench_answers *a,
                               const bench_answers *b, const json_t *cpu, int *within) {
  json_t *o =
      json_pack("{s:s, s:i, s:f, s:f}", "weights", c->weights, "rows", c->rows, "loss", a->loss, "loss_there", b->loss);
  const double loss = fabs(a->loss - b->loss) / fabs(b->loss);
  const cmkd_graph *g = w->graph;
  worst logits = {0};
  compare(&logits, "logits", a->logits, b->logits, c->rows * classes, 1, 0);
  json_object_set_new(o, "loss_relative", json_real(isfinite(loss) ? loss : 1e300));
  if (!(loss <= limit)) *within = 0;
  add_worst(o, "gradients", compare_params(g, &a->gradient, &b->gradient, 1, sampled), cpu, c->must, within);
  add_worst(o, "momentum", compare_params(g, &a->momentum, &b->momentum, 1, sampled), cpu, c->must, within);
  add_worst(o, "weights_after", compare_params(g, &a->value, &b->value, 1, sampled), cpu, c->must, within);
  add_worst(o, "statistics_after", compare_params(g, &a->value, &b->value, 0, 0), cpu, 1, within);
  add_worst(o, "logits_after", logits, cpu, c->must, within);
  return o;
}

/* What the device is compared with: computed here, out of --against's file, or computed and as --make's file will give
 * it back. */
static cmkd_status answers_there(const world *w, const bench_side *there, const comparison *c, uint8_t *packed,
                                 bench_answers *b, cmkd_error *err) {
  const bench_packing packing = packing_of(w, c);
  cmkd_error why = {0};
  if (there->table) CMKD_TRY(one_step(w, there, c, b, err));
  if (make) CMKD_TRY(bench_answers_pack(&packing, b, packed, err));
  if (!packed) return CMKD_OK;
  const cmkd_status status = bench_answers_unpack(&packing, packed, b, &why);
  return status == CMKD_OK ? CMKD_OK : bench_reference_bad(make ? make : against, why.message, err);
}

/* packed: of this comparison, or NULL. cpu: what the file says of the CPU, or NULL. */
static cmkd_status compare_step(const world *w, const bench_side side_of[2], const comparison *c, uint8_t *packed,
                                json_t *cpu, json_t *out, int *within, cmkd_error *err) {
  bench_answers a = {0}, b = {0};
  cmkd_status status = bench_answers_create(w->graph, c->rows, &a, err);
  if (status == CMKD_OK) status = bench_answers_create(w->graph, c->rows, &b, err);
  if (status == CMKD_OK) status = one_step(w, &side_of[0], c, &a, err);
  if (status == CMKD_OK) status = answers_there(w, &side_of[1], c, packed, &b, err);
  if (status == CMKD_OK) {
    json_t *o = compare_answers(w, c, packed ? c->sampled : 0, &a, &b, cpu, within);
    if (cpu) json_object_set(o, "cpu", cpu);
    json_array_append_new(json_object_get(out, "steps"), o);
  }
  bench_answers_free(&a);
  bench_answers_free(&b);
  return status;
}

/* Opens --against's file, or makes room for --make's: of the packed answers to all comparisons. */
static cmkd_status step_file(const world *w, const comparison *c, int n, reference *file, cmkd_error *err) {
  size_t size = 0;
  for (int i = 0; i < n; i++) {
    const bench_packing packing = packing_of(w, &c[i]);
    size += bench_packed_size(&packing);
  }
  if (make) {
    *file = (reference){NULL, malloc(size), size};
    return file->numbers ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for %zu bytes of answers", size);
  }
  if (!is_file(against)) return CMKD_OK;
  CMKD_TRY(reference_open(w, size, file, err));
  const json_t *cpu = json_object_get(file->about, "steps");
  int objects = json_array_size(cpu) == (size_t)n;
  for (int i = 0; i < n; i++)
    objects &= json_is_object(json_array_get(cpu, (size_t)i));
  if (!objects) return bench_reference_bad(against, "damaged: it does not say how far the CPU lies from it", err);
  return CMKD_OK;
}

static void name_sides(const bench_side side_of[2], const reference *file, json_t *out) {
  json_object_set_new(out, "backend", json_string(side_of[0].table->describe(side_of[0].backend)));
  if (side_of[1].table)
    json_object_set_new(out, "against", json_string(side_of[1].table->describe(side_of[1].backend)));
  else
    json_object_set_new(out, "against", json_sprintf("double reference (%s)", base_name(against)));
  if (file->about) json_object_set(out, "cpu", json_object_get(file->about, "cpu"));
}

static cmkd_status step_mode(const world *w, json_t *out, cmkd_error *err) {
  int within = 1;
  comparison c[3];
  reference file = {0};
  bench_side side_of[2] = {0};
  const int n = comparisons(c);
  json_object_set_new(out, "steps", json_array());
  cmkd_status status = step_file(w, c, n, &file, err);
  uint8_t *packed = file.numbers;
  if (status == CMKD_OK) status = side_open(w, device, precision, &w->params, &side_of[0], err);
  if (status == CMKD_OK && !file.about) status = side_open(w, against, "fp32", &w->params, &side_of[1], err);
  for (int i = 0; status == CMKD_OK && i < n; i++) {
    const bench_packing packing = packing_of(w, &c[i]);
    json_t *cpu = json_array_get(json_object_get(file.about, "steps"), (size_t)i);
    status = compare_step(w, side_of, &c[i], packed, cpu, out, &within, err);
    if (packed) packed += bench_packed_size(&packing);
  }
  if (status == CMKD_OK) {
    name_sides(side_of, &file, out);
    json_object_set_new(out, "limit", json_real(limit));
    json_object_set_new(out, "within", json_boolean(within));
  }
  if (status == CMKD_OK && make) {
    json_t *more = json_pack("{s:O, s:O, s:O}", "backend", json_object_get(out, "against"), "cpu",
                             json_object_get(out, "backend"), "steps", json_object_get(out, "steps"));
    status = reference_make(w, more, file.numbers, file.size, out, err);
  }
  bench_side_close(&side_of[0]);
  bench_side_close(&side_of[1]);
  reference_close(&file);
  return status;
}

/* ---- 200 steps ---- */

/* Of float; of tf32 and half; of bfloat16. A curve's file has a yardstick for each, in this order, behind the curve. */
enum { ROUNDINGS = 3 };
static const double rounding[ROUNDINGS] = {0x1p-24, 0x1p-12, 0x1p-9};

static int rounding_of(const char *name) {
  if (!strcmp(name, "bf16")) return 2;
  return !strcmp(name, "fp16") || !strcmp(name, "tf32");
}

/* Weights times 1 + by * U(-1, 1). */
static void perturb_weights(const cmkd_graph *g, cmkd_params *p, double by) {
  cmkd_rng rng = cmkd_rng_start(2, CMKD_STREAM_TEST, 0);
  for (int i = 0; i < g->params; i++) {
    if (!CMKD_PARAM_TRAINED(g->param[i].kind)) continue;
    for (int64_t j = 0; j < g->param[i].count; j++)
      p->value[i][j] *= (float)(1 + by * (2 * cmkd_rng_uniform(&rng) - 1));
  }
}

/* Loss of every step into `curve`, from initial weights moved by `moved`. who: gets the backend's description, or
 * NULL. */
static cmkd_status one_curve(const world *w, const char *name, const char *precision_of, double moved, double *curve,
                             char who[256], cmkd_error *err) {
  bench_side s = {0};
  bench_steps block = {0};
  cmkd_params start = {0};
  cmkd_status status = cmkd_params_create(w->graph, &start, err);
  if (status == CMKD_OK) {
    cmkd_params_init(w->graph, 1, &start);
    perturb_weights(w->graph, &start, moved);
    status = side_open(w, name, precision_of, &start, &s, err);
  }
  const int k = steps < BLOCK ? (int)steps : BLOCK;
  if (status == CMKD_OK) status = bench_steps_create(k, (int)batch, (int)classes, &block, err);
  if (status == CMKD_OK && who) snprintf(who, 256, "%s", s.table->describe(s.backend));
  for (int64_t i = 0; status == CMKD_OK && i < steps; i += k) {
    bench_steps_fill(&block, &w->data, i, (int)batch, cmkd_loss_needs_teacher(w->loss), lr);
    status = bench_steps_train(&s, &block, steps - i < k ? (int)(steps - i) : k, curve + i, err);
  }
  bench_steps_free(&block);
  bench_side_close(&s);
  cmkd_params_free(&start);
  return status;
}

static double window_mean(const double *curve, int64_t from) {
  double sum = 0;
  int64_t n = steps - from < WINDOW ? steps - from : WINDOW;
  for (int64_t i = 0; i < n; i++)
    sum += curve[from + i];
  return sum / (double)n;
}

/* Means of the windows; null from the first that is not finite. */
static json_t *windows(const double *curve) {
  json_t *a = json_array();
  int finite = 1;
  for (int64_t i = 0; i < steps; i += WINDOW) {
    const double mean = window_mean(curve, i);
    finite &= isfinite(mean) != 0;
    json_array_append_new(a, finite ? json_real(mean) : json_null());
  }
  return a;
}

static void judge_curves(const double *curve, const double *there, const double *yardstick, json_t *out) {
  double apart = 0, yard = 0, loss = 0;
  int finite = 1;
  for (int64_t i = 0; i < steps; i += WINDOW) {
    const double x = window_mean(curve, i), y = window_mean(there, i), z = window_mean(yardstick, i);
    finite &= isfinite(x) && isfinite(y) && isfinite(z);
    apart = fmax(apart, fabs(x - y));
    yard = fmax(yard, fabs(z - y));
    loss = fmax(loss, y);
  }
  json_object_set_new(out, "window", json_integer(WINDOW));
  json_object_set_new(out, "curve", windows(curve));
  json_object_set_new(out, "curve_there", windows(there));
  json_object_set_new(out, "curve_yardstick", windows(yardstick));
  json_object_set_new(out, "first_loss_relative",
                      finite ? json_real(fabs(curve[0] - there[0]) / there[0]) : json_null());
  json_object_set_new(out, "apart", finite ? json_real(apart) : json_null());
  json_object_set_new(out, "yardstick", finite ? json_real(yard) : json_null());
  json_object_set_new(out, "within", json_boolean(finite && apart <= 3 * yard + 0.01 * loss));
}

static cmkd_status make_curves(const world *w, json_t *out, cmkd_error *err) {
  const size_t size = (1 + ROUNDINGS) * (size_t)steps * sizeof(double);
  double *curve = malloc(size);
  char who[256];
  if (!curve) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_status status = one_curve(w, "cpu", "fp32", 0, curve, who, err);
  for (int i = 0; status == CMKD_OK && i < ROUNDINGS; i++)
    status = one_curve(w, "cpu", "fp32", rounding[i], curve + (1 + i) * steps, NULL, err);
  if (status == CMKD_OK) {
    json_object_set_new(out, "backend", json_string(who));
    json_object_set_new(out, "curve_there", windows(curve));
    status = reference_make(w, json_pack("{s:s}", "backend", who), curve, size, out, err);
  }
  free(curve);
  return status;
}

/* The other side's curve and yardstick, out of --against's file. */
static cmkd_status read_curves(const world *w, double *there, double *yardstick, char who[256], cmkd_error *err) {
  const size_t each = (size_t)steps * sizeof *there;
  reference file = {0};
  const cmkd_status status = reference_open(w, (1 + ROUNDINGS) * each, &file, err);
  if (status == CMKD_OK) {
    memcpy(there, file.numbers, each);
    memcpy(yardstick, file.numbers + (size_t)(1 + rounding_of(precision)) * each, each);
    snprintf(who, 256, "%.120s (%.120s)", json_string_value(json_object_get(file.about, "backend")),
             base_name(against));
  }
  reference_close(&file);
  return status;
}

static cmkd_status curve_mode(const world *w, json_t *out, cmkd_error *err) {
  double *curve = calloc(3 * (size_t)steps, sizeof *curve), *there = curve + steps, *yardstick = there + steps;
  char who[2][256];
  cmkd_status status = curve ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  if (status == CMKD_OK && is_file(against)) status = read_curves(w, there, yardstick, who[1], err);
  if (status == CMKD_OK) status = one_curve(w, device, precision, 0, curve, who[0], err);
  if (status == CMKD_OK && !is_file(against)) {
    status = one_curve(w, against, "fp32", 0, there, who[1], err);
    if (status == CMKD_OK)
      status = one_curve(w, against, "fp32", rounding[rounding_of(precision)], yardstick, NULL, err);
  }
  if (status == CMKD_OK) {
    json_object_set_new(out, "backend", json_string(who[0]));
    json_object_set_new(out, "against", json_string(who[1]));
    judge_curves(curve, there, yardstick, out);
  }
  free(curve);
  return status;
}

static cmkd_status report(const world *w, cmkd_error *err) {
  json_t *out = json_pack("{s:s, s:s, s:s, s:I, s:s, s:f}", "mode", mode, "arch", arch, "precision", precision, "batch",
                          (json_int_t)batch, "loss", loss_text, "lr", lr);
  cmkd_status status;
  if (mode[0] == 's')
    status = step_mode(w, out, err);
  else
    status = make ? make_curves(w, out, err) : curve_mode(w, out, err);
  if (status == CMKD_OK) {
    json_dumpf(out, stdout, JSON_REAL_PRECISION(6));
    putchar('\n');
  }
  json_decref(out);
  return status;
}

int main(int argc, char **argv) {
  cmkd_environment_lower_isa();
  int sides = 0;
  const cmkd_option options[] = {
      {"--mode", "step|curve", CMKD_OPT_STRING, &mode, "what to compare [step]", 0, 0, NULL},
      {"--arch", "NAME", CMKD_OPT_STRING, &arch, "network [resnet20]", 0, 0, NULL},
      {"--device", "NAME", CMKD_OPT_STRING, &device, "who is compared [cuda]", 0, 0, &sides},
      {"--against", "NAME|FILE", CMKD_OPT_STRING, &against, "cpu, ref, or what --make wrote [cpu]", 0, 0, &sides},
      {"--precision", "NAME", CMKD_OPT_STRING, &precision, "of --device: fp32, tf32, bf16, fp16 [fp32]", 0, 0, &sides},
      {"--make", "FILE", CMKD_OPT_STRING, &make, "writes what --against reads: *.reference, or with a /", 0, 0, NULL},
      {"--loss", "EXPR", CMKD_OPT_STRING, &loss_text, "[step: dkd, which has no kinks; curve: dkd+cmkd]", 0, 0, NULL},
      {"--batch", "N", CMKD_OPT_INT, &batch, "[64]", 1, 65536, NULL},
      {"--steps", "N", CMKD_OPT_INT, &steps, "of a curve [200]", 1, 1000000, NULL},
      {"--limit", "X", CMKD_OPT_DOUBLE, &limit, "largest relative difference of a step [1e-4]", 0, 1, NULL},
      {"--lr", "X", CMKD_OPT_DOUBLE, &lr, "learning rate [0.05]", 0, 10, NULL},
      {"--classes", "N", CMKD_OPT_INT, &classes, "[100]", 2, 100000, NULL},
      {"--side", "N", CMKD_OPT_INT, &side, "height and width of an image [32]", 8, 512, NULL},
      {"--threads", "N", CMKD_OPT_INT, &threads, "of the CPU [all cores]", 1, 4096, NULL},
      {0}};
  const cmkd_command command = {.name = "agree",
                                .summary = "a device's training steps beside another's",
                                .usage = "[options]",
                                .options = options};
  cmkd_error err = {0};
  world w = {0};
  int help = 0;
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status == CMKD_OK && help) return 0;
  if (status == CMKD_OK && strcmp(mode, "step") && strcmp(mode, "curve"))
    status = cmkd_fail(&err, CMKD_ERR_USAGE, "--mode %.40s: there are step and curve", mode);
  if (status == CMKD_OK && make && sides)
    status = cmkd_fail(&err, CMKD_ERR_USAGE,
                       "--make writes the CPU's and the double reference's answers; leave --device, --against and "
                       "--precision out");
  if (status == CMKD_OK && make && !is_file(make))
    status = cmkd_fail(&err, CMKD_ERR_USAGE,
                       "--make %.200s: --against would take it for a device; name it %.200s.reference", make, make);
  if (make) device = "cpu";
  if (make) against = "ref";
  if (!loss_text) loss_text = mode[0] == 's' ? "dkd" : "dkd+cmkd";
  if (status == CMKD_OK) status = world_open(&w, &err);
  if (status == CMKD_OK) status = report(&w, &err);
  world_close(&w);
  return cmkd_exit_status("agree", &err, status);
}
