/* Direct convolution on NHWC images, in GCC vector extensions: included by kernels_base.c, kernels_avx2.c and
 * kernels_avx512.c with V = floats per vector and load_part, store_part for the last n < V floats of a row. One
 * register tile: PX output pixels x NV vectors of output channels; a source float is broadcast against NV weight
 * vectors. With V = 8 the 6 x 2 tile keeps twelve accumulators, two weight vectors and one broadcast in AVX2's sixteen
 * registers. A pixel's sum is formed in the same order whatever tile it falls into, so its bits do not depend on its
 * neighbours. The images of a call are taken as one run of pixels, so that a block of weights is read once for all of
 * them. Will not do: padding (classes of pixels leave out what lies outside the image), threads. */
#include <string.h>

typedef float vf __attribute__((vector_size(4 * V)));
typedef float vfu __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * V)));
#define LOAD(p) ((vf) * (const vfu *)(p))
#define STORE(p, v) (*(vfu *)(p) = (v))
#define SPLAT(x) ((x) - (vf){0})
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

INLINE vf select_vf(vi mask, vf x) { return (vf)((vi)x & mask); }
INLINE vf act_vf(vf x, cmkd_act act) {
  /* NaN passes through: the comparison is false and keeps x */
  if (act != CMKD_ACT_NONE) x = (vf)((vi)x & ~(x < SPLAT(0.0f)));
  if (act == CMKD_ACT_RELU6) {
    vi over = x > SPLAT(6.0f);
    x = (vf)(((vi)x & ~over) | ((vi)SPLAT(6.0f) & over));
  }
  return x;
}
INLINE float act_float(float x, cmkd_act act) {
  if (act != CMKD_ACT_NONE && x < 0) x = 0;
  if (act == CMKD_ACT_RELU6 && x > 6.0f) x = 6.0f;
  return x;
}

#define LOAD_LANES(p, n) ((n) ? (vf)load_part(p, n) : LOAD(p))
#define STORE_LANES(p, v, n) \
  do { \
    if (n) \
      store_part(p, v, n); \
    else \
      STORE(p, v); \
  } while (0)

/* src[i]: pixel bases; dst[i]: where pixel i's channels go; add: likewise, of the tensor that is added, or NULL; part:
 * lanes of the last vector, 0 for all. */
#define DEFINE_TILE(NAME, PX, NV) \
  static __attribute__((noinline)) void NAME(const float *const *src, const cmkd_seg *seg, int segs, \
                                             const float *weights, const float *bias, const float *const *add, \
                                             cmkd_act act, float *const *dst, int part) { \
    vf acc[PX][NV]; \
    UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] = (vf){0}; \
    if (bias) UNROLL for (int j = 0; j < NV; j++) { \
        vf b = LOAD_LANES(bias + j * V, j == NV - 1 ? part : 0); \
        UNROLL for (int i = 0; i < PX; i++) acc[i][j] = b; \
      } \
    for (int s = 0; s < segs; s++) { \
      const float *p[PX]; \
      UNROLL for (int i = 0; i < PX; i++) p[i] = src[i] + seg[s].offset; \
      const float *w = weights + (int64_t)seg[s].weights * 2 * V; \
      intptr_t n = seg[s].length; \
      for (intptr_t k = 0; k < n; k++, w += 2 * V) { \
        vf wv[NV]; \
        UNROLL for (int j = 0; j < NV; j++) wv[j] = LOAD(w + j * V); \
        UNROLL for (int i = 0; i < PX; i++) { \
          vf b = SPLAT(p[i][k]); \
          UNROLL for (int j = 0; j < NV; j++) acc[i][j] += b * wv[j]; \
        } \
      } \
    } \
    UNROLL for (int j = 0; j < NV; j++) { \
      const int lanes = j == NV - 1 ? part : 0; \
      if (add) UNROLL for (int i = 0; i < PX; i++) acc[i][j] += LOAD_LANES(add[i] + j * V, lanes); \
      if (act != CMKD_ACT_NONE) UNROLL for (int i = 0; i < PX; i++) acc[i][j] = act_vf(acc[i][j], act); \
      UNROLL for (int i = 0; i < PX; i++) STORE_LANES(dst[i] + j * V, acc[i][j], lanes); \
    } \
  }
