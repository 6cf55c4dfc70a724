/* Which of our kernels and cuDNN's plans computes a convolution: candidates are run on scratch memory, those whose
 * result is not ours are out, the rest is timed, and the fastest is remembered by name. Will not do: make plans
 * (cudnn.c), compute (gemm.cu, depthwise.cu). */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/half.h"
#include "base/rng.h"
#include "kernels/cuda/conv/conv.h"
#include "kernels/cuda/runtime.h"

enum {
  KEY = 256,
  NAME_MAX_BYTES = 1024,
  CAPACITY = 10,
  CAPACITY_COMPILED = 3,
  WARM_UPS = 3,
  SAMPLES = 5,
  RUNS = 10,
  SAMPLE = 1 << 16
};
#define WORKSPACE_LIMIT ((size_t)256 << 20)
#define PLUG \
  ((size_t)256 << 20) /* bytes that are cleared ahead of what is timed: the device is busy while it is being queued */
#define OWN "own"
#define APART "+epilogue" /* a plan without epilogue, ours after it */
#define FILE_KIND "cmkd_conv_choices"
#define FILE_VERSION 1
#define FILE_LIMIT ((uint64_t)8 << 20)

struct cmkd_conv_selector {
  cmkd_cudnn *cudnn;
  void *stream;
  char *device, *memory;             /* device: GPU and cuDNN in one text; memory: NULL when nothing is remembered */
  json_t *brought, *decided, *known; /* request -> name: of a resumed run, of this one, of the file */
  cmkd_conv_algorithm *live; /* handed out: layers of equal shape share one, for a plan may take a second to make */
};

struct cmkd_conv_algorithm {
  cmkd_conv_selector *selector;
  cmkd_conv_request request;
  cmkd_cudnn_plan *plan; /* NULL: own */
  int apart;             /* FORWARD_FUSED: the plan is FORWARD, the epilogue is ours */
  char name[NAME_MAX_BYTES], key[KEY];
  int users; /* 0: not handed out */
  cmkd_conv_algorithm *next;
};

static size_t align(size_t bytes) { return (bytes + 255) & ~(size_t)255; }
static cmkd_status no_memory(cmkd_error *err) { return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory"); }

/* ---- names of requests, and the file ---- */

static void request_key(const cmkd_conv_request *r, char key[KEY]) {
  static const char *const passes[] = {"forward", "fused", "data", "weights"}, *const acts[] = {"", " relu", " relu6"};
  const cmkd_cuda_conv_shape *s = &r->shape;
  const int fused = r->pass == CMKD_CONV_FORWARD_FUSED;
  snprintf(key, KEY, "%s n%d %dx%dx%d k%d %dx%d s%d p%d g%d y%dx%dx%d %s %s%s%s%s%s%s", passes[r->pass], s->n, s->h,
           s->w, s->c, s->k, s->kh, s->kw, s->stride, s->pad, s->groups, s->oh, s->ow, s->y_stride,
           cmkd_dtype_name(s->dtype), cmkd_dtype_name(s->y_dtype), fused && r->residual ? " residual" : "",
           fused ? acts[r->act] : "", r->pass == CMKD_CONV_BACKWARD_DATA && r->accumulate ? " add" : "",
           s->dtype == CMKD_F32 && r->tf32 ? " tf32" : "", r->alone ? " alone" : "");
}

/* {FILE_KIND: version, "devices": {device: {request: name}}}, or NULL when the text is something else. */
static json_t *parse(const char *text, size_t size) {
  json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
  json_t *devices = json_object_get(root, "devices");
  if (json_integer_value(json_object_get(root, FILE_KIND)) == FILE_VERSION && json_is_object(devices)) return root;
  json_decref(root);
  return NULL;
}

/* The choices for one device: a new object, empty where there are none. Entries of the wrong kind are left out. *found:
 * the device is there. */
static json_t *algorithms_of(json_t *root, const char *device, int *found) {
  json_t *out = json_object(), *from = json_object_get(json_object_get(root, "devices"), device), *value;
  const char *key;
  if (found) *found = json_is_object(from);
  json_object_foreach(from, key, value) if (strlen(key) < KEY && json_is_string(value) &&
                                            json_string_length(value) < NAME_MAX_BYTES)
      json_object_set(out, key, value);
  return out;
}

static json_t *read_memory(const char *path) {
  uint8_t *data;
  size_t size;
  if (cmkd_file_read(path, FILE_LIMIT, &data, &size, NULL) != CMKD_OK) return NULL;
  json_t *root = parse((const char *)data, size);
  free(data);
  return root;
}

static json_t *document(json_t *devices) {
  return json_pack("{s:i, s:o}", FILE_KIND, FILE_VERSION, "devices", devices);
}

/* What other processes have written since stays. A file that cannot be written is not tried again: nothing depends on
 * it. */
static void write_memory(cmkd_conv_selector *selector) {
  json_t *root = read_memory(selector->memory);
  if (!root) root = document(json_object());
  json_t *devices = json_object_get(root, "devices"), *ours = algorithms_of(root, selector->device, NULL);
  json_object_update(ours, selector->known);
  json_object_set_new(devices, selector->device, ours);
  char *text = json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS), *folder = cmkd_path_dir(selector->memory);
  if (!text || !folder || cmkd_make_dirs(folder, NULL) != CMKD_OK ||
      cmkd_file_write(selector->memory, &(cmkd_piece){text, strlen(text)}, 1, NULL) != CMKD_OK) {
    free(selector->memory);
    selector->memory = NULL;
  }
  free(text);
  free(folder);
  json_decref(root);
}

