/* Batch norm with its activation and the residual sum before it, four launches a training step: moments, forward;
 * reduce, backward. The first of each pair leaves two floats a channel and slab of pixels, the second starts every
 * block by merging those of its own channels, always in the same order, so no block waits for another. Sums are float
 * within a thread (tens of pixels), double beyond. Not here: statistics over several devices. */
#include "kernels/cuda/channels.h"

#define NORM_GROUPS 4 /* of a tile: 64 bytes of halves; more would make the merging of a block longer */
#define NORM_BLOCKS \
  264 /* two for each multiprocessor of an H100; a constant, so that every GPU computes the same bytes */
#define NORM_PARTIALS 2048 /* (channel, slab) pairs that a block merges at most, 16 KB of L2 */

struct __align__(8) norm_pair {
  float a, b;
}; /* (slabs, stride): mean and M2 of a slab; or sums of dy and dy xhat */

struct slabs {
  int count, pixels;
}; /* a slab's pixels; the last one has what is left */

struct norm_args {
  cmkd_cuda_norm n;
  norm_pair *partial; /* NULL: forward takes the running mean and var */
  tiling tile;
  slabs work;  /* of this launch */
  slabs merge; /* of the partials */
  int stride;
  double inverse; /* 1 / pixels */
};

/* Pixels of a lane, loaded together before they are used: 64 bytes a thread and array in flight. */
template <class T> struct chunk {
  static constexpr int pixels = (int)(8 / sizeof(T)), words = (int)(8 * sizeof(T) / 16);
  cmkd_words raw[pixels][words];
  __device__ __forceinline__ void fetch(const void *array, int64_t at, int64_t step, int count) {
#pragma unroll
    for (int k = 0; k < pixels; k++)
      if (k < count)
#pragma unroll
        for (int w = 0; w < words; w++)
          raw[k][w] = ((const cmkd_words *)((const T *)array + at + k * step))[w];
  }
  __device__ __forceinline__ void get(int k, float v[8]) const { load8((const T *)raw[k], v); }
};

/* A thread's pixels of the block's slab: `count` of them, the first at element `at`, `step` elements apart. */
struct stretch {
  int64_t at, step;
  int count, slab_pixels;
};
static __device__ __forceinline__ stretch stretch_of(const norm_args &a, const tile_place &s) {
  stretch r;
  const int64_t begin = (int64_t)blockIdx.x * a.work.pixels, left = a.n.pixels - begin;
  r.slab_pixels = left < a.work.pixels ? (int)left : a.work.pixels;
  r.count = s.lane >= 0 && s.lane < r.slab_pixels ? (r.slab_pixels - s.lane + a.tile.lanes - 1) / a.tile.lanes : 0;
  r.at = (begin + s.lane) * a.stride + s.first + s.group * 8;
  r.step = (int64_t)a.tile.lanes * a.stride;
  return r;
}

/* Eight channels of a tile's row in shared memory. */
static __device__ __forceinline__ void take8(const float *row, int group, float v[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++)
    v[i] = row[group * 8 + i];
}

/* Mean and M2 of one slab and tile. Chunks are merged pairwise (Chan, Golub, LeVeque 1983), lanes about their common
 * mean: nothing cancels. */
template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    norm_moments_kernel(const __grid_constant__ norm_args a) {
  CMKD_SHARED(double, shared, TILE_CAPACITY);
  CMKD_SHARED(double, mean_of, TILE_CHANNELS);
  CMKD_SHARED(double, m2_of, TILE_CHANNELS);
  const tile_place s = place_of(a.tile, (int)blockIdx.y, a.stride);
  const stretch r = stretch_of(a, s);
  float mean[8] = {0, 0, 0, 0, 0, 0, 0, 0}, m2[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  constexpr int K = chunk<T>::pixels;
  for (int done = 0; done < r.count; done += K) {
    const int count = r.count - done < K ? r.count - done : K;
    chunk<T> x;
    x.fetch(a.n.x, r.at + done * r.step, r.step, count);
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, v[K][8];
#pragma unroll
    for (int k = 0; k < K; k++)
      if (k < count) {
        x.get(k, v[k]);
#pragma unroll
        for (int i = 0; i < 8; i++)
          sum[i] += v[k][i];
      }
    const float middle_share = 1.0f / (float)count, share = (float)count / (float)(done + count),
                weight = (float)done * share;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float middle = sum[i] * middle_share, away = middle - mean[i];
      mean[i] += away * share;
      m2[i] += away * away * weight;
#pragma unroll
      for (int k = 0; k < K; k++)
        if (k < count) m2[i] += (v[k][i] - middle) * (v[k][i] - middle);
    }
  }
  double mine[8];
  const double inverse = 1.0 / r.slab_pixels;
  for (int i = 0; i < 8; i++)
    mine[i] = (double)mean[i] * r.count;
  lane_sums(a.tile, s, mine, shared, mean_of);
  for (int i = 0; i < 8; i++) {
    const double away = (double)mean[i] - mean_of[s.group * 8 + i] * inverse;
    mine[i] = (double)m2[i] + away * away * r.count;
  }
  lane_sums(a.tile, s, mine, shared, m2_of);
  const int column = (int)threadIdx.x, channel = s.first + column;
  if (column < s.columns && channel < a.stride) {
    norm_pair p;
    p.a = (float)(mean_of[column] * inverse);
    p.b = (float)m2_of[column];
    a.partial[(int64_t)blockIdx.x * a.stride + channel] = p;
  }
}

