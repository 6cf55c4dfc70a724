/* The CPU losses against the double reference: every instruction set of this machine, many shapes, hostile rows.
 * Tolerances are those of docs/losses.md: the loss to 1e-4, the gradient to 1e-4 of its largest entry. Sorting,
 * z-score, block sums are exact enough that no soft-rank block flips, so gradients are compared as they are. Buffers
 * have their exact size, scratch starts as NaN. */
#include "tests/support.h"
#include <math.h>
#include <omp.h>
#include "base/cpu.h"
#include "base/half.h"
#include "base/rng.h"
#include "kernels/cpu/loss/loss.h"
#include "kernels/cpu/loss/exp.h"
#include "kernels/loss.h"

static const char *const everything = "ce:.5+kd:.3+dkd:.2+nkd:.1+dist:.4+cmkd:.7";
static const char *const all_losses[] = {"ce",
                                         "kd",
                                         "dkd",
                                         "nkd",
                                         "dist",
                                         "cmkd",
                                         "cmkd:gate=hard-spearman,kappa=.5,T=1",
                                         "cmkd:gate=off,zscore=off",
                                         "cmkd:kappa=1000",
                                         "dkd+cmkd",
                                         "ce:.5+kd:.3+dkd:.2+nkd:.1+dist:.4+cmkd:.7"};
enum { LOSSES = sizeof all_losses / sizeof all_losses[0] };

static cmkd_loss *parse(const char *expression) {
  cmkd_error err;
  cmkd_loss *loss;
  assert_ok(cmkd_loss_parse(expression, CMKD_LOSS_CIFAR, &loss, &err));
  return loss;
}

typedef enum fill { PLAIN, TIES, CONSTANT, LARGE, CONFIDENT, OUTLIER, NEAR, EQUAL_TEACHERS, SORTED, FILLS } fill;
typedef struct sample {
  int64_t B, C;
  float *s, *g;
  void *t;
  double *sd, *td, *gd;
  cmkd_dtype dtype;
  int32_t *y;
} sample;

static float logit(fill kind, cmkd_rng *rng, int64_t r, int64_t i, int64_t C, int target, int teacher) {
  double v = 2 * cmkd_rng_normal(rng) + (target ? 4 : 0);
  switch (kind) {
  case TIES: v = floor(v); break;
  case CONSTANT:
    if (r % 3 == teacher) v = 1.25;
    break;
  case LARGE: v = v > 1 ? 1000 : v < -1 ? -1000 : v; break;
  case CONFIDENT: v += target ? 200 : 0; break;
  case OUTLIER:
    v = i == 0 ? 1e9 : v * (i % 2 ? 1 : 1e-20);
    break; /* all but one share a sort key; with -0 and tiny numbers */
  case NEAR: v = 300 + .01 * v; break;
  case SORTED: v = (r % 2 ? 1 : -1) * (double)i / (double)C; break;
  default: break;
  }
  if (kind == OUTLIER && i % 7 == 3) v = i % 2 ? 0. : -0.;
  return (float)v;
}

static sample make_sample(int64_t B, int64_t C, fill kind, cmkd_dtype dtype, uint64_t seed) {
  sample x = {.B = B, .C = C, .dtype = dtype};
  size_t n = (size_t)(B * C);
  x.s = malloc(n * 4);
  x.g = malloc(n * 4);
  x.t = malloc(n * (dtype == CMKD_F32 ? 4 : 2));
  x.y = malloc((size_t)B * 4);
  x.sd = malloc(n * 8);
  x.td = malloc(n * 8);
  x.gd = malloc(n * 8);
  cmkd_rng rng = cmkd_rng_start(seed, CMKD_STREAM_TEST, (uint64_t)C);
  for (int64_t r = 0; r < B; r++) {
    x.y[r] = (int32_t)cmkd_rng_below(&rng, (uint32_t)C);
    for (int64_t i = 0, at = r * C; i < C; i++, at++) {
      float t = logit(kind, &rng, r, i, C, i == x.y[r], 1),
            s = .7f * logit(kind, &rng, r, i, C, i == x.y[r], 0) + (kind == PLAIN || kind == CONFIDENT ? .5f * t : 0);
      if (kind == EQUAL_TEACHERS && r) t = (float)x.td[i];
      if (dtype == CMKD_F32)
        ((float *)x.t)[at] = t;
      else {
        uint16_t h = cmkd_float_to_half(t);
        if (dtype == CMKD_BF16) {
          uint32_t bits;
          memcpy(&bits, &t, 4);
          h = (uint16_t)(bits >> 16);
        }
        ((uint16_t *)x.t)[at] = h;
        t = dtype == CMKD_F16 ? cmkd_half_to_float(h) : cmkd_bf16_to_float(h);
      }
      x.s[at] = s;
      x.sd[at] = s;
      x.td[at] = t;
    }
  }
  return x;
}
static void free_sample(sample *x) {
  free(x->s);
  free(x->g);
  free(x->t);
  free(x->y);
  free(x->sd);
  free(x->td);
  free(x->gd);
}

