/* What computes a pixel from the same pixel: ADD and ACT, and the operations that only rearrange channels. CONCAT,
 * SLICE, SHUFFLE and PADSHORTCUT are one rule, in both directions: every channel that is written has at most one
 * source. Also the door to all operations without weights (cmkd_cuda_forward, cmkd_cuda_backward); the pools are in
 * pool.cu. Bound by memory, a thread makes 8 channels. */
#include "kernels/cuda/channels.h"

/* ---- ADD and ACT ---- */

/* y = act(x0 [+ x1]) */
template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    add_kernel(const T *x0, const T *x1, T *y, int act, unsigned total) {
  const unsigned at = blockIdx.x * TILE_THREADS + threadIdx.x;
  if (at >= total) return;
  float v[8], more[8];
  load8(x0 + (int64_t)at * 8, v);
  if (x1) load8(x1 + (int64_t)at * 8, more);
#pragma unroll
  for (int i = 0; i < 8; i++)
    v[i] = activate(act, x1 ? v[i] + more[i] : v[i]);
  store8(y + (int64_t)at * 8, v);
}

/* dx0, dx1: either may be NULL. twice: both are the same memory, given as dx0. */
template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    add_backward_kernel(const T *y, const T *dy, T *dx0, int accumulate0, T *dx1, int accumulate1, int twice, int act,
                        unsigned total) {
  const unsigned at = blockIdx.x * TILE_THREADS + threadIdx.x;
  if (at >= total) return;
  const int64_t first = (int64_t)at * 8;
  float v[8], g[8];
  load8(dy + first, g);
  if (act != CMKD_ACT_NONE) {
    load8(y + first, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
      g[i] = passes(act, v[i]) ? g[i] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    v[i] = twice ? g[i] + g[i] : g[i];
  if (dx0) give8(dx0 + first, v, accumulate0);
  if (dx1) give8(dx1 + first, g, accumulate1);
}

/* ---- moving channels ---- */

/* Channel c of pixel p of `to` comes from channel s = (c % transpose) * across + c / transpose + shift of `from` where
 * 0 <= s < from_c, from channel s - from_c of `second` where that is below second_c, else from nowhere (0). Its pixel
 * is p itself, or with a step forwards every step-th pixel of from, backwards (spread) pixel p / step where that
 * divides. */
struct rearrange {
  const void *from, *second;
  void *to;
  int accumulate, to_c, from_c, second_c;
  int transpose, across, shift;
  int step, spread, h, w, from_h, from_w; /* h, w of `to` */
  int aligned;                            /* groups of 8 stay together */
  unsigned total;
};
struct rearranges {
  rearrange part[2];
}; /* one a grid row */

/* Pixel of from, or -1. */
static __device__ __forceinline__ int64_t source_pixel(const rearrange &m, unsigned pixel) {
  if (m.step == 1) return pixel;
  const unsigned row = pixel / (unsigned)m.w, image = row / (unsigned)m.h;
  int x = (int)(pixel - row * (unsigned)m.w), y = (int)(row - image * (unsigned)m.h);
  if (m.spread) {
    if (x % m.step || y % m.step) return -1;
    x /= m.step, y /= m.step;
  } else
    x *= m.step, y *= m.step;
  return ((int64_t)image * m.from_h + y) * m.from_w + x;
}

template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    rearrange_kernel(const __grid_constant__ rearranges a) {
  const rearrange &m = a.part[blockIdx.y];
  const unsigned at = blockIdx.x * TILE_THREADS + threadIdx.x;
  if (at >= m.total) return;
  const unsigned groups = (unsigned)(m.to_c + 7) / 8, pixel = at / groups;
  const int first = (int)(at - pixel * groups) * 8, from_stride = (m.from_c + 7) / 8 * 8,
            second_stride = (m.second_c + 7) / 8 * 8;
  const int64_t source = source_pixel(m, pixel);
  if (source < 0 && m.accumulate) return;
  float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  if (source >= 0) {
    const T *from = (const T *)m.from + source * from_stride, *second = (const T *)m.second + source * second_stride;
    if (m.aligned) {
      const int s = first + m.shift;
      if (s >= 0 && s < m.from_c)
        load8(from + s, v);
      else if (s >= m.from_c && s - m.from_c < m.second_c)
        load8(second + (s - m.from_c), v);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int c = first + i, s = c % m.transpose * m.across + c / m.transpose + m.shift;
        if (c >= m.to_c) continue;
        if (s >= 0 && s < m.from_c)
          v[i] = to_float(from[s]);
        else if (s >= m.from_c && s - m.from_c < m.second_c)
          v[i] = to_float(second[s - m.from_c]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    v[i] = first + i < m.to_c ? v[i] : 0.0f;
  give8((T *)m.to + (int64_t)at * 8, v, m.accumulate);
}

/* A rearrange of whole pixels with its channels as they are; the caller changes what differs. */
static rearrange plain_copy(const void *from, cmkd_shape from_shape, void *to, cmkd_shape to_shape, int n,
                            int accumulate) {
  rearrange m;
  memset(&m, 0, sizeof m);
  m.from = from;
  m.to = to;
  m.accumulate = accumulate;
  m.from_c = from_shape.c, m.to_c = to_shape.c;
  m.h = to_shape.h, m.w = to_shape.w, m.from_h = from_shape.h, m.from_w = from_shape.w;
  m.transpose = m.across = m.step = 1;
  m.total = (unsigned)((int64_t)n * to_shape.h * to_shape.w * (cmkd_cuda_stride(to_shape.c) / 8));
  return m;
}

static rearrange forward_rearrange(const cmkd_cuda_call *call) {
  const cmkd_op *op = call->op;
  rearrange m = plain_copy(call->x[0], call->in[0], call->y, call->out, call->n, 0);
  if (op->kind == CMKD_OP_CONCAT)
    m.second = call->x[1], m.second_c = call->in[1].c;
  else if (op->kind == CMKD_OP_SLICE)
    m.shift = op->first;
  else if (op->kind == CMKD_OP_PADSHORTCUT)
    m.shift = -op->first, m.step = op->stride;
  else
    m.transpose = op->groups, m.across = call->out.c / op->groups;
  return m;
}

static rearrange backward_rearrange(const cmkd_cuda_call *call, int k) {
  const cmkd_op *op = call->op;
  rearrange m = plain_copy(call->dy, call->out, call->dx[k], call->in[k], call->n, call->accumulate[k]);
  if (op->kind == CMKD_OP_CONCAT)
    m.shift = k ? call->in[0].c : 0;
  else if (op->kind == CMKD_OP_SLICE)
    m.shift = -op->first;
  else if (op->kind == CMKD_OP_PADSHORTCUT)
    m.shift = op->first, m.step = op->stride, m.spread = 1;
  else
    m.transpose = call->out.c / op->groups, m.across = op->groups;
  return m;
}

static unsigned blocks_for(unsigned threads) { return (threads + TILE_THREADS - 1) / TILE_THREADS; }

static void launch_rearrange(rearranges a, int count, cmkd_dtype dtype, cudaStream_t stream) {
  unsigned blocks = 0;
  for (int k = 0; k < count; k++) {
    rearrange *m = &a.part[k];
    m->aligned = m->transpose == 1 && m->shift % 8 == 0 && (!m->second || m->from_c % 8 == 0);
    if (blocks_for(m->total) > blocks) blocks = blocks_for(m->total);
  }
  by_dtype(dtype, [&](auto *t) {
    CMKD_LAUNCH(rearrange_kernel<std::remove_pointer_t<decltype(t)>>, dim3(blocks, (unsigned)count), dim3(TILE_THREADS),
                0, stream, a);
  });
}

/* ---- to float ---- */

__global__ void __launch_bounds__(TILE_THREADS)
    to_float_kernel(const void *from, int dtype, unsigned total, int c, int stride, float *to) {
  const unsigned at = blockIdx.x * TILE_THREADS + threadIdx.x;
  if (at >= total) return;
  const unsigned row = at / (unsigned)c;
  to[at] = load_float(from, dtype, (int64_t)row * stride + (at - row * (unsigned)c));
}

cmkd_status cmkd_cuda_to_float(const void *from, cmkd_dtype dtype, int64_t rows, int c, float *to, void *stream,
                               cmkd_error *err) {
  if (!from || !to || !float_dtype(dtype) || rows < 1 || c < 1 || rows > INT32_MAX / c)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "to float: %lld rows of %d numbers are out of range, or a pointer or dtype is missing",
                     (long long)rows, c);
  const unsigned total = (unsigned)(rows * c);
  CMKD_LAUNCH(to_float_kernel, dim3(blocks_for(total)), dim3(TILE_THREADS), 0, (cudaStream_t)stream, from, (int)dtype,
              total, c, cmkd_cuda_stride(c), to);
  return launch_status("to float", err);
}

/* ---- one call of an operation ---- */

/* Threads and blocks are counted in 32 bits. */
static int countable(cmkd_shape s, int n) {
  return s.h >= 1 && s.w >= 1 && s.c >= 1 && s.h <= 65536 && s.w <= 65536 && s.c <= 65536 &&
         (int64_t)s.h * s.w <= INT32_MAX / n && (int64_t)s.h * s.w * n <= INT32_MAX / (cmkd_cuda_stride(s.c) / 8);
}
static int same_size(cmkd_shape a, cmkd_shape b) { return a.h == b.h && a.w == b.w; }

/* The shapes fit the operation, so that no index leaves its array. */
static int fits(const cmkd_cuda_call *call) {
  const cmkd_op *op = call->op;
  const cmkd_shape in = call->in[0], more = call->in[1], out = call->out;
  switch (op->kind) {
  case CMKD_OP_ADD: return same_size(in, out) && same_size(more, out) && in.c == out.c && more.c == out.c;
  case CMKD_OP_ACT: return same_size(in, out) && in.c == out.c;
  case CMKD_OP_MAXPOOL:
  case CMKD_OP_AVGPOOL:
    return in.c == out.c && op->stride >= 1 && op->pad >= 0 && op->kernel_h >= 1 && op->kernel_w >= 1 &&
           2 * op->pad <= op->kernel_h && 2 * op->pad <= op->kernel_w &&
           (out.h - 1) * op->stride + op->kernel_h <= in.h + 2 * op->pad &&
           (out.w - 1) * op->stride + op->kernel_w <= in.w + 2 * op->pad;
  case CMKD_OP_GLOBALPOOL: return out.h == 1 && out.w == 1 && in.c == out.c;
  case CMKD_OP_PADSHORTCUT:
    return op->stride >= 1 && op->first >= 0 && op->first + in.c <= out.c && out.h == (in.h - 1) / op->stride + 1 &&
           out.w == (in.w - 1) / op->stride + 1;
  case CMKD_OP_CONCAT: return same_size(in, out) && same_size(more, out) && in.c + more.c == out.c;
  case CMKD_OP_SLICE: return same_size(in, out) && op->first >= 0 && op->first + out.c <= in.c;
  case CMKD_OP_SHUFFLE: return same_size(in, out) && in.c == out.c && op->groups >= 1 && in.c % op->groups == 0;
  default: return 0;
  }
}

static int is_pool(const cmkd_cuda_call *call) {
  return call->op->kind == CMKD_OP_MAXPOOL || call->op->kind == CMKD_OP_AVGPOOL || call->op->kind == CMKD_OP_GLOBALPOOL;
}
static int has_two(const cmkd_cuda_call *call) {
  return call->op->kind == CMKD_OP_ADD || call->op->kind == CMKD_OP_CONCAT;
}

static cmkd_status check(const cmkd_cuda_call *call, cmkd_error *err) {
  if (!call || !call->op) return cmkd_fail(err, CMKD_ERR_VALUE, "an operation is missing");
  if (!float_dtype(call->dtype) || call->n < 1 || !countable(call->in[0], call->n) || !countable(call->out, call->n) ||
      (has_two(call) && !countable(call->in[1], call->n)) || !fits(call))
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "%s: %d images of %dx%dx%d to %dx%dx%d are out of range or do not fit the operation",
                     cmkd_op_name(call->op->kind), call->n, call->in[0].h, call->in[0].w, call->in[0].c, call->out.h,
                     call->out.w, call->out.c);
  return CMKD_OK;
}
static cmkd_status missing(const cmkd_cuda_call *call, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_VALUE, "%s: a pointer is missing", cmkd_op_name(call->op->kind));
}

cmkd_status cmkd_cuda_forward(const cmkd_cuda_call *call, void *stream, cmkd_error *err) {
  CMKD_TRY(check(call, err));
  if (!call->x[0] || !call->y || (has_two(call) && !call->x[1])) return missing(call, err);
  const cmkd_op_kind kind = call->op->kind;
  if (is_pool(call))
    cmkd_cuda_pool_forward(call, (cudaStream_t)stream);
  else if (kind == CMKD_OP_ADD || kind == CMKD_OP_ACT) {
    const unsigned total =
        (unsigned)((int64_t)call->n * call->out.h * call->out.w * (cmkd_cuda_stride(call->out.c) / 8));
    by_dtype(call->dtype, [&](auto *t) {
      typedef std::remove_pointer_t<decltype(t)> T;
      CMKD_LAUNCH(add_kernel<T>, dim3(blocks_for(total)), dim3(TILE_THREADS), 0, (cudaStream_t)stream,
                  (const T *)call->x[0], kind == CMKD_OP_ADD ? (const T *)call->x[1] : (const T *)nullptr, (T *)call->y,
                  (int)call->op->act, total);
    });
  } else {
    rearranges a;
    a.part[0] = a.part[1] = forward_rearrange(call);
    launch_rearrange(a, 1, call->dtype, (cudaStream_t)stream);
  }
  return launch_status(cmkd_op_name(kind), err);
}

cmkd_status cmkd_cuda_backward(const cmkd_cuda_call *call, void *stream, cmkd_error *err) {
  CMKD_TRY(check(call, err));
  const cmkd_op_kind kind = call->op->kind;
  const int masked = (kind == CMKD_OP_ADD || kind == CMKD_OP_ACT) && call->op->act != CMKD_ACT_NONE;
  void *dx[2] = {call->dx[0], has_two(call) ? call->dx[1] : NULL};
  if (!call->dy || (masked && !call->y) || (kind == CMKD_OP_MAXPOOL && !call->x[0])) return missing(call, err);
  if (!dx[0] && !dx[1]) return CMKD_OK;
  const int twice = dx[0] == dx[1];
  if (twice && !(call->accumulate[0] && call->accumulate[1]))
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: gradients in the same memory must both accumulate", cmkd_op_name(kind));
  if (is_pool(call))
    cmkd_cuda_pool_backward(call, (cudaStream_t)stream);
  else if (kind == CMKD_OP_ADD || kind == CMKD_OP_ACT) {
    const unsigned total =
        (unsigned)((int64_t)call->n * call->out.h * call->out.w * (cmkd_cuda_stride(call->out.c) / 8));
    by_dtype(call->dtype, [&](auto *t) {
      typedef std::remove_pointer_t<decltype(t)> T;
      CMKD_LAUNCH(add_backward_kernel<T>, dim3(blocks_for(total)), dim3(TILE_THREADS), 0, (cudaStream_t)stream,
                  (const T *)call->y, (const T *)call->dy, (T *)dx[0], call->accumulate[0],
                  twice ? (T *)nullptr : (T *)dx[1], call->accumulate[1], twice, (int)call->op->act, total);
    });
  } else {
    rearranges a;
    int count = 0;
    for (int k = 0; k < 2; k++)
      if (dx[k]) a.part[count++] = backward_rearrange(call, k);
    if (twice) { /* one after the other: both add to the same numbers */
      launch_rearrange(a, 1, call->dtype, (cudaStream_t)stream);
      a.part[0] = a.part[1];
    }
    launch_rearrange(a, twice ? 1 : count, call->dtype, (cudaStream_t)stream);
  }
  return launch_status(cmkd_op_name(kind), err);
}
