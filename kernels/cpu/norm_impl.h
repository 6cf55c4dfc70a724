/* Batch-norm passes, activations, additions and the optimizer over (px, c) arrays, in GCC vector extensions: included after conv_impl.h.
 * Sums over pixels run in float within one call (the caller hands in a few images) and leave as doubles. */

/* Channels are taken W vectors at a time, so that wide blocks read whole cache lines once. */
#define DEFINE_MOMENTS(NAME, W, U)                                                                                                \
  static void NAME(const float *x, int64_t px, int c, float inverse, float *mean, float *m2) {                                   \
    vf s[U][W] = {{{0}}}, q[U][W] = {{{0}}}, shift[W], r[W] = {{0}}; /* r: what rounding left in the mean, the sum of deviations */ \
    const float *p = x;                                                                                                           \
    int64_t i = 0;                                                                                                                \
    for (; i + U <= px; i += U)                                                                                                   \
      UNROLL for (int u = 0; u < U; u++, p += c) UNROLL for (int j = 0; j < W; j++) s[u][j] += LOAD(p + j * V);                   \
    for (; i < px; i++, p += c) UNROLL for (int j = 0; j < W; j++) s[0][j] += LOAD(p + j * V);                                    \
    UNROLL for (int j = 0; j < W; j++) {                                                                                          \
      UNROLL for (int u = 1; u < U; u++) s[0][j] += s[u][j];                                                                      \
      shift[j] = s[0][j] * SPLAT(inverse);                                                                                        \
    }                                                                                                                             \
    for (i = 0, p = x; i + U <= px; i += U)                                                                                       \
      UNROLL for (int u = 0; u < U; u++, p += c) UNROLL for (int j = 0; j < W; j++) {                                             \
        vf d = LOAD(p + j * V) - shift[j];                                                                                        \
        r[j] += d;                                                                                                                \
        q[u][j] += d * d;                                                                                                         \
      }                                                                                                                           \
    for (; i < px; i++, p += c) UNROLL for (int j = 0; j < W; j++) {                                                              \
      vf d = LOAD(p + j * V) - shift[j];                                                                                          \
      r[j] += d;                                                                                                                  \
      q[0][j] += d * d;                                                                                                           \
    }                                                                                                                             \
    UNROLL for (int j = 0; j < W; j++) {                                                                                          \
      UNROLL for (int u = 1; u < U; u++) q[0][j] += q[u][j];                                                                      \
      STORE(mean + j * V, shift[j] + r[j] * SPLAT(inverse));                                                                      \
      STORE(m2 + j * V, q[0][j] - r[j] * r[j] * SPLAT(inverse));                                                                  \
    }                                                                                                                             \
  }
DEFINE_MOMENTS(moments_4, 4, 1)
DEFINE_MOMENTS(moments_2, 2, 2)
DEFINE_MOMENTS(moments_1, 1, 2)

static void moments(const float *x, int64_t px, int c, float *mean, float *m2) {
  const float inverse = 1.0f / (float)px;
  int at = 0;
  for (; at + 4 * V <= c; at += 4 * V) moments_4(x + at, px, c, inverse, mean + at, m2 + at);
  for (; at + 2 * V <= c; at += 2 * V) moments_2(x + at, px, c, inverse, mean + at, m2 + at);
  for (; at + V <= c; at += V) moments_1(x + at, px, c, inverse, mean + at, m2 + at);
  for (; at < c; at++) {
    float s = 0, r = 0, q = 0;
    for (int64_t i = 0; i < px; i++) s += x[i * c + at];
    s *= inverse;
    for (int64_t i = 0; i < px; i++) { float d = x[i * c + at] - s; r += d; q += d * d; }
    mean[at] = s + r * inverse;
    m2[at] = q - r * r * inverse;
  }
}

static void affine(const float *x, const float *scale, const float *shift, const float *add, cmkd_act act, float *y, int64_t px, int c) {
  for (int64_t i = 0; i < px; i++, x += c, y += c) {
    int at = 0;
    if (add)
      for (; at + V <= c; at += V) STORE(y + at, act_vf(LOAD(x + at) * LOAD(scale + at) + LOAD(shift + at) + LOAD(add + at), act));
    else
      for (; at + V <= c; at += V) STORE(y + at, act_vf(LOAD(x + at) * LOAD(scale + at) + LOAD(shift + at), act));
    for (; at < c; at++) y[at] = act_float(x[at] * scale[at] + shift[at] + (add ? add[at] : 0.0f), act);
    if (add) add += c;
  }
}

INLINE vf mask_vf(vf dy, vf y, cmkd_act act) {
  if (act == CMKD_ACT_NONE) return dy;
  dy = select_vf(y > SPLAT(0.0f), dy);
  return act == CMKD_ACT_RELU6 ? select_vf(y < SPLAT(6.0f), dy) : dy;
}
INLINE float mask_float(float dy, float y, cmkd_act act) {
  if (act == CMKD_ACT_NONE) return dy;
  return y > 0 && (act != CMKD_ACT_RELU6 || y < 6.0f) ? dy : 0.0f;
}

