/* Networks against PyTorch: replays the cases that tests/parity/parity.py wrote (inference logits, training loss, a
 * digest of every parameter gradient and running statistic; of one network of each family the tensors as well). With
 * arguments it is the other half of that tool: one step, every number into a file. */
#include "base/program/environment.h"
#include "tests/support.h"
#include <inttypes.h>
#include <math.h>
#include "kernels/backend.h"
#include "kernels/cpu/model.h"
#include "nets/net.h"

static cmkd_error err;

/* The formulas of parity.py: number_of, value_of, images_of. */
static uint32_t seed_of(const char *name) {
  uint32_t seed = 2166136261u;
  for (; *name; name++)
    seed = (seed ^ (uint8_t)*name) * 16777619u;
  return seed;
}
static double number_at(uint32_t seed, uint64_t index) {
  uint32_t x = (uint32_t)(index * 0x9E3779B1u + seed);
  x ^= x >> 16, x *= 0x7FEB352Du, x ^= x >> 15, x *= 0x846CA68Bu, x ^= x >> 16;
  return (double)(x >> 16) / 32768 - 1;
}
static void fill_param(const cmkd_param *p, float *value) {
  uint32_t seed = seed_of(p->name);
  double scale = 1;
  for (int64_t fan = p->dims > 1 ? p->count / p->shape[0] : 0; scale * scale * (double)fan > 6;)
    scale /= 2;
  for (int64_t i = 0; i < p->count; i++) {
    double v = number_at(seed, (uint64_t)i);
    value[i] = (float)(p->dims > 1                                                ? v * scale
                       : p->kind == CMKD_PARAM_SCALE || p->kind == CMKD_PARAM_VAR ? v / 2 + 1
                                                                                  : v / 4);
  }
}

typedef struct bench {
  const cmkd_backend_table *table;
  cmkd_graph *graph;
  cmkd_params params, grads;
  int rows;
  uint8_t *pixels;
  int32_t *labels;
  float *logits;
  cmkd_step_result result;
  float **active; /* (ops) what the CPU backend's training pass left behind every activation and in front of every max
                     pool; only where asked for */
} bench;

/* Which side of 0 an activation fell on decides where gradients go: the tool compares gradients on the sides that this
 * run took. */
static void keep_active(bench *b, const cmkd_be_model *model) {
  for (int i = 0; i < b->graph->ops; i++) {
    const cmkd_op *op = &b->graph->op[i];
    const int tensor = op->kind == CMKD_OP_MAXPOOL ? op->in[0] : op->act != CMKD_ACT_NONE ? op->out : -1;
    if (tensor < 0) continue;
    const cmkd_plan_buffer *place = &model->train.value[tensor];
    const size_t count = place->size * (size_t)b->rows;
    b->active[i] = malloc(count * sizeof(float));
    memcpy(b->active[i], model->arena + place->offset * (size_t)model->config.batch, count * sizeof(float));
  }
}

/* Logits of an inference model, then one training step at learning rate 0: gradients, and parameters after it
 * (statistics moved). */
