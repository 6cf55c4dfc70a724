/* Direct convolution on NHWC images: the kernels that run the plans of direct.h. Compiled three times, by
 * kernels_base.c (plain x86-64), kernels_avx2.c (-mavx2 -mfma) and kernels_avx512.c (-mavx512*), which put these static
 * functions into the tables of kernels.h.
 *
 * Output channels are taken in blocks of two vectors (2 * VF). One register tile is P output pixels x N vectors of
 * channels: a source float is broadcast against N vectors of weights. With VF = 8 the 6 x 2 tile keeps twelve sums, two
 * vectors of weights and one broadcast in AVX2's sixteen registers. A pixel's sum is formed in the same order whatever
 * tile it falls into, so its bits do not depend on its neighbours. The images of a call are one long row of pixels, so
 * that a block of weights is read once for all of them. Will not do: padding (see direct.h), threads. */
#ifndef CMKD_KERNELS_CPU_CONV_DIRECT_IMPL_H
#define CMKD_KERNELS_CPU_CONV_DIRECT_IMPL_H
#include "kernels/cpu/activation.h"
#include "kernels/cpu/conv/direct.h"
#include "kernels/cpu/vector.h"

#define BLOCK (2 * VF)  /* output channels whose weights are packed together */
#define TILE_PIXELS 6   /* of the widest tile */
#define MAX_TILE_K 2048 /* source floats summed at once: their weights stay in the second-level cache */

/* ---- forward and backward-data: register tiles ---- */

typedef struct tile_args {
  const cmkd_tap_run *run; /* (runs) */
  int runs;
  const float *weights; /* ([k][BLOCK]) */
  const float *bias;    /* (BLOCK), or NULL */
  cmkd_act act;
  int has_add;
  int part;                      /* channels of the last vector, 0: all VF */
  const float *src[TILE_PIXELS]; /* bases of the tile's pixels */
  const float *add[TILE_PIXELS]; /* what is added to each; only where has_add */
  float *dst[TILE_PIXELS];
} tile_args;

INLINE void tile(const tile_args *args, const int pixels, const int vectors) {
  const cmkd_act act = args->act;
  const int has_add = args->has_add, runs = args->runs, part = args->part;
  const cmkd_tap_run *run = args->run;
  vf sum[TILE_PIXELS][2];
  UNROLL
  for (int i = 0; i < pixels; i++) {
    UNROLL
    for (int j = 0; j < vectors; j++)
      sum[i][j] = (vf){0};
  }
  if (args->bias) {
    UNROLL
    for (int j = 0; j < vectors; j++) {
      const vf b = load_part(args->bias + j * VF, j == vectors - 1 ? part : 0);
      UNROLL
      for (int i = 0; i < pixels; i++)
        sum[i][j] = b;
    }
  }
  for (int r = 0; r < runs; r++) {
    const float *src[TILE_PIXELS];
    UNROLL
    for (int i = 0; i < pixels; i++)
      src[i] = args->src[i] + run[r].offset;
    const float *weights = args->weights + (int64_t)run[r].weights * BLOCK;
    const intptr_t length = run[r].length;
    for (intptr_t k = 0; k < length; k++, weights += BLOCK) {
      vf w[2];
      UNROLL
      for (int j = 0; j < vectors; j++)
        w[j] = load(weights + j * VF);
      UNROLL
      for (int i = 0; i < pixels; i++) {
        const vf b = splat(src[i][k]);
        UNROLL
        for (int j = 0; j < vectors; j++)
          sum[i][j] += b * w[j];
      }
    }
  }
  UNROLL
  for (int j = 0; j < vectors; j++) {
    const int lanes = j == vectors - 1 ? part : 0;
    if (has_add) {
      UNROLL
      for (int i = 0; i < pixels; i++)
        sum[i][j] += load_part(args->add[i] + j * VF, lanes);
    }
    if (act != CMKD_ACT_NONE) {
      UNROLL
      for (int i = 0; i < pixels; i++)
        sum[i][j] = activate(sum[i][j], act);
    }
    UNROLL
    for (int i = 0; i < pixels; i++)
      store_part(args->dst[i] + j * VF, sum[i][j], lanes);
  }
}

