/* Batch-norm passes, activations, additions and the optimizer over (px, c) arrays, in GCC vector extensions: included
 * after conv/direct.h. Sums over pixels run in float within one call (the caller hands in a few images) and leave as
 * doubles. */

/* Channels are taken W vectors at a time, so that wide blocks read whole cache lines once. */
#define DEFINE_MOMENTS(NAME, W, U) \
  static void NAME(const float *x, int64_t px, int c, float inverse, float *mean, float *m2) { \
    vf s[U][W] = {{{0}}}, q[U][W] = {{{0}}}, shift[W], \
       r[W] = {{0}}; /* r: what rounding left in the mean, the sum of deviations */ \
    const float *p = x; \
    int64_t i = 0; \
    for (; i + U <= px; i += U) \
      UNROLL for (int u = 0; u < U; u++, p += c) UNROLL for (int j = 0; j < W; j++) s[u][j] += LOAD(p + j * V); \
    for (; i < px; i++, p += c) \
      UNROLL for (int j = 0; j < W; j++) s[0][j] += LOAD(p + j * V); \
    UNROLL for (int j = 0; j < W; j++) { \
      UNROLL for (int u = 1; u < U; u++) s[0][j] += s[u][j]; \
      shift[j] = s[0][j] * SPLAT(inverse); \
    } \
    for (i = 0, p = x; i + U <= px; i += U) \
      UNROLL for (int u = 0; u < U; u++, p += c) UNROLL for (int j = 0; j < W; j++) { \
        vf d = LOAD(p + j * V) - shift[j]; \
        r[j] += d; \
        q[u][j] += d * d; \
      } \
    for (; i < px; i++, p += c) \
      UNROLL for (int j = 0; j < W; j++) { \
        vf d = LOAD(p + j * V) - shift[j]; \
        r[j] += d; \
        q[0][j] += d * d; \
      } \
    UNROLL for (int j = 0; j < W; j++) { \
      UNROLL for (int u = 1; u < U; u++) q[0][j] += q[u][j]; \
      STORE(mean + j * V, shift[j] + r[j] * SPLAT(inverse)); \
      STORE(m2 + j * V, q[0][j] - r[j] * r[j] * SPLAT(inverse)); \
    } \
  }
DEFINE_MOMENTS(moments_4, 4, 1)
DEFINE_MOMENTS(moments_2, 2, 2)
DEFINE_MOMENTS(moments_1, 1, 2)

/* The last `part` < V channels. */
static void moments_part(const float *x, int64_t px, int c, float inverse, float *mean, float *m2, int part) {
  vf s = {0}, r = {0}, q = {0};
  for (int64_t i = 0; i < px; i++)
    s += load_part(x + i * c, part);
  s *= SPLAT(inverse);
  for (int64_t i = 0; i < px; i++) {
    vf d = load_part(x + i * c, part) - s;
    r += d;
    q += d * d;
  }
  store_part(mean, s + r * SPLAT(inverse), part);
  store_part(m2, q - r * r * SPLAT(inverse), part);
}

static void moments(const float *x, int64_t px, int c, float *mean, float *m2) {
  const float inverse = 1.0f / (float)px;
  int at = 0;
  for (; at + 4 * V <= c; at += 4 * V)
    moments_4(x + at, px, c, inverse, mean + at, m2 + at);
  for (; at + 2 * V <= c; at += 2 * V)
    moments_2(x + at, px, c, inverse, mean + at, m2 + at);
  for (; at + V <= c; at += V)
    moments_1(x + at, px, c, inverse, mean + at, m2 + at);
  if (at < c) moments_part(x + at, px, c, inverse, mean + at, m2 + at, c - at);
}

