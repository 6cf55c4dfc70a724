/* Kernels that break one rule each, and kernels that run the parts of kernels/cuda by themselves. */
#include "tests/simt/test_simt.h"
#include "kernels/cuda/loss/hull.h"
#include "kernels/cuda/loss/sort.h"
#include "kernels/cuda/vector.h"
#include <type_traits>

__global__ void divergent_barrier(int *out) {
  if (threadIdx.x < 40)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void early_exit(int *out) {
  if (threadIdx.x == 33) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void barrier_against_shuffle(int *out) {
  if (threadIdx.x < 5) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(CMKD_WARP, (int)threadIdx.x, 1);
}
__global__ void lane_outside(int *out) { out[threadIdx.x] = __shfl_sync(CMKD_WARP, (int)threadIdx.x, 32); }
__global__ void lane_not_in_mask(int *out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xFFFFu, (int)threadIdx.x, 20);
}
__global__ void not_in_own_mask(int *out) { out[threadIdx.x] = (int)__ballot_sync(0xFFu, 1); }
__global__ void mixed_operations(int *out) {
  if (threadIdx.x & 1)
    out[threadIdx.x] = __shfl_xor_sync(CMKD_WARP, 1, 1);
  else
    out[threadIdx.x] = __shfl_xor_sync(CMKD_WARP, 2, 1);
}
__global__ void no_dynamic_memory(int *out) {
  CMKD_DYNAMIC_SHARED(memory);
  out[threadIdx.x] = memory != nullptr;
}
__global__ void shared_overrun(int *out) {
  CMKD_SHARED(int, tile, 64);
  tile[threadIdx.x + 1] = 1; /* thread 63 writes tile[64] */
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void unwritten_shared(int *out) {
  CMKD_SHARED(int, tile, 64);
  out[threadIdx.x] = tile[threadIdx.x];
}
/* Reversal through shared memory without a barrier: right only when the partner came first. */
__global__ void missing_barrier(int *out) {
  CMKD_SHARED(int, tile, 64);
  tile[threadIdx.x] = (int)threadIdx.x;
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void good_reversal(int *out) {
  CMKD_SHARED(int, tile, 64);
  tile[threadIdx.x] = (int)threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void warp_operations(int *out) {
  const int lane = (int)threadIdx.x & 31;
  int bad = 0;
  bad |= __shfl_up_sync(CMKD_WARP, lane, 3) != (lane >= 3 ? lane - 3 : lane);
  bad |= __shfl_down_sync(CMKD_WARP, lane, 5) != (lane < 27 ? lane + 5 : lane);
  bad |= __shfl_xor_sync(CMKD_WARP, lane * 1.5, 9) != (lane ^ 9) * 1.5;
  bad |= __shfl_sync(CMKD_WARP, lane, 2, 8) != (lane & 24) + 2;
  bad |= __shfl_up_sync(CMKD_WARP, lane, 1, 4) != ((lane & 3) ? lane - 1 : lane);
  bad |= __ballot_sync(CMKD_WARP, lane % 3 == 0) != 0x49249249u;
  bad |= __any_sync(CMKD_WARP, lane == 7) != 1;
  bad |= __all_sync(CMKD_WARP, lane < 31) != 0;
  bad |= __syncthreads_or(threadIdx.x == 40) != 1;
  out[threadIdx.x] = bad;
}

/* Every layout of a 16 x 16 product, beside plain loops. */
template <class T, class LA, class LB> static __device__ int product_is_wrong(T *a, T *b, float *c) {
  namespace wmma = nvcuda::wmma;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, T, LA> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, T, LB> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  constexpr int A = std::is_same_v<LA, wmma::row_major>, B = std::is_same_v<LB, wmma::row_major>, LD = 24;
  int bad = 0;
  for (int store = 0; store < 2; store++) {
    wmma::fill_fragment(sum, 0.5f);
    wmma::load_matrix_sync(fa, a, LD);
    wmma::load_matrix_sync(fb, b, LD);
    wmma::mma_sync(sum, fa, fb, sum);
    wmma::store_matrix_sync(c, sum, LD, store ? wmma::mem_col_major : wmma::mem_row_major);
    __syncwarp();
    for (int i = (int)threadIdx.x; i < 256; i += 32) {
      const int m = i / 16, n = i % 16;
      float want = 0.5f;
      for (int k = 0; k < 16; k++)
        want += to_float(a[A ? m * LD + k : k * LD + m]) * to_float(b[B ? k * LD + n : n * LD + k]);
      bad |= c[store ? n * LD + m : m * LD + n] != want;
    }
    __syncwarp();
  }
  return bad;
}
template <class T> static __device__ void tensor_products(int *out) {
  using nvcuda::wmma::col_major;
  using nvcuda::wmma::row_major;
  CMKD_SHARED(T, a, 16 * 24);
  CMKD_SHARED(T, b, 16 * 24);
  CMKD_SHARED(float, c, 16 * 24);
  for (int i = (int)threadIdx.x; i < 16 * 24; i += 32) {
    from_float(a + i, (float)(i * 7 % 13 - 6)); /* small integers: sums are exact */
    from_float(b + i, (float)(i * 5 % 11 - 5));
  }
  __syncwarp();
  out[threadIdx.x] =
      product_is_wrong<T, row_major, row_major>(a, b, c) | product_is_wrong<T, row_major, col_major>(a, b, c) |
      product_is_wrong<T, col_major, row_major>(a, b, c) | product_is_wrong<T, col_major, col_major>(a, b, c);
}
__global__ void half_products(int *out) { tensor_products<__half>(out); }
__global__ void bfloat16_products(int *out) { tensor_products<__nv_bfloat16>(out); }
static __device__ void load_fragment(int offset, unsigned ld) {
  CMKD_SHARED(__half, tile, 32 * 32);
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, __half, nvcuda::wmma::row_major> f;
  nvcuda::wmma::load_matrix_sync(f, tile + offset, ld);
}
__global__ void matrix_misaligned(int *out) {
  (void)out;
  load_fragment(8, 16);
}
__global__ void matrix_lines_misaligned(int *out) {
  (void)out;
  load_fragment(0, 20);
}
__global__ void product_of_half_a_warp(int *out) {
  (void)out;
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, __half, nvcuda::wmma::row_major> a = {};
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, __half, nvcuda::wmma::row_major> b = {};
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum = {};
  if (threadIdx.x < 16) nvcuda::wmma::mma_sync(sum, a, b, sum);
}

typedef void kernel(int *);
static const struct {
  const char *name;
  kernel *run;
} kernels[] = {{"divergent_barrier", divergent_barrier},
               {"early_exit", early_exit},
               {"barrier_against_shuffle", barrier_against_shuffle},
               {"lane_outside", lane_outside},
               {"lane_not_in_mask", lane_not_in_mask},
               {"not_in_own_mask", not_in_own_mask},
               {"mixed_operations", mixed_operations},
               {"no_dynamic_memory", no_dynamic_memory},
               {"shared_overrun", shared_overrun},
               {"unwritten_shared", unwritten_shared},
               {"missing_barrier", missing_barrier},
               {"good_reversal", good_reversal},
               {"warp_operations", warp_operations},
               {"half_products", half_products},
               {"bfloat16_products", bfloat16_products},
               {"matrix_misaligned", matrix_misaligned},
               {"matrix_lines_misaligned", matrix_lines_misaligned},
               {"product_of_half_a_warp", product_of_half_a_warp}};

int simt_run(const char *name, int threads, int out[64]) {
  for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
    if (!strcmp(kernels[i].name, name)) {
      kernel *run = kernels[i].run;
      CMKD_LAUNCH(run, dim3(1), dim3((unsigned)threads), 0, nullptr, out);
      return cudaGetLastError() == cudaSuccess;
    }
  abort();
}

template <bool WARP>
static __global__ void hull_kernel(const double *values, int n, int per, double *Y, uint32_t *list, int *blocks) {
  CMKD_SHARED(double, capacity, TEAM_SHARED);
  CMKD_SHARED(int, count, 1024);
  team<WARP> tm;
  tm.start(capacity);
  double sum = 0;
  for (int i = tm.rank * per; i < min(n, (tm.rank + 1) * per); i++)
    sum += values[i];
  double before = tm.before(sum);
  if (tm.rank == 0) Y[0] = 0;
  for (int i = tm.rank * per; i < min(n, (tm.rank + 1) * per); i++)
    Y[i + 1] = before += values[i];
  tm.sync();
  const int m = hull_build(tm, Y, n, per, list, count);
  if (tm.rank == 0) *blocks = m;
}

int simt_hull(const double *values, int n, int threads, double *Y, uint32_t *list) {
  int blocks = -1, *out = &blocks;
  const int per = (n + threads - 1) / threads;
  auto kernel = threads == 32 ? hull_kernel<true> : hull_kernel<false>;
  CMKD_LAUNCH(kernel, dim3(1), dim3((unsigned)threads), 0, nullptr, values, n, per, Y, list, out);
  return cudaGetLastError() == cudaSuccess ? blocks : -1;
}

static __global__ void sort_kernel(const float *values, int n, int *order, int *twice) {
  CMKD_SHARED(uint64_t, buffer, 4 * 256);
  team<false> tm;
  tm.start(nullptr);
  uint64_t key[4];
  for (int k = 0; k < 4; k++) {
    const int i = k * tm.size + tm.rank;
    key[k] = i < n ? sort_key(values[i], i) : SORT_PADDING;
  }
  sort_keys<4>(tm, key, buffer);
  tm.sync();
  for (int k = 0; k < 4; k++)
    buffer[tm.rank * 4 + k] = key[k];
  tm.sync();
  for (int k = 0; k < 4; k++)
    if (tm.rank * 4 + k < n) {
      order[tm.rank * 4 + k] = key_logit(key[k]) == values[key_index(key[k])] ? key_index(key[k]) : -1;
      twice[key_index(key[k])] = twice_rank(buffer, n, tm.rank * 4 + k);
    }
}

int simt_sort(const float *values, int n, int *order, int *twice) {
  CMKD_LAUNCH(sort_kernel, dim3(1), dim3(256), 0, nullptr, values, n, order, twice);
  return cudaGetLastError() == cudaSuccess;
}
