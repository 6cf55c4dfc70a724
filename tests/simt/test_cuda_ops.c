/* The operations without weights on a device, against the plain ones (kernels/ref): shapes of real networks and awkward
 * ones, every dtype, adding to gradients, padding channels, ties, and the same bytes in every order of threads. */
#include "kernels/ref/ops.h"
#include "tests/simt/tensors.h"

typedef struct op_case {
  cmkd_op op;
  int n;
  cmkd_shape in0, in1;
  int out_c;
} op_case;
enum { ACCUMULATE = 1, SAME_MEMORY = 2, ONLY_SECOND = 4 };

static void op_run(const op_case *t, cmkd_dtype dtype, int flags) {
  cmkd_error err;
  cmkd_shape out, in[2] = {t->in0, t->in1};
  assert_ok(cmkd_op_shape(t->op.kind, &t->op, in[0], in[1], t->out_c, &out, &err));
  const int inputs = in[1].c ? 2 : 1, accumulate = flags & ACCUMULATE;
  const size_t n = (size_t)t->n, pixels[2] = {n * in[0].h * in[0].w, n * in[1].h * in[1].w},
               out_pixels = n * out.h * out.w, count = out_pixels * out.c;
  char name[128];
  snprintf(name, sizeof name, "%s %dx%dx%dx%d -> %dx%dx%d dtype %d flags %d", cmkd_op_name(t->op.kind), t->n, in[0].h,
           in[0].w, in[0].c, out.h, out.w, out.c, (int)dtype, flags);
  cmkd_rng rng = cmkd_rng_start((uint64_t)(count * 16 + flags), CMKD_STREAM_TEST, (uint64_t)t->op.kind * 8 + dtype);
  double *x[2] = {0}, *start[2] = {0}, *y = numbers(count), *want = numbers(count),
         *dy = random_numbers(&rng, count, 0);
  for (int k = 0; k < inputs; k++) {
    x[k] = random_numbers(&rng, pixels[k] * in[k].c, t->op.kind == CMKD_OP_MAXPOOL);
    start[k] = random_numbers(&rng, pixels[k] * in[k].c, 0);
  }
  uint8_t *first[3] = {0};
  for (int order = 0; order < RUNS; order++) {
    set_order(order, 7);
    cmkd_cuda_call call = {.op = &t->op, .n = t->n, .dtype = dtype, .in = {in[0], in[1]}, .out = out};
    for (int k = 0; k < inputs; k++)
      call.x[k] = put_tensor(x[k], pixels[k], in[k].c, dtype);
    call.y = empty_tensor(out_pixels, out.c, dtype);
    cmkd_ref_call ref = {
        .op = &t->op, .n = t->n, .train = 1, .in = {in[0], in[1]}, .out = out, .x = {x[0], x[1]}, .y = want};
    cmkd_ref_rules[t->op.kind].forward(&ref);
    assert_ok(GPU(cmkd_cuda_forward)(&call, NULL, &err));
    get_tensor(y, call.y, out_pixels, out.c, dtype, name);
    compare(y, want, count, dtype, 4e-7, "y", name);
    same_bytes(&first[2], call.y, out_pixels * (size_t)cmkd_cuda_stride(out.c) * size_of(dtype), "y", name);

    call.dy = put_tensor(dy, out_pixels, out.c, dtype);
    double *dx[2] = {0}, *ref_dy = copy_of(dy, count);
    for (int k = 0; k < inputs; k++) {
      const size_t size = pixels[k] * (size_t)in[k].c;
      if (k == 0 && flags & ONLY_SECOND) continue;
      if (k == 1 && flags & SAME_MEMORY) {
        call.dx[1] = call.dx[0], call.accumulate[1] = 1, dx[1] = dx[0];
        continue;
      }
      call.dx[k] =
          accumulate ? put_tensor(start[k], pixels[k], in[k].c, dtype) : empty_tensor(pixels[k], in[k].c, dtype);
      call.accumulate[k] = accumulate;
      dx[k] = accumulate ? copy_of(start[k], size) : numbers(size);
    }
    cmkd_ref_call back = ref;
    back.y = y, back.dy = ref_dy, back.dx[0] = dx[0], back.dx[1] = dx[1];
    cmkd_ref_rules[t->op.kind].backward(&back);
    assert_ok(GPU(cmkd_cuda_backward)(&call, NULL, &err));
    for (int k = 0; k < inputs; k++) {
      if (!dx[k] || (k == 1 && flags & SAME_MEMORY)) continue;
      const size_t size = pixels[k] * (size_t)in[k].c;
      double *got = numbers(size);
      get_tensor(got, call.dx[k], pixels[k], in[k].c, dtype, name);
      /* concatenated with itself a gradient is added, and rounded, twice */
      const double twice = flags & SAME_MEMORY && t->op.kind == CMKD_OP_CONCAT && dtype != CMKD_F32
                               ? dtype == CMKD_F16 ? 0x1p-11 : 0x1p-8
                               : 0;
      compare(got, dx[k], size, dtype, 4e-7 + twice, k ? "dx1" : "dx0", name);
      same_bytes(&first[k], call.dx[k], pixels[k] * (size_t)cmkd_cuda_stride(in[k].c) * size_of(dtype), "dx", name);
      free(got);
    }
    free(dx[0]);
    if (dx[1] != dx[0]) free(dx[1]);
    free(ref_dy);
    gpu_clear();
  }
  for (int k = 0; k < 3; k++)
    free(first[k]);
  for (int k = 0; k < 2; k++)
    free(x[k]), free(start[k]);
  free(y), free(want), free(dy);
}

