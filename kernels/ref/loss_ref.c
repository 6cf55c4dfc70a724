/* The losses in double, as their formulas read (docs/losses.md). One function a term; each adds weight * gradient / B
 * to `grad` and returns its parts as sums over rows. Will not do: speed, threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/half.h"
#include "kernels/loss.h"
#include "kernels/ref/loss_rank.h"

typedef struct work {
  int64_t B, C;
  const double *s, *t; /* (B, C) logits */
  const int32_t *y;    /* (B) */
  double *grad;        /* (B, C) */
  double epoch, smoothing, entropy_mean;
  const cmkd_loss_ref_rows *rows;
  double *v[8];              /* (C) each: scratch rows */
  int32_t *order, *block_of; /* (C) each */
} work;

/* log sum exp(x / T), over all classes but `skip` (-1: all) */
static double lse(const double *x, int64_t n, double T, int64_t skip) {
  double largest = -INFINITY, sum = 0;
  for (int64_t i = 0; i < n; i++)
    if (i != skip) largest = fmax(largest, x[i] / T);
  for (int64_t i = 0; i < n; i++)
    if (i != skip) sum += exp(x[i] / T - largest);
  return largest + log(sum);
}

static void softmax(const double *x, int64_t n, double T, int64_t skip, double *p) {
  double z = lse(x, n, T, skip);
  for (int64_t i = 0; i < n; i++)
    p[i] = i == skip ? 0 : exp(x[i] / T - z);
}

/* g_x = p * (u - <u, p>) / T */
static void softmax_vjp(const double *p, const double *u, int64_t n, double T, double *g) {
  double dot = 0;
  for (int64_t i = 0; i < n; i++)
    dot += u[i] * p[i];
  for (int64_t i = 0; i < n; i++)
    g[i] = p[i] * (u[i] - dot) / T;
}

static void term_ce(const work *w, const cmkd_loss_term *term, double part[2]) {
  double *p = w->v[0], e = w->smoothing, C = (double)w->C, scale = term->weight / (double)w->B;
  for (int64_t r = 0; r < w->B; r++) {
    const double *s = w->s + r * w->C;
    double z = lse(s, w->C, 1, -1), mean = 0;
    softmax(s, w->C, 1, -1, p);
    for (int64_t i = 0; i < w->C; i++)
      mean += s[i] / C;
    part[0] += (1 - e) * (z - s[w->y[r]]) + (e > 0 ? e * (z - mean) : 0);
    for (int64_t i = 0; i < w->C; i++)
      w->grad[r * w->C + i] += scale * (p[i] - e / C - (i == w->y[r] ? 1 - e : 0));
  }
}

static void term_kd(const work *w, const cmkd_loss_term *term, double part[2]) {
  double *p = w->v[0], *q = w->v[1], T = term->T, scale = term->weight / (double)w->B;
  for (int64_t r = 0; r < w->B; r++) {
    const double *s = w->s + r * w->C, *t = w->t + r * w->C;
    double zs = lse(s, w->C, T, -1), zt = lse(t, w->C, T, -1);
    softmax(s, w->C, T, -1, p);
    softmax(t, w->C, T, -1, q);
    for (int64_t i = 0; i < w->C; i++)
      part[0] += T * T * q[i] * (t[i] / T - zt - s[i] / T + zs);
    for (int64_t i = 0; i < w->C; i++)
      w->grad[r * w->C + i] += scale * T * (p[i] - q[i]);
  }
}

static void term_dkd(const work *w, const cmkd_loss_term *term, double part[2]) {
  double *p = w->v[0], *q = w->v[1], T = term->T, scale = cmkd_term_weight(term, w->epoch) / (double)w->B;
  for (int64_t r = 0; r < w->B; r++) {
    const double *s = w->s + r * w->C, *t = w->t + r * w->C;
    int64_t y = w->y[r];
    double zs = lse(s, w->C, T, -1), zt = lse(t, w->C, T, -1), rest_s = lse(s, w->C, T, y), rest_t = lse(t, w->C, T, y);
    double py = exp(s[y] / T - zs), qy = exp(t[y] / T - zt), pn = exp(rest_s - zs),
           qn = exp(rest_t - zt); /* target and the rest */
    double difference = py < .5 ? py - qy : qn - pn;
    part[0] += T * T * (qy * (t[y] / T - zt - s[y] / T + zs) + qn * (rest_t - zt - rest_s + zs));
    softmax(s, w->C, T, y, p);
    softmax(t, w->C, T, y, q);
    for (int64_t i = 0; i < w->C; i++)
      if (i != y) part[1] += T * T * q[i] * (t[i] / T - rest_t - s[i] / T + rest_s);
    for (int64_t i = 0; i < w->C; i++) {
      double target = T * difference * (i == y ? 1 : -p[i]), nontarget = i == y ? 0 : T * (p[i] - q[i]);
      w->grad[r * w->C + i] += scale * (term->alpha * target + term->beta * nontarget);
    }
  }
}