cmkd_status cmkd_conv_selector_open(cmkd_cudnn *cudnn, const char *device, const char *memory, void *stream,
                                    cmkd_conv_selector **out, cmkd_error *err) {
  *out = NULL;
  cmkd_conv_selector *selector = calloc(1, sizeof *selector);
  if (!selector) return no_memory(err);
  selector->cudnn = cudnn, selector->stream = stream;
  selector->device = cmkd_format("%s, cuDNN %d", device, cudnn ? cmkd_cudnn_version(cudnn) : 0);
  if (cudnn && memory) selector->memory = strdup(memory);
  selector->brought = json_object(), selector->decided = json_object();
  json_t *root = selector->memory && selector->device ? read_memory(selector->memory) : NULL;
  selector->known = algorithms_of(root, selector->device ? selector->device : "", NULL);
  json_decref(root);
  if (!selector->device || (cudnn && memory && !selector->memory) || !selector->brought || !selector->decided ||
      !selector->known) {
    cmkd_conv_selector_close(selector);
    return no_memory(err);
  }
  *out = selector;
  return CMKD_OK;
}

void cmkd_conv_selector_close(cmkd_conv_selector *selector) {
  if (!selector) return;
  json_decref(selector->brought);
  json_decref(selector->decided);
  json_decref(selector->known);
  free(selector->device);
  free(selector->memory);
  free(selector);
}

cmkd_status cmkd_conv_selector_save(const cmkd_conv_selector *selector, char **json, cmkd_error *err) {
  json_t *root = document(json_pack("{s:O}", selector->device, selector->decided));
  *json = root ? json_dumps(root, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
  json_decref(root);
  return *json ? CMKD_OK : no_memory(err);
}

cmkd_status cmkd_conv_selector_load(cmkd_conv_selector *selector, const char *json, int *used, cmkd_error *err) {
  *used = 0;
  json_t *root = parse(json, strlen(json));
  if (!root)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "the convolutions' choices in the run's state are not what this version writes");
  json_t *brought = algorithms_of(root, selector->device, used);
  json_decref(root);
  if (!brought) return no_memory(err);
  json_decref(selector->brought);
  selector->brought = brought;
  return CMKD_OK;
}

/* ---- a choice ---- */

void cmkd_conv_algorithm_free(cmkd_conv_algorithm *algorithm) {
  if (!algorithm || (algorithm->users && --algorithm->users)) return;
  for (cmkd_conv_algorithm **at = &algorithm->selector->live; *at; at = &(*at)->next)
    if (*at == algorithm) {
      *at = algorithm->next;
      break;
    }
  cmkd_cudnn_plan_free(algorithm->plan);
  free(algorithm);
}

/* Takes the plan. */
static cmkd_status algorithm_make(cmkd_conv_selector *selector, const cmkd_conv_request *request, cmkd_cudnn_plan *plan,
                                  int apart, cmkd_conv_algorithm **out, cmkd_error *err) {
  *out = calloc(1, sizeof **out);
  if (!*out) {
    cmkd_cudnn_plan_free(plan);
    return no_memory(err);
  }
  (*out)->selector = selector, (*out)->request = *request, (*out)->plan = plan, (*out)->apart = apart;
  snprintf((*out)->name, sizeof(*out)->name, "%s%s", plan ? cmkd_cudnn_plan_name(plan) : OWN, apart ? APART : "");
  return CMKD_OK;
}

