/* The row functions of the losses for one instruction set: included by rows_base.c (plain x86-64), rows_avx2.c (-mavx2
 * -mfma) and rows_avx512.c (-mavx512*), which define LOSS_KERNELS_TABLE and LOSS_KERNELS_NAME. float_pass.h,
 * double_pass.h, soft_rank.h and sort.h are parts of it. Every term adds its gradient / B to a padded row, then the row
 * is copied out. Sums over rows are loss.c's. */
#include <stddef.h>
#include "kernels/cpu/loss/double_pass.h"
#include "kernels/cpu/loss/float_pass.h"
#include "kernels/cpu/loss/soft_rank.h"
#include "kernels/cpu/loss/sort.h"

/* One thread's memory for a group of rows. */
typedef struct work {
  int64_t n, ld;                /* classes; floats of a padded row */
  float *s, *t, *rank;          /* (group, ld) student, teacher, the teacher's centred ranks */
  float *e1, *es, *et, *g, *gs; /* (ld) exponentials at temperature 1 and T, gradient, Spearman's gradient */
  vi *keys;                     /* (n8, VF), n8 = n rounded up to 8 */
  int sorted;                   /* keys hold the group's rows in order; otherwise rows are sorted one by one */
  sorted_row row;               /* one row in order */
} work;

/* What arrays of `row` hold before lay_out_row fills them: the softmax of both sides where a row is nearly uniform, and
 * the two arrays of exact_order's radix sort. */
static inline double *softmax_s(const work *w) { return w->row.theta; }
static inline double *softmax_t(const work *w) { return w->row.prefix; }
static inline uint64_t *radix_a(const work *w) { return (uint64_t *)w->row.prefix; }
static inline uint64_t *radix_b(const work *w) { return (uint64_t *)w->row.prefix_b; }

/* Rows that are sorted together: one a lane; long ones alone, so that few of them still make work for many threads. */
static int group_of(int64_t n) { return n <= SORT_NETWORK ? VF : 1; }
/* The network's work is for all lanes: a few long rows are better off one by one. */
static int by_network(const work *w, int count) {
  return w->n <= SORT_FEW || (w->n <= SORT_NETWORK && count >= VF / 2);
}

/* Lays out w in memory (aligned to 64; NULL to learn the size alone). Returns the bytes. */
static size_t carve(void *memory, int64_t n, work *w) {
  const size_t ld = (size_t)row_floats(n), row = ld * sizeof(float), group = (size_t)group_of(n),
               numbers = (size_t)n + 2 + 2 * VD;
  cmkd_carver c = {(uintptr_t)memory};
  w->n = n;
  w->ld = (int64_t)ld;
  w->s = cmkd_carve(&c, group * row);
  w->t = cmkd_carve(&c, group * row);
  w->rank = cmkd_carve(&c, group * row);
  w->e1 = cmkd_carve(&c, row);
  w->es = cmkd_carve(&c, row);
  w->et = cmkd_carve(&c, row);
  w->g = cmkd_carve(&c, row);
  w->gs = cmkd_carve(&c, row);
  w->keys = cmkd_carve(&c, group > 1 ? ((size_t)n + 7) / 8 * 8 * sizeof(vi) : 0);
  w->row.theta = cmkd_carve(&c, numbers * sizeof(double));
  w->row.prefix = cmkd_carve(&c, numbers * sizeof(double));
  w->row.prefix_b = cmkd_carve(&c, numbers * sizeof(double));
  w->row.off_theta = cmkd_carve(&c, numbers * sizeof(float));
  w->row.off_b = cmkd_carve(&c, numbers * sizeof(float));
  w->row.index = cmkd_carve(&c, numbers * sizeof(int32_t));
  w->row.first = cmkd_carve(&c, numbers * sizeof(int32_t));
  return c.at - (uintptr_t)memory;
}

static size_t thread_scratch(int64_t classes) {
  work w;
  return carve(NULL, classes, &w);
}

/* Sorts `count` rows of a group, ld apart, by the network where that pays; others wait for order_row. Idle lanes repeat
 * the first. */
