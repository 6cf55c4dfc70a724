/* Direct convolution on NHWC images, in GCC vector extensions: included by kernels_base.c and kernels_avx2.c with V = floats per vector.
 * One register tile: PX output pixels x NV vectors of output channels; a source float is broadcast against NV weight vectors.
 * With V = 8 the 6 x 2 tile keeps twelve accumulators, two weight vectors and one broadcast in AVX2's sixteen registers.
 * A pixel's sum is formed in the same order whatever tile it falls into, so its bits do not depend on its neighbours.
 * Will not do: padding (the caller hands in padded sources), threads. */
#include <string.h>

typedef float vf __attribute__((vector_size(4 * V)));
typedef float vfu __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * V)));
#define LOAD(p) ((vf)*(const vfu *)(p))
#define STORE(p, v) (*(vfu *)(p) = (v))
#define SPLAT(x) ((x) - (vf){0})
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

INLINE vf select_vf(vi mask, vf x) { return (vf)((vi)x & mask); }
INLINE vf act_vf(vf x, cmkd_act act) {
  /* NaN passes through: the comparison is false and keeps x */
  if (act != CMKD_ACT_NONE) x = (vf)((vi)x & ~(x < SPLAT(0.0f)));
  if (act == CMKD_ACT_RELU6) { vi over = x > SPLAT(6.0f); x = (vf)(((vi)x & ~over) | ((vi)SPLAT(6.0f) & over)); }
  return x;
}
INLINE float act_float(float x, cmkd_act act) {
  if (act != CMKD_ACT_NONE && x < 0) x = 0;
  if (act == CMKD_ACT_RELU6 && x > 6.0f) x = 6.0f;
  return x;
}

/* src[i]: pixel bases; dst[i]: where pixel i's channels go; add_offset: from dst to the tensor that is added, 0 for none. */
#define DEFINE_TILE(NAME, PX, NV)                                                                                                       \
  static __attribute__((noinline)) void NAME(const float *const *src, const cmkd_seg *seg, int segs, const float *w, const float *bias, \
                                             const float *const *add, cmkd_act act, float *const *dst) {                                \
    vf acc[PX][NV];                                                                                                                     \
    UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) {                                                           \
      if (bias) acc[i][j] = LOAD(bias + j * V); else acc[i][j] = (vf){0};                                                               \
    }                                                                                                                                   \
    for (int s = 0; s < segs; s++) {                                                                                                    \
      const float *p[PX];                                                                                                               \
      UNROLL for (int i = 0; i < PX; i++) p[i] = src[i] + seg[s].offset;                                                                \
      intptr_t n = seg[s].length;                                                                                                       \
      for (intptr_t k = 0; k < n; k++, w += 2 * V) {                                                                                    \
        vf wv[NV];                                                                                                                      \
        UNROLL for (int j = 0; j < NV; j++) wv[j] = LOAD(w + j * V);                                                                    \
        UNROLL for (int i = 0; i < PX; i++) {                                                                                           \
          vf b = SPLAT(p[i][k]);                                                                                                        \
          UNROLL for (int j = 0; j < NV; j++) acc[i][j] += b * wv[j];                                                                   \
        }                                                                                                                               \
      }                                                                                                                                 \
    }                                                                                                                                   \
    if (add) UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] += LOAD(add[i] + j * V);                 \
    if (act != CMKD_ACT_NONE) UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] = act_vf(acc[i][j], act); \
    UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) STORE(dst[i] + j * V, acc[i][j]);                           \
  }
DEFINE_TILE(tile_6x2, 6, 2)
DEFINE_TILE(tile_4x2, 4, 2)
DEFINE_TILE(tile_2x2, 2, 2)
DEFINE_TILE(tile_1x2, 1, 2)
DEFINE_TILE(tile_6x1, 6, 1)
DEFINE_TILE(tile_4x1, 4, 1)
DEFINE_TILE(tile_2x1, 2, 1)
DEFINE_TILE(tile_1x1, 1, 1)

typedef void tile_function(const float *const *src, const cmkd_seg *seg, int segs, const float *w, const float *bias, const float *const *add, cmkd_act act, float *const *dst);
static tile_function *const tile_table[2][4] = {{tile_6x1, tile_4x1, tile_2x1, tile_1x1}, {tile_6x2, tile_4x2, tile_2x2, tile_1x2}};
static const int tile_width[4] = {6, 4, 2, 1};

