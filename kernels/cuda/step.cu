/* The small kernels around a training step: input from the queue, correct rows, optimizer, result. Their time is
 * that of launches and memory. */
#include "kernels/cuda/step.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/vector.h"

#define STEP_THREADS 256

static unsigned blocks_for(int64_t n, int64_t most) {
  const int64_t blocks = (n + STEP_THREADS - 1) / STEP_THREADS;
  return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

/* ---- begin: the slot's arrays are copied in words of four bytes, as if they were one long array ---- */

typedef struct begin_part {
  void *to;
  size_t from; /* offset in the slot */
  int64_t words;
} begin_part;
enum { BEGIN_PARTS = 4 + 2 * CMKD_MAX_TARGETS };
typedef struct begin_args {
  const char *slots;
  size_t stride;
  begin_part part[BEGIN_PARTS];
  int parts, rows;
  int64_t total;
  uint32_t *identity; /* becomes 0 .. rows - 1; or NULL */
} begin_args;

__global__ void __launch_bounds__(STEP_THREADS)
    begin_kernel(const __grid_constant__ begin_args a, cmkd_cuda_state *state) {
  const char *slot = a.slots + (size_t)state->input * a.stride;
  const int64_t first = (int64_t)blockIdx.x * STEP_THREADS + threadIdx.x;
  for (int64_t at = first; at < a.total; at += (int64_t)gridDim.x * STEP_THREADS) {
    int64_t i = at;
    int k = 0;
    while (i >= a.part[k].words)
      i -= a.part[k++].words;
    ((uint32_t *)a.part[k].to)[i] = ((const uint32_t *)(slot + a.part[k].from))[i];
  }
  if (a.identity)
    for (int64_t i = first; i < a.rows; i += (int64_t)gridDim.x * STEP_THREADS)
      a.identity[i] = (uint32_t)i;
  if (first) return;
  const cmkd_cuda_slot *head = (const cmkd_cuda_slot *)slot;
  state->lr = head->lr;
  state->epoch = head->epoch;
  state->entropy_mean = head->entropy_mean;
  state->top1 = state->top5 = 0;
  state->overflow = 0;
  state->agreement.pearson = state->agreement.spearman = state->agreement.blocks = 0;
  state->agreement.rows = 0;
}

/* Adds an array to what is copied; false: it is wanted and not in the slot. */
static bool add_part(begin_args *a, void *to, size_t from, int64_t words) {
  if (!to) return true;
  if (!from || words < 1) return false;
  a->part[a->parts++] = begin_part{to, from, words};
  a->total += words;
  return true;
}

cmkd_status cmkd_cuda_begin(const cmkd_cuda_slot_layout *q, const cmkd_cuda_input *in, const cmkd_cuda_sizes *sizes,
                            cmkd_cuda_state *state, void *stream, cmkd_error *err) {
  begin_args a;
  const int64_t rows = sizes->rows;
  bool good = q->slots && in->rows && in->seeds && in->labels && rows >= 1;
  memset(&a, 0, sizeof a);
  a.slots = q->slots;
  a.stride = q->stride;
  a.rows = sizes->rows;
  a.identity = in->pixels ? in->rows : nullptr;
  good = good && add_part(&a, in->seeds, q->seeds, 2 * rows) && add_part(&a, in->labels, q->labels, rows);
  good = good && add_part(&a, in->pixels ? nullptr : in->rows, q->rows, rows);
  for (int t = 0; t < CMKD_MAX_TARGETS && good; t++)
    good = add_part(&a, in->index[t], q->index[t], rows) &&
           add_part(&a, in->target[t], q->target[t], rows * sizes->width[t]);
  good = good && add_part(&a, in->pixels, q->pixels, (rows * sizes->image + 3) / 4);
  if (!good) return cmkd_fail(err, CMKD_ERR_VALUE, "step input: %d rows, or a pointer, is out of range", sizes->rows);
  CMKD_LAUNCH(begin_kernel, dim3(blocks_for(a.total, 1024)), dim3(STEP_THREADS), 0, (cudaStream_t)stream, a, state);
  return launch_status("step input", err);
}

/* ---- correct rows: a warp a row ---- */

__global__ void __launch_bounds__(STEP_THREADS)
    count_correct_kernel(const float *logits, const int32_t *labels, int count, int classes, cmkd_cuda_state *state) {
  const int lane = threadIdx.x & 31, row = (int)(blockIdx.x * (STEP_THREADS / 32) + (threadIdx.x >> 5));
  if (blockIdx.x == 0 && threadIdx.x == 0) state->skip = state->halted || state->loss.bad_row >= 0;
  if (row >= count) return; /* the whole warp */
  const int label = labels[row];
  if (label < 0 || label >= classes) return;
  const float *z = logits + (int64_t)row * classes, mine = z[label];
  int better = 0;
  for (int c = lane; c < classes; c += 32)
    better += z[c] > mine || (c < label && z[c] == mine);
#pragma unroll
  for (int d = 16; d; d >>= 1)
    better += __shfl_xor_sync(CMKD_WARP, better, d);
  if (lane) return;
  if (better < 1) atomicAdd(&state->top1, 1);
  if (better < 5) atomicAdd(&state->top5, 1);
}

cmkd_status cmkd_cuda_count_correct(const float *logits, const int32_t *labels, int count, int classes,
                                    cmkd_cuda_state *state, void *stream, cmkd_error *err) {
  if (!logits || !labels || !state || count < 1 || classes < 1)
    return cmkd_fail(err, CMKD_ERR_VALUE, "judge: %d rows of %d classes, or a pointer, is out of range", count,
                     classes);
  const int rows = STEP_THREADS / 32;
  CMKD_LAUNCH(count_correct_kernel, dim3((unsigned)((count + rows - 1) / rows)), dim3(STEP_THREADS), 0,
              (cudaStream_t)stream, logits, labels, count, classes, state);
  return launch_status("judge", err);
}

/* ---- gradients to weights ---- */

__global__ void __launch_bounds__(STEP_THREADS) scale_kernel(float *grad, int64_t count, const cmkd_cuda_state *state) {
  const float scale = state->scale;
  for (int64_t i = (int64_t)blockIdx.x * STEP_THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * STEP_THREADS)
    grad[i] *= scale;
}

cmkd_status cmkd_cuda_scale(float *grad, int64_t count, const cmkd_cuda_state *state, void *stream, cmkd_error *err) {
  CMKD_LAUNCH(scale_kernel, dim3(blocks_for(count, 1024)), dim3(STEP_THREADS), 0, (cudaStream_t)stream, grad, count,
              state);
  return launch_status("loss scale", err);
}

__global__ void __launch_bounds__(STEP_THREADS) widen_kernel(const __grid_constant__ cmkd_cuda_update u) {
  const int64_t first = (int64_t)blockIdx.x * CMKD_CUDA_CHUNK + 4 * (int64_t)threadIdx.x;
  if (!u.from16[blockIdx.x]) return;
#pragma unroll
  for (int k = 0; k < 4; k++)
    u.grad[first + k] = load_float(u.grad16, u.copy_dtype, first + k);
}

/* A thread's four gradients of a chunk. */
static __device__ __forceinline__ void gradients_of(const cmkd_cuda_update &u, int64_t first, float g[4]) {
  if (u.from16 && u.from16[blockIdx.x]) {
#pragma unroll
    for (int k = 0; k < 4; k++)
      g[k] = load_float(u.grad16, u.copy_dtype, first + k);
    return;
  }
  const float4 v = *(const float4 *)(u.grad + first);
  g[0] = v.x;
  g[1] = v.y;
  g[2] = v.z;
  g[3] = v.w;
}

__global__ void __launch_bounds__(STEP_THREADS)
    check_kernel(const __grid_constant__ cmkd_cuda_update u, cmkd_cuda_state *state) {
  float g[4];
  gradients_of(u, (int64_t)blockIdx.x * CMKD_CUDA_CHUNK + threadIdx.x * 4, g);
  bool bad = false;
#pragma unroll
  for (int k = 0; k < 4; k++)
    bad |= !(fabsf(g[k]) <= 3.4e38f);
  if (bad) state->overflow = 1; /* all that write it write the same */
}

__global__ void __launch_bounds__(STEP_THREADS)
    sgd_kernel(const __grid_constant__ cmkd_cuda_update u, const cmkd_cuda_state *state) {
  if (state->skip || state->overflow) return;
  const int64_t first = (int64_t)blockIdx.x * CMKD_CUDA_CHUNK + threadIdx.x * 4;
  const float lr = state->lr, unscale = 1.0f / state->scale;
  float g[4], next[4], velocity[4];
  gradients_of(u, first, g);
  const float4 w = *(const float4 *)(u.w + first), m = *(const float4 *)(u.m + first);
  const float old[4] = {w.x, w.y, w.z, w.w}, was[4] = {m.x, m.y, m.z, m.w};
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const float gradient = g[k] * unscale + u.decay * old[k];
    velocity[k] = u.momentum * was[k] + gradient;
    next[k] = old[k] - lr * (u.nesterov ? gradient + u.momentum * velocity[k] : velocity[k]);
  }
  *(float4 *)(u.m + first) = make_float4(velocity[0], velocity[1], velocity[2], velocity[3]);
  *(float4 *)(u.w + first) = make_float4(next[0], next[1], next[2], next[3]);
  if (!u.copy) return;
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (u.copy_dtype == CMKD_F16)
      from_float((__half *)u.copy + first + k, next[k]);
    else
      from_float((__nv_bfloat16 *)u.copy + first + k, next[k]);
}