static void sort_group(work *w, const float *rows, const cmkd_row_stats *stats, int count) {
  w->sorted = by_network(w, count);
  if (!w->sorted) return;
  key_row lanes[VF];
  for (int lane = 0; lane < VF; lane++) {
    int from = lane < count ? lane : 0;
    lanes[lane] = (key_row){rows + from * w->ld, stats[from].min, stats[from].max};
  }
  make_keys(lanes, w->n, w->keys);
  sort_network(w->keys, (w->n + 7) / 8 * 8);
}

/* w->row.index: one row's classes in descending order, exactly. */
static void exact_order(work *w, const float *x) { sort_radix(x, w->n, radix_a(w), radix_b(w), w->row.index); }

/* w->row.index: the classes of the group's row `lane` in descending order, but for logits that share a key. */
static void order_row(work *w, const float *x, int lane) {
  if (w->sorted)
    take_lane((const int32_t *)w->keys, lane, w->n, w->row.index);
  else
    exact_order(w, x);
}

/* Repairs that order where logits shared a key. */
static void put_in_order(work *w, const float *x) {
  if (!repair_order(x, w->n, w->row.index)) exact_order(w, x);
}

/* rank (by class): centred ranks of x, row `lane` of the group. Returns the sum of their squares. */
static double ranks_of_row(work *w, const float *x, int lane, float *rank) {
  order_row(w, x, lane);
  double squares = centred_ranks(x, w->row.index, w->n, rank);
  if (squares >= 0) return squares;
  put_in_order(w, x);
  return centred_ranks(x, w->row.index, w->n, rank);
}

/* lay_out (soft_rank.h) of x, row `lane` of the group. */
static int64_t lay_out_row(work *w, const float *x, int lane, double scale, const float *rank) {
  order_row(w, x, lane);
  int64_t runs = rank ? lay_out(&w->row, x, w->n, scale, rank) : lay_out(&w->row, x, w->n, scale, NULL);
  if (runs) return runs;
  put_in_order(w, x);
  return rank ? lay_out(&w->row, x, w->n, scale, rank) : lay_out(&w->row, x, w->n, scale, NULL);
}

/* One row in the last pass. Terms add their gradient to w->g and write their parts to value. */
typedef struct row {
  const cmkd_loss_job *job;
  work *w;
  int64_t index;         /* in the batch */
  int lane;              /* in the group */
  float *s, *t;          /* (n, padded) logits; a term that changes them puts them back */
  const float *rank;     /* the teacher's centred ranks; CMKD */
  double rank_squares;   /* sum of their squares */
  int y;                 /* the label */
  cmkd_row_stats ss, st; /* of s, of t */
  double z1;             /* sum of exp(s - largest s), whose terms w->e1 holds; this and the next two from term_ce */
  double one_minus_p;    /* 1 - p_y at temperature 1 */
  double ce;             /* -log p_y at temperature 1 */
  double per_row;        /* 1 / B */
  double *value;         /* this row's CMKD_ROW_VALUES */
} row;

static inline int bad_label(const cmkd_loss_batch *b, int64_t r) {
  return b->labels[r] < 0 || b->labels[r] >= b->classes;
}

/* ---- terms ---- */

/* Comes first in every loss: writes w->g, to which the others add. */
static void term_ce(row *r, const cmkd_loss_term *term) {
  work *w = r->w;
  int64_t n = w->n;
  double e = r->job->batch->label_smoothing, scale = term->weight * r->per_row;
  r->z1 = exp_row(r->s, n, r->ss.max, 1, w->e1, NULL);
  /* a confident row: what the other classes hold, not 1 - p_y. It is z1 - 1 when y has the largest logit, whose
   * exponential is 1 */
  r->one_minus_p = r->s[r->y] == r->ss.max ? (r->z1 - 1) / r->z1 : 1 - w->e1[r->y] / r->z1;
  r->ce = r->s[r->y] == r->ss.max ? log1p(r->z1 - 1) : log(r->z1) + r->ss.max - r->s[r->y];
  r->value[term->part] = (1 - e) * r->ce + (e > 0 ? e * (r->ss.max + log(r->z1) - r->ss.mean) : 0);
  vf c = splat((float)(scale / r->z1)), smooth = splat((float)(-scale * e / (double)n));
  for (int64_t i = 0; i < n; i += VF)
    store(w->g + i, load(w->e1 + i) * c + smooth);
  w->g[r->y] = (float)(scale * (e - e / (double)n - r->one_minus_p));
}