/* Mean and variance of the batch for `channel`, in the threads of part 0. M2 about the first slab's mean, in double. */
static __device__ __forceinline__ void merge_moments(const norm_args &a, const tile_place &s, double *shared,
                                                     double *mean, double *var) {
  const int column = (int)threadIdx.x % s.columns, part = (int)threadIdx.x / s.columns,
            parts = TILE_THREADS / s.columns, channel = s.first + column;
  double v[3] = {0, 0, 0}, origin = 0;
  if (part < parts && channel < a.n.c) {
    origin = (double)a.partial[channel].a;
    for (int slab = part; slab < a.merge.count; slab += parts) {
      const norm_pair p = a.partial[(int64_t)slab * a.stride + channel];
      const int64_t left = a.n.pixels - (int64_t)slab * a.merge.pixels;
      const double pixels = (double)(left < a.merge.pixels ? left : a.merge.pixels), away = (double)p.a - origin;
      v[0] += pixels * away;
      v[1] += pixels * away * away;
      v[2] += (double)p.b;
    }
  }
  part_sums(s.columns, parts < a.merge.count ? parts : a.merge.count, v, shared);
  const double away = v[0] * a.inverse, m2 = v[2] + v[1] - v[0] * away;
  *mean = origin + away;
  *var = m2 > 0 || !(m2 <= 0) ? m2 * a.inverse : 0; /* NaN stays NaN */
}

template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    norm_forward_kernel(const __grid_constant__ norm_args a) {
  CMKD_SHARED(double, shared, 3 * TILE_THREADS);
  CMKD_SHARED(float, row, 3 * TILE_CHANNELS); /* mean, gamma rstd, beta */
  const tile_place s = place_of(a.tile, (int)blockIdx.y, a.stride);
  const stretch r = stretch_of(a, s);
  constexpr int K = chunk<T>::pixels;
  chunk<T> x, residual;
  x.fetch(a.n.x, r.at, r.step, r.count); /* on its way while the partials are merged */
  if (a.n.residual) residual.fetch(a.n.residual, r.at, r.step, r.count);

  const int column = (int)threadIdx.x, channel = s.first + column, inside = column < s.columns && channel < a.n.c;
  double mean = 0, var = 0;
  if (a.partial)
    merge_moments(a, s, shared, &mean, &var);
  else if (inside) {
    mean = (double)a.n.mean[channel];
    var = (double)a.n.var[channel];
  }
  if (column < s.columns) {
    const float rstd = inside ? 1.0f / sqrtf((float)(var + (double)a.n.eps)) : 0.0f;
    row[column] = (float)mean;
    row[TILE_CHANNELS + column] = inside ? a.n.gamma[channel] * rstd : 0.0f;
    row[2 * TILE_CHANNELS + column] = inside ? a.n.beta[channel] : 0.0f;
    if (a.partial && blockIdx.x == 0 && channel < a.stride) {
      a.n.mean[channel] = (float)mean;
      a.n.rstd[channel] = rstd;
      a.n.var[channel] = (float)var;
    }
  }
  __syncthreads();
  if (r.count == 0) return;
  float middle[8], scale[8], beta[8];
  take8(row, s.group, middle);
  take8(row + TILE_CHANNELS, s.group, scale);
  take8(row + 2 * TILE_CHANNELS, s.group, beta);
  for (int done = 0; done < r.count; done += K) {
    const int64_t at = r.at + done * r.step;
    if (done) {
      x.fetch(a.n.x, at, r.step, r.count - done);
      if (a.n.residual) residual.fetch(a.n.residual, at, r.step, r.count - done);
    }
#pragma unroll
    for (int k = 0; k < K; k++)
      if (k < r.count - done) {
        float v[8], more[8];
        x.get(k, v);
        if (a.n.residual) residual.get(k, more);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          v[i] = (v[i] - middle[i]) * scale[i] + beta[i];
          v[i] = activate(a.n.act, a.n.residual ? v[i] + more[i] : v[i]);
        }
        store8((T *)a.n.y + at + k * r.step, v);
      }
  }
}

