/* The CUDA losses against the double reference: many shapes, dtypes and hostile rows; in the emulation each with the
 * threads of a block in forward, reverse and random order. */
#include "tests/simt/gpu.h"
#include <math.h>
#include "base/half.h"
#include "base/rng.h"
#include "kernels/loss.h"

typedef struct problem {
  int64_t B, C;
  cmkd_dtype student_dtype, teacher_dtype;
  double *s, *t; /* as the kernel sees them */
  void *student, *teacher;
  int32_t *labels;
} problem;

typedef enum fill { PLAIN, TIES, CONSTANT_ROWS, LARGE, CONFIDENT, SAME_ROWS, NEAR_CONSTANT, EQUAL_TEACHERS } fill;

static void store(void *array, cmkd_dtype dtype, int64_t i, float v, double *seen) {
  if (dtype == CMKD_F32) {
    ((float *)array)[i] = v;
    *seen = v;
    return;
  }
  uint16_t bits;
  if (dtype == CMKD_F16)
    bits = cmkd_float_to_half(v);
  else {
    uint32_t u;
    memcpy(&u, &v, 4);
    bits = (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
  }
  ((uint16_t *)array)[i] = bits;
  *seen = dtype == CMKD_F16 ? cmkd_half_to_float(bits) : cmkd_bf16_to_float(bits);
}

static problem make_problem(int64_t B, int64_t C, cmkd_dtype sd, cmkd_dtype td, fill kind, uint64_t seed) {
  problem p = {.B = B, .C = C, .student_dtype = sd, .teacher_dtype = td};
  size_t n = (size_t)(B * C);
  cmkd_rng rng = cmkd_rng_start(seed, CMKD_STREAM_TEST, 0);
  p.s = malloc(n * 8);
  p.t = malloc(n * 8);
  p.student = malloc(n * (sd == CMKD_F32 ? 4 : 2)); /* exact sizes: one byte past is a finding */
  p.teacher = malloc(n * (td == CMKD_F32 ? 4 : 2));
  p.labels = malloc((size_t)B * 4);
  for (int64_t r = 0; r < B; r++) {
    p.labels[r] = (int32_t)cmkd_rng_below(&rng, (uint32_t)C);
    for (int64_t c = 0; c < C; c++) {
      double t = cmkd_rng_normal(&rng) * 2 + (c == p.labels[r]) * (kind == CONFIDENT ? 60 : 4),
             s = .7 * t + cmkd_rng_normal(&rng);
      if (kind == TIES) {
        t = floor(t);
        s = floor(s * 2) / 2;
      }
      if (kind == CONSTANT_ROWS && r % 3 == 0) s = 1.25;
      if (kind == CONSTANT_ROWS && r % 3 == 1) t = -3;
      if (kind == LARGE) {
        s = s > 0 ? 1000 : -1000 + s;
        t = t > 1 ? 1000 + t : -1000;
      }
      if (kind == NEAR_CONSTANT) {
        s = 300 + .01 * s;
        t = -200 + .1 * t;
      }
      int64_t i = r * C + c;
      if (kind == EQUAL_TEACHERS && r > 0) t = p.t[c];
      if (kind == SAME_ROWS && r > 0) {
        s = p.s[c];
        t = p.t[c];
      }
      store(p.student, sd, i, (float)s, p.s + i);
      store(p.teacher, td, i, (float)t, p.t + i);
    }
  }
  return p;
}
static void free_problem(problem *p) {
  free(p->s);
  free(p->t);
  free(p->student);
  free(p->teacher);
  free(p->labels);
}

/* One evaluation, in poisoned memory of exact size; `twice`: scratch is ready for a second one, which gives the same
 * bits. */
static void evaluate(const cmkd_loss *loss, const problem *p, double epoch, double smoothing, double entropy_mean,
                     float *grad, cmkd_loss_result *result, int twice) {
  cmkd_error err;
  size_t bytes = gpu->loss_scratch(loss, p->B, p->C), n = (size_t)(p->B * p->C);
  assert_true(bytes > 0);
  void *scratch = gpu_buffer(bytes);
  cmkd_cuda_loss_batch b = {p->B,
                            p->C,
                            gpu_put(p->student, n * (p->student_dtype == CMKD_F32 ? 4 : 2)),
                            p->student_dtype,
                            gpu_put(p->teacher, n * (p->teacher_dtype == CMKD_F32 ? 4 : 2)),
                            p->teacher_dtype,
                            gpu_put(p->labels, (size_t)p->B * 4),
                            grad ? gpu_buffer(n * 4) : NULL,
                            epoch,
                            smoothing,
                            entropy_mean,
                            NULL,
                            NULL};
  cmkd_loss_result *out = gpu_buffer(sizeof *out), again;
  assert_ok(gpu->loss_init(scratch, NULL, &err));
  assert_ok(gpu->loss_eval(loss, &b, scratch, out, NULL, &err));
  gpu_get(result, out, sizeof *result);
  if (grad) gpu_get(grad, b.grad, n * 4);
  if (twice) { /* the second time with epoch and mean entropy in device memory */
    const double given = isnan(entropy_mean) ? 0 : entropy_mean;
    b.epoch = 1;
    b.epoch_now = gpu_put(&epoch, sizeof epoch);
    b.entropy_mean = 5;
    b.entropy_mean_now = gpu_put(&given, sizeof given);
    assert_ok(gpu->loss_eval(loss, &b, scratch, out, NULL, &err));
    gpu_get(&again, out, sizeof again);
    assert_memory_equal(&again, result, sizeof again);
    float *same = malloc(n * 4);
    if (grad) gpu_get(same, b.grad, n * 4);
    if (grad) assert_memory_equal(same, grad, n * 4);
    free(same);
  }
  gpu_clear();
}

static void close_to(const char *what, double got, double want, double scale) {
  if (!(fabs(got - want) <= scale)) fail_msg("%s: %.9g, reference %.9g (allowed %.3g)", what, got, want, scale);
}

static void compare(const char *name, const cmkd_loss *loss, const problem *p, double epoch, double smoothing,
                    double entropy_mean) {
  cmkd_error err;
  int64_t n = p->B * p->C;
  double *want = malloc((size_t)n * 8), top = 0;
  float *grad = malloc((size_t)n * 4), *first = malloc((size_t)n * 4);
  cmkd_loss_result ref, result, result_first;
  const cmkd_loss_ref_batch doubles = {.batch = p->B,
                                       .classes = p->C,
                                       .student = p->s,
                                       .teacher = p->t,
                                       .labels = p->labels,
                                       .grad = want,
                                       .epoch = epoch,
                                       .label_smoothing = smoothing,
                                       .entropy_mean = entropy_mean};
  assert_ok(cmkd_loss_ref_double(loss, &doubles, &ref, NULL, &err));
  for (int64_t i = 0; i < n; i++)
    top = fmax(top, fabs(want[i]));
  const int start =
      p->C > 4096 && ORDERS > 1 ? CMKD_SIMT_REVERSE : CMKD_SIMT_FORWARD; /* large ones are slow in the emulation */
  for (int order = start; order < ORDERS; order++) {
    set_order(order, 17);
    evaluate(loss, p, epoch, smoothing, entropy_mean, grad, &result, order == CMKD_SIMT_REVERSE && p->C < 1000);
    char what[160];
    snprintf(what, sizeof what, "%s B %d C %d order %d", name, (int)p->B, (int)p->C, order);
    assert_int_equal(result.bad_row, -1);
    if (isnan(ref.blocks))
      assert_true(isnan(result.blocks));
    else
      close_to(what, result.blocks * (double)n, ref.blocks * (double)n,
               1e-6); /* block boundaries first: no row flipped */
    close_to(what, result.loss, ref.loss, 1e-4 * fabs(ref.loss) + 1e-6);
    for (int k = 0; k < CMKD_LOSS_MAX_PARTS; k++)
      if (k < loss->parts) close_to(loss->part_name[k], result.part[k], ref.part[k], 1e-4 * fabs(ref.part[k]) + 1e-6);
    double worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
      double e = fabs(grad[i] - want[i]);
      if (!(e <= worst)) {
        worst = e;
        at = i;
      }
    }
    if (!(worst <= 1e-4 * top + (top == 0 ? 1e-6 : 0)))
      fail_msg("%s: gradient of row %d class %d: %.9g, reference %.9g (largest %.3g)", what, (int)(at / p->C),
               (int)(at % p->C), grad[at], want[at], top);
    if (order == start) {
      memcpy(first, grad, (size_t)n * 4);
      result_first = result;
    }
    assert_memory_equal(first, grad, (size_t)n * 4); /* the order of threads changes no bit */
    assert_memory_equal(&result_first, &result, sizeof result);
  }
  free(want);
  free(grad);
  free(first);
}

