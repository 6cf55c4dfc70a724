/* One row's loss and gradient by one team, for any kind of row: short_row keeps logits and gradients in registers
 * (loss.cu), long_row in device memory (long_row.cu). Formulas: docs/losses.md; kernels/ref/loss_ref.c reads as they
 * do. Exponentials are float with a first-order correction of the argument's rounding; moments, theta, prefix sums and
 * every sum over a row are double.
 *
 * What a ROW offers, where k counts a thread's own items:
 *
 *   items()                   how many classes a thread holds
 *   at(k)                     class of its k-th one
 *   s(k), t(k)                the student's and the teacher's logit
 *   g(k)                      float &: gradient so far
 *   x(k)                      float &: gradient with respect to the standardised logits
 *   per(), position(k)        how many places of the sorted order a thread holds; its k-th one
 *   student_key(k)            the sorted key at position(k)
 *   twice(k)                  twice the teacher's rank of the class at position(k), after rank_teacher(), keep_ranks()
 *   put(k, v), spread_all()   adds v to x of the class at position(k)
 *   Y, P (C + 1), list, count memory for pooling */
#ifndef CMKD_KERNELS_CUDA_LOSS_ROW_H
#define CMKD_KERNELS_CUDA_LOSS_ROW_H
#include "kernels/cuda/loss/hull.h"
#include "kernels/cuda/loss/loss.h"
#include "kernels/cuda/loss/sort.h"

/* Rows in registers need everything inlined; rows in memory do not, and compile five times faster without. */
#ifndef ROW_FUNCTION
#define ROW_FUNCTION __device__
#endif

static __device__ __forceinline__ double exp_of(double a) {
  const float near = (float)a;
  return (double)expf(near) * (1.0 + (a - (double)near));
}

struct row_facts {
  double s_max, t_max;         /* largest logits */
  double s_rest, t_rest;       /* largest logits without the label's */
  double s_mean, t_mean;       /* only when wanted */
  double s_inverse, t_inverse; /* 1 / sigma; only when wanted */
  double s_label, t_label;
  bool bad, degenerate;
};

/* Largest logits, moments, and whether the row may be used at all. */
template <class ROW> ROW_FUNCTION row_facts look_at(ROW &row, const loss_args &a, int64_t r) {
  row_facts f;
  const int C = a.C, label = a.labels ? a.labels[r] : 0, y = label >= 0 && label < C ? label : 0;
  double top[7] = {-HUGE_VAL, -HUGE_VAL, -HUGE_VAL, -HUGE_VAL, -HUGE_VAL, -HUGE_VAL, (double)(y != label)};
#pragma unroll
  for (int k = 0; k < row.items(); k++) {
    const int c = row.at(k);
    if (c >= C) continue;
    const double s = row.s(k), t = row.t(k);
    top[0] = max_op::of(top[0], s);
    top[1] = max_op::of(top[1], t);
    if (c != y) {
      top[2] = max_op::of(top[2], s);
      top[3] = max_op::of(top[3], t);
    }
    top[4] = max_op::of(top[4], -s);
    top[5] = max_op::of(top[5], -t);
    if (!(s - s == 0 && t - t == 0)) top[6] = 1; /* NaN or Inf */
  }
  row.tm.maximum(top);
  f.bad = top[6] > 0;
  f.s_max = top[0];
  f.t_max = top[1];
  f.s_rest = top[2];
  f.t_rest = top[3];
  f.s_label = load_float(a.student, a.student_dtype, r * C + y);
  f.t_label = a.teacher ? load_float(a.teacher, a.teacher_dtype, r * C + y) : 0;
  f.degenerate = true;
  f.s_mean = f.t_mean = f.s_inverse = f.t_inverse = 0;
  if (!a.moments || f.bad) return f;
  double sum[2] = {0, 0}, square[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < row.items(); k++)
    if (row.at(k) < C) {
      sum[0] += row.s(k);
      sum[1] += row.t(k);
    }
  row.tm.sum(sum);
  f.s_mean = sum[0] / C;
  f.t_mean = sum[1] / C;
#pragma unroll
  for (int k = 0; k < row.items(); k++)
    if (row.at(k) < C) {
      const double s = row.s(k) - f.s_mean, t = row.t(k) - f.t_mean;
      square[0] += s * s;
      square[1] += t * t;
    }
  row.tm.sum(square);
  const double s_sigma = sqrt(square[0] / C), t_sigma = sqrt(square[1] / C);
  f.degenerate = s_sigma <= CMKD_DEGENERATE * fmax(1.0, fmax(top[0], top[4])) ||
                 t_sigma <= CMKD_DEGENERATE * fmax(1.0, fmax(top[1], top[5]));
  f.s_inverse = 1 / s_sigma;
  f.t_inverse = 1 / t_sigma;
  return f;
}

