/* Convolutions as implicit GEMMs, any window, stride, padding and groups, without atomics. With the window's taps and a
 * group's channels padded to 8 (c8, k8), so that a slice of 8 belongs to one tap: forward           y  (n oh ow, k) = x
 * gathered (n oh ow, taps c8)  times  w (taps c8, k) backward data     dx (n h w, c)       = dy gathered (n h w, taps
 * k8)   times  w (taps k8, c) backward weights  dw (taps c8, k)     = x gathered (taps c8, n oh ow)  times  dy (n oh
 * ow, k), the pixels split over blocks Backward data with stride s runs s * s classes of input pixels, each with the
 * taps that reach it. A linear layer is made a 1 x 1 convolution of one pixel with h w c8 channels. Where both factors
 * are 16 bits wide tensor cores multiply, else float FMA. Not here: tf32, Winograd. */
#include "kernels/cuda/conv/mma.h"
#include "kernels/cuda/conv/tile.h"

typedef struct gemm_args {
  const void *a, *b; /* factors: x and w (forward), dy and w (backward data), x and dy (backward weights) */
  void *out;         /* y, dx, or dw or its parts */
  const float *bias;
  const void *residual;
  int n, h, w, oh, ow, kh, kw, stride, pad, groups;
  int c, k, cg, kg, c8, k8;         /* cg, kg: of a group, padded c8, k8 */
  int real, wrap;                   /* channel i of a group's input is padding where i % wrap >= real */
  int x_stride, y_stride, w_stride; /* elements from pixel to pixel, of w and dw from tap to tap */
  int x_vector, y_vector, w_vector; /* slices of 8 are aligned */
  int x_run, y_run, w_run;          /* runs of 4 are */
  int act, accumulate, splits, split_pixels;
  int64_t part; /* elements of a part of dw */
} gemm_args;

/* Which tap and channel a slice of K is at. */
struct gemm_cursor {
  int y, x, channel;
  __device__ __forceinline__ void start(int at, int channels, int width) {
    y = x = channel = 0;
    skip(at, channels, width);
  }
  __device__ __forceinline__ void skip(int by, int channels, int width) {
    channel += by;
    while (channel >= channels) {
      channel -= channels;
      if (++x == width) {
        x = 0;
        y++;
      }
    }
  }
};

/* TX: element of x and w, TY: of y and dy */
template <class TX, class TY, class TILE> struct forward_pass {
  using A = TX;
  using B = TX;
  static constexpr bool ALONG_K_A = true, ALONG_K_B = true, COLUMN_RUNS = false;
  using rows_a = conv_slices<TILE, TILE::M, true>;
  using rows_b = conv_slices<TILE, TILE::N, true>;
  const gemm_args &g;
  const TX *image[TILE::LOADS_A], *filter[TILE::LOADS_B];
  int y0[TILE::LOADS_A], x0[TILE::LOADS_A], m0, n0, group, rows;
  gemm_cursor at;

  __device__ __forceinline__ explicit forward_pass(const gemm_args &args) : g(args) {}
  __device__ __forceinline__ int start() {
    m0 = (int)blockIdx.x * TILE::M;
    n0 = (int)blockIdx.y * TILE::N;
    group = (int)blockIdx.z;
    rows = g.n * g.oh * g.ow;
#pragma unroll
    for (int i = 0; i < TILE::LOADS_A; i++) {
      const int m = m0 + rows_a::row(i), line = m / g.ow, n = line / g.oh;
      const bool there = rows_a::inside(i) && m < rows;
      image[i] = (const TX *)g.a + (there ? (int64_t)n * g.h * g.w * g.x_stride + group * g.cg : 0);
      y0[i] = there ? (line - n * g.oh) * g.stride - g.pad : -(1 << 30);
      x0[i] = (m - line * g.ow) * g.stride - g.pad;
    }
#pragma unroll
    for (int i = 0; i < TILE::LOADS_B; i++) {
      const int k = n0 + rows_b::row(i);
      filter[i] = rows_b::inside(i) && k < g.kg
                      ? (const TX *)g.b + (int64_t)(group * g.kg + k) * g.kh * g.kw * g.w_stride
                      : nullptr;
    }
    at.start(rows_a::k(0), g.c8, g.kw);
    return (g.kh * g.kw * g.c8 + TILE::K - 1) / TILE::K;
  }
  __device__ __forceinline__ void load_a(int i, conv_eight<TX> &slice) const {
    const int y = y0[i] + at.y, x = x0[i] + at.x;
    const bool there = at.y < g.kh && (unsigned)y < (unsigned)g.h && (unsigned)x < (unsigned)g.w;
    fetch8(slice, image[i] + (there ? (int64_t)(y * g.w + x) * g.x_stride + at.channel : 0),
           there ? g.cg - at.channel : 0, g.x_vector);
  }
  __device__ __forceinline__ void load_b(int i, conv_eight<TX> &slice) const {
    const bool there = filter[i] && at.y < g.kh;
    fetch8(slice, filter[i] + (there ? (at.y * g.kw + at.x) * g.w_stride + at.channel : 0),
           there ? g.cg - at.channel : 0, g.w_vector);
  }
  __device__ __forceinline__ void advance() { at.skip(TILE::K, g.c8, g.kw); }
  template <int RM, int RN> __device__ __forceinline__ void store(int row, int column, float (&run)[RM][RN]) const {
    const int k = n0 + column, count = g.kg + (group == g.groups - 1 ? g.y_stride - g.k : 0) - k,
              channel = group * g.kg + k;
#pragma unroll
    for (int i = 0; i < RM; i++) {
      const int m = m0 + row + i;
      if (m >= rows || count < 1) continue;
      const int64_t to = (int64_t)m * g.y_stride + channel;
      conv_finish(run[i], g.bias, g.residual ? (const TY *)g.residual + to : nullptr, g.act, channel, g.k, count,
                  g.y_run);
      put_run<RN>((TY *)g.out + to, run[i], count, g.y_run);
    }
  }
};

