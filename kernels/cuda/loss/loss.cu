/* The losses on a device, forward and backward in one launch for up to LOSS_SHORT classes: a warp (C <= 128, four rows
 * a block) or a block works on a row, four or eight logits a thread in registers, sorts in registers and shared memory.
 * The batch-mean entropy, when the caller doesn't know it, is a small launch before. Not here: waiting for the device,
 * allocating. */
#include "cmkd/loss_cuda.h"
#include <math.h>
#include "kernels/cuda/loss/finish.h"
#include "kernels/cuda/loss/short_row.h"

template <int E, bool WARP, int THREADS> __global__ void __launch_bounds__(THREADS, THREADS == 256 ? 4 : 1)
    loss_kernel(const __grid_constant__ loss_args a) {
  CMKD_DYNAMIC_SHARED(memory);
  CMKD_SHARED(double, shared, TEAM_SHARED);
  const int64_t r = WARP ? (int64_t)blockIdx.x * WARP_ROWS + (threadIdx.x >> 5) : blockIdx.x;
  if (r < a.B) {
    short_row<E, WARP> row;
    row.start(a, r, memory + (WARP ? (threadIdx.x >> 5) * short_row<E, WARP>::bytes(32) : 0), shared);
    row_loss(row, a, r);
    if (a.grad)
#pragma unroll
      for (int k = 0; k < E; k++)
        if (row.at(k) < a.C) a.grad[r * a.C + row.at(k)] = row.g(k);
  }
  if (last_block(&a.state->done, gridDim.x)) loss_result_write(a, shared);
}

/* Entropies of softmax(teacher), a warp (four rows a block) or a block a row, and in state->entropy_mean their mean, or
 * *given where that is not 0. A row that is not finite gives NaN, which no gate sees: its batch is refused anyway. */
#define ENTROPY_LONG 2048 /* classes from which a block takes a row */
template <bool WARP> __global__ void __launch_bounds__(256)
    entropy_kernel(const void *teacher, int dtype, int64_t B, int C, double *entropy, loss_state *state,
                   const double *given) {
  CMKD_SHARED(double, shared, TEAM_SHARED);
  const int64_t r = WARP ? (int64_t)blockIdx.x * WARP_ROWS + (threadIdx.x >> 5) : blockIdx.x;
  if (r < B) {
    team<WARP> tm;
    tm.start(shared);
    double top[1] = {-HUGE_VAL}, sum[2] = {0, 0};
    for (int c = tm.rank; c < C; c += tm.size)
      top[0] = max_op::of(top[0], load_float(teacher, dtype, r * C + c));
    tm.maximum(top);
    for (int c = tm.rank; c < C; c += tm.size) {
      const double d = load_float(teacher, dtype, r * C + c) - top[0], e = exp_of(d);
      sum[0] += e;
      sum[1] += e * d;
    }
    tm.sum(sum);
    if (tm.rank == 0) entropy[r] = log(sum[0]) - sum[1] / sum[0];
  }
  if (!last_block(&state->done_entropy, gridDim.x)) return;
  team<false> all;
  all.start(shared);
  const volatile double *every = entropy;
  double mean = 0;
  for (int64_t i = all.rank; i < B; i += all.size)
    mean += every[i];
  mean = all.sum(mean);
  if (all.rank == 0) state->entropy_mean = given && *given != 0 ? *given : mean / (double)B;
}

/* ---- host ---- */
static size_t padded(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

/* Scratch: | state | entropy (B) | log-sum-exp (B, 2) | rows (B, parts + 2) | DIST's columns | large rows | */
typedef struct layout {
  size_t entropy, lse, rows, columns, large, bytes;
} layout;

static layout lay_out(const cmkd_loss *loss, int64_t B, int64_t C) {
  layout l;
  size_t b = (size_t)B;
  l.entropy = padded(sizeof(loss_state));
  l.lse = l.entropy + padded(b * 8);
  l.rows = l.lse + padded(b * 16);
  l.columns = l.rows + padded(b * 8 * (size_t)(loss->parts + 2));
  l.large = l.columns + (cmkd_loss_find(loss, CMKD_TERM_DIST) ? padded(dist_bytes(C)) : 0);
  l.bytes = l.large + (C > LOSS_SHORT ? padded(long_bytes(B, C, cmkd_loss_find(loss, CMKD_TERM_CMKD) != nullptr)) : 0);
  return l;
}

static cmkd_status check(const cmkd_loss *loss, const cmkd_cuda_loss_batch *b, const void *scratch, const void *result,
                         cmkd_error *err) {
  if (b->batch < 1 || b->batch > CMKD_CUDA_LOSS_MAX_BATCH || b->classes < CMKD_LOSS_MIN_CLASSES ||
      b->classes > CMKD_LOSS_MAX_CLASSES)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "loss: %lld rows of %lld classes: at least 1 row, at most %d, of 2 .. %d classes",
                     (long long)b->batch, (long long)b->classes, CMKD_CUDA_LOSS_MAX_BATCH, CMKD_LOSS_MAX_CLASSES);
  if (!b->student || !b->labels || !scratch || !result)
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss: student, labels, scratch or result is NULL");
  if (loss->needs_teacher && !b->teacher)
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss: %s needs teacher logits", cmkd_loss_text(loss));
  if (!float_dtype(b->student_dtype) || (b->teacher && !float_dtype(b->teacher_dtype)))
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss: logits must be F32, F16 or BF16");
  if (!(b->label_smoothing >= 0 && b->label_smoothing < 1))
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss: label smoothing %g is not in [0, 1)", b->label_smoothing);
  if (!(b->epoch >= 1)) return cmkd_fail(err, CMKD_ERR_VALUE, "loss: epoch %g is below 1", b->epoch);
  return CMKD_OK;
}