NOINLINE void tile_6x2(const tile_args *args) { tile(args, 6, 2); }
NOINLINE void tile_4x2(const tile_args *args) { tile(args, 4, 2); }
NOINLINE void tile_2x2(const tile_args *args) { tile(args, 2, 2); }
NOINLINE void tile_1x2(const tile_args *args) { tile(args, 1, 2); }
NOINLINE void tile_6x1(const tile_args *args) { tile(args, 6, 1); }
NOINLINE void tile_4x1(const tile_args *args) { tile(args, 4, 1); }
NOINLINE void tile_2x1(const tile_args *args) { tile(args, 2, 1); }
NOINLINE void tile_1x1(const tile_args *args) { tile(args, 1, 1); }

typedef void tile_function(const tile_args *args);
static tile_function *const tile_table[2][4] = {{tile_6x1, tile_4x1, tile_2x1, tile_1x1},
                                                {tile_6x2, tile_4x2, tile_2x2, tile_1x2}};
static const int tile_pixels[4] = {TILE_PIXELS, 4, 2, 1};

/* All pixels of a region in n images, for one block of `channels` output channels; src, dst and add point to the
 * region's first pixel, at the block. args: what all tiles share; the rest of it is scratch. */
static void run_region(const cmkd_direct_pass *pass, const cmkd_conv_region *region, int n, int channels,
                       const float *src, const float *add, float *dst, tile_args *args) {
  tile_function *const *tiles = tile_table[channels > VF];
  const int pixels = n * region->ny * region->nx;
  const int64_t src_wrap = pass->src_row - (int64_t)region->nx * pass->src_col,
                dst_wrap = pass->dst_row - (int64_t)region->nx * pass->dst_col;
  const int64_t src_next = pass->src_image - region->ny * pass->src_row,
                dst_next = pass->dst_image - region->ny * pass->dst_row;
  const int64_t add_offset = add ? add - dst : 0; /* one pointer walks for both */
  args->has_add = add != NULL;
  args->part = channels % VF;
  int x = 0, y = 0, width = 0;
  for (int done = 0; done < pixels; done += tile_pixels[width]) {
    while (pixels - done < tile_pixels[width])
      width++;
    for (int i = 0; i < tile_pixels[width]; i++) {
      args->src[i] = src;
      args->dst[i] = dst;
      src += pass->src_col;
      dst += pass->dst_col;
      if (++x < region->nx) continue;
      x = 0;
      src += src_wrap;
      dst += dst_wrap;
      if (++y < region->ny) continue;
      y = 0;
      src += src_next;
      dst += dst_next;
    }
    if (add)
      for (int i = 0; i < tile_pixels[width]; i++)
        args->add[i] = args->dst[i] + add_offset;
    tiles[width](args);
  }
}

/* One block of output channels of a region; dst, add, bias at the block's first channel, src at the group. Sums of more
 * than MAX_TILE_K floats are formed in several rounds, each continuing from what the destination holds. */
static void run_block(const cmkd_direct_pass *pass, const cmkd_conv_region *region, int n, int channels,
                      const float *src, const float *weights, const cmkd_epilogue *epilogue, float *dst) {
  tile_args args = {.weights = weights, .bias = epilogue->bias};
  const float *add = epilogue->add;
  int first = 0;
  do {
    int end = first, k = 0;
    while (end < region->runs && (end == first || k + region->run[end].length <= MAX_TILE_K))
      k += region->run[end++].length;
    args.run = region->run + first;
    args.runs = end - first;
    args.act = end == region->runs ? epilogue->act : CMKD_ACT_NONE;
    run_region(pass, region, n, channels, src, add, dst, &args);
    args.bias = NULL;
    add = dst;
    first = end;
  } while (first < region->runs);
}

