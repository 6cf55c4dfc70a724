/* One block's tile of C = A B on tensor cores: tile.h's counterpart for factors that are both half or both bfloat16,
 * sums in float. Slices go to shared memory as they come, along K or across it, which is one or the other layout of a
 * fragment; results come back through shared memory. */
#ifndef CMKD_KERNELS_CUDA_CONV_MMA_H
#define CMKD_KERNELS_CUDA_CONV_MMA_H
#include "kernels/cuda/conv/tile.h"

/* M x N results a block, WM x WN of them a warp, K a step. */
template <int M_, int N_, int K_, int WM_, int WN_> struct conv_mma_tile {
  static constexpr bool TENSOR = true;
  static constexpr int M = M_, N = N_, K = K_, WM = WM_, WN = WN_;
  static constexpr int THREADS = (M / WM) * (N / WN) * 32, SLICES = K / 8;
  static constexpr int LOADS_A = (M * SLICES + THREADS - 1) / THREADS, LOADS_B = (N * SLICES + THREADS - 1) / THREADS;
  static_assert(THREADS % SLICES == 0 && THREADS % (M / 8) == 0 && THREADS % (N / 8) == 0,
                "all of a thread's slices have one column");
};

/* Shared memory in units of what fragments must be aligned to. */
struct alignas(32) conv_line {
  uint32_t word[8];
};

/* One operand's shared buffer of T: (ROWS, K) along K, else (K, ROWS); 8 elements more from line to line keep the banks
 * apart. */
template <class TILE, int ROWS, bool ALONG_K> struct conv_mma_buffer {
  using slices = conv_slices<TILE, ROWS, ALONG_K>;
  static constexpr int LINE = (ALONG_K ? TILE::K : ROWS) + 8, SIZE = (ALONG_K ? ROWS : TILE::K) * LINE;
  static __device__ __forceinline__ int place(int row, int k) { return ALONG_K ? row * LINE + k : k * LINE + row; }
  template <class T> static __device__ __forceinline__ void put(T *buffer, int i, const conv_eight<T> &slice) {
    if (slices::inside(i)) *(conv_words<16> *)(buffer + place(slices::row(i), slices::k(i))) = slice.raw;
  }
};

/* wmma::load_matrix_sync from shared memory. */
template <class FRAGMENT, class T>
static __device__ __forceinline__ void load_fragment(FRAGMENT &f, const T *p, unsigned line) {
  nvcuda::wmma::load_matrix_sync(f, p, line);
}
#ifndef CMKD_SIMT
/* For bfloat16 nvcc 13.0 loses the address space on the way and loads word by word where one LDSM would do (half is
 * fine), so on a device the instruction is written out, with the registers that mma.h of the toolkit has. */
template <class USE, class LAYOUT>
static __device__ __forceinline__ void load_fragment(nvcuda::wmma::fragment<USE, 16, 16, 16, __nv_bfloat16, LAYOUT> &f,
                                                     const __nv_bfloat16 *p, unsigned line) {
  constexpr bool a = std::is_same_v<USE, nvcuda::wmma::matrix_a>;
  constexpr bool row = std::is_same_v<LAYOUT, nvcuda::wmma::row_major>;
  const unsigned from = (unsigned)__cvta_generic_to_shared(p);
  unsigned r[4];
  static_assert(sizeof f.x == sizeof r, "four registers");
#define LOAD_WMMA(operand, layout) \
  asm volatile("wmma.load." operand ".sync.aligned." layout ".m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;" \
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) \
               : "r"(from), "r"(line) \
               : "memory")
  if constexpr (a && row)
    LOAD_WMMA("a", "row");
  else if constexpr (a)
    LOAD_WMMA("a", "col");
  else if constexpr (row)
    LOAD_WMMA("b", "row");
  else
    LOAD_WMMA("b", "col");
#undef LOAD_WMMA
  memcpy(f.x, r, sizeof r);
}
#endif

