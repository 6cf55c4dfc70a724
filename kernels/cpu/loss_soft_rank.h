/* Spearman's half of CMKD for one sorted row: pool adjacent violators, correlation and gradient from block sums alone, in double.
 *
 * With theta = x / eps sorted descending, w = n, ..., 1 and m = (n + 1) / 2, a block B = [f..l] has soft ranks
 * r_i - m = theta_i - mean_B(theta) + c_B, c_B = (n - 1) / 2 - (f + l) / 2. Ranks sum to n m, so they are centred already; with b the
 * teacher's centred ranks, |a|^2 and <a, b> are sums over blocks of var_B(theta) + |B| c_B^2 and cov_B(theta, b) + c_B sum_B(b), and
 *   g_theta_i = -((b_i - mean_B(b)) / |b| - rho (theta_i - mean_B(theta)) / |a|) / |a|,
 * which is 0 in a block of one, sums to 0 in every block, and has sum(g theta) = -(sum cov / |b| - rho sum var / |a|) / |a|. */
#ifndef CMKD_KERNELS_CPU_LOSS_SOFT_RANK_H
#define CMKD_KERNELS_CPU_LOSS_SOFT_RANK_H
#include "kernels/cpu/loss_simd.h"

/* theta (n) descending. first (n + 1): where each block starts, first[blocks] = n; sum (n): of theta_i + i over each block. Returns blocks. */
static int64_t pool(const double *theta, int64_t n, int32_t *first, double *sum) {
  int64_t top = 0; /* s - w decreases <=> theta_i + i decreases */
  first[0] = 0;
  sum[0] = theta[0];
  for (int64_t i = 1; i < n; i++) {
    double y = theta[i] + (double)i, count = 1;
    int32_t at = (int32_t)i;
    while (top >= 0 && sum[top] * count <= y * (double)(at - first[top])) {
      y += sum[top];
      at = first[top--];
      count = (double)(i + 1 - at);
    }
    top++;
    first[top] = at;
    sum[top] = y;
  }
  first[top + 1] = (int32_t)n;
  return top + 1;
}

typedef struct spearman_row {
  double loss;         /* 1 - rho; 0 when either side has no deviation */
  double dot;          /* sum over classes of d(1 - rho)/d(theta_i) * theta_i */
  int64_t blocks;
} spearman_row;

/* theta (n) descending, index (n): its classes, b (padded): the teacher's centred ranks by class, bb = |b|^2, first and sum: scratch.
 * g (n, by class): d(1 - rho)/d(theta), or NULL. */
static spearman_row spearman(const double *theta, const int32_t *index, int64_t n, const float *b, double bb, int32_t *first, double *sum, float *g) {
  spearman_row out = {0, 0, pool(theta, n, first, sum)};
  double aa = 0, ab = 0, var_all = 0, cov_all = 0;
  for (int64_t k = 0; k < out.blocks; k++) {
    int64_t f = first[k], end = first[k + 1], len = end - f;
    double centre = .5 * (double)(n - 1) - .5 * (double)(f + end - 1), b_sum = b[index[f]];
    if (len > 1) {
      double t0 = theta[f], t_sum = 0, tt = 0, tb = 0, b0 = b_sum;
      b_sum = 0;
      for (int64_t i = f + 1; i < end; i++) {
        double t = theta[i] - t0, d = (double)b[index[i]] - b0;
        t_sum += t;
        b_sum += d;
        tt += t * t;
        tb += t * d;
      }
      double mean = t_sum / (double)len;
      sum[k] = t0 + mean; /* from here on: mean of theta */
      var_all += tt - t_sum * mean;
      cov_all += tb - b_sum * mean;
      b_sum += b0 * (double)len;
    }
    aa += (double)len * centre * centre;
    ab += centre * b_sum;
  }
  aa += var_all;
  ab += cov_all;
  double na = sqrt(aa), nb = sqrt(bb), rho;
  if (g) memset(g, 0, (size_t)n * sizeof *g);
  if (!(na > 0 && nb > 0)) return out;
  rho = ab / (na * nb);
  out.loss = 1 - rho;
  out.dot = -(cov_all / nb - rho * var_all / na) / na;
  double cb = -1 / (nb * na), ct = rho / aa;
  for (int64_t k = 0; g && k < out.blocks; k++) {
    int64_t f = first[k], end = first[k + 1];
    if (end - f < 2) continue;
    double mt = sum[k], mb = 0;
    for (int64_t i = f; i < end; i++) mb += b[index[i]];
    mb /= (double)(end - f);
    for (int64_t i = f; i < end; i++) g[index[i]] = (float)(cb * ((double)b[index[i]] - mb) + ct * (theta[i] - mt));
  }
  return out;
}

/* value (n) descending, index (n) -> rank (by class): ascending average ranks less their mean (n + 1) / 2. Returns the sum of their squares. */
static double centred_ranks(const double *value, const int32_t *index, int64_t n, float *rank) {
  double squares = 0;
  for (int64_t a = 0, b; a < n; a = b) {
    for (b = a + 1; b < n && value[b] == value[a]; b++) {}
    double r = .5 * (double)(n - 1) - .5 * (double)(a + b - 1);
    squares += r * r * (double)(b - a);
    for (int64_t i = a; i < b; i++) rank[index[i]] = (float)r;
  }
  return squares;
}
#endif