template <class TX, class TY, class TILE> struct data_pass {
  using A = TY;
  using B = TX;
  static constexpr bool ALONG_K_A = true, ALONG_K_B = false, COLUMN_RUNS = false;
  using rows_a = conv_slices<TILE, TILE::M, true>;
  using rows_b = conv_slices<TILE, TILE::N, false>;
  const gemm_args &g;
  const TY *image[TILE::LOADS_A];
  int y0[TILE::LOADS_A], x0[TILE::LOADS_A], m0, n0, group, rows;
  int class_y, class_x, class_h, class_w, tap_y, tap_x, taps_y,
      taps_x; /* of this block: its pixels are class_y + stride * (0 .. class_h-1), its taps tap_y + stride * (0 ..
                 taps_y-1) */
  gemm_cursor at, at_b[TILE::LOADS_B];

  __device__ __forceinline__ explicit data_pass(const gemm_args &args) : g(args) {}
  __device__ __forceinline__ int start() {
    const int s = g.stride, classes = s * s, part = (int)blockIdx.z % classes;
    m0 = (int)blockIdx.x * TILE::M;
    n0 = (int)blockIdx.y * TILE::N;
    group = (int)blockIdx.z / classes;
    class_y = part / s;
    class_x = part % s;
    class_h = class_y < g.h ? (g.h - class_y + s - 1) / s : 0;
    class_w = class_x < g.w ? (g.w - class_x + s - 1) / s : 0;
    tap_y = (class_y + g.pad) % s;
    tap_x = (class_x + g.pad) % s;
    taps_y = tap_y < g.kh ? (g.kh - tap_y + s - 1) / s : 0;
    taps_x = tap_x < g.kw ? (g.kw - tap_x + s - 1) / s : 0;
    rows = g.n * class_h * class_w;
    if (m0 >= rows) return 0;
#pragma unroll
    for (int i = 0; i < TILE::LOADS_A; i++) {
      const int m = m0 + rows_a::row(i), line = m / class_w, n = line / class_h;
      const bool there = rows_a::inside(i) && m < rows;
      image[i] = (const TY *)g.a + (there ? (int64_t)n * g.oh * g.ow * g.y_stride + group * g.kg : 0);
      y0[i] = there ? line - n * class_h + (class_y + g.pad) / s : -(1 << 30);
      x0[i] = m - line * class_w + (class_x + g.pad) / s;
    }
    at.start(rows_a::k(0), g.k8, taps_x);
#pragma unroll
    for (int i = 0; i < TILE::LOADS_B; i++)
      at_b[i].start(rows_b::k(i), g.k8, taps_x);
    return (taps_y * taps_x * g.k8 + TILE::K - 1) / TILE::K;
  }
  __device__ __forceinline__ void load_a(int i, conv_eight<TY> &slice) const {
    const int y = y0[i] - at.y, x = x0[i] - at.x;
    const bool there = at.y < taps_y && (unsigned)y < (unsigned)g.oh && (unsigned)x < (unsigned)g.ow;
    fetch8(slice, image[i] + (there ? (int64_t)(y * g.ow + x) * g.y_stride + at.channel : 0),
           there ? g.kg - at.channel : 0, g.y_vector);
  }
  __device__ __forceinline__ void load_b(int i, conv_eight<TX> &slice) const {
    const gemm_cursor &b = at_b[i];
    const int c = n0 + rows_b::row(i);
    const bool there = rows_b::inside(i) && b.y < taps_y && b.channel < g.kg && c < g.cg;
    const int64_t filter = (int64_t)(group * g.kg + b.channel) * g.kh + tap_y + b.y * g.stride;
    fetch8(slice, (const TX *)g.b + (there ? (filter * g.kw + tap_x + b.x * g.stride) * g.w_stride + c : 0),
           there ? g.cg - c : 0, g.w_vector);
  }
  __device__ __forceinline__ void advance() {
    at.skip(TILE::K, g.k8, taps_x);
#pragma unroll
    for (int i = 0; i < TILE::LOADS_B; i++)
      at_b[i].skip(TILE::K, g.k8, taps_x);
  }
  template <int RM, int RN> __device__ __forceinline__ void store(int row, int column, float (&run)[RM][RN]) const {
    const int c = n0 + column, count = g.cg + (group == g.groups - 1 ? g.x_stride - g.c : 0) - c;
#pragma unroll
    for (int i = 0; i < RM; i++) {
      const int m = m0 + row + i;
      if (m >= rows || count < 1) continue;
      const int line = m / class_w, n = line / class_h, y = class_y + (line - n * class_h) * g.stride,
                x = class_x + (m - line * class_w) * g.stride;
      TX *to = (TX *)g.out + ((int64_t)(n * g.h + y) * g.w + x) * g.x_stride + group * g.cg + c;
      if (g.accumulate) {
        float old[RN];
        get_run<RN>(to, old, count, g.x_run);
#pragma unroll
        for (int j = 0; j < RN; j++)
          run[i][j] += old[j];
      }
#pragma unroll
      for (int j = 0; j < RN; j++)
        if (c + j >= g.cg || (c + j) % g.wrap >= g.real) run[i][j] = 0;
      put_run<RN>(to, run[i], count, g.x_run);
    }
  }
};