/* Sums of g = dy where the activation let through, and of g xhat, of one slab and tile. */
template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    norm_backward_sums_kernel(const __grid_constant__ norm_args a) {
  CMKD_SHARED(double, shared, TILE_CAPACITY);
  CMKD_SHARED(double, sum_of, TILE_CHANNELS);
  CMKD_SHARED(double, product_of, TILE_CHANNELS);
  const tile_place s = place_of(a.tile, (int)blockIdx.y, a.stride);
  const stretch r = stretch_of(a, s);
  const bool masked = a.n.act != CMKD_ACT_NONE;
  float mean[8], rstd[8], sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, product[8] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int channel = s.first + s.group * 8 + i;
    mean[i] = channel < a.n.c ? a.n.mean[channel] : 0.0f;
    rstd[i] = channel < a.n.c ? a.n.rstd[channel] : 0.0f;
  }
  constexpr int K = chunk<T>::pixels;
  for (int done = 0; done < r.count; done += K) {
    const int64_t at = r.at + done * r.step;
    chunk<T> x, y, dy;
    x.fetch(a.n.x, at, r.step, r.count - done);
    dy.fetch(a.n.dy, at, r.step, r.count - done);
    if (masked) y.fetch(a.n.y, at, r.step, r.count - done);
#pragma unroll
    for (int k = 0; k < K; k++)
      if (k < r.count - done) {
        float v[8], g[8];
        dy.get(k, g);
        if (masked) {
          y.get(k, v);
#pragma unroll
          for (int i = 0; i < 8; i++)
            g[i] = passes(a.n.act, v[i]) ? g[i] : 0.0f;
          if (a.n.mask_dy) store8((T *)a.n.dy + at + k * r.step, g);
        }
        x.get(k, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sum[i] += g[i];
          product[i] += g[i] * ((v[i] - mean[i]) * rstd[i]);
        }
      }
  }
  double mine[8];
  for (int i = 0; i < 8; i++)
    mine[i] = (double)sum[i];
  lane_sums(a.tile, s, mine, shared, sum_of);
  for (int i = 0; i < 8; i++)
    mine[i] = (double)product[i];
  lane_sums(a.tile, s, mine, shared, product_of);
  const int column = (int)threadIdx.x, channel = s.first + column;
  if (column < s.columns && channel < a.stride) {
    norm_pair p;
    p.a = (float)sum_of[column];
    p.b = (float)product_of[column];
    a.partial[(int64_t)blockIdx.x * a.stride + channel] = p;
  }
}

