/* Every reference operation's gradient against central differences in double: of its inputs and of its parameters. */
#include "tests/support.h"
#include <math.h>
#include "base/rng.h"
#include "kernels/ref/ops.h"

#define MOST 4096
typedef struct problem {
  cmkd_ref_call call;
  double x[2][MOST], param[4][MOST], y[MOST], dy[MOST], weight[MOST], dx[2][MOST], grad[4][MOST], saved[256];
  int xs[2], params[4], ys;
} problem;

static size_t size_of(int n, cmkd_shape s) { return (size_t)n * s.h * s.w * s.c; }

/* The loss: the output weighed by fixed random numbers. */
static double loss_of(problem *p, cmkd_ref_fn *forward) {
  double sum = 0;
  forward(&p->call);
  for (int i = 0; i < p->ys; i++)
    sum += p->weight[i] * p->y[i];
  return sum;
}

static void compare(problem *p, cmkd_ref_fn *forward, double *value, const double *slope, int count) {
  for (int i = 0; i < count; i++) {
    double old = value[i], h = 2e-6;
    value[i] = old + h;
    double up = loss_of(p, forward);
    value[i] = old - h;
    double down = loss_of(p, forward);
    value[i] = old;
    double expected = (up - down) / (2 * h);
    if (fabs(expected - slope[i]) > 2e-7 * (1 + fabs(expected)))
      fail_msg("%s: gradient %d is %.12g, differences give %.12g", cmkd_op_name(p->call.op->kind), i, slope[i],
               expected);
  }
}

static void check(cmkd_op op, int n, cmkd_shape in0, cmkd_shape in1, int out_c, uint64_t seed) {
  static problem p;
  cmkd_error err;
  memset(&p, 0, sizeof p);
  cmkd_rng rng = cmkd_rng_start(seed, CMKD_STREAM_TEST, op.kind);
  if (!op.stride) op.stride = 1;
  if (!op.groups) op.groups = 1;
  op.eps = 1e-5f, op.momentum = 0.1f;
  p.call = (cmkd_ref_call){.op = &op, .n = n, .train = 1, .in = {in0, in1}, .y = p.y, .dy = p.dy, .saved = p.saved};
  assert_ok(cmkd_op_shape(op.kind, &op, in0, in1, out_c, &p.call.out, &err));
  p.ys = (int)size_of(n, p.call.out);
  p.xs[0] = (int)size_of(n, in0), p.xs[1] = op.in[1] >= 0 ? (int)size_of(n, in1) : 0;
  if (op.kind == CMKD_OP_CONV) p.params[0] = op.kernel_h * op.kernel_w * in0.c / op.groups * out_c, p.params[1] = out_c;
  if (op.kind == CMKD_OP_LINEAR) p.params[0] = in0.h * in0.w * in0.c * out_c, p.params[1] = out_c;
  if (op.kind == CMKD_OP_NORM) p.params[0] = p.params[1] = in0.c;
  assert_true(p.ys <= MOST && p.xs[0] <= MOST && p.params[0] <= MOST);
  /* Inputs are all different, and away from the kinks at 0 and 6, so that differences never step over one. */
  for (int k = 0; k < 2; k++) {
    for (int i = 0; i < p.xs[k]; i++)
      p.x[k][i] = (double)(cmkd_rng_below(&rng, 2000) * 4 + 1 + k) * 1e-3 + (k ? 0 : i * 7e-6 - 3);
    if (p.xs[k]) p.call.x[k] = p.x[k], p.call.dx[k] = p.dx[k];
  }
  for (int k = 0; k < 4; k++) {
    for (int i = 0; i < p.params[k]; i++)
      p.param[k][i] = cmkd_rng_normal(&rng);
    if (p.params[k]) p.call.param[k] = p.param[k], p.call.grad[k] = p.grad[k];
  }
  for (int i = 0; i < p.ys; i++)
    p.weight[i] = cmkd_rng_normal(&rng);
  cmkd_ref_rule rule = cmkd_ref_rules[op.kind];
  rule.forward(&p.call);
  memcpy(p.dy, p.weight, sizeof p.dy);
  rule.backward(&p.call);
  for (int k = 0; k < 2; k++)
    compare(&p, rule.forward, p.x[k], p.dx[k], p.xs[k]);
  for (int k = 0; k < 4; k++)
    compare(&p, rule.forward, p.param[k], p.grad[k], p.params[k]);
}