template <class TX, class TY, class TILE> struct weights_pass {
  using A = TX;
  using B = TY;
  static constexpr bool ALONG_K_A = false, ALONG_K_B = false, COLUMN_RUNS = true;
  using rows_a = conv_slices<TILE, TILE::M, false>;
  using rows_b = conv_slices<TILE, TILE::N, false>;
  const gemm_args &g;
  int m0, n0, group, split, first, last; /* pixels */
  int tap_y, tap_x, channel;             /* of this thread's slices of x: one row for all */

  __device__ __forceinline__ explicit weights_pass(const gemm_args &args) : g(args) {}
  __device__ __forceinline__ int start() {
    m0 = (int)blockIdx.x * TILE::M;
    n0 = (int)blockIdx.y * TILE::N;
    group = (int)blockIdx.z / g.splits;
    split = (int)blockIdx.z % g.splits;
    first = split * g.split_pixels;
    last = min(first + g.split_pixels, g.n * g.oh * g.ow);
    const int m = m0 + rows_a::row(0), tap = m / g.c8;
    channel = m - tap * g.c8;
    tap_y = tap / g.kw;
    tap_x = tap - tap_y * g.kw;
    return first < last ? (last - first + TILE::K - 1) / TILE::K : 0;
  }
  __device__ __forceinline__ void load_a(int i, conv_eight<TX> &slice) const {
    const int pixel = first + rows_a::k(i), line = pixel / g.ow, n = line / g.oh;
    const int y = (line - n * g.oh) * g.stride - g.pad + tap_y, x = (pixel - line * g.ow) * g.stride - g.pad + tap_x;
    const bool there =
        rows_a::inside(i) && pixel < last && tap_y < g.kh && (unsigned)y < (unsigned)g.h && (unsigned)x < (unsigned)g.w;
    fetch8(slice,
           (const TX *)g.a + (there ? ((int64_t)(n * g.h + y) * g.w + x) * g.x_stride + group * g.cg + channel : 0),
           there ? g.cg - channel : 0, g.x_vector);
  }
  __device__ __forceinline__ void load_b(int i, conv_eight<TY> &slice) const {
    const int pixel = first + rows_b::k(i), k = n0 + rows_b::row(i);
    const bool there = rows_b::inside(i) && pixel < last && k < g.kg;
    fetch8(slice, (const TY *)g.b + (there ? (int64_t)pixel * g.y_stride + group * g.kg + k : 0), there ? g.kg - k : 0,
           g.y_vector);
  }
  __device__ __forceinline__ void advance() { first += TILE::K; }
  template <int RM, int RN> __device__ __forceinline__ void store(int row, int column, float (&run)[RM][RN]) const {
    const int m = m0 + row, tap = m / g.c8, c = m - tap * g.c8, count = tap < g.kh * g.kw ? g.w_stride - c : 0;
#pragma unroll
    for (int j = 0; j < RN; j++) {
      const int k = n0 + column + j;
      if (k >= (g.groups == 1 ? g.k8 : g.kg) || count < 1) continue;
      float v[RM];
#pragma unroll
      for (int i = 0; i < RM; i++)
        v[i] = k < g.kg && c + i < g.cg && (c + i) % g.wrap < g.real ? run[i][j] : 0.0f;
      put_run<RM>((float *)g.out + split * g.part + ((int64_t)(group * g.kg + k) * g.kh * g.kw + tap) * g.w_stride + c,
                  v, count, g.w_run);
    }
  }
};