/* All pixels of one class, one group, one block of `lanes` (<= 2V) output channels. src, dst, add: already at the group and block. */
static void run_block(const cmkd_conv_pass *pass, const cmkd_conv_class *cls, const float *src, const float *w, const float *bias, const float *add, cmkd_act act, float *dst, int lanes) {
  tile_function *const *tiles = tile_table[lanes > V];
  const int whole = lanes % V == 0, pixels = cls->ny * cls->nx;
  float spill[6][2 * V];
  const int64_t src_wrap = pass->src_row - (int64_t)cls->nx * pass->src_col, dst_wrap = pass->dst_row - (int64_t)cls->nx * pass->dst_col;
  const int64_t extra_at = add ? add - dst : 0; /* as an offset: one pointer walks for both */
  int x = 0, width = 0;
  for (int done = 0; done < pixels; done += tile_width[width]) {
    const float *from[6], *extra[6];
    float *to[6], *out[6];
    while (pixels - done < tile_width[width]) width++;
    for (int i = 0; i < tile_width[width]; i++) {
      from[i] = src;
      to[i] = dst;
      src += pass->src_col;
      dst += pass->dst_col;
      if (++x < cls->nx) continue;
      x = 0;
      src += src_wrap;
      dst += dst_wrap;
    }
    if (add) for (int i = 0; i < tile_width[width]; i++) extra[i] = to[i] + extra_at;
    if (!whole) for (int i = 0; i < tile_width[width]; i++) out[i] = spill[i];
    if (whole) { tiles[width](from, cls->seg, cls->segs, w, bias, add ? extra : NULL, act, to); continue; }
    tiles[width](from, cls->seg, cls->segs, w, NULL, NULL, CMKD_ACT_NONE, out);
    for (int i = 0; i < tile_width[width]; i++)
      for (int l = 0; l < lanes; l++) to[i][l] = act_float(spill[i][l] + (bias ? bias[l] : 0.0f) + (add ? extra[i][l] : 0.0f), act);
  }
}

static void conv_run(const cmkd_conv_pass *pass, const float *src, const float *weights, const cmkd_epilogue *epilogue, float *dst) {
  const int blocks = (pass->outs + 2 * V - 1) / (2 * V);
  for (int c = 0; c < pass->classes; c++) {
    const cmkd_conv_class *cls = &pass->cls[c];
    const int64_t start = cls->y0 * pass->dst_y + cls->x0 * pass->dst_x;
    for (int g = 0; g < pass->groups; g++)
      for (int b = 0; b < blocks; b++) {
        int channel = g * pass->outs + b * 2 * V, lanes = pass->outs - b * 2 * V;
        run_block(pass, cls, src + cls->base + g * pass->src_group, weights + cls->weights + (int64_t)(g * blocks + b) * cls->k * 2 * V,
                  epilogue->bias ? epilogue->bias + channel : NULL, epilogue->add ? epilogue->add + start + channel : NULL, epilogue->act,
                  dst + start + channel, lanes < 2 * V ? lanes : 2 * V);
      }
  }
}

/* grad[PX][2V] += x[0..PX-1] (x) dy[0..NV*V-1], summed over rows x cols pixels. */
#define DEFINE_WGRAD(NAME, PX, NV)                                                                                                      \
  static __attribute__((noinline)) void NAME(const float *x, int64_t xrow, int64_t xcol, const float *dy, int64_t drow, int64_t dcol,   \
                                             int rows, int cols, float *grad) {                                                         \
    vf acc[PX][NV];                                                                                                                     \
    UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] = LOAD(grad + (i * 2 + j) * V);                   \
    for (int r = 0; r < rows; r++) {                                                                                                    \
      const float *xp = x + r * xrow, *dp = dy + r * drow;                                                                              \
      for (int c = 0; c < cols; c++, xp += xcol, dp += dcol) {                                                                          \
        vf d[NV];                                                                                                                       \
        UNROLL for (int j = 0; j < NV; j++) d[j] = LOAD(dp + j * V);                                                                    \
        UNROLL for (int i = 0; i < PX; i++) {                                                                                           \
          vf b = SPLAT(xp[i]);                                                                                                          \
          UNROLL for (int j = 0; j < NV; j++) acc[i][j] += b * d[j];                                                                    \
        }                                                                                                                               \
      }                                                                                                                                 \
    }                                                                                                                                   \
    UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) STORE(grad + (i * 2 + j) * V, acc[i][j]);                   \
  }
DEFINE_WGRAD(wgrad_6x2, 6, 2)
DEFINE_WGRAD(wgrad_4x2, 4, 2)
DEFINE_WGRAD(wgrad_2x2, 2, 2)
DEFINE_WGRAD(wgrad_1x2, 1, 2)
DEFINE_WGRAD(wgrad_6x1, 6, 1)
DEFINE_WGRAD(wgrad_4x1, 4, 1)
DEFINE_WGRAD(wgrad_2x1, 2, 1)
DEFINE_WGRAD(wgrad_1x1, 1, 1)