/* dx = gamma rstd (g - mean(g) - xhat mean(g xhat)) */
template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    norm_backward_kernel(const __grid_constant__ norm_args a) {
  CMKD_SHARED(double, shared, 2 * TILE_THREADS);
  CMKD_SHARED(float, row, 4 * TILE_CHANNELS); /* mean, gamma rstd, mean(g), rstd mean(g xhat) */
  const tile_place s = place_of(a.tile, (int)blockIdx.y, a.stride);
  const stretch r = stretch_of(a, s);
  const bool masked = a.n.act != CMKD_ACT_NONE && !a.n.mask_dy; /* reduce did it already */
  constexpr int K = chunk<T>::pixels;
  chunk<T> x, y, dy;
  dy.fetch(a.n.dy, r.at, r.step, r.count);
  if (a.n.dx) x.fetch(a.n.x, r.at, r.step, r.count);
  if (masked) y.fetch(a.n.y, r.at, r.step, r.count);

  const int column = (int)threadIdx.x % s.columns, part = (int)threadIdx.x / s.columns,
            parts = TILE_THREADS / s.columns, channel = s.first + column, inside = channel < a.n.c;
  double v[2] = {0, 0};
  if (part < parts && inside)
    for (int slab = part; slab < a.merge.count; slab += parts) {
      const norm_pair p = a.partial[(int64_t)slab * a.stride + channel];
      v[0] += (double)p.a;
      v[1] += (double)p.b;
    }
  part_sums(s.columns, parts < a.merge.count ? parts : a.merge.count, v, shared);
  if (part == 0) {
    const float rstd = inside ? a.n.rstd[channel] : 0.0f;
    row[column] = inside ? a.n.mean[channel] : 0.0f;
    row[TILE_CHANNELS + column] = inside ? a.n.gamma[channel] * rstd : 0.0f;
    row[2 * TILE_CHANNELS + column] = (float)(v[0] * a.inverse);
    row[3 * TILE_CHANNELS + column] = (float)(v[1] * a.inverse) * rstd;
    if (blockIdx.x == 0 && channel < a.stride) {
      a.n.dbeta[channel] = (float)v[0];
      a.n.dgamma[channel] = (float)v[1];
    }
  }
  __syncthreads();
  if (r.count == 0) return;
  float middle[8], scale[8], mean_g[8], slope[8];
  take8(row, s.group, middle);
  take8(row + TILE_CHANNELS, s.group, scale);
  take8(row + 2 * TILE_CHANNELS, s.group, mean_g);
  take8(row + 3 * TILE_CHANNELS, s.group, slope);
  for (int done = 0; done < r.count; done += K) {
    const int64_t at = r.at + done * r.step;
    if (done) {
      dy.fetch(a.n.dy, at, r.step, r.count - done);
      if (a.n.dx) x.fetch(a.n.x, at, r.step, r.count - done);
      if (masked) y.fetch(a.n.y, at, r.step, r.count - done);
    }
#pragma unroll
    for (int k = 0; k < K; k++)
      if (k < r.count - done) {
        float g[8], w[8];
        dy.get(k, g);
        if (masked) {
          y.get(k, w);
#pragma unroll
          for (int i = 0; i < 8; i++)
            g[i] = passes(a.n.act, w[i]) ? g[i] : 0.0f;
        }
        if (a.n.dx) {
          x.get(k, w);
#pragma unroll
          for (int i = 0; i < 8; i++)
            w[i] = scale[i] * (g[i] - mean_g[i] - (w[i] - middle[i]) * slope[i]);
          give8((T *)a.n.dx + at + k * r.step, w, a.n.accumulate);
        }
        if (a.n.dresidual) give8((T *)a.n.dresidual + at + k * r.step, g, a.n.accumulate_residual);
      }
  }
}

__global__ void __launch_bounds__(TILE_THREADS)
    norm_running_kernel(const __grid_constant__ cmkd_cuda_running r, int rows) {
  const int i = (int)(blockIdx.x * TILE_THREADS + threadIdx.x);
  if (i >= r.channels || (r.halted && *r.halted)) return;
  const double n = (double)rows * (double)r.pixels[i], unbiased = n > 1 ? n / (n - 1) : 1,
               share = (double)r.momentum[i];
  r.mean[i] = (float)((double)r.mean[i] + share * ((double)r.batch_mean[i] - (double)r.mean[i]));
  r.var[i] = (float)((double)r.var[i] + share * ((double)r.batch_var[i] * unbiased - (double)r.var[i]));
}

/* At most `most` slabs a tile, none of them empty; a block needs at least `at_once` pixels a lane to be worth it. */
static slabs slabs_of(const tiling &t, int64_t pixels, int at_once, int most) {
  const int64_t rounds = (pixels + (int64_t)t.lanes * at_once - 1) / ((int64_t)t.lanes * at_once),
                wanted = rounds < most ? rounds : most;
  const int64_t each = ((pixels + t.lanes - 1) / t.lanes + wanted - 1) / wanted * t.lanes;
  slabs s;
  s.pixels = (int)each;
  s.count = (int)((pixels + each - 1) / each);
  return s;
}
static slabs partial_slabs(const tiling &t, int64_t pixels) {
  const int by_blocks = (NORM_BLOCKS + t.tiles - 1) / t.tiles, by_merge = NORM_PARTIALS / (8 * t.groups),
            most = by_blocks < by_merge ? by_blocks : by_merge;
  return slabs_of(t, pixels, chunk<__half>::pixels, most < 128 ? most : 128);
}
/* A slab counts its pixels in an int. */
static int in_range(int64_t pixels, int c) { return pixels >= 1 && pixels <= 1 << 30 && c >= 1 && c <= 65536; }

size_t cmkd_cuda_norm_scratch(int64_t pixels, int c) {
  if (!in_range(pixels, c)) return 0;
  return (size_t)partial_slabs(tiling_of(c, NORM_GROUPS), pixels).count * (size_t)cmkd_cuda_stride(c) *
         sizeof(norm_pair);
}

