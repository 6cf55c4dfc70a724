/* The double reference against what it must be by definition: finite differences, the min-max formula of isotonic
 * regression, known values. That it agrees with the golden vectors is check_vectors' business. */
#include "tests/support.h"
#include <math.h>
#include "base/rng.h"
#include "kernels/loss.h"
#include "kernels/ref/loss_rank.h"

static cmkd_loss *parse(const char *expression) {
  cmkd_error err;
  cmkd_loss *loss;
  assert_ok(cmkd_loss_parse(expression, CMKD_LOSS_CIFAR, &loss, &err));
  return loss;
}

typedef struct sample {
  int64_t B, C;
  double *s, *t, *g;
  int32_t *y, *order, *block_of, *blocks;
  cmkd_loss_result result;
} sample;

static sample make_sample(int64_t B, int64_t C, uint64_t seed) {
  sample x = {.B = B, .C = C};
  size_t n = (size_t)(B * C);
  x.s = malloc(n * 8);
  x.t = malloc(n * 8);
  x.g = malloc(n * 8);
  x.y = malloc((size_t)B * 4);
  x.blocks = malloc((size_t)B * 4);
  x.order = malloc(n * 4);
  x.block_of = malloc(n * 4);
  cmkd_rng rng = cmkd_rng_start(seed, CMKD_STREAM_TEST, (uint64_t)C);
  for (int64_t r = 0; r < B; r++) {
    x.y[r] = (int32_t)cmkd_rng_below(&rng, (uint32_t)C);
    for (int64_t i = r * C; i < (r + 1) * C; i++) {
      x.t[i] = 2 * cmkd_rng_normal(&rng) + (i == r * C + x.y[r] ? 3 : 0);
      x.s[i] = .5 * x.t[i] + cmkd_rng_normal(&rng);
    }
  }
  return x;
}
static void free_sample(sample *x) {
  free(x->s);
  free(x->t);
  free(x->g);
  free(x->y);
  free(x->order);
  free(x->block_of);
  free(x->blocks);
}

static cmkd_loss_ref_batch batch_of(const sample *x, double epoch, double smoothing, double entropy_mean) {
  return (cmkd_loss_ref_batch){.batch = x->B,
                               .classes = x->C,
                               .student = x->s,
                               .teacher = x->t,
                               .labels = x->y,
                               .grad = x->g,
                               .epoch = epoch,
                               .label_smoothing = smoothing,
                               .entropy_mean = entropy_mean};
}

static double eval(const cmkd_loss *loss, sample *x, double epoch, double smoothing) {
  cmkd_error err;
  cmkd_loss_ref_rows rows = {.order = x->order, .block_of = x->block_of, .blocks = x->blocks};
  const cmkd_loss_ref_batch batch = batch_of(x, epoch, smoothing, NAN);
  assert_ok(cmkd_loss_ref_double(loss, &batch, &x->result, &rows, &err));
  return x->result.loss;
}

/* Central differences of every entry; one where a step crosses a merge of blocks or a change of order is left out, and
 * few may be. */
static void differences(const char *expression, int64_t B, int64_t C, double smoothing, uint64_t seed) {
  cmkd_loss *loss = parse(expression);
  sample x = make_sample(B, C, seed);
  size_t n = (size_t)(B * C);
  double *g = malloc(n * 8), h = 2e-6, largest = 0;
  int32_t *order = malloc(n * 4), *block_of = malloc(n * 4);
  int ranked = cmkd_loss_needs_full_row(loss);
  size_t left_out = 0;
  memset(x.order, 0, n * 4);
  memset(x.block_of, 0, n * 4);
  eval(loss, &x, 7, smoothing);
  memcpy(g, x.g, n * 8);
  memcpy(order, x.order, n * 4);
  memcpy(block_of, x.block_of, n * 4);
  for (size_t i = 0; i < n; i++)
    largest = fmax(largest, fabs(g[i]));
  for (size_t i = 0; i < n; i++) {
    double at = x.s[i];
    x.s[i] = at + h;
    double up = eval(loss, &x, 7, smoothing);
    int kink = ranked && (memcmp(order, x.order, n * 4) || memcmp(block_of, x.block_of, n * 4));
    x.s[i] = at - h;
    double down = eval(loss, &x, 7, smoothing);
    kink |= ranked && (memcmp(order, x.order, n * 4) || memcmp(block_of, x.block_of, n * 4));
    x.s[i] = at;
    if (kink) {
      left_out++;
      continue;
    }
    double slope = (up - down) / (2 * h);
    if (!(fabs(slope - g[i]) <= 1e-6 * fmax(1, largest)))
      fail_msg("%s B %lld C %lld entry %zu: slope %.12g, gradient %.12g", expression, (long long)B, (long long)C, i,
               slope, g[i]);
  }
  assert_true(left_out * 10 <= n);
  free(g);
  free(order);
  free(block_of);
  free_sample(&x);
  cmkd_loss_free(loss);
}

