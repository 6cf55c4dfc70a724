/* Passes over rows and columns in double. Part of rows_impl.h, compiled once per instruction set.
 * They are for correlations of probabilities that float would lose: a correlation sees deviations from the mean
 * alone, so probabilities that nearly agree with each other (over a flat row, or over the batch in one of DIST's
 * columns) must be known far better than they differ. DIST's columns also hold probabilities too small for any float,
 * which count as much as the others: there, logarithms are kept and each column is scaled by its own largest entry. */
#ifndef CMKD_KERNELS_CPU_LOSS_DOUBLE_PASS_H
#define CMKD_KERNELS_CPU_LOSS_DOUBLE_PASS_H
#include "kernels/cpu/loss/exp.h"
#include "kernels/cpu/loss/float_pass.h"
#include "kernels/cpu/loss/loss.h"

/* p = softmax(x * k) (n), followed by zeros up to a whole vector. largest: that of x. */
static void softmax_d(const float *x, int64_t n, float largest, double k, double *p) {
  vd shift = splat_d(largest), sum = splat_d(0);
  for (int64_t i = 0; i < n; i += VD) {
    vd e = keep_d(exp_d((widen(load_h(x + i)) - shift) * k), n - i);
    store_d(p + i, e);
    sum += e;
  }
  vd each = splat_d(1 / sum_d(sum));
  for (int64_t i = 0; i < n; i += VD)
    store_d(p + i, load_d(p + i) * each);
}

/* As correlate(), of probabilities in double. */
static correlation correlate_d(const double *p, const double *q, const float *s, double mean, double inverse,
                               int64_t n) {
  vd aa = splat_d(0), bb = aa, ab = aa, pa = aa, pb = aa, each = splat_d(1 / (double)n);
  for (int64_t i = 0; i < n; i += VD) {
    vd v = load_d(p + i), a = keep_d(v - each, n - i), b = keep_d(load_d(q + i) - each, n - i),
       px = v * ((widen(load_h(s + i)) - mean) * inverse);
    aa += a * a;
    bb += b * b;
    ab += a * b;
    pa += px * a;
    pb += px * b;
  }
  return (correlation){sum_d(aa), sum_d(bb), sum_d(ab), sum_d(pa), sum_d(pb)};
}

/* g += p (ca (p - 1/n) + cb (q - 1/n)) */
static void add_correlation_d(float *g, const double *p, const double *q, double ca, double cb, int64_t n) {
  double each = 1 / (double)n;
  for (int64_t i = 0; i < n; i++)
    g[i] += (float)(p[i] * (ca * (p[i] - each) + cb * (q[i] - each)));
}

/* ---- DIST ---- */
/* Whether the deviation is too small for a correlation. squares: sum of n squared deviations. */
static inline int flat(double squares, double n, double largest) {
  return sqrt(squares / n) <= CMKD_DEGENERATE * largest;
}

/* out (ld): log softmax(x / T) (n), then zeros. */
static void log_softmax_d(const float *x, int64_t n, int64_t ld, double T, double *out) {
  double k = 1 / T;
  float hi = x[0];
  for (int64_t i = 1; i < n; i++)
    hi = x[i] > hi ? x[i] : hi;
  vd shift = splat_d(hi), sum = splat_d(0);
  for (int64_t i = 0; i < n; i += VD) {
    vd d = (widen(load_h(x + i)) - shift) * k;
    sum += keep_d(exp_d(d), n - i);
    store_d(out + i, d);
  }
  vd z = splat_d(log(sum_d(sum)));
  for (int64_t i = 0; i < n; i += VD)
    store_d(out + i, load_d(out + i) - z);
  for (int64_t i = n; i < ld; i++)
    out[i] = 0;
}

/* First pass, one row: job->p, job->q = logarithms of the softened probabilities of student and teacher. */
static void dist_load(const cmkd_loss_job *job, int64_t row, const float *s, const float *t) {
  log_softmax_d(s, job->batch->classes, job->ld, job->dist->T, job->p + row * job->ld);
  log_softmax_d(t, job->batch->classes, job->ld, job->dist->T, job->q + row * job->ld);
}

/* Second pass, VD columns at a time. job->p, job->q become probabilities p^, q^ divided by the column's largest.
 * job->column, row by row: (0) the column's largest p, (1) its largest q, (2..4) coefficients of the gradient: with the
 * scaled probabilities, largest p * d(1 - rho)/dp = (2) p^ + (3) q^ + (4). */
