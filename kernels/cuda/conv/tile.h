/* One block's tile of C = A B with float FMA (mma.h: on tensor cores). What A and B are is up to the pass (gemm.cu): it
 * loads slices of 8 elements, which lie either along K (8 values of one row of A or column of B) or across it (8 rows
 * or columns at one K). The next slices are loaded into registers while the current ones are multiplied from one of two
 * shared buffers, so that a step has one barrier. */
#ifndef CMKD_KERNELS_CUDA_CONV_TILE_H
#define CMKD_KERNELS_CUDA_CONV_TILE_H
#include "kernels/cuda/conv/own.h"

/* M x N results a block, TM x TN of them a thread (in runs of up to 4), K a step. */
template <int M_, int N_, int K_, int TM_, int TN_> struct conv_tile {
  static constexpr bool TENSOR = false;
  static constexpr int M = M_, N = N_, K = K_, TM = TM_, TN = TN_;
  static constexpr int THREADS = (M / TM) * (N / TN), SLICES = K / 8;
  static constexpr int RM = TM < 4 ? TM : 4, RN = TN < 4 ? TN : 4; /* runs */
  static constexpr int LOADS_A = (M * SLICES + THREADS - 1) / THREADS, LOADS_B = (N * SLICES + THREADS - 1) / THREADS;
  static_assert(THREADS % SLICES == 0 && THREADS % (M / 8) == 0 && THREADS % (N / 8) == 0,
                "all of a thread's slices have one column");
};

/* Which slices of an operand's (ROWS, K) a thread loads: slice i starts at row(i), k(i). Neighbours take neighbouring
 * slices in memory. */
template <class TILE, int ROWS, bool ALONG_K> struct conv_slices {
  static __device__ __forceinline__ int at(int i) { return (int)threadIdx.x + i * TILE::THREADS; }
  static __device__ __forceinline__ int row(int i) { return ALONG_K ? at(i) / TILE::SLICES : at(i) % (ROWS / 8) * 8; }
  static __device__ __forceinline__ int k(int i) { return ALONG_K ? at(i) % TILE::SLICES * 8 : at(i) / (ROWS / 8); }
  static __device__ __forceinline__ bool inside(int i) { return at(i) < ROWS * TILE::SLICES; }
};

/* One operand's shared buffer: (K, ROWS) floats. Slices along K are written as columns; the swizzle spreads the slices
 * that a warp writes at once over the banks. */
template <class TILE, int ROWS, bool ALONG_K> struct conv_buffer {
  using slices = conv_slices<TILE, ROWS, ALONG_K>;
  static constexpr int MASK = (ROWS < 32 ? ROWS : 32) - 1, STEP = 32 / TILE::SLICES < 4 ? 4 : 32 / TILE::SLICES;
  static __device__ __forceinline__ int place(int k, int row) {
    return k * ROWS + (ALONG_K ? row ^ ((k / 8 * STEP) & MASK) : row);
  }
  template <class T> static __device__ __forceinline__ void put(float *buffer, int i, const conv_eight<T> &slice) {
    if (!slices::inside(i)) return;
    const int r = slices::row(i), k0 = slices::k(i);
    if constexpr (ALONG_K) {
      float *to = buffer + place(k0, r);
#pragma unroll
      for (int j = 0; j < 8; j++)
        to[j * ROWS] = element(slice, j);
    } else {
      float4 *to = (float4 *)(buffer + place(k0, r));
      to[0] = make_float4(element(slice, 0), element(slice, 1), element(slice, 2), element(slice, 3));
      to[1] = make_float4(element(slice, 4), element(slice, 5), element(slice, 6), element(slice, 7));
    }
  }
  /* COUNT values at k in runs of RUN: run r starts at first + r * (ROWS / (COUNT / RUN)). */
  template <int COUNT, int RUN>
  static __device__ __forceinline__ void get(const float *buffer, int k, int first, float (&v)[COUNT]) {
#pragma unroll
    for (int r = 0; r < COUNT / RUN; r++) {
      const float *from = buffer + place(k, first + r * (ROWS / (COUNT / RUN)));
      if constexpr (RUN == 4) {
        const float4 four = *(const float4 *)from;
        v[r * 4] = four.x;
        v[r * 4 + 1] = four.y;
        v[r * 4 + 2] = four.z;
        v[r * 4 + 3] = four.w;
      } else {
#pragma unroll
        for (int j = 0; j < RUN; j++)
          v[r * RUN + j] = from[j];
      }
    }
  }
};

