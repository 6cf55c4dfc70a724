/* The CPU losses at the width of AVX-512, 16 lanes, in whatever instructions this machine has: the code of
 * loss/rows_avx512.c but for its min, max and half conversion, so that machines without AVX-512 test its sorting of 16
 * rows at once, its padding and its partial groups. */
#define VF 16
#define LOSS_KERNELS_TABLE wide_rows
#define LOSS_KERNELS_NAME "wide"
#include "tests/support.h"
#define cmkd_loss_kernels_base wide_rows
#define cmkd_loss_kernels_avx2 wide_rows
#define cmkd_loss_kernels_avx512 wide_rows
#define cmkd_loss_kernels_best wide_best
#define cmkd_loss_cpu wide_cpu
#define cmkd_agreement_scratch wide_agreement_scratch
#define cmkd_agreement_add wide_agreement_add
#include "kernels/cpu/loss/rows_impl.h"
#include "kernels/cpu/loss/loss.c"
#include "base/rng.h"

static void compare(const char *expression, int64_t B, int64_t C, double coarse) {
  cmkd_error err;
  cmkd_loss *loss;
  assert_ok(cmkd_loss_parse(expression, CMKD_LOSS_CIFAR, &loss, &err));
  size_t n = (size_t)(B * C), size = wide_cpu.scratch(loss, B, C);
  float *s = malloc(n * 4), *g = malloc(n * 4);
  uint16_t *t = malloc(n * 2);
  double *sd = malloc(n * 8), *td = malloc(n * 8), *gd = malloc(n * 8), largest = 0, off = 0;
  int32_t *y = malloc((size_t)B * 4);
  void *scratch = NULL, *other = NULL;
  if (posix_memalign(&scratch, 64, size) != 0 || posix_memalign(&other, 64, wide_agreement_scratch(B, C)) != 0) abort();
  memset(scratch, 0xFF, size);
  cmkd_rng rng = cmkd_rng_start(3, CMKD_STREAM_TEST, (uint64_t)(B * 1000 + C));
  for (int64_t r = 0; r < B; r++)
    y[r] = (int32_t)cmkd_rng_below(&rng, (uint32_t)C);
  for (size_t i = 0; i < n; i++) {
    double v = 2 * cmkd_rng_normal(&rng), w = cmkd_rng_normal(&rng);
    if (coarse > 0) {
      v = floor(v / coarse) * coarse;
      w = floor(w / coarse) * coarse;
    }
    t[i] = cmkd_float_to_half((float)v);
    td[i] = cmkd_half_to_float(t[i]);
    sd[i] = s[i] = (float)(v * .5 + w);
  }
  cmkd_loss_batch b = {.batch = B,
                       .classes = C,
                       .student = s,
                       .teacher = t,
                       .teacher_dtype = CMKD_F16,
                       .labels = y,
                       .grad = g,
                       .epoch = 5,
                       .entropy_mean = NAN};
  cmkd_loss_result got = {.blocks = NAN}, want;
  assert_ok(wide_cpu.eval(loss, &b, scratch, &got, &err));
  const cmkd_loss_ref_batch doubles = {
      .batch = B, .classes = C, .student = sd, .teacher = td, .labels = y, .grad = gd, .epoch = 5, .entropy_mean = NAN};
  assert_ok(cmkd_loss_ref_double(loss, &doubles, &want, NULL, &err));
  for (size_t i = 0; i < n; i++) {
    largest = fmax(largest, fabs(gd[i]));
    off = fmax(off, fabs(g[i] - gd[i]));
  }
  if (!(fabs(got.loss - want.loss) <= 1e-4 * fabs(want.loss) && off <= 1e-4 * largest))
    fail_msg("%s B %d C %d: loss %.9g, not %.9g; gradient off by %.3g, largest %.3g", expression, (int)B, (int)C,
             got.loss, want.loss, off, largest);
  cmkd_agreement sums = {0}, expected = {0};
  assert_ok(wide_agreement_add(&(cmkd_agreement_batch){B, C, s, t, CMKD_F16, 2}, other, &sums, &err));
  for (int64_t r = 0; r < B; r++) {
    double p, k, blocks;
    assert_ok(cmkd_agreement_ref(C, sd + r * C, td + r * C, 2, &p, &k, &blocks, &err));
    expected.pearson += p;
    expected.spearman += k;
    expected.blocks += blocks;
  }
  assert_true(fabs(sums.pearson - expected.pearson) < 1e-9 * (double)B &&
              fabs(sums.spearman - expected.spearman) < 1e-9 * (double)B && fabs(sums.blocks - expected.blocks) < 1e-9);
  free(s);
  free(g);
  free(t);
  free(sd);
  free(td);
  free(gd);
  free(y);
  free(scratch);
  free(other);
  cmkd_loss_free(loss);
}

static void sixteen_lanes(void **state) {
  (void)state;
  const int64_t classes[] = {2, 3, 8, 10, 15, 16, 17, 31, 33, 64, 65, 100, 129, 1000, 1025};
  for (size_t c = 0; c < sizeof classes / sizeof classes[0]; c++)
    for (int64_t B = 1; B <= 33; B += 16) {
      compare("dkd+cmkd", B, classes[c], 0);
      compare("ce:.5+kd:.3+dkd:.2+nkd:.1+dist:.4+cmkd:.7", B, classes[c], 0);
    }
  compare("cmkd", 20, 100, .5); /* ties */
  compare("cmkd", 20, 4096, 0);
  compare("cmkd", 3, 4096, 0); /* too few for the network */
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(sixteen_lanes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