static void term_nkd(const work *w, const cmkd_loss_term *term, double part[2]) {
  double *p = w->v[0], *ph = w->v[1], *qh = w->v[2], T = term->T, scale = term->weight / (double)w->B;
  for (int64_t r = 0; r < w->B; r++) {
    const double *s = w->s + r * w->C, *t = w->t + r * w->C;
    int64_t y = w->y[r];
    double zs = lse(s, w->C, 1, -1), qy = exp(t[y] - lse(t, w->C, 1, -1)), rest_s = lse(s, w->C, T, y);
    softmax(s, w->C, 1, -1, p);
    softmax(s, w->C, T, y, ph);
    softmax(t, w->C, T, y, qh);
    part[0] += qy * (zs - s[y]);
    for (int64_t i = 0; i < w->C; i++)
      if (i != y) part[1] += T * T * qh[i] * (rest_s - s[i] / T);
    for (int64_t i = 0; i < w->C; i++)
      w->grad[r * w->C + i] += scale * (qy * (p[i] - (i == y)) + term->gamma * (i == y ? 0 : T * (ph[i] - qh[i])));
  }
}

/* n probabilities `step` apart: whether their deviation is too small for a correlation */
static int flat(const double *x, int64_t n, int64_t step) {
  double mean = 0, squares = 0, largest = 0;
  for (int64_t i = 0; i < n; i++) {
    mean += x[i * step] / (double)n;
    largest = fmax(largest, x[i * step]);
  }
  for (int64_t i = 0; i < n; i++)
    squares += (x[i * step] - mean) * (x[i * step] - mean);
  return largest < CMKD_DIST_TINY || sqrt(squares / (double)n) <= CMKD_DEGENERATE * largest;
}

static cmkd_status term_dist(const work *w, const cmkd_loss_term *term, double part[2], cmkd_error *err) {
  int64_t B = w->B, C = w->C;
  double T = term->T, *memory = calloc((size_t)(3 * B * C + 3 * B), sizeof(double));
  if (!memory)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "loss: out of memory for %lld x %lld probabilities", (long long)B,
                     (long long)C);
  double *p = memory, *q = p + B * C, *u = q + B * C; /* (B, C) each */
  double *a = u + B * C, *b = a + B, *ub = b + B;     /* (B) each: one column */
  for (int64_t r = 0; r < B; r++) {
    softmax(w->s + r * C, C, T, -1, p + r * C);
    softmax(w->t + r * C, C, T, -1, q + r * C);
    if (flat(p + r * C, C, 1) || flat(q + r * C, C, 1)) continue;
    part[0] += T * T * cmkd_ref_one_minus_rho(p + r * C, q + r * C, C, w->v[0]);
    for (int64_t i = 0; i < C; i++)
      u[r * C + i] = term->beta * w->v[0][i] / (double)B;
  }
  for (int64_t i = 0; i < C && B > 1; i++) {
    if (flat(p + i, B, C) || flat(q + i, B, C)) continue;
    for (int64_t r = 0; r < B; r++) {
      a[r] = p[r * C + i];
      b[r] = q[r * C + i];
    }
    part[1] += T * T * cmkd_ref_one_minus_rho(a, b, B, ub) / (double)C *
               (double)B; /* a mean over columns; the caller divides by B */
    for (int64_t r = 0; r < B; r++)
      u[r * C + i] += term->gamma * ub[r] / (double)C;
  }
  for (int64_t r = 0; r < B; r++) {
    softmax_vjp(p + r * C, u + r * C, C, T, w->v[0]);
    for (int64_t i = 0; i < C; i++)
      w->grad[r * C + i] += term->weight * T * T * w->v[0][i];
  }
  free(memory);
  return CMKD_OK;
}

