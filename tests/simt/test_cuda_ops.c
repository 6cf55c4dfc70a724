/* Batch norm and the operations without weights on a device, against the plain ones (kernels/ref): shapes of real
 * networks and awkward ones, every dtype, adding to gradients, padding channels, ties, and the same bytes in every
 * order of threads. */
#include "tests/simt/gpu.h"
#include <math.h>
#include "base/half.h"
#include "base/rng.h"
#include "kernels/cuda/ops.h"
#include "kernels/ref/ops.h"

enum { RUNS = ORDERS > 2 ? ORDERS : 2 }; /* the bytes of every run are compared, on a device too */

static size_t size_of(cmkd_dtype dtype) { return dtype == CMKD_F32 ? 4 : 2; }

static uint16_t float_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return (uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FFF : (u + 0x7FFFu + (u >> 16 & 1)) >> 16);
}
static void encode(double v, cmkd_dtype dtype, void *to) {
  const float f = (float)v;
  const uint16_t bits = dtype == CMKD_F16 ? cmkd_float_to_half(f) : float_to_bf16(f);
  if (dtype == CMKD_F32)
    memcpy(to, &f, 4);
  else
    memcpy(to, &bits, 2);
}
static double decode(const void *from, cmkd_dtype dtype) {
  float f;
  uint16_t bits;
  memcpy(&bits, from, 2);
  if (dtype == CMKD_F32)
    memcpy(&f, from, 4);
  else
    f = dtype == CMKD_F16 ? cmkd_half_to_float(bits) : cmkd_bf16_to_float(bits);
  return f;
}

/* (pixels, c) doubles, rounded to dtype here too, as a tensor on the device with its padding. */
static void *put_tensor(double *values, size_t pixels, int c, cmkd_dtype dtype) {
  if (!values) return NULL;
  const size_t stride = (size_t)cmkd_cuda_stride(c), size = size_of(dtype);
  uint8_t *raw = calloc(pixels * stride, size);
  for (size_t p = 0; p < pixels; p++)
    for (int k = 0; k < c; k++) {
      uint8_t *at = raw + (p * stride + (size_t)k) * size;
      encode(values[p * (size_t)c + (size_t)k], dtype, at);
      values[p * (size_t)c + (size_t)k] = decode(at, dtype);
    }
  void *device = gpu_put(raw, pixels * stride * size);
  free(raw);
  return device;
}
static void *empty_tensor(size_t pixels, int c, cmkd_dtype dtype) {
  return gpu_buffer(pixels * (size_t)cmkd_cuda_stride(c) * size_of(dtype));
}
/* And back; fails where padding is not 0. */
static void get_tensor(double *values, const void *device, size_t pixels, int c, cmkd_dtype dtype, const char *what) {
  const size_t stride = (size_t)cmkd_cuda_stride(c), size = size_of(dtype);
  uint8_t *raw = malloc(pixels * stride * size);
  gpu_get(raw, device, pixels * stride * size);
  for (size_t p = 0; p < pixels; p++)
    for (size_t k = 0; k < stride; k++) {
      const double v = decode(raw + (p * stride + k) * size, dtype);
      if (k < (size_t)c)
        values[p * (size_t)c + k] = v;
      else if (v != 0)
        fail_msg("%s: padding channel %zu of pixel %zu is %g", what, k, p, v);
    }
  free(raw);
}

static double *numbers(size_t n) { return calloc(n, sizeof(double)); }
static double *copy_of(const double *from, size_t n) {
  double *to = numbers(n);
  memcpy(to, from, n * sizeof *to);
  return to;
}
/* Normal; coarse: multiples of a half, for ties. */
static double *random_numbers(cmkd_rng *rng, size_t n, int coarse) {
  double *v = numbers(n);
  for (size_t i = 0; i < n; i++)
    v[i] = coarse ? floor(cmkd_rng_normal(rng) * 2) / 2 : cmkd_rng_normal(rng) * 3;
  return v;
}

