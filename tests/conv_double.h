/* A device and a cuDNN made up for algorithm selection (kernels/cuda/conv/select.c and its parts, included here):
 * device memory is host memory, every "convolution" is the same small sum, and a clock advances by what the table of
 * plans says. So the selection among good, wrong, failing and slow plans can be tested. */
#ifndef CMKD_TESTS_CONV_DOUBLE_H
#define CMKD_TESTS_CONV_DOUBLE_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CMKD_KERNELS_CUDA_RUNTIME_H /* instead of kernels/cuda/runtime.h */
typedef int cudaError_t;
typedef struct made_event {
  double ms;
} * cudaEvent_t;
typedef struct made_graph {
  double ms;
  int owners;
} * cudaGraph_t, *cudaGraphExec_t;
enum {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureInvalidated = 901
};
enum { cudaStreamCaptureModeThreadLocal = 1 };
enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

static struct made_device {
  double ms, own_ms; /* the clock; what our own kernels take */
  long timed, runs_own, runs_plan, epilogues;
  int live; /* allocations, events and graphs */
  int capturing, spoiled;
  double captured_at; /* what is captured is done at once; a launch only takes its time */
  int full, broken;   /* no memory; every call fails from now on */
} made;
static void *const on_stream = &made;

static cudaError_t now_broken(void) { return made.broken ? cudaErrorLaunchFailure : cudaSuccess; }
static cudaError_t cudaGetLastError(void) { return now_broken(); }
static const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "unspecified launch failure" : "error";
}
static cudaError_t cudaMalloc(void **p, size_t bytes) {
  *p = made.full ? NULL : malloc(bytes);
  made.live += *p != NULL;
  return *p ? now_broken() : cudaErrorMemoryAllocation;
}
static cudaError_t cudaFree(void *p) {
  made.live -= p != NULL;
  free(p);
  return now_broken();
}
static cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, void *s) {
  (void)s;
  if (bytes < (size_t)1 << 28) memset(p, value, bytes); /* more is the plug, which nobody reads */
  return now_broken();
}
static cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *s) {
  (void)kind;
  (void)s;
  memcpy(to, from, bytes);
  return now_broken();
}
static cudaError_t cudaStreamSynchronize(void *s) {
  (void)s;
  return now_broken();
}
static cudaError_t cudaEventCreate(cudaEvent_t *event) {
  *event = calloc(1, sizeof **event);
  made.live++;
  return now_broken();
}
static cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  made.live--;
  return now_broken();
}
static cudaError_t cudaEventRecord(cudaEvent_t event, void *s) {
  (void)s;
  event->ms = made.ms;
  return now_broken();
}
static cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  (void)event;
  made.timed++;
  return now_broken();
}
static cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
  *ms = (float)(end->ms - begin->ms);
  return now_broken();
}

static cudaError_t cudaStreamBeginCapture(void *s, int mode) {
  (void)s;
  (void)mode;
  made.capturing = 1, made.spoiled = 0, made.captured_at = made.ms;
  return now_broken();
}
static cudaError_t cudaStreamEndCapture(void *s, cudaGraph_t *graph) {
  (void)s;
  *graph = NULL;
  made.capturing = 0;
  if (made.spoiled) return cudaErrorStreamCaptureInvalidated;
  *graph = calloc(1, sizeof **graph);
  **graph = (struct made_graph){made.ms - made.captured_at, 1};
  made.ms = made.captured_at;
  made.live++;
  return now_broken();
}
static cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
  (void)flags;
  graph->owners++;
  *exec = graph;
  return now_broken();
}
static cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (--graph->owners) return now_broken();
  made.live--;
  free(graph);
  return now_broken();
}
static cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }
static cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, void *s) {
  (void)s;
  made.ms += exec->ms;
  return now_broken();
}

#include "kernels/cuda/conv/algorithm.c"
#include "kernels/cuda/conv/algorithm_cache.c"
#include "kernels/cuda/conv/autotune.c"
#include "kernels/cuda/conv/select.c"

/* Every pass computes c[i] = a[i % na] + b[i % nb], rounded to c's dtype, on top of c where it accumulates;
 * forward, image by image; then the epilogue */

static size_t count_x(const cmkd_cuda_conv_shape *s) {
  return (size_t)s->n * (size_t)s->h * (size_t)s->w * (size_t)cmkd_cuda_stride(s->c);
}
static size_t count_y(const cmkd_cuda_conv_shape *s) {
  return (size_t)s->n * (size_t)s->oh * (size_t)s->ow * (size_t)s->y_stride;
}