/* x = (x - mean) / sigma, or x itself */
static void standardise(const double *x, int64_t n, int zscore, double mean, double sigma, double *out) {
  for (int64_t i = 0; i < n; i++)
    out[i] = zscore ? (x[i] - mean) / sigma : x[i];
}

/* g_s = (g - mean(g) - x * mean(g * x)) / sigma */
static void zscore_vjp(const double *g, const double *x, int64_t n, double sigma, double *out) {
  double mean = 0, gx = 0;
  for (int64_t i = 0; i < n; i++) {
    mean += g[i] / (double)n;
    gx += g[i] * x[i] / (double)n;
  }
  for (int64_t i = 0; i < n; i++)
    out[i] = (g[i] - mean - x[i] * gx) / sigma;
}

/* One row of CMKD: 1 - rho of either kind and w_P, w_S times their gradient added to grad. */
static void cmkd_row(const work *w, const cmkd_loss_term *term, int64_t r, double wp, double ws, double scale,
                     double *pearson, double *spearman) {
  int64_t C = w->C;
  const double *s = w->s + r * C, *t = w->t + r * C;
  double *x = w->v[0], *xt = w->v[1], *p = w->v[2], *q = w->v[3], *u = w->v[4], *g = w->v[5], *sum = w->v[6],
         *rank = w->v[7];
  double ms, ss, mt, st;
  int degenerate = cmkd_ref_moments(s, C, &ms, &ss);
  degenerate |= cmkd_ref_moments(t, C, &mt, &st);
  *pearson = *spearman = 0;
  if (w->rows && w->rows->blocks) w->rows->blocks[r] = 0;
  if (degenerate) return;
  standardise(s, C, term->zscore, ms, ss, x);
  standardise(t, C, term->zscore, mt, st, xt);

  softmax(x, C, term->T, -1, p);
  softmax(xt, C, term->T, -1, q);
  *pearson = cmkd_ref_one_minus_rho(p, q, C, u);
  softmax_vjp(p, u, C, term->T, g);
  for (int64_t i = 0; i < C; i++)
    sum[i] = wp * g[i];

  double eps = term->kappa / (double)C, *theta = p, *hard = q;
  cmkd_ref_order(t, C, w->order);
  cmkd_ref_hard_rank(t, w->order, C, hard);
  for (int64_t i = 0; i < C; i++)
    theta[i] = x[i] / eps;
  cmkd_ref_order(s, C, w->order);
  int64_t blocks = cmkd_ref_soft_rank(theta, w->order, C, rank, w->block_of);
  *spearman = cmkd_ref_one_minus_rho(rank, hard, C, u);
  cmkd_ref_soft_rank_vjp(u, w->order, w->block_of, C, g);
  for (int64_t i = 0; i < C; i++)
    sum[i] += ws * g[i] / eps;

  if (term->zscore)
    zscore_vjp(sum, x, C, ss, g);
  else
    memcpy(g, sum, (size_t)C * sizeof *g);
  for (int64_t i = 0; i < C; i++)
    w->grad[r * C + i] += scale * g[i];

  if (!w->rows) return;
  if (w->rows->blocks) w->rows->blocks[r] = (int32_t)blocks;
  if (w->rows->order) memcpy(w->rows->order + r * C, w->order, (size_t)C * sizeof *w->order);
  if (w->rows->block_of) memcpy(w->rows->block_of + r * C, w->block_of, (size_t)C * sizeof *w->block_of);
}