static cmkd_loss *parse(const char *text) {
  cmkd_error err;
  cmkd_loss *loss;
  assert_ok(cmkd_loss_parse(text, CMKD_LOSS_CIFAR, &loss, &err));
  return loss;
}

static void check_case(const char *text, int64_t B, int64_t C, cmkd_dtype sd, cmkd_dtype td, fill kind) {
  cmkd_loss *loss = parse(text);
  problem p = make_problem(B, C, sd, td, kind, (uint64_t)(B * 1000003 + C * 31 + (int)kind));
  compare(text, loss, &p, CMKD_LOSS_NO_WARMUP, 0, NAN);
  free_problem(&p);
  cmkd_loss_free(loss);
}

static const char *const every_loss[] = {"ce",
                                         "kd",
                                         "dkd",
                                         "nkd",
                                         "dist",
                                         "cmkd",
                                         "dkd+cmkd",
                                         "ce:1+kd:1+dkd:beta=8+nkd:1+dist:1+cmkd:beta=4,gamma=2,T=2,kappa=1",
                                         "cmkd:gate=off",
                                         "cmkd:gate=hard-spearman,zscore=off,kappa=50"};
enum { LOSSES = sizeof every_loss / sizeof every_loss[0] };

static void every_loss_agrees(void **state) {
  (void)state;
  NEED_GPU();
  for (int i = 0; i < LOSSES; i++)
    check_case(every_loss[i], 6, 10, CMKD_F32, CMKD_F32, PLAIN);
}