static void run(bench *b, const char *device, const char *arch, cmkd_net_shape shape, int rows, int draw, int active) {
  const int side = shape.height, channels = shape.channels, classes = shape.classes;
  char seed_name[32];
  *b = (bench){.rows = rows};
  snprintf(seed_name, sizeof seed_name, "images%d", draw);
  cmkd_backend_options options = {0};
  cmkd_environment_backend(&options);
  assert_ok(cmkd_backend_find(device, &options, &b->table, &err));
  assert_ok(cmkd_net_build(arch, shape, &b->graph, &err));
  assert_ok(cmkd_params_create(b->graph, &b->params, &err));
  assert_ok(cmkd_params_create(b->graph, &b->grads, &err));
  for (int i = 0; i < b->graph->params; i++)
    fill_param(&b->graph->param[i], b->params.value[i]);
  size_t numbers = (size_t)rows * side * side * channels;
  const uint32_t images_seed = seed_of(seed_name);
  b->pixels = malloc(numbers), b->labels = malloc((size_t)rows * sizeof *b->labels),
  b->logits = malloc((size_t)rows * classes * sizeof *b->logits);
  for (size_t i = 0; i < numbers; i++)
    b->pixels[i] = (uint8_t)((number_at(images_seed, i) + 1) * 128);
  uint32_t *row = malloc((size_t)rows * sizeof *row);
  for (int i = 0; i < rows; i++)
    row[i] = (uint32_t)i, b->labels[i] = (7 * i + 3) % classes;
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
  cmkd_loss *loss;
  assert_ok(cmkd_loss_parse("ce", CMKD_LOSS_CIFAR, &loss, &err));
  assert_ok(b->table->open(&options, &backend, &err));
  const cmkd_image_set set = {b->pixels, b->labels, (uint32_t)rows, side, side, channels};
  assert_ok(b->table->images_create(backend, &set, &images, &err));
  cmkd_step step = {.count = rows, .rows = row, .lr = 0, .epoch = 1};
  for (int train = 0; train < 2; train++) {
    cmkd_model_config config = {.graph = b->graph,
                                .batch = rows,
                                .train = train,
                                .mean = {.5f, .5f, .5f},
                                .std = {.25f, .25f, .25f},
                                .loss = train ? loss : NULL,
                                .momentum = .9f,
                                .kappa = 2};
    assert_ok(b->table->model_create(backend, &config, &model, &err));
    assert_ok(b->table->upload(model, CMKD_SLOT_VALUE, (const float *const *)b->params.value, &err));
    if (!train)
      assert_ok(b->table->run(model, CMKD_LIST_INFER, images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){b->logits}, &err));
    else {
      int k = 1;
      assert_ok(b->table->run(model, CMKD_LIST_TRAIN, images, &step, 1, NULL, &err));
      assert_ok(b->table->read(model, &b->result, &k, &err));
      assert_non_null(b->table->gradients);
      assert_ok(b->table->gradients(model, b->grads.value, &err));
      assert_ok(b->table->download(model, CMKD_SLOT_VALUE, b->params.value, &err));
      if (active) {
        b->active = calloc((size_t)b->graph->ops, sizeof *b->active);
        if (b->table == &cmkd_backend_cpu) keep_active(b, model);
      }
    }
    b->table->model_free(model);
  }
  b->table->images_free(images);
  b->table->close(backend);
  cmkd_loss_free(loss);
  free(row);
}

static void done(bench *b) {
  for (int i = 0; b->active && i < b->graph->ops; i++)
    free(b->active[i]);
  free(b->active);
  cmkd_params_free(&b->params), cmkd_params_free(&b->grads);
  cmkd_graph_free(b->graph);
  free(b->pixels), free(b->labels), free(b->logits);
}

static void near(const char *arch, const char *what, const char *name, double got, double want, double capacity) {
  if (!(fabs(got - want) <= capacity))
    fail_msg("%s: %s %s: %.9g, PyTorch %.9g, room %.2g", arch, what, name, got, want, capacity);
}

/* One line of a case: kind, name, sum, magnitudes, projection. */
static void check_digest(bench *b, const char *kind, const char *name, const double want[3], double tolerance,
                         double least) {
  int grad = !strcmp(kind, "grad"), index = -1;
  for (int i = 0; i < b->graph->params; i++)
    if (!strcmp(b->graph->param[i].name, name)) index = i;
  if (index < 0) fail_msg("%s: no parameter %s", b->graph->arch, name);
  const float *a = (grad ? b->grads : b->params).value[index];
  double got[3] = {0, 0, 0};
  uint32_t seed = seed_of("projection");
  for (int64_t i = 0; i < b->graph->param[index].count; i++)
    got[0] += (double)a[i], got[1] += fabs((double)a[i]), got[2] += (double)a[i] * number_at(seed, (uint64_t)i);
  for (int k = 0; k < 3; k++)
    near(b->graph->arch, kind, name, got[k], want[k], tolerance * want[1] + least);
}

/* Room for rounding, relative. The images of a case are drawn so that no activation comes near 0 (its `margin`, in
 * deviations of its tensor, is in the first line): then float32 puts all of them on the side that float64 does, and
 * gradients differ by rounding alone. Where no draw of a network with so many activations was found to keep away by
 * SAFE, one of them may change sides, which moves gradients by FLIP. */
#define SAFE 4e-6
#define FLIP 5e-3
typedef struct capacity {
  double logits, loss, grad, stat;
} capacity;
static const capacity in_double = {1e-6, 1e-6, 1e-6, 1e-6}, in_float = {1e-5, 5e-5, 1e-4, 1e-4};

/* The largest sum of magnitudes among a case's gradients: a bias in front of a batch norm has gradient 0, of which
 * rounding leaves something that is measured against this. */
static double largest_gradient(FILE *f) {
  char line[512];
  double sum, most = 0;
  while (fgets(line, sizeof line, f))
    if (sscanf(line, "grad %*s %*f %lf", &sum) == 1) most = fmax(most, sum);
  rewind(f);
  return most;
}