static cmkd_status check_update(const cmkd_cuda_update *u, cmkd_error *err) {
  const bool whole = u->count >= 1 && u->count % CMKD_CUDA_CHUNK == 0 && u->count / CMKD_CUDA_CHUNK <= 0x7FFFFFFF,
             half = u->copy_dtype == CMKD_F16 || u->copy_dtype == CMKD_BF16;
  if (whole && u->w && u->m && u->grad && (half || !(u->copy || u->from16)) && !(u->from16 && !u->grad16))
    return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE, "sgd: %lld numbers, or a pointer or dtype, is out of range",
                   (long long)u->count);
}

cmkd_status cmkd_cuda_widen(const cmkd_cuda_update *u, void *stream, cmkd_error *err) {
  CMKD_TRY(check_update(u, err));
  if (!u->from16) return CMKD_OK;
  CMKD_LAUNCH(widen_kernel, dim3((unsigned)(u->count / CMKD_CUDA_CHUNK)), dim3(STEP_THREADS), 0, (cudaStream_t)stream,
              *u);
  return launch_status("widening gradients", err);
}

cmkd_status cmkd_cuda_check_gradients(const cmkd_cuda_update *u, cmkd_cuda_state *state, void *stream,
                                      cmkd_error *err) {
  CMKD_TRY(check_update(u, err));
  CMKD_LAUNCH(check_kernel, dim3((unsigned)(u->count / CMKD_CUDA_CHUNK)), dim3(STEP_THREADS), 0, (cudaStream_t)stream,
              *u, state);
  return launch_status("gradient check", err);
}