/* Every dtype, with and without adding to what is there. */
static void op_runs(const op_case *cases, size_t count) {
  static const cmkd_dtype dtypes[] = {CMKD_F32, CMKD_F16, CMKD_BF16};
  for (size_t i = 0; i < count; i++)
    for (int d = 0; d < 3; d++)
      for (int accumulate = 0; accumulate < 2; accumulate++)
        op_run(&cases[i], dtypes[d], accumulate ? ACCUMULATE : 0);
}
#define OP_RUNS(cases) op_runs(cases, sizeof cases / sizeof *cases)

static void sums_and_activations(void **state) {
  (void)state;
  NEED_GPU();
  static const op_case cases[] = {
      {{.kind = CMKD_OP_ADD, .act = CMKD_ACT_RELU}, 2, {5, 3, 20}, {5, 3, 20}, 20},
      {{.kind = CMKD_OP_ADD}, 3, {8, 8, 16}, {8, 8, 16}, 16},
      {{.kind = CMKD_OP_ADD, .act = CMKD_ACT_RELU6}, 1, {4, 4, 8}, {4, 4, 8}, 8},
      {{.kind = CMKD_OP_ACT, .act = CMKD_ACT_RELU}, 2, {5, 3, 20}, {0, 0, 0}, 20},
      {{.kind = CMKD_OP_ACT, .act = CMKD_ACT_RELU6}, 2, {7, 9, 33}, {0, 0, 0}, 33},
      {{.kind = CMKD_OP_ACT}, 1, {1, 1, 1}, {0, 0, 0}, 1},
  };
  OP_RUNS(cases);
  for (int i = 0; i < 3; i++)
    op_run(&cases[i], i == 1 ? CMKD_F32 : CMKD_BF16, ACCUMULATE | SAME_MEMORY);
  op_run(&cases[0], CMKD_F16, ONLY_SECOND);
}

static void pools(void **state) {
  (void)state;
  NEED_GPU();
  static const op_case cases[] = {
      {{.kind = CMKD_OP_MAXPOOL, .kernel_h = 2, .kernel_w = 2, .stride = 2}, 2, {8, 8, 16}, {0, 0, 0}, 16},
      {{.kind = CMKD_OP_MAXPOOL, .kernel_h = 3, .kernel_w = 3, .stride = 2, .pad = 1}, 2, {9, 7, 12}, {0, 0, 0}, 12},
      {{.kind = CMKD_OP_MAXPOOL, .kernel_h = 3, .kernel_w = 2, .stride = 1, .pad = 1}, 1, {4, 5, 3}, {0, 0, 0}, 3},
      {{.kind = CMKD_OP_MAXPOOL, .kernel_h = 2, .kernel_w = 2, .stride = 3}, 2, {8, 7, 8}, {0, 0, 0}, 8},
      {{.kind = CMKD_OP_AVGPOOL, .kernel_h = 3, .kernel_w = 3, .stride = 2, .pad = 1}, 2, {9, 7, 12}, {0, 0, 0}, 12},
      {{.kind = CMKD_OP_AVGPOOL, .kernel_h = 2, .kernel_w = 2, .stride = 2}, 2, {7, 6, 24}, {0, 0, 0}, 24},
      {{.kind = CMKD_OP_AVGPOOL, .kernel_h = 4, .kernel_w = 3, .stride = 5}, 2, {11, 9, 5}, {0, 0, 0}, 5},
      {{.kind = CMKD_OP_GLOBALPOOL}, 3, {8, 8, 64}, {0, 0, 0}, 64},
      {{.kind = CMKD_OP_GLOBALPOOL}, 2, {7, 7, 100}, {0, 0, 0}, 100},
      {{.kind = CMKD_OP_GLOBALPOOL}, 2, {1, 1, 9}, {0, 0, 0}, 9},
      {{.kind = CMKD_OP_GLOBALPOOL}, 1, {24, 25, 3}, {0, 0, 0}, 3},
  };
  OP_RUNS(cases);
  static const op_case large = {{.kind = CMKD_OP_GLOBALPOOL}, 1, {56, 56, 24}, {0, 0, 0}, 24};
  op_run(&large, CMKD_F32, 0);
}