static void finite_differences(void **state) {
  (void)state;
  const char *const losses[] = {"ce",
                                "ce:0+kd:1,T=3",
                                "ce:0+dkd:.7,alpha=1.5,beta=3,T=2,warmup=20",
                                "ce:0+nkd:gamma=2,T=2",
                                "ce:0+dist:beta=1,gamma=3,T=2",
                                "ce:0+cmkd:beta=1,gamma=0,gate=off,T=2",
                                "ce:0+cmkd:beta=0,gamma=1,gate=off",
                                "cmkd",
                                "cmkd:gate=hard-spearman,T=1,kappa=.7",
                                "cmkd:zscore=off,kappa=5",
                                "cmkd:kappa=1000",
                                "dkd+cmkd",
                                "ce:.5+kd:.3+dkd:.2+nkd:.1+dist:.4+cmkd:.7"};
  const int64_t shapes[][2] = {{1, 2}, {3, 2}, {2, 3}, {1, 5}, {4, 10}, {2, 37}};
  for (size_t l = 0; l < sizeof losses / sizeof losses[0]; l++)
    for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++)
      differences(losses[l], shapes[k][0], shapes[k][1], l % 2 ? .1 : 0, 100 * l + k);
}

/* r = s - v where v fits s - w by the decreasing sequence of least squares: v_i = min over a <= i of max over b >= i of
 * mean(a..b). */
static void soft_rank_is_the_projection(void **state) {
  (void)state;
  enum { N = 40 };
  cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, 1);
  for (int trial = 0; trial < 200; trial++) {
    int n = 2 + (int)cmkd_rng_below(&rng, N - 2);
    double theta[N], rank[N], y[N], scale = pow(10, 4 * cmkd_rng_uniform(&rng) - 2), sum = 0;
    int32_t order[N], block_of[N];
    for (int i = 0; i < n; i++)
      theta[i] =
          scale * (trial % 5 ? cmkd_rng_normal(&rng) : floor(3 * cmkd_rng_uniform(&rng))); /* every fifth with ties */
    cmkd_ref_order(theta, n, order);
    int64_t blocks = cmkd_ref_soft_rank(theta, order, n, rank, block_of);
    for (int i = 0; i < n; i++)
      y[i] = theta[order[i]] - (n - i);
    for (int i = 0; i < n; i++) {
      double v = INFINITY;
      for (int a = 0; a <= i; a++) {
        double best = -INFINITY;
        for (int b = i; b < n; b++) {
          double mean = 0;
          for (int j = a; j <= b; j++)
            mean += y[j];
          best = fmax(best, mean / (b - a + 1));
        }
        v = fmin(v, best);
      }
      assert_true(fabs(rank[order[i]] - (theta[order[i]] - v)) < 1e-9 * (n + scale * 10));
      sum += rank[order[i]];
      assert_true(i == 0 || block_of[i] == block_of[i - 1] || block_of[i] == block_of[i - 1] + 1);
    }
    assert_int_equal(block_of[n - 1] + 1, blocks);
    assert_true(fabs(sum - n * (n + 1) / 2.) < 1e-8);
  }
}

static void hard_ranks_share_ties(void **state) {
  (void)state;
  const double x[] = {3, 1, 3, 0, -2, 3, 1}, expected[] = {6, 3.5, 6, 2, 1, 6, 3.5};
  double rank[7];
  int32_t order[7];
  cmkd_ref_order(x, 7, order);
  cmkd_ref_hard_rank(x, order, 7, rank);
  for (int i = 0; i < 7; i++)
    assert_true(rank[i] == expected[i]);
}

/* Any z-scored row is one block once eps >= 2 / sqrt(C - 1). */
static void large_eps_is_one_block(void **state) {
  (void)state;
  const int64_t classes[] = {2, 3, 5, 10, 37, 100, 127, 128, 1000, 1025};
  for (size_t k = 0; k < sizeof classes / sizeof classes[0]; k++) {
    int64_t C = classes[k];
    char text[80];
    snprintf(text, sizeof text, "cmkd:kappa=%.17g", fmax(1e-3, 2 * (double)C / sqrt((double)C - 1) * (1 + 1e-12)));
    cmkd_loss *loss = parse(text), *hard = parse("cmkd:kappa=0.001");
    sample x = make_sample(4, C, 5);
    for (int64_t i = 1; i < C; i++)
      x.s[i] = i == 1 ? 50 : -1e-3 * (double)i; /* an outlier: the worst case */
    eval(loss, &x, 1, 0);
    for (int r = 0; r < 4; r++)
      assert_int_equal(x.blocks[r], 1);
    assert_true(fabs(x.result.blocks - 1 / (double)C) < 1e-12);
    eval(hard, &x, 1, 0);
    for (int r = 1; r < 4; r++)
      assert_true(x.blocks[r] > C * .8);
    free_sample(&x);
    cmkd_loss_free(loss);
    cmkd_loss_free(hard);
  }
}