static void conv_run(const cmkd_direct_pass *pass, int n, const float *src, const float *weights,
                     const cmkd_epilogue *epilogue, float *dst) {
  const int blocks = (pass->outs + BLOCK - 1) / BLOCK;
  for (int r = 0; r < pass->regions; r++) {
    const cmkd_conv_region *region = &pass->region[r];
    const int64_t start = region->y0 * pass->dst_y + region->x0 * pass->dst_x;
    for (int g = 0; g < pass->groups; g++)
      for (int b = 0; b < blocks; b++) {
        const int channel = g * pass->outs + b * BLOCK, left = pass->outs - b * BLOCK;
        const cmkd_epilogue own = {.bias = epilogue->bias ? epilogue->bias + channel : NULL,
                                   .add = epilogue->add ? epilogue->add + start + channel : NULL,
                                   .act = epilogue->act};
        run_block(pass, region, n, left < BLOCK ? left : BLOCK, src + region->base + g * pass->src_group,
                  weights + region->weights + (int64_t)(g * blocks + b) * region->k * BLOCK, &own,
                  dst + start + channel);
      }
  }
}

/* ---- weight gradients ---- */

#if VF == 16
#define WGRAD_FLOATS 12 /* of the widest tile: AVX-512 has 32 registers, the others 16 */
#else
#define WGRAD_FLOATS 6
#endif

/* One tile: grad[i][channel] += x[i] * dy[channel], summed over `rows` rows of `cols` pixels, ny rows an image. Steps
 * are in floats: between pixels, between rows, and what comes on top after the last row of an image. */
typedef struct wgrad_args {
  const float *x;  /* source floats of the first pixel */
  const float *dy; /* output gradients of the first pixel, at the block */
  float *grad;     /* ([floats][BLOCK]) */
  int ny, rows, cols;
  int64_t x_col, x_row, x_next;
  int64_t dy_col, dy_row, dy_next;
} wgrad_args;

INLINE void wgrad_tile(const wgrad_args *args, const int floats, const int vectors) {
  const int ny = args->ny, rows = args->rows, cols = args->cols;
  const int64_t x_col = args->x_col, x_row = args->x_row, dy_col = args->dy_col, dy_row = args->dy_row;
  const float *x = args->x, *dy = args->dy;
  float *grad = args->grad;
  vf sum[WGRAD_FLOATS][2];
  UNROLL
  for (int i = 0; i < floats; i++) {
    UNROLL
    for (int j = 0; j < vectors; j++)
      sum[i][j] = load(grad + i * BLOCK + j * VF);
  }
  for (int r = 0, y = 0; r < rows; r++, x += x_row, dy += dy_row) {
    const float *xp = x, *dyp = dy;
    for (int c = 0; c < cols; c++, xp += x_col, dyp += dy_col) {
      vf d[2];
      UNROLL
      for (int j = 0; j < vectors; j++)
        d[j] = load(dyp + j * VF);
      UNROLL
      for (int i = 0; i < floats; i++) {
        const vf b = splat(xp[i]);
        UNROLL
        for (int j = 0; j < vectors; j++)
          sum[i][j] += b * d[j];
      }
    }
    if (++y == ny) {
      y = 0;
      x += args->x_next;
      dy += args->dy_next;
    }
  }
  UNROLL
  for (int i = 0; i < floats; i++) {
    UNROLL
    for (int j = 0; j < vectors; j++)
      store(grad + i * BLOCK + j * VF, sum[i][j]);
  }
}

