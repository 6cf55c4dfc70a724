/* Pooling windows of one output pixel over all channels, in GCC vector extensions: included after conv/direct.h. A
 * window is h x w pixels, `row` and `col` floats apart; what lies outside the image is not part of it. */

/* out = the largest; NaN wins. */
static void max_window(const float *in, int h, int w, int64_t row, int64_t col, float *out, int c) {
  for (int at = 0; at < c; at += V) {
    const int part = c - at < V ? c - at : 0;
    vf best = LOAD_LANES(in + at, part);
    for (int y = 0; y < h; y++)
      for (int x = 0; x < w; x++) {
        vf v = LOAD_LANES(in + y * row + x * col + at, part);
        vi keep = (best >= v) | (best != best);
        best = (vf)(((vi)best & keep) | ((vi)v & ~keep));
      }
    STORE_LANES(out + at, best, part);
  }
}

/* din += dout at the first of the largest pixels, as in PyTorch. */
static void max_window_backward(const float *in, int h, int w, int64_t row, int64_t col, const float *out,
                                const float *dout, float *din, int c) {
  for (int at = 0; at < c; at += V) {
    const int part = c - at < V ? c - at : 0;
    vf best = LOAD_LANES(out + at, part), left = LOAD_LANES(dout + at, part);
    for (int y = 0; y < h; y++)
      for (int x = 0; x < w; x++) {
        const int64_t o = y * row + x * col + at;
        vi hit = LOAD_LANES(in + o, part) == best;
        STORE_LANES(din + o, LOAD_LANES(din + o, part) + select_vf(hit, left), part);
        left = select_vf(~hit, left);
      }
  }
}

/* y += a * x */
static void add_scaled(float *y, const float *x, float a, int64_t n) {
  int64_t i = 0;
  for (; i + V <= n; i += V)
    STORE(y + i, LOAD(y + i) + LOAD(x + i) * SPLAT(a));
  for (; i < n; i++)
    y[i] += x[i] * a;
}
