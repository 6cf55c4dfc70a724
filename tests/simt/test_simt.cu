/* Kernels that break one rule each, and kernels that run the parts of kernels/cuda by themselves. */
#include "tests/simt/test_simt.h"
#include "kernels/cuda/hull.h"
#include "kernels/cuda/sort.h"

__global__ void divergent_barrier(int *out) {
  if (threadIdx.x < 40) __syncthreads();
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
  if (threadIdx.x & 1) out[threadIdx.x] = __shfl_xor_sync(CMKD_WARP, 1, 1);
  else out[threadIdx.x] = __shfl_xor_sync(CMKD_WARP, 2, 1);
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

typedef void kernel(int *);
static const struct { const char *name; kernel *run; } kernels[] = {
  {"divergent_barrier", divergent_barrier}, {"early_exit", early_exit}, {"barrier_against_shuffle", barrier_against_shuffle}, {"lane_outside", lane_outside},
  {"lane_not_in_mask", lane_not_in_mask}, {"not_in_own_mask", not_in_own_mask}, {"mixed_operations", mixed_operations}, {"no_dynamic_memory", no_dynamic_memory},
  {"shared_overrun", shared_overrun}, {"unwritten_shared", unwritten_shared}, {"missing_barrier", missing_barrier}, {"good_reversal", good_reversal}, {"warp_operations", warp_operations}};

int simt_run(const char *name, int threads, int out[64]) {
  for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
    if (!strcmp(kernels[i].name, name)) {
      kernel *run = kernels[i].run;
      CMKD_LAUNCH(run, dim3(1), dim3((unsigned)threads), 0, nullptr, out);
      return cudaGetLastError() == cudaSuccess;
    }
  abort();
}

template <bool WARP> static __global__ void hull_kernel(const double *values, int n, int per, double *Y, uint32_t *list, int *blocks) {
  CMKD_SHARED(double, room, TEAM_ROOM);
  CMKD_SHARED(int, count, 1024);
  team<WARP> tm;
  tm.start(room);
  double sum = 0;
  for (int i = tm.rank * per; i < min(n, (tm.rank + 1) * per); i++) sum += values[i];
  double before = tm.before(sum);
  if (tm.rank == 0) Y[0] = 0;
  for (int i = tm.rank * per; i < min(n, (tm.rank + 1) * per); i++) Y[i + 1] = before += values[i];
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
  for (int k = 0; k < 4; k++) buffer[tm.rank * 4 + k] = key[k];
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