static void term_kd(row *r, const cmkd_loss_term *term) {
  work *w = r->w;
  double T = term->T, scale = term->weight * r->per_row * T;
  exp_pair x = exp_rows(r->s, r->t, w->n, r->ss.max, r->st.max, (float)(1 / T), w->es, w->et);
  r->value[term->part] = T * T * (x.kl_sum / x.zt - log1p(x.zt - 1) + log1p(x.zs - 1));
  add_difference(w->g, w->es, w->et, &x, scale, scale, 0, w->n);
}

/* Softmax over the classes other than the label, of both sides: w->es, w->et are 0 at the label. margin: logit of the
 * label / T less the log-sum-exp of the others. */
typedef struct nontarget {
  exp_pair x;
  double margin_s, margin_t;
} nontarget;

static void nontarget_of(row *r, double T, nontarget *out) {
  work *w = r->w;
  int64_t n = w->n;
  float sy = r->s[r->y], ty = r->t[r->y];
  r->s[r->y] = r->ss.min; /* takes y out of the maximum */
  r->t[r->y] = r->st.min;
  if (r->y == 0) {
    store(r->s + n, splat(r->s[0]));
    store(r->t + n, splat(r->t[0]));
  }
  vf hs = load(r->s), ht = load(r->t);
  for (int64_t i = VF; i < n; i += VF) {
    hs = max_f(hs, load(r->s + i));
    ht = max_f(ht, load(r->t + i));
  }
  float ms = largest_f(hs), mt = largest_f(ht);
  r->s[r->y] = r->t[r->y] = -3e38f; /* and out of the sums */
  out->x = exp_rows(r->s, r->t, n, ms, mt, (float)(1 / T), w->es, w->et);
  out->margin_s = ((double)sy - ms) / T - log(out->x.zs);
  out->margin_t = ((double)ty - mt) / T - log(out->x.zt);
  r->s[r->y] = sy;
  r->t[r->y] = ty;
  if (r->y == 0) {
    store(r->s + n, splat(sy));
    store(r->t + n, splat(ty));
  }
}

static inline double log_sigmoid(double z) { return z > 0 ? -log1p(exp(-z)) : z - log1p(exp(z)); }

static void term_dkd(row *r, const cmkd_loss_term *term) {
  work *w = r->w;
  double T = term->T, scale = cmkd_term_weight(term, r->job->batch->epoch) * r->per_row * T;
  nontarget x;
  nontarget_of(r, T, &x);
  double ls = log_sigmoid(x.margin_s), ls_others = log_sigmoid(-x.margin_s), lt = log_sigmoid(x.margin_t),
         lt_others = log_sigmoid(-x.margin_t);
  double qy = exp(lt), qn = exp(lt_others), difference = x.margin_s < 0 ? exp(ls) - qy : qn - exp(ls_others);
  r->value[term->part] = T * T * (qy * (lt - ls) + qn * (lt_others - ls_others));
  r->value[term->part + 1] = T * T * (x.x.kl_sum / x.x.zt - log1p(x.x.zt - 1) + log1p(x.x.zs - 1));
  add_difference(w->g, w->es, w->et, &x.x, scale * (term->beta - term->alpha * difference), scale * term->beta,
                 -scale * term->alpha * difference, w->n);
  w->g[r->y] += (float)(scale * term->alpha * difference);
}