static void channels_are_rearranged(void **state) {
  (void)state;
  NEED_GPU();
  static const op_case cases[] = {
      {{.kind = CMKD_OP_PADSHORTCUT, .stride = 2, .first = 8}, 2, {8, 8, 16}, {0, 0, 0}, 32},
      {{.kind = CMKD_OP_PADSHORTCUT, .stride = 2, .first = 3}, 2, {7, 5, 10}, {0, 0, 0}, 21},
      {{.kind = CMKD_OP_PADSHORTCUT, .stride = 1, .first = 0}, 1, {3, 3, 12}, {0, 0, 0}, 30},
      {{.kind = CMKD_OP_PADSHORTCUT, .stride = 3, .first = 8}, 2, {7, 8, 12}, {0, 0, 0}, 27},
      {{.kind = CMKD_OP_CONCAT}, 2, {4, 3, 16}, {4, 3, 24}, 40},
      {{.kind = CMKD_OP_CONCAT}, 2, {4, 3, 13}, {4, 3, 5}, 18},
      {{.kind = CMKD_OP_CONCAT}, 2, {4, 3, 8}, {4, 3, 3}, 11},
      {{.kind = CMKD_OP_CONCAT}, 1, {3, 3, 12}, {3, 3, 8}, 20},
      {{.kind = CMKD_OP_CONCAT}, 2, {2, 3, 12}, {2, 3, 12}, 24},
      {{.kind = CMKD_OP_SLICE, .first = 0}, 2, {4, 3, 24}, {0, 0, 0}, 12},
      {{.kind = CMKD_OP_SLICE, .first = 16}, 2, {4, 3, 40}, {0, 0, 0}, 12},
      {{.kind = CMKD_OP_SLICE, .first = 29}, 2, {4, 3, 58}, {0, 0, 0}, 29},
      {{.kind = CMKD_OP_SHUFFLE, .groups = 2}, 2, {4, 3, 58}, {0, 0, 0}, 58},
      {{.kind = CMKD_OP_SHUFFLE, .groups = 3}, 2, {4, 3, 24}, {0, 0, 0}, 24},
      {{.kind = CMKD_OP_SHUFFLE, .groups = 1}, 1, {2, 2, 8}, {0, 0, 0}, 8},
  };
  OP_RUNS(cases);
  op_run(&cases[8], CMKD_F32, ACCUMULATE | SAME_MEMORY);
  op_run(&cases[8], CMKD_F16, ACCUMULATE | SAME_MEMORY);
  op_run(&cases[5], CMKD_BF16, ONLY_SECOND);
}

/* A NaN among a window's numbers is its largest, and gets the gradient, the last of several as in the reference. */
static void maxpool_shows_nan(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_error err;
  const cmkd_op op = {.kind = CMKD_OP_MAXPOOL, .kernel_h = 2, .kernel_w = 2, .stride = 2};
  const cmkd_shape in = {2, 4, 8}, out = {1, 2, 8};
  double x[64], y[16], dy[16], got[64], got_y[16], want[64] = {0};
  for (int i = 0; i < 64; i++)
    x[i] = i % 5;
  for (int i = 0; i < 16; i++)
    dy[i] = i + 1;
  x[3] = x[32 + 3] = x[8 + 5] = (double)NAN;
  cmkd_cuda_call call = {.op = &op,
                         .n = 1,
                         .dtype = CMKD_F16,
                         .in = {in},
                         .out = out,
                         .x = {put_tensor(x, 8, 8, CMKD_F16)},
                         .y = empty_tensor(2, 8, CMKD_F16),
                         .dy = put_tensor(dy, 2, 8, CMKD_F16),
                         .dx = {empty_tensor(8, 8, CMKD_F16)}};
  cmkd_ref_call ref = {.op = &op, .n = 1, .in = {in}, .out = out, .x = {x}, .y = y, .dy = dy, .dx = {want}};
  cmkd_ref_rules[op.kind].forward(&ref);
  cmkd_ref_rules[op.kind].backward(&ref);
  assert_ok(GPU(cmkd_cuda_forward)(&call, NULL, &err));
  assert_ok(GPU(cmkd_cuda_backward)(&call, NULL, &err));
  get_tensor(got_y, call.y, 2, 8, CMKD_F16, "y");
  get_tensor(got, call.dx[0], 8, 8, CMKD_F16, "dx");
  for (int i = 0; i < 16; i++)
    assert_true(isnan(y[i]) ? isnan(got_y[i]) : y[i] == got_y[i]);
  for (int i = 0; i < 64; i++)
    assert_true(got[i] == want[i]);
  assert_true(isnan(got_y[3]) && isnan(got_y[5]));
  gpu_clear();
}