static cmkd_status eval(const cmkd_loss *loss, sample *x, double smoothing, double entropy_mean,
                        cmkd_loss_result *result, cmkd_error *err) {
  cmkd_loss_batch b = {.batch = x->B,
                       .classes = x->C,
                       .student = x->s,
                       .teacher = x->t,
                       .teacher_dtype = x->dtype,
                       .labels = x->y,
                       .grad = x->g,
                       .epoch = 7,
                       .label_smoothing = smoothing,
                       .entropy_mean = entropy_mean};
  size_t size = cmkd_loss_scratch(loss, "cpu", x->B, x->C);
  void *scratch = NULL; /* exactly that many bytes */
  if (posix_memalign(&scratch, 64, size) != 0) abort();
  memset(scratch, 0xFF, size);
  memset(x->g, 0xFF, (size_t)(x->B * x->C) * 4);
  cmkd_status status = cmkd_loss_eval(loss, "cpu", &b, scratch, result, err);
  free(scratch);
  return status;
}

static void compare(const char *expression, int64_t B, int64_t C, fill kind, cmkd_dtype dtype, double smoothing) {
  cmkd_error err;
  cmkd_loss *loss = parse(expression);
  sample x = make_sample(B, C, kind, dtype, 7 * (uint64_t)B + (uint64_t)kind);
  cmkd_loss_result got, want;
  assert_ok(eval(loss, &x, smoothing, NAN, &got, &err));
  const cmkd_loss_ref_batch doubles = {.batch = B,
                                       .classes = C,
                                       .student = x.sd,
                                       .teacher = x.td,
                                       .labels = x.y,
                                       .grad = x.gd,
                                       .epoch = 7,
                                       .label_smoothing = smoothing,
                                       .entropy_mean = NAN};
  assert_ok(cmkd_loss_ref_double(loss, &doubles, &want, NULL, &err));
  double largest = 0, off = 0;
  for (int64_t i = 0; i < B * C; i++) {
    largest = fmax(largest, fabs(x.gd[i]));
    double d = fabs(x.g[i] - x.gd[i]);
    if (!(d <= off)) off = d;
  }
  if (!(fabs(got.loss - want.loss) <= 1e-4 * fmax(.01, fabs(want.loss)) &&
        off <= (largest > 0 ? 1e-4 * largest : 1e-6)))
    fail_msg("%s B %lld C %lld fill %d dtype %d: loss %.9g, not %.9g; gradient off by %.3g, largest %.3g", expression,
             (long long)B, (long long)C, kind, dtype, got.loss, want.loss, off, largest);
  for (int i = 0; i < cmkd_loss_parts(loss); i++) {
    double limit = 1e-4 * fmax(.01, fabs(want.part[i]));
    if (!(fabs(got.part[i] - want.part[i]) <= limit))
      fail_msg("%s B %lld C %lld fill %d: part %s %.9g, not %.9g", expression, (long long)B, (long long)C, kind,
               cmkd_loss_part_name(loss, i), got.part[i], want.part[i]);
  }
  if (cmkd_loss_find(loss, CMKD_TERM_CMKD)) {
    if (!(fabs(got.blocks - want.blocks) < 1e-12))
      fail_msg("%s B %lld C %lld fill %d: blocks %.9g, not %.9g", expression, (long long)B, (long long)C, kind,
               got.blocks, want.blocks);
  } else {
    assert_true(isnan(got.blocks));
  }
  free_sample(&x);
  cmkd_loss_free(loss);
}