#define ONE .in = {0, -1}
#define TWO .in = {0, 1}
static const cmkd_shape none = {0, 0, 0};

static void convolutions(void **state) {
  (void)state;
  check((cmkd_op){CMKD_OP_CONV, ONE, .kernel_h = 3, .kernel_w = 3, .pad = 1}, 2, (cmkd_shape){5, 4, 3}, none, 4, 1);
  check((cmkd_op){CMKD_OP_CONV, ONE, .kernel_h = 3, .kernel_w = 3, .pad = 1, .stride = 2}, 2, (cmkd_shape){6, 5, 3},
        none, 4, 2);
  check((cmkd_op){CMKD_OP_CONV, ONE, .kernel_h = 1, .kernel_w = 1, .stride = 2}, 2, (cmkd_shape){4, 4, 3}, none, 5, 3);
  check((cmkd_op){CMKD_OP_CONV, ONE, .kernel_h = 3, .kernel_w = 3, .pad = 1, .groups = 6}, 2, (cmkd_shape){4, 4, 6},
        none, 6, 4);
  check((cmkd_op){CMKD_OP_CONV, ONE, .kernel_h = 3, .kernel_w = 1, .groups = 3, .stride = 2}, 2, (cmkd_shape){5, 5, 6},
        none, 9, 5);
  check((cmkd_op){CMKD_OP_CONV, ONE, .kernel_h = 7, .kernel_w = 7, .pad = 3, .stride = 2}, 1, (cmkd_shape){9, 8, 3},
        none, 2, 6);
}

static void norms(void **state) {
  (void)state;
  for (int act = CMKD_ACT_NONE; act <= CMKD_ACT_RELU6; act++) {
    check((cmkd_op){CMKD_OP_NORM, ONE, .act = (cmkd_act)act}, 3, (cmkd_shape){3, 2, 4}, none, 0, 10);
    check((cmkd_op){CMKD_OP_NORM, TWO, .act = (cmkd_act)act}, 3, (cmkd_shape){3, 2, 4}, (cmkd_shape){3, 2, 4}, 0, 11);
  }
}

static void pointwise(void **state) {
  (void)state;
  for (int act = CMKD_ACT_NONE; act <= CMKD_ACT_RELU6; act++) {
    check((cmkd_op){CMKD_OP_ADD, TWO, .act = (cmkd_act)act}, 2, (cmkd_shape){4, 3, 5}, (cmkd_shape){4, 3, 5}, 0, 20);
    check((cmkd_op){CMKD_OP_ACT, ONE, .act = (cmkd_act)act}, 2, (cmkd_shape){4, 3, 5}, none, 0, 21);
  }
}

static void pools(void **state) {
  (void)state;
  check((cmkd_op){CMKD_OP_MAXPOOL, ONE, .kernel_h = 2, .kernel_w = 2, .stride = 2}, 2, (cmkd_shape){6, 5, 3}, none, 0,
        30);
  check((cmkd_op){CMKD_OP_MAXPOOL, ONE, .kernel_h = 3, .kernel_w = 3, .stride = 2, .pad = 1}, 2, (cmkd_shape){7, 6, 3},
        none, 0, 31);
  check((cmkd_op){CMKD_OP_AVGPOOL, ONE, .kernel_h = 3, .kernel_w = 3, .stride = 2, .pad = 1}, 2, (cmkd_shape){7, 6, 3},
        none, 0, 32);
  check((cmkd_op){CMKD_OP_AVGPOOL, ONE, .kernel_h = 4, .kernel_w = 4, .stride = 4}, 2, (cmkd_shape){8, 8, 3}, none, 0,
        33);
  check((cmkd_op){CMKD_OP_GLOBALPOOL, ONE}, 3, (cmkd_shape){4, 3, 5}, none, 0, 34);
}