static double part(const cmkd_loss *loss, const sample *x, const char *name) {
  for (int i = 0; i < cmkd_loss_parts(loss); i++)
    if (!strcmp(cmkd_loss_part_name(loss, i), name)) return x->result.part[i];
  fail_msg("no part %s", name);
  return 0;
}

static void two_classes_have_no_rank_gradient(void **state) {
  (void)state;
  cmkd_loss *loss = parse("ce:0+cmkd:beta=1,gamma=1");
  sample x = make_sample(6, 2, 3);
  eval(loss, &x, 1, 0);
  for (int i = 0; i < 12; i++)
    assert_true(fabs(x.g[i]) < 1e-12);
  double spearman = 6 * part(loss, &x, "spearman");
  assert_true(fabs(spearman / 2 - round(spearman / 2)) < 1e-12); /* each row 0 or 2 */
  free_sample(&x);
  cmkd_loss_free(loss);
}

static void degenerate_rows_count_nothing(void **state) {
  (void)state;
  cmkd_loss *loss = parse("ce:1+cmkd"), *ce = parse("ce"), *dist = parse("ce:0+dist");
  for (int side = 0; side < 3; side++) {
    sample x = make_sample(4, 10, 9);
    for (int64_t i = 0; i < 10; i++) {
      if (side == 0) x.s[10 + i] = -7.5;
      if (side == 1) x.t[10 + i] = 300;
      if (side == 2) x.s[10 + i] = 1e6 + 1e-3 * (double)i; /* sigma below 1e-6 of the largest */
    }
    eval(ce, &x, 1, 0);
    double g[10];
    memcpy(g, x.g + 10, sizeof g);
    eval(loss, &x, 1, 0);
    assert_memory_equal(g, x.g + 10, sizeof g);
    assert_int_equal(x.blocks[1], 0);
    assert_true(x.blocks[0] > 0);
    assert_true(isfinite(x.result.loss));
    eval(dist, &x, 1, 0);
    assert_true(isfinite(x.result.loss));
    for (int i = 0; i < 40; i++)
      assert_true(isfinite(x.g[i]));
    free_sample(&x);
  }
  sample x = make_sample(3, 5, 9); /* equal rows: every DIST column is constant, and gives nothing */
  for (int i = 5; i < 15; i++) {
    x.s[i] = x.s[i % 5];
    x.t[i] = x.t[i % 5];
  }
  eval(dist, &x, 1, 0);
  assert_true(part(dist, &x, "dist_intra") == 0);
  assert_true(part(dist, &x, "dist_inter") > 0);
  free_sample(&x);
  x = make_sample(1, 5, 9);
  eval(dist, &x, 1, 0);
  assert_true(part(dist, &x, "dist_intra") == 0);
  free_sample(&x);
  cmkd_loss_free(loss);
  cmkd_loss_free(ce);
  cmkd_loss_free(dist);
}