/* PASS: types A and B of the elements, ALONG_K_A and ALONG_K_B; start() and load_a/load_b(i, slice) of the current
 * step, advance() to the next; store(row, column, run) of RM x RN results, COLUMN_RUNS where it likes long RM. `steps`
 * of K. */
template <class PASS, class TILE> static __device__ __forceinline__ void conv_tile_run(PASS &pass, int steps) {
  using buffer_a = conv_buffer<TILE, TILE::M, PASS::ALONG_K_A>;
  using buffer_b = conv_buffer<TILE, TILE::N, PASS::ALONG_K_B>;
  CMKD_SHARED(float4, shared_a, 2 * TILE::K * TILE::M / 4);
  CMKD_SHARED(float4, shared_b, 2 * TILE::K * TILE::N / 4);
  float *const a = (float *)shared_a, *const b = (float *)shared_b;
  const int first_m = (int)threadIdx.x / (TILE::N / TILE::TN) * TILE::RM,
            first_n = (int)threadIdx.x % (TILE::N / TILE::TN) * TILE::RN;
  conv_eight<typename PASS::A> next_a[TILE::LOADS_A];
  conv_eight<typename PASS::B> next_b[TILE::LOADS_B];
  float sum[TILE::TM][TILE::TN];
#pragma unroll
  for (int i = 0; i < TILE::TM; i++)
#pragma unroll
    for (int j = 0; j < TILE::TN; j++)
      sum[i][j] = 0;

  for (int step = -1; step < steps; step++) {
    if (step + 1 < steps) {
#pragma unroll
      for (int i = 0; i < TILE::LOADS_A; i++)
        pass.load_a(i, next_a[i]);
#pragma unroll
      for (int i = 0; i < TILE::LOADS_B; i++)
        pass.load_b(i, next_b[i]);
      pass.advance();
    }
    if (step >= 0) {
      const float *from_a = a + (step & 1) * (TILE::K * TILE::M), *from_b = b + (step & 1) * (TILE::K * TILE::N);
#pragma unroll
      for (int k = 0; k < TILE::K; k++) {
        float va[TILE::TM], vb[TILE::TN];
        buffer_a::template get<TILE::TM, TILE::RM>(from_a, k, first_m, va);
        buffer_b::template get<TILE::TN, TILE::RN>(from_b, k, first_n, vb);
#pragma unroll
        for (int i = 0; i < TILE::TM; i++)
#pragma unroll
          for (int j = 0; j < TILE::TN; j++)
            sum[i][j] += va[i] * vb[j];
      }
    }
    if (step + 1 < steps) {
#pragma unroll
      for (int i = 0; i < TILE::LOADS_A; i++)
        buffer_a::put(a + (~step & 1) * (TILE::K * TILE::M), i, next_a[i]);
#pragma unroll
      for (int i = 0; i < TILE::LOADS_B; i++)
        buffer_b::put(b + (~step & 1) * (TILE::K * TILE::N), i, next_b[i]);
      __syncthreads();
    }
  }
#pragma unroll
  for (int i = 0; i < TILE::TM / TILE::RM; i++)
#pragma unroll
    for (int j = 0; j < TILE::TN / TILE::RN; j++) {
      float run[TILE::RM][TILE::RN];
#pragma unroll
      for (int k = 0; k < TILE::RM; k++)
#pragma unroll
        for (int l = 0; l < TILE::RN; l++)
          run[k][l] = sum[i * TILE::RM + k][j * TILE::RN + l];
      pass.store(first_m + i * (TILE::M / (TILE::TM / TILE::RM)), first_n + j * (TILE::N / (TILE::TN / TILE::RN)), run);
    }
}
#endif
