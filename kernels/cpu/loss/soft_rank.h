/* Spearman's half of CMKD for one sorted row. Part of rows_impl.h, compiled once per instruction set: pool adjacent
 * violators, correlation and gradient from block sums alone, in double.
 *
 * With theta = x / eps sorted descending, w = n, ..., 1 and m = (n + 1) / 2, a block B = [f..l] has soft ranks
 * r_i - m = theta_i - mean_B(theta) + c_B, c_B = (n - 1) / 2 - (f + l) / 2. Ranks sum to n m, so they are centred
 * already; with b the teacher's centred ranks, |a|^2 and <a, b> are sums over blocks of var_B(theta) + |B| c_B^2 and
 * cov_B(theta, b) + c_B sum_B(b), and g_theta_i = -((b_i - mean_B(b)) / |b| - rho (theta_i - mean_B(theta)) / |a|) /
 * |a|, which is 0 in a block of one, sums to 0 in every block, and has sum(g theta) = -(sum cov / |b| - rho sum var /
 * |a|) / |a|. */
#ifndef CMKD_KERNELS_CPU_LOSS_SOFT_RANK_H
#define CMKD_KERNELS_CPU_LOSS_SOFT_RANK_H
#include <math.h>
#include "kernels/cpu/vector.h"

/* One row's arrays. VD more numbers than said may be read and written. */
typedef struct sorted_row {
  int32_t *index;   /* (n) the class at each position, logits descending */
  double *theta;    /* (n) */
  double *prefix;   /* (n + 1) running sum of theta_i + i */
  double *prefix_b; /* (n + 1) running sum of the teacher's centred ranks b in this order; exact, since these are
                       multiples of 1/2 */
  int32_t *first;   /* (n + 1) where each block starts; first[blocks] = n */
  float *off_theta, *off_b; /* (n) theta and b less the mean over their block */
} sorted_row;

/* From r->index: theta = (x - largest) * scale, its running sums, the same of b = rank[index] (where rank is given),
 * and in `first` the start of every run in which theta_i + i does not decrease: neighbours in a run are violators, so a
 * run lies within one block. About half of all positions start one, which no predictor guesses: hence no branches.
 * Returns the number of runs, 0 when index is not in order. */
INLINE int64_t lay_out(const sorted_row *r, const float *x, int64_t n, double scale, const float *rank) {
  const int32_t *restrict index = r->index;
  double *restrict theta = r->theta, *restrict prefix = r->prefix, *restrict prefix_b = r->prefix_b;
  int32_t *restrict first = r->first;
  double largest = x[index[0]], total = 0, total_b = 0, before = 0;
  int64_t runs = 0, start = 0;
  int unsorted = 0;
  first[0] = 0;
  for (int64_t i = 0; i < n; i++) {
    double t = ((double)x[index[i]] - largest) * scale, gap = before - t;
    unsorted |= gap < 0;
    int64_t starts = gap > 1;
    runs += starts;
    start += (i - start) & -starts;
    first[runs] = (int32_t)start;
    before = t;
    theta[i] = t;
    prefix[i] = total;
    total += t + (double)i;
    if (rank) {
      prefix_b[i] = total_b;
      total_b += rank[index[i]];
    }
  }
  prefix[n] = total;
  if (rank) prefix_b[n] = total_b;
  return unsorted ? 0 : runs + 1;
}

/* Pools adjacent violators: the mean of theta_i + i must decrease from block to block. `first` in: runs of lay_out;
 * out: blocks. */
static int64_t pool(const sorted_row *r, int64_t n, int64_t runs) {
  const double *restrict prefix = r->prefix;
  int32_t *restrict first = r->first;
  first[runs] = (int32_t)n;
  /* one more round without branches: what violates its neighbour before the round joins it */
  int64_t k = 0, start = 0;
  double before = prefix[first[1]] - prefix[0], count = (double)first[1];
  for (int64_t i = 1; i < runs; i++) {
    int32_t at = first[i], end = first[i + 1];
    double sum = prefix[end] - prefix[at], len = (double)(end - at);
    int64_t starts = before * len > sum * count;
    k += starts;
    start += (at - start) & -starts;
    first[k] = (int32_t)start;
    before = sum;
    count = len;
  }
  runs = k + 1;
  first[runs] = (int32_t)n;
  int64_t top = 0; /* then the usual stack, which finds little left to do */
  for (k = 1; k < runs; k++) {
    int32_t at = first[k], end = first[k + 1];
    while (top >= 0) {
      int32_t from = first[top];
      if ((prefix[at] - prefix[from]) * (double)(end - at) > (prefix[end] - prefix[at]) * (double)(at - from)) break;
      at = from;
      top--;
    }
    first[++top] = at;
  }
  first[top + 1] = (int32_t)n;
  return top + 1;
}