static void the_rest(void **state) {
  (void)state;
  check((cmkd_op){CMKD_OP_LINEAR, ONE}, 3, (cmkd_shape){2, 3, 4}, none, 5, 40);
  check((cmkd_op){CMKD_OP_PADSHORTCUT, ONE, .stride = 2, .first = 2}, 2, (cmkd_shape){5, 4, 3}, none, 7, 41);
  check((cmkd_op){CMKD_OP_CONCAT, TWO}, 2, (cmkd_shape){3, 4, 2}, (cmkd_shape){3, 4, 5}, 0, 42);
  check((cmkd_op){CMKD_OP_SLICE, ONE, .first = 2}, 2, (cmkd_shape){3, 4, 7}, none, 4, 43);
  check((cmkd_op){CMKD_OP_SHUFFLE, ONE, .groups = 3}, 2, (cmkd_shape){3, 2, 12}, none, 0, 44);
}

/* What differences can't see: where channels go. */
static void known_transforms(void **state) {
  (void)state;
  double x[6] = {0, 1, 2, 3, 4, 5}, y[8];
  cmkd_op op = {CMKD_OP_SHUFFLE, ONE, .groups = 2};
  cmkd_ref_shuffle(&(cmkd_ref_call){.op = &op, .n = 1, .in = {{1, 1, 6}}, .out = {1, 1, 6}, .x = {x}, .y = y});
  const double shuffled[6] = {0, 3, 1, 4, 2, 5};
  assert_memory_equal(y, shuffled, sizeof shuffled);
  cmkd_op pad = {CMKD_OP_PADSHORTCUT, ONE, .stride = 2, .first = 1};
  cmkd_ref_padshortcut(&(cmkd_ref_call){.op = &pad, .n = 1, .in = {{1, 3, 2}}, .out = {1, 2, 4}, .x = {x}, .y = y});
  const double padded[8] = {0, 0, 1, 0, 0, 4, 5, 0};
  assert_memory_equal(y, padded, sizeof padded);
  double w[6] = {1, 10, 100, 1000, 1e4, 1e5}, bias = 0; /* NCHW order: channel 0 of three pixels first */
  cmkd_op linear = {CMKD_OP_LINEAR, ONE};
  cmkd_ref_linear(&(cmkd_ref_call){
      .op = &linear, .n = 1, .in = {{1, 3, 2}}, .out = {1, 1, 1}, .x = {x}, .y = y, .param = {w, &bias}});
  assert_true(y[0] == 0 + 2 * 10 + 4 * 100 + 1 * 1000 + 3 * 1e4 + 5 * 1e5);
}

static void sgd_as_pytorch(void **state) {
  (void)state;
  /* torch.optim.SGD([w], lr=.1, momentum=.9, weight_decay=.01, nesterov=...) on w = 2, gradients 1 then -.5 */
  double w = 2, m = 0;
  cmkd_ref_sgd(&w, &m, (double[]){1}, 1, .1, .9, .01, 0);
  assert_true(fabs(w - 1.898) < 1e-15);
  cmkd_ref_sgd(&w, &m, (double[]){-.5}, 1, .1, .9, .01, 0);
  assert_true(fabs(w - 1.854302) < 1e-15);
  w = 2, m = 0;
  cmkd_ref_sgd(&w, &m, (double[]){1}, 1, .1, .9, .01, 1);
  assert_true(fabs(w - 1.8062) < 1e-15);
  cmkd_ref_sgd(&w, &m, (double[]){-.5}, 1, .1, .9, .01, 1);
  assert_true(fabs(w - 1.81514822) < 1e-12);
}

static void running_statistics(void **state) {
  (void)state;
  cmkd_op op = {CMKD_OP_NORM, ONE, .momentum = .25f};
  double mean = 1, var = 2, saved[2] = {3, 6};
  cmkd_ref_norm_update(&op, 4, 1, saved, &mean, &var); /* unbiased: 6 * 4 / 3 = 8 */
  assert_true(mean == 1.5 && var == 3.5);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(convolutions),   cmocka_unit_test(norms),
                                     cmocka_unit_test(pointwise),      cmocka_unit_test(pools),
                                     cmocka_unit_test(the_rest),       cmocka_unit_test(known_transforms),
                                     cmocka_unit_test(sgd_as_pytorch), cmocka_unit_test(running_statistics)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
