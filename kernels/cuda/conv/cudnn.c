/* Convolutions through cuDNN 9's backend API: a request becomes a graph of operations, the heuristics propose engines
 * with their knobs, and a plan is one of those made executable. cuDNN is opened at run time; only its header is needed
 * to build. Descriptors are made by calls that do nothing after the first failure (struct bag), so that building reads
 * straight. */
#include "kernels/cuda/conv/conv.h"
#ifdef HAVE_CUDNN
#include <cudnn.h>
#endif
#if defined(HAVE_CUDNN) && CUDNN_VERSION >= 90800 /* the first that describes a device without it */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "libcudnn.so.9"
#define FUNCTIONS(X) \
  X(cudnnGetVersion) \
  X(cudnnGetErrorString) \
  X(cudnnGetLastErrorString) \
  X(cudnnCreate) \
  X(cudnnDestroy) \
  X(cudnnSetStream) \
  X(cudnnBackendCreateDescriptor) \
  X(cudnnBackendDestroyDescriptor) \
  X(cudnnBackendSetAttribute) \
  X(cudnnBackendGetAttribute) \
  X(cudnnBackendFinalize) \
  X(cudnnBackendExecute)

typedef cudnnBackendDescriptor_t descriptor;
typedef cudnnBackendAttributeName_t attribute;

#define FIELD(name) __typeof__(name) *name;
struct cmkd_cudnn {
  FUNCTIONS(FIELD)
  int version;
  cudnnHandle_t handle; /* NULL where `device` stands for the device */
  descriptor device;
};

/* ---- descriptors ---- */

enum { BAG = 128 };
typedef struct bag {
  const cmkd_cudnn *lib;
  cudnnStatus_t status; /* of the first call that failed */
  const char *what;     /* was being made then */
  int count;
  descriptor held[BAG]; /* destroyed last to first */
} bag;

static int failed(bag *b, cudnnStatus_t status, const char *what) {
  if (b->status == CUDNN_STATUS_SUCCESS && status != CUDNN_STATUS_SUCCESS) b->status = status, b->what = what;
  return b->status != CUDNN_STATUS_SUCCESS;
}
static descriptor make(bag *b, cudnnBackendDescriptorType_t type) {
  descriptor d = NULL;
  if (b->status != CUDNN_STATUS_SUCCESS) return NULL;
  if (failed(b, b->count < BAG ? b->lib->cudnnBackendCreateDescriptor(type, &d) : CUDNN_STATUS_INTERNAL_ERROR,
             "a descriptor"))
    return NULL;
  return b->held[b->count++] = d;
}
static void set(bag *b, descriptor d, attribute name, cudnnBackendAttributeType_t type, int64_t count,
                const void *values) {
  if (b->status == CUDNN_STATUS_SUCCESS)
    failed(b, b->lib->cudnnBackendSetAttribute(d, name, type, count, values), "an attribute");
}
static void set_int64(bag *b, descriptor d, attribute name, int64_t value) {
  set(b, d, name, CUDNN_TYPE_INT64, 1, &value);
}
static void set_part(bag *b, descriptor d, attribute name, descriptor part) {
  set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}
static void finish(bag *b, descriptor d, const char *what) {
  if (b->status == CUDNN_STATUS_SUCCESS) failed(b, b->lib->cudnnBackendFinalize(d), what);
}
/* How many values were got; 0 after a failure. */
static int64_t get(bag *b, descriptor d, attribute name, cudnnBackendAttributeType_t type, int64_t capacity,
                   void *values) {
  int64_t count = 0;
  if (b->status == CUDNN_STATUS_SUCCESS &&
      failed(b, b->lib->cudnnBackendGetAttribute(d, name, type, capacity, &count, values), "an attribute"))
    return 0;
  return capacity && count > capacity ? capacity : count;
}
static void empty(bag *b) {
  while (b->count)
    b->lib->cudnnBackendDestroyDescriptor(b->held[--b->count]);
}
static int unsupported(cudnnStatus_t status) { return CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_NOT_SUPPORTED; }