static void term_nkd(row *r, const cmkd_loss_term *term) {
  work *w = r->w;
  double T = term->T, scale = term->weight * r->per_row;
  double qy = exp((double)r->t[r->y] - r->st.max) / exp_row(r->t, w->n, r->st.max, 1, NULL, NULL);
  nontarget x;
  nontarget_of(r, T, &x);
  r->value[term->part] = qy * r->ce;
  r->value[term->part + 1] = T * T * (log1p(x.x.zs - 1) - x.x.teacher_dot_student / x.x.zt);
  add_difference(w->g, w->es, w->et, &x.x, scale * term->gamma * T, scale * term->gamma * T, 0, w->n);
  float before = w->g[r->y];
  add2(w->g, w->e1, scale * qy / r->z1, w->e1, 0, w->n);
  w->g[r->y] = before - (float)(scale * qy * r->one_minus_p);
}

static void term_cmkd(row *r, const cmkd_loss_term *term) {
  const cmkd_loss_job *job = r->job;
  work *w = r->w;
  int64_t n = w->n;
  double N = (double)n, wp, ws;
  r->value[CMKD_ROW_BLOCKS] = 0;
  if (r->ss.degenerate || r->st.degenerate) return; /* every value is 0 already */
  int easy = term->gate == CMKD_GATE_OFF ? 1 : cmkd_gate_easy(job->entropy[r->index], job->entropy_mean);
  cmkd_gate_weights(term, easy, &wp, &ws);
  double sigma = term->zscore ? r->ss.sigma : 1, sigma_t = term->zscore ? r->st.sigma : 1,
         inverse = term->zscore ? 1 / sigma : 0;

  double ks = 1 / (sigma * term->T), kt = 1 / (sigma_t * term->T), zs = 1, zt = 1;
  /* Nearly uniform on either side: correlations need doubles (double_pass.h). */
  int exact = ((double)r->ss.max - r->ss.min) * ks < .5 || ((double)r->st.max - r->st.min) * kt < .5;
  correlation c;
  if (exact) {
    softmax_d(r->s, n, r->ss.max, ks, softmax_s(w));
    softmax_d(r->t, n, r->st.max, kt, softmax_t(w));
    c = correlate_d(softmax_s(w), softmax_t(w), r->s, r->ss.mean, inverse, n);
  } else {
    zs = exp_row(r->s, n, r->ss.max, (float)ks, w->es, NULL);
    zt = exp_row(r->t, n, r->st.max, (float)kt, w->et, NULL);
    c = correlate(w->es, 1 / zs, w->et, 1 / zt, r->s, r->ss.mean, inverse, n);
  }
  double na = sqrt(c.aa), nb = sqrt(c.bb), pearson = 0, pa = 0, pb = 0, dot = 0;
  if (na > 0 && nb > 0) {
    double rho = c.ab / (na * nb);
    pearson = 1 - rho;
    pa = rho / (na * na) / term->T; /* g_x = p (pa a + pb b), <g, 1> = 0 */
    pb = -1 / (na * nb) / term->T;
    dot = wp * (pa * c.pa + pb * c.pb) / N;
  }
  double scale = term->weight * r->per_row / sigma;
  if (exact) { /* before lay_out_row takes their memory */
    add_correlation_d(w->g, softmax_s(w), softmax_t(w), scale * wp * pa, scale * wp * pb, n);
    pa = pb = 0;
    memset(w->es, 0, (size_t)w->ld * sizeof *w->es);
    memset(w->et, 0, (size_t)w->ld * sizeof *w->et);
  }
  /* theta up to an additive constant, which ranks and gradients do not see */
  int64_t runs = lay_out_row(w, r->s, r->lane, N / (term->kappa * sigma), r->rank);
  spearman_out sp = spearman(&w->row, n, runs, r->rank_squares, w->gs);
  if (term->zscore)
    dot += ws * sp.dot / N; /* sum(g_theta theta) = sum(g_x x): theta's constant drops out, since g sums to 0 */
  else
    dot = 0;

  r->value[term->part] = pearson;
  r->value[term->part + 1] = sp.loss;
  r->value[CMKD_ROW_BLOCKS] = (double)sp.blocks / N;
  r->value[CMKD_ROW_WEIGHTED] = wp * pearson + ws * sp.loss;

  vf is = splat((float)(1 / zs)), it = splat((float)(1 / zt)), each = splat((float)(1 / N));
  vf ca = splat((float)(scale * wp * pa)), cb = splat((float)(scale * wp * pb)),
     cs = splat((float)(scale * ws * N / term->kappa));
  vf cx = splat((float)(scale * dot * inverse)), mean = splat((float)r->ss.mean);
  for (int64_t i = 0; i < n; i += VF) {
    vf p = load(w->es + i) * is, q = load(w->et + i) * it, x = load(r->s + i) - mean;
    vf g = load(w->g + i) + p * (ca * (p - each) + cb * (q - each)) + cs * load(w->gs + i) - cx * x;
    store(w->g + i, g);
  }
}