DEFINE_TILE(tile_6x2, 6, 2)
DEFINE_TILE(tile_4x2, 4, 2)
DEFINE_TILE(tile_2x2, 2, 2)
DEFINE_TILE(tile_1x2, 1, 2)
DEFINE_TILE(tile_6x1, 6, 1)
DEFINE_TILE(tile_4x1, 4, 1)
DEFINE_TILE(tile_2x1, 2, 1)
DEFINE_TILE(tile_1x1, 1, 1)

typedef void tile_function(const float *const *src, const cmkd_seg *seg, int segs, const float *w, const float *bias,
                           const float *const *add, cmkd_act act, float *const *dst, int part);
static tile_function *const tile_table[2][4] = {{tile_6x1, tile_4x1, tile_2x1, tile_1x1},
                                                {tile_6x2, tile_4x2, tile_2x2, tile_1x2}};
static const int tile_width[4] = {6, 4, 2, 1};

/* All pixels of one class in n images, one group, one block of `lanes` (<= 2V) output channels, over some of the
 * class's segments. src, dst, add: already at the group and block. */
static void run_block(const cmkd_direct_pass *pass, const cmkd_conv_class *cls, int n, const float *src,
                      const cmkd_seg *seg, int segs, const float *w, const float *bias, const float *add, cmkd_act act,
                      float *dst, int lanes) {
  tile_function *const *tiles = tile_table[lanes > V];
  const int pixels = n * cls->ny * cls->nx, part = lanes % V;
  const int64_t src_wrap = pass->src_row - (int64_t)cls->nx * pass->src_col,
                dst_wrap = pass->dst_row - (int64_t)cls->nx * pass->dst_col;
  const int64_t src_turn = pass->src_image - cls->ny * pass->src_row,
                dst_turn = pass->dst_image - cls->ny * pass->dst_row;
  const int64_t added_at = add ? add - dst : 0; /* as an offset: one pointer walks for both */
  int x = 0, y = 0, width = 0;
  for (int done = 0; done < pixels; done += tile_width[width]) {
    const float *from[6], *added[6];
    float *to[6];
    while (pixels - done < tile_width[width])
      width++;
    for (int i = 0; i < tile_width[width]; i++) {
      from[i] = src;
      to[i] = dst;
      src += pass->src_col;
      dst += pass->dst_col;
      if (++x < cls->nx) continue;
      x = 0;
      src += src_wrap;
      dst += dst_wrap;
      if (++y < cls->ny) continue;
      y = 0;
      src += src_turn;
      dst += dst_turn;
    }
    if (add)
      for (int i = 0; i < tile_width[width]; i++)
        added[i] = to[i] + added_at;
    tiles[width](from, seg, segs, w, bias, add ? added : NULL, act, to, part);
  }
}

#define MAX_K \
  2048 /* source floats a pass over the pixels: their weights stay in the second-level cache. Longer sums go on from \
          what dst holds */

static void conv_run(const cmkd_direct_pass *pass, int n, const float *src, const float *weights,
                     const cmkd_epilogue *epilogue, float *dst) {
  const int blocks = (pass->outs + 2 * V - 1) / (2 * V);
  for (int c = 0; c < pass->classes; c++) {
    const cmkd_conv_class *cls = &pass->cls[c];
    const int64_t start = cls->y0 * pass->dst_y + cls->x0 * pass->dst_x;
    for (int g = 0; g < pass->groups; g++)
      for (int b = 0; b < blocks; b++) {
        const int channel = g * pass->outs + b * 2 * V, lanes = pass->outs - b * 2 * V;
        const float *from = src + cls->base + g * pass->src_group,
                    *w = weights + cls->weights + (int64_t)(g * blocks + b) * cls->k * 2 * V;
        const float *bias = epilogue->bias ? epilogue->bias + channel : NULL,
                    *add = epilogue->add ? epilogue->add + start + channel : NULL;
        float *to = dst + start + channel;
        for (int first = 0, end, k; first < cls->segs || !first; first = end, bias = NULL, add = to) {
          for (end = first, k = 0; end < cls->segs && (end == first || k + cls->seg[end].length <= MAX_K); end++)
            k += cls->seg[end].length;
          run_block(pass, cls, n, from, cls->seg + first, end - first, w, bias, add,
                    end == cls->segs ? epilogue->act : CMKD_ACT_NONE, to, lanes < 2 * V ? lanes : 2 * V);
          if (end == cls->segs) break;
        }
      }
  }
}