static void gates(void **state) {
  (void)state;
  cmkd_error err;
  sample x = make_sample(4, 6, 11);
  double wp[4], ws[4], entropy[4];
  cmkd_loss_ref_rows rows = {.weight_pearson = wp, .weight_spearman = ws, .entropy = entropy};
  cmkd_loss_ref_batch batch = batch_of(&x, 1, 0, NAN);
  for (int i = 0; i < 6; i++) {
    x.t[i] = i == 2 ? 20 : 0;
    x.t[6 + i] = .01 * i;
    x.t[12 + i] = i == 1 ? 9 : 0;
    x.t[18 + i] = .02 * i;
  } /* sharp, flat, sharp, flat */
  const struct {
    const char *gate;
    double wp[4];
  } cases[] = {{"easy-spearman", {2, 4, 2, 4}}, {"hard-spearman", {4, 2, 4, 2}}, {"off", {4, 4, 4, 4}}};
  for (int k = 0; k < 3; k++) {
    char text[60];
    snprintf(text, sizeof text, "cmkd:gate=%s", cases[k].gate);
    cmkd_loss *loss = parse(text);
    assert_ok(cmkd_loss_ref_double(loss, &batch, &x.result, &rows, &err));
    for (int r = 0; r < 4; r++)
      assert_true(wp[r] == cases[k].wp[r] && ws[r] == 6 - cases[k].wp[r]);
    cmkd_loss_free(loss);
  }
  /* equal entropies are all easy, in whatever order rounding leaves them; a given mean replaces the batch's own */
  cmkd_loss *loss = parse("cmkd");
  for (int r = 1; r < 4; r++)
    for (int i = 0; i < 6; i++)
      x.t[r * 6 + i] = x.t[(i + r) % 6];
  assert_ok(cmkd_loss_ref_double(loss, &batch, &x.result, &rows, &err));
  for (int r = 0; r < 4; r++)
    assert_true(ws[r] == 4);
  batch.entropy_mean = entropy[0] - 1e-3;
  assert_ok(cmkd_loss_ref_double(loss, &batch, &x.result, &rows, &err));
  for (int r = 0; r < 4; r++)
    assert_true(ws[r] == 2);
  cmkd_loss_free(loss);
  free_sample(&x);
}

/* A teacher equal to the student: every divergence and 1 - rho is 0 but the soft rank's, and their gradients vanish. */
static void agreement_costs_nothing(void **state) {
  (void)state;
  cmkd_error err;
  cmkd_loss *loss = parse("ce:0+kd:1+dkd:1+dist:1+cmkd:kappa=0.001,beta=1,gamma=1");
  sample x = make_sample(5, 50, 4);
  memcpy(x.t, x.s, 5 * 50 * 8);
  eval(loss, &x, 1e9, 0);
  assert_true(fabs(x.result.loss) < 1e-6);
  for (int i = 0; i < 250; i++)
    assert_true(fabs(x.g[i]) < 1e-3);
  double pearson, spearman, blocks;
  assert_ok(cmkd_agreement_ref(50, x.s, x.t, 2, &pearson, &spearman, &blocks, &err));
  assert_true(fabs(pearson - 1) < 1e-12 && fabs(spearman - 1) < 1e-12 && blocks > 0 && blocks <= 1);
  for (int i = 0; i < 50; i++)
    x.t[i] = -exp(x.s[i]); /* any monotone map: ranks turned over */
  assert_ok(cmkd_agreement_ref(50, x.s, x.t, 2, &pearson, &spearman, &blocks, &err));
  assert_true(fabs(spearman + 1) < 1e-12 && pearson > -1 && pearson < -.3);
  for (int i = 0; i < 50; i++)
    x.t[i] = 3;
  assert_ok(cmkd_agreement_ref(50, x.s, x.t, 2, &pearson, &spearman, &blocks, &err));
  assert_true(pearson == 0 && spearman == 0 && blocks == 0);
  cmkd_loss_free(loss);
  free_sample(&x);
}

static void extreme_logits_stay_finite(void **state) {
  (void)state;
  cmkd_loss *loss = parse("ce:.5+kd:.3+dkd:.2+nkd:.1+dist:.4+cmkd:.7");
  for (int kind = 0; kind < 4; kind++) {
    sample x = make_sample(4, 20, (uint64_t)kind);
    for (int i = 0; i < 80; i++) {
      x.s[i] = kind == 0   ? (x.s[i] > 0 ? 1000 : -1000)
               : kind == 1 ? 1e30 * x.s[i]
               : kind == 2 ? (i % 20 == x.y[i / 20] ? 1000 : 0)
                           : 1e-30 * x.s[i];
      x.t[i] = kind == 0   ? (x.t[i] > 0 ? 1000 : -1000)
               : kind == 1 ? 1e30 * x.t[i]
               : kind == 2 ? (i % 20 == x.y[i / 20] ? 1000 : 1e-3 * i)
                           : x.t[i];
    }
    assert_true(isfinite(eval(loss, &x, 1, .1)));
    for (int i = 0; i < 80; i++)
      assert_true(isfinite(x.g[i]));
    free_sample(&x);
  }
  cmkd_loss_free(loss);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(finite_differences),
      cmocka_unit_test(soft_rank_is_the_projection),
      cmocka_unit_test(hard_ranks_share_ties),
      cmocka_unit_test(large_eps_is_one_block),
      cmocka_unit_test(two_classes_have_no_rank_gradient),
      cmocka_unit_test(degenerate_rows_count_nothing),
      cmocka_unit_test(gates),
      cmocka_unit_test(agreement_costs_nothing),
      cmocka_unit_test(extreme_logits_stay_finite),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