size_t cmkd_conv_algorithm_workspace(const cmkd_conv_algorithm *algorithm) {
  return algorithm->plan ? cmkd_cudnn_plan_workspace(algorithm->plan)
                         : cmkd_cuda_conv_scratch(&algorithm->request.shape);
}
cmkd_dtype cmkd_conv_algorithm_dw_dtype(const cmkd_conv_algorithm *algorithm) {
  return algorithm->plan ? cmkd_cudnn_plan_dw_dtype(algorithm->plan) : CMKD_F32;
}
const char *cmkd_conv_algorithm_name(const cmkd_conv_algorithm *algorithm) { return algorithm->name; }

static cmkd_status run_own(const cmkd_conv_request *r, const void *a, const void *b, void *c,
                           const cmkd_cuda_epilogue *epilogue, void *workspace, void *stream, cmkd_error *err) {
  if (r->pass == CMKD_CONV_BACKWARD_DATA)
    return cmkd_cuda_conv_backward_data(&r->shape, a, b, c, r->accumulate, workspace, stream, err);
  if (r->pass == CMKD_CONV_BACKWARD_WEIGHTS)
    return cmkd_cuda_conv_backward_weights(&r->shape, a, b, c, workspace, stream, err);
  return cmkd_cuda_conv_forward(&r->shape, a, b, epilogue, c, workspace, stream, err);
}

cmkd_status cmkd_conv_run(const cmkd_conv_algorithm *algorithm, const void *a, const void *b, void *c,
                          const cmkd_cuda_epilogue *epilogue, void *workspace, void *stream, cmkd_error *err) {
  const cmkd_conv_request *r = &algorithm->request;
  const cmkd_cuda_conv_shape *s = &r->shape;
  const int fused = r->pass == CMKD_CONV_FORWARD_FUSED;
  if (!fused != !epilogue ||
      (fused && (!epilogue->bias || !epilogue->residual != !r->residual || epilogue->act != r->act)))
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: not the epilogue that was asked for", algorithm->name);
  if (!algorithm->plan) return run_own(r, a, b, c, epilogue, workspace, stream, err);
  if (stream != algorithm->selector->stream)
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: not the chooser's stream", algorithm->name);
  const int whole = fused && !algorithm->apart;
  CMKD_TRY(cmkd_cudnn_run(algorithm->selector->cudnn, algorithm->plan, a, b, c, whole ? epilogue->bias : NULL,
                          whole ? epilogue->residual : NULL, workspace, err));
  if (algorithm->apart) return cmkd_cuda_conv_epilogue(s, epilogue, c, stream, err);
  if (r->pass == CMKD_CONV_BACKWARD_WEIGHTS && s->groups == 1 &&
      s->y_stride != cmkd_cuda_stride(s->k)) { /* cuDNN knows nothing of weights for padding that dy does not have */
    const size_t size = cmkd_dtype_size(cmkd_conv_algorithm_dw_dtype(algorithm)),
                 all = (size_t)cmkd_cuda_conv_weights(s), written = all / (size_t)cmkd_cuda_stride(s->k) * (size_t)s->k;
    cudaError_t error = cudaMemsetAsync((char *)c + written * size, 0, (all - written) * size, stream);
    if (error != cudaSuccess)
      return cmkd_fail(err, CMKD_ERR_DEVICE, "%s: %s", algorithm->name, cudaGetErrorString(error));
  }
  return CMKD_OK;
}

/* ---- trying out ---- */

/* One request's tensors on the device: a, b and c as in cmkd_conv_run. */
typedef struct bench {
  const cmkd_conv_request *request;
  void *stream;
  char *memory; /* all of it */
  void *a, *b, *c, *plug;
  char *workspace;
  size_t c_bytes;
  cmkd_cuda_epilogue epilogue;
  cudaEvent_t begin, end;
  float *own, *now; /* host: (2 SAMPLE) entries of c, by our kernels and by the candidate */
  uint8_t *raw;     /* host: their bytes */
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
    ((uint16_t *)to)[i] = (uint16_t)(bits >> 16); /* cut off: any number will do */
  else
    ((float *)to)[i] = value;
}

