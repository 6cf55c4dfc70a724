/* The blocks of a soft rank: pooling adjacent violators until block means decrease = the least concave majorant of the
 * prefix sums Y[0..n] of what is pooled. Each thread finds the majorant of its own stretch with a stack; then
 * neighbours merge, level by level: the common tangent of two majorants is found by one warp (or as many lanes as the
 * two stretches have threads), each lane trying one vertex of the left and searching its tangent to the right; what the
 * tangent covers is dropped. A block is named by its first position. */
#ifndef CMKD_KERNELS_CUDA_LOSS_HULL_H
#define CMKD_KERNELS_CUDA_LOSS_HULL_H
#include "kernels/cuda/loss/team.h"

/* Slope a -> b at most slope b -> c, for positions a < b < c: then b is no vertex. Equal slopes pool. */
static __device__ __forceinline__ bool hull_pools(const double *Y, int a, int b, int c) {
  return (Y[b] - Y[a]) * (double)(c - b) <= (Y[c] - Y[b]) * (double)(b - a);
}

/* Two neighbouring majorants: blocks left[0..l-1] from the left stretch, right[0..r-1] from `middle` on, all ending at
 * `end`. */
template <class I> struct hull_pair {
  const double *Y; /* (n + 1) */
  const I *left, *right;
  int l, r, middle, end;

  __device__ __forceinline__ int left_vertex(int i) const { return i < l ? (int)left[i] : middle; }
  __device__ __forceinline__ int right_vertex(int j) const { return j < r ? (int)right[j] : end; }
  /* Index of the right vertex that the tangent from position `at` touches; the farthest when it touches several. */
  __device__ __forceinline__ int tangent(int at) const {
    if (at == middle) return 1;
    int low = 0, high = r;
    while (low < high) {
      int j = (low + high) >> 1;
      if (hull_pools(Y, at, right_vertex(j), right_vertex(j + 1)))
        low = j + 1;
      else
        high = j;
    }
    return low;
  }
  /* Vertex i >= 1 of the left is still one when the right is joined to it. */
  __device__ __forceinline__ bool stays(int i) const {
    int at = left_vertex(i);
    return !hull_pools(Y, left_vertex(i - 1), at, right_vertex(tangent(at)));
  }
};

/* list (n): the blocks, ascending; count (team size): scratch. per = positions a thread: thread r has r*per .. r*per +
 * per-1. Y must be written and synchronised. Returns the number of blocks to all threads; list and count are then
 * synchronised. */
template <class I, class TEAM>
__device__ int hull_build(TEAM &tm, const double *Y, int n, int per, I *list, int *count) {
  const int begin = min(tm.rank * per, n), stop = min(begin + per, n);
  int m = 0;
  I *mine = list + begin;
  for (int p = begin; p < stop; p++) {
    mine[m++] = (I)p;
    while (m >= 2 && hull_pools(Y, (int)mine[m - 2], (int)mine[m - 1], p + 1))
      m--;
  }
  count[tm.rank] = m;
  tm.sync();

  const int BATCH = 4;
  for (int width = 2; width <= tm.size; width <<= 1) { /* threads of the two stretches together */
    const int base = tm.rank & ~(width - 1), half = base + width / 2, lanes = min(width, 32);
    hull_pair<I> pair;
    pair.Y = Y;
    const int from = min(base * per, n);
    pair.middle = min(half * per, n);
    pair.end = min((base + width) * per, n);
    pair.left = list + from;
    pair.right = list + pair.middle;
    pair.l = count[base];
    pair.r = count[half];
    tm.sync();                                /* count is written below */
    if (tm.rank - base < 32 || width <= 32) { /* whole warps */
      const int lane = tm.lane & (lanes - 1), shift = tm.lane & ~(lanes - 1);
      int low = 0, high = pair.r > 0 ? pair.l + 1 : 1;  /* vertex `low` stays, `high` does not or does not exist */
      if (pair.r == 0) low = pair.l, high = pair.l + 1; /* nothing to join */
      while (__any_sync(CMKD_WARP, high - low > 1)) {
        const int open = high - low - 1, tries = min(open, lanes);
        const int candidate = open > lanes ? low + 1 + (int)((int64_t)open * lane / lanes) : low + 1 + lane;
        const bool good = lane < tries && pair.stays(candidate);
        const unsigned all = __ballot_sync(CMKD_WARP, good) >> shift;
        const int stay = __popc(lanes == 32 ? all : all & ((1u << lanes) - 1));
        const int next = open > lanes ? low + 1 + (int)((int64_t)open * stay / lanes) : low + 1 + stay;
        const int last = open > lanes ? low + 1 + (int)((int64_t)open * (stay - 1) / lanes) : low + stay;
        if (stay < tries) high = next;
        if (stay > 0) low = last;
      }
      if (lane == 0 && (width <= 32 || tm.rank == base)) {
        const bool joined = low < pair.l;
        count[base] = joined ? low + 1 : pair.l;                        /* blocks kept of the left */
        count[half] = joined ? pair.tangent(pair.left_vertex(low)) : 0; /* first block kept of the right */
      }
    }
    tm.sync();
    const int kept = count[base], skip = count[half], moved = pair.r - skip;
    I *target = list + from + kept;
    const int rank = tm.rank - base;
    for (int pass = 0; pass * 2 * BATCH < per;
         pass++) { /* target <= source, so ascending chunks never overwrite what is still to be read */
      I block[BATCH];
#pragma unroll
      for (int k = 0; k < BATCH; k++) {
        const int i = (pass * BATCH + k) * width + rank;
        block[k] = i < moved ? pair.right[skip + i] : (I)0;
      }
      tm.sync();
#pragma unroll
      for (int k = 0; k < BATCH; k++) {
        const int i = (pass * BATCH + k) * width + rank;
        if (i < moved) target[i] = block[k];
      }
      tm.sync();
    }
    if (tm.rank == base) count[base] = kept + moved;
    tm.sync();
  }
  return count[0];
}

/* Index of the block that holds `position`. */
template <class I> __device__ __forceinline__ int hull_find(const I *list, int blocks, int position) {
  int low = 0, high = blocks - 1;
  while (low < high) {
    int middle = (low + high + 1) >> 1;
    if ((int)list[middle] <= position)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}
#endif