NOINLINE void wgrad_4x2(const wgrad_args *args) { wgrad_tile(args, 4, 2); }
NOINLINE void wgrad_2x2(const wgrad_args *args) { wgrad_tile(args, 2, 2); }
NOINLINE void wgrad_1x2(const wgrad_args *args) { wgrad_tile(args, 1, 2); }
NOINLINE void wgrad_4x1(const wgrad_args *args) { wgrad_tile(args, 4, 1); }
NOINLINE void wgrad_2x1(const wgrad_args *args) { wgrad_tile(args, 2, 1); }
NOINLINE void wgrad_1x1(const wgrad_args *args) { wgrad_tile(args, 1, 1); }
typedef void wgrad_function(const wgrad_args *args);
#if VF == 16
NOINLINE void wgrad_12x2(const wgrad_args *args) { wgrad_tile(args, 12, 2); }
NOINLINE void wgrad_8x2(const wgrad_args *args) { wgrad_tile(args, 8, 2); }
NOINLINE void wgrad_12x1(const wgrad_args *args) { wgrad_tile(args, 12, 1); }
NOINLINE void wgrad_8x1(const wgrad_args *args) { wgrad_tile(args, 8, 1); }
static wgrad_function *const wgrad_table[2][5] = {{wgrad_12x1, wgrad_8x1, wgrad_4x1, wgrad_2x1, wgrad_1x1},
                                                  {wgrad_12x2, wgrad_8x2, wgrad_4x2, wgrad_2x2, wgrad_1x2}};
static const int wgrad_floats[5] = {WGRAD_FLOATS, 8, 4, 2, 1};
#else
NOINLINE void wgrad_6x2(const wgrad_args *args) { wgrad_tile(args, 6, 2); }
NOINLINE void wgrad_6x1(const wgrad_args *args) { wgrad_tile(args, 6, 1); }
static wgrad_function *const wgrad_table[2][4] = {{wgrad_6x1, wgrad_4x1, wgrad_2x1, wgrad_1x1},
                                                  {wgrad_6x2, wgrad_4x2, wgrad_2x2, wgrad_1x2}};
static const int wgrad_floats[4] = {WGRAD_FLOATS, 4, 2, 1};
#endif

/* What all tiles pass over before the next images or rows are read: several images, or some rows of one. */
typedef struct wgrad_band {
  int images, rows;
} wgrad_band;

/* As much as stays in the first-level cache (about 6144 floats), but enough pixels to be worth reading every gradient
 * for: more of them where the gradients (over 65536 floats) no longer fit the second-level cache. */
static wgrad_band choose_band(const cmkd_direct_pass *pass, int n, int ny, int blocks) {
  const int64_t nx = pass->dst_row / pass->dst_col, row_floats = pass->src_row + nx * BLOCK,
                grad_floats = pass->groups * blocks * (int64_t)pass->region[0].k * BLOCK;
  const int64_t cached = 6144 / (row_floats > 0 ? row_floats : 1), least = (grad_floats > 65536 ? 128 : 48) / nx;
  int64_t rows = cached > least ? cached : least;
  if (rows < 1) rows = 1;
  if (rows < ny) return (wgrad_band){.images = 1, .rows = (int)rows};
  return (wgrad_band){.images = (int)(rows / ny < n ? rows / ny : n), .rows = ny};
}

/* The part of a rectangle that lies in `rows` output rows of `images` images; src and ddst point to the first of those
 * rows. */
static void rect_wgrad(const cmkd_direct_pass *pass, const cmkd_wgrad_rect *rect, int images, int rows,
                       const float *src, const float *ddst, float *grad) {
  const int blocks = (pass->outs + BLOCK - 1) / BLOCK;
  wgrad_args args = {.ny = rows,
                     .rows = images * rows,
                     .cols = rect->nx,
                     .x_col = pass->src_col,
                     .x_row = pass->src_row,
                     .x_next = pass->src_image - rows * pass->src_row,
                     .dy_col = pass->dst_col,
                     .dy_row = pass->dst_row,
                     .dy_next = pass->dst_image - rows * pass->dst_row};
  /* tiles of the second width where they fill the run and the widest do not */
  const int start = rect->length % wgrad_floats[0] && rect->length % wgrad_floats[1] == 0;
  for (int g = 0; g < pass->groups; g++)
    for (int b = 0; b < blocks; b++) {
      wgrad_function *const *tiles = wgrad_table[pass->outs - b * BLOCK > VF];
      float *to = grad + ((int64_t)(g * blocks + b) * pass->region[0].k + rect->weights) * BLOCK;
      args.dy = ddst + rect->ddst + g * pass->outs + b * BLOCK;
      int width = start;
      for (int i = 0; i < rect->length; i += wgrad_floats[width]) {
        while (rect->length - i < wgrad_floats[width])
          width++;
        args.x = src + rect->src + g * pass->src_group + i;
        args.grad = to + (int64_t)i * BLOCK;
        tiles[width](&args);
      }
    }
}