#define DEFINE_REDUCE(NAME, W)                                                                                                    \
  static void NAME(const float *dy, const float *x, const float *y, const float *scale, const float *shift, const float *mean,   \
                   cmkd_act act, float *masked, double *sum1, double *sum2, int64_t px, int c) {                                 \
    vf s1[W] = {{0}}, s2[W] = {{0}}, m[W];                                                                                        \
    UNROLL for (int j = 0; j < W; j++) m[j] = LOAD(mean + j * V);                                                                 \
    for (int64_t i = 0, o = 0; i < px; i++, o += c)                                                                               \
      UNROLL for (int j = 0; j < W; j++) {                                                                                        \
        vf xv = LOAD(x + o + j * V), d = LOAD(dy + o + j * V);                                                                    \
        if (act != CMKD_ACT_NONE) d = mask_vf(d, y ? LOAD(y + o + j * V) : xv * LOAD(scale + j * V) + LOAD(shift + j * V), act);  \
        if (masked) STORE(masked + o + j * V, d);                                                                                 \
        s1[j] += d;                                                                                                               \
        s2[j] += d * (xv - m[j]);                                                                                                 \
      }                                                                                                                           \
    UNROLL for (int j = 0; j < W; j++)                                                                                            \
      for (int l = 0; l < V; l++) { sum1[j * V + l] += s1[j][l]; sum2[j * V + l] += s2[j][l]; }                                   \
  }
DEFINE_REDUCE(reduce_4, 4)
DEFINE_REDUCE(reduce_2, 2)
DEFINE_REDUCE(reduce_1, 1)

static void norm_reduce(const float *dy, const float *x, const float *y, const float *scale, const float *shift, const float *mean, cmkd_act act, float *masked, double *sum1, double *sum2, int64_t px, int c) {
  int at = 0;
#define REDUCE(W) reduce_##W(dy + at, x + at, y ? y + at : NULL, scale + at, shift + at, mean + at, act, masked ? masked + at : NULL, sum1 + at, sum2 + at, px, c)
  for (; at + 4 * V <= c; at += 4 * V) REDUCE(4);
  for (; at + 2 * V <= c; at += 2 * V) REDUCE(2);
  for (; at + V <= c; at += V) REDUCE(1);
#undef REDUCE
  for (; at < c; at++) {
    float s1 = 0, s2 = 0;
    for (int64_t i = 0, o = at; i < px; i++, o += c) {
      float d = mask_float(dy[o], y ? y[o] : x[o] * scale[at] + shift[at], act);
      if (masked) masked[o] = d;
      s1 += d;
      s2 += d * (x[o] - mean[at]);
    }
    sum1[at] += s1;
    sum2[at] += s2;
  }
}

static void norm_apply(const float *dy, const float *x, const float *y, const float *scale, const float *shift, const float *mean, const float *slope, const float *offset, cmkd_act act, int accumulate, float *dx, int64_t px, int c) {
  for (int64_t i = 0; i < px; i++) {
    const int64_t o = i * c;
    int at = 0;
    for (; at + V <= c; at += V) {
      vf xv = LOAD(x + o + at), a = LOAD(scale + at), z = y ? LOAD(y + o + at) : xv * a + LOAD(shift + at);
      vf d = mask_vf(LOAD(dy + o + at), z, act) * a + (LOAD(slope + at) * (xv - LOAD(mean + at)) + LOAD(offset + at));
      if (accumulate) d += LOAD(dx + o + at);
      STORE(dx + o + at, d);
    }
    for (; at < c; at++) {
      float xv = x[o + at], d = mask_float(dy[o + at], y ? y[o + at] : xv * scale[at] + shift[at], act) * scale[at] + (slope[at] * (xv - mean[at]) + offset[at]);
      dx[o + at] = accumulate ? dx[o + at] + d : d;
    }
  }
}

static void channel_sums(const float *x, int64_t px, int c, double *sum) {
  int at = 0;
  for (; at + V <= c; at += V) {
    vf s = {0};
    for (int64_t i = 0; i < px; i++) s += LOAD(x + i * c + at);
    for (int j = 0; j < V; j++) sum[at + j] += s[j];
  }
  for (; at < c; at++) {
    float s = 0;
    for (int64_t i = 0; i < px; i++) s += x[i * c + at];
    sum[at] += s;
  }
}

static void add(float *dst, const float *src, int64_t n) {
  int64_t i = 0;
  for (; i + V <= n; i += V) STORE(dst + i, LOAD(dst + i) + LOAD(src + i));
  for (; i < n; i++) dst[i] += src[i];
}

static void add_act(const float *a, const float *b, cmkd_act act, float *y, int64_t n) {
  int64_t i = 0;
  for (; i + V <= n; i += V) {
    vf v = LOAD(a + i);
    if (b) v += LOAD(b + i);
    STORE(y + i, act_vf(v, act));
  }
  for (; i < n; i++) y[i] = act_float(a[i] + (b ? b[i] : 0.0f), act);
}

static void act_backward(const float *dy, const float *y, cmkd_act act, int accumulate, float *dx, int64_t n) {
  int64_t i = 0;
  for (; i + V <= n; i += V) {
    vf d = mask_vf(LOAD(dy + i), LOAD(y + i), act);
    if (accumulate) d += LOAD(dx + i);
    STORE(dx + i, d);
  }
  for (; i < n; i++) dx[i] = mask_float(dy[i], y[i], act) + (accumulate ? dx[i] : 0.0f);
}

static void sgd(float *w, float *m, const float *g, int64_t n, float lr, float momentum, float decay, int nesterov) {
  int64_t i = 0;
  for (; i + V <= n; i += V) {
    vf wv = LOAD(w + i), gv = LOAD(g + i) + SPLAT(decay) * wv, mv = SPLAT(momentum) * LOAD(m + i) + gv;
    STORE(m + i, mv);
    STORE(w + i, wv - SPLAT(lr) * (nesterov ? gv + SPLAT(momentum) * mv : mv));
  }
  for (; i < n; i++) {
    float gv = g[i] + decay * w[i], mv = momentum * m[i] + gv;
    m[i] = mv;
    w[i] -= lr * (nesterov ? gv + momentum * mv : mv);
  }
}
