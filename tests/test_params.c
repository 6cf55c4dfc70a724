/* Numbers of a network: initial values, weight files in and out, what a file of another network gets, and the teachers
 * in circulation against logits that PyTorch computed in double. */
#include "tests/support.h"
#include <math.h>
#include "cmkd/dataset.h"
#include "kernels/backend.h"
#include "nets/net.h"

static cmkd_error err;
static cmkd_graph *build(const char *arch, int classes) {
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_build(arch, (cmkd_net_shape){32, 32, 3, classes}, &graph, &err));
  return graph;
}

static int index_of(const cmkd_graph *graph, const char *name) {
  for (int i = 0; i < graph->params; i++)
    if (!strcmp(graph->param[i].name, name)) return i;
  fail_msg("no %s", name);
  return -1;
}

static void spread(const float *x, int64_t n, double *mean, double *deviation, double *most) {
  *mean = *deviation = *most = 0;
  for (int64_t i = 0; i < n; i++)
    *mean += (double)x[i] / (double)n;
  for (int64_t i = 0; i < n; i++)
    *deviation += ((double)x[i] - *mean) * ((double)x[i] - *mean) / (double)n, *most = fmax(*most, fabs((double)x[i]));
  *deviation = sqrt(*deviation);
}

static void initial_values(void **state) {
  (void)state;
  cmkd_graph *g = build("resnet32x4", 100);
  cmkd_params a, b, c;
  assert_ok(cmkd_params_create(g, &a, &err));
  assert_ok(cmkd_params_create(g, &b, &err));
  assert_ok(cmkd_params_create(g, &c, &err));
  cmkd_params_init(g, 1, &a), cmkd_params_init(g, 1, &b), cmkd_params_init(g, 2, &c);
  for (int i = 0; i < g->params; i++)
    assert_memory_equal(a.value[i], b.value[i], (size_t)g->param[i].count * sizeof(float));
  int conv = index_of(g, "layer3.1.conv2.weight"), fc = index_of(g, "fc.weight"), bias = index_of(g, "fc.bias");
  assert_memory_not_equal(a.value[conv], c.value[conv], 1024);
  double mean, deviation, most;
  spread(a.value[conv], g->param[conv].count, &mean, &deviation, &most); /* Kaiming fan-out: sqrt(2 / (9 * 256)) */
  assert_true(fabs(mean) < 2e-4 && fabs(deviation - sqrt(2 / (9 * 256.))) < 2e-4 && most > 4 * deviation);
  for (int i = fc; i <= bias; i++) { /* U(-1/16, 1/16), as torch.nn.Linear(256, 100) */
    spread(a.value[i], g->param[i].count, &mean, &deviation, &most);
    assert_true(most <= 1 / 16. && most > .9 / 16 && fabs(deviation - 1 / 16. / sqrt(3)) < 6e-3);
  }
  int bn = index_of(g, "bn1.weight");
  assert_true(a.value[bn][0] == 1 && a.value[bn + 1][0] == 0 && a.value[bn + 2][0] == 0 && a.value[bn + 3][31] == 1);
  cmkd_params_free(&a), cmkd_params_free(&b), cmkd_params_free(&c);
  cmkd_graph_free(g);
}

static const char *save(const char *arch, int classes, const cmkd_params **keep) {
  static char path[1200];
  static cmkd_params params;
  cmkd_graph *g = build(arch, classes);
  assert_ok(cmkd_params_create(g, &params, &err));
  cmkd_params_init(g, 3, &params);
  const char *keys[] = {"arch", "mean", "std"}, *values[] = {arch, "0.5,0.4,0.3", "0.2,0.25,0.3"};
  snprintf(path, sizeof path, "%s/w.safetensors", scratch_dir());
  assert_ok(cmkd_params_save(g, &params, 77, path, keys, values, 3, &err));
  cmkd_graph_free(g);
  if (keep)
    *keep = &params;
  else
    cmkd_params_free(&params);
  return path;
}