/* Within the dtype's rounding of the result, plus `loose` of the largest entry for the arithmetic before it. */
static void compare(const double *got, const double *want, size_t n, cmkd_dtype dtype, double loose, const char *what,
                    const char *name) {
  double largest = 1e-30;
  for (size_t i = 0; i < n; i++)
    largest = fmax(largest, fabs(want[i]));
  const double unit = dtype == CMKD_F32 ? 6e-8 : dtype == CMKD_F16 ? 0x1p-11 : 0x1p-8;
  for (size_t i = 0; i < n; i++) {
    const double bound = unit * 1.001 * fabs(want[i]) + loose * largest + (dtype == CMKD_F16 ? 0x1p-25 : 0);
    if (!(fabs(got[i] - want[i]) <= bound))
      fail_msg("%s: %s[%zu] of %zu is %.9g, reference %.9g (largest %g)", name, what, i, n, got[i], want[i], largest);
  }
}

/* The bytes of this order are those of the first. */
static void same_bytes(uint8_t **first, const void *device, size_t bytes, const char *what, const char *name) {
  uint8_t *now = malloc(bytes);
  gpu_get(now, device, bytes);
  if (!*first) {
    *first = now;
    return;
  }
  if (memcmp(*first, now, bytes)) fail_msg("%s: %s depends on the order of threads", name, what);
  free(now);
}

/* ---- operations without weights ---- */

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

/* ---- batch norm ---- */

enum { RESIDUAL = 1, ADD_DX = 2, ADD_RESIDUAL = 4, MASK_DY = 8, NO_DX = 16, ONE_ORDER = 32 };
typedef struct norm_case {
  size_t pixels;
  int c;
  cmkd_dtype dtype;
  cmkd_act act;
  int flags;
  double offset;
} norm_case;

/* c floats on the device as doubles; `padding_free` fails where padding is not 0. */
static void get_row(double *to, const void *device, int c, int padding_free, const char *what, const char *name) {
  const int stride = cmkd_cuda_stride(c);
  float *row = malloc((size_t)stride * 4);
  gpu_get(row, device, (size_t)stride * 4);
  for (int k = 0; k < stride; k++)
    if (k < c)
      to[k] = (double)row[k];
    else if (padding_free && row[k] != 0)
      fail_msg("%s: %s of padding channel %d is %g", name, what, k, (double)row[k]);
  free(row);
}

/* The forward pass with running statistics: any mean and variance. */
static void norm_infers(cmkd_cuda_norm norm, cmkd_ref_call ref, double loose, const char *name) {
  cmkd_error err;
  const int c = norm.c;
  const size_t pixels = (size_t)norm.pixels, count = pixels * (size_t)c;
  double *mean = numbers((size_t)c), *var = numbers((size_t)c), *want = numbers(count), *got = numbers(count);
  for (int k = 0; k < c; k++)
    mean[k] = ref.saved[k] + 0.25, var[k] = 0.5 + ref.saved[c + k];
  norm.mean = put_tensor(mean, 1, c, CMKD_F32), norm.var = put_tensor(var, 1, c, CMKD_F32),
  norm.y = empty_tensor(pixels, c, norm.dtype);
  ref.train = 0, ref.param[2] = mean, ref.param[3] = var, ref.y = want;
  cmkd_ref_rules[CMKD_OP_NORM].forward(&ref);
  assert_ok(GPU(cmkd_cuda_norm_infer)(&norm, NULL, &err));
  get_tensor(got, norm.y, pixels, c, norm.dtype, name);
  compare(got, want, count, norm.dtype, loose, "y with running statistics", name);
  free(mean), free(var), free(want), free(got);
}

