/* How far a student is from its teacher, on the device: one launch for up to LOSS_SHORT classes, added to running sums.
 * The formulas are cmkd_agreement_ref's. */
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/loss/finish.h"
#include "kernels/cuda/loss/short_row.h"

template <int E, bool WARP, int THREADS> __global__ void __launch_bounds__(THREADS)
    agreement_kernel(const __grid_constant__ loss_args a, double kappa, cmkd_agreement *sums) {
  CMKD_DYNAMIC_SHARED(memory);
  CMKD_SHARED(double, shared, TEAM_SHARED);
  const int64_t r = WARP ? (int64_t)blockIdx.x * WARP_ROWS + (threadIdx.x >> 5) : blockIdx.x;
  if (r < a.B) {
    short_row<E, WARP> row;
    row.start(a, r, memory + (WARP ? (threadIdx.x >> 5) * short_row<E, WARP>::bytes(32) : 0), shared);
    row_agreement(row, a, r, kappa);
  }
  if (last_block(&a.state->done, gridDim.x)) agreement_add(a, sums, shared);
}

template <int E, bool WARP, int THREADS> static cmkd_status
launch(const loss_args &args, double kappa, cmkd_agreement *sums, int threads, cudaStream_t stream, cmkd_error *err) {
  auto kernel = agreement_kernel<E, WARP, THREADS>;
  const int rows = WARP ? WARP_ROWS : 1;
  const size_t bytes = rows * short_row<E, WARP>::bytes(WARP ? 32 : threads);
  if (bytes > 32 * 1024 && CMKD_SHARED_LIMIT(kernel, bytes) != cudaSuccess) {
    (void)cudaGetLastError();
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                     "agreement: %d classes need %zu bytes of shared memory, more than this device gives a block",
                     args.C, bytes);
  }
  CMKD_LAUNCH(kernel, dim3((unsigned)((args.B + rows - 1) / rows)), dim3((unsigned)(WARP ? 32 * WARP_ROWS : threads)),
              bytes, stream, args, kappa, sums);
  return launch_status("agreement", err);
}

/* Scratch: | state | rows (B, 3) | large rows | */
static size_t rows_at(void) { return 256; }
static size_t large_at(int64_t B) { return rows_at() + (((size_t)B * 24 + 255) & ~(size_t)255); }

size_t cmkd_cuda_agreement_scratch(int64_t batch, int64_t classes) {
  if (batch < 1 || batch > CMKD_CUDA_LOSS_MAX_BATCH || classes < CMKD_LOSS_MIN_CLASSES ||
      classes > CMKD_LOSS_MAX_CLASSES)
    return 0;
  return large_at(batch) + (classes > LOSS_SHORT ? long_bytes(batch, classes, 1) : 0);
}

cmkd_status cmkd_cuda_agreement_add(const cmkd_cuda_agreement_batch *b, void *scratch, cmkd_agreement *sums,
                                    void *stream_pointer, cmkd_error *err) {
  const double kappa = b->kappa;
  if (!cmkd_cuda_agreement_scratch(b->batch, b->classes) || !b->student || !b->teacher || !scratch || !sums ||
      !float_dtype(b->student_dtype) || !float_dtype(b->teacher_dtype) || !(kappa > 0))
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "agreement: %lld rows of %lld classes at kappa %g, or a pointer or dtype, is out of range",
                     (long long)b->batch, (long long)b->classes, kappa);
  cudaStream_t stream = (cudaStream_t)stream_pointer;
  loss_args a;
  memset(&a, 0, sizeof a);
  a.B = b->batch;
  a.C = (int)b->classes;
  a.student = b->student;
  a.student_dtype = b->student_dtype;
  a.teacher = b->teacher;
  a.teacher_dtype = b->teacher_dtype;
  a.moments = 2;
  a.state = (loss_state *)scratch;
  a.rows = (double *)((char *)scratch + rows_at());
  int threads = 32;
  while (threads < 1024 && threads * 8 < a.C)
    threads *= 2;
  if (a.C > LOSS_SHORT) return long_launch(&a, (char *)scratch + large_at(b->batch), 1, kappa, sums, stream, err);
  if (a.C <= 128) return launch<4, true, 32 * WARP_ROWS>(a, kappa, sums, threads, stream, err);
  return launch<8, false, 1024>(a, kappa, sums, threads, stream, err);
}