/* Runs a test under every instruction set; one that this machine does not have is named as skipped. */
static void each_set(void (*test)(void)) {
  for (int i = CMKD_ISA_BASELINE; i <= CMKD_ISA_AVX512; i++) {
    if (!use_isa((cmkd_isa)i)) continue;
    assert_string_equal(cmkd_loss_kernels_best()->name, cmkd_isa_name((cmkd_isa)i));
    test();
  }
  use_best_isa();
}

static void shapes(void) {
  const int64_t classes[] = {2,  3,  4,   5,   7,   8,   9,   10,  15,  16,   17,   31,   33,   37,   63,
                             64, 65, 100, 127, 128, 129, 255, 257, 511, 1000, 1023, 1024, 1025, 2047, 2049};
  const int64_t batches[] = {1, 2, 7, 64};
  for (size_t c = 0; c < sizeof classes / sizeof classes[0]; c++)
    for (size_t b = 0; b < 4; b++) {
      int64_t B = classes[c] > 300 && batches[b] > 7 ? 17 : batches[b];
      compare(everything, B, classes[c], PLAIN, CMKD_F32, 0);
      compare(all_losses[(c + 3 * b) % LOSSES], B, classes[c], PLAIN, CMKD_F16, (c & 1) ? .1 : 0);
    }
}
static void every_loss(void) {
  for (int l = 0; l < LOSSES; l++)
    for (int kind = 0; kind < FILLS; kind++) {
      compare(all_losses[l], 9, 37, (fill)kind, CMKD_F32, .1);
      if (kind == PLAIN || kind == TIES) compare(all_losses[l], 5, 100, (fill)kind, CMKD_BF16, 0);
      if (kind == PLAIN || kind == TIES || kind == CONSTANT) compare(all_losses[l], 5, 100, (fill)kind, CMKD_F16, 0);
    }
}
static void large(void) {
  compare("cmkd", 16, 4096, PLAIN, CMKD_F32, 0);
  compare("cmkd", 3, 8193, PLAIN, CMKD_F16, 0);
  compare("cmkd", 9, 8193, TIES, CMKD_F16, 0);
  compare(everything, 2, 32768, PLAIN, CMKD_F32, 0);
  compare("dkd+cmkd", 1, 131072, PLAIN, CMKD_F32, 0);
}
static void against_ref_shapes(void **state) {
  (void)state;
  each_set(shapes);
}
static void against_ref_losses(void **state) {
  (void)state;
  each_set(every_loss);
}
static void against_ref_large(void **state) {
  (void)state;
  each_set(large);
}

/* Same bytes from run to run and for any number of threads; a row's gradient and parts do not know their neighbours. */
static void determinism(void) {
  cmkd_error err;
  int threads = omp_get_max_threads();
  for (int l = 0; l < LOSSES; l++) {
    cmkd_loss *loss = parse(all_losses[l]);
    sample x = make_sample(64, 100, PLAIN, CMKD_F16, 3);
    size_t bytes = 64 * 100 * 4;
    float *first = malloc(bytes);
    cmkd_loss_result a, b;
    omp_set_num_threads(1);
    assert_ok(eval(loss, &x, 0, NAN, &a, &err));
    memcpy(first, x.g, bytes);
    for (int t = 1; t <= 5; t++) {
      omp_set_num_threads(t);
      assert_ok(eval(loss, &x, 0, NAN, &b, &err));
      assert_memory_equal(first, x.g, bytes);
      assert_memory_equal(&a, &b, sizeof a);
    }
    omp_set_num_threads(threads);
    if (!cmkd_loss_find(loss, CMKD_TERM_DIST)) {
      assert_ok(eval(loss, &x, 0, 1.5, &a, &err)); /* the batch's mean entropy given, as under data parallelism */
      memcpy(first, x.g, bytes);
      for (int64_t r = 0; r < 64; r += 13) {
        sample one = {.B = 1,
                      .C = 100,
                      .s = x.s + r * 100,
                      .t = (uint16_t *)x.t + r * 100,
                      .dtype = CMKD_F16,
                      .y = x.y + r,
                      .g = x.g};
        assert_ok(eval(loss, &one, 0, 1.5, &b, &err));
        for (int i = 0; i < 100; i++)
          assert_true(one.g[i] == first[r * 100 + i] * 64 || fabsf(one.g[i]) < 1e-36f);
      }
    }
    free(first);
    free_sample(&x);
    cmkd_loss_free(loss);
  }
}
static void same_bytes_every_time(void **state) {
  (void)state;
  each_set(determinism);
}