static void class_counts_around_powers_of_two(void **state) {
  (void)state;
  NEED_GPU();
  static const int C[] = {2,   3,   4,   5,   31,  32,  33,  63,  64,  65,   100,  127,
                          128, 129, 200, 255, 256, 257, 511, 512, 513, 1000, 1024, 1025};
  for (size_t i = 0; i < sizeof C / sizeof C[0]; i++)
    check_case("dkd+cmkd", C[i] > 200 ? 1 : 5, C[i], CMKD_F32, CMKD_F32, PLAIN);
}

static void large_rows(void **state) {
  (void)state;
  NEED_GPU();
  check_case("dkd+cmkd", 1, 2049, CMKD_F32, CMKD_F16, PLAIN);
  check_case("cmkd", 1, 4097, CMKD_F32, CMKD_F32, PLAIN);
  check_case("cmkd", 1, 8192, CMKD_F32, CMKD_F32, TIES);
}

/* More than shared memory holds: tiles, merges, rows in device memory. */
static void rows_in_device_memory(void **state) {
  (void)state;
  NEED_GPU();
  check_case("ce:1+kd:1+dkd:beta=8+nkd:1+dist:1+cmkd:kappa=1", 2, 8193, CMKD_F32, CMKD_F16, PLAIN);
#ifdef ON_DEVICE
  check_case("dkd+cmkd", 3, 131072, CMKD_F32, CMKD_F16, PLAIN);
  check_case("cmkd", 64, 32768, CMKD_F32, CMKD_F32, PLAIN);
#endif
  check_case("cmkd", 1, 17000, CMKD_F16, CMKD_F32, TIES); /* three tiles: two passes of merging, one of an odd run */
  check_case("kd", 2, 9000, CMKD_F32, CMKD_BF16, PLAIN);
}

static void half_and_bfloat16(void **state) {
  (void)state;
  NEED_GPU();
  static const cmkd_dtype types[] = {CMKD_F32, CMKD_F16, CMKD_BF16};
  for (int s = 0; s < 3; s++)
    for (int t = 0; t < 3; t++)
      check_case(every_loss[7], 3, 50, types[s], types[t], PLAIN);
}

static void hostile_rows(void **state) {
  (void)state;
  NEED_GPU();
  for (int kind = TIES; kind <= EQUAL_TEACHERS; kind++)
    for (int i = 0; i < LOSSES; i++)
      check_case(every_loss[i], 4, 40, CMKD_F32, CMKD_F32, (fill)kind);
  check_case("cmkd", 2, 300, CMKD_F32, CMKD_F32, TIES);
  check_case("cmkd+dist", 1, 100, CMKD_F32, CMKD_F32, PLAIN);
  check_case("cmkd", 1, 2, CMKD_F32, CMKD_F32, PLAIN);
  check_case("cmkd:kappa=0.001", 3, 60, CMKD_F32, CMKD_F16, TIES);
  check_case("cmkd:T=.05,kappa=1e6", 3, 60, CMKD_F32, CMKD_F16, PLAIN);
}