static void put(void *to, cmkd_dtype dtype, size_t i, float value) {
  if (dtype == CMKD_BF16) value += value / 512; /* from_float cuts off */
  from_float(to, dtype, i, value);
}
typedef struct made_array {
  const void *at;
  cmkd_dtype dtype;
  size_t count;
} made_array;
static float made_value(made_array a, size_t i) { return to_float(a.at, a.dtype, i % a.count); }
static void made_sum(made_array a, made_array b, void *to, cmkd_dtype dtype, size_t count, int accumulate) {
  for (size_t i = 0; i < count; i++)
    put(to, dtype, i, made_value(a, i) + made_value(b, i) + (accumulate ? to_float(to, dtype, i) : 0));
}
static void made_conv(const cmkd_cuda_conv_shape *s, cmkd_conv_pass pass, const void *a, const void *b, void *c,
                      int accumulate, cmkd_dtype dw, size_t dw_count) {
  const made_array x = {a, s->dtype, count_x(s)}, dy = {a, s->y_dtype, count_y(s)},
                   w = {b, s->dtype, (size_t)cmkd_cuda_conv_weights(s)}, dy_b = {b, s->y_dtype, count_y(s)};
  if (pass == CMKD_CONV_BACKWARD_DATA)
    made_sum(dy, w, c, s->dtype, count_x(s), accumulate);
  else if (pass == CMKD_CONV_BACKWARD_WEIGHTS)
    made_sum(x, dy_b, c, dw, dw_count, 0);
  else
    for (size_t i = 0, n = (size_t)s->n; i < n; i++) {
      const char *image = (const char *)a + i * (x.count / n) * cmkd_dtype_size(s->dtype);
      char *result = (char *)c + i * (dy.count / n) * cmkd_dtype_size(s->y_dtype);
      made_sum((made_array){image, s->dtype, x.count / n}, w, result, s->y_dtype, dy.count / n, 0);
    }
}
static void made_epilogue(const cmkd_cuda_conv_shape *s, const cmkd_cuda_epilogue *e, void *y) {
  for (size_t i = 0; i < count_y(s); i++) {
    float v = to_float(y, s->y_dtype, i) + (e->bias ? e->bias[i % (size_t)s->y_stride] : 0) +
              (e->residual ? to_float(e->residual, s->y_dtype, i) : 0);
    if (e->act && v < 0) v = 0;
    put(y, s->y_dtype, i, e->act == CMKD_ACT_RELU6 && v > 6 ? 6 : v);
  }
}
static size_t dw_written(const cmkd_cuda_conv_shape *s,
                         int by_plan) { /* a plan leaves out rows that dy has no channels for */
  const size_t all = (size_t)cmkd_cuda_conv_weights(s);
  return by_plan && s->groups == 1 ? all / (size_t)cmkd_cuda_stride(s->k) *
                                         (size_t)(s->y_stride == cmkd_cuda_stride(s->k) ? s->y_stride : s->k)
                                   : all;
}
static void own_ran(void) { made.runs_own++, made.ms += made.own_ms; }

size_t cmkd_cuda_conv_scratch(const cmkd_cuda_conv_shape *s) {
  (void)s;
  return 1000;
}
cmkd_status cmkd_cuda_conv_forward(const cmkd_cuda_conv_shape *s, const void *x, const void *w,
                                   const cmkd_cuda_epilogue *epilogue, void *y, void *scratch, void *on,
                                   cmkd_error *err) {
  (void)scratch;
  (void)on;
  (void)err;
  own_ran();
  made_conv(s, CMKD_CONV_FORWARD, x, w, y, 0, CMKD_F32, 0);
  if (epilogue) made_epilogue(s, epilogue, y);
  return CMKD_OK;
}
cmkd_status cmkd_cuda_conv_backward_data(const cmkd_cuda_conv_shape *s, const void *dy, const void *w, void *dx,
                                         int accumulate, void *scratch, void *on, cmkd_error *err) {
  (void)scratch;
  (void)on;
  (void)err;
  own_ran();
  made_conv(s, CMKD_CONV_BACKWARD_DATA, dy, w, dx, accumulate, CMKD_F32, 0);
  return CMKD_OK;
}
cmkd_status cmkd_cuda_conv_backward_weights(const cmkd_cuda_conv_shape *s, const void *x, const void *dy, float *dw,
                                            void *scratch, void *on, cmkd_error *err) {
  (void)scratch;
  (void)on;
  (void)err;
  own_ran();
  made_conv(s, CMKD_CONV_BACKWARD_WEIGHTS, x, dy, dw, 0, CMKD_F32, dw_written(s, 0));
  if (s->groups == 1) memset(dw + dw_written(s, 1), 0, (dw_written(s, 0) - dw_written(s, 1)) * sizeof(float));
  return CMKD_OK;
}
cmkd_status cmkd_cuda_conv_epilogue(const cmkd_cuda_conv_shape *s, const cmkd_cuda_epilogue *epilogue, void *y,
                                    void *on, cmkd_error *err) {
  (void)on;
  (void)err;
  made.epilogues++;
  made_epilogue(s, epilogue, y);
  return CMKD_OK;
}

/* ---- cuDNN ---- */

