/* The CMKD loss on one core, forward and backward, teacher's side included: microseconds of processor time a row
 * (median), so that other work on the machine counts little, beside what moving its bytes costs. One JSON object a
 * line, as bench/loss.sh reads it.  loss BATCH CLASSES [EXPRESSION] [STEPS] */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/program/environment.h"
#include "base/rng.h"
#include "cmkd/loss.h"
#include "kernels/cpu/loss/loss.h"

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}
static double median(double *x, int n) {
  qsort(x, (size_t)n, sizeof *x, ascending);
  return x[n / 2];
}

/* GB/s of reading two arrays and writing a third, each as large as the batch's: what the loss cannot avoid. */
static double bandwidth(const float *a, const float *b, float *c, int64_t n) {
  double times[15];
  int64_t rounds = 1 + (1 << 22) / n;
  for (int i = 0; i < 15; i++) {
    double start = seconds();
    for (int64_t k = 0; k < rounds; k++) {
      for (int64_t j = 0; j < n; j++)
        c[j] = a[j] + b[j];
      __asm__ volatile("" : : "r"(c) : "memory");
    }
    times[i] = (seconds() - start) / (double)rounds;
  }
  return 12e-9 * (double)n / median(times, 15);
}

int main(int argc, char **argv) {
  cmkd_environment_lower_isa();
  int64_t B = argc > 1 ? atoll(argv[1]) : 64, C = argc > 2 ? atoll(argv[2]) : 100;
  const char *expression = argc > 3 ? argv[3] : "cmkd";
  int steps = argc > 4 ? atoi(argv[4]) : (int)fmax(15, fmin(2000, 2e7 / (double)(B * C)));
  cmkd_error err;
  cmkd_loss *loss;
  omp_set_num_threads(1);
  if (B < 1 || C < 2 || steps < 1 || B > 1 << 20 ||
      cmkd_loss_parse(expression, CMKD_LOSS_CIFAR, &loss, &err) != CMKD_OK) {
    fprintf(stderr, "usage: loss BATCH CLASSES [EXPRESSION] [STEPS]\n");
    return 2;
  }
  size_t n = (size_t)(B * C), size = cmkd_loss_scratch(loss, "cpu", B, C);
  float *s = malloc(n * 4), *t = malloc(n * 4), *g = malloc(n * 4);
  int32_t *y = malloc((size_t)B * 4);
  double *times = malloc((size_t)steps * 8);
  void *scratch = aligned_alloc(64, (size + 127) / 64 * 64);
  if (!s || !t || !g || !y || !times || !scratch) {
    fprintf(stderr, "out of memory\n");
    return 1;
  }
  cmkd_rng rng = cmkd_rng_start(0, CMKD_STREAM_TEST, 0);
  for (int64_t r = 0; r < B; r++) { /* the distribution of the PyTorch peer */
    y[r] = (int32_t)cmkd_rng_below(&rng, (uint32_t)C);
    for (int64_t i = r * C; i < (r + 1) * C; i++) {
      t[i] = (float)(cmkd_rng_normal(&rng) + (i == r * C + y[r] ? 5 : 0));
      s[i] = .7f * t[i] + .7f * (float)cmkd_rng_normal(&rng);
    }
  }
  cmkd_loss_batch batch = {
      .batch = B, .classes = C, .student = s, .teacher = t, .labels = y, .grad = g, .epoch = 240, .entropy_mean = NAN};
  cmkd_loss_result result;
  for (int i = -5; i < steps; i++) {
    double start = seconds();
    if (cmkd_loss_eval(loss, "cpu", &batch, scratch, &result, &err) != CMKD_OK) {
      fprintf(stderr, "%s\n", err.message);
      return 1;
    }
    if (i >= 0) times[i] = seconds() - start;
  }
  double row = median(times, steps) * 1e6 / (double)B, best = times[0] * 1e6 / (double)B,
         gbs = bandwidth(s, t, g, (int64_t)n), limit = 12 * (double)C / gbs * 1e-3;
  printf("{\"loss\": \"%s\", \"batch\": %lld, \"classes\": %lld, \"isa\": \"%s\", \"us_per_row\": %.3f, "
         "\"best_us_per_row\": %.3f, \"bandwidth_gb_s\": %.1f, \"bytes_limit_us\": %.4f, \"times_limit\": %.1f}\n",
         expression, (long long)B, (long long)C, cmkd_loss_kernels_best()->name, row, best, gbs, limit, row / limit);
  free(s);
  free(t);
  free(g);
  free(y);
  free(times);
  free(scratch);
  cmkd_loss_free(loss);
  return 0;
}
