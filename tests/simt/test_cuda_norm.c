/* Batch norm on a device, against the plain one (kernels/ref): shapes of real networks and awkward ones, every dtype,
 * adding to gradients, padding channels, cancellation, running statistics, and the same bytes in every order of
 * threads. */
#include "kernels/ref/ops.h"
#include "tests/simt/tensors.h"

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

/* One case: host arrays, and the first order's bytes of each result. */
typedef struct norm_test {
  const norm_case *is;
  char name[128];
  size_t count, bytes, row_bytes; /* elements and bytes of a tensor, bytes of a row of channels */
  double loose;
  cmkd_op op;
  double *x, *residual, *dy, *dx_start, *dresidual_start, *gamma, *beta;
  double *want, *y, *got, *saved, *row; /* results of the reference and of the device */
  uint8_t *first[4];
} norm_test;

static void norm_open(norm_test *t, const norm_case *is) {
  const size_t c = (size_t)is->c, count = is->pixels * c;
  *t = (norm_test){.is = is,
                   .count = count,
                   .bytes = is->pixels * (size_t)cmkd_cuda_stride(is->c) * size_of(is->dtype),
                   .row_bytes = (size_t)cmkd_cuda_stride(is->c) * 4,
                   .loose = is->offset != 0 ? 1e-4 : 2e-6,
                   .op = {.kind = CMKD_OP_NORM, .act = is->act, .eps = 1e-5f}};
  snprintf(t->name, sizeof t->name, "norm %zu x %d dtype %d act %d flags %d", is->pixels, is->c, (int)is->dtype,
           (int)is->act, is->flags);
  cmkd_rng rng = cmkd_rng_start(is->pixels * 64 + (uint64_t)is->flags, CMKD_STREAM_TEST, c * 8 + is->dtype);
  t->x = random_numbers(&rng, count, 0);
  if (is->flags & RESIDUAL) t->residual = random_numbers(&rng, count, 0);
  t->dy = random_numbers(&rng, count, 0);
  t->dx_start = random_numbers(&rng, count, 0);
  t->dresidual_start = random_numbers(&rng, count, 0);
  t->gamma = random_numbers(&rng, c, 0);
  t->beta = random_numbers(&rng, c, 0);
  t->want = numbers(count);
  t->y = numbers(count);
  t->got = numbers(count);
  t->saved = numbers(2 * c);
  t->row = numbers(c);
  for (size_t i = 0; i < count; i++)
    t->x[i] += is->offset + 0.1 * (double)(i % c % 16);
}

static void norm_close(norm_test *t) {
  double *const owned[] = {t->x,    t->residual, t->dy, t->dx_start, t->dresidual_start, t->gamma,
                           t->beta, t->want,     t->y,  t->got,      t->saved,           t->row};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    free(owned[i]);
  for (size_t i = 0; i < sizeof t->first / sizeof *t->first; i++)
    free(t->first[i]);
}

static void check_forward(norm_test *t, const cmkd_cuda_norm *norm) {
  cmkd_error err;
  const int c = t->is->c;
  const double *mean = t->saved, *var = t->saved + c;
  assert_ok(GPU(cmkd_cuda_norm_moments)(norm, NULL, &err));
  assert_ok(GPU(cmkd_cuda_norm_forward)(norm, NULL, &err));
  get_tensor(t->y, norm->y, t->is->pixels, c, norm->dtype, t->name);
  compare(t->y, t->want, t->count, norm->dtype, t->loose, "y", t->name);
  same_bytes(&t->first[0], norm->y, t->bytes, "y", t->name);
  same_bytes(&t->first[1], norm->var, t->row_bytes, "var", t->name);
  get_row(t->row, norm->mean, c, 1, "mean", t->name);
  compare(t->row, mean, (size_t)c, CMKD_F32, 1e-6, "mean", t->name);
  get_row(t->row, norm->var, c, 1, "var", t->name);
  /* a float mean is off by 2^-24 of itself; one pass of float sums would be off by the square of mean / sigma */
  for (int k = 0; k < c; k++)
    if (!(fabs(t->row[k] - var[k]) <= 2e-6 * var[k] + 0x1p-22 * fabs(mean[k]) * sqrt(var[k])))
      fail_msg("%s: variance of channel %d is %.9g, reference %.9g", t->name, k, t->row[k], var[k]);
  get_row(t->row, norm->rstd, c, 0, "rstd", t->name);
  for (int k = 0; k < c; k++)
    assert_true(fabs(t->row[k] * sqrt(var[k] + (double)t->op.eps) - 1) <= t->loose);
}