/* sum exp((s - s_top) * scale), the same of t; without class `skip` (-1: all). */
template <class ROW> ROW_FUNCTION void exp_sums(ROW &row, int C, double s_scale, double t_scale, double s_top,
                                                double t_top, int skip, double (&sum)[2]) {
  sum[0] = sum[1] = 0;
#pragma unroll
  for (int k = 0; k < row.items(); k++) {
    const int c = row.at(k);
    if (c >= C || c == skip) continue;
    sum[0] += exp_of((row.s(k) - s_top) * s_scale);
    if (t_scale > 0) sum[1] += exp_of((row.t(k) - t_top) * t_scale);
  }
  row.tm.sum(sum);
}

/* Entropy of softmax(t). */
template <class ROW> ROW_FUNCTION double entropy_of(ROW &row, int C, double t_max) {
  double sum[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < row.items(); k++)
    if (row.at(k) < C) {
      const double d = row.t(k) - t_max, e = exp_of(d);
      sum[0] += e;
      sum[1] += e * d;
    }
  row.tm.sum(sum);
  return log(sum[0]) - sum[1] / sum[0];
}

template <class ROW> ROW_FUNCTION double row_ce(ROW &row, const loss_args &a, const row_facts &f, int y, double scale) {
  double sum[2];
  exp_sums(row, a.C, 1.0, 0.0, f.s_max, 0.0, -1, sum);
  const double inverse = 1 / sum[0], z = f.s_max + log(sum[0]), e = a.smoothing;
  if (scale != 0)
#pragma unroll
    for (int k = 0; k < row.items(); k++) {
      const int c = row.at(k);
      if (c < a.C) row.g(k) += (float)(scale * (exp_of(row.s(k) - f.s_max) * inverse - e / a.C - (c == y ? 1 - e : 0)));
    }
  return (1 - e) * (z - f.s_label) + (e > 0 ? e * (z - f.s_mean) : 0);
}

/* KD: y = -1, over all classes. With a label: over the others (DKD's second part). Returns T^2 KL(q || p); gradient T
 * (p - q). */
template <class ROW>
ROW_FUNCTION double row_kl(ROW &row, const loss_args &a, const row_facts &f, double T, int y, double scale) {
  const double s_top = y < 0 ? f.s_max : f.s_rest, t_top = y < 0 ? f.t_max : f.t_rest;
  double z[2], kl[1] = {0};
  exp_sums(row, a.C, 1 / T, 1 / T, s_top, t_top, y, z);
  const double log_ratio = log(z[0]) - log(z[1]);
#pragma unroll
  for (int k = 0; k < row.items(); k++) {
    const int c = row.at(k);
    if (c >= a.C || c == y) continue;
    const double s = (row.s(k) - s_top) / T, t = (row.t(k) - t_top) / T, p = exp_of(s) / z[0], q = exp_of(t) / z[1];
    kl[0] += q * (t - s + log_ratio);
    row.g(k) += (float)(scale * T * (p - q));
  }
  row.tm.sum(kl);
  return T * T * kl[0];
}

