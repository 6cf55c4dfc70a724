/* Before a device is trusted: two training steps of a network of four layers on it and on the CPU backend, from the
 * same weights. A driver, a GPU or a cuDNN that computes something else is refused with one line, instead of being
 * found out after a night of training. cmkd_backend_options.skip_selfcheck leaves it out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "kernels/cuda/backend.h"

enum {
  SIDE = 8,
  CHANNELS = 3,
  CLASSES = 10,
  IMAGES = 16,
  BATCH = 8,
  OPS = 8,
  TENSORS = 9,
  MOST_PARAMS = 17,
  STEPS = 2
};

typedef struct network {
  cmkd_graph graph;
  cmkd_shape tensor[TENSORS];
  cmkd_op op[OPS];
  cmkd_param param[MOST_PARAMS];
  float *start[MOST_PARAMS], *end[MOST_PARAMS]; /* end: the device's, then the CPU's */
} network;

static int add_param(network *n, cmkd_param_kind kind, int dims, int64_t a, int64_t b, int64_t side) {
  cmkd_param *p = &n->param[n->graph.params];
  *p = (cmkd_param){.kind = kind,
                    .dims = dims,
                    .shape = {a, b, side, side},
                    .count = dims == 4   ? a * b * side * side
                             : dims == 2 ? a * b
                                         : a,
                    .fan_in = b * side * side};
  snprintf(p->name, sizeof p->name, "p%d", n->graph.params);
  return n->graph.params++;
}

/* Adds an op that reads in0 (and in1) and writes the next tensor; params follow from its kind. */
static int add(network *n, cmkd_op op, int out_c) {
  const cmkd_shape in0 = n->tensor[op.in[0]], in1 = op.in[1] >= 0 ? n->tensor[op.in[1]] : (cmkd_shape){0};
  const int in = op.kind == CMKD_OP_LINEAR ? in0.h * in0.w * in0.c : in0.c;
  op.out = n->graph.tensors;
  for (int i = 0; i < 4; i++)
    op.param[i] = -1;
  if (op.kind == CMKD_OP_CONV) op.param[0] = add_param(n, CMKD_PARAM_WEIGHT, 4, out_c, in, op.kernel_h);
  if (op.kind == CMKD_OP_LINEAR) {
    op.param[0] = add_param(n, CMKD_PARAM_WEIGHT, 2, out_c, in, 1);
    op.param[1] = add_param(n, CMKD_PARAM_BIAS, 1, out_c, 1, 1);
  }
  for (int i = 0; i < 4 && op.kind == CMKD_OP_NORM; i++)
    op.param[i] = add_param(n, (cmkd_param_kind)(CMKD_PARAM_SCALE + i), 1, in, 1, 1);
  if (cmkd_op_shape(op.kind, &op, in0, in1, out_c, &n->tensor[op.out], NULL) != CMKD_OK) return -1;
  n->op[n->graph.ops++] = op;
  return n->graph.tensors++;
}

static int conv_norm(network *n, int x, int channels, int stride, int residual) {
  int y = add(
      n,
      (cmkd_op){
          .kind = CMKD_OP_CONV, .in = {x, -1}, .kernel_h = 3, .kernel_w = 3, .stride = stride, .pad = 1, .groups = 1},
      channels);
  return add(n,
             (cmkd_op){.kind = CMKD_OP_NORM, .act = CMKD_ACT_RELU, .in = {y, residual}, .eps = 1e-5f, .momentum = 0.1f},
             channels);
}

static void free_network(network *n) {
  for (int i = 0; i < n->graph.params; i++)
    free(n->start[i]), free(n->end[i]);
}