/* ---- passes over groups of rows ---- */
/* The teacher's rows: numbers that the last pass needs before it can start. */
static void teacher_pass(const cmkd_loss_job *job, int64_t first, int count, void *scratch) {
  const cmkd_loss_batch *b = job->batch;
  work w;
  carve(scratch, b->classes, &w);
  for (int64_t r = first; r < first + count; r++) {
    load_teacher(b->teacher, b->teacher_dtype, r, w.n, w.t);
    cmkd_row_stats st = job->teacher_stats[r] = row_stats(w.t, w.n);
    job->entropy[r] = 0;
    if (!st.finite) {
      job->bad[r] = 1;
      continue;
    }
    if (job->cmkd && job->cmkd->gate != CMKD_GATE_OFF) {
      double dot, z = exp_row(w.t, w.n, st.max, 1, NULL, &dot);
      job->entropy[r] = log(z) - dot / z;
    }
    if (!job->dist) continue;
    load_student(b->student, r, w.n, w.s);
    if (!row_stats(w.s, w.n).finite)
      job->bad[r] = 1;
    else
      dist_load(job, r, w.s, w.t);
  }
}

/* The logits of a batch. */
typedef struct logits {
  const float *student; /* (B, n) */
  const void *teacher;  /* (B, n), or NULL */
  cmkd_dtype dtype;     /* the teacher's */
  uint8_t *bad;         /* (B) rows with NaN or Inf get a 1 */
} logits;

/* Loads and checks rows [first, first + count) into w->s, w->t; their statistics into ss and, where not NULL, st. Bad
 * rows become zeros, so that NaN stays out of sorts and sums; the caller stops. */
static void load_group(work *w, const logits *from, int64_t first, int count, cmkd_row_stats *ss, cmkd_row_stats *st) {
  uint8_t *bad = from->bad + first;
  for (int lane = 0; lane < count; lane++) {
    float *s = w->s + lane * w->ld, *t = w->t + lane * w->ld;
    load_student(from->student, first + lane, w->n, s);
    ss[lane] = row_stats(s, w->n);
    if (from->teacher) load_teacher(from->teacher, from->dtype, first + lane, w->n, t);
    if (from->teacher && st) st[lane] = row_stats(t, w->n);
    if (!ss[lane].finite || (from->teacher && st && !st[lane].finite)) bad[lane] = 1;
    if (!bad[lane]) continue;
    memset(s, 0, (size_t)w->ld * sizeof *s);
    memset(t, 0, (size_t)w->ld * sizeof *t);
    ss[lane].min = ss[lane].max = 0;
    if (st) st[lane] = ss[lane];
  }
}

