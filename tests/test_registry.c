/* Every architecture builds, checks, and has the parameters and multiply-accumulates that the literature counts. */
#include "tests/support.h"
#include "nets/net.h"

static cmkd_error err;

/* Trained numbers at 100 classes (CIFAR) or 1000 (ImageNet); million multiply-accumulates where the literature states
 * them. */
static const struct {
  const char *name;
  int classes;
  int64_t parameters;
  double mmacs;
} known[] = {
    {"resnet20", 10, 272474, 40.8},
    {"resnet20_pad", 10, 269722, 0},
    {"resnet56_pad", 10, 853018, 0},
    {"resnet110_pad", 10, 1727962, 0},
    {"resnet8", 100, 83892, 0},
    {"resnet14", 100, 181108, 0},
    {"resnet20", 100, 278324, 0},
    {"resnet32", 100, 472756, 0},
    {"resnet44", 100, 667188, 0},
    {"resnet56", 100, 861620, 0},
    {"resnet110", 100, 1736564, 0},
    {"resnet8x4", 100, 1233540, 177},
    {"resnet32x4", 100, 7433860, 1083},
    {"wrn-16-1", 100, 180916, 0},
    {"wrn-16-2", 100, 703284, 0},
    {"wrn-40-1", 100, 569780, 0},
    {"wrn-40-2", 100, 2255156, 0},
    {"wrn-28-10", 100, 36536884, 0},
    {"vgg8", 100, 3965028, 0},
    {"vgg11", 100, 9277284, 0},
    {"vgg13", 100, 9462180, 0},
    {"vgg16", 100, 14774436, 0},
    {"vgg19", 100, 20086692, 0},
    {"mobilenetv2_cifar", 100, 812836, 0},
    {"shufflenetv1_cifar", 100, 949258, 0},
    {"shufflenetv2_cifar", 100, 1355528, 0},
    {"resnet50_cifar", 100, 23705252, 0},
    {"resnet18_cifar", 10, 11173962, 0},
    {"resnet34_cifar", 100, 21328292, 0},
    {"resnet18", 1000, 11689512, 1814},
    {"resnet34", 1000, 21797672, 3664},
    {"resnet50", 1000, 25557032, 4089},
    {"resnet101", 1000, 44549160, 0},
    {"resnet152", 1000, 60192808, 0},
    {"mobilenetv1", 1000, 4231976, 569},
    {"mobilenetv2", 1000, 3504872, 301},
    {"vgg16_bn", 1000, 138365992, 15470},
};

static cmkd_graph *build(const char *arch, int side, int channels, int classes) {
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_build(arch, (cmkd_net_shape){side, side, channels, classes}, &graph, &err));
  return graph;
}

static void counts_of_the_literature(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    cmkd_graph *g = build(known[i].name, cmkd_net_side(known[i].name), 3, known[i].classes);
    if (cmkd_graph_parameters(g) != known[i].parameters)
      fail_msg("%s: %lld parameters, not %lld", known[i].name, (long long)cmkd_graph_parameters(g),
               (long long)known[i].parameters);
    double mmacs = (double)cmkd_graph_macs(g) / 1e6, off = mmacs - known[i].mmacs;
    if (known[i].mmacs > 0 && (off > .006 * mmacs || off < -.006 * mmacs))
      fail_msg("%s: %g MMAC, not %g", known[i].name, mmacs, known[i].mmacs);
    cmkd_graph_free(g);
  }
}

static void every_name_builds(void **state) {
  (void)state;
  int count = 0;
  for (const char *const *name = cmkd_net_names(); *name; name++, count++) {
    int side = cmkd_net_side(*name);
    assert_true(side == 32 || side == 224);
    for (int channels = 1; channels <= 3; channels += 2) {
      cmkd_graph *g = build(*name, side, channels, 2);
      assert_ok(cmkd_graph_check(g, &err));
      assert_string_equal(g->arch, *name);
      assert_true(g->tensor[0].c == channels && g->tensor[cmkd_graph_logits(g)].c == 2);
      cmkd_graph_free(g);
    }
    if (strcmp(*name, "vgg16_bn")) cmkd_graph_free(build(*name, 64, 3, 7));
    if (strcmp(*name, "vgg16_bn")) cmkd_graph_free(build(*name, 28, 1, 10));
  }
  assert_true(count >= 40);
}

static void state_dict_order(void **state) {
  (void)state;
  static const char *const first[] = {"conv1.weight",     "bn1.weight",      "bn1.bias",
                                      "bn1.running_mean", "bn1.running_var", "layer1.0.conv1.weight"};
  cmkd_graph *g = build("resnet20", 32, 3, 10);
  for (int i = 0; i < 6; i++)
    assert_string_equal(g->param[i].name, first[i]);
  for (int i = 0; i + 2 < g->params; i++)
    if (!strcmp(g->param[i].name, "layer2.0.bn2.running_var")) {
      assert_string_equal(g->param[i + 1].name, "layer2.0.downsample.0.weight");
      assert_string_equal(g->param[i + 2].name, "layer2.0.downsample.1.weight");
    }
  assert_string_equal(g->param[g->params - 2].name, "fc.weight");
  cmkd_graph_free(g);
}

static void refuses(const char *arch, cmkd_net_shape shape, const char *words) {
  cmkd_graph *g = NULL;
  assert_int_not_equal(cmkd_net_build(arch, shape, &g, &err), CMKD_OK);
  assert_null(g);
  if (!strstr(err.message, words)) fail_msg("`%s` lacks `%s`", err.message, words);
}

static void bad_requests(void **state) {
  (void)state;
  refuses("resnet21", (cmkd_net_shape){32, 32, 3, 10}, "did you mean `resnet20`");
  refuses("", (cmkd_net_shape){32, 32, 3, 10}, "unknown architecture");
  refuses("resnet20", (cmkd_net_shape){32, 32, 4, 10}, "take 1 or 3");
  refuses("resnet20", (cmkd_net_shape){32, 32, 3, 1}, "classes");
  refuses("resnet20", (cmkd_net_shape){0, 32, 3, 10}, "out of range");
  refuses("resnet20", (cmkd_net_shape){32, 1 << 30, 3, 10}, "out of range");
  refuses("vgg8", (cmkd_net_shape){7, 7, 3, 10}, "too small");
  refuses("vgg16_bn", (cmkd_net_shape){200, 200, 3, 10}, "multiple of 224");
}

static void other_names(void **state) {
  (void)state;
  cmkd_graph *g = build("wrn_40_2", 32, 3, 100);
  assert_string_equal(g->arch, "wrn-40-2");
  cmkd_graph_free(g);
  assert_int_equal(cmkd_net_side("ResNet50"), 32);
  assert_int_equal(cmkd_net_side("resnet50"), 224);
  assert_int_equal(cmkd_net_side("nothing"), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(counts_of_the_literature), cmocka_unit_test(every_name_builds),
                                     cmocka_unit_test(state_dict_order), cmocka_unit_test(bad_requests),
                                     cmocka_unit_test(other_names)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
