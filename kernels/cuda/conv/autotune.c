/* Candidates for a request, run on scratch memory: those whose result is not that of our own kernels are out, the rest
 * is timed. Not here: finding candidates, remembering the winner (select.c). */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/half.h"
#include "base/rng.h"
#include "kernels/cuda/conv/select.h"

enum {
  WARM_UPS = 3,
  SAMPLES = 5, /* of which the median counts */
  RUNS = 10,   /* in the graph that a sample times */
  SAMPLE = 1 << 16
};
#define PLUG ((size_t)256 << 20) /* bytes that the device clears ahead of what is timed, while the host queues it */

static size_t align(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

/* One request's tensors on the device: a, b and c as in cmkd_conv_run; `plug` is cleared before what is timed. */
typedef struct bench {
  const cmkd_conv_request *request;
  void *stream;
  char *memory; /* one allocation, which the pointers below are into */
  void *a, *b, *c, *plug;
  char *workspace;
  size_t c_bytes;
  cmkd_cuda_epilogue epilogue;
  cudaEvent_t begin, end;
  float *own, *now; /* host: (2 SAMPLE) elements of c, by our kernels and by the candidate */
  uint8_t *raw;     /* host: room for the bytes of two such samples */
} bench;

static cmkd_status device_status(cudaError_t error, cmkd_error *err) {
  return error == cudaSuccess ? CMKD_OK
                              : cmkd_fail(err, CMKD_ERR_DEVICE, "timing convolutions: %s", cudaGetErrorString(error));
}

static float to_float(const void *from, cmkd_dtype dtype, size_t i) {
  if (dtype == CMKD_F16) return cmkd_half_to_float(((const uint16_t *)from)[i]);
  if (dtype == CMKD_BF16) return cmkd_bf16_to_float(((const uint16_t *)from)[i]);
  return ((const float *)from)[i];
}

static void from_float(void *to, cmkd_dtype dtype, size_t i, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (dtype == CMKD_F16)
    ((uint16_t *)to)[i] = cmkd_float_to_half(value);
  else if (dtype == CMKD_BF16)
    ((uint16_t *)to)[i] = (uint16_t)(bits >> 16); /* not rounded: any number near `value` will do */
  else
    ((float *)to)[i] = value;
}

/* rows x stride numbers in +-0.25; 0 from channel c and from row `used` on. */
typedef struct pattern {
  cmkd_dtype dtype;
  int64_t rows, used;
  int stride, c;
  uint64_t stream; /* of the random numbers */
} pattern;

/* Only some thousand rows are made, then repeated; their number is odd, so that neighbouring images differ. */
static cmkd_status fill(void *to, const pattern *p, void *stream, cmkd_error *err) {
  const size_t size = cmkd_dtype_size(p->dtype), row = (size_t)p->stride * size, total = (size_t)p->rows * row;
  const int64_t some = (1 << 16) / p->stride | 1, few = p->rows < some ? p->rows : some;
  cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, p->stream);
  size_t done = (size_t)few * row;
  uint8_t *host = calloc(1, done ? done : 1);
  if (!host) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int64_t i = 0; i < few * p->stride; i++) {
    const float value = (float)(cmkd_rng_uniform(&rng) - 0.5) / 2;
    if (i % p->stride < p->c) from_float(host, p->dtype, (size_t)i, value);
  }
  cudaError_t error = cudaMemcpyAsync(to, host, done, cudaMemcpyHostToDevice, stream);
  for (size_t more; error == cudaSuccess && done < total; done += more) {
    more = total - done < done ? total - done : done;
    error = cudaMemcpyAsync((char *)to + done, to, more, cudaMemcpyDeviceToDevice, stream);
  }
  if (error == cudaSuccess && p->used < p->rows)
    error = cudaMemsetAsync((char *)to + row * (size_t)p->used, 0, row * (size_t)(p->rows - p->used), stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream); /* before `host` is freed */
  free(host);
  return device_status(error, err);
}

static cmkd_status fill_x(const bench *t, void *to, cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &t->request->shape;
  const int64_t rows = (int64_t)s->n * s->h * s->w;
  return fill(to, &(pattern){s->dtype, rows, rows, cmkd_cuda_stride(s->c), s->c, 0}, t->stream, err);
}
static cmkd_status fill_w(const bench *t, void *to, cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &t->request->shape;
  const int c = s->groups > 1 ? s->c / s->groups : s->c, stride = s->groups > 1 ? c : cmkd_cuda_stride(c),
            k = s->groups > 1 ? s->k : cmkd_cuda_stride(s->k);
  const int64_t taps = (int64_t)s->kh * s->kw;
  return fill(to, &(pattern){s->dtype, k * taps, s->k * taps, stride, c, 1}, t->stream, err);
}
static cmkd_status fill_y(const bench *t, void *to, cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &t->request->shape;
  const int64_t rows = (int64_t)s->n * s->oh * s->ow;
  return fill(to, &(pattern){s->y_dtype, rows, rows, s->y_stride, s->k, 2}, t->stream, err);
}