static cmkd_status cudnn_fail(const cmkd_cudnn *lib, cmkd_error *err, cudnnStatus_t status, const char *what) {
  char why[512] = "";
  lib->cudnnGetLastErrorString(why, sizeof why);
  why[sizeof why - 1] = 0;
  for (char *p = why; *p; p++)
    if (*p == '\n' || *p == '\r') *p = ' ';
  return cmkd_fail(err, CMKD_ERR_DEVICE, "cuDNN %d: %s: %s%s%s", lib->version, what, lib->cudnnGetErrorString(status),
                   *why ? ": " : "", why);
}

/* ---- the library ---- */

static cmkd_status open_library(cmkd_cudnn *lib, const char *path, cmkd_error *err) {
  if (!path || !*path) path = LIBRARY;
  if (!strcmp(path, "off")) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "cuDNN is left out (CMKD_CUDNN=off)");
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* never closed: its parts register handlers that run at exit */
  if (!library) {
    const char *why = dlerror();
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "cannot load cuDNN 9 (%s): %s; install it or set CMKD_CUDNN=PATH", path,
                     why ? why : "unknown error");
  }
#define LOAD(name) \
  { \
    void *symbol = dlsym(library, #name); \
    if (!symbol) \
      return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s has no " #name "; install cuDNN 9 or set CMKD_CUDNN=PATH", \
                       path); \
    memcpy(&lib->name, &symbol, sizeof symbol); \
  }
  FUNCTIONS(LOAD)
  lib->version = (int)lib->cudnnGetVersion();
  return CMKD_OK;
}

cmkd_status cmkd_cudnn_open(void *stream, const char *library, const char *device_json, cmkd_cudnn **out,
                            cmkd_error *err) {
  *out = NULL;
  cmkd_cudnn *lib = calloc(1, sizeof *lib);
  if (!lib) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_status status = open_library(lib, library, err);
  if (status != CMKD_OK) {
    free(lib);
    return status;
  }
  bag b = {.lib = lib};
  if (device_json) {
    if (lib->version < 90800)
      status = cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "cuDNN %d makes no plans without their device; 90800 does",
                         lib->version);
    lib->device = status == CMKD_OK ? make(&b, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR) : NULL;
    if (lib->device)
      set(&b, lib->device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(device_json) + 1,
          device_json);
    if (lib->device) finish(&b, lib->device, "the device's description");
  } else if (!failed(&b, lib->cudnnCreate(&lib->handle), "a handle"))
    failed(&b, lib->cudnnSetStream(lib->handle, stream), "a stream");
  if (b.status != CUDNN_STATUS_SUCCESS) {
    cudnn_fail(lib, err, b.status, b.what);
    status = CMKD_ERR_UNSUPPORTED;
    if (err) err->status = status;
  }
  if (status != CMKD_OK) {
    cmkd_cudnn_close(lib);
    return status;
  }
  *out = lib;
  return CMKD_OK;
}

void cmkd_cudnn_close(cmkd_cudnn *lib) {
  if (!lib) return;
  if (lib->device) lib->cudnnBackendDestroyDescriptor(lib->device);
  if (lib->handle) lib->cudnnDestroy(lib->handle);
  free(lib);
}

int cmkd_cudnn_version(const cmkd_cudnn *lib) { return lib->version; }

/* ---- a request as a graph of operations ---- */

enum {
  UID_A = 1,
  UID_B,
  UID_C,
  UID_BIAS,
  UID_RESIDUAL,
  UID_INNER /* and on: between fused operations, never in memory */
};

typedef struct graph { /* shared by the plans made of it */
  bag b;
  int users;
  descriptor graph;
} graph;