/* Convolutions at both strides, a shortcut, a pool and a linear layer. */
static cmkd_status make_network(network *n, cmkd_error *err) {
  memset(n, 0, sizeof *n);
  n->graph = (cmkd_graph){
      .arch = "self-check", .classes = CLASSES, .tensors = 1, .tensor = n->tensor, .op = n->op, .param = n->param};
  n->tensor[0] = (cmkd_shape){SIDE, SIDE, CHANNELS};
  int x = conv_norm(n, conv_norm(n, 0, 16, 1, -1), 32, 2, -1);
  x = conv_norm(n, x, 32, 1, x);
  const int features = add(n, (cmkd_op){.kind = CMKD_OP_GLOBALPOOL, .in = {x, -1}}, 32);
  cmkd_graph_output_set(&n->graph, "logits", add(n, (cmkd_op){.kind = CMKD_OP_LINEAR, .in = {features, -1}}, CLASSES));
  cmkd_graph_output_set(&n->graph, "features", features);
  cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, 0);
  for (int i = 0; i < n->graph.params; i++) {
    const cmkd_param *p = &n->param[i];
    const double size = p->kind == CMKD_PARAM_WEIGHT ? sqrt(2.0 / (double)p->fan_in) : 0.1;
    n->start[i] = malloc((size_t)p->count * sizeof(float));
    n->end[i] = malloc((size_t)p->count * sizeof(float));
    if (!n->start[i] || !n->end[i]) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
    for (int64_t j = 0; j < p->count; j++)
      n->start[i][j] =
          (float)((p->kind == CMKD_PARAM_SCALE || p->kind == CMKD_PARAM_VAR) + size * cmkd_rng_normal(&rng));
  }
  return cmkd_graph_check(&n->graph, err);
}

/* The steps' losses and the parameters after them. */
static cmkd_status train(const cmkd_backend_table *table, cmkd_backend *backend, network *n, const cmkd_loss *loss,
                         double losses[STEPS], cmkd_error *err) {
  const cmkd_model_config config = {.graph = &n->graph,
                                    .batch = BATCH,
                                    .train = 1,
                                    .mean = {.5f, .5f, .5f},
                                    .std = {.25f, .25f, .25f},
                                    .policy = CMKD_AUGMENT_CROP_FLIP,
                                    .loss = loss,
                                    .momentum = .9f,
                                    .weight_decay = 5e-4f,
                                    .kappa = 2};
  uint8_t pixels[IMAGES * SIDE * SIDE * CHANNELS];
  int32_t labels[IMAGES];
  uint32_t rows[STEPS * BATCH];
  uint64_t seeds[STEPS * BATCH];
  float teacher[STEPS * BATCH * CLASSES];
  cmkd_step steps[STEPS];
  cmkd_step_result result[STEPS];
  cmkd_be_images *images = NULL;
  cmkd_be_model *model = NULL;
  int k = STEPS;
  cmkd_rng rng = cmkd_rng_start(2, CMKD_STREAM_TEST, 0);
  for (size_t i = 0; i < sizeof pixels; i++)
    pixels[i] = (uint8_t)cmkd_rng_u32(&rng);
  for (int i = 0; i < IMAGES; i++)
    labels[i] = (int32_t)cmkd_rng_below(&rng, CLASSES);
  for (int i = 0; i < STEPS * BATCH; i++)
    rows[i] = cmkd_rng_below(&rng, IMAGES), seeds[i] = cmkd_rng_u64(&rng);
  for (int i = 0; i < STEPS * BATCH * CLASSES; i++)
    teacher[i] = 3 * (float)cmkd_rng_normal(&rng);
  for (int i = 0; i < STEPS; i++)
    steps[i] = (cmkd_step){.count = i ? BATCH - 3 : BATCH,
                           .rows = rows + i * BATCH,
                           .seeds = seeds + i * BATCH,
                           .target[CMKD_TARGET_TEACHER].values = teacher + i * BATCH * CLASSES,
                           .lr = 0.02,
                           .epoch = 1};
  cmkd_status status =
      table->images_create(backend, &(cmkd_image_set){pixels, labels, IMAGES, SIDE, SIDE, CHANNELS}, &images, err);
  if (status == CMKD_OK) status = table->model_create(backend, &config, &model, err);
  if (status == CMKD_OK) status = table->upload(model, CMKD_SLOT_VALUE, (const float *const *)n->start, err);
  if (status == CMKD_OK) status = table->run(model, CMKD_LIST_TRAIN, images, steps, STEPS, NULL, err);
  if (status == CMKD_OK) status = table->read(model, result, &k, err);
  if (status == CMKD_OK) status = table->download(model, CMKD_SLOT_VALUE, n->end, err);
  for (int i = 0; i < STEPS && status == CMKD_OK; i++)
    losses[i] = k == STEPS ? result[i].loss.loss : NAN;
  if (model) table->model_free(model);
  if (images) table->images_free(images);
  return status;
}

