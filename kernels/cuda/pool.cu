/* Max, average and global average pooling. A thread makes 8 channels of a pixel of what it writes: of the output
 * forwards, of the input backwards, where it asks every window that covers its pixel. So gradients are sums in window
 * order without atomics, and nothing is kept for the way back. Bound by memory; windows are small and overlap in the
 * caches. Not here: dilation, rounding output sizes up. */
#include "kernels/cuda/channels.h"

struct pool_args {
  const void *x, *dy;
  void *y, *dx;
  int accumulate, groups, h, w, oh, ow, kernel_h, kernel_w, stride, pad;
  unsigned total; /* threads: pixels * groups of what is written */
  float weight;
};

struct spot {
  int image, y, x, group;
};
static __device__ __forceinline__ spot spot_of(unsigned at, int groups, int h, int w) {
  spot s;
  const unsigned pixel = at / (unsigned)groups, row = pixel / (unsigned)w, image = row / (unsigned)h;
  s.group = (int)(at - pixel * (unsigned)groups);
  s.x = (int)(pixel - row * (unsigned)w);
  s.y = (int)(row - image * (unsigned)h);
  s.image = (int)image;
  return s;
}
/* Element where 8 channels of a pixel start. */
static __device__ __forceinline__ int64_t element(const spot &s, int h, int w, int groups, int y, int x) {
  return ((((int64_t)s.image * h + y) * w + x) * groups + s.group) * 8;
}

/* The part of a window that lies inside: [first, last) of its rows or columns. */
struct span {
  int first, last;
};
static __device__ __forceinline__ span inside(int start, int kernel, int size) {
  span s;
  s.first = start < 0 ? 0 : start;
  s.last = start + kernel < size ? start + kernel : size;
  return s;
}
/* The outputs whose windows cover input position `at`. */
static __device__ __forceinline__ span covering(int at, int kernel, int stride, int pad, int outputs) {
  span s;
  const int low = at + pad - kernel + 1;
  s.first = low > 0 ? (low + stride - 1) / stride : 0;
  s.last = (at + pad) / stride + 1 < outputs ? (at + pad) / stride + 1 : outputs;
  return s;
}

template <class T> __global__ void __launch_bounds__(TILE_THREADS) maxpool_kernel(const __grid_constant__ pool_args a) {
  const unsigned at = blockIdx.x * TILE_THREADS + threadIdx.x;
  if (at >= a.total) return;
  const spot s = spot_of(at, a.groups, a.oh, a.ow);
  const span rows = inside(s.y * a.stride - a.pad, a.kernel_h, a.h),
             columns = inside(s.x * a.stride - a.pad, a.kernel_w, a.w);
  float best[8];
  for (int i = 0; i < 8; i++)
    best[i] = 0;
  for (int y = rows.first; y < rows.last; y++)
    for (int x = columns.first; x < columns.last; x++) {
      float v[8];
      load8((const T *)a.x + element(s, a.h, a.w, a.groups, y, x), v);
      const bool first = y == rows.first && x == columns.first;
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (first || v[i] > best[i] || v[i] != v[i]) best[i] = v[i]; /* NaN wins, so that it is seen */
    }
  store8((T *)a.y + (int64_t)at * 8, best);
}

/* The winner of each covering window is found again, in the order of the forward pass: the first of equals gets the
 * gradient. */
template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    maxpool_backward_kernel(const __grid_constant__ pool_args a) {
  const unsigned at = blockIdx.x * TILE_THREADS + threadIdx.x;
  if (at >= a.total) return;
  const spot s = spot_of(at, a.groups, a.h, a.w);
  const span over_y = covering(s.y, a.kernel_h, a.stride, a.pad, a.oh),
             over_x = covering(s.x, a.kernel_w, a.stride, a.pad, a.ow);
  float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  for (int oy = over_y.first; oy < over_y.last; oy++)
    for (int ox = over_x.first; ox < over_x.last; ox++) {
      const span rows = inside(oy * a.stride - a.pad, a.kernel_h, a.h),
                 columns = inside(ox * a.stride - a.pad, a.kernel_w, a.w);
      float best[8], d[8];
      unsigned mine = 0; /* a bit a channel: the winner so far is this thread's pixel */
      for (int i = 0; i < 8; i++)
        best[i] = 0;
      for (int y = rows.first; y < rows.last; y++)
        for (int x = columns.first; x < columns.last; x++) {
          float v[8];
          load8((const T *)a.x + element(s, a.h, a.w, a.groups, y, x), v);
          const bool first = y == rows.first && x == columns.first;
          const unsigned me = y == s.y && x == s.x;
#pragma unroll
          for (int i = 0; i < 8; i++)
            if (first || v[i] > best[i] || v[i] != v[i]) {
              best[i] = v[i];
              mine = (mine & ~(1u << i)) | me << i;
            }
        }
      load8((const T *)a.dy + element(s, a.oh, a.ow, a.groups, oy, ox), d);
#pragma unroll
      for (int i = 0; i < 8; i++)
        sum[i] += mine >> i & 1 ? d[i] : 0.0f;
    }
  give8((T *)a.dx + (int64_t)at * 8, sum, a.accumulate);
}

template <class T> __global__ void __launch_bounds__(TILE_THREADS, 4)
    avgpool_kernel(const __grid_constant__ pool_args a) {
  const unsigned at = blockIdx.x * TILE_THREADS + threadIdx.x;
  if (at >= a.total) return;
  const spot s = spot_of(at, a.groups, a.oh, a.ow);
  const span rows = inside(s.y * a.stride - a.pad, a.kernel_h, a.h),
             columns = inside(s.x * a.stride - a.pad, a.kernel_w, a.w);
  float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, v[8];
  for (int y = rows.first; y < rows.last; y++)
    for (int x = columns.first; x < columns.last; x++) {
      load8((const T *)a.x + element(s, a.h, a.w, a.groups, y, x), v);
#pragma unroll
      for (int i = 0; i < 8; i++)
        sum[i] += v[i];
    }
#pragma unroll
  for (int i = 0; i < 8; i++)
    sum[i] *= a.weight;
  store8((T *)a.y + (int64_t)at * 8, sum);
}

