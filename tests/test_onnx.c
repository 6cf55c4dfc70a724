/* ONNX export: the file's structure read back field by field, and, where a Python with ONNX Runtime is found
 * ($CMKD_ONNX_PYTHON or python3), the same logits from that runtime as from the plain backend. */
#include "tests/support.h"
#include <math.h>
#include "base/file.h"
#include "base/rng.h"
#include "kernels/backend.h"
#include "nets/onnx.h"

static cmkd_error err;
#define CLASSES 10
#define ROWS 3

/* ---- a reader of protocol buffers, enough to look inside ---- */
typedef struct span {
  const uint8_t *at, *end;
} span;
static uint64_t varint(span *s) {
  uint64_t v = 0;
  for (int shift = 0;; shift += 7) {
    assert_true(s->at < s->end && shift < 64);
    v |= (uint64_t)(*s->at & 127) << shift;
    if (!(*s->at++ & 128)) return v;
  }
}
/* The next field: its number, and its bytes where it is a message or text. */
static int field(span *s, span *inner) {
  if (s->at == s->end) return 0;
  uint64_t tag = varint(s), size = (tag & 7) == 2 ? varint(s) : 0;
  if ((tag & 7) == 0) varint(s);
  if ((tag & 7) == 5) size = 4;
  assert_true((tag & 7) != 1 && size <= (uint64_t)(s->end - s->at));
  *inner = (span){s->at, s->at + size};
  s->at += size;
  return (int)(tag >> 3);
}

typedef struct names {
  char text[4096][64];
  int count;
} names;
static void remember(names *n, span s) {
  assert_true(n->count < 4096 && s.end - s.at < 64);
  memcpy(n->text[n->count], s.at, (size_t)(s.end - s.at));
  n->text[n->count++][s.end - s.at] = 0;
}
static int knows(const names *n, span s) {
  for (int i = 0; i < n->count; i++)
    if (strlen(n->text[i]) == (size_t)(s.end - s.at) && !memcmp(n->text[i], s.at, (size_t)(s.end - s.at))) return 1;
  return 0;
}

/* How many nodes of a type there are; fails where a node reads what nothing wrote, or a name is written twice. */
static int nodes_of(const char *path, const char *type) {
  static names known;
  uint8_t *data;
  size_t size;
  int count = 0, number;
  known.count = 0;
  assert_ok(cmkd_file_read(path, 1u << 30, &data, &size, &err));
  span model = {data, data + size}, graph = {0}, inner, part;
  while ((number = field(&model, &inner)))
    if (number == 7) graph = inner;
  assert_non_null(graph.at);
  span again = graph;
  while ((number = field(&graph, &inner))) {
    if (number != 5 && number != 11) continue;
    for (int key; (key = field(&inner, &part));)
      if (key == (number == 5 ? 8 : 1)) assert_false(knows(&known, part)), remember(&known, part);
  }
  while ((number = field(&again, &inner))) {
    if (number != 1) continue;
    for (int key; (key = field(&inner, &part));) {
      if (key == 1 && !knows(&known, part))
        fail_msg("%s: a node reads %.*s before it is written", path, (int)(part.end - part.at), (const char *)part.at);
      if (key == 2) assert_false(knows(&known, part)), remember(&known, part);
      if (key == 4) count += strlen(type) == (size_t)(part.end - part.at) && !memcmp(type, part.at, strlen(type));
    }
  }
  free(data);
  return count;
}

typedef struct world {
  cmkd_graph *graph;
  cmkd_params params;
  char path[1200], dir[1100];
} world;

