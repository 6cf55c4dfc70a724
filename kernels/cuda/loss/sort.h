/* Sorting (logit, class) pairs of a row: one 64-bit key a pair, so that all keys differ and the order is total. */
#ifndef CMKD_KERNELS_CUDA_LOSS_SORT_H
#define CMKD_KERNELS_CUDA_LOSS_SORT_H
#include "kernels/cuda/loss/team.h"

#define SORT_PADDING UINT64_MAX /* behind every pair */

/* Ascending keys are descending logits, equal logits (-0 = +0 too) by ascending class. */
static __device__ __forceinline__ uint64_t sort_key(float logit, int index) {
  uint32_t bits = __float_as_uint(logit + 0.0f);
  uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (uint64_t)~ascending << 32 | (uint32_t)index;
}
static __device__ __forceinline__ int key_index(uint64_t key) { return (int)(uint32_t)key; }
static __device__ __forceinline__ uint32_t key_order(uint64_t key) { return (uint32_t)(key >> 32); }
static __device__ __forceinline__ float key_logit(uint64_t key) {
  uint32_t ascending = ~key_order(key);
  return __uint_as_float(ascending & 0x80000000u ? ascending & 0x7FFFFFFFu : ~ascending);
}

/* Bitonic sort, ascending, of size * E keys, E a thread (thread r ends with ranks r*E .. r*E + E-1). Distances below E
 * stay in registers, below 32 E in the warp; the others go through `buffer` (size * E, shared). */
template <int E, class TEAM> __device__ __forceinline__ void sort_keys(TEAM &tm, uint64_t (&v)[E], uint64_t *buffer) {
  const int n = tm.size * E, first = tm.rank * E;
  for (int run = 2; run <= n; run <<= 1) {
    for (int distance = run >> 1; distance >= E; distance >>= 1) {
      const int step = distance / E; /* between threads */
      const bool low = (tm.rank & step) == 0;
      uint64_t other[E];
      if (step < 32) {
#pragma unroll
        for (int k = 0; k < E; k++)
          other[k] = __shfl_xor_sync(CMKD_WARP, v[k], step);
      } else {
        tm.sync();
#pragma unroll
        for (int k = 0; k < E; k++)
          buffer[k * tm.size + tm.rank] = v[k];
        tm.sync();
#pragma unroll
        for (int k = 0; k < E; k++)
          other[k] = buffer[k * tm.size + (tm.rank ^ step)];
      }
      const bool up = (first & run) == 0; /* run > distance >= E: the same for all k */
#pragma unroll
      for (int k = 0; k < E; k++) {
        const bool mine_is_less = v[k] < other[k];
        v[k] = mine_is_less == (low == up) ? v[k] : other[k];
      }
    }
#pragma unroll
    for (int distance = E >> 1; distance > 0; distance >>= 1) {
      if (distance >= run) continue;
#pragma unroll
      for (int k = 0; k < E; k++) {
        if (k & distance) continue;
        const bool up = ((first + k) & run) == 0, swap = (v[k] > v[k | distance]) == up;
        const uint64_t a = v[k], b = v[k | distance];
        v[k] = swap ? b : a;
        v[k | distance] = swap ? a : b;
      }
    }
  }
}

/* Twice the rank (1 = smallest, ties share their average) of the pair at `position` of the n sorted keys. */
static __device__ __forceinline__ int twice_rank(const uint64_t *keys, int n, int position) {
  const uint32_t order = key_order(keys[position]);
  int first = position, last = position;
  if (position > 0 && key_order(keys[position - 1]) == order) {
    int low = 0, high = position - 1; /* the first equal one is in low .. high */
    while (low < high) {
      int middle = (low + high) >> 1;
      if (key_order(keys[middle]) < order)
        low = middle + 1;
      else
        high = middle;
    }
    first = low;
  }
  if (position + 1 < n && key_order(keys[position + 1]) == order) {
    int low = position + 1, high = n - 1;
    while (low < high) {
      int middle = (low + high + 1) >> 1;
      if (key_order(keys[middle]) > order)
        high = middle - 1;
      else
        low = middle;
    }
    last = low;
  }
  return 2 * n - (first + last);
}
#endif