/* How far the steps took the parameters apart, relative to how far they took them. */
static double distance(const network *device, const network *cpu) {
  double apart = 0, moved = 0;
  for (int i = 0; i < device->graph.params; i++)
    for (int64_t j = 0; j < device->param[i].count && CMKD_PARAM_TRAINED(device->param[i].kind);
         j++) { /* not running statistics: they change most and tell least */
      const double a = device->end[i][j], b = cpu->end[i][j], s = cpu->start[i][j];
      apart += (a - b) * (a - b);
      moved += (b - s) * (b - s);
    }
  return sqrt(apart / moved);
}

cmkd_status cmkd_cuda_selfcheck(const cmkd_backend_table *table, cmkd_backend *b, cmkd_error *err) {
  /* Of the losses, and of the parameters' way. In emulation rounding makes 1e-8 and 2e-6 of them in fp32, 2e-4 and 0.07
   * in fp16, 3e-4 and 0.07 in bf16; a ReLU that flips may take the way alone to a percent. */
  static const struct {
    const char *precision;
    double loss, way;
  } limits[] = {{"fp32", 1e-5, 1e-2}, {"tf32", 2e-3, 0.3}, {"fp16", 2e-3, 0.3}, {"bf16", 5e-3, 0.3}};
  cmkd_backend *cpu = NULL;
  cmkd_loss *loss = NULL;
  network ours, theirs;
  double got[STEPS] = {0}, want[STEPS] = {0}, worst = 0, way = 0;
  size_t p = 0;
  while (strcmp(limits[p].precision, b->precision))
    p++;
  memset(&theirs, 0, sizeof theirs);
  cmkd_status status = make_network(&ours, err);
  if (status == CMKD_OK) status = make_network(&theirs, err);
  if (status == CMKD_OK) status = cmkd_loss_parse("ce+cmkd", CMKD_LOSS_CIFAR, &loss, err);
  if (status == CMKD_OK) status = cmkd_backend_cpu.open(&(cmkd_backend_options){.threads = 1}, &cpu, err);
  if (status == CMKD_OK) status = train(&cmkd_backend_cpu, cpu, &theirs, loss, want, err);
  if (status == CMKD_OK) status = train(table, b, &ours, loss, got, err);
  if (status == CMKD_OK) {
    for (int i = 0; i < STEPS; i++)
      worst = fmax(worst, fabs(got[i] - want[i]) / fabs(want[i]));
    way = distance(&ours, &theirs);
    if (!(worst <= limits[p].loss && way <= limits[p].way) || isnan(got[0] + got[1]))
      status = cmkd_fail(err, CMKD_ERR_DEVICE,
                         "--device cuda: %s computes something else than the CPU in %s: losses off by %.2g (limit "
                         "%.2g), steps by %.2g (limit %.2g); try CMKD_CUDNN=off or another driver, or use --device cpu",
                         b->name, b->precision, worst, limits[p].loss, way, limits[p].way);
  }
  if (cpu) cmkd_backend_cpu.close(cpu);
  cmkd_loss_free(loss);
  free_network(&ours);
  free_network(&theirs);
  return status;
}