static void affine(const float *x, const float *scale, const float *shift, const float *add, cmkd_act act, float *y,
                   int64_t px, int c) {
  const int whole = c / V * V, part = c % V;
  for (int64_t i = 0; i < px; i++, x += c, y += c) {
    if (add)
      for (int at = 0; at < whole; at += V)
        STORE(y + at, act_vf(LOAD(x + at) * LOAD(scale + at) + LOAD(shift + at) + LOAD(add + at), act));
    else
      for (int at = 0; at < whole; at += V)
        STORE(y + at, act_vf(LOAD(x + at) * LOAD(scale + at) + LOAD(shift + at), act));
    if (part) {
      vf v = load_part(x + whole, part) * load_part(scale + whole, part) + load_part(shift + whole, part);
      if (add) v += load_part(add + whole, part);
      store_part(y + whole, act_vf(v, act), part);
    }
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

#define DEFINE_REDUCE(NAME, W) \
  INLINE void NAME(const float *dy, const float *x, const float *y, const float *scale, const float *shift, \
                   const float *mean, cmkd_act act, float *masked, double *sum1, double *sum2, int64_t px, int c, \
                   const int part) { \
    vf s1[W] = {{0}}, s2[W] = {{0}}, m[W], a[W], b[W]; \
    UNROLL for (int j = 0; j < W; j++) { \
      m[j] = LOAD_LANES(mean + j * V, part); \
      a[j] = LOAD_LANES(scale + j * V, part); \
      b[j] = LOAD_LANES(shift + j * V, part); \
    } \
    for (int64_t i = 0, o = 0; i < px; i++, o += c) \
      UNROLL for (int j = 0; j < W; j++) { \
        vf xv = LOAD_LANES(x + o + j * V, part), d = LOAD_LANES(dy + o + j * V, part); \
        if (act != CMKD_ACT_NONE) d = mask_vf(d, y ? LOAD_LANES(y + o + j * V, part) : xv * a[j] + b[j], act); \
        if (masked) STORE_LANES(masked + o + j * V, d, part); \
        s1[j] += d; \
        s2[j] += d * (xv - m[j]); \
      } \
    UNROLL for (int j = 0; j < W; j++) for (int l = 0; l < (part ? part : V); l++) { \
      sum1[j * V + l] += s1[j][l]; \
      sum2[j * V + l] += s2[j][l]; \
    } \
  }
DEFINE_REDUCE(reduce_4, 4)
DEFINE_REDUCE(reduce_2, 2)
DEFINE_REDUCE(reduce_1, 1)

static void norm_reduce(const float *dy, const float *x, const float *y, const float *scale, const float *shift,
                        const float *mean, cmkd_act act, float *masked, double *sum1, double *sum2, int64_t px, int c) {
  int at = 0;
#define REDUCE(W, PART) \
  reduce_##W(dy + at, x + at, y ? y + at : NULL, scale + at, shift + at, mean + at, act, masked ? masked + at : NULL, \
             sum1 + at, sum2 + at, px, c, PART)
  for (; at + 4 * V <= c; at += 4 * V)
    REDUCE(4, 0);
  for (; at + 2 * V <= c; at += 2 * V)
    REDUCE(2, 0);
  for (; at + V <= c; at += V)
    REDUCE(1, 0);
  if (at < c) REDUCE(1, c - at);
#undef REDUCE
}

INLINE void norm_apply_vector(const float *dy, const float *x, const float *y, const float *scale, const float *shift,
                              const float *mean, const float *slope, const float *offset, cmkd_act act, int accumulate,
                              float *dx, const int part) {
  vf xv = LOAD_LANES(x, part), a = LOAD_LANES(scale, part),
     z = y ? LOAD_LANES(y, part) : xv * a + LOAD_LANES(shift, part);
  vf d = mask_vf(LOAD_LANES(dy, part), z, act) * a +
         (LOAD_LANES(slope, part) * (xv - LOAD_LANES(mean, part)) + LOAD_LANES(offset, part));
  if (accumulate) d += LOAD_LANES(dx, part);
  STORE_LANES(dx, d, part);
}

static void norm_apply(const float *dy, const float *x, const float *y, const float *scale, const float *shift,
                       const float *mean, const float *slope, const float *offset, cmkd_act act, int accumulate,
                       float *dx, int64_t px, int c) {
  const int whole = c / V * V, part = c % V;
#define APPLY(PART) \
  norm_apply_vector(dy + o, x + o, y ? y + o : NULL, scale + at, shift + at, mean + at, slope + at, offset + at, act, \
                    accumulate, dx + o, PART)
  for (int64_t i = 0, o = 0; i < px; i++) {
    int at = 0;
    for (; at < whole; at += V, o += V)
      APPLY(0);
    if (part) APPLY(part);
    o += part;
  }
#undef APPLY
}

static void channel_sums(const float *x, int64_t px, int c, double *sum) {
  for (int at = 0; at < c; at += V) {
    const int part = c - at < V ? c - at : 0;
    vf s = {0};
    for (int64_t i = 0; i < px; i++)
      s += LOAD_LANES(x + i * c + at, part);
    for (int j = 0; j < (part ? part : V); j++)
      sum[at + j] += s[j];
  }
}

static void add(float *dst, const float *src, int64_t n) {
  int64_t i = 0;
  for (; i + V <= n; i += V)
    STORE(dst + i, LOAD(dst + i) + LOAD(src + i));
  for (; i < n; i++)
    dst[i] += src[i];
}

static void add_act(const float *a, const float *b, cmkd_act act, float *y, int64_t n) {
  int64_t i = 0;
  for (; i + V <= n; i += V) {
    vf v = LOAD(a + i);
    if (b) v += LOAD(b + i);
    STORE(y + i, act_vf(v, act));
  }
  for (; i < n; i++)
    y[i] = act_float(a[i] + (b ? b[i] : 0.0f), act);
}

static void act_backward(const float *dy, const float *y, cmkd_act act, int accumulate, float *dx, int64_t n) {
  int64_t i = 0;
  for (; i + V <= n; i += V) {
    vf d = mask_vf(LOAD(dy + i), LOAD(y + i), act);
    if (accumulate) d += LOAD(dx + i);
    STORE(dx + i, d);
  }
  for (; i < n; i++)
    dx[i] = mask_float(dy[i], y[i], act) + (accumulate ? dx[i] : 0.0f);
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
