/* A row of up to LOSS_SHORT classes: E logits, gradients and keys a thread in registers; sorts, pooling and the way
 * back from sorted to original order through the team's piece of shared memory. What row.h works on. */
#ifndef CMKD_KERNELS_CUDA_LOSS_SHORT_ROW_H
#define CMKD_KERNELS_CUDA_LOSS_SHORT_ROW_H
#include "kernels/cuda/loss/row.h"

#define WARP_ROWS 4 /* rows of a block when a warp has a row */

template <int E, bool WARP> struct short_row {
  typedef uint16_t index_t;
  typedef int32_t prefix_t;
  team<WARP> tm;
  int C;
  float s_[E], t_[E], g_[E], x_[E], put_[E];
  int32_t twice_[E], own_[E];
  uint64_t key_[E];
  /* Shared, for n = size * E places: | keys, prefix sums or gradients: 8 (n+1) | ranks, later prefix ranks: 4 (n+1) |
     counts: 4 size | blocks: 2 n | */
  double *Y;
  int32_t *P;
  int *count;
  index_t *list;

  static __host__ __device__ constexpr size_t bytes(int size) {
    return ((size_t)8 * (size * E + 1) + (size_t)4 * (size * E + 1) + (size_t)4 * size + (size_t)2 * size * E + 15) &
           ~(size_t)15;
  }
  __device__ __forceinline__ void start(const loss_args &a, int64_t r, unsigned char *memory, double *shared) {
    tm.start(shared);
    C = a.C;
    const int n = tm.size * E;
    Y = (double *)memory;
    P = (int32_t *)(Y + n + 1);
    count = (int *)(P + n + 1);
    list = (index_t *)(count + tm.size);
#pragma unroll
    for (int k = 0; k < E; k++) {
      const int c = at(k);
      s_[k] = c < C ? load_float(a.student, a.student_dtype, r * C + c) : 0;
      t_[k] = c < C && a.teacher ? load_float(a.teacher, a.teacher_dtype, r * C + c) : 0;
    }
  }
  static __device__ __forceinline__ constexpr int items() { return E; }
  static __device__ __forceinline__ constexpr int per() { return E; }
  __device__ __forceinline__ int at(int k) const { return k * tm.size + tm.rank; }
  __device__ __forceinline__ int position(int k) const { return tm.rank * E + k; }
  __device__ __forceinline__ float s(int k) const { return s_[k]; }
  __device__ __forceinline__ float t(int k) const { return t_[k]; }
  __device__ __forceinline__ float &g(int k) { return g_[k]; }
  __device__ __forceinline__ float &x(int k) { return x_[k]; }
  __device__ __forceinline__ uint64_t student_key(int k) const { return key_[k]; }
  __device__ __forceinline__ int twice(int k) const { return twice_[k]; }
  __device__ __forceinline__ void put(int k, float v) { put_[k] = v; }

  __device__ void sort(const float (&logit)[E]) {
#pragma unroll
    for (int k = 0; k < E; k++)
      key_[k] = at(k) < C ? sort_key(logit[k], at(k)) : SORT_PADDING;
    sort_keys<E>(tm, key_, (uint64_t *)Y);
  }
  /* P[class] = twice the teacher's rank */
  __device__ void rank_teacher() {
    uint64_t *keys = (uint64_t *)Y;
    sort(t_);
    tm.sync();
#pragma unroll
    for (int k = 0; k < E; k++)
      keys[position(k)] = key_[k];
    tm.sync();
#pragma unroll
    for (int k = 0; k < E; k++)
      if (position(k) < C) P[key_index(key_[k])] = twice_rank(keys, C, position(k));
    tm.sync();
  }
  __device__ void sort_student() {
    sort(s_);
    tm.sync();
  }
  /* After sort_student: twice the student's own rank of its sorted classes, ties averaged, own(k). */
  __device__ void rank_student() {
    uint64_t *keys = (uint64_t *)Y;
#pragma unroll
    for (int k = 0; k < E; k++)
      keys[position(k)] = key_[k];
    tm.sync();
#pragma unroll
    for (int k = 0; k < E; k++)
      own_[k] = position(k) < C ? twice_rank(keys, C, position(k)) : 0;
    tm.sync();
  }
  __device__ __forceinline__ int own(int k) const { return own_[k]; }
  /* The same of the student's sorted classes into registers; P is free then. */
  __device__ void keep_ranks() {
#pragma unroll
    for (int k = 0; k < E; k++)
      twice_[k] = position(k) < C ? P[key_index(key_[k])] : 0;
    tm.sync();
  }
  __device__ void spread_all() {
    float *spread = (float *)Y;
    tm.sync();
#pragma unroll
    for (int k = 0; k < E; k++)
      if (position(k) < C) spread[key_index(key_[k])] = put_[k];
    tm.sync();
#pragma unroll
    for (int k = 0; k < E; k++)
      if (at(k) < C) x_[k] += spread[at(k)];
    tm.sync();
  }
};
#endif