static cmkd_status term_cmkd(const work *w, const cmkd_loss_term *term, double part[2], double *weighted,
                             double *blocks, cmkd_error *err) {
  int64_t B = w->B, C = w->C;
  double *entropy = malloc((size_t)B * sizeof *entropy), mean = 0;
  int32_t *count = malloc((size_t)B * sizeof *count);
  cmkd_loss_ref_rows rows = w->rows ? *w->rows : (cmkd_loss_ref_rows){0};
  if (!entropy || !count) {
    free(entropy);
    free(count);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "loss: out of memory for %lld rows", (long long)B);
  }
  int32_t *blocks_out = rows.blocks;
  rows.blocks = count;
  work local = *w;
  local.rows = &rows;
  for (int64_t r = 0; r < B; r++) {
    const double *t = w->t + r * C;
    double z = lse(t, C, 1, -1);
    entropy[r] = 0;
    for (int64_t i = 0; i < C; i++)
      entropy[r] += exp(t[i] - z) * (z - t[i]);
    mean += entropy[r] / (double)B;
  }
  if (!isnan(w->entropy_mean)) mean = w->entropy_mean;
  for (int64_t r = 0; r < B; r++) {
    double wp, ws, pearson, spearman;
    cmkd_gate_weights(term, cmkd_gate_easy(entropy[r], mean), &wp, &ws);
    cmkd_row(&local, term, r, wp, ws, term->weight / (double)B, &pearson, &spearman);
    part[0] += pearson;
    part[1] += spearman;
    *weighted += wp * pearson + ws * spearman;
    *blocks += (double)count[r] / (double)C;
    if (rows.entropy) rows.entropy[r] = entropy[r];
    if (rows.loss_pearson) rows.loss_pearson[r] = pearson;
    if (rows.loss_spearman) rows.loss_spearman[r] = spearman;
    if (rows.weight_pearson) rows.weight_pearson[r] = wp;
    if (rows.weight_spearman) rows.weight_spearman[r] = ws;
    if (blocks_out) blocks_out[r] = count[r];
  }
  free(entropy);
  free(count);
  return CMKD_OK;
}

static cmkd_status all_terms(const cmkd_loss *loss, const work *w, cmkd_loss_result *result, cmkd_error *err) {
  result->loss = 0;
  for (int k = 0; k < loss->terms; k++) {
    const cmkd_loss_term *term = &loss->term[k];
    double part[2] = {0, 0}, weighted = 0, blocks = 0, weight = cmkd_term_weight(term, w->epoch), B = (double)w->B;
    switch (term->kind) {
    case CMKD_TERM_CE:
      term_ce(w, term, part);
      weighted = part[0];
      break;
    case CMKD_TERM_KD:
      term_kd(w, term, part);
      weighted = part[0];
      break;
    case CMKD_TERM_DKD:
      term_dkd(w, term, part);
      weighted = term->alpha * part[0] + term->beta * part[1];
      break;
    case CMKD_TERM_NKD:
      term_nkd(w, term, part);
      weighted = part[0] + term->gamma * part[1];
      break;
    case CMKD_TERM_DIST:
      CMKD_TRY(term_dist(w, term, part, err));
      weighted = term->beta * part[0] + term->gamma * part[1];
      break;
    case CMKD_TERM_CMKD:
      CMKD_TRY(term_cmkd(w, term, part, &weighted, &blocks, err));
      result->blocks = blocks / B;
      break;
    }
    result->loss += weight * weighted / B;
    result->part[term->part] = part[0] / B;
    if (term->kind != CMKD_TERM_CE && term->kind != CMKD_TERM_KD) result->part[term->part + 1] = part[1] / B;
  }
  return CMKD_OK;
}

cmkd_status cmkd_loss_ref_double(const cmkd_loss *loss, const cmkd_loss_ref_batch *b, cmkd_loss_result *result,
                                 const cmkd_loss_ref_rows *rows, cmkd_error *err) {
  work w = {.B = b->batch,
            .C = b->classes,
            .s = b->student,
            .t = b->teacher,
            .y = b->labels,
            .grad = b->grad,
            .epoch = b->epoch,
            .smoothing = b->label_smoothing,
            .entropy_mean = b->entropy_mean,
            .rows = rows};
  *result = (cmkd_loss_result){.loss = NAN, .blocks = NAN, .bad_row = -1};
  double *memory = calloc((size_t)(8 * b->classes + (b->grad ? 0 : b->batch * b->classes)), sizeof *memory);
  int32_t *indices = calloc((size_t)(2 * b->classes), sizeof *indices);
  cmkd_status status = CMKD_OK;
  if (!memory || !indices)
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "loss: out of memory for %lld x %lld logits", (long long)b->batch,
                       (long long)b->classes);
  if (status == CMKD_OK) {
    for (int i = 0; i < 8; i++)
      w.v[i] = memory + i * b->classes;
    w.order = indices;
    w.block_of = indices + b->classes;
    if (!b->grad)
      w.grad = memory + 8 * b->classes;
    else
      memset(b->grad, 0, (size_t)(b->batch * b->classes) * sizeof *b->grad);
    status = all_terms(loss, &w, result, err);
  }
  free(memory);
  free(indices);
  return status;
}

