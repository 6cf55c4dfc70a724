/* The operation list's rules: what a broken list gets, and what counts. */
#include "tests/support.h"
#include "kernels/graph.h"
#include "nets/net.h"

static cmkd_error err;

static cmkd_graph *build(const char *arch) {
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_build(arch, (cmkd_net_shape){32, 32, 3, 10}, &graph, &err));
  return graph;
}

static void refuses(cmkd_graph *graph, const char *words) {
  assert_int_not_equal(cmkd_graph_check(graph, &err), CMKD_OK);
  if (!strstr(err.message, words)) fail_msg("`%s` lacks `%s`", err.message, words);
  cmkd_graph_free(graph);
}

static void broken_lists_are_refused(void **state) {
  (void)state;
  cmkd_graph *g = build("resnet8");
  assert_ok(cmkd_graph_check(g, &err));
  g->op[3].in[0] = g->tensors - 1;
  refuses(g, "before it is written");
  g = build("resnet8"), g->op[3].in[0] = 1 << 20;
  refuses(g, "before it is written");
  g = build("resnet8"), g->op[3].out = 1;
  refuses(g, "written twice");
  g = build("resnet8"), g->op[2].param[0] = 9999;
  refuses(g, "out of range");
  g = build("resnet8"), g->op[4].param[0] = g->op[2].param[0];
  refuses(g, "used twice");
  g = build("resnet8"), g->tensor[3].c = 17;
  refuses(g, "conv1.weight");
  g = build("resnet8"), g->tensor[3].h = 0;
  refuses(g, "no proper shape");
  g = build("resnet8"), g->op[0].stride = 0;
  refuses(g, "is not a window");
  g = build("resnet8"), g->op[0].groups = 2;
  refuses(g, "groups do not divide");
  g = build("resnet8"), g->op[0].act = CMKD_ACT_RELU;
  refuses(g, "has no activation");
  g = build("resnet8"), g->op[0].kind = (cmkd_op_kind)77;
  refuses(g, "unknown");
  g = build("resnet8"), g->param[0].count++;
  refuses(g, "conv1.weight");
  g = build("resnet8"), g->output[CMKD_OUTPUT_LOGITS].tensor = 0;
  refuses(g, "logits");
  g = build("resnet8"), g->ops--;
  refuses(g, "no operation uses");
}

static void shapes_stay_in_range(void **state) {
  (void)state;
  cmkd_op op = {.kind = CMKD_OP_CONV, .kernel_h = 3, .kernel_w = 3, .stride = 1, .groups = 1};
  cmkd_shape out;
  assert_int_equal(cmkd_op_shape(op.kind, &op, (cmkd_shape){2, 2, 3}, (cmkd_shape){0}, 4, &out, &err),
                   CMKD_ERR_MISMATCH);
  assert_int_equal(cmkd_op_shape(op.kind, &op, (cmkd_shape){16000, 16000, 3}, (cmkd_shape){0}, 1 << 20, &out, &err),
                   CMKD_ERR_VALUE);
  op.pad = 1;
  assert_ok(cmkd_op_shape(op.kind, &op, (cmkd_shape){7, 6, 3}, (cmkd_shape){0}, 4, &out, &err));
  assert_true(out.h == 7 && out.w == 6 && out.c == 4);
  op = (cmkd_op){.kind = CMKD_OP_SLICE, .first = 2};
  assert_int_equal(cmkd_op_shape(op.kind, &op, (cmkd_shape){2, 2, 3}, (cmkd_shape){0}, 2, &out, &err), CMKD_ERR_VALUE);
  op = (cmkd_op){.kind = CMKD_OP_PADSHORTCUT, .first = 3, .stride = 2};
  assert_int_equal(cmkd_op_shape(op.kind, &op, (cmkd_shape){2, 2, 3}, (cmkd_shape){0}, 5, &out, &err), CMKD_ERR_VALUE);
  assert_string_equal(cmkd_op_name(CMKD_OP_SHUFFLE), "shuffle");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(broken_lists_are_refused),
                                     cmocka_unit_test(shapes_stay_in_range)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