static void files_round_trip(void **state) {
  (void)state;
  const cmkd_params *kept;
  const char *path = save("resnet14", 10, &kept);
  cmkd_weights *w;
  assert_ok(cmkd_weights_read(path, &w, &err));
  int64_t batches = 0;
  const cmkd_tensor *tracked = cmkd_weights_find(w, "layer2.0.downsample.1.num_batches_tracked");
  assert_true(tracked && tracked->dtype == CMKD_I64 && tracked->dims == 0);
  memcpy(&batches, tracked->data, 8);
  assert_int_equal(batches, 77);
  cmkd_model_spec spec;
  assert_ok(cmkd_model_spec_read(w, NULL, NULL, NULL, &spec, &err));
  assert_string_equal(spec.arch, "resnet14");
  assert_true(spec.classes == 10 && spec.channels == 3 && spec.mean[2] == .3f && spec.std[1] == .25f);
  assert_ok(cmkd_model_spec_read(w, "auto", NULL, NULL, &spec, &err));
  assert_string_equal(spec.arch, "resnet14");
  cmkd_graph *g = build(spec.arch, spec.classes);
  cmkd_params params;
  assert_ok(cmkd_params_create(g, &params, &err));
  assert_ok(cmkd_params_load(g, w, &params, &err));
  for (int i = 0; i < g->params; i++)
    assert_memory_equal(params.value[i], kept->value[i], (size_t)g->param[i].count * sizeof(float));
  cmkd_params_free(&params);
  cmkd_params_free((cmkd_params *)kept);
  cmkd_graph_free(g);
  cmkd_weights_free(w);
}

static void says(const char *words) {
  if (!strstr(err.message, words)) fail_msg("`%s` lacks `%s`", err.message, words);
  assert_null(strchr(err.message, '\n'));
}

static void mismatches_are_listed(void **state) {
  (void)state;
  cmkd_weights *w;
  assert_ok(cmkd_weights_read(save("resnet20", 10, NULL), &w, &err));
  cmkd_graph *g = build("resnet32", 10), *h = build("resnet20", 100);
  cmkd_params params;
  assert_ok(cmkd_params_create(g, &params, &err));
  assert_int_equal(cmkd_params_load(g, w, &params, &err), CMKD_ERR_MISMATCH);
  says("60 missing (layer1.3.conv1.weight, layer1.3.bn1.weight, layer1.3.bn1.bias, ...)");
  says("those of `resnet20`: use --arch resnet20");
  cmkd_params_free(&params);
  assert_ok(cmkd_params_create(h, &params, &err));
  assert_int_equal(cmkd_params_load(h, w, &params, &err), CMKD_ERR_MISMATCH);
  says("2 of another shape (fc.weight is (10, 64), not (100, 64), fc.bias is (10), not (100))");
  cmkd_params_free(&params);
  cmkd_graph_free(g);
  cmkd_graph_free(h);
  g = build("resnet20", 10);
  assert_ok(cmkd_params_create(g, &params, &err));
  float *first = (float *)w->tensors[0].data, old = first[7];
  first[7] = NAN;
  assert_int_equal(cmkd_params_load(g, w, &params, &err), CMKD_ERR_VALUE);
  says("`conv1.weight` holds NaN at position 7");
  first[7] = old;
  strcpy(w->tensors[0].name, "xonv1.weight");
  assert_int_equal(cmkd_params_load(g, w, &params, &err), CMKD_ERR_MISMATCH);
  says("1 missing (conv1.weight); 1 unexpected (xonv1.weight)");
  cmkd_model_spec spec;
  assert_int_equal(cmkd_model_spec_read(w, "auto", NULL, NULL, &spec, &err), CMKD_ERR_MISMATCH);
  says("fits no known architecture");
  assert_int_equal(cmkd_model_spec_read(w, "resnet20x", NULL, NULL, &spec, &err), CMKD_ERR_USAGE);
  says("resnet20");
  cmkd_params_free(&params);
  cmkd_graph_free(g);
  cmkd_weights_free(w);
}