static void dist_columns(const cmkd_loss_job *job, int64_t first, int64_t last) {
  int64_t rows = job->batch->batch, ld = job->ld;
  double batch = (double)rows, T2 = job->dist->T * job->dist->T;
  for (int64_t c = first; c < last; c += VD) {
    vd hp = load_d(job->p + c), hq = load_d(job->q + c), mp = splat_d(0), mq = mp, aa = mp, bb = mp, ab = mp;
    for (int64_t r = 1; r < rows; r++)
      for (int i = 0; i < VD; i++) {
        double p = job->p[r * ld + c + i], q = job->q[r * ld + c + i];
        hp[i] = p > hp[i] ? p : hp[i];
        hq[i] = q > hq[i] ? q : hq[i];
      }
    for (int64_t r = 0; r < rows; r++) {
      vd p = exp_d(load_d(job->p + r * ld + c) - hp), q = exp_d(load_d(job->q + r * ld + c) - hq);
      store_d(job->p + r * ld + c, p);
      store_d(job->q + r * ld + c, q);
      mp += p;
      mq += q;
    }
    mp /= splat_d(batch);
    mq /= splat_d(batch);
    for (int64_t r = 0; r < rows; r++) {
      vd a = load_d(job->p + r * ld + c) - mp, b = load_d(job->q + r * ld + c) - mq;
      aa += a * a;
      bb += b * b;
      ab += a * b;
    }
    vd sp = exp_d(hp), sq = exp_d(hq);
    store_d(job->column + c, sp);
    store_d(job->column + ld + c, sq);
    for (int i = 0; i < VD; i++) {
      double value = 0, cp = 0, cq = 0;
      if (rows > 1 && sp[i] >= CMKD_DIST_TINY && sq[i] >= CMKD_DIST_TINY && !flat(aa[i], batch, 1) &&
          !flat(bb[i], batch, 1)) {
        double na = sqrt(aa[i]), nb = sqrt(bb[i]), rho = ab[i] / (na * nb);
        value = T2 * (1 - rho);
        cp = rho / aa[i];
        cq = -1 / (na * nb);
      }
      job->column_value[c + i] = value;
      job->column[2 * ld + c + i] = cp;
      job->column[3 * ld + c + i] = cq;
      job->column[4 * ld + c + i] = -cp * mp[i] - cq * mq[i];
    }
  }
}

/* Last pass, one row: T^2 (1 - rho) of its probabilities into *inter, its gradient (columns included) added to g.
 * Leaves no row of job->q as it was. */
static void dist_row(const cmkd_loss_job *job, const cmkd_loss_term *term, int64_t row, double *inter, float *g) {
  int64_t n = job->batch->classes, ld = job->ld;
  double *p = job->p + row * ld, *q = job->q + row * ld, T = term->T, N = (double)n, ca = 0, cb = 0,
         per_row = 1 / (double)job->batch->batch, dot = 0;
  const double *column = job->column;
  vd aa = splat_d(0), bb = aa, ab = aa, each = splat_d(1 / N), sum = aa;
  double hp = 0, hq = 0;
  for (int64_t i = 0; i < n; i++) {
    hp = fmax(hp, p[i] * column[i]);
    hq = fmax(hq, q[i] * column[ld + i]);
  }
  for (int64_t i = 0; i < n; i += VD) {
    vd a = keep_d(load_d(p + i) * load_d(column + i) - each, n - i),
       b = keep_d(load_d(q + i) * load_d(column + ld + i) - each, n - i);
    aa += a * a;
    bb += b * b;
    ab += a * b;
  }
  double A = sum_d(aa), Q = sum_d(bb);
  if (!flat(A, N, hp) && !flat(Q, N, hq)) {
    double na = sqrt(A), nb = sqrt(Q), rho = sum_d(ab) / (na * nb);
    *inter = T * T * (1 - rho);
    ca = term->beta * rho / A * per_row;
    cb = -term->beta / (na * nb) * per_row;
  }
  /* v = p u with u = ca (p - 1/n) + cb (q - 1/n) + gamma / C * u_column;  g = T^2 (v - p sum(v)) / T. v replaces q */
  double gamma = term->gamma / N;
  for (int64_t i = 0; i < n; i += VD) {
    vd ph = load_d(p + i), qh = load_d(q + i), pi = ph * load_d(column + i), qi = qh * load_d(column + ld + i);
    vd u = ph * (load_d(column + 2 * ld + i) * ph + load_d(column + 3 * ld + i) * qh + load_d(column + 4 * ld + i));
    vd v = keep_d(pi * (ca * (pi - each) + cb * (qi - each)) + gamma * u, n - i);
    sum += v;
    store_d(q + i, v);
  }
  dot = sum_d(sum);
  double scale = term->weight * T;
  for (int64_t i = 0; i < n; i++)
    g[i] += (float)(scale * (q[i] - p[i] * column[i] * dot));
}
#endif