static cudnnDataType_t data_type(cmkd_dtype dtype) {
  return dtype == CMKD_F16 ? CUDNN_DATA_HALF : dtype == CMKD_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* (n, c, h, w) in NHWC with `stride` channels from pixel to pixel. */
static descriptor tensor(bag *b, int64_t uid, cmkd_dtype dtype, int64_t n, int64_t c, int64_t h, int64_t w,
                         int64_t stride) {
  const int64_t dims[4] = {n, c, h, w}, strides[4] = {h * w * stride, 1, w * stride, stride};
  const _Bool inner = uid >= UID_INNER;
  const cudnnDataType_t type = data_type(dtype);
  descriptor t = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set(b, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(b, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
  set(b, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
  set_int64(b, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 16);
  set_int64(b, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, uid);
  set(b, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inner);
  finish(b, t, "a tensor");
  return t;
}

static descriptor convolution(bag *b, const cmkd_cuda_conv_shape *s) {
  const cudnnDataType_t type = CUDNN_DATA_FLOAT;
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  const int64_t dilation[2] = {1, 1}, stride[2] = {s->stride, s->stride}, pad[2] = {s->pad, s->pad};
  descriptor c = make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  set(b, c, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(b, c, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
  set_int64(b, c, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, 2);
  set(b, c, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation);
  set(b, c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
  set(b, c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
  set(b, c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
  finish(b, c, "a convolution");
  return c;
}

/* The three convolutions name the same five things differently. */
static const struct conv_attributes {
  cudnnBackendDescriptorType_t type;
  attribute alpha, beta, conv, x, w, y;
} conv_forward =
    {
        CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
},
  conv_data =
      {
          CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
},
  conv_weights = {
      CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
};

static descriptor pointwise(bag *b, cudnnPointwiseMode_t mode, double upper_clip, descriptor x, descriptor second,
                            descriptor y) {
  const cudnnDataType_t type = CUDNN_DATA_FLOAT;
  descriptor p = make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR), operation;
  set(b, p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  set(b, p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &type);
  if (upper_clip > 0) set(b, p, CUDNN_ATTR_POINTWISE_RELU_UPPER_CLIP, CUDNN_TYPE_DOUBLE, 1, &upper_clip);
  finish(b, p, "a pointwise function");
  operation = make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  set_part(b, operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p);
  set_part(b, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
  if (second) set_part(b, operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, second);
  set_part(b, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
  finish(b, operation, "a pointwise operation");
  return operation;
}

/* Convolution, bias, residual, activation: all but the last write a float tensor that never reaches memory. */
static void build(graph *g, const cmkd_conv_request *r) {
  bag *b = &g->b;
  const cmkd_cuda_conv_shape *s = &r->shape;
  const int x_stride = cmkd_cuda_stride(s->c), padded = s->y_stride == cmkd_cuda_stride(s->k);
  const int c = s->groups > 1 ? s->c : x_stride, k = s->groups == 1 && padded ? s->y_stride : s->k;
  const int fused = r->pass == CMKD_CONV_FORWARD_FUSED, back_data = r->pass == CMKD_CONV_BACKWARD_DATA,
            back_weights = r->pass == CMKD_CONV_BACKWARD_WEIGHTS;
  const struct conv_attributes *names = back_data ? &conv_data : back_weights ? &conv_weights : &conv_forward;
  const float one = 1, beta = back_data && r->accumulate ? 1 : 0;
  descriptor operation[4];
  int operations = 0;

  descriptor x = tensor(b, back_data ? UID_C : UID_A, s->dtype, s->n, c, s->h, s->w, x_stride);
  descriptor w = tensor(b, back_weights ? UID_C : UID_B, s->dtype, k, c / s->groups, s->kh, s->kw, c / s->groups);
  descriptor y = tensor(b,
                        back_data      ? UID_A
                        : back_weights ? UID_B
                                       : UID_C,
                        s->y_dtype, s->n, k, s->oh, s->ow, s->y_stride),
             conv = convolution(b, s);
  descriptor now = fused ? tensor(b, UID_INNER, CMKD_F32, s->n, k, s->oh, s->ow, s->y_stride) : y;
  descriptor o = operation[operations++] = make(b, names->type);
  set(b, o, names->alpha, CUDNN_TYPE_FLOAT, 1, &one);
  set(b, o, names->beta, CUDNN_TYPE_FLOAT, 1, &beta);
  set_part(b, o, names->conv, conv);
  set_part(b, o, names->x, x);
  set_part(b, o, names->w, w);
  set_part(b, o, names->y, now);
  finish(b, o, "a convolution operation");
  if (fused) {
    descriptor bias = tensor(b, UID_BIAS, CMKD_F32, 1, k, 1, 1, k);
    descriptor next =
        r->residual || r->act ? tensor(b, UID_INNER + 1, CMKD_F32, s->n, k, s->oh, s->ow, s->y_stride) : y;
    operation[operations++] = pointwise(b, CUDNN_POINTWISE_ADD, 0, now, bias, next);
    now = next;
    if (r->residual) {
      descriptor residual = tensor(b, UID_RESIDUAL, s->y_dtype, s->n, k, s->oh, s->ow, s->y_stride);
      next = r->act ? tensor(b, UID_INNER + 2, CMKD_F32, s->n, k, s->oh, s->ow, s->y_stride) : y;
      operation[operations++] = pointwise(b, CUDNN_POINTWISE_ADD, 0, now, residual, next);
      now = next;
    }
    if (r->act)
      operation[operations++] = pointwise(b, CUDNN_POINTWISE_RELU_FWD, r->act == CMKD_ACT_RELU6 ? 6 : 0, now, NULL, y);
  }
  g->graph = make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (b->lib->handle) set(b, g->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &b->lib->handle);
  set(b, g->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, operations, operation);
  finish(b, g->graph, "a graph of operations");
}

static void graph_leave(graph *g) {
  if (!g || --g->users) return;
  empty(&g->b);
  free(g);
}

/* *out NULL where cuDNN cannot be asked for this. */
static cmkd_status graph_make(const cmkd_cudnn *lib, const cmkd_conv_request *r, graph **out, cmkd_error *err) {
  const cmkd_cuda_conv_shape *s = &r->shape;
  *out = NULL;
  /* depthwise weights have no padding, so there must be none; other groupings are not ours to pad */
  if (s->groups > 1 && (s->groups != s->c || s->c != cmkd_cuda_stride(s->c) || s->k != s->y_stride)) return CMKD_OK;
  graph *g = calloc(1, sizeof *g);
  if (!g) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  g->b.lib = lib, g->users = 1;
  build(g, r);
  cmkd_status status = g->b.status == CUDNN_STATUS_SUCCESS || unsupported(g->b.status)
                           ? CMKD_OK
                           : cudnn_fail(lib, err, g->b.status, g->b.what);
  if (g->b.status == CUDNN_STATUS_SUCCESS)
    *out = g;
  else
    graph_leave(g);
  return status;
}

/* ---- plans ---- */

enum { KNOBS = 64, PROPOSALS = 64, NOTES = 32, NAME = 512 };
/* What a plan's name holds and all that it is made from, so that the plan that was timed and the one remembered are the
 * same. */
typedef struct recipe {
  int64_t engine;
  int knobs;
  int64_t knob[KNOBS], value[KNOBS];
} recipe;

struct cmkd_cudnn_plan {
  bag b;
  graph *graph;
  descriptor plan;
  int64_t workspace;
  cmkd_conv_pass pass;
  int residual;
  cmkd_dtype dtype;
  char name[NAME];
};

static int recipe_name(const recipe *r, char name[NAME]) {
  size_t used = (size_t)snprintf(name, NAME, "cudnn:eng%" PRId64 "{", r->engine);
  for (int i = 0; i < r->knobs && used < NAME; i++)
    used +=
        (size_t)snprintf(name + used, NAME - used, "%sk%" PRId64 "=%" PRId64, i ? "," : "", r->knob[i], r->value[i]);
  if (used < NAME) used += (size_t)snprintf(name + used, NAME - used, "}");
  return used < NAME;
}

static int recipe_parse(const char *name, recipe *r) {
  const char *rest = name;
  char again[NAME];
  int used = 0;
  memset(r, 0, sizeof *r);
  if (strlen(name) >= NAME || sscanf(name, "cudnn:eng%9" SCNd64 "{%n", &r->engine, &used) != 1 || !used) return 0;
  for (rest += used; *rest && *rest != '}' && r->knobs < KNOBS; rest += used) {
    used = 0;
    if (sscanf(rest, "k%9" SCNd64 "=%9" SCNd64 "%n", &r->knob[r->knobs], &r->value[r->knobs], &used) != 2 || !used)
      return 0;
    r->knobs++;
    used += rest[used] == ',';
  }
  return recipe_name(r, again) && !strcmp(again, name); /* what scanf was lenient about does not come back the same */
}

/* Engines whose results change from run to run are out; so are those that do arithmetic in less than float, or whose
 * tile transforms lose digits. On floats tensor cores compute in tf32: only where that is asked for; and who wants
 * neither loses no digits to any transform. */
static int allowed(const cmkd_conv_request *r, const cudnnBackendNumericalNote_t *notes, int64_t count) {
  const int f32 = r->shape.dtype == CMKD_F32;
  for (int64_t i = 0; i < count; i++)
    switch (notes[i]) {
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13: return 0;
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS: /* to halves, say */
      if (f32) return 0;
      break;
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4:
    case CUDNN_NUMERICAL_NOTE_FFT:
      if (f32 && !r->tf32) return 0;
      break;
    default: break;
    }
  return 1;
}

void cmkd_cudnn_plan_free(cmkd_cudnn_plan *plan) {
  if (!plan) return;
  empty(&plan->b);
  graph_leave(plan->graph);
  free(plan);
}

/* *out NULL where this cuDNN cannot, or we do not want it. */
static cmkd_status plan_make(graph *g, const cmkd_conv_request *request, const recipe *r, size_t workspace_limit,
                             cmkd_cudnn_plan **out, cmkd_error *err) {
  cudnnBackendNumericalNote_t notes[NOTES];
  descriptor algorithm[KNOBS];
  *out = NULL;
  cmkd_cudnn_plan *plan = calloc(1, sizeof *plan);
  if (!plan) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  bag *b = &plan->b;
  b->lib = g->b.lib;
  plan->graph = g, g->users++;
  plan->pass = request->pass, plan->residual = request->residual, plan->dtype = request->shape.dtype;
  if (!recipe_name(r, plan->name)) failed(b, CUDNN_STATUS_NOT_SUPPORTED, "a name");

  descriptor engine = make(b, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  set_part(b, engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, g->graph);
  set_int64(b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, r->engine);
  if (!b->lib->handle) set_part(b, engine, CUDNN_ATTR_ENGINE_DEVICEPROP, b->lib->device);
  finish(b, engine, "an engine");
  int64_t count = get(b, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES, notes);
  if (b->status == CUDNN_STATUS_SUCCESS && !allowed(request, notes, count))
    failed(b, CUDNN_STATUS_NOT_SUPPORTED, "an engine");
  for (int i = 0; i < r->knobs; i++) {
    const cudnnBackendKnobType_t type = (cudnnBackendKnobType_t)r->knob[i];
    algorithm[i] = make(b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    set(b, algorithm[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
    set_int64(b, algorithm[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, r->value[i]);
    finish(b, algorithm[i], "a knob");
  }
  descriptor config = make(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  set_part(b, config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  if (r->knobs) set(b, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, r->knobs, algorithm);
  finish(b, config, "an engine's configuration");
  plan->plan = make(b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  if (b->lib->handle)
    set(b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &b->lib->handle);
  else
    set_part(b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, b->lib->device);
  set_part(b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  finish(b, plan->plan, "a plan");
  get(b, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &plan->workspace);
  if (b->status != CUDNN_STATUS_SUCCESS || plan->workspace < 0 || (uint64_t)plan->workspace > workspace_limit)
    cmkd_cudnn_plan_free(plan);
  else
    *out = plan;
  return CMKD_OK;
}

/* An engine's configuration taken apart; 0 after a failure. */
static int recipe_read(const cmkd_cudnn *lib, descriptor config, recipe *r) {
  bag b = {.lib = lib};
  descriptor engine = make(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR), algorithm[KNOBS];
  get(&b, config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine);
  get(&b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &r->engine);
  for (int k = 0; k < KNOBS; k++)
    algorithm[k] = make(&b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
  r->knobs = (int)get(&b, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR, KNOBS, algorithm);
  for (int k = 0; k < r->knobs; k++) {
    cudnnBackendKnobType_t type = 0;
    get(&b, algorithm[k], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
    get(&b, algorithm[k], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &r->value[k]);
    r->knob[k] = type;
  }
  empty(&b);
  return b.status == CUDNN_STATUS_SUCCESS;
}

/* What one mode of the heuristics proposes, best first; how many. None is no failure: many requests have none. */
static int propose(const graph *g, cudnnBackendHeurMode_t mode, recipe *proposal) {
  bag b = {.lib = g->b.lib};
  descriptor config[PROPOSALS], heuristics = make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  int found = 0;
  set_part(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, g->graph);
  set(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (!b.lib->handle) set_part(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, b.lib->device);
  finish(&b, heuristics, "heuristics");
  int64_t count = get(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, NULL);
  if (count > PROPOSALS) count = PROPOSALS;
  for (int64_t i = 0; i < count; i++)
    config[i] = make(&b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  if (count) count = get(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, config);
  for (int64_t i = 0; i < count; i++)
    found += recipe_read(b.lib, config[i], &proposal[found]);
  empty(&b);
  return found;
}

cmkd_status cmkd_cudnn_plans(cmkd_cudnn *lib, const cmkd_conv_request *request, size_t workspace_limit, int capacity,
                             cmkd_cudnn_plan **plans, int *count, cmkd_error *err) {
  static const cudnnBackendHeurMode_t modes[2] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
  cmkd_status status;
  graph *g;
  *count = 0;
  CMKD_TRY(graph_make(lib, request, &g, err));
  if (!g) return CMKD_OK;
  recipe *proposal = malloc(PROPOSALS * sizeof *proposal);
  status = proposal ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int mode = 0; mode < 2 && status == CMKD_OK && *count < capacity; mode++) {
    const int proposals = propose(g, modes[mode], proposal);
    for (int i = 0; i < proposals && status == CMKD_OK && *count < capacity; i++) {
      cmkd_cudnn_plan *plan;
      status = plan_make(g, request, &proposal[i], workspace_limit, &plan, err);
      for (int j = 0; plan && j < *count; j++)
        if (!strcmp(plans[j]->name, plan->name)) {
          cmkd_cudnn_plan_free(plan);
          plan = NULL;
        }
      if (plan) plans[(*count)++] = plan;
    }
  }
  while (status != CMKD_OK && *count)
    cmkd_cudnn_plan_free(plans[--*count]);
  free(proposal);
  graph_leave(g);
  return status;
}

cmkd_status cmkd_cudnn_plan_named(cmkd_cudnn *lib, const cmkd_conv_request *request, const char *name,
                                  cmkd_cudnn_plan **out, cmkd_error *err) {
  recipe r;
  graph *g;
  *out = NULL;
  if (!recipe_parse(name, &r)) return CMKD_OK;
  CMKD_TRY(graph_make(lib, request, &g, err));
  if (!g) return CMKD_OK;
  cmkd_status status = plan_make(g, request, &r, SIZE_MAX, out, err);
  graph_leave(g);
  return status;
}

const char *cmkd_cudnn_plan_name(const cmkd_cudnn_plan *plan) { return plan->name; }
size_t cmkd_cudnn_plan_workspace(const cmkd_cudnn_plan *plan) { return (size_t)plan->workspace; }
cmkd_dtype cmkd_cudnn_plan_dw_dtype(const cmkd_cudnn_plan *plan) {
  return plan->dtype;
} /* no engine worth having writes floats from 16 bits */

cmkd_status cmkd_cudnn_run(cmkd_cudnn *lib, const cmkd_cudnn_plan *plan, const void *a, const void *b, void *c,
                           const float *bias, const void *residual, void *workspace, cmkd_error *err) {
  const int64_t uid[5] = {UID_A, UID_B, UID_C, UID_BIAS, UID_RESIDUAL};
  const void *pointer[5] = {a, b, c, bias, residual};
  const int count = plan->pass != CMKD_CONV_FORWARD_FUSED ? 3 : plan->residual ? 5 : 4;
  if (!lib->handle) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "cuDNN: plans made without their device do not run");
  bag pack = {.lib = lib};
  descriptor d = make(&pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  set(&pack, d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, uid);
  set(&pack, d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointer);
  set(&pack, d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  finish(&pack, d, "the tensors' addresses");
  if (pack.status == CUDNN_STATUS_SUCCESS)
    failed(&pack, lib->cudnnBackendExecute(lib->handle, plan->plan, d), plan->name);
  cmkd_status status = pack.status == CUDNN_STATUS_SUCCESS ? CMKD_OK : cudnn_fail(lib, err, pack.status, pack.what);
  empty(&pack);
  return status;
}

#else /* a build without the header: nothing is ever open */

cmkd_status cmkd_cudnn_open(void *stream, const char *library, const char *device_json, cmkd_cudnn **out,
                            cmkd_error *err) {
  (void)stream;
  (void)library;
  (void)device_json;
  *out = NULL;
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                   "this build knows no cuDNN; build it anew where cudnn.h of version 9.8 or later is installed");
}
void cmkd_cudnn_close(cmkd_cudnn *lib) {
  (void)lib;
  (void)lib;
}
int cmkd_cudnn_version(const cmkd_cudnn *lib) {
  (void)lib;
  return 0;
}
cmkd_status cmkd_cudnn_plans(cmkd_cudnn *lib, const cmkd_conv_request *request, size_t workspace_limit, int capacity,
                             cmkd_cudnn_plan **plans, int *count, cmkd_error *err) {
  (void)lib;
  (void)request;
  (void)workspace_limit;
  (void)capacity;
  (void)plans;
  (void)err;
  *count = 0;
  return CMKD_OK;
}
cmkd_status cmkd_cudnn_plan_named(cmkd_cudnn *lib, const cmkd_conv_request *request, const char *name,
                                  cmkd_cudnn_plan **out, cmkd_error *err) {
  (void)lib;
  (void)request;
  (void)name;
  (void)err;
  *out = NULL;
  return CMKD_OK;
}
void cmkd_cudnn_plan_free(cmkd_cudnn_plan *plan) {
  (void)plan;
  (void)plan;
}
const char *cmkd_cudnn_plan_name(const cmkd_cudnn_plan *plan) {
  (void)plan;
  return "";
}
size_t cmkd_cudnn_plan_workspace(const cmkd_cudnn_plan *plan) {
  (void)plan;
  return 0;
}
cmkd_dtype cmkd_cudnn_plan_dw_dtype(const cmkd_cudnn_plan *plan) {
  (void)plan;
  return CMKD_F32;
}
cmkd_status cmkd_cudnn_run(cmkd_cudnn *lib, const cmkd_cudnn_plan *plan, const void *a, const void *b, void *c,
                           const float *bias, const void *residual, void *workspace, cmkd_error *err) {
  (void)lib;
  (void)plan;
  (void)a;
  (void)b;
  (void)c;
  (void)bias;
  (void)residual;
  (void)workspace;
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "this build knows no cuDNN");
}
#endif