/* rows x stride numbers in +-0.25, 0 from channel c and from row `used` on. Made for some thousand rows and repeated;
 * their number is odd, so that neighbouring images differ. */
static cmkd_status fill(void *to, cmkd_dtype dtype, int64_t rows, int64_t used, int stride, int c, uint64_t which,
                        void *stream, cmkd_error *err) {
  const size_t size = cmkd_dtype_size(dtype), total = (size_t)rows * (size_t)stride * size;
  const int64_t some = (1 << 16) / stride | 1, few = rows < some ? rows : some;
  cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, which);
  size_t done = (size_t)few * (size_t)stride * size;
  uint8_t *host = calloc(1, done ? done : 1);
  if (!host) return no_memory(err);
  for (int64_t i = 0; i < few * stride; i++) {
    const float value = (float)(cmkd_rng_uniform(&rng) - 0.5) / 2;
    if (i % stride < c) from_float(host, dtype, (size_t)i, value);
  }
  cudaError_t error = cudaMemcpyAsync(to, host, done, cudaMemcpyHostToDevice, stream);
  for (size_t more; error == cudaSuccess && done < total; done += more) {
    more = total - done < done ? total - done : done;
    error = cudaMemcpyAsync((char *)to + done, to, more, cudaMemcpyDeviceToDevice, stream);
  }
  if (error == cudaSuccess && used < rows)
    error = cudaMemsetAsync((char *)to + total / (size_t)rows * (size_t)used, 0,
                            total / (size_t)rows * (size_t)(rows - used), stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream); /* host memory goes away */
  free(host);
  return device_status(error, err);
}

static cmkd_status fill_x(const bench *t, void *to, cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &t->request->shape;
  const int64_t rows = (int64_t)s->n * s->h * s->w;
  return fill(to, s->dtype, rows, rows, cmkd_cuda_stride(s->c), s->c, 0, t->stream, err);
}
static cmkd_status fill_w(const bench *t, void *to, cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &t->request->shape;
  const int c = s->groups > 1 ? s->c / s->groups : s->c, stride = s->groups > 1 ? c : cmkd_cuda_stride(c),
            k = s->groups > 1 ? s->k : cmkd_cuda_stride(s->k);
  return fill(to, s->dtype, (int64_t)k * s->kh * s->kw, (int64_t)s->k * s->kh * s->kw, stride, c, 1, t->stream, err);
}
static cmkd_status fill_y(const bench *t, void *to, cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &t->request->shape;
  const int64_t rows = (int64_t)s->n * s->oh * s->ow;
  return fill(to, s->y_dtype, rows, rows, s->y_stride, s->k, 2, t->stream, err);
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
  t->own = malloc(2 * SAMPLE * sizeof(float)), t->now = malloc(2 * SAMPLE * sizeof(float)),
  t->raw = malloc(4 * SAMPLE * sizeof(float));
  if (!t->own || !t->now || !t->raw) return no_memory(err);
  void *memory;
  if (cudaMalloc(&memory, total) != cudaSuccess) {
    cudaGetLastError();
    return cmkd_fail(err, CMKD_ERR_MEMORY,
                     "timing convolutions needs %zu MB of device memory; a smaller batch needs less", total >> 20);
  }
  t->memory = memory;
  char *next = t->memory;
  t->a = next, t->b = next += a_bytes, t->c = next += b_bytes, next += t->c_bytes;
  CMKD_TRY(data ? fill_y(t, t->a, err) : fill_x(t, t->a, err));
  CMKD_TRY(weights ? fill_y(t, t->b, err) : fill_w(t, t->b, err));
  if (fused) {
    t->epilogue = (cmkd_cuda_epilogue){(const float *)next, r->residual ? next + bias : NULL, r->act};
    CMKD_TRY(fill(next, CMKD_F32, 1, 1, cmkd_cuda_stride(s->k), s->k, 3, stream, err));
    if (r->residual) CMKD_TRY(fill_y(t, next + bias, err));
    next += bias + y;
  }
  t->workspace = next, t->plug = next + align(workspace);
  CMKD_TRY(device_status(cudaEventCreate(&t->begin), err));
  return device_status(cudaEventCreate(&t->end), err);
}

static cmkd_status bench_run(bench *t, const cmkd_conv_algorithm *algorithm, cmkd_error *err) {
  return cmkd_conv_run(algorithm, t->a, t->b, t->c, t->request->pass == CMKD_CONV_FORWARD_FUSED ? &t->epilogue : NULL,
                       t->workspace, t->stream, err);
}