static void bad_rows(void) {
  cmkd_error err;
  for (int l = 0; l < LOSSES; l++) {
    cmkd_loss *loss = parse(all_losses[l]);
    int teacher = cmkd_loss_needs_teacher(loss);
    const int64_t sizes[] = {2, 10, 100, 2050};
    for (int k = 0; k < 4; k++) {
      int64_t C = sizes[k], last = C - 1;
      cmkd_loss_result r;
      const int32_t labels[] = {-1, (int32_t)C, INT32_MIN, INT32_MAX};
      for (int i = 0; i < 4; i++) {
        sample x = make_sample(20, C, PLAIN, CMKD_F32, 1);
        x.y[13] = labels[i];
        x.y[17] = -5;
        assert_int_equal(eval(loss, &x, 0, NAN, &r, &err), CMKD_ERR_VALUE);
        assert_int_equal(r.bad_row, 13);
        assert_non_null(strstr(err.message, "row 13"));
        free_sample(&x);
      }
      const float values[] = {NAN, INFINITY, -INFINITY};
      for (int i = 0; i < 6; i++) {
        sample x = make_sample(20, C, PLAIN, CMKD_F32, 1);
        (i % 2 ? x.s : (float *)x.t)[19 * C + (i < 3 ? last : 0)] = values[i / 2];
        assert_int_equal(eval(loss, &x, 0, NAN, &r, &err), i % 2 || teacher ? CMKD_ERR_VALUE : CMKD_OK);
        assert_int_equal(r.bad_row, i % 2 || teacher ? 19 : -1);
        free_sample(&x);
      }
    }
    cmkd_loss_free(loss);
  }
}
static void refuses_bad_rows(void **state) {
  (void)state;
  each_set(bad_rows);
}

static void no_gradient_wanted(void **state) {
  (void)state;
  cmkd_error err;
  cmkd_loss *loss = parse(everything);
  sample x = make_sample(10, 30, PLAIN, CMKD_F32, 1);
  cmkd_loss_result a, b;
  assert_ok(eval(loss, &x, 0, NAN, &a, &err));
  float *g = x.g;
  x.g = NULL;
  cmkd_loss_batch batch = {
      .batch = 10, .classes = 30, .student = x.s, .teacher = x.t, .labels = x.y, .epoch = 7, .entropy_mean = NAN};
  void *scratch = aligned_alloc(64, (cmkd_loss_scratch(loss, "cpu", 10, 30) + 63) / 64 * 64);
  assert_ok(cmkd_loss_eval(loss, "cpu", &batch, scratch, &b, &err));
  assert_memory_equal(&a, &b, sizeof a);
  free(scratch);
  x.g = g;
  free_sample(&x);
  cmkd_loss_free(loss);
}

static void agreement(void) {
  cmkd_error err;
  const int64_t shapes_[][2] = {{1, 2}, {7, 3}, {64, 10}, {33, 100}, {9, 1000}, {2, 4097}, {8, 4097}};
  for (size_t k = 0; k < 7; k++)
    for (int kind = 0; kind < FILLS; kind++) {
      int64_t B = shapes_[k][0], C = shapes_[k][1];
      sample x = make_sample(B, C, (fill)kind, kind % 2 ? CMKD_F16 : CMKD_F32, 5);
      cmkd_agreement got = {0}, want = {0};
      void *scratch = NULL;
      if (kind == OUTLIER) x.dtype = kind % 2 ? CMKD_F16 : CMKD_F32;
      int finite = 1;
      for (int64_t i = 0; i < B * C; i++)
        finite &= isfinite(x.td[i]);
      if (posix_memalign(&scratch, 64, cmkd_agreement_scratch(B, C)) != 0) abort();
      cmkd_status status = cmkd_agreement_add(&(cmkd_agreement_batch){B, C, x.s, x.t, x.dtype, 2}, scratch, &got, &err);
      assert_int_equal(status, finite ? CMKD_OK : CMKD_ERR_VALUE); /* an outlier of 1e9 is infinite in half precision */
      for (int64_t r = 0; finite && r < B; r++) {
        double p, s, b;
        assert_ok(cmkd_agreement_ref(C, x.sd + r * C, x.td + r * C, 2, &p, &s, &b, &err));
        want.pearson += p;
        want.spearman += s;
        want.blocks += b;
      }
      if (finite) {
        assert_int_equal(got.rows, B);
        if (!(fabs(got.pearson - want.pearson) < 1e-9 * (double)B &&
              fabs(got.spearman - want.spearman) < 1e-9 * (double)B && fabs(got.blocks - want.blocks) < 1e-9))
          fail_msg("B %lld C %lld fill %d: %.12g %.12g %.12g, not %.12g %.12g %.12g", (long long)B, (long long)C, kind,
                   got.pearson, got.spearman, got.blocks, want.pearson, want.spearman, want.blocks);
      }
      free(scratch);
      free_sample(&x);
    }
}
static void agreement_against_ref(void **state) {
  (void)state;
  each_set(agreement);
}

