/* The end of a launch: rows' figures become batch means. Whichever block finishes last adds them up, always in the same
 * order, so the sum does not depend on which block that was; integer atomics only count. */
#ifndef CMKD_KERNELS_CUDA_LOSS_FINISH_H
#define CMKD_KERNELS_CUDA_LOSS_FINISH_H
#include "kernels/cuda/loss/loss.h"
#include "kernels/cuda/loss/team.h"

/* True in all threads of the block that comes last of `expected`; what other blocks wrote before is then visible.
 * Resets the counter. */
static __device__ __forceinline__ bool last_block(unsigned *counter, unsigned expected) {
  CMKD_SHARED(int, last, 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    last[0] = atomicAdd(counter, 1u) == expected - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last[0]) return false;
  if (threadIdx.x == 0 && threadIdx.y == 0) *counter = 0;
  __threadfence();
  return true;
}

/* Writes the batch means to a.result, once all of a.B rows are done. shared: TEAM_SHARED doubles of shared memory. */
static __device__ void loss_result_write(const loss_args &a, double *shared) {
  team<false> tm;
  tm.start(shared);
  const volatile double *rows = a.rows;
  for (int first = 0; first < a.stride; first += 4) {
    double v[4] = {0, 0, 0, 0};
    for (int64_t r = tm.rank; r < a.B; r += tm.size)
#pragma unroll
      for (int k = 0; k < 4; k++)
        if (first + k < a.stride) v[k] += rows[r * a.stride + first + k];
    tm.sum(v);
    if (tm.rank == 0)
      for (int k = 0; k < 4 && first + k < a.stride; k++) {
        const double mean = v[k] / (double)a.B;
        if (first + k == 0)
          a.result->loss = mean;
        else if (first + k == 1)
          a.result->blocks = mean;
        else
          a.result->part[first + k - 2] = mean;
      }
  }
  if (tm.rank == 0) {
    const int bad = *(volatile int *)&a.state->bad;
    a.result->bad_row = bad ? 0x7FFFFFFF - bad : -1;
    if (bad) a.result->loss = NAN;
    if (!(a.moments & 2)) a.result->blocks = NAN; /* no soft rank */
    for (int k = a.parts; k < CMKD_LOSS_MAX_PARTS; k++)
      a.result->part[k] = 0;
    a.state->bad = 0;
  }
}
/* The same for agreement figures: a.rows (B, 3) is added to *sums. */
static __device__ void agreement_add(const loss_args &a, cmkd_agreement *sums, double *shared) {
  team<false> tm;
  tm.start(shared);
  const volatile double *rows = a.rows;
  double v[3] = {0, 0, 0};
  for (int64_t r = tm.rank; r < a.B; r += tm.size)
#pragma unroll
    for (int k = 0; k < 3; k++)
      v[k] += rows[r * 3 + k];
  tm.sum(v);
  if (tm.rank == 0) {
    sums->pearson += v[0];
    sums->spearman += v[1];
    sums->blocks += v[2];
    sums->rows += a.B;
    a.state->bad = 0;
  }
}
#endif