typedef struct spearman_out {
  double loss; /* 1 - rho; 0 when either side has no deviation */
  double dot;  /* sum over classes of d(1 - rho)/d(theta_i) * theta_i */
  int64_t blocks;
} spearman_out;

/* r as lay_out left it; bb = |rank|^2. g (by class): d(1 - rho)/d(theta). */
static spearman_out spearman(const sorted_row *r, int64_t n, int64_t runs, double bb, float *g) {
  spearman_out out = {0, 0, pool(r, n, runs)};
  double aa = 0, ab = 0;
  vd var = splat_d(0), cov = var;
  for (int64_t k = 0; k < out.blocks; k++) {
    int64_t f = r->first[k], end = r->first[k + 1];
    double sum = r->prefix[end] - r->prefix[f], b_sum = r->prefix_b[end] - r->prefix_b[f];
    double len = (double)(end - f), each = 1 / len, middle = .5 * (double)(f + end - 1),
           centre = .5 * (double)(n - 1) - middle;
    aa += len * centre * centre;
    ab += centre * b_sum;
    vd mean = splat_d(sum * each - middle), mean_b = splat_d(b_sum * each);
    int64_t pooled = -(int64_t)(end - f > 1); /* a block of one has gradient 0, to the bit, and without a branch */
    for (int64_t i = f; i < end; i += VD) {
      const vd t = keep_d(load_d(r->theta + i) - mean, (end - i) & pooled);
      const vd b = keep_d(load_d(r->prefix_b + i + 1) - load_d(r->prefix_b + i) - mean_b, (end - i) & pooled);
      var += t * t;
      cov += t * b;
      store_h(r->off_theta + i, narrow(t)); /* what runs over is written again by the next block */
      store_h(r->off_b + i, narrow(b));
    }
  }
  double var_all = sum_d(var), cov_all = sum_d(cov);
  aa += var_all;
  ab += cov_all;
  double na = sqrt(aa), nb = sqrt(bb), cb = 0, ct = 0;
  if (na > 0 && nb > 0) {
    double rho = ab / (na * nb);
    out.loss = 1 - rho;
    out.dot = -(cov_all / nb - rho * var_all / na) / na;
    cb = -1 / (nb * na);
    ct = rho / aa;
  }
  float fb = (float)cb, ft = (float)ct;
  for (int64_t i = 0; i < n; i++)
    g[r->index[i]] = fb * r->off_b[i] + ft * r->off_theta[i];
  return out;
}

/* index (n), x descending along it -> rank (by class): ascending average ranks less their mean (n + 1) / 2. Returns the
 * sum of their squares, -1 when index is not in order. */
static double centred_ranks(const float *x, const int32_t *index, int64_t n, float *rank) {
  double N = (double)n, squares = N * (N * N - 1) / 12;
  float middle = .5f * (float)(n - 1), before = x[index[0]];
  int unsorted = 0, ties = 0;
  rank[index[0]] = middle;
  for (int64_t i = 1; i < n; i++) {
    float here = x[index[i]];
    unsorted |= here > before;
    ties |= here == before;
    before = here;
    rank[index[i]] = middle - (float)i; /* exact: halves below 2^17 */
  }
  if (unsorted) return -1;
  for (int64_t i = 1; ties && i < n; i++) {
    if (x[index[i]] != x[index[i - 1]]) continue;
    int64_t from = i - 1;
    while (i + 1 < n && x[index[i + 1]] == x[index[from]])
      i++;
    double t = (double)(i + 1 - from);
    squares -= t * (t * t - 1) / 12;
    for (int64_t j = from; j <= i; j++)
      rank[index[j]] = middle - .5f * (float)(from + i);
  }
  return squares;
}
#endif