static void check_backward(norm_test *t, cmkd_cuda_norm norm, cmkd_ref_call ref) {
  cmkd_error err;
  const int c = t->is->c, f = t->is->flags;
  const size_t pixels = t->is->pixels;
  const cmkd_dtype dtype = t->is->dtype;
  norm.dy = put_tensor(t->dy, pixels, c, dtype);
  norm.mask_dy = (f & MASK_DY) != 0;
  norm.accumulate = (f & ADD_DX) != 0;
  norm.accumulate_residual = (f & ADD_RESIDUAL) != 0;
  if (!(f & NO_DX)) norm.dx = f & ADD_DX ? put_tensor(t->dx_start, pixels, c, dtype) : empty_tensor(pixels, c, dtype);
  if (t->residual)
    norm.dresidual =
        f & ADD_RESIDUAL ? put_tensor(t->dresidual_start, pixels, c, dtype) : empty_tensor(pixels, c, dtype);
  norm.dgamma = gpu_buffer(t->row_bytes);
  norm.dbeta = gpu_buffer(t->row_bytes);
  /* the reference starts from what put_tensor has rounded */
  double *dy = copy_of(t->dy, t->count), *dgamma = numbers((size_t)c), *dbeta = numbers((size_t)c);
  double *dx = NULL, *dresidual = NULL;
  if (norm.dx) dx = f & ADD_DX ? copy_of(t->dx_start, t->count) : numbers(t->count);
  if (t->residual) dresidual = f & ADD_RESIDUAL ? copy_of(t->dresidual_start, t->count) : numbers(t->count);
  ref.y = t->y;
  ref.dy = dy;
  ref.dx[0] = dx;
  ref.dx[1] = dresidual;
  ref.grad[0] = dgamma;
  ref.grad[1] = dbeta;
  cmkd_ref_rules[CMKD_OP_NORM].backward(&ref);
  assert_ok(GPU(cmkd_cuda_norm_backward_sums)(&norm, NULL, &err));
  assert_ok(GPU(cmkd_cuda_norm_backward)(&norm, NULL, &err));
  get_row(t->row, norm.dgamma, c, 1, "dgamma", t->name);
  compare(t->row, dgamma, (size_t)c, CMKD_F32, t->loose, "dgamma", t->name);
  get_row(t->row, norm.dbeta, c, 1, "dbeta", t->name);
  compare(t->row, dbeta, (size_t)c, CMKD_F32, t->loose, "dbeta", t->name);
  same_bytes(&t->first[2], norm.dgamma, t->row_bytes, "dgamma", t->name);
  if (dx) {
    get_tensor(t->got, norm.dx, pixels, c, dtype, t->name);
    compare(t->got, dx, t->count, dtype, t->loose, "dx", t->name);
    same_bytes(&t->first[3], norm.dx, t->bytes, "dx", t->name);
  }
  if (dresidual) {
    get_tensor(t->got, norm.dresidual, pixels, c, dtype, t->name);
    compare(t->got, dresidual, t->count, dtype, 1e-7, "dresidual", t->name);
  }
  get_tensor(t->got, norm.dy, pixels, c, dtype, t->name);
  for (size_t i = 0; i < t->count; i++)
    if (t->got[i] != (norm.mask_dy ? dy[i] : t->dy[i])) fail_msg("%s: dy[%zu] became %g", t->name, i, t->got[i]);
  free(dx);
  free(dresidual);
  free(dy);
  free(dgamma);
  free(dbeta);
}