typedef void wgrad_function(const float *x, int64_t xrow, int64_t xcol, const float *dy, int64_t drow, int64_t dcol, int rows, int cols, float *grad);
static wgrad_function *const wgrad_table[2][4] = {{wgrad_6x1, wgrad_4x1, wgrad_2x1, wgrad_1x1}, {wgrad_6x2, wgrad_4x2, wgrad_2x2, wgrad_1x2}};

/* Rows of output pixels are taken in bands whose sources and gradients stay in the first-level cache while all tiles pass over them.
 * Lanes past the last output channel collect neighbouring floats; the caller drops them and keeps 2V floats readable past the end. */
static void conv_wgrad(const cmkd_conv_pass *pass, const float *src, const float *ddst, float *grad) {
  const cmkd_conv_class *cls = &pass->cls[0];
  const int blocks = (pass->outs + 2 * V - 1) / (2 * V);
  int64_t row_floats = pass->src_row + (int64_t)cls->nx * 2 * V;
  int band = (int)(6144 / (row_floats > 0 ? row_floats : 1));
  band = band < 1 ? 1 : band > cls->ny ? cls->ny : band;
  for (int y = 0; y < cls->ny; y += band) {
    int rows = cls->ny - y < band ? cls->ny - y : band;
    for (int g = 0; g < pass->groups; g++)
      for (int b = 0; b < blocks; b++) {
        int lanes = pass->outs - b * 2 * V;
        wgrad_function *const *tiles = wgrad_table[lanes > V];
        const float *dy = ddst + y * pass->dst_row + g * pass->outs + b * 2 * V;
        const float *x = src + cls->base + g * pass->src_group + y * pass->src_row;
        float *to = grad + (int64_t)(g * blocks + b) * cls->k * 2 * V;
        for (int s = 0; s < cls->segs; s++) {
          int length = cls->seg[s].length, width = 0;
          for (int j = 0; j < length; j += tile_width[width]) {
            while (length - j < tile_width[width]) width++;
            tiles[width](x + cls->seg[s].offset + j, pass->src_row, pass->src_col, dy, pass->dst_row, pass->dst_col, rows, cls->nx, to + (int64_t)j * 2 * V);
          }
          to += (int64_t)length * 2 * V;
        }
      }
  }
}

/* Depthwise: vectors run along the channels, every segment is one pixel of the window. */
static void depth_run(const cmkd_conv_pass *pass, const float *src, const float *weights, const cmkd_epilogue *epilogue, float *dst) {
  const int channels = pass->groups, whole = channels / V * V;
  for (int n = 0; n < pass->classes; n++) {
    const cmkd_conv_class *cls = &pass->cls[n];
    const float *w = weights + cls->weights;
    for (int y = 0; y < cls->ny; y++)
      for (int x = 0; x < cls->nx; x++) {
        const float *from = src + cls->base + y * pass->src_row + x * pass->src_col;
        const int64_t at = cls->y0 * pass->dst_y + cls->x0 * pass->dst_x + y * pass->dst_row + x * pass->dst_col;
        for (int c = 0; c < whole; c += V) {
          vf sum = {0};
          if (epilogue->bias) sum = LOAD(epilogue->bias + c);
          for (int s = 0; s < cls->segs; s++) sum += LOAD(from + cls->seg[s].offset + c) * LOAD(w + (int64_t)s * channels + c);
          if (epilogue->add) sum += LOAD(epilogue->add + at + c);
          STORE(dst + at + c, act_vf(sum, epilogue->act));
        }
        for (int c = whole; c < channels; c++) {
          float sum = epilogue->bias ? epilogue->bias[c] : 0.0f;
          for (int s = 0; s < cls->segs; s++) sum += from[cls->seg[s].offset + c] * w[(int64_t)s * channels + c];
          if (epilogue->add) sum += epilogue->add[at + c];
          dst[at + c] = act_float(sum, epilogue->act);
        }
      }
  }
}

static void depth_wgrad(const cmkd_conv_pass *pass, const float *src, const float *ddst, float *grad) {
  const int channels = pass->groups, whole = channels / V * V;
  const cmkd_conv_class *cls = &pass->cls[0];
  for (int y = 0; y < cls->ny; y++)
    for (int s = 0; s < cls->segs; s++) {
      const float *from = src + cls->base + cls->seg[s].offset + y * pass->src_row, *dy = ddst + y * pass->dst_row;
      float *to = grad + (int64_t)s * channels;
      for (int c = 0; c < whole; c += V) {
        vf sum = LOAD(to + c);
        for (int x = 0; x < cls->nx; x++) sum += LOAD(from + x * pass->src_col + c) * LOAD(dy + x * pass->dst_col + c);
        STORE(to + c, sum);
      }
      for (int c = whole; c < channels; c++) {
        float sum = to[c];
        for (int x = 0; x < cls->nx; x++) sum += from[x * pass->src_col + c] * dy[x * pass->dst_col + c];
        to[c] = sum;
      }
    }
}