template <class PASS, class TILE> __global__ void __launch_bounds__(TILE::THREADS)
    conv_gemm_kernel(const __grid_constant__ gemm_args g) {
  PASS pass(g);
  const int steps = pass.start();
  if constexpr (TILE::TENSOR)
    conv_mma_run<PASS, TILE>(pass, steps);
  else
    conv_tile_run<PASS, TILE>(pass, steps);
}

/* ---- host ---- */

/* The tiles of both kinds, largest first. cost: time a result beside the largest tile's; estimated from loads from
 * shared memory, not measured. */
typedef struct tile_shape {
  int m, n, k;
  double cost;
} tile_shape;
enum { TILE_WIDE, TILE_SQUARE, TILE_NARROW, TILE_SMALL, TILE_TINY, TILES = CMKD_CUDA_CONV_TILES };
static const tile_shape tiles[2][TILES] = {
    {{128, 64, 16, 1}, {64, 64, 16, 1.05}, {128, 16, 16, 1.5}, {32, 32, 32, 1.6}, {16, 16, 64, 4}},
    {{128, 64, 32, 1}, {64, 64, 32, 1.2}, {128, 16, 32, 2}, {32, 32, 64, 2.5}, {32, 16, 64, 4}}};
template <bool TENSOR> struct tile_set {
  using wide = conv_tile<128, 64, 16, 8, 8>;
  using square = conv_tile<64, 64, 16, 8, 4>;
  using narrow = conv_tile<128, 16, 16, 4, 4>;
  using small = conv_tile<32, 32, 32, 4, 4>;
  using tiny = conv_tile<16, 16, 64, 2, 2>;
};
template <> struct tile_set<true> {
  using wide = conv_mma_tile<128, 64, 32, 64, 32>;
  using square = conv_mma_tile<64, 64, 32, 32, 32>;
  using narrow = conv_mma_tile<128, 16, 32, 32, 16>;
  using small = conv_mma_tile<32, 32, 64, 16, 16>;
  using tiny = conv_mma_tile<32, 16, 64, 16, 16>;
};

/* The problem of a pass: m x n results in `grids` grids, inner products of length `inner` that may be cut into parts of
 * at least `least`. */