/* Forward with the batch's statistics, backward, then forward with running ones. */
static void norm_run(const norm_case *t) {
  cmkd_error err;
  const int c = t->c, f = t->flags;
  const cmkd_dtype dtype = t->dtype;
  const size_t pixels = t->pixels, count = pixels * (size_t)c,
               bytes = pixels * (size_t)cmkd_cuda_stride(c) * size_of(dtype),
               row_bytes = (size_t)cmkd_cuda_stride(c) * 4;
  const double loose = t->offset ? 1e-4 : 2e-6;
  char name[128];
  snprintf(name, sizeof name, "norm %zu x %d dtype %d act %d flags %d", pixels, c, (int)dtype, (int)t->act, f);
  cmkd_op op = {.kind = CMKD_OP_NORM, .act = t->act, .eps = 1e-5f};
  cmkd_rng rng = cmkd_rng_start(pixels * 64 + (uint64_t)f, CMKD_STREAM_TEST, (uint64_t)c * 8 + dtype);
  double *x = random_numbers(&rng, count, 0), *residual = f & RESIDUAL ? random_numbers(&rng, count, 0) : NULL,
         *dy = random_numbers(&rng, count, 0);
  double *start = random_numbers(&rng, count, 0), *start_residual = random_numbers(&rng, count, 0),
         *want = numbers(count), *y = numbers(count), *got = numbers(count);
  double *gamma = random_numbers(&rng, (size_t)c, 0), *beta = random_numbers(&rng, (size_t)c, 0),
         *saved = numbers(2 * (size_t)c), *row = numbers((size_t)c);
  for (size_t i = 0; i < count; i++)
    x[i] += t->offset + 0.1 * (double)(i % (size_t)c % 16);
  uint8_t *first[6] = {0};
  for (int order = 0; order < (f & ONE_ORDER ? 1 : RUNS); order++) {
    set_order(order, 3);
    cmkd_cuda_norm norm = {.pixels = (int64_t)pixels,
                           .c = c,
                           .dtype = dtype,
                           .act = t->act,
                           .eps = op.eps,
                           .x = put_tensor(x, pixels, c, dtype),
                           .residual = put_tensor(residual, pixels, c, dtype),
                           .y = empty_tensor(pixels, c, dtype),
                           .gamma = put_tensor(gamma, 1, c, CMKD_F32),
                           .beta = put_tensor(beta, 1, c, CMKD_F32),
                           .mean = gpu_buffer(row_bytes),
                           .rstd = gpu_buffer(row_bytes),
                           .var = gpu_buffer(row_bytes),
                           .partial = gpu_buffer(GPU(cmkd_cuda_norm_scratch)((int64_t)pixels, c))};
    cmkd_ref_call ref = {.op = &op,
                         .n = (int)pixels,
                         .train = 1,
                         .in = {{1, 1, c}, {1, 1, residual ? c : 0}},
                         .out = {1, 1, c},
                         .x = {x, residual},
                         .y = want,
                         .param = {gamma, beta},
                         .saved = saved};
    cmkd_ref_rules[CMKD_OP_NORM].forward(&ref);
    assert_ok(GPU(cmkd_cuda_norm_moments)(&norm, NULL, &err));
    assert_ok(GPU(cmkd_cuda_norm_forward)(&norm, NULL, &err));
    get_tensor(y, norm.y, pixels, c, dtype, name);
    compare(y, want, count, dtype, loose, "y", name);
    same_bytes(&first[0], norm.y, bytes, "y", name);
    same_bytes(&first[1], norm.var, row_bytes, "var", name);
    get_row(row, norm.mean, c, 1, "mean", name);
    compare(row, saved, (size_t)c, CMKD_F32, 1e-6, "mean", name);
    get_row(row, norm.var, c, 1, "var", name);
    for (int k = 0; k < c; k++) /* a float mean is off by 2^-24 of itself; one pass of float sums would be off by the
                                   square of mean / sigma */
      if (!(fabs(row[k] - saved[c + k]) <= 2e-6 * saved[c + k] + 0x1p-22 * fabs(saved[k]) * sqrt(saved[c + k])))
        fail_msg("%s: variance of channel %d is %.9g, reference %.9g", name, k, row[k], saved[c + k]);
    get_row(row, norm.rstd, c, 0, "rstd", name);
    for (int k = 0; k < c; k++)
      assert_true(fabs(row[k] * sqrt(saved[c + k] + (double)op.eps) - 1) <= loose);

    norm.dy = put_tensor(dy, pixels, c, dtype);
    norm.mask_dy = (f & MASK_DY) != 0;
    norm.accumulate = (f & ADD_DX) != 0;
    norm.accumulate_residual = (f & ADD_RESIDUAL) != 0;
    if (!(f & NO_DX)) norm.dx = norm.accumulate ? put_tensor(start, pixels, c, dtype) : empty_tensor(pixels, c, dtype);
    if (residual)
      norm.dresidual =
          norm.accumulate_residual ? put_tensor(start_residual, pixels, c, dtype) : empty_tensor(pixels, c, dtype);
    norm.dgamma = gpu_buffer(row_bytes);
    norm.dbeta = gpu_buffer(row_bytes);
    double *ref_dy = copy_of(dy, count), *dgamma = numbers((size_t)c),
           *dbeta = numbers((size_t)c); /* copies after dy and start were rounded */
    double *dx = !norm.dx     ? NULL
                 : f & ADD_DX ? copy_of(start, count)
                              : numbers(count),
           *dresidual = !residual          ? NULL
                        : f & ADD_RESIDUAL ? copy_of(start_residual, count)
                                           : numbers(count);
    cmkd_ref_call back = ref;
    back.y = y, back.dy = ref_dy, back.dx[0] = dx, back.dx[1] = dresidual, back.grad[0] = dgamma, back.grad[1] = dbeta;
    cmkd_ref_rules[CMKD_OP_NORM].backward(&back);
    assert_ok(GPU(cmkd_cuda_norm_reduce)(&norm, NULL, &err));
    assert_ok(GPU(cmkd_cuda_norm_backward)(&norm, NULL, &err));
    get_row(row, norm.dgamma, c, 1, "dgamma", name);
    compare(row, dgamma, (size_t)c, CMKD_F32, loose, "dgamma", name);
    get_row(row, norm.dbeta, c, 1, "dbeta", name);
    compare(row, dbeta, (size_t)c, CMKD_F32, loose, "dbeta", name);
    same_bytes(&first[2], norm.dgamma, row_bytes, "dgamma", name);
    if (dx) {
      get_tensor(got, norm.dx, pixels, c, dtype, name);
      compare(got, dx, count, dtype, loose, "dx", name);
      same_bytes(&first[3], norm.dx, bytes, "dx", name);
    }
    if (dresidual) {
      get_tensor(got, norm.dresidual, pixels, c, dtype, name);
      compare(got, dresidual, count, dtype, 1e-7, "dresidual", name);
    }
    get_tensor(got, norm.dy, pixels, c, dtype, name);
    for (size_t i = 0; i < count; i++)
      if (got[i] != (norm.mask_dy ? ref_dy[i] : dy[i])) fail_msg("%s: dy[%zu] became %g", name, i, got[i]);
    free(dx), free(dresidual), free(ref_dy), free(dgamma), free(dbeta);

    norm_infers(norm, ref, loose, name);
    gpu_clear();
  }
  for (int k = 0; k < 6; k++)
    free(first[k]);
  free(x), free(residual), free(dy), free(start), free(start_residual), free(want), free(y), free(got), free(gamma),
      free(beta), free(saved), free(row);
}