static void export_net(world *w, const char *arch, int side, int fold) {
  assert_ok(cmkd_net_build(arch, (cmkd_net_shape){side, side, 3, CLASSES}, &w->graph, &err));
  assert_ok(cmkd_params_create(w->graph, &w->params, &err));
  cmkd_params_init(w->graph, 1, &w->params);
  for (int i = 0; i < w->graph->params; i++) { /* statistics and shifts of a trained net */
    const cmkd_param *p = &w->graph->param[i];
    cmkd_rng rng = cmkd_rng_start(9, CMKD_STREAM_TEST, (uint64_t)i);
    for (int64_t j = 0; j < p->count && p->dims == 1; j++)
      w->params.value[i][j] = (float)(cmkd_rng_uniform(&rng) * .5 +
                                      (p->kind == CMKD_PARAM_VAR || p->kind == CMKD_PARAM_SCALE ? .75 : -.25));
  }
  snprintf(w->dir, sizeof w->dir, "%s", scratch_dir());
  snprintf(w->path, sizeof w->path, "%s/net.onnx", w->dir);
  const char *keys[] = {"arch"}, *values[] = {arch};
  assert_ok(cmkd_onnx_write(
      w->graph, &w->params,
      &(cmkd_onnx_options){.fold = fold, .features = 1, .meta_keys = keys, .meta_values = values, .meta_count = 1},
      w->path, &err));
}

static void close_world(world *w) {
  cmkd_params_free(&w->params);
  cmkd_graph_free(w->graph);
}

static void structure(void **state) {
  (void)state;
  world w;
  export_net(&w, "resnet20", 32, 1);
  assert_int_equal(nodes_of(w.path, "BatchNormalization"), 0);
  assert_int_equal(nodes_of(w.path, "Conv"), 21);
  assert_int_equal(nodes_of(w.path, "Gemm"), 1);
  close_world(&w);
  export_net(&w, "resnet20", 32, 0);
  assert_int_equal(nodes_of(w.path, "BatchNormalization"), 21);
  close_world(&w);
  export_net(&w, "wrn-16-1", 32, 1); /* pre-activation: what a convolution feeds into the sum can't take a norm in */
  assert_true(nodes_of(w.path, "BatchNormalization") > 0);
  close_world(&w);
  char bad[1300];
  world v;
  export_net(&v, "resnet8", 32, 1);
  snprintf(bad, sizeof bad, "%s/none/net.onnx", v.dir);
  assert_int_equal(cmkd_onnx_write(v.graph, &v.params, &(cmkd_onnx_options){0}, bad, &err), CMKD_ERR_IO);
  assert_non_null(strstr(err.message, "none/net.onnx"));
  close_world(&v);
}

static const char *runtime(void) {
  const char *python = getenv("CMKD_ONNX_PYTHON") ? getenv("CMKD_ONNX_PYTHON") : "python3";
  return run_command(NULL, "'%s' -c 'import onnxruntime, numpy'", python) == 0 ? python : NULL;
}

static void compare(const char *python, const char *arch, int side, int fold) {
  world w;
  export_net(&w, arch, side, fold);
  int area = side * side;
  uint8_t *pixels = malloc((size_t)ROWS * area * 3);
  float *planes = malloc((size_t)ROWS * area * 3 * sizeof *planes), logits[ROWS * CLASSES], other[ROWS * CLASSES] = {0};
  int32_t labels[ROWS] = {0};
  cmkd_rng rng = cmkd_rng_start(4, CMKD_STREAM_TEST, 0);
  for (int i = 0; i < ROWS * area * 3; i++) {
    pixels[i] = (uint8_t)cmkd_rng_below(&rng, 256);
    int image = i / (area * 3), pixel = i / 3 % area, c = i % 3;
    planes[(image * 3 + c) * area + pixel] = ((float)pixels[i] / 255 - .5f) / .25f;
  }
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
  cmkd_model_config config = {.graph = w.graph, .batch = ROWS, .mean = {.5f, .5f, .5f}, .std = {.25f, .25f, .25f}};
  assert_ok(cmkd_backend_ref.open(NULL, &backend, &err));
  assert_ok(
      cmkd_backend_ref.images_create(backend, &(cmkd_image_set){pixels, labels, ROWS, side, side, 3}, &images, &err));
  assert_ok(cmkd_backend_ref.model_create(backend, &config, &model, &err));
  assert_ok(cmkd_backend_ref.upload(model, CMKD_SLOT_VALUE, (const float *const *)w.params.value, &err));
  cmkd_step step = {.count = ROWS, .rows = (const uint32_t[]){0, 1, 2}};
  assert_ok(cmkd_backend_ref.run(model, CMKD_LIST_INFER, images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){logits}, &err));
  char in[1200], out[1200];
  const char *said;
  snprintf(in, sizeof in, "%s/in", w.dir), snprintf(out, sizeof out, "%s/out", w.dir);
  assert_ok(cmkd_file_write(in, &(cmkd_piece){planes, (size_t)ROWS * area * 3 * sizeof *planes}, 1, &err));
  if (run_command(&said, "'%s' tests/parity/onnx_run.py '%s' '%s' '%s' %d 3 %d %d", python, w.path, in, out, ROWS, side,
                  side))
    fail_msg("%s: %s", arch, said);
  FILE *f = fopen(out, "rb");
  assert_non_null(f);
  assert_int_equal(fread(other, sizeof *other, ROWS * CLASSES, f), ROWS * CLASSES);
  fclose(f);
  double most = 0;
  for (int i = 0; i < ROWS * CLASSES; i++)
    most = fmax(most, fabs((double)logits[i]));
  for (int i = 0; i < ROWS * CLASSES; i++)
    if (fabs((double)logits[i] - (double)other[i]) > 2e-5 * most)
      fail_msg("%s: logit %d is %g in ONNX Runtime, %g here", arch, i, (double)other[i], (double)logits[i]);
  cmkd_backend_ref.model_free(model), cmkd_backend_ref.images_free(images), cmkd_backend_ref.close(backend);
  free(pixels), free(planes);
  close_world(&w);
}

