/* What norm.cu, pool.cu and pointwise.cu share: activations, adding to a gradient, and sums over pixels for many
 * channels at once. For those sums a block is a tile: `groups` neighbouring groups of 8 channels times as many lanes as
 * fit. Consecutive threads take consecutive groups of a pixel, then the next pixel, so a warp reads whole sectors; a
 * lane takes every lanes-th pixel of its slab. Any number of groups is possible; threads left over (fewer than a
 * lane's) idle. */
#ifndef CMKD_KERNELS_CUDA_CHANNELS_H
#define CMKD_KERNELS_CUDA_CHANNELS_H
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.h"

#define TILE_THREADS 256
#define TILE_GROUPS 8 /* most groups of a tile */
#define TILE_CHANNELS (8 * TILE_GROUPS)
#define TILE_CAPACITY (8 * (TILE_THREADS + TILE_GROUPS)) /* doubles of shared memory for lane_sums */

static __device__ __forceinline__ float activate(int act, float v) { /* NaN stays NaN */
  if (act != CMKD_ACT_NONE && v < 0.0f) v = 0.0f;
  return act == CMKD_ACT_RELU6 && v > 6.0f ? 6.0f : v;
}
/* From the output: did the activation let the input through? */
static __device__ __forceinline__ bool passes(int act, float y) {
  return act == CMKD_ACT_NONE || (y > 0.0f && (act == CMKD_ACT_RELU || y < 6.0f));
}

/* Eight numbers of a gradient: written, or added to what is there and rounded once. */
template <class T> static __device__ __forceinline__ void give8(T *to, float v[8], int accumulate) {
  if (accumulate) {
    float old[8];
    load8(to, old);
#pragma unroll
    for (int i = 0; i < 8; i++)
      v[i] += old[i];
  }
  store8(to, v);
}

/* The pools' part of cmkd_cuda_forward and cmkd_cuda_backward (pool.cu): arguments are checked, launch_status is the
 * caller's. */
void cmkd_cuda_pool_forward(const cmkd_cuda_call *call, cudaStream_t stream);
void cmkd_cuda_pool_backward(const cmkd_cuda_call *call, cudaStream_t stream);

/* All channels cut into tiles of equal size; the last one may have fewer groups. */
struct tiling {
  int groups, lanes, tiles;
};
static inline tiling tiling_of(int c, int most_groups) {
  tiling t;
  const int all = cmkd_cuda_stride(c) / 8;
  t.tiles = (all + most_groups - 1) / most_groups;
  t.groups = (all + t.tiles - 1) / t.tiles;
  t.tiles = (all + t.groups - 1) / t.groups;
  t.lanes = TILE_THREADS / t.groups;
  return t;
}

/* A thread's place in its tile: columns are the tile's channels. */
struct tile_place {
  int lane;    /* -1: left over */
  int group;   /* of the tile */
  int first;   /* channel of the tensor that the tile starts with */
  int columns; /* the tile's channels, those beyond the tensor included */
};
static __device__ __forceinline__ tile_place place_of(const tiling &t, int tile, int stride) {
  tile_place s;
  s.lane = (int)threadIdx.x / t.groups;
  s.group = (int)threadIdx.x - s.lane * t.groups;
  s.first = tile * t.groups * 8;
  s.columns = t.groups * 8;
  if (s.lane >= t.lanes || s.first + s.group * 8 >= stride) s.lane = -1;
  return s;
}

/* The second half of a sum: thread (part, column) = (threadIdx.x / columns, threadIdx.x % columns) brings K values, and
 * the threads of part 0 get the sums over `parts` parts. shared: K * TILE_THREADS doubles, free again after the
 * caller's next barrier. All threads call. */
template <int K>
static __device__ __forceinline__ void part_sums(int columns, int parts, double (&v)[K], double *shared) {
#pragma unroll
  for (int k = 0; k < K; k++)
    shared[k * TILE_THREADS + (int)threadIdx.x] = v[k];
  __syncthreads();
  if ((int)threadIdx.x < columns)
    for (int part = 1; part < parts; part++)
#pragma unroll
      for (int k = 0; k < K; k++)
        v[k] += shared[k * TILE_THREADS + part * columns + (int)threadIdx.x];
}

/* sum[channel of the tile] = v of all lanes; threads without a lane bring zeros. shared: TILE_CAPACITY doubles, sum:
 * TILE_CHANNELS. All threads call; shared is free again and sum is there for all when they return. */
static __device__ __forceinline__ void lane_sums(const tiling &t, const tile_place &s, const double (&v)[8],
                                                 double *shared, double *sum) {
  const int pitch = TILE_THREADS + t.groups; /* column by column in neighbouring banks */
  const int column = (int)threadIdx.x % s.columns, part = (int)threadIdx.x / s.columns, fit = TILE_THREADS / s.columns,
            parts = fit < t.lanes ? fit : t.lanes;
#pragma unroll
  for (int i = 0; i < 8; i++)
    shared[i * pitch + (int)threadIdx.x] = v[i];
  __syncthreads();
  const int i = column / t.groups, group = column - i * t.groups;
  double mine[1] = {0};
  if (part < parts)
    for (int lane = part; lane < t.lanes; lane += parts)
      mine[0] += shared[i * pitch + lane * t.groups + group];
  __syncthreads();
  part_sums(s.columns, parts, mine, shared);
  if ((int)threadIdx.x < s.columns) sum[group * 8 + i] = mine[0];
  __syncthreads();
}
#endif
