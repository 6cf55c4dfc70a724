/* Ranks and correlations as their definitions read. Speed is not a goal: kernels/cpu and kernels/cuda are checked
 * against this. */
#include "kernels/ref/loss_rank.h"
#include <math.h>
#include <stdlib.h>
#include "kernels/loss.h"

int cmkd_ref_moments(const double *x, int64_t n, double *mean, double *sigma) {
  double sum = 0, squares = 0, largest = 1;
  for (int64_t i = 0; i < n; i++)
    sum += x[i];
  *mean = sum / (double)n;
  for (int64_t i = 0; i < n; i++)
    squares += (x[i] - *mean) * (x[i] - *mean);
  for (int64_t i = 0; i < n; i++)
    largest = fmax(largest, fabs(x[i]));
  *sigma = sqrt(squares / (double)n);
  return *sigma <= CMKD_DEGENERATE * largest;
}

double cmkd_ref_one_minus_rho(const double *a, const double *b, int64_t n, double *u) {
  double ma = 0, mb = 0, aa = 0, bb = 0, ab = 0;
  for (int64_t i = 0; i < n; i++) {
    ma += a[i];
    mb += b[i];
  }
  ma /= (double)n;
  mb /= (double)n;
  for (int64_t i = 0; i < n; i++) {
    aa += (a[i] - ma) * (a[i] - ma);
    bb += (b[i] - mb) * (b[i] - mb);
    ab += (a[i] - ma) * (b[i] - mb);
  }
  double na = sqrt(aa), nb = sqrt(bb);
  if (!(na > 0 && nb > 0)) {
    for (int64_t i = 0; u && i < n; i++)
      u[i] = 0;
    return 0;
  }
  double rho = ab / (na * nb);
  for (int64_t i = 0; u && i < n; i++)
    u[i] = -((b[i] - mb) / nb - rho * (a[i] - ma) / na) / na;
  return 1 - rho;
}

/* Merge sort, descending, stable. `scratch` has room for n indices. */
static void merge_sort(const double *x, int32_t *order, int32_t *scratch, int64_t n) {
  if (n < 2) return;
  int64_t half = n / 2, i = 0, j = half;
  merge_sort(x, order, scratch, half);
  merge_sort(x, order + half, scratch, n - half);
  for (int64_t k = 0; k < n; k++)
    scratch[k] = j >= n || (i < half && x[order[i]] >= x[order[j]]) ? order[i++] : order[j++];
  for (int64_t k = 0; k < n; k++)
    order[k] = scratch[k];
}

void cmkd_ref_order(const double *x, int64_t n, int32_t *order) {
  int32_t *scratch = malloc((size_t)n * sizeof *scratch);
  for (int64_t i = 0; i < n; i++)
    order[i] = (int32_t)i;
  if (scratch)
    merge_sort(x, order, scratch, n);
  else /* out of memory: slow, still right */
    for (int64_t i = 1; i < n; i++)
      for (int64_t j = i; j > 0 && x[order[j - 1]] < x[order[j]]; j--) {
        int32_t t = order[j];
        order[j] = order[j - 1];
        order[j - 1] = t;
      }
  free(scratch);
}

void cmkd_ref_hard_rank(const double *x, const int32_t *order, int64_t n, double *rank) {
  for (int64_t a = 0, b; a < n; a = b + 1) {
    for (b = a; b + 1 < n && x[order[b + 1]] == x[order[a]]; b++) {
    }
    for (int64_t i = a; i <= b; i++)
      rank[order[i]] = (double)n - (double)(a + b) / 2; /* ascending ranks of positions a..b are n-a .. n-b */
  }
}

int64_t cmkd_ref_soft_rank(const double *theta, const int32_t *order, int64_t n, double *rank, int32_t *block_of) {
  /* pool adjacent violators: block means of s - w must decrease, s sorted descending, w = n, n-1, ..., 1. A block's
     first position, count and sum; `rank` and `block_of` hold the stack until they get their own values: block_of[k]
     the first position, rank[k] the sum */
  int64_t blocks = 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t first = i;
    double sum = theta[order[i]] - (double)(n - i);
    while (blocks > 0) {
      int64_t before = block_of[blocks - 1];
      if (rank[blocks - 1] / (double)(first - before) > sum / (double)(i + 1 - first)) break;
      sum += rank[--blocks];
      first = before;
    }
    block_of[blocks] = (int32_t)first;
    rank[blocks++] = sum;
  }
  /* spread block numbers from the back, so that no entry is overwritten before it was read (block k starts at or after
   * k) */
  int64_t last = n - 1;
  for (int64_t k = blocks - 1; k >= 0; k--) {
    int64_t first = block_of[k];
    for (int64_t i = last; i >= first; i--)
      block_of[i] = (int32_t)k;
    last = first - 1;
  }
  for (int64_t a = 0, b; a < n; a = b + 1) {
    double mean = 0;
    for (b = a; b + 1 < n && block_of[b + 1] == block_of[a]; b++) {
    }
    for (int64_t i = a; i <= b; i++)
      mean += theta[order[i]] / (double)(b - a + 1);
    for (int64_t i = a; i <= b; i++)
      rank[order[i]] = theta[order[i]] - mean + (double)n - (double)(a + b) / 2;
  }
  return blocks;
}

void cmkd_ref_soft_rank_vjp(const double *u, const int32_t *order, const int32_t *block_of, int64_t n, double *g) {
  for (int64_t a = 0, b; a < n; a = b + 1) {
    double mean = 0;
    for (b = a; b + 1 < n && block_of[b + 1] == block_of[a]; b++) {
    }
    for (int64_t i = a; i <= b; i++)
      mean += u[order[i]] / (double)(b - a + 1);
    for (int64_t i = a; i <= b; i++)
      g[order[i]] = b > a ? u[order[i]] - mean : 0;
  }
}