static void bench_close(bench *t) {
  if (t->begin) cudaEventDestroy(t->begin);
  if (t->end) cudaEventDestroy(t->end);
  cudaFree(t->memory);
  free(t->own);
  free(t->now);
  free(t->raw);
}

static cmkd_status bench_open(bench *t, const cmkd_conv_request *r, size_t workspace, size_t plug, void *stream,
                              cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &r->shape;
  const size_t x = align((size_t)s->n * (size_t)s->h * (size_t)s->w * (size_t)cmkd_cuda_stride(s->c) *
                         cmkd_dtype_size(s->dtype)),
               w = align((size_t)cmkd_cuda_conv_weights(s) * sizeof(float)),
               y = align((size_t)s->n * (size_t)s->oh * (size_t)s->ow * (size_t)s->y_stride *
                         cmkd_dtype_size(s->y_dtype)),
               bias = align((size_t)cmkd_cuda_stride(s->k) * sizeof(float));
  const int data = r->pass == CMKD_CONV_BACKWARD_DATA, weights = r->pass == CMKD_CONV_BACKWARD_WEIGHTS,
            fused = r->pass == CMKD_CONV_FORWARD_FUSED;
  const size_t a_bytes = data ? y : x, b_bytes = weights ? y : w,
               total = x + w + y + (fused ? bias + y : 0) + align(workspace) + plug;
  *t = (bench){.request = r, .stream = stream, .c_bytes = data ? x : weights ? w : y};
  t->own = malloc(2 * SAMPLE * sizeof(float));
  t->now = malloc(2 * SAMPLE * sizeof(float));
  t->raw = malloc(4 * SAMPLE * sizeof(float));
  if (!t->own || !t->now || !t->raw) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  void *memory;
  if (cudaMalloc(&memory, total) != cudaSuccess) {
    cudaGetLastError();
    return cmkd_fail(err, CMKD_ERR_MEMORY,
                     "timing convolutions needs %zu MB of device memory; a smaller batch needs less", total >> 20);
  }
  t->memory = memory;
  char *next = t->memory;
  t->a = next;
  t->b = next + a_bytes;
  t->c = next + a_bytes + b_bytes;
  next += a_bytes + b_bytes + t->c_bytes;
  CMKD_TRY(data ? fill_y(t, t->a, err) : fill_x(t, t->a, err));
  CMKD_TRY(weights ? fill_y(t, t->b, err) : fill_w(t, t->b, err));
  if (fused) {
    t->epilogue = (cmkd_cuda_epilogue){(const float *)next, r->residual ? next + bias : NULL, r->act};
    CMKD_TRY(fill(next, &(pattern){CMKD_F32, 1, 1, cmkd_cuda_stride(s->k), s->k, 3}, stream, err));
    if (r->residual) CMKD_TRY(fill_y(t, next + bias, err));
    next += bias + y;
  }
  t->workspace = next;
  t->plug = next + align(workspace);
  CMKD_TRY(device_status(cudaEventCreate(&t->begin), err));
  return device_status(cudaEventCreate(&t->end), err);
}

static cmkd_status bench_run(bench *t, const cmkd_conv_algorithm *algorithm, cmkd_error *err) {
  return cmkd_conv_run(algorithm, t->a, t->b, t->c, t->request->pass == CMKD_CONV_FORWARD_FUSED ? &t->epilogue : NULL,
                       t->workspace, t->stream, err);
}

/* `runs` runs as one captured graph, as training steps are; NULL: they cannot be captured, for a plan may allocate,
 * wait or use streams of its own. */