/* Lanes past the last output channel collect neighbouring floats, which the caller drops; it keeps BLOCK floats
 * readable past the end of ddst. */
static void conv_wgrad(const cmkd_direct_pass *pass, int n, const float *src, const float *ddst, float *grad) {
  const int ny = (int)(pass->dst_image / pass->dst_row);
  const wgrad_band band = choose_band(pass, n, ny, (pass->outs + BLOCK - 1) / BLOCK);
  for (int i = 0; i < n; i += band.images)
    for (int y = 0; y < ny; y += band.rows)
      for (int r = 0; r < pass->rects; r++) {
        const cmkd_wgrad_rect *rect = &pass->rect[r];
        const int first = y > rect->y ? y : rect->y;
        int end = rect->y + rect->ny;
        if (end > y + band.rows) end = y + band.rows;
        if (first < end)
          rect_wgrad(pass, rect, n - i < band.images ? n - i : band.images, end - first,
                     src + i * pass->src_image + first * pass->src_row,
                     ddst + i * pass->dst_image + first * pass->dst_row, grad);
      }
}

/* ---- depthwise: vectors run along the channels, every run is one tap ---- */

#define MAX_TAPS 9        /* windows up to 3x3 keep their weights in registers (AVX2: 9 of 16) */
#define DEPTH_GRAD_TAPS 3 /* taps whose gradients are summed at once */

typedef struct depth_args {
  const cmkd_direct_pass *pass;
  const cmkd_conv_region *region;
  int n;
  const float *src;     /* base of the region's first pixel, at the vector of channels */
  const float *weights; /* ([k][channels]), at the vector */
  const float *bias;    /* or NULL */
  const float *add;     /* or NULL */
  cmkd_act act;
  float *dst; /* the region's first pixel */
} depth_args;

/* One vector of channels (the first `part` of it, 0: all) of a region in n images. taps: a constant, the region's; or
 * 0: then any number, and weights from memory. */
INLINE void depth_vector(const depth_args *args, const int taps, const int part) {
  const cmkd_direct_pass *pass = args->pass;
  const cmkd_conv_region *region = args->region;
  const float *weights = args->weights, *add = args->add;
  const cmkd_act act = args->act;
  const int n = args->n;
  vf w[MAX_TAPS], bias = {0};
  if (args->bias) bias = load_part(args->bias, part);
  UNROLL
  for (int t = 0; t < taps; t++)
    w[t] = load_part(weights + (int64_t)region->run[t].weights * pass->groups, part);
  for (int i = 0; i < n; i++)
    for (int y = 0; y < region->ny; y++) {
      const float *src = args->src + i * pass->src_image + y * pass->src_row;
      int64_t at = i * pass->dst_image + y * pass->dst_row;
      for (int x = 0; x < region->nx; x++, src += pass->src_col, at += pass->dst_col) {
        vf sum = bias;
        UNROLL
        for (int t = 0; t < taps; t++)
          sum += load_part(src + region->run[t].offset, part) * w[t];
        if (!taps)
          for (int t = 0; t < region->runs; t++)
            sum += load_part(src + region->run[t].offset, part) *
                   load_part(weights + (int64_t)region->run[t].weights * pass->groups, part);
        if (add) sum += load_part(add + at, part);
        store_part(args->dst + at, activate(sum, act), part);
      }
    }
}