size_t cmkd_cuda_loss_scratch(const cmkd_loss *loss, int64_t batch, int64_t classes) {
  if (batch < 1 || batch > CMKD_CUDA_LOSS_MAX_BATCH || classes < CMKD_LOSS_MIN_CLASSES ||
      classes > CMKD_LOSS_MAX_CLASSES)
    return 0;
  return lay_out(loss, batch, classes).bytes;
}

cmkd_status cmkd_cuda_loss_init(void *scratch, void *stream, cmkd_error *err) {
  cudaError_t error = cudaMemsetAsync(scratch, 0, sizeof(loss_state), (cudaStream_t)stream);
  return error == cudaSuccess
             ? CMKD_OK
             : cmkd_fail(err, CMKD_ERR_DEVICE, "loss: clearing scratch: %s", cudaGetErrorString(error));
}

template <int E, bool WARP, int THREADS>
static cmkd_status launch_short(const loss_args &args, int threads, cudaStream_t stream, cmkd_error *err) {
  auto kernel = loss_kernel<E, WARP, THREADS>;
  const int rows = WARP ? WARP_ROWS : 1;
  const size_t bytes = rows * short_row<E, WARP>::bytes(WARP ? 32 : threads);
  if (bytes > 32 * 1024 && CMKD_SHARED_LIMIT(kernel, bytes) != cudaSuccess) {
    (void)cudaGetLastError();
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                     "loss: %d classes need %zu bytes of shared memory, more than this device gives a block", args.C,
                     bytes);
  }
  CMKD_LAUNCH(kernel, dim3((unsigned)((args.B + rows - 1) / rows)), dim3((unsigned)(WARP ? 32 * WARP_ROWS : threads)),
              bytes, stream, args);
  return launch_status("loss", err);
}

cmkd_status cmkd_cuda_loss_eval(const cmkd_loss *loss, const cmkd_cuda_loss_batch *b, void *scratch,
                                cmkd_loss_result *result, void *stream_pointer, cmkd_error *err) {
  CMKD_TRY(check(loss, b, scratch, result, err));
  cudaStream_t stream = (cudaStream_t)stream_pointer;
  const layout l = lay_out(loss, b->batch, b->classes);
  const cmkd_loss_term *cmkd = cmkd_loss_find(loss, CMKD_TERM_CMKD), *dist = cmkd_loss_find(loss, CMKD_TERM_DIST);
  char *memory = (char *)scratch;
  loss_args a;
  memset(&a, 0, sizeof a);
  a.B = b->batch;
  a.C = (int)b->classes;
  a.terms = loss->terms;
  a.parts = loss->parts;
  a.stride = loss->parts + 2;
  a.student = b->student;
  a.student_dtype = b->student_dtype;
  a.teacher = loss->needs_teacher ? b->teacher : nullptr;
  a.teacher_dtype = b->teacher_dtype;
  a.labels = b->labels;
  a.grad = b->grad;
  a.smoothing = b->label_smoothing;
  a.moments = (cmkd ? 2 : 0) | (b->label_smoothing > 0 ? 1 : 0);
  a.state = (loss_state *)memory;
  a.rows = (double *)(memory + l.rows);
  a.result = result;
  for (int i = 0; i < loss->terms; i++) {
    a.term[i] = loss->term[i];
    a.weight[i] = cmkd_term_weight(&loss->term[i], b->epoch);
  }
  a.epoch = b->epoch_now;
  a.entropy_mean = b->entropy_mean;
  if (cmkd && (isnan(b->entropy_mean) || b->entropy_mean_now) && cmkd->gate != CMKD_GATE_OFF) {
    double *entropy = (double *)(memory + l.entropy);
    a.entropy = entropy;
    const bool whole = a.C >= ENTROPY_LONG;
    auto kernel = whole ? entropy_kernel<false> : entropy_kernel<true>;
    CMKD_LAUNCH(kernel, dim3((unsigned)(whole ? a.B : (a.B + WARP_ROWS - 1) / WARP_ROWS)),
                dim3(whole ? 256 : 32 * WARP_ROWS), 0, stream, a.teacher, a.teacher_dtype, a.B, a.C, entropy, a.state,
                b->entropy_mean_now);
    CMKD_TRY(launch_status("loss entropy", err));
  } else if (isnan(b->entropy_mean))
    a.entropy_mean = 0;
  if (dist && a.B > 1) a.lse = (double *)(memory + l.lse);
  int threads = 32;
  while (threads * (a.C <= 1024 ? 4 : 8) < a.C && threads < 1024)
    threads *= 2;
  if (a.C > LOSS_SHORT)
    CMKD_TRY(long_launch(&a, memory + l.large, cmkd != nullptr, 0, nullptr, stream, err));
  else if (a.C <= 128)
    CMKD_TRY((launch_short<4, true, 32 * WARP_ROWS>(a, threads, stream, err)));
  else if (a.C <= 1024)
    CMKD_TRY((launch_short<4, false, 256>(a, threads, stream, err)));
  else
    CMKD_TRY((launch_short<8, false, 1024>(a, threads, stream, err)));
  if (dist && a.B > 1)
    CMKD_TRY(dist_launch(&a, dist, cmkd_term_weight(dist, b->epoch), (double *)(memory + l.columns), stream, err));
  return CMKD_OK;
}