/* Names of other toolkits: wrapper prefixes, `shortcut`, `linear`. */
static void other_spellings(void **state) {
  (void)state;
  cmkd_graph *g = build("resnet8", 10);
  cmkd_params a, b;
  assert_ok(cmkd_params_create(g, &a, &err));
  assert_ok(cmkd_params_create(g, &b, &err));
  cmkd_params_init(g, 4, &a);
  cmkd_tensor *t = calloc((size_t)g->params, sizeof *t);
  char(*names)[160] = calloc((size_t)g->params, sizeof *names);
  for (int i = 0; i < g->params; i++) {
    const char *name = g->param[i].name, *down = strstr(name, ".downsample.");
    if (down)
      snprintf(names[i], 160, "module.%.*s.shortcut.%s", (int)(down - name), name, down + 12);
    else
      snprintf(names[i], 160, "module.%s%s", strncmp(name, "fc.", 3) ? "" : "linear.",
               strncmp(name, "fc.", 3) ? name : name + 3);
    t[i] = (cmkd_tensor){.name = names[i], .dims = g->param[i].dims, .count = g->param[i].count, .data = a.value[i]};
    memcpy(t[i].shape, g->param[i].shape, sizeof g->param[i].shape);
  }
  char path[1200];
  snprintf(path, sizeof path, "%s/other.safetensors", scratch_dir());
  assert_ok(cmkd_weights_write(path, t, g->params, NULL, NULL, 0, &err));
  cmkd_weights *w;
  assert_ok(cmkd_weights_read(path, &w, &err));
  assert_ok(cmkd_params_load(g, w, &b, &err));
  for (int i = 0; i < g->params; i++)
    assert_memory_equal(a.value[i], b.value[i], (size_t)g->param[i].count * sizeof(float));
  cmkd_model_spec spec;
  assert_int_equal(cmkd_model_spec_read(w, NULL, NULL, NULL, &spec, &err), CMKD_ERR_MISMATCH);
  says("use --arch resnet8");
  assert_int_equal(cmkd_model_spec_read(w, "resnet8", NULL, NULL, &spec, &err), CMKD_ERR_MISMATCH);
  says("give --mean R,G,B");
  const float mean[3] = {0, 0, 0}, std[3] = {1, 1, 1}, zero[3] = {0, 1, 1};
  assert_ok(cmkd_model_spec_read(w, "resnet8", mean, std, &spec, &err));
  assert_int_equal(spec.classes, 10);
  assert_int_equal(cmkd_model_spec_read(w, "resnet8", mean, zero, &spec, &err), CMKD_ERR_VALUE);
  says("not possible");
  free(t), free(names);
  cmkd_weights_free(w);
  cmkd_params_free(&a), cmkd_params_free(&b);
  cmkd_graph_free(g);
}