static void warm_up_smoothing_and_a_given_entropy(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_loss *loss = parse("ce:1+dkd:beta=8,T=4,warmup=20+cmkd:1");
  problem p = make_problem(5, 21, CMKD_F32, CMKD_F32, PLAIN, 5);
  compare("warm-up", loss, &p, 3, .1, NAN);
  compare("all easy", loss, &p, 30, 0, 100);
  compare("all hard", loss, &p, 30, .3, -100);
  free_problem(&p);
  cmkd_loss_free(loss);
}

static void one_block_when_eps_is_large(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_loss *loss = parse("cmkd:kappa=60"); /* eps = .6 > 2 / sqrt(99) */
  problem p = make_problem(3, 100, CMKD_F32, CMKD_F32, PLAIN, 8);
  cmkd_loss_result result;
  evaluate(loss, &p, 1, 0, NAN, NULL, &result, 0);
  close_to("blocks", result.blocks, .01, 1e-12);
  free_problem(&p);
  cmkd_loss_free(loss);
}

static void bad_rows_are_named(void **state) {
  (void)state;
  NEED_GPU();
  static const float worst[] = {NAN, INFINITY, -INFINITY};
  cmkd_loss *loss = parse(every_loss[7]);
  for (int i = 0; i < 8; i++) {
    problem p = make_problem(7, 33, CMKD_F32, CMKD_F32, PLAIN, 9);
    if (i < 3)
      ((float *)p.student)[4 * 33 + 7 + i] = worst[i];
    else if (i < 6)
      ((float *)p.teacher)[4 * 33 + 9 + i] = worst[i - 3];
    else
      p.labels[4] = i == 6 ? -1 : 33;
    p.labels[6] = 2000000000;
    float *grad = malloc(7 * 33 * 4);
    cmkd_loss_result result;
    for (int order = 0; order < ORDERS; order++) {
      set_order(order, 3);
      evaluate(loss, &p, 1, 0, NAN, grad, &result, 1);
      assert_int_equal(result.bad_row, 4);
      assert_true(isnan(result.loss));
      for (int c = 0; c < 33; c++)
        assert_true(grad[4 * 33 + c] == 0 && grad[6 * 33 + c] == 0);
    }
    free(grad);
    free_problem(&p);
  }
  cmkd_loss_free(loss);
}

/* Any bits as logits and labels: the first row that may not be used is named, every gradient is written, nothing else
 * happens. */
static void arbitrary_bits(void **state) {
  (void)state;
  NEED_GPU();
  static const char *const losses[] = {"dkd+cmkd", "ce:1+kd:1+dkd:beta=8+nkd:1+dist:1+cmkd:beta=4"};
  for (int n = 0; n < 24; n++) {
    cmkd_loss *loss = parse(losses[n % 2]);
    cmkd_rng rng = cmkd_rng_start(77, CMKD_STREAM_TEST, (uint64_t)n);
    const int64_t B = 1 + n % 6, C = 2 + cmkd_rng_below(&rng, n % 3 ? 40 : 200);
    problem p = make_problem(B, C, CMKD_F32, n % 2 ? CMKD_F16 : CMKD_BF16, PLAIN, (uint64_t)n);
    float *grad = malloc((size_t)(B * C) * 4);
    int64_t bad = -1;
    for (int64_t r = 0; r < B; r++) {
      int good = 1;
      for (int64_t i = r * C; i < (r + 1) * C; i++) {
        uint32_t bits = cmkd_rng_u32(&rng);
        uint16_t half = (uint16_t)cmkd_rng_u32(&rng);
        if (n >= 12 && (bits >> 23 & 255) == 255) bits ^= 1u << 30; /* every second time only finite ones */
        if (n >= 12 && p.teacher_dtype == CMKD_F16 && (half >> 10 & 31) == 31) half ^= 1 << 14;
        if (n >= 12 && p.teacher_dtype == CMKD_BF16 && (half >> 7 & 255) == 255) half ^= 1 << 14;
        memcpy((float *)p.student + i, &bits, 4);
        ((uint16_t *)p.teacher)[i] = half;
        good &= isfinite(((float *)p.student)[i]) &&
                isfinite(p.teacher_dtype == CMKD_F16 ? cmkd_half_to_float(half) : cmkd_bf16_to_float(half));
      }
      if (n % 4 == 3) p.labels[r] = (int32_t)cmkd_rng_u32(&rng);
      good &= p.labels[r] >= 0 && p.labels[r] < C;
      if (!good && bad < 0) bad = r;
    }
    cmkd_loss_result result;
    set_order(n % ORDERS, 21);
    evaluate(loss, &p, 1, 0, NAN, grad, &result, 0);
    assert_int_equal(result.bad_row, bad);
    for (int64_t i = 0; i < B * C; i++) {
      uint32_t bits;
      memcpy(&bits, grad + i, 4);
      assert_true(bits != 0xFFFFFFFFu);
    }
    free(grad);
    free_problem(&p);
    cmkd_loss_free(loss);
  }
}