typedef struct gemm_plan {
  int tile, splits;
  int64_t inner;
} gemm_plan;
static gemm_plan plan_for(const cmkd_cuda_conv_shape *s, int tensor, int64_t m, int64_t n, int64_t inner, int64_t grids,
                          int least) {
  const tile_shape *const shapes = tiles[tensor];
  const int first = s->y_dtype == s->dtype ? TILE_WIDE : TILE_SMALL,
            asked = s->tile && s->tile - 1 > first ? s->tile - 1 : first;
  gemm_plan best = {asked, 1, inner};
  double best_cost = -1;
  for (int i = asked; i < (s->tile ? asked + 1 : TILES); i++) {
    const int64_t blocks = conv_ceil(m, shapes[i].m) * conv_ceil(n, shapes[i].n) * grids;
    int64_t splits = 1, inner_part = inner;
    if (least) {
      splits = conv_ceil(CONV_BLOCKS, blocks);
      if (splits > inner / least) splits = inner / least;
      if (splits > CONV_MAX_SPLITS) splits = CONV_MAX_SPLITS;
      if (splits < 1) splits = 1;
      inner_part = conv_ceil(conv_ceil(inner, splits), shapes[i].k) * shapes[i].k;
      splits = conv_ceil(inner, inner_part);
    }
    const double cost = (double)conv_ceil(blocks * splits, CONV_BLOCKS / 2) * shapes[i].m * shapes[i].n *
                        shapes[i].cost * (double)inner_part;
    if (best_cost >= 0 && cost >= best_cost) continue;
    best_cost = cost;
    best = gemm_plan{i, (int)splits, inner_part};
  }
  return best;
}

static gemm_args args_of(const cmkd_cuda_conv_shape *s) {
  gemm_args g;
  memset(&g, 0, sizeof g);
  g.n = s->n;
  g.h = s->h;
  g.w = s->w;
  g.oh = s->oh;
  g.ow = s->ow;
  g.kh = s->kh;
  g.kw = s->kw;
  g.stride = s->stride;
  g.pad = s->pad;
  g.groups = s->groups;
  g.c = s->c;
  g.k = s->k;
  g.x_stride = cmkd_cuda_stride(s->c);
  g.real = g.wrap = s->c;
  if (s->groups == 1 && s->kh == s->h && s->kw == s->w && s->pad == 0) { /* the window is the image */
    g.real = s->c;
    g.wrap = g.x_stride;
    g.c = g.x_stride = s->h * s->w * g.x_stride;
    g.h = g.w = g.kh = g.kw = g.stride = 1;
  }
  g.cg = g.c / g.groups;
  g.kg = g.k / g.groups;
  g.c8 = conv_round8(g.cg);
  g.k8 = conv_round8(g.kg);
  g.y_stride = s->y_stride;
  g.w_stride = g.groups > 1 ? g.cg : g.c8;
  g.x_vector = g.groups == 1 || g.cg % 8 == 0;
  g.y_vector = g.y_stride % 8 == 0 && (g.groups == 1 || g.kg % 8 == 0);
  g.w_vector = g.w_stride % 8 == 0;
  g.x_run = g.groups == 1 || g.cg % 4 == 0;
  g.y_run = g.y_stride % 4 == 0 && (g.groups == 1 || g.kg % 4 == 0);
  g.w_run = g.w_stride % 4 == 0;
  g.splits = 1;
  g.part = cmkd_cuda_conv_weights(s);
  return g;
}

template <class PASS, class TILE>
static void launch_tile(const gemm_args &g, int64_t m, int64_t n, int grids, cudaStream_t stream) {
  CMKD_LAUNCH((conv_gemm_kernel<PASS, TILE>),
              dim3((unsigned)conv_ceil(m, TILE::M), (unsigned)conv_ceil(n, TILE::N), (unsigned)grids),
              dim3(TILE::THREADS), 0, stream, g);
}
/* PASS<element of x and w, element of y and dy, tile>. Float y beside 16-bit x are logits, a small problem with small
 * tiles. */