/* DKD's target part: the two-way split (label, the others) at T. */
template <class ROW>
ROW_FUNCTION double row_dkd_target(ROW &row, const loss_args &a, const row_facts &f, double T, int y, double scale) {
  double rest[2];
  exp_sums(row, a.C, 1 / T, 1 / T, f.s_rest, f.t_rest, y, rest);
  const double s_rest = f.s_rest / T + log(rest[0]), t_rest = f.t_rest / T + log(rest[1]), s_y = f.s_label / T,
               t_y = f.t_label / T;
  const double s_high = fmax(s_rest, s_y), t_high = fmax(t_rest, t_y);
  const double zs = s_high + log(exp(s_rest - s_high) + exp(s_y - s_high)),
               zt = t_high + log(exp(t_rest - t_high) + exp(t_y - t_high));
  const double py = exp(s_y - zs), qy = exp(t_y - zt), pn = exp(s_rest - zs), qn = exp(t_rest - zt);
  const double difference = py < .5 ? py - qy : qn - pn; /* the side that does not cancel */
#pragma unroll
  for (int k = 0; k < row.items(); k++) {
    const int c = row.at(k);
    if (c < a.C)
      row.g(k) += (float)(scale * T * difference * (c == y ? 1.0 : -exp_of((row.s(k) - f.s_rest) / T) / rest[0]));
  }
  return T * T * (qy * (t_y - zt - s_y + zs) + qn * (t_rest - zt - s_rest + zs));
}

/* NKD: part[0] target, part[1] the others. */
template <class ROW> ROW_FUNCTION void row_nkd(ROW &row, const loss_args &a, const row_facts &f,
                                               const cmkd_loss_term &term, int y, double scale, double part[2]) {
  const double T = term.T;
  double z[2], rest[2], cross[1] = {0};
  exp_sums(row, a.C, 1.0, 1.0, f.s_max, f.t_max, -1, z);
  exp_sums(row, a.C, 1 / T, 1 / T, f.s_rest, f.t_rest, y, rest);
  const double qy = exp(f.t_label - f.t_max) / z[1], log_rest = log(rest[0]);
#pragma unroll
  for (int k = 0; k < row.items(); k++) {
    const int c = row.at(k);
    if (c >= a.C) continue;
    double g = qy * (exp_of(row.s(k) - f.s_max) / z[0] - (c == y));
    if (c != y) {
      const double s = (row.s(k) - f.s_rest) / T, p = exp_of(s) / rest[0],
                   q = exp_of((row.t(k) - f.t_rest) / T) / rest[1];
      cross[0] += q * (log_rest - s);
      g += term.gamma * T * (p - q);
    }
    row.g(k) += (float)(scale * g);
  }
  row.tm.sum(cross);
  part[0] = qy * (f.s_max + log(z[0]) - f.s_label);
  part[1] = T * T * cross[0];
}

/* 1 - rho of softmax(s * s_scale) and softmax(t * t_scale); adds weight * d/ds' * inverse_T to x (STANDARD) or g, where
 * softmax's argument is s' / T. <u, p> is 0, because u is orthogonal to the centred p and to 1. `flat`: DIST's rule for
 * rows without deviation. */
template <bool STANDARD, class ROW> ROW_FUNCTION double row_pearson(ROW &row, int C, const row_facts &f, double s_scale,
                                                                    double t_scale, double inverse_T, bool flat_rule,
                                                                    double weight) {
  double z[2], m[3] = {0, 0, 0};
  exp_sums(row, C, s_scale, t_scale, f.s_max, f.t_max, -1, z);
  const double mean = 1.0 / C, s_inverse = 1 / z[0], t_inverse = 1 / z[1];
#pragma unroll
  for (int k = 0; k < row.items(); k++)
    if (row.at(k) < C) {
      const double p = exp_of((row.s(k) - f.s_max) * s_scale) * s_inverse - mean,
                   q = exp_of((row.t(k) - f.t_max) * t_scale) * t_inverse - mean;
      m[0] += p * p;
      m[1] += q * q;
      m[2] += p * q;
    }
  row.tm.sum(m);
  const double np = sqrt(m[0]), nq = sqrt(m[1]), root = sqrt((double)C);
  if (!(np > 0 && nq > 0)) return 0;
  if (flat_rule && (np <= CMKD_DEGENERATE * root * s_inverse || nq <= CMKD_DEGENERATE * root * t_inverse)) return 0;
  const double rho = m[2] / (np * nq), cp = rho / m[0], cq = 1 / (np * nq);
  if (weight != 0)
#pragma unroll
    for (int k = 0; k < row.items(); k++)
      if (row.at(k) < C) {
        const double p = exp_of((row.s(k) - f.s_max) * s_scale) * s_inverse,
                     q = exp_of((row.t(k) - f.t_max) * t_scale) * t_inverse;
        const float g = (float)(weight * inverse_T * p * (cp * (p - mean) - cq * (q - mean)));
        if (STANDARD)
          row.x(k) += g;
        else
          row.g(k) += g;
      }
  return 1 - rho;
}