/* Forward with the batch's statistics, backward, then forward with running ones. */
static void norm_run(const norm_case *is) {
  norm_test t;
  const int c = is->c;
  norm_open(&t, is);
  for (int order = 0; order < (is->flags & ONE_ORDER ? 1 : RUNS); order++) {
    set_order(order, 3);
    const cmkd_cuda_norm norm = {.pixels = (int64_t)is->pixels,
                                 .c = c,
                                 .dtype = is->dtype,
                                 .act = is->act,
                                 .eps = t.op.eps,
                                 .x = put_tensor(t.x, is->pixels, c, is->dtype),
                                 .residual = put_tensor(t.residual, is->pixels, c, is->dtype),
                                 .y = empty_tensor(is->pixels, c, is->dtype),
                                 .gamma = put_tensor(t.gamma, 1, c, CMKD_F32),
                                 .beta = put_tensor(t.beta, 1, c, CMKD_F32),
                                 .mean = gpu_buffer(t.row_bytes),
                                 .rstd = gpu_buffer(t.row_bytes),
                                 .var = gpu_buffer(t.row_bytes),
                                 .partial = gpu_buffer(GPU(cmkd_cuda_norm_scratch)((int64_t)is->pixels, c))};
    cmkd_ref_call ref = {.op = &t.op,
                         .n = (int)is->pixels,
                         .train = 1,
                         .in = {{1, 1, c}, {1, 1, t.residual ? c : 0}},
                         .out = {1, 1, c},
                         .x = {t.x, t.residual},
                         .y = t.want,
                         .param = {t.gamma, t.beta},
                         .saved = t.saved};
    cmkd_ref_rules[CMKD_OP_NORM].forward(&ref);
    check_forward(&t, &norm);
    check_backward(&t, norm, ref);
    norm_infers(norm, ref, t.loose, t.name);
    gpu_clear();
  }
  norm_close(&t);
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
  float mean[C], var[C], batch_mean[C], batch_var[C], momentum[C], got[2 * C];
  double want_mean[C], want_var[C], saved[2 * C];
  int32_t pixels[C];
  for (int rows = 1; rows <= ROWS; rows += 2) {
    for (int i = 0; i < C; i++) {
      want_mean[i] = mean[i] = (float)cmkd_rng_normal(&rng), want_var[i] = var[i] = (float)cmkd_rng_uniform(&rng);
      pixels[i] = i < SPLIT ? 1 : 49, momentum[i] = i < SPLIT ? 0.1f : 0.25f;
      batch_mean[i] = (float)cmkd_rng_normal(&rng), batch_var[i] = (float)cmkd_rng_uniform(&rng) + 0.5f;
    }
    for (int part = 0; part < 2; part++) {
      const int from = part ? SPLIT : 0, many = part ? C - SPLIT : SPLIT;
      const cmkd_op op = {.kind = CMKD_OP_NORM, .momentum = momentum[from]};
      for (int i = 0; i < many; i++)
        saved[i] = (double)batch_mean[from + i], saved[many + i] = (double)batch_var[from + i];
      cmkd_ref_norm_update(&op, (int64_t)rows * pixels[from], many, saved, want_mean + from, want_var + from);
    }
    for (int halted = -1; halted < 2; halted++) {
      void *m = gpu_put(mean, sizeof mean), *v = gpu_put(var, sizeof var);
      const cmkd_cuda_running running = {.channels = C,
                                         .mean = m,
                                         .var = v,
                                         .batch_mean = gpu_put(batch_mean, sizeof batch_mean),
                                         .batch_var = gpu_put(batch_var, sizeof batch_var),
                                         .pixels = gpu_put(pixels, sizeof pixels),
                                         .momentum = gpu_put(momentum, sizeof momentum),
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

static void arguments_are_checked(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_error err;
  static double memory[64];
  const cmkd_cuda_norm norm = {.pixels = 4, .c = 8, .dtype = CMKD_F32, .eps = 1e-5f, .x = memory};
  cmkd_cuda_norm empty = norm;
  empty.pixels = 0;
  assert_int_equal(GPU(cmkd_cuda_norm_scratch)(0, 8), 0);
  assert_int_equal(GPU(cmkd_cuda_norm_moments)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_moments)(&empty, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_forward)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_backward_sums)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_backward)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_infer)(&norm, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_norm_running)(&(cmkd_cuda_running){.channels = 1}, 1, NULL, &err), CMKD_ERR_VALUE);
}

int main(void) {
  struct CMUnitTest tests[] = {
      cmocka_unit_test(norms_of_every_shape),  cmocka_unit_test(norms_of_many_pixels),
      cmocka_unit_test(norms_do_not_cancel),   cmocka_unit_test(running_statistics_are_the_reference),
      cmocka_unit_test(arguments_are_checked),
  };
  return RUN_TESTS(tests);
}