template <template <class, class, class> class PASS, class TX, class TY>
static void launch_pass(const gemm_args &g, int tile, int64_t m, int64_t n, int grids, cudaStream_t stream) {
  using any = PASS<TX, TY, conv_tile<16, 16, 64, 2, 2>>;
  using set = tile_set<std::is_same_v<typename any::A, typename any::B> && sizeof(typename any::A) == 2>;
  if constexpr (std::is_same_v<TX, TY>) {
    if (tile == TILE_WIDE)
      return launch_tile<PASS<TX, TY, typename set::wide>, typename set::wide>(g, m, n, grids, stream);
    if (tile == TILE_SQUARE)
      return launch_tile<PASS<TX, TY, typename set::square>, typename set::square>(g, m, n, grids, stream);
    if (tile == TILE_NARROW)
      return launch_tile<PASS<TX, TY, typename set::narrow>, typename set::narrow>(g, m, n, grids, stream);
  }
  if (tile == TILE_SMALL)
    return launch_tile<PASS<TX, TY, typename set::small>, typename set::small>(g, m, n, grids, stream);
  launch_tile<PASS<TX, TY, typename set::tiny>, typename set::tiny>(g, m, n, grids, stream);
}
template <template <class, class, class> class PASS> static void launch(const cmkd_cuda_conv_shape *s,
                                                                        const gemm_args &g, int tile, int64_t m,
                                                                        int64_t n, int grids, cudaStream_t stream) {
  by_dtype(s->dtype, [&](auto *of) {
    using T = std::remove_pointer_t<decltype(of)>;
    if (s->y_dtype == s->dtype)
      launch_pass<PASS, T, T>(g, tile, m, n, grids, stream);
    else
      launch_pass<PASS, T, float>(g, tile, m, n, grids, stream);
  });
}
/* Whether both factors of a gradient are 16 bits wide. */
static int both_16bit(const cmkd_cuda_conv_shape *s) { return s->dtype != CMKD_F32 && s->y_dtype == s->dtype; }

static gemm_plan weights_plan(const cmkd_cuda_conv_shape *s, const gemm_args &g) {
  return plan_for(s, both_16bit(s), (int64_t)g.kh * g.kw * g.c8, g.k8, (int64_t)g.n * g.oh * g.ow, g.groups, 64);
}

int conv_gemm_splits(const cmkd_cuda_conv_shape *s) { return weights_plan(s, args_of(s)).splits; }

cmkd_status conv_gemm_forward(const cmkd_cuda_conv_shape *s, const void *x, const void *w, const cmkd_cuda_epilogue *e,
                              void *y, cudaStream_t stream, cmkd_error *err) {
  gemm_args g = args_of(s);
  g.a = x;
  g.b = w;
  g.out = y;
  if (e) {
    g.bias = e->bias;
    g.residual = e->residual;
    g.act = (int)e->act;
  }
  const int64_t m = (int64_t)g.n * g.oh * g.ow, n = g.kg + g.y_stride - g.k;
  launch<forward_pass>(s, g, plan_for(s, s->dtype != CMKD_F32, m, n, (int64_t)g.kh * g.kw * g.c8, g.groups, 0).tile, m,
                       n, g.groups, stream);
  return launch_status("convolution", err);
}

cmkd_status conv_gemm_backward_data(const cmkd_cuda_conv_shape *s, const void *dy, const void *w, void *dx,
                                    int accumulate, cudaStream_t stream, cmkd_error *err) {
  gemm_args g = args_of(s);
  g.a = dy;
  g.b = w;
  g.out = dx;
  g.accumulate = accumulate;
  const int classes = g.stride * g.stride;
  const int64_t m = (int64_t)g.n * conv_ceil(g.h, g.stride) * conv_ceil(g.w, g.stride),
                n = g.cg + g.x_stride - g.c; /* of the largest class */
  launch<data_pass>(s, g,
                    plan_for(s, both_16bit(s), m, n, (int64_t)g.kh * g.kw * g.k8, (int64_t)g.groups * classes, 0).tile,
                    m, n, g.groups * classes, stream);
  return launch_status("convolution, gradient of the input", err);
}

cmkd_status conv_gemm_backward_weights(const cmkd_cuda_conv_shape *s, const void *x, const void *dy, float *parts,
                                       cudaStream_t stream, cmkd_error *err) {
  gemm_args g = args_of(s);
  const gemm_plan plan = weights_plan(s, g);
  g.a = x;
  g.b = dy;
  g.out = parts;
  g.splits = plan.splits;
  g.split_pixels = (int)plan.inner;
  launch<weights_pass>(s, g, plan.tile, (int64_t)g.kh * g.kw * g.c8, g.k8, g.groups * plan.splits, stream);
  return launch_status("convolution, gradient of the weights", err);
}