#ifndef ON_DEVICE
static void one_launch(void **state) {
  (void)state;
  NEED_GPU();
  static const struct {
    const char *text;
    int64_t C;
    double entropy;
    long launches;
  } cases[] = {{"cmkd", 100, 1, 1}, {"cmkd", 1000, 1, 1},           {"dkd+cmkd", 100, NAN, 2},
               {"kd", 100, NAN, 1}, {"cmkd:gate=off", 300, NAN, 1}, {"dist", 100, NAN, 3}};
  set_order(CMKD_SIMT_FORWARD, 0);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    cmkd_loss *loss = parse(cases[i].text);
    problem p = make_problem(2, cases[i].C, CMKD_F32, CMKD_F32, PLAIN, 3);
    float *grad = malloc((size_t)(2 * cases[i].C) * 4);
    cmkd_loss_result result;
    cmkd_simt_count_reset();
    evaluate(loss, &p, 1, 0, cases[i].entropy, grad, &result, 0);
    assert_int_equal(cmkd_simt_counted().launches, cases[i].launches);
    free(grad);
    free_problem(&p);
    cmkd_loss_free(loss);
  }
}

#endif

static void arguments_are_checked(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_error err;
  cmkd_loss *loss = parse("kd");
  problem p = make_problem(2, 5, CMKD_F32, CMKD_F32, PLAIN, 3);
  char scratch[64];
  cmkd_loss_result result;
  cmkd_cuda_loss_batch good = {2, 5, p.student, CMKD_F32, p.teacher, CMKD_F32, p.labels, NULL, 1, 0, NAN, NULL, NULL},
                       b;
  b = good;
  b.classes = 1;
  assert_int_equal(gpu->loss_eval(loss, &b, scratch, &result, NULL, &err), CMKD_ERR_VALUE);
  b = good;
  b.classes = 131073;
  assert_int_equal(gpu->loss_eval(loss, &b, scratch, &result, NULL, &err), CMKD_ERR_VALUE);
  b = good;
  b.batch = 0;
  assert_int_equal(gpu->loss_eval(loss, &b, scratch, &result, NULL, &err), CMKD_ERR_VALUE);
  b = good;
  b.teacher = NULL;
  assert_int_equal(gpu->loss_eval(loss, &b, scratch, &result, NULL, &err), CMKD_ERR_VALUE);
  b = good;
  b.student = NULL;
  assert_int_equal(gpu->loss_eval(loss, &b, scratch, &result, NULL, &err), CMKD_ERR_VALUE);
  b = good;
  b.student_dtype = CMKD_F64;
  assert_int_equal(gpu->loss_eval(loss, &b, scratch, &result, NULL, &err), CMKD_ERR_VALUE);
  b = good;
  b.label_smoothing = 1;
  assert_int_equal(gpu->loss_eval(loss, &b, scratch, &result, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(gpu->loss_scratch(loss, 0, 5), 0);
  assert_int_equal(gpu->loss_scratch(loss, INT64_MAX, 5), 0);
  free_problem(&p);
  cmkd_loss_free(loss);
}

int main(void) {
  struct CMUnitTest tests[] = {
      cmocka_unit_test(every_loss_agrees),
      cmocka_unit_test(class_counts_around_powers_of_two),
      cmocka_unit_test(large_rows),
      cmocka_unit_test(rows_in_device_memory),
      cmocka_unit_test(half_and_bfloat16),
      cmocka_unit_test(hostile_rows),
      cmocka_unit_test(warm_up_smoothing_and_a_given_entropy),
      cmocka_unit_test(one_block_when_eps_is_large),
      cmocka_unit_test(bad_rows_are_named),
      cmocka_unit_test(arbitrary_bits),
#ifndef ON_DEVICE
      cmocka_unit_test(one_launch),
#endif
      cmocka_unit_test(arguments_are_checked),
  };
  return RUN_TESTS(tests);
}