/* Blocks of the soft rank of (s - center) * scale, sorted; leaves prefix sums in row.Y and the blocks in row.list. */
template <class ROW> ROW_FUNCTION int pool_row(ROW &row, int C, double center, double scale) {
  const double half = .5 * (C - 1); /* w is centred too: position i has w = half - i */
  double sum = 0;
#pragma unroll
  for (int k = 0; k < row.per(); k++) {
    const int i = row.position(k);
    if (i < C) sum += (key_logit(row.student_key(k)) - center) * scale - (half - i);
  }
  double Y = row.tm.before(sum);
  if (row.tm.rank == 0) row.Y[0] = 0;
#pragma unroll
  for (int k = 0; k < row.per(); k++) {
    const int i = row.position(k);
    if (i < C) row.Y[i + 1] = Y += (key_logit(row.student_key(k)) - center) * scale - (half - i);
  }
  row.tm.sync();
  return hull_build(row.tm, row.Y, C, row.per(), row.list, row.count);
}

/* The block around a position, and what its members share. Walks forward with the position. */
template <class I> struct block_walk {
  const I *list = nullptr;
  int blocks = 0, index = 0, first = 0, stop = 0, C = 0;
  __device__ __forceinline__ void start(const I *l, int m, int n, int position) {
    list = l;
    blocks = m;
    C = n;
    index = hull_find(l, m, position);
    bounds();
  }
  __device__ __forceinline__ void bounds() {
    first = (int)list[index];
    stop = index + 1 < blocks ? (int)list[index + 1] : C;
  }
  /* true when `position` is in another block than before */
  __device__ __forceinline__ bool reach(int position) {
    if (position < stop) return false;
    index++;
    bounds();
    return true;
  }
};

/* 1 - rho of the soft rank and the teacher's rank; adds weight * gradient with respect to the standardised logits to x.
 * scale = 1 / (sigma eps) or 1 / eps; inverse_eps = C / kappa. Needs student keys and the teacher's ranks kept. */
template <class ROW> ROW_FUNCTION double row_spearman(ROW &row, int C, double center, double scale, double inverse_eps,
                                                      double weight, int *blocks) {
  const int m = *blocks = pool_row(row, C, center, scale);
  const double half = .5 * (C - 1), middle = .5 * (C + 1);
  block_walk<typename ROW::index_t> walk;
  double sums[3] = {0, 0, 0}, ranks = 0, mean_y = 0;
  const int begin = row.position(0);
  if (begin < C) {
    walk.start(row.list, m, C, begin);
    mean_y = (row.Y[walk.stop] - row.Y[walk.first]) / (walk.stop - walk.first);
  }
#pragma unroll
  for (int k = 0; k < row.per(); k++) {
    const int i = row.position(k);
    if (i >= C) continue;
    if (walk.reach(i)) mean_y = (row.Y[walk.stop] - row.Y[walk.first]) / (walk.stop - walk.first);
    const double b = .5 * row.twice(k) - middle;
    const double r = walk.stop - walk.first == 1
                         ? half - i
                         : (key_logit(row.student_key(k)) - center) * scale - mean_y; /* centred soft rank */
    sums[0] += r * r;
    sums[1] += b * b;
    sums[2] += r * b;
    ranks += row.twice(k);
  }
  row.tm.sum(sums);
  double P = row.tm.before(ranks); /* integers: exact */
  if (row.tm.rank == 0) row.P[0] = 0;
#pragma unroll
  for (int k = 0; k < row.per(); k++)
    if (row.position(k) < C) row.P[row.position(k) + 1] = (typename ROW::prefix_t)(P += row.twice(k));
  row.tm.sync();
  const double nr = sqrt(sums[0]), nb = sqrt(sums[1]);
  if (!(nr > 0 && nb > 0)) return 0;
  const double rho = sums[2] / (nr * nb), cr = rho / sums[0], cb = 1 / (nr * nb);
  if (weight != 0) {
    double mean_w = 0, mean_b = 0;
    bool fresh = true;
    if (begin < C) walk.start(row.list, m, C, begin);
#pragma unroll
    for (int k = 0; k < row.per(); k++) {
      const int i = row.position(k);
      if (i >= C) continue;
      if (walk.reach(i) || fresh) {
        const double n = walk.stop - walk.first;
        mean_y = (row.Y[walk.stop] - row.Y[walk.first]) / n;
        mean_b = .5 * ((double)row.P[walk.stop] - (double)row.P[walk.first]) / n - middle;
        mean_w = half - .5 * (walk.first + walk.stop - 1);
        fresh = false;
      }
      double g = 0;
      if (walk.stop - walk.first > 1) {
        const double r = (key_logit(row.student_key(k)) - center) * scale - mean_y, b = .5 * row.twice(k) - middle;
        g = weight * inverse_eps * (cr * (r - mean_w) - cb * (b - mean_b));
      }
      row.put(k, (float)g);
    }
    row.spread_all();
  }
  return 1 - rho;
}