static void logits_lose_their_padding(void **state) {
  (void)state;
  NEED_GPU();
  static const cmkd_dtype dtypes[] = {CMKD_F32, CMKD_F16, CMKD_BF16};
  cmkd_error err;
  for (int c = 1; c <= 108; c += 9)
    for (int d = 0; d < 3; d++) {
      enum { ROWS = 7 };
      cmkd_rng rng = cmkd_rng_start((uint64_t)c, CMKD_STREAM_TEST, (uint64_t)d);
      double *x = random_numbers(&rng, (size_t)(ROWS * c), 0);
      float *got = malloc((size_t)(ROWS * c) * 4);
      const void *from = put_tensor(x, ROWS, c, dtypes[d]);
      void *to = gpu_buffer((size_t)(ROWS * c) * 4);
      assert_ok(GPU(cmkd_cuda_to_float)(from, dtypes[d], ROWS, c, to, NULL, &err));
      gpu_get(got, to, (size_t)(ROWS * c) * 4);
      for (int i = 0; i < ROWS * c; i++)
        assert_true((double)got[i] == x[i]);
      free(x), free(got);
      gpu_clear();
    }
}

/* ---- what is refused ---- */

static void arguments_are_checked(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_error err;
  static double memory[64];
  const cmkd_op pool = {.kind = CMKD_OP_MAXPOOL, .kernel_h = 2, .kernel_w = 2, .stride = 2},
                add = {.kind = CMKD_OP_ADD, .act = CMKD_ACT_RELU}, conv = {.kind = CMKD_OP_CONV},
                slice = {.kind = CMKD_OP_SLICE, .first = 5};
  const cmkd_shape small = {2, 2, 8}, one = {1, 1, 8};
  cmkd_cuda_call good = {.op = &add,
                         .n = 1,
                         .dtype = CMKD_F32,
                         .in = {small, small},
                         .out = small,
                         .x = {memory, memory},
                         .y = memory},
                 bad = good;
  bad.dtype = CMKD_F64;
  assert_int_equal(GPU(cmkd_cuda_forward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.x[1] = NULL;
  assert_int_equal(GPU(cmkd_cuda_forward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.in[1] = one;
  assert_int_equal(GPU(cmkd_cuda_forward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.op = &conv;
  assert_int_equal(GPU(cmkd_cuda_forward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.op = &slice;
  assert_int_equal(GPU(cmkd_cuda_forward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.op = &pool;
  assert_int_equal(GPU(cmkd_cuda_forward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.n = 1 << 30;
  assert_int_equal(GPU(cmkd_cuda_forward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.dy = memory, bad.dx[0] = bad.dx[1] = memory, bad.accumulate[0] = 1;
  assert_int_equal(GPU(cmkd_cuda_backward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.dy = memory, bad.y = NULL, bad.dx[0] = memory;
  assert_int_equal(GPU(cmkd_cuda_backward)(&bad, NULL, &err), CMKD_ERR_VALUE);
  bad = good, bad.dy = memory;
  assert_ok(GPU(cmkd_cuda_backward)(&bad, NULL, &err)); /* nothing is wanted */
  assert_int_equal(GPU(cmkd_cuda_to_float)(memory, CMKD_F64, 1, 1, (float *)memory, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_to_float)(memory, CMKD_F32, 1 << 30, 4, (float *)memory, NULL, &err), CMKD_ERR_VALUE);
}

int main(void) {
  struct CMUnitTest tests[] = {
      cmocka_unit_test(sums_and_activations),      cmocka_unit_test(pools),
      cmocka_unit_test(channels_are_rearranged),   cmocka_unit_test(maxpool_shows_nan),
      cmocka_unit_test(logits_lose_their_padding), cmocka_unit_test(arguments_are_checked),
  };
  return RUN_TESTS(tests);
}
