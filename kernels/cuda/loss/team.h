/* A team works on one row: one warp (WARP, synchronised by __syncwarp; several teams share a block) or a whole block.
 * Sums, maxima and prefix sums over its threads, in a fixed order: every thread gets the same bits. All threads of the
 * team must call. */
#ifndef CMKD_KERNELS_CUDA_LOSS_TEAM_H
#define CMKD_KERNELS_CUDA_LOSS_TEAM_H
#include "kernels/cuda/device.h"

#define TEAM_VALUES 8 /* most values reduced at once */
#define TEAM_SHARED \
  (2 * TEAM_VALUES * \
   32) /* doubles of shared memory for a block team: two buffers in turn, so that a reduction needs one barrier */

struct add_op {
  static __device__ __forceinline__ double of(double a, double b) { return a + b; }
};
struct max_op {
  static __device__ __forceinline__ double of(double a, double b) { return a > b ? a : b; }
};

template <bool WARP> struct team {
  int rank, size, lane, warp, warps, turn;
  double *shared; /* (TEAM_SHARED) shared; unused by a warp team */

  __device__ __forceinline__ void start(double *buffer) {
    lane = (int)threadIdx.x & 31;
    warp = WARP ? 0 : (int)threadIdx.x >> 5;
    rank = WARP ? lane : (int)threadIdx.x;
    size = WARP ? 32 : (int)blockDim.x;
    warps = size >> 5;
    turn = 0;
    shared = buffer;
  }
  __device__ __forceinline__ void sync() const {
    if constexpr (WARP)
      __syncwarp();
    else
      __syncthreads();
  }
  __device__ __forceinline__ double *next_buffer() {
    double *r = shared + turn * (TEAM_VALUES * 32);
    turn ^= 1;
    return r;
  }

  template <class OP, int K> __device__ __forceinline__ void reduce(double (&v)[K], double neutral) {
    static_assert(K <= TEAM_VALUES, "too many values");
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
      for (int d = 16; d > 0; d >>= 1)
        v[k] = OP::of(v[k], __shfl_xor_sync(CMKD_WARP, v[k], d));
    if constexpr (!WARP) {
      double *r = next_buffer();
      if (lane == 0)
        for (int k = 0; k < K; k++)
          r[k * 32 + warp] = v[k];
      __syncthreads();
#pragma unroll
      for (int k = 0; k < K; k++) {
        v[k] = lane < warps ? r[k * 32 + lane] : neutral;
#pragma unroll
        for (int d = 16; d > 0; d >>= 1)
          v[k] = OP::of(v[k], __shfl_xor_sync(CMKD_WARP, v[k], d));
      }
    }
  }
  template <int K> __device__ __forceinline__ void sum(double (&v)[K]) { reduce<add_op>(v, 0.0); }
  template <int K> __device__ __forceinline__ void maximum(double (&v)[K]) { reduce<max_op>(v, -HUGE_VAL); }
  __device__ __forceinline__ double sum(double value) {
    double v[1] = {value};
    sum(v);
    return v[0];
  }

  /* Sum of `value` over the lower ranks. */
  __device__ __forceinline__ double before(double value) {
    double mine = inclusive(value), exclusive = __shfl_up_sync(CMKD_WARP, mine, 1);
    if (lane == 0) exclusive = 0;
    if constexpr (!WARP) {
      double *r = next_buffer();
      if (lane == 31) r[warp] = mine;
      __syncthreads();
      double total = inclusive(lane < warps ? r[lane] : 0.0);
      double offset = __shfl_sync(CMKD_WARP, total, warp > 0 ? warp - 1 : 0);
      if (warp > 0) exclusive += offset;
    }
    return exclusive;
  }

private:
  __device__ __forceinline__ double inclusive(double v) const {
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      double up = __shfl_up_sync(CMKD_WARP, v, d);
      if (lane >= d) v += up;
    }
    return v;
  }
};
#endif