/* CMKD of one row. Returns its weighted sum; part[0] Pearson, part[1] Spearman. */
template <class ROW> ROW_FUNCTION double row_cmkd(ROW &row, const loss_args &a, const row_facts &f,
                                                  const cmkd_loss_term &term, double entropy, double mean, double scale,
                                                  double part[2], int *blocks) {
  part[0] = part[1] = 0;
  if (f.degenerate) return 0;
  double wp, ws;
  cmkd_gate_weights(&term, cmkd_gate_easy(entropy, mean), &wp, &ws);
  const double inverse_eps = a.C / term.kappa, s_unit = term.zscore ? f.s_inverse : 1,
               t_unit = term.zscore ? f.t_inverse : 1;
#pragma unroll
  for (int k = 0; k < row.items(); k++)
    if (row.at(k) < a.C) row.x(k) = 0;
  part[0] = row_pearson<true>(row, a.C, f, s_unit / term.T, t_unit / term.T, 1 / term.T, false, wp);
  row.rank_teacher();
  row.sort_student();
  row.keep_ranks();
  part[1] = row_spearman(row, a.C, f.s_mean, s_unit * inverse_eps, inverse_eps, ws, blocks);
  double v[2] = {0, 0};
  if (term.zscore) {
#pragma unroll
    for (int k = 0; k < row.items(); k++)
      if (row.at(k) < a.C) {
        v[0] += row.x(k);
        v[1] += row.x(k) * ((row.s(k) - f.s_mean) * s_unit);
      }
    row.tm.sum(v);
  }
#pragma unroll
  for (int k = 0; k < row.items(); k++)
    if (row.at(k) < a.C) {
      const double x = (row.s(k) - f.s_mean) * s_unit,
                   g = term.zscore ? (row.x(k) - v[0] / a.C - x * (v[1] / a.C)) * s_unit : row.x(k);
      row.g(k) += (float)(scale * g);
    }
  return wp * part[0] + ws * part[1];
}