/* One stored tensor: "grad.NAME" or "stat.NAME" whole, "grad.NAME/n" every n-th number of it. Each number may be off by
 * `tolerance` of the tensor's largest; where all are 0, by `least`. */
static void check_tensor(const bench *b, const cmkd_tensor *t, double tolerance, double least) {
  char kind[5] = "", name[128];
  int64_t stride = 1;
  int index = -1;
  if (sscanf(t->name, "%4[a-z].%127[^/]/%" SCNd64, kind, name, &stride) < 2) fail_msg("a tensor named %s", t->name);
  for (int i = 0; i < b->graph->params; i++)
    if (!strcmp(b->graph->param[i].name, name)) index = i;
  if (index < 0) fail_msg("%s: no parameter %s", b->graph->arch, name);
  const float *got = (!strcmp(kind, "grad") ? b->grads : b->params).value[index], *want = t->data;
  if (t->dtype != CMKD_F32 || t->count != (b->graph->param[index].count + stride - 1) / stride)
    fail_msg("%s: %s is of another shape", b->graph->arch, t->name);
  double largest = 0;
  for (int64_t i = 0; i < t->count; i++)
    largest = fmax(largest, fabs((double)want[i]));
  const double room = largest > 1e-12 ? tolerance * largest : least;
  for (int64_t i = 0; i < t->count; i++)
    near(b->graph->arch, t->name, "", (double)got[i * stride], (double)want[i], room);
}

/* Beside the digests, of one network of each family: tensors, number by number. `least`: what rounding may leave of a
 * gradient of 0. */
static void check_tensors(const bench *b, double grad, double stat, double least) {
  char path[256];
  cmkd_weights *stored;
  snprintf(path, sizeof path, "tests/parity/%s.safetensors", b->graph->arch);
  assert_ok(cmkd_weights_read(path, &stored, &err));
  assert_int_equal(stored->count, b->graph->params);
  for (int i = 0; i < stored->count; i++)
    check_tensor(b, &stored->tensors[i], strncmp(stored->tensors[i].name, "grad.", 5) ? stat : grad, least);
  cmkd_weights_free(stored);
}

static void replay(const char *device, const char *arch, int tensors, const capacity *allowed) {
  char path[256], word[16], name[128];
  int side, channels, classes, rows, draw;
  double margin;
  snprintf(path, sizeof path, "tests/parity/%s.case", arch);
  FILE *f = fopen(path, "r");
  if (!f) fail_msg("%s is missing: run tests in the repository's root", path);
  bench b;
  const double largest = largest_gradient(f);
  assert_int_equal(fscanf(f, "cmkd-parity-2 %63s %d %d %d %d draw %d margin %lf", name, &side, &channels, &classes,
                          &rows, &draw, &margin),
                   7);
  run(&b, device, name, (cmkd_net_shape){side, side, channels, classes}, rows, draw, 0);
  const double grad_tolerance = allowed == &in_float && margin < SAFE ? FLIP : allowed->grad;
  int seen = 0, row = 0;
  double want[3], most = 0;
  for (int i = 0; i < rows * classes; i++)
    most = fmax(most, fabs((double)b.logits[i]));
  while (fscanf(f, "%15s", word) == 1) {
    if (!strcmp(word, "loss")) {
      assert_int_equal(fscanf(f, "%lf", want), 1);
      near(arch, word, "", b.result.loss.loss, want[0], allowed->loss * want[0]);
    } else if (!strcmp(word, "logits")) {
      for (int c = 0; c < classes; c++) {
        assert_int_equal(fscanf(f, "%lf", want), 1);
        near(arch, word, "", (double)b.logits[row * classes + c], want[0], allowed->logits * most);
      }
      row++;
    } else {
      assert_int_equal(fscanf(f, "%127s %lf %lf %lf", name, want, want + 1, want + 2), 4);
      const int grad = !strcmp(word, "grad");
      const double tolerance = grad ? grad_tolerance : allowed->stat;
      check_digest(&b, word, name, want, tolerance, tolerance * (grad ? 1e-3 * largest : 1e-1));
      seen++;
    }
  }
  fclose(f);
  assert_int_equal(row, rows);
  assert_int_equal(seen, b.graph->params); /* trained ones as gradients, buffers as statistics */
  if (tensors) check_tensors(&b, grad_tolerance, allowed->stat, grad_tolerance * 1e-3 * largest);
  done(&b);
}