typedef enum norm_pass { NORM_MOMENTS, NORM_FORWARD, NORM_REDUCE, NORM_BACKWARD, NORM_INFER } norm_pass;

/* The pointers that a pass needs are there. */
static int complete(const cmkd_cuda_norm *n, norm_pass pass) {
  if (!n->x || (pass != NORM_INFER && !n->partial)) return 0;
  if (pass == NORM_MOMENTS) return 1;
  if (!n->mean || !(pass == NORM_INFER ? n->var : n->rstd)) return 0;
  if (pass == NORM_FORWARD || pass == NORM_INFER) return n->y && n->gamma && n->beta && n->var && n->eps > 0;
  if (!n->dy || (n->act != CMKD_ACT_NONE && !n->y)) return 0;
  return pass == NORM_REDUCE || (n->gamma && n->dgamma && n->dbeta);
}

static cmkd_status run(const cmkd_cuda_norm *norm, norm_pass pass, void *stream, cmkd_error *err) {
  if (!norm || !float_dtype(norm->dtype) || !in_range(norm->pixels, norm->c) || (int)norm->act < CMKD_ACT_NONE ||
      (int)norm->act > CMKD_ACT_RELU6 || !complete(norm, pass))
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "batch norm: %lld pixels of %d channels are out of range, or a pointer or dtype is missing",
                     norm ? (long long)norm->pixels : 0, norm ? norm->c : 0);
  norm_args a;
  a.n = *norm;
  a.partial = pass == NORM_INFER ? NULL : (norm_pair *)norm->partial;
  a.stride = cmkd_cuda_stride(norm->c);
  a.inverse = 1.0 / (double)norm->pixels;
  a.tile = tiling_of(norm->c, NORM_GROUPS);
  a.merge = partial_slabs(a.tile, norm->pixels);
  const int most = (NORM_BLOCKS + a.tile.tiles - 1) / a.tile.tiles;
  a.work = pass == NORM_MOMENTS || pass == NORM_REDUCE
               ? a.merge
               : slabs_of(a.tile, norm->pixels, norm->dtype == CMKD_F32 ? chunk<float>::pixels : chunk<__half>::pixels,
                          most);
  const dim3 grid((unsigned)a.work.count, (unsigned)a.tile.tiles), block(TILE_THREADS);
  by_dtype(norm->dtype, [&](auto *t) {
    typedef std::remove_pointer_t<decltype(t)> T;
    if (pass == NORM_MOMENTS)
      CMKD_LAUNCH(norm_moments_kernel<T>, grid, block, 0, (cudaStream_t)stream, a);
    else if (pass == NORM_REDUCE)
      CMKD_LAUNCH(norm_backward_sums_kernel<T>, grid, block, 0, (cudaStream_t)stream, a);
    else if (pass == NORM_BACKWARD)
      CMKD_LAUNCH(norm_backward_kernel<T>, grid, block, 0, (cudaStream_t)stream, a);
    else
      CMKD_LAUNCH(norm_forward_kernel<T>, grid, block, 0, (cudaStream_t)stream, a);
  });
  return launch_status("batch norm", err);
}

cmkd_status cmkd_cuda_norm_moments(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err) {
  return run(norm, NORM_MOMENTS, stream, err);
}
cmkd_status cmkd_cuda_norm_forward(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err) {
  return run(norm, NORM_FORWARD, stream, err);
}
cmkd_status cmkd_cuda_norm_backward_sums(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err) {
  return run(norm, NORM_REDUCE, stream, err);
}
cmkd_status cmkd_cuda_norm_backward(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err) {
  return run(norm, NORM_BACKWARD, stream, err);
}
cmkd_status cmkd_cuda_norm_infer(const cmkd_cuda_norm *norm, void *stream, cmkd_error *err) {
  return run(norm, NORM_INFER, stream, err);
}

cmkd_status cmkd_cuda_norm_running(const cmkd_cuda_running *r, int rows, void *stream, cmkd_error *err) {
  if (!r->mean || !r->var || !r->batch_mean || !r->batch_var || !r->pixels || !r->momentum || r->channels < 1 ||
      rows < 1)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "running statistics: %d channels of %d images are out of range, or a pointer is NULL", r->channels,
                     rows);
  CMKD_LAUNCH(norm_running_kernel, dim3((unsigned)((r->channels + TILE_THREADS - 1) / TILE_THREADS)),
              dim3(TILE_THREADS), 0, (cudaStream_t)stream, *r, rows);
  return launch_status("running statistics", err);
}