static void row_pass(const cmkd_loss_job *job, int64_t first, int count, void *scratch) {
  const cmkd_loss_batch *b = job->batch;
  cmkd_row_stats ss[VF], *st = job->teacher_stats + first;
  double squares[VF] = {0};
  work w;
  carve(scratch, b->classes, &w);
  for (int lane = 0; lane < count; lane++)
    job->bad[first + lane] |= (uint8_t)bad_label(b, first + lane);
  const logits from = {b->student, job->loss->needs_teacher ? b->teacher : NULL, b->teacher_dtype, job->bad};
  load_group(&w, &from, first, count, ss, NULL);
  if (job->cmkd) {
    for (int lane = 0; lane < count; lane++)
      if (job->bad[first + lane]) st[lane] = ss[lane];
    sort_group(&w, w.t, st, count);
    for (int lane = 0; lane < count; lane++)
      squares[lane] = ranks_of_row(&w, w.t + lane * w.ld, lane, w.rank + lane * w.ld);
    sort_group(&w, w.s, ss, count);
  }
  for (int lane = 0; lane < count; lane++) {
    int64_t index = first + lane;
    row r = {.job = job,
             .w = &w,
             .index = index,
             .lane = lane,
             .s = w.s + lane * w.ld,
             .t = w.t + lane * w.ld,
             .rank = w.rank + lane * w.ld,
             .rank_squares = squares[lane],
             .y = b->labels[index],
             .ss = ss[lane],
             .st = st[lane],
             .per_row = 1 / (double)b->batch,
             .value = job->row_value + index * CMKD_ROW_VALUES};
    for (int i = 0; i < CMKD_ROW_VALUES; i++)
      r.value[i] = 0;
    if (job->bad[index]) continue;
    for (int k = 0; k < job->loss->terms; k++) {
      const cmkd_loss_term *term = &job->loss->term[k];
      switch (term->kind) {
      case CMKD_TERM_CE: term_ce(&r, term); break;
      case CMKD_TERM_KD: term_kd(&r, term); break;
      case CMKD_TERM_DKD: term_dkd(&r, term); break;
      case CMKD_TERM_NKD: term_nkd(&r, term); break;
      case CMKD_TERM_DIST: dist_row(job, term, index, r.value + term->part, w.g); break;
      case CMKD_TERM_CMKD: term_cmkd(&r, term); break;
      }
    }
    if (b->grad) memcpy(b->grad + index * w.n, w.g, (size_t)w.n * sizeof *w.g);
  }
}

static void agreement_pass(const cmkd_agreement_job *job, int64_t first, int count, void *scratch) {
  cmkd_row_stats ss[VF], st[VF];
  double squares[VF];
  work w;
  carve(scratch, job->classes, &w);
  const double N = (double)w.n;
  const logits from = {job->student, job->teacher, job->teacher_dtype, job->bad};
  load_group(&w, &from, first, count, ss, st);
  sort_group(&w, w.t, st, count);
  for (int lane = 0; lane < count; lane++)
    squares[lane] = ranks_of_row(&w, w.t + lane * w.ld, lane, w.rank + lane * w.ld);
  sort_group(&w, w.s, ss, count);
  for (int lane = 0; lane < count; lane++) {
    double *out = job->row_value + (first + lane) * 3, ab = 0, ranks = 0, squares_s;
    const float *s = w.s + lane * w.ld, *t = w.t + lane * w.ld, *rank = w.rank + lane * w.ld;
    out[0] = out[1] = out[2] = 0;
    if (job->bad[first + lane] || ss[lane].degenerate || st[lane].degenerate) continue;
    squares_s = ranks_of_row(&w, s, lane, w.gs);
    for (int64_t i = 0; i < w.n; i++) {
      ab += ((double)s[i] - ss[lane].mean) * ((double)t[i] - st[lane].mean);
      ranks += (double)w.gs[i] * rank[i];
    }
    out[0] = ab / (N * ss[lane].sigma * st[lane].sigma);
    out[1] = ranks / sqrt(squares_s * squares[lane]);
    out[2] = (double)pool(&w.row, w.n, lay_out_row(&w, s, lane, N / (job->kappa * ss[lane].sigma), NULL)) / N;
  }
}

const cmkd_loss_kernels LOSS_KERNELS_TABLE = {.name = LOSS_KERNELS_NAME,
                                              .group = group_of,
                                              .row_floats = row_floats,
                                              .thread_scratch = thread_scratch,
                                              .teacher_pass = teacher_pass,
                                              .column_pass = dist_columns,
                                              .row_pass = row_pass,
                                              .agreement_pass = agreement_pass};