/* GLOBALPOOL's gradient too: one window as large as the input. */
template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    avgpool_backward_kernel(const __grid_constant__ pool_args a) {
  const unsigned at = blockIdx.x * TILE_THREADS + threadIdx.x;
  if (at >= a.total) return;
  const spot s = spot_of(at, a.groups, a.h, a.w);
  const span over_y = covering(s.y, a.kernel_h, a.stride, a.pad, a.oh),
             over_x = covering(s.x, a.kernel_w, a.stride, a.pad, a.ow);
  float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, d[8];
  for (int oy = over_y.first; oy < over_y.last; oy++)
    for (int ox = over_x.first; ox < over_x.last; ox++) {
      load8((const T *)a.dy + element(s, a.oh, a.ow, a.groups, oy, ox), d);
#pragma unroll
      for (int i = 0; i < 8; i++)
        sum[i] += d[i];
    }
#pragma unroll
  for (int i = 0; i < 8; i++)
    sum[i] *= a.weight;
  give8((T *)a.dx + (int64_t)at * 8, sum, a.accumulate);
}

/* grid (images, tiles): a lane adds every lanes-th pixel in float, lanes are added in double. */
template <class T> __global__ void __launch_bounds__(TILE_THREADS)
    globalpool_kernel(const __grid_constant__ pool_args a, const __grid_constant__ tiling t) {
  CMKD_SHARED(double, shared, TILE_CAPACITY);
  CMKD_SHARED(double, total, TILE_CHANNELS);
  const int stride = a.groups * 8, area = a.h * a.w;
  const tile_place s = place_of(t, (int)blockIdx.y, stride);
  float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  if (s.lane >= 0) {
    const T *x = (const T *)a.x + (int64_t)blockIdx.x * area * stride + s.first + s.group * 8;
#pragma unroll 4
    for (int pixel = s.lane; pixel < area; pixel += t.lanes) {
      float v[8];
      load8(x + (int64_t)pixel * stride, v);
#pragma unroll
      for (int i = 0; i < 8; i++)
        sum[i] += v[i];
    }
  }
  double mine[8];
  for (int i = 0; i < 8; i++)
    mine[i] = (double)sum[i];
  lane_sums(t, s, mine, shared, total);
  if (s.lane != 0) return;
#pragma unroll
  for (int i = 0; i < 8; i++)
    sum[i] = (float)total[s.group * 8 + i] * a.weight;
  store8((T *)a.y + (int64_t)blockIdx.x * stride + s.first + s.group * 8, sum);
}

static pool_args args_of(const cmkd_cuda_call *call, int backward) {
  const cmkd_op *op = call->op;
  const cmkd_shape in = call->in[0], out = call->out, written = backward ? in : out;
  const int global = op->kind == CMKD_OP_GLOBALPOOL;
  pool_args a;
  a.x = call->x[0];
  a.y = call->y;
  a.dy = call->dy;
  a.dx = call->dx[0];
  a.accumulate = call->accumulate[0];
  a.groups = cmkd_cuda_stride(in.c) / 8;
  a.h = in.h, a.w = in.w, a.oh = out.h, a.ow = out.w;
  a.kernel_h = global ? in.h : op->kernel_h;
  a.kernel_w = global ? in.w : op->kernel_w;
  a.stride = global ? 1 : op->stride;
  a.pad = global ? 0 : op->pad;
  a.total = (unsigned)((int64_t)call->n * written.h * written.w * a.groups);
  a.weight = (float)(1.0 / ((double)a.kernel_h * a.kernel_w));
  return a;
}

void cmkd_cuda_pool_forward(const cmkd_cuda_call *call, cudaStream_t stream) {
  const pool_args a = args_of(call, 0);
  const dim3 grid((a.total + TILE_THREADS - 1) / TILE_THREADS), block(TILE_THREADS);
  const tiling t = tiling_of(call->in[0].c, TILE_GROUPS);
  by_dtype(call->dtype, [&](auto *p) {
    typedef std::remove_pointer_t<decltype(p)> T;
    if (call->op->kind == CMKD_OP_MAXPOOL)
      CMKD_LAUNCH(maxpool_kernel<T>, grid, block, 0, stream, a);
    else if (call->op->kind == CMKD_OP_AVGPOOL)
      CMKD_LAUNCH(avgpool_kernel<T>, grid, block, 0, stream, a);
    else
      CMKD_LAUNCH(globalpool_kernel<T>, dim3((unsigned)call->n, (unsigned)t.tiles), block, 0, stream, a, t);
  });
}

void cmkd_cuda_pool_backward(const cmkd_cuda_call *call, cudaStream_t stream) {
  if (!call->dx[0]) return;
  const pool_args a = args_of(call, 1);
  const dim3 grid((a.total + TILE_THREADS - 1) / TILE_THREADS), block(TILE_THREADS);
  by_dtype(call->dtype, [&](auto *p) {
    typedef std::remove_pointer_t<decltype(p)> T;
    if (call->op->kind == CMKD_OP_MAXPOOL)
      CMKD_LAUNCH(maxpool_backward_kernel<T>, grid, block, 0, stream, a);
    else
      CMKD_LAUNCH(avgpool_backward_kernel<T>, grid, block, 0, stream, a);
  });
}
