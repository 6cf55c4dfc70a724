/* Ranks, z-scores and correlations of one row in double, plain loops: what the rank-based losses and the agreement
 * figures share. */
#ifndef CMKD_KERNELS_REF_LOSS_RANK_H
#define CMKD_KERNELS_REF_LOSS_RANK_H
#include <stdint.h>

/* Mean and population deviation (divide by n), two passes. Returns 1 when the row is degenerate: sigma <= 1e-6 * max(1,
 * max|x_i|). */
int cmkd_ref_moments(const double *x, int64_t n, double *mean, double *sigma);

/* 1 - rho(a, b) and u = d(1 - rho)/da (n; NULL: value alone). 0 and zeros where either has no deviation at all. */
double cmkd_ref_one_minus_rho(const double *a, const double *b, int64_t n, double *u);

/* order[i]: index of the i-th largest of x; equal values in index order. */
void cmkd_ref_order(const double *x, int64_t n, int32_t *order);

/* rank (n), 1 = smallest; ties share their average rank. `order` is that of cmkd_ref_order. */
void cmkd_ref_hard_rank(const double *x, const int32_t *order, int64_t n, double *rank);

/* Blondel et al. 2020, L2: projection of theta on the permutahedron of (n, ..., 1). rank (n, in the order of theta),
 * block_of (n, by sorted position). Returns the number of blocks. */
int64_t cmkd_ref_soft_rank(const double *theta, const int32_t *order, int64_t n, double *rank, int32_t *block_of);
/* Its vector-Jacobian product: g_theta from u_rank (both in the order of theta): u - mean of u over its block. */
void cmkd_ref_soft_rank_vjp(const double *u, const int32_t *order, const int32_t *block_of, int64_t n, double *g);
#endif