static void other_runtime(void **state) {
  (void)state;
  const char *python = runtime();
  if (!python) {
    printf("SKIP: no ONNX Runtime for python3 (set CMKD_ONNX_PYTHON)\n");
    skip();
  }
  static const char *const archs[] = {"resnet8",           "resnet8_pad",        "wrn-16-1",          "vgg8",
                                      "mobilenetv2_cifar", "shufflenetv1_cifar", "shufflenetv2_cifar"};
  for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
    for (int fold = 0; fold < 2; fold++)
      compare(python, archs[i], 32, fold);
  compare(python, "mobilenetv2", 64, 1);
  compare(python, "mobilenetv1", 64, 1);
  compare(python, "resnet18", 64, 1);
}

static void command(void **state) {
  (void)state;
  world w;
  const char *build = getenv("CMKD_BUILD"), *said;
  char weights[1200], out[1200];
  export_net(&w, "resnet8", 32, 1);
  snprintf(weights, sizeof weights, "%s/w.safetensors", w.dir), snprintf(out, sizeof out, "%s/command.onnx", w.dir);
  assert_ok(cmkd_params_save(w.graph, &w.params, 1, weights, NULL, NULL, 0, &err));
  assert_int_equal(run_command(&said, "'%s/cmkd-train' onnx --weights '%s' --out '%s' --arch auto",
                               build ? build : "build", weights, out),
                   0);
  assert_non_null(strstr(said, "resnet8, input (batch, 3, 32, 32)"));
  assert_int_equal(nodes_of(out, "Conv"), nodes_of(w.path, "Conv"));
  assert_int_equal(
      run_command(&said, "'%s/cmkd-train' onnx --weights '%s' --out '%s'", build ? build : "build", weights, out), 1);
  assert_non_null(strstr(said, "use --arch resnet8"));
  assert_int_equal(run_command(&said, "'%s/cmkd-train' onnx --out '%s'", build ? build : "build", out), 2);
  close_world(&w);
}

static void an_unknown_operation(void **state) {
  (void)state;
  cmkd_graph *graph;
  cmkd_params params;
  char path[256];
  snprintf(path, sizeof path, "%s/unknown.onnx", scratch_dir());
  assert_ok(cmkd_net_build("resnet8", (cmkd_net_shape){32, 32, 3, 10}, &graph, &err));
  assert_ok(cmkd_params_create(graph, &params, &err));
  graph->op[1].kind = (cmkd_op_kind)99;
  assert_int_equal(cmkd_onnx_write(graph, &params, &(cmkd_onnx_options){0}, path, &err), CMKD_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.message, "resnet8"));
  assert_false(cmkd_file_exists(path));
  cmkd_params_free(&params);
  cmkd_graph_free(graph);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(structure), cmocka_unit_test(an_unknown_operation),
                                     cmocka_unit_test(command), cmocka_unit_test(other_runtime)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