static void depth_run(const cmkd_direct_pass *pass, int n, const float *src, const float *weights,
                      const cmkd_epilogue *epilogue, float *dst) {
  const int channels = pass->groups;
  for (int r = 0; r < pass->regions; r++) {
    const cmkd_conv_region *region = &pass->region[r];
    const int64_t start = region->y0 * pass->dst_y + region->x0 * pass->dst_x;
    for (int c = 0; c < channels; c += VF) {
      const int part = channels - c < VF ? channels - c : 0;
      const depth_args args = {.pass = pass,
                               .region = region,
                               .n = n,
                               .src = src + region->base + c,
                               .weights = weights + region->weights + c,
                               .bias = epilogue->bias ? epilogue->bias + c : NULL,
                               .add = epilogue->add ? epilogue->add + start + c : NULL,
                               .act = epilogue->act,
                               .dst = dst + start + c};
      if (part) {
        if (region->runs == 9)
          depth_vector(&args, 9, part);
        else
          depth_vector(&args, 0, part);
        continue;
      }
      switch (region->runs) { /* 3x3: inside 9, edges 6, corners 4; phases of stride 2: 4, 2, 1 */
      case 9: depth_vector(&args, 9, 0); break;
      case 6: depth_vector(&args, 6, 0); break;
      case 4: depth_vector(&args, 4, 0); break;
      case 2: depth_vector(&args, 2, 0); break;
      case 1: depth_vector(&args, 1, 0); break;
      default: depth_vector(&args, 0, 0); break;
      }
    }
  }
}

typedef struct depth_wgrad_args {
  const cmkd_direct_pass *pass;
  const cmkd_conv_region *region;
  int n;
  const float *src, *ddst; /* the region's first pixel, at the vector of channels */
  float *grad;             /* ([k][channels]), at the vector */
} depth_wgrad_args;

/* Gradients of `taps` taps of a region from tap `first` on, for one vector of channels. */
INLINE void depth_wgrad_vector(const depth_wgrad_args *args, const int taps, int first, const int part) {
  const cmkd_direct_pass *pass = args->pass;
  const cmkd_conv_region *region = args->region;
  const cmkd_tap_run *run = region->run + first;
  vf sum[DEPTH_GRAD_TAPS];
  UNROLL
  for (int t = 0; t < taps; t++)
    sum[t] = load_part(args->grad + (int64_t)run[t].weights * pass->groups, part);
  for (int i = 0; i < args->n; i++)
    for (int y = 0; y < region->ny; y++) {
      const float *src = args->src + i * pass->src_image + y * pass->src_row,
                  *dy = args->ddst + i * pass->dst_image + y * pass->dst_row;
      for (int x = 0; x < region->nx; x++, src += pass->src_col, dy += pass->dst_col) {
        const vf d = load_part(dy, part);
        UNROLL
        for (int t = 0; t < taps; t++)
          sum[t] += load_part(src + run[t].offset, part) * d;
      }
    }
  UNROLL
  for (int t = 0; t < taps; t++)
    store_part(args->grad + (int64_t)run[t].weights * pass->groups, sum[t], part);
}

static void depth_wgrad(const cmkd_direct_pass *pass, int n, const float *src, const float *ddst, float *grad) {
  const int channels = pass->groups;
  for (int r = 0; r < pass->regions; r++) {
    const cmkd_conv_region *region = &pass->region[r];
    const float *from = src + region->base, *dy = ddst + region->y0 * pass->dst_y + region->x0 * pass->dst_x;
    for (int c = 0; c < channels; c += VF) {
      const int part = channels - c < VF ? channels - c : 0;
      const depth_wgrad_args args = {pass, region, n, from + c, dy + c, grad + c};
      int t = 0;
      for (; t + DEPTH_GRAD_TAPS <= region->runs; t += DEPTH_GRAD_TAPS)
        if (part)
          depth_wgrad_vector(&args, DEPTH_GRAD_TAPS, t, part);
        else
          depth_wgrad_vector(&args, DEPTH_GRAD_TAPS, t, 0);
      for (; t < region->runs; t++)
        if (part)
          depth_wgrad_vector(&args, 1, t, part);
        else
          depth_wgrad_vector(&args, 1, t, 0);
    }
  }
}
#endif