/* grad[PX][2V] += x[0..PX-1] (x) dy[0..NV*V-1], summed over `rows` rows of pixels, ny of every image. */
typedef struct wgrad_walk {
  int ny, rows, cols;
  int64_t xcol, xrow, xturn, dcol, drow, dturn;
} wgrad_walk;
#define DEFINE_WGRAD(NAME, PX, NV) \
  static __attribute__((noinline)) void NAME(const float *x, const float *dy, const wgrad_walk *walk, float *grad) { \
    vf acc[PX][NV]; \
    const int64_t xcol = walk->xcol, dcol = walk->dcol; \
    UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) acc[i][j] = LOAD(grad + (i * 2 + j) * V); \
    for (int r = 0, y = 0; r < walk->rows; r++, x += walk->xrow, dy += walk->drow) { \
      const float *xp = x, *dp = dy; \
      for (int c = 0; c < walk->cols; c++, xp += xcol, dp += dcol) { \
        vf d[NV]; \
        UNROLL for (int j = 0; j < NV; j++) d[j] = LOAD(dp + j * V); \
        UNROLL for (int i = 0; i < PX; i++) { \
          vf b = SPLAT(xp[i]); \
          UNROLL for (int j = 0; j < NV; j++) acc[i][j] += b * d[j]; \
        } \
      } \
      if (++y == walk->ny) y = 0, x += walk->xturn, dy += walk->dturn; \
    } \
    UNROLL for (int i = 0; i < PX; i++) UNROLL for (int j = 0; j < NV; j++) STORE(grad + (i * 2 + j) * V, acc[i][j]); \
  }