/* Whether tensors are compared beside digests (one network of each family). Both backends; and those that plain loops
 * are slow for, on the CPU alone (parity.py checks them on both). */
#define NETS(X) \
  X(resnet8, "resnet8", 1) \
  X(resnet20, "resnet20", 0) \
  X(resnet14_pad, "resnet14_pad", 0) \
  X(resnet8x4, "resnet8x4", 0) \
  X(wrn_16_1, "wrn-16-1", 1) \
  X(vgg8, "vgg8", 1) \
  X(mobilenetv2_cifar, "mobilenetv2_cifar", 1) \
  X(shufflenetv1_cifar, "shufflenetv1_cifar", 1) \
  X(shufflenetv2_cifar, "shufflenetv2_cifar", 1) \
  X(mobilenetv1, "mobilenetv1", 0) \
  X(mobilenetv2, "mobilenetv2", 0)
#define LARGE(X) \
  X(resnet18_cifar, "resnet18_cifar", 0) \
  X(wrn_16_2, "wrn-16-2", 0) \
  X(vgg13, "vgg13", 0) \
  X(resnet18, "resnet18", 0) \
  X(resnet50, "resnet50", 0) \
  X(vgg16_bn, "vgg16_bn", 0)
#define ON_REF(id, name, tensors) \
  static void ref_##id(void **state) { \
    (void)state; \
    replay("ref", name, tensors, &in_double); \
  }
#define ON_CPU(id, name, tensors) \
  static void cpu_##id(void **state) { \
    (void)state; \
    replay("cpu", name, tensors, &in_float); \
  }
NETS(ON_REF)
NETS(ON_CPU)
LARGE(ON_CPU)
#define REF(id, name, tensors) cmocka_unit_test(ref_##id),
#define CPU(id, name, tensors) cmocka_unit_test(cpu_##id),

/* run DEVICE ARCH SIDE CHANNELS CLASSES ROWS OUT WEIGHTS: everything for parity.py check. */
static int run_for_tool(char **word) {
  bench b;
  run(&b, word[2], word[3], (cmkd_net_shape){atoi(word[4]), atoi(word[4]), atoi(word[5]), atoi(word[6])}, atoi(word[7]),
      0, 1);
  cmkd_tensor *t = calloc((size_t)(b.graph->params + b.graph->ops) + 2, sizeof *t);
  char(*names)[128] = calloc((size_t)(b.graph->params + b.graph->ops), sizeof *names);
  double loss = b.result.loss.loss;
  int count = 0;
  t[count++] = (cmkd_tensor){.name = "logits",
                             .dims = 2,
                             .shape = {b.rows, b.graph->classes},
                             .count = (int64_t)b.rows * b.graph->classes,
                             .data = b.logits};
  t[count++] = (cmkd_tensor){.name = "loss", .dtype = CMKD_F64, .dims = 1, .shape = {1}, .count = 1, .data = &loss};
  for (int i = 0; i < b.graph->params; i++) {
    const cmkd_param *p = &b.graph->param[i];
    int trained = CMKD_PARAM_TRAINED(p->kind);
    snprintf(names[i], sizeof *names, "%s.%s", trained ? "grad" : "stat", p->name);
    t[count] = (cmkd_tensor){
        .name = names[i], .dims = p->dims, .count = p->count, .data = (trained ? b.grads : b.params).value[i]};
    memcpy(t[count++].shape, p->shape, sizeof p->shape);
  }
  for (int i = 0; i < b.graph->ops; i++) {
    if (!b.active[i]) continue;
    const cmkd_op *op = &b.graph->op[i];
    const cmkd_shape s = b.graph->tensor[op->kind == CMKD_OP_MAXPOOL ? op->in[0] : op->out];
    char *name = names[b.graph->params + i];
    snprintf(name, sizeof *names, "active.%04d", i);
    t[count++] = (cmkd_tensor){.name = name,
                               .dims = 4,
                               .shape = {b.rows, s.h, s.w, s.c},
                               .count = (int64_t)b.rows * s.h * s.w * s.c,
                               .data = b.active[i]};
  }
  assert_ok(cmkd_weights_write(word[8], t, count, NULL, NULL, 0, &err));
  assert_ok(cmkd_params_save(b.graph, &b.params, 1, word[9], NULL, NULL, 0, &err));
  free(t), free(names);
  done(&b);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 10 && !strcmp(argv[1], "run")) return run_for_tool(argv);
  const struct CMUnitTest tests[] = {NETS(REF) NETS(CPU) LARGE(CPU)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