static cudaGraphExec_t bench_capture(bench *t, const cmkd_conv_algorithm *algorithm, int runs) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  cmkd_status status = CMKD_OK;
  if (cudaStreamBeginCapture(t->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return NULL;
  for (int i = 0; i < runs && status == CMKD_OK; i++)
    status = bench_run(t, algorithm, NULL);
  if (cudaStreamEndCapture(t->stream, &graph) != cudaSuccess) status = CMKD_ERR_DEVICE;
  if (status == CMKD_OK && cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess) exec = NULL;
  if (graph) cudaGraphDestroy(graph);
  return exec;
}

/* One run, itself or through a graph, onto a known c; then the first and last elements of c, *count of them, as floats
 * in `values` and as bytes in raw + at. */
static cmkd_status bench_result(bench *t, const cmkd_conv_algorithm *algorithm, int captured, float *values, size_t at,
                                size_t *count, cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &t->request->shape;
  const int data = t->request->pass == CMKD_CONV_BACKWARD_DATA,
            weights = t->request->pass == CMKD_CONV_BACKWARD_WEIGHTS;
  const cmkd_dtype dtype = data ? s->dtype : weights ? cmkd_conv_algorithm_dw_dtype(algorithm) : s->y_dtype;
  const size_t size = cmkd_dtype_size(dtype),
               all = weights ? (size_t)cmkd_cuda_conv_weights(s)
                     : data  ? (size_t)s->n * (size_t)s->h * (size_t)s->w * (size_t)cmkd_cuda_stride(s->c)
                             : (size_t)s->n * (size_t)s->oh * (size_t)s->ow * (size_t)s->y_stride;
  const size_t first = all < SAMPLE ? all : SAMPLE, last = all - first < SAMPLE ? all - first : SAMPLE;
  uint8_t *raw = t->raw + at;
  if (data && t->request->accumulate)
    CMKD_TRY(fill_x(t, t->c, err));
  else
    CMKD_TRY(
        device_status(cudaMemsetAsync(t->c, 0xFF, t->c_bytes, t->stream), err)); /* NaN: everything must be written */
  if (captured) {
    cudaGraphExec_t graph = bench_capture(t, algorithm, 1);
    if (!graph) return cmkd_fail(err, CMKD_ERR_DEVICE, "%s cannot be captured", algorithm->name);
    cudaError_t error = cudaGraphLaunch(graph, t->stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(t->stream);
    cudaGraphExecDestroy(graph);
    CMKD_TRY(device_status(error, err));
  } else
    CMKD_TRY(bench_run(t, algorithm, err));
  CMKD_TRY(device_status(cudaMemcpyAsync(raw, t->c, first * size, cudaMemcpyDeviceToHost, t->stream), err));
  CMKD_TRY(device_status(cudaMemcpyAsync(raw + first * size, (char *)t->c + (all - last) * size, last * size,
                                         cudaMemcpyDeviceToHost, t->stream),
                         err));
  CMKD_TRY(device_status(cudaStreamSynchronize(t->stream), err));
  *count = first + last;
  for (size_t i = 0; i < *count; i++)
    values[i] = to_float(raw, dtype, i);
  return CMKD_OK;
}

/* Whether the candidate gives our numbers, up to rounding, and the same bytes again from a captured graph. */
static int agrees(bench *t, const cmkd_conv_algorithm *algorithm, size_t own_count) {
  const cmkd_conv_request *r = t->request;
  const int f32 = r->shape.dtype == CMKD_F32;
  const double bound = f32 && !r->tf32 ? 2e-5 : r->shape.dtype == CMKD_BF16 ? 2e-2 : 5e-3;
  const size_t half = 2 * SAMPLE * sizeof(float);
  const cmkd_dtype dtype = r->pass == CMKD_CONV_BACKWARD_WEIGHTS ? cmkd_conv_algorithm_dw_dtype(algorithm)
                           : r->pass == CMKD_CONV_BACKWARD_DATA  ? r->shape.dtype
                                                                 : r->shape.y_dtype;
  double largest = 0, difference = 0;
  size_t count;
  if (bench_result(t, algorithm, 0, t->now, half, &count, NULL) != CMKD_OK ||
      bench_result(t, algorithm, 1, t->now, 0, &count, NULL) != CMKD_OK || count != own_count)
    return 0;
  if (memcmp(t->raw, t->raw + half, count * cmkd_dtype_size(dtype))) return 0;
  for (size_t i = 0; i < count; i++) {
    const double d = fabs((double)t->now[i] - t->own[i]), v = fabs((double)t->own[i]);
    if (isnan(d)) return 0;
    if (d > difference) difference = d;
    if (v > largest) largest = v;
  }
  return difference <= bound * largest;
}

/* Whether an image's result does not depend on its place in the batch: the first image once more as the last one must
 * give the same bytes there. */
static int is_position_independent(bench *t, const cmkd_conv_algorithm *algorithm) {
  const cmkd_conv_request *r = t->request;
  const cmkd_cuda_conv_shape *s = &r->shape;
  const size_t x = (size_t)s->h * (size_t)s->w * (size_t)cmkd_cuda_stride(s->c) * cmkd_dtype_size(s->dtype),
               y = (size_t)s->oh * (size_t)s->ow * (size_t)s->y_stride * cmkd_dtype_size(s->y_dtype);
  const size_t last = (size_t)s->n - 1;
  char *residual = (char *)t->epilogue.residual, *host = malloc(2 * y);
  if (!host) return 0;
  cudaError_t error = cudaMemcpyAsync((char *)t->a + last * x, t->a, x, cudaMemcpyDeviceToDevice, t->stream);
  if (error == cudaSuccess && residual)
    error = cudaMemcpyAsync(residual + last * y, residual, y, cudaMemcpyDeviceToDevice, t->stream);
  int good = error == cudaSuccess && bench_run(t, algorithm, NULL) == CMKD_OK;
  good = good && cudaMemcpyAsync(host, t->c, y, cudaMemcpyDeviceToHost, t->stream) == cudaSuccess;
  good = good &&
         cudaMemcpyAsync(host + y, (char *)t->c + last * y, y, cudaMemcpyDeviceToHost, t->stream) == cudaSuccess &&
         cudaStreamSynchronize(t->stream) == cudaSuccess;
  good = good && !memcmp(host, host + y, y);
  free(host);
  const int restored = fill_x(t, t->a, NULL) == CMKD_OK && (!residual || fill_y(t, residual, NULL) == CMKD_OK);
  return good && restored;
}

/* Milliseconds of the device for one run, or for the graph if there is one. The device is busy clearing the plug while
 * the host queues, so that the host's time does not count. Negative: failed. */
static double bench_time(bench *t, const cmkd_conv_algorithm *algorithm, cudaGraphExec_t graph) {
  float ms = 0;
  for (int i = 0; i < 2; i++)
    if (cudaMemsetAsync(t->plug, 0, PLUG, t->stream) != cudaSuccess) return -1;
  if (cudaEventRecord(t->begin, t->stream) != cudaSuccess) return -1;
  if (graph ? cudaGraphLaunch(graph, t->stream) != cudaSuccess : bench_run(t, algorithm, NULL) != CMKD_OK) return -1;
  if (cudaEventRecord(t->end, t->stream) != cudaSuccess || cudaEventSynchronize(t->end) != cudaSuccess ||
      cudaEventElapsedTime(&ms, t->begin, t->end) != cudaSuccess)
    return -1;
  return (double)ms;
}

static int by_value(const void *a, const void *b) {
  return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* Milliseconds a run: the median over graphs of several runs, or a single run where that is hopeless against `best` (0:
 * none yet). Negative: failed. */
static double bench_median(bench *t, const cmkd_conv_algorithm *algorithm, double best) {
  double sample[SAMPLES];
  for (int i = 0; i < WARM_UPS; i++)
    sample[0] = bench_time(t, algorithm, NULL);
  if (sample[0] < 0 || (best > 0 && sample[0] > 4 * best)) return sample[0];
  cudaGraphExec_t graph = bench_capture(t, algorithm, RUNS);
  int good = graph && bench_time(t, algorithm, graph) >= 0; /* the first launch uploads it */
  for (int i = 0; i < SAMPLES && good; i++)
    good = (sample[i] = bench_time(t, algorithm, graph) / RUNS) >= 0;
  if (graph) cudaGraphExecDestroy(graph);
  if (!good) return -1;
  qsort(sample, SAMPLES, sizeof *sample, by_value);
  return sample[SAMPLES / 2];
}

cmkd_status cmkd_conv_autotune(cmkd_conv_selector *selector, const cmkd_conv_request *request,
                               cmkd_conv_algorithm **candidate, int count, int timed, int *winner, cmkd_error *err) {
  size_t workspace = 0, own_count;
  double best = 0;
  bench t;
  *winner = 0;
  for (int i = 0; i < count; i++)
    if (cmkd_conv_algorithm_workspace(candidate[i]) > workspace)
      workspace = cmkd_conv_algorithm_workspace(candidate[i]);
  cmkd_status status = bench_open(&t, request, workspace, timed ? PLUG : 0, selector->stream, err);
  if (status == CMKD_OK) status = bench_result(&t, candidate[0], 0, t.own, 0, &own_count, err);
  if (status == CMKD_OK && timed && (best = bench_median(&t, candidate[0], 0)) < 0)
    status = cmkd_fail(err, CMKD_ERR_DEVICE, "timing convolutions: our own failed: %s",
                       cudaGetErrorString(cudaGetLastError()));
  for (int i = 1; i < count && status == CMKD_OK; i++) {
    double ms = -1;
    const int alone = request->alone && request->shape.n > 1;
    if (agrees(&t, candidate[i], own_count) && (!alone || is_position_independent(&t, candidate[i])))
      ms = timed ? bench_median(&t, candidate[i], best) : 0;
    if (ms >= 0 && (!timed || ms < best)) {
      best = ms;
      *winner = i;
    }
    cudaGetLastError(); /* forgets a launch that failed; a broken device fails again below */
    cudaError_t error = cudaStreamSynchronize(selector->stream);
    if (error != cudaSuccess)
      status = cmkd_fail(err, CMKD_ERR_DEVICE, "%s broke the device: %s; CMKD_CUDNN=off goes without cuDNN",
                         candidate[i]->name, cudaGetErrorString(error));
  }
  bench_close(&t);
  return status;
}