static void norms_of_every_shape(void **state) {
  (void)state;
  NEED_GPU();
  static const norm_case cases[] = {
      {1, 1, CMKD_F32, CMKD_ACT_NONE, 0, 0},
      {2, 8, CMKD_F16, CMKD_ACT_RELU, RESIDUAL, 0},
      {7, 3, CMKD_BF16, CMKD_ACT_RELU6, 0, 0},
      {64, 8, CMKD_F32, CMKD_ACT_RELU, RESIDUAL | ADD_DX, 0},
      {300, 20, CMKD_F32, CMKD_ACT_RELU6, RESIDUAL | ADD_RESIDUAL, 0},
      {1000, 16, CMKD_F16, CMKD_ACT_RELU, RESIDUAL | ADD_DX | ADD_RESIDUAL, 0},
      {700, 40, CMKD_F32, CMKD_ACT_NONE, RESIDUAL, 0},
      {700, 40, CMKD_BF16, CMKD_ACT_RELU, MASK_DY, 0},
      {333, 58, CMKD_F32, CMKD_ACT_RELU, MASK_DY | ADD_DX, 0},
      {50, 264, CMKD_F16, CMKD_ACT_RELU, NO_DX, 0},
      {1537, 12, CMKD_BF16, CMKD_ACT_NONE, ADD_DX | MASK_DY, 0},
      {130, 65, CMKD_F16, CMKD_ACT_RELU6, RESIDUAL | MASK_DY, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    norm_run(&cases[i]);
}

/* Many slabs; slabs longer than a chunk; few slabs for many channels. */
static void norms_of_many_pixels(void **state) {
  (void)state;
  NEED_GPU();
  static const norm_case cases[] = {
      {140000, 5, CMKD_F16, CMKD_ACT_RELU, ONE_ORDER, 0},
      {9000, 32, CMKD_F32, CMKD_ACT_RELU, ONE_ORDER | RESIDUAL | ADD_DX, 0},
      {300, 2048, CMKD_BF16, CMKD_ACT_RELU, ONE_ORDER, 0},
      {40001, 16, CMKD_F32, CMKD_ACT_NONE, ONE_ORDER, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    norm_run(&cases[i]);
}

/* Numbers far from 0 for their spread: E[x^2] - E[x]^2 in float would have no digit of the variance left. */
static void norms_do_not_cancel(void **state) {
  (void)state;
  NEED_GPU();
  static const norm_case cases[] = {{3000, 16, CMKD_F32, CMKD_ACT_NONE, 0, 4000},
                                    {500, 40, CMKD_F32, CMKD_ACT_RELU, RESIDUAL, -1000}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    norm_run(&cases[i]);
}

static void running_statistics_are_the_reference(void **state) {
  (void)state;
  NEED_GPU();
  enum { C = 300, SPLIT = 200, ROWS = 3 };
  cmkd_error err;
  cmkd_rng rng = cmkd_rng_start(2, CMKD_STREAM_TEST, 9);
  float mean[C], var[C], batch_mean[C], batch_var[C], rate[C], got[2 * C];
  double want_mean[C], want_var[C], saved[2 * C];
  int32_t plane[C];
  for (int rows = 1; rows <= ROWS; rows += 2) {
    for (int i = 0; i < C; i++) {
      want_mean[i] = mean[i] = (float)cmkd_rng_normal(&rng), want_var[i] = var[i] = (float)cmkd_rng_uniform(&rng);
      plane[i] = i < SPLIT ? 1 : 49, rate[i] = i < SPLIT ? 0.1f : 0.25f;
      batch_mean[i] = (float)cmkd_rng_normal(&rng), batch_var[i] = (float)cmkd_rng_uniform(&rng) + 0.5f;
    }
    for (int part = 0; part < 2; part++) {
      const int from = part ? SPLIT : 0, many = part ? C - SPLIT : SPLIT;
      const cmkd_op op = {.kind = CMKD_OP_NORM, .momentum = rate[from]};
      for (int i = 0; i < many; i++)
        saved[i] = (double)batch_mean[from + i], saved[many + i] = (double)batch_var[from + i];
      cmkd_ref_norm_update(&op, (int64_t)rows * plane[from], many, saved, want_mean + from, want_var + from);
    }
    for (int halted = -1; halted < 2; halted++) {
      void *m = gpu_put(mean, sizeof mean), *v = gpu_put(var, sizeof var);
      const cmkd_cuda_running running = {.channels = C,
                                         .mean = m,
                                         .var = v,
                                         .batch_mean = gpu_put(batch_mean, sizeof batch_mean),
                                         .batch_var = gpu_put(batch_var, sizeof batch_var),
                                         .plane = gpu_put(plane, sizeof plane),
                                         .rate = gpu_put(rate, sizeof rate),
                                         .halted = halted < 0 ? NULL : gpu_put(&halted, sizeof halted)};
      assert_ok(GPU(cmkd_cuda_norm_running)(&running, rows, NULL, &err));
      gpu_get(got, m, sizeof mean);
      gpu_get(got + C, v, sizeof var);
      for (int i = 0; i < C; i++)
        if (halted == 1)
          assert_true(got[i] == mean[i] && got[C + i] == var[i]);
        else
          assert_true(fabs((double)got[i] - want_mean[i]) <= 0x1p-24 * fmax(1, fabs(want_mean[i])) &&
                      fabs((double)got[C + i] - want_var[i]) <= 0x1p-24 * fmax(1, want_var[i]));
      gpu_clear();
    }
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
  const cmkd_cuda_norm norm = {.pixels = 4, .c = 8, .dtype = CMKD_F32, .eps = 1e-5f, .x = memory};
  cmkd_cuda_norm empty = norm;
  empty.pixels = 0;
  assert_int_equal(GPU(cmkd_cuda_norm_scratch)(0, 8), 0);
  assert_int_equal(GPU(cmkd_cuda_norm_moments)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_moments)(&empty, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_forward)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_reduce)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_backward)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_infer)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_running)(&(cmkd_cuda_running){.channels = 1}, 1, NULL, &err), CMKD_ERR_VALUE);
}

int main(void) {
  struct CMUnitTest tests[] = {
      cmocka_unit_test(sums_and_activations),
      cmocka_unit_test(pools),
      cmocka_unit_test(channels_are_rearranged),
      cmocka_unit_test(maxpool_shows_nan),
      cmocka_unit_test(logits_lose_their_padding),
      cmocka_unit_test(norms_of_every_shape),
      cmocka_unit_test(norms_of_many_pixels),
      cmocka_unit_test(norms_do_not_cancel),
      cmocka_unit_test(running_statistics_are_the_reference),
      cmocka_unit_test(arguments_are_checked),
  };
  return RUN_TESTS(tests);
}