static double teacher_logit(const cmkd_loss_batch *b, int64_t i) {
  if (b->teacher_dtype == CMKD_F16) return cmkd_half_to_float(((const uint16_t *)b->teacher)[i]);
  if (b->teacher_dtype == CMKD_BF16) return cmkd_bf16_to_float(((const uint16_t *)b->teacher)[i]);
  return ((const float *)b->teacher)[i];
}

/* Float buffers in and out, doubles between. Allocates; asks for no scratch. */
static cmkd_status eval(const cmkd_loss *loss, const cmkd_loss_batch *b, void *scratch, cmkd_loss_result *result,
                        cmkd_error *err) {
  (void)scratch;
  int64_t n = b->batch * b->classes;
  double *memory = malloc((size_t)n * 3 * sizeof *memory), *s = memory, *t = s + n, *g = t + n;
  if (!memory)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "loss: out of memory for %lld x %lld logits", (long long)b->batch,
                     (long long)b->classes);
  int64_t bad = -1;
  for (int64_t r = 0; r < b->batch && bad < 0; r++) {
    if (b->labels[r] < 0 || b->labels[r] >= b->classes) bad = r;
    for (int64_t i = r * b->classes; i < (r + 1) * b->classes; i++) {
      s[i] = b->student[i];
      t[i] = loss->needs_teacher ? teacher_logit(b, i) : 0;
      if (!isfinite(s[i]) || !isfinite(t[i])) bad = r;
    }
  }
  const cmkd_loss_ref_batch doubles = {.batch = b->batch,
                                       .classes = b->classes,
                                       .student = s,
                                       .teacher = t,
                                       .labels = b->labels,
                                       .grad = b->grad ? g : NULL,
                                       .epoch = b->epoch,
                                       .label_smoothing = b->label_smoothing,
                                       .entropy_mean = b->entropy_mean};
  cmkd_status status;
  if (bad >= 0)
    status = cmkd_loss_bad_row(b, bad, err);
  else
    status = cmkd_loss_ref_double(loss, &doubles, result, NULL, err);
  result->bad_row = bad;
  for (int64_t i = 0; status == CMKD_OK && b->grad && i < n; i++)
    b->grad[i] = (float)g[i];
  free(memory);
  return status;
}

static size_t no_scratch(const cmkd_loss *loss, int64_t batch, int64_t classes) {
  (void)loss;
  (void)batch;
  (void)classes;
  return 0;
}

const cmkd_loss_implementation cmkd_loss_ref = {"ref", no_scratch, eval};

cmkd_status cmkd_agreement_ref(int64_t C, const double *s, const double *t, double kappa, double *pearson,
                               double *spearman, double *blocks, cmkd_error *err) {
  double *memory = malloc((size_t)C * 4 * sizeof *memory), *rs = memory, *rt = rs + C, *theta = rt + C,
         *soft = theta + C, ms, ss, mt, st;
  int32_t *order = malloc((size_t)C * 2 * sizeof *order), *block_of = order + C;
  *pearson = *spearman = *blocks = 0;
  if (!memory || !order) {
    free(memory);
    free(order);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "agreement: out of memory for %lld classes", (long long)C);
  }
  int degenerate = cmkd_ref_moments(s, C, &ms, &ss);
  degenerate |= cmkd_ref_moments(t, C, &mt, &st);
  if (!degenerate) {
    *pearson = 1 - cmkd_ref_one_minus_rho(s, t, C, NULL);
    cmkd_ref_order(t, C, order);
    cmkd_ref_hard_rank(t, order, C, rt);
    cmkd_ref_order(s, C, order);
    cmkd_ref_hard_rank(s, order, C, rs);
    *spearman = 1 - cmkd_ref_one_minus_rho(rs, rt, C, NULL);
    for (int64_t i = 0; i < C; i++)
      theta[i] = (s[i] - ms) / ss * (double)C / kappa;
    *blocks = (double)cmkd_ref_soft_rank(theta, order, C, soft, block_of) / (double)C;
  }
  free(memory);
  free(order);
  return CMKD_OK;
}