static void agreement_checks_arguments(void **state) {
  (void)state;
  cmkd_error err;
  float s[4] = {1, 2, 3, NAN}, t[4] = {1, 2, 3, 4};
  cmkd_agreement sums = {.pearson = 1, .rows = 1};
  size_t size = cmkd_agreement_scratch(2, 2);
  void *scratch = aligned_alloc(64, (size + 63) / 64 * 64);
  assert_int_equal(cmkd_agreement_add(&(cmkd_agreement_batch){2, 2, s, t, CMKD_F32, 2}, scratch, &sums, &err),
                   CMKD_ERR_VALUE);
  assert_true(sums.pearson == 1 && sums.rows == 1); /* nothing half added */
  assert_int_equal(cmkd_agreement_add(&(cmkd_agreement_batch){1, 2, s, t, CMKD_F32, 0}, scratch, &sums, &err),
                   CMKD_ERR_VALUE);
  assert_int_equal(cmkd_agreement_add(&(cmkd_agreement_batch){1, 1, s, t, CMKD_F32, 2}, scratch, &sums, &err),
                   CMKD_ERR_VALUE);
  assert_int_equal(cmkd_agreement_add(&(cmkd_agreement_batch){1, 2, s, t, CMKD_U8, 2}, scratch, &sums, &err),
                   CMKD_ERR_UNSUPPORTED);
  assert_int_equal(cmkd_agreement_add(&(cmkd_agreement_batch){1, 2, s, t, CMKD_F32, 2}, scratch, &sums, &err), CMKD_OK);
  assert_true(sums.pearson == 2 && sums.rows == 2);
  assert_int_equal(cmkd_agreement_scratch(1, 1), 0);
  free(scratch);
}

/* The vector exp of the instruction set that this file is compiled for; the others run the same operations, with FMA.
 */
static void exp_is_accurate(void **state) {
  (void)state;
  double worst = 0;
  for (int i = 0; i < 400000; i++) {
    vf x;
    for (int j = 0; j < VF; j++)
      x[j] = -87.f * (float)(i * VF + j) / (400000.f * VF);
    vf y = exp_f(x);
    for (int j = 0; j < VF; j++) {
      double exact = exp((double)x[j]);
      worst = fmax(worst, fabs(y[j] - exact) / (exact * 0x1p-23)); /* in ulps of at least half size */
    }
  }
  printf("note: exp is off by at most %.2f ulp\n", worst);
  assert_true(worst < 2);
  assert_true(exp_f(splat(0))[0] == 1 && exp_f(splat(-1000))[0] == 0 && exp_f(splat(-INFINITY))[0] == 0 &&
              exp_f(splat(-87.5f))[0] == 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(against_ref_losses),    cmocka_unit_test(against_ref_shapes),
      cmocka_unit_test(against_ref_large),     cmocka_unit_test(same_bytes_every_time),
      cmocka_unit_test(refuses_bad_rows),      cmocka_unit_test(no_gradient_wanted),
      cmocka_unit_test(agreement_against_ref), cmocka_unit_test(agreement_checks_arguments),
      cmocka_unit_test(exp_is_accurate),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