#if V == 16 /* 32 registers */
DEFINE_WGRAD(wgrad_12x2, 12, 2)
DEFINE_WGRAD(wgrad_12x1, 12, 1)
DEFINE_WGRAD(wgrad_8x2, 8, 2)
DEFINE_WGRAD(wgrad_8x1, 8, 1)
#define WGRAD_TABLE(NV) \
  { wgrad_12x##NV, wgrad_8x##NV, wgrad_4x##NV, wgrad_2x##NV, wgrad_1x##NV }
static const int wgrad_width[5] = {12, 8, 4, 2, 1};
#else
DEFINE_WGRAD(wgrad_6x2, 6, 2)
DEFINE_WGRAD(wgrad_6x1, 6, 1)
#define WGRAD_TABLE(NV) \
  { wgrad_6x##NV, wgrad_4x##NV, wgrad_2x##NV, wgrad_1x##NV, wgrad_1x##NV }
static const int wgrad_width[5] = {6, 4, 2, 1, 1};
#endif
DEFINE_WGRAD(wgrad_4x2, 4, 2)
DEFINE_WGRAD(wgrad_2x2, 2, 2)
DEFINE_WGRAD(wgrad_1x2, 1, 2)
DEFINE_WGRAD(wgrad_4x1, 4, 1)
DEFINE_WGRAD(wgrad_2x1, 2, 1)
DEFINE_WGRAD(wgrad_1x1, 1, 1)

typedef void wgrad_function(const float *x, const float *dy, const wgrad_walk *walk, float *grad);
static wgrad_function *const wgrad_table[2][5] = {WGRAD_TABLE(1), WGRAD_TABLE(2)};

/* Images that are taken at once, and rows of one image where that is one: as much as stays in the first-level cache
 * while all tiles pass over it, but not fewer pixels than are worth fetching a gradient for that has left the second
 * level. */
static void choose_band(const cmkd_direct_pass *pass, int n, int ny, int blocks, int *images, int *rows) {
  const int64_t nx = pass->dst_row / pass->dst_col, floats = pass->src_row + nx * 2 * V,
                grad_floats = pass->groups * blocks * (int64_t)pass->cls[0].k * 2 * V;
  const int64_t fits = 6144 / (floats > 0 ? floats : 1), pays = (grad_floats > 65536 ? 128 : 48) / nx,
                want = fits > pays ? fits
                       : pays > 1  ? pays
                                   : 1;
  *images = want < ny ? 1 : (int)(want / ny < n ? want / ny : n);
  *rows = want < ny ? (int)want : ny;
}

static void piece_wgrad(const cmkd_direct_pass *pass, const cmkd_wgrad_piece *piece, int blocks, int images, int first,
                        int rows, const float *src, const float *ddst, float *grad) {
  const wgrad_walk walk = {.ny = rows,
                           .rows = images * rows,
                           .cols = piece->nx,
                           .xcol = pass->src_col,
                           .xrow = pass->src_row,
                           .xturn = pass->src_image - rows * pass->src_row,
                           .dcol = pass->dst_col,
                           .drow = pass->dst_row,
                           .dturn = pass->dst_image - rows * pass->dst_row};
  src += first * pass->src_row + piece->src, ddst += first * pass->dst_row + piece->dst;
  for (int g = 0; g < pass->groups; g++)
    for (int b = 0; b < blocks; b++) {
      wgrad_function *const *tiles = wgrad_table[pass->outs - b * 2 * V > V];
      float *to = grad + ((int64_t)(g * blocks + b) * pass->cls[0].k + piece->weights) * 2 * V;
      int width = piece->length % wgrad_width[0] && piece->length % wgrad_width[1] == 0
                      ? 1
                      : 0; /* even tiles where they fill the run */
      for (int j = 0; j < piece->length; j += wgrad_width[width]) {
        while (piece->length - j < wgrad_width[width])
          width++;
        tiles[width](src + g * pass->src_group + j, ddst + g * pass->outs + b * 2 * V, &walk, to + (int64_t)j * 2 * V);
      }
    }
}

/* Lanes past the last output channel collect neighbouring floats; the caller drops them and keeps 2V floats readable
 * past the end. */
static void conv_wgrad(const cmkd_direct_pass *pass, int n, const float *src, const float *ddst, float *grad) {
  const int blocks = (pass->outs + 2 * V - 1) / (2 * V), ny = (int)(pass->dst_image / pass->dst_row);
  int images, rows;
  choose_band(pass, n, ny, blocks, &images, &rows);
  for (int i = 0; i < n; i += images)
    for (int y = 0; y < ny; y += rows)
      for (int p = 0; p < pass->pieces; p++) {
        const cmkd_wgrad_piece *piece = &pass->piece[p];
        const int first = y > piece->y ? y : piece->y, last = y + rows,
                  end = last < piece->y + piece->ny ? last : piece->y + piece->ny;
        if (first < end)
          piece_wgrad(pass, piece, blocks, n - i < images ? n - i : images, first, end - first,
                      src + i * pass->src_image, ddst + i * pass->dst_image, grad);
      }
}

/* ---- depthwise: vectors run along the channels, every segment is one pixel of the window ---- */

#define MAX_SEGS 9 /* windows up to 3x3 keep their weights in registers (AVX2: 9 of 16) */

/* One vector of channels of one class in n images. segs is a constant, or 0: then cls->segs and weights from memory. */
INLINE void depth_vector(const cmkd_direct_pass *pass, const cmkd_conv_class *cls, const int segs, int n,
                         const float *src, const float *w, const float *bias, const float *add, cmkd_act act,
                         float *dst, const int part) {
  vf wv[MAX_SEGS], start = {0};
  if (bias) start = LOAD_LANES(bias, part);
  UNROLL for (int s = 0; s < segs; s++) wv[s] = LOAD_LANES(w + (int64_t)cls->seg[s].weights * pass->groups, part);
  for (int i = 0; i < n; i++)
    for (int y = 0; y < cls->ny; y++) {
      const float *from = src + i * pass->src_image + y * pass->src_row;
      int64_t at = i * pass->dst_image + y * pass->dst_row;
      for (int x = 0; x < cls->nx; x++, from += pass->src_col, at += pass->dst_col) {
        vf sum = start;
        UNROLL for (int s = 0; s < segs; s++) sum += LOAD_LANES(from + cls->seg[s].offset, part) * wv[s];
        if (!segs)
          for (int s = 0; s < cls->segs; s++)
            sum += LOAD_LANES(from + cls->seg[s].offset, part) *
                   LOAD_LANES(w + (int64_t)cls->seg[s].weights * pass->groups, part);
        if (add) sum += LOAD_LANES(add + at, part);
        STORE_LANES(dst + at, act_vf(sum, act), part);
      }
    }
}

static void depth_run(const cmkd_direct_pass *pass, int n, const float *src, const float *weights,
                      const cmkd_epilogue *epilogue, float *dst) {
  const int channels = pass->groups;
  for (int m = 0; m < pass->classes; m++) {
    const cmkd_conv_class *cls = &pass->cls[m];
    const int64_t at = cls->y0 * pass->dst_y + cls->x0 * pass->dst_x;
    for (int c = 0; c < channels; c += V) {
      const int part = channels - c < V ? channels - c : 0;
      const float *from = src + cls->base + c, *bias = epilogue->bias ? epilogue->bias + c : NULL,
                  *add = epilogue->add ? epilogue->add + at + c : NULL;
#define DEPTH(SEGS, PART) \
  depth_vector(pass, cls, SEGS, n, from, weights + cls->weights + c, bias, add, epilogue->act, dst + at + c, PART)
      if (cls->segs == 9) {
        if (part)
          DEPTH(9, part);
        else
          DEPTH(9, 0);
      } else if (part)
        DEPTH(0, part);
      else if (cls->segs == 6)
        DEPTH(6, 0);
      else if (cls->segs == 4)
        DEPTH(4, 0);
      else if (cls->segs == 2)
        DEPTH(2, 0);
      else if (cls->segs == 1)
        DEPTH(1, 0);
      else
        DEPTH(0, 0);
#undef DEPTH
    }
  }
}

/* Gradients of `segs` taps of a class from tap `first` on, one vector of channels. */
INLINE void depth_wgrad_vector(const cmkd_direct_pass *pass, const cmkd_conv_class *cls, int n, const int segs,
                               int first, const float *src, const float *ddst, float *grad, const int part) {
  vf sum[3];
  UNROLL for (int s = 0; s < segs; s++) sum[s] =
      LOAD_LANES(grad + (int64_t)cls->seg[first + s].weights * pass->groups, part);
  for (int i = 0; i < n; i++)
    for (int y = 0; y < cls->ny; y++) {
      const float *from = src + i * pass->src_image + y * pass->src_row,
                  *dy = ddst + i * pass->dst_image + y * pass->dst_row;
      for (int x = 0; x < cls->nx; x++, from += pass->src_col, dy += pass->dst_col) {
        vf d = LOAD_LANES(dy, part);
        UNROLL for (int s = 0; s < segs; s++) sum[s] += LOAD_LANES(from + cls->seg[first + s].offset, part) * d;
      }
    }
  UNROLL for (int s = 0; s < segs; s++)
      STORE_LANES(grad + (int64_t)cls->seg[first + s].weights * pass->groups, sum[s], part);
}

static void depth_wgrad(const cmkd_direct_pass *pass, int n, const float *src, const float *ddst, float *grad) {
  const int channels = pass->groups;
  for (int m = 0; m < pass->classes; m++) {
    const cmkd_conv_class *cls = &pass->cls[m];
    const float *from = src + cls->base, *dy = ddst + cls->y0 * pass->dst_y + cls->x0 * pass->dst_x;
    for (int c = 0; c < channels; c += V) {
      const int part = channels - c < V ? channels - c : 0;
      for (int s = 0, many; s < cls->segs; s += many) {
        many = cls->segs - s < 3 ? 1 : 3;
#define DEPTH(SEGS, PART) depth_wgrad_vector(pass, cls, n, SEGS, s, from + c, dy + c, grad + c, PART)
        if (many == 3) {
          if (part)
            DEPTH(3, part);
          else
            DEPTH(3, 0);
        } else if (part)
          DEPTH(1, part);
        else
          DEPTH(1, 0);
#undef DEPTH
      }
    }
  }
}