/* A trained file's logits on the first test images, against float64 PyTorch. */
static void golden(const char *name, const char *golden_name, const char *set) {
  char file[160], spec_text[1100];
  snprintf(file, sizeof file, "teachers/%s", name);
  const char *path = shared_path(file);
  snprintf(file, sizeof file, "golden/logits/logits-%s-test-first256.safetensors", golden_name);
  const char *golden_path = shared_path(file), *folder = shared_cifar(set);
  if (!path || !golden_path || !folder) skip();
  cmkd_weights *w, *expected;
  cmkd_dataset *data;
  cmkd_model_spec spec;
  cmkd_graph *g;
  cmkd_params params;
  snprintf(spec_text, sizeof spec_text, "%s:%s", strcmp(set, "cifar-10") ? "cifar100" : "cifar10", folder);
  assert_ok(cmkd_dataset_open(spec_text, "test", NULL, &data, &err));
  assert_ok(cmkd_weights_read(path, &w, &err));
  assert_ok(cmkd_weights_read(golden_path, &expected, &err));
  const float pad_mean[3] = {.485f, .456f, .406f}, pad_std[3] = {.229f, .224f, .225f},
              mean[3] = {.5070f, .4865f, .4409f}, std[3] = {.2673f, .2564f, .2761f};
  int has_meta = cmkd_weights_meta(w, "arch") != NULL, pad = strstr(name, "pad") != NULL;
  if (has_meta)
    assert_ok(cmkd_model_spec_read(w, NULL, NULL, NULL, &spec, &err));
  else
    assert_ok(cmkd_model_spec_read(w, "auto", pad ? pad_mean : mean, pad ? pad_std : std, &spec, &err));
  g = build(spec.arch, spec.classes);
  assert_ok(cmkd_params_create(g, &params, &err));
  assert_ok(cmkd_params_load(g, w, &params, &err));
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
  cmkd_model_config config = {.graph = g,
                              .batch = 2,
                              .mean = {spec.mean[0], spec.mean[1], spec.mean[2]},
                              .std = {spec.std[0], spec.std[1], spec.std[2]}};
  assert_ok(cmkd_backend_ref.open(NULL, &backend, &err));
  assert_ok(cmkd_backend_ref.images_create(backend, &(cmkd_image_set){data->pixels, data->labels, data->n, 32, 32, 3},
                                           &images, &err));
  assert_ok(cmkd_backend_ref.model_create(backend, &config, &model, &err));
  assert_ok(cmkd_backend_ref.upload(model, CMKD_SLOT_VALUE, (const float *const *)params.value, &err));
  const uint32_t rows[2] = {0, 200};
  float *logits = malloc(2 * (size_t)spec.classes * sizeof *logits);
  cmkd_step step = {.count = 2, .rows = rows};
  assert_ok(cmkd_backend_ref.run(model, CMKD_LIST_INFER, images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){logits}, &err));
  const double *want = cmkd_weights_find(expected, "logits")->data;
  for (int i = 0; i < 2; i++)
    for (int c = 0; c < spec.classes; c++)
      if (fabs((double)logits[i * spec.classes + c] - want[(int64_t)rows[i] * spec.classes + c]) > 2e-6)
        fail_msg("%s: image %u class %d: %.9g, not %.9g", name, rows[i], c, (double)logits[i * spec.classes + c],
                 want[(int64_t)rows[i] * spec.classes + c]);
  free(logits);
  cmkd_backend_ref.model_free(model), cmkd_backend_ref.images_free(images), cmkd_backend_ref.close(backend);
  cmkd_params_free(&params);
  cmkd_graph_free(g);
  cmkd_weights_free(w), cmkd_weights_free(expected);
  cmkd_dataset_close(data);
}

static void teacher_resnet20(void **state) {
  (void)state;
  golden("resnet20-cifar100.safetensors", "resnet20-cifar100", "cifar-100");
}
static void teacher_resnet20_pth(void **state) {
  (void)state;
  golden("resnet20-cifar100.pth", "resnet20-cifar100", "cifar-100");
}
static void teacher_resnet56(void **state) {
  (void)state;
  golden("resnet56-cifar100.safetensors", "resnet56-cifar100", "cifar-100");
}
static void teacher_pad20(void **state) {
  (void)state;
  golden("resnet20-padshortcut-cifar10.safetensors", "resnet20-padshortcut-cifar10", "cifar-10");
}
static void teacher_pad20_th(void **state) {
  (void)state;
  golden("resnet20-padshortcut-cifar10.th", "resnet20-padshortcut-cifar10", "cifar-10");
}
static void teacher_pad56(void **state) {
  (void)state;
  golden("resnet56-padshortcut-cifar10.safetensors", "resnet56-padshortcut-cifar10", "cifar-10");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(initial_values),        cmocka_unit_test(files_round_trip),
                                     cmocka_unit_test(mismatches_are_listed), cmocka_unit_test(other_spellings),
                                     cmocka_unit_test(teacher_resnet20),      cmocka_unit_test(teacher_resnet20_pth),
                                     cmocka_unit_test(teacher_resnet56),      cmocka_unit_test(teacher_pad20),
                                     cmocka_unit_test(teacher_pad20_th),      cmocka_unit_test(teacher_pad56)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