/* All terms of row r. Writes the row's figures to a.rows: weighted loss, blocks / C, then the parts. */
template <class ROW> ROW_FUNCTION void row_loss(ROW &row, const loss_args &a, int64_t r) {
  const row_facts f = look_at(row, a, r);
  double *out = a.rows + r * a.stride;
  if (f.bad) { /* the gradient is defined, the result names the row */
#pragma unroll
    for (int k = 0; k < row.items(); k++)
      if (row.at(k) < a.C) row.g(k) = 0;
    if (row.tm.rank == 0) {
      atomicMax(&a.state->bad, 0x7FFFFFFF - (int)r);
      for (int i = 0; i < a.stride; i++)
        out[i] = 0;
      if (a.lse) a.lse[2 * r] = a.lse[2 * r + 1] = 0;
    }
    return;
  }
  const int y = a.labels[r];
  double total = 0;
  int blocks = 0;
#pragma unroll
  for (int k = 0; k < row.items(); k++)
    if (row.at(k) < a.C) row.g(k) = 0;
  for (int n = 0; n < a.terms; n++) {
    const cmkd_loss_term &term = a.term[n];
    double part[2] = {0, 0}, weighted = 0;
    const double weight = a.epoch ? cmkd_term_weight(&a.term[n], *a.epoch) : a.weight[n], scale = weight / (double)a.B;
    bool two = true;
    switch (term.kind) {
    case CMKD_TERM_CE:
      weighted = part[0] = row_ce(row, a, f, y, scale);
      two = false;
      break;
    case CMKD_TERM_KD:
      weighted = part[0] = row_kl(row, a, f, term.T, -1, scale);
      two = false;
      break;
    case CMKD_TERM_DKD:
      part[0] = row_dkd_target(row, a, f, term.T, y, scale * term.alpha);
      part[1] = row_kl(row, a, f, term.T, y, scale * term.beta);
      weighted = term.alpha * part[0] + term.beta * part[1];
      break;
    case CMKD_TERM_NKD:
      row_nkd(row, a, f, term, y, scale, part);
      weighted = part[0] + term.gamma * part[1];
      break;
    case CMKD_TERM_DIST: { /* columns: dist.cu */
      const double T = term.T, square = T * T;
      part[0] = square * row_pearson<false>(row, a.C, f, 1 / T, 1 / T, 1 / T, true, scale * square * term.beta);
      weighted = term.beta * part[0];
      if (a.lse) {
        double z[2];
        exp_sums(row, a.C, 1 / T, 1 / T, f.s_max, f.t_max, -1, z);
        if (row.tm.rank == 0) {
          a.lse[2 * r] = f.s_max / T + log(z[0]);
          a.lse[2 * r + 1] = f.t_max / T + log(z[1]);
        }
      }
      break;
    }
    case CMKD_TERM_CMKD: {
      const double entropy = term.gate == CMKD_GATE_OFF ? 0 : a.entropy ? a.entropy[r] : entropy_of(row, a.C, f.t_max);
      weighted =
          row_cmkd(row, a, f, term, entropy, a.entropy ? a.state->entropy_mean : a.entropy_mean, scale, part, &blocks);
      break;
    }
    }
    total += weight * weighted;
    if (row.tm.rank == 0) {
      out[2 + term.part] = part[0];
      if (two) out[3 + term.part] = part[1];
    }
  }
  if (row.tm.rank == 0) {
    out[0] = total;
    out[1] = (double)blocks / a.C;
  }
}
/* The agreement figures of row r, into a.rows (B, 3): Pearson of the logits, Spearman of the ranks, soft-rank blocks /
 * C. Nothing for a row that is degenerate or not finite. */
template <class ROW> ROW_FUNCTION void row_agreement(ROW &row, const loss_args &a, int64_t r, double kappa) {
  const row_facts f = look_at(row, a, r);
  double *out = a.rows + r * 3;
  if (f.bad || f.degenerate) {
    if (row.tm.rank == 0) out[0] = out[1] = out[2] = 0;
    return;
  }
  double v[3] = {0, 0, 0}, m[3] = {0, 0, 0};
#pragma unroll
  for (int k = 0; k < row.items(); k++)
    if (row.at(k) < a.C) {
      const double s = row.s(k) - f.s_mean, t = row.t(k) - f.t_mean;
      v[0] += s * s;
      v[1] += t * t;
      v[2] += s * t;
    }
  row.tm.sum(v);
  row.rank_teacher();
  row.sort_student();
  row.keep_ranks();
  row.rank_student();
  const int middle = a.C + 1; /* twice the mean rank */
#pragma unroll
  for (int k = 0; k < row.per(); k++)
    if (row.position(k) < a.C) {
      const double s = row.own(k) - middle, t = row.twice(k) - middle;
      m[0] += s * s;
      m[1] += t * t;
      m[2] += s * t;
    }
  row.tm.sum(m);
  const int blocks = pool_row(row, a.C, f.s_mean, f.s_inverse * a.C / kappa);
  if (row.tm.rank == 0) {
    out[0] = v[2] / sqrt(v[0] * v[1]);
    out[1] = m[0] > 0 && m[1] > 0 ? m[2] / sqrt(m[0] * m[1]) : 1; /* ties everywhere: 1 - 0, as the reference has it */
    out[2] = (double)blocks / a.C;
  }
}
#endif