cmkd_status cmkd_cuda_sgd(const cmkd_cuda_update *u, const cmkd_cuda_state *state, void *stream, cmkd_error *err) {
  CMKD_TRY(check_update(u, err));
  CMKD_LAUNCH(sgd_kernel, dim3((unsigned)(u->count / CMKD_CUDA_CHUNK)), dim3(STEP_THREADS), 0, (cudaStream_t)stream, *u,
              state);
  return launch_status("sgd", err);
}

template <class T> __global__ void __launch_bounds__(STEP_THREADS)
    round_kernel(const float *w, int64_t count, T *copy) {
  for (int64_t i = (int64_t)blockIdx.x * STEP_THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * STEP_THREADS)
    from_float(copy + i, w[i]);
}

cmkd_status cmkd_cuda_round(const float *w, int64_t count, void *copy, cmkd_dtype dtype, void *stream,
                            cmkd_error *err) {
  if (!w || !copy || count < 1 || !float_dtype(dtype))
    return cmkd_fail(err, CMKD_ERR_VALUE, "rounding: %lld numbers, or a pointer or dtype, is out of range",
                     (long long)count);
  by_dtype(dtype, [&](auto *t) {
    auto kernel = round_kernel<std::remove_pointer_t<decltype(t)>>;
    CMKD_LAUNCH(kernel, dim3(blocks_for(count, 4096)), dim3(STEP_THREADS), 0, (cudaStream_t)stream, w, count,
                (decltype(t))copy);
  });
  return launch_status("rounding", err);
}

/* ---- end ---- */

__global__ void end_kernel(cmkd_cuda_state *s, cmkd_step_result *results, int count, int scaling) {
  s->input++;
  if (!results) return; /* inference */
  cmkd_step_result *r = results + s->output++;
  r->count = s->halted ? -1 : count;
  r->loss = s->loss;
  r->top1 = s->top1;
  r->top5 = s->top5;
  r->agreement = s->agreement;
  for (int i = 0; i < CMKD_MAX_OUTPUTS; i++)
    r->objective[i] = s->objective[i];
  if (s->loss.bad_row >= 0) s->halted = 1;
  if (scaling && !s->skip) {
    if (s->overflow) {
      if (s->scale > 1) s->scale *= 0.5f;
      s->good = 0;
    } else if (++s->good >= CMKD_CUDA_SCALE_STEPS) {
      if (s->scale < CMKD_CUDA_SCALE_MOST) s->scale *= 2;
      s->good = 0;
    }
  }
}

cmkd_status cmkd_cuda_end(cmkd_cuda_state *state, cmkd_step_result *results, int count, int scaling, void *stream,
                          cmkd_error *err) {
  CMKD_LAUNCH(end_kernel, dim3(1), dim3(1), 0, (cudaStream_t)stream, state, results, count, scaling);
  return launch_status("step result", err);
}