/* PASS as conv_tile_run's. */
template <class PASS, class TILE> static __device__ __forceinline__ void conv_mma_run(PASS &pass, int steps) {
  namespace wmma = nvcuda::wmma;
  using T = typename PASS::A;
  static_assert(std::is_same_v<T, typename PASS::B> && sizeof(T) == 2, "tensor cores multiply two of a kind");
  using buffer_a = conv_mma_buffer<TILE, TILE::M, PASS::ALONG_K_A>;
  using buffer_b = conv_mma_buffer<TILE, TILE::N, PASS::ALONG_K_B>;
  using fragment_a = wmma::fragment<wmma::matrix_a, 16, 16, 16, T,
                                    std::conditional_t<PASS::ALONG_K_A, wmma::row_major, wmma::col_major>>;
  using fragment_b = wmma::fragment<wmma::matrix_b, 16, 16, 16, T,
                                    std::conditional_t<PASS::ALONG_K_B, wmma::col_major, wmma::row_major>>;
  constexpr int LINE = (PASS::COLUMN_RUNS ? TILE::M : TILE::N) + 4,
                LINES = PASS::COLUMN_RUNS ? TILE::N : TILE::M; /* of the results */
  constexpr int FACTORS = 2 * (buffer_a::SIZE + buffer_b::SIZE) * (int)sizeof(T),
                RESULTS = LINE * LINES * (int)sizeof(float);
  constexpr int FM = TILE::WM / 16, FN = TILE::WN / 16;
  CMKD_SHARED(conv_line, memory, ((FACTORS > RESULTS ? FACTORS : RESULTS) + 31) / 32);
  T *const a = (T *)memory, *const b = a + 2 * buffer_a::SIZE;
  const int warp = (int)threadIdx.x / 32, first_m = warp / (TILE::N / TILE::WN) * TILE::WM,
            first_n = warp % (TILE::N / TILE::WN) * TILE::WN;
  conv_eight<T> next_a[TILE::LOADS_A], next_b[TILE::LOADS_B];
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum[FM][FN];
#pragma unroll
  for (int i = 0; i < FM; i++)
#pragma unroll
    for (int j = 0; j < FN; j++)
      wmma::fill_fragment(sum[i][j], 0.0f);

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
      const T *from_a = a + (step & 1) * buffer_a::SIZE, *from_b = b + (step & 1) * buffer_b::SIZE;
#pragma unroll
      for (int k = 0; k < TILE::K; k += 16) {
        fragment_a fa[FM];
        fragment_b fb[FN];
#pragma unroll
        for (int i = 0; i < FM; i++)
          load_fragment(fa[i], from_a + buffer_a::place(first_m + i * 16, k), buffer_a::LINE);
#pragma unroll
        for (int j = 0; j < FN; j++)
          load_fragment(fb[j], from_b + buffer_b::place(first_n + j * 16, k), buffer_b::LINE);
#pragma unroll
        for (int i = 0; i < FM; i++)
#pragma unroll
          for (int j = 0; j < FN; j++)
            wmma::mma_sync(sum[i][j], fa[i], fb[j], sum[i][j]);
      }
    }
    if (step + 1 < steps) {
#pragma unroll
      for (int i = 0; i < TILE::LOADS_A; i++)
        buffer_a::put(a + (~step & 1) * buffer_a::SIZE, i, next_a[i]);
#pragma unroll
      for (int i = 0; i < TILE::LOADS_B; i++)
        buffer_b::put(b + (~step & 1) * buffer_b::SIZE, i, next_b[i]);
      __syncthreads();
    }
  }
  __syncthreads(); /* the results lie where the factors were */
  float *const result = (float *)memory;
#pragma unroll
  for (int i = 0; i < FM; i++)
#pragma unroll
    for (int j = 0; j < FN; j++) {
      const int m = first_m + i * 16, n = first_n + j * 16;
      wmma::store_matrix_sync(result + (PASS::COLUMN_RUNS ? n * LINE + m : m * LINE + n), sum[i][j], LINE,
                              PASS::COLUMN_RUNS ? wmma::mem_col_major : wmma::mem_row_major);
    }
  __syncthreads();
  constexpr int RUNS = (LINE - 4) / 4; /* of a line */
#pragma unroll 4
  for (int at = (int)threadIdx.x; at < LINES * RUNS; at += TILE::THREADS) {
    const int line = at / RUNS, place = at % RUNS * 4;
    const float4 four = *(const float4 *)(result + line * LINE + place);
    if constexpr (PASS::COLUMN_RUNS) {
      float run[4][1] = {{four.x}, {four.y}, {four.z}, {four.w}};
      pass.store(place, line, run);
    } else {
      float run[1][4] = {{four.x, four.y, four.z, four.w}};
      pass.store(line, place, run);
    }
  }
}
#endif