/* So many runs as one captured graph, as steps are; NULL: this cannot be captured. A plan may allocate, wait, or use
 * streams of its own. */
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

/* One run, itself or through a graph, onto a known c, then the first and last entries of c as floats and in raw + at;
 * *count of them. */
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

/* The candidate gives our numbers, up to rounding, and the same bytes again from a captured graph. */
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

/* The first image once more as the last one: its result must be the same bytes there. */
static int stands_alone(bench *t, const cmkd_conv_algorithm *algorithm) {
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

/* Milliseconds, the device's time, of one run or of the graph if there is one: the device clears the plug while the
 * host queues. Negative: failed. */
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

/* The median of a run in a graph of several, or a first impression where that is hopeless against `best` (0: none yet).
 */
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

/* Drops candidates that fail or disagree, and all but the fastest of the rest: candidate[0] is our own, which alone may
 * not fail. With a single candidate beside ours to check (`race` 0) nothing is timed. *winner: its index, 0 where no
 * other is good. */
static cmkd_status try_out(cmkd_conv_selector *selector, const cmkd_conv_request *request,
                           cmkd_conv_algorithm **candidate, int count, int race, int *winner, cmkd_error *err) {
  size_t workspace = 0, own_count;
  double best = 0;
  bench t;
  *winner = 0;
  for (int i = 0; i < count; i++)
    if (cmkd_conv_algorithm_workspace(candidate[i]) > workspace)
      workspace = cmkd_conv_algorithm_workspace(candidate[i]);
  cmkd_status status = bench_open(&t, request, workspace, race ? PLUG : 0, selector->stream, err);
  if (status == CMKD_OK) status = bench_result(&t, candidate[0], 0, t.own, 0, &own_count, err);
  if (status == CMKD_OK && race && (best = bench_median(&t, candidate[0], 0)) < 0)
    status = cmkd_fail(err, CMKD_ERR_DEVICE, "timing convolutions: our own failed: %s",
                       cudaGetErrorString(cudaGetLastError()));
  for (int i = 1; i < count && status == CMKD_OK; i++) {
    double ms = -1;
    const int alone = request->alone && request->shape.n > 1;
    if (agrees(&t, candidate[i], own_count) && (!alone || stands_alone(&t, candidate[i])))
      ms = race ? bench_median(&t, candidate[i], best) : 0;
    if (ms >= 0 && (!race || ms < best)) best = ms, *winner = i;
    cudaGetLastError(); /* a plan that would not launch is forgotten; a broken device is not */
    cudaError_t error = cudaStreamSynchronize(selector->stream);
    if (error != cudaSuccess)
      status = cmkd_fail(err, CMKD_ERR_DEVICE, "%s broke the device: %s; CMKD_CUDNN=off goes without cuDNN",
                         candidate[i]->name, cudaGetErrorString(error));
  }
  bench_close(&t);
  return status;
}

/* ---- choosing ---- */

/* A remembered name as a choice; *out NULL where it no longer works. */
static cmkd_status remembered(cmkd_conv_selector *selector, const cmkd_conv_request *request, const char *name,
                              cmkd_conv_algorithm **out, cmkd_error *err) {
  const size_t length = strlen(name), tail = strlen(APART);
  const int apart = length > tail && !strcmp(name + length - tail, APART);
  cmkd_conv_request asked = *request;
  char plain[NAME_MAX_BYTES];
  cmkd_cudnn_plan *plan = NULL;
  cmkd_conv_algorithm *pair[2] = {NULL, NULL};
  *out = NULL;
  if (!strcmp(name, OWN)) return algorithm_make(selector, request, NULL, 0, out, err);
  if (!selector->cudnn || length >= sizeof plain || (apart && request->pass != CMKD_CONV_FORWARD_FUSED)) return CMKD_OK;
  memcpy(plain, name, length + 1);
  if (apart) plain[length - tail] = 0, asked.pass = CMKD_CONV_FORWARD;
  cmkd_status status = cmkd_cudnn_plan_named(selector->cudnn, &asked, plain, &plan, err);
  if (status == CMKD_ERR_DEVICE) status = CMKD_OK; /* cuDNN would not: as if it had none */
  if (status == CMKD_OK && plan && cmkd_cudnn_plan_workspace(plan) > WORKSPACE_LIMIT) {
    cmkd_cudnn_plan_free(plan);
    plan = NULL;
  }
  if (status != CMKD_OK || !plan) return status;
  int winner;
  status = algorithm_make(selector, request, plan, apart, &pair[1], err);
  if (status == CMKD_OK) status = algorithm_make(selector, request, NULL, 0, &pair[0], err);
  if (status == CMKD_OK) status = try_out(selector, request, pair, 2, 0, &winner, err);
  if (status == CMKD_OK && winner == 1) *out = pair[1], pair[1] = NULL;
  cmkd_conv_algorithm_free(pair[0]);
  cmkd_conv_algorithm_free(pair[1]);
  return status;
}

/* Appends cuDNN's plans for a request; none where it has none or fails. */
static cmkd_status add_plans(cmkd_conv_selector *selector, const cmkd_conv_request *request, int apart, int capacity,
                             cmkd_conv_algorithm **candidate, int *count, cmkd_error *err) {
  cmkd_cudnn_plan *plan[CAPACITY];
  cmkd_conv_request asked = *request;
  int plans = 0;
  if (apart) asked.pass = CMKD_CONV_FORWARD;
  cmkd_status status = cmkd_cudnn_plans(selector->cudnn, &asked, WORKSPACE_LIMIT, capacity, plan, &plans, err);
  if (status == CMKD_ERR_DEVICE) status = CMKD_OK, plans = 0;
  for (int i = 0; i < plans; i++) {
    if (status != CMKD_OK)
      cmkd_cudnn_plan_free(plan[i]);
    else if ((status = algorithm_make(selector, request, plan[i], apart, &candidate[*count], err)) == CMKD_OK)
      ++*count;
  }
  return status;
}

static cmkd_status measure(cmkd_conv_selector *selector, const cmkd_conv_request *request, cmkd_conv_algorithm **out,
                           int *measured, cmkd_error *err) {
  cmkd_conv_algorithm *candidate[1 + CAPACITY + CAPACITY_COMPILED];
  int count = 0, winner = 0;
  const int fused = request->pass == CMKD_CONV_FORWARD_FUSED;
  cmkd_status status = algorithm_make(selector, request, NULL, 0, &candidate[0], err);
  if (status == CMKD_OK) count = 1;
  /* engines that fuse are mostly compiled at run time, about a second each: few of those */
  if (status == CMKD_OK && selector->cudnn)
    status = add_plans(selector, request, 0, fused ? CAPACITY_COMPILED : CAPACITY, candidate, &count, err);
  if (status == CMKD_OK && selector->cudnn && fused)
    status = add_plans(selector, request, 1, CAPACITY, candidate, &count, err);
  *measured = count > 1;
  if (status == CMKD_OK && count > 1) status = try_out(selector, request, candidate, count, 1, &winner, err);
  for (int i = 0; i < count; i++)
    if (status == CMKD_OK && i == winner)
      *out = candidate[i];
    else
      cmkd_conv_algorithm_free(candidate[i]);
  return status;
}

cmkd_status cmkd_conv_select(cmkd_conv_selector *selector, const cmkd_conv_request *request, cmkd_conv_algorithm **out,
                             cmkd_error *err) {
  json_t *const sources[3] = {selector->brought, selector->decided, selector->known};
  char key[KEY];
  int measured = 0;
  *out = NULL;
  request_key(request, key);
  for (cmkd_conv_algorithm *c = selector->live; c; c = c->next)
    if (!strcmp(c->key, key)) {
      c->users++;
      *out = c;
      return CMKD_OK;
    }
  for (int i = 0; i < 3 && !*out; i++) {
    const char *name = json_string_value(json_object_get(sources[i], key));
    if (name) CMKD_TRY(remembered(selector, request, name, out, err));
  }
  if (!*out) CMKD_TRY(measure(selector, request, out, &measured, err));
  if (json_object_set_new(selector->decided, key, json_string((*out)->name)) ||
      (measured && json_object_set_new(selector->known, key, json_string((*out)->name)))) {
    cmkd_conv_algorithm_free(*out);
    *out = NULL;
    return no_memory(err);
  }
  if (measured && selector->memory) write_memory(selector);
  memcpy((*out)->key, key, sizeof key);
  (*out)->users = 1, (*out)->next = selector->live, selector->live = *out;
  return CMKD_OK;
}