typedef enum made_kind {
  GOOD,
  WRONG,
  WRONG_AT_END,
  UNWRITTEN,
  CHANGING /* from run to run, inside the bound of bfloat16 */,
  FAILING,
  BREAKING,
  NO_ADDING,
  WAITING /* which a capture does not allow */,
  LEANING /* the last image comes out a little larger */
} made_kind;
typedef struct made_plan {
  const char *name;
  cmkd_conv_pass pass;
  double ms;
  made_kind kind;
  size_t workspace;
} made_plan;
struct cmkd_cudnn {
  int version, count, refuses;
  const made_plan *plan;
};
struct cmkd_cudnn_plan {
  made_plan is;
  cmkd_conv_request request;
};
static int plans_live;

int cmkd_cudnn_version(const cmkd_cudnn *lib) { return lib->version; }
static cmkd_cudnn_plan *plan_of(const made_plan *is, const cmkd_conv_request *request) {
  cmkd_cudnn_plan *plan = calloc(1, sizeof *plan);
  plan->is = *is, plan->request = *request;
  plans_live++;
  return plan;
}
cmkd_status cmkd_cudnn_plans(cmkd_cudnn *lib, const cmkd_conv_request *request, size_t limit, int capacity,
                             cmkd_cudnn_plan **plans, int *count, cmkd_error *err) {
  (void)limit;
  *count = 0;
  if (lib->refuses) return cmkd_fail(err, CMKD_ERR_DEVICE, "made up");
  for (int i = 0; i < lib->count; i++)
    if (lib->plan[i].pass == request->pass && *count < capacity) plans[(*count)++] = plan_of(&lib->plan[i], request);
  return CMKD_OK;
}
cmkd_status cmkd_cudnn_plan_named(cmkd_cudnn *lib, const cmkd_conv_request *request, const char *name,
                                  cmkd_cudnn_plan **out, cmkd_error *err) {
  (void)err;
  *out = NULL;
  for (int i = 0; i < lib->count && !*out; i++)
    if (lib->plan[i].pass == request->pass && !strcmp(lib->plan[i].name, name)) *out = plan_of(&lib->plan[i], request);
  return CMKD_OK;
}
void cmkd_cudnn_plan_free(cmkd_cudnn_plan *plan) {
  plans_live -= plan != NULL;
  free(plan);
}
const char *cmkd_cudnn_plan_name(const cmkd_cudnn_plan *plan) { return plan->is.name; }
size_t cmkd_cudnn_plan_workspace(const cmkd_cudnn_plan *plan) { return plan->is.workspace; }
cmkd_dtype cmkd_cudnn_plan_dw_dtype(const cmkd_cudnn_plan *plan) { return plan->request.shape.dtype; }

cmkd_status cmkd_cudnn_run(cmkd_cudnn *lib, const cmkd_cudnn_plan *plan, const void *a, const void *b, void *c,
                           const cmkd_cuda_epilogue *epilogue, void *workspace, cmkd_error *err) {
  (void)lib;
  const cmkd_conv_request *r = &plan->request;
  const cmkd_dtype dtype =
      r->pass == CMKD_CONV_BACKWARD_DATA || r->pass == CMKD_CONV_BACKWARD_WEIGHTS ? r->shape.dtype : r->shape.y_dtype;
  const made_kind kind = plan->is.kind;
  made.runs_plan++, made.ms += plan->is.ms;
  if (plan->is.workspace) memset(workspace, 1, plan->is.workspace);
  if (kind == WAITING && made.capturing) made.spoiled = 1;
  if (kind == BREAKING) made.broken = 1;
  if (kind == FAILING || kind == BREAKING) return cmkd_fail(err, CMKD_ERR_DEVICE, "made up");
  if (kind == UNWRITTEN) return CMKD_OK;
  made_conv(&r->shape, r->pass, a, b, c, r->accumulate && kind != NO_ADDING, r->shape.dtype, dw_written(&r->shape, 1));
  if (r->pass == CMKD_CONV_FORWARD_FUSED)
    made_epilogue(&r->shape, &(cmkd_cuda_epilogue){epilogue->bias, r->residual ? epilogue->residual : NULL, r->act}, c);
  if (kind == WRONG) put(c, dtype, 5, 1);
  if (kind == WRONG_AT_END)
    put(c, dtype, (r->pass == CMKD_CONV_BACKWARD_DATA ? count_x(&r->shape) : count_y(&r->shape)) - 20, 1);
  for (size_t i = count_y(&r->shape) - 16; kind == LEANING && i < count_y(&r->shape); i++)
    put(c, dtype, i, to_float(c, dtype, i) * (1 + 1 / 128.f));
  for (size_t i = 0; kind == CHANGING && i < 16; i++)
    put(c, dtype, i, to_float(c, dtype, i) * (made.runs_plan % 2 ? 1 + 1 / 128.f : 1));
  return CMKD_OK;
}
#endif
