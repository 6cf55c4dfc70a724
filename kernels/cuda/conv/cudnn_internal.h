/* Inside the cuDNN part: the opened library and descriptors of its backend API, for cudnn.c, cudnn_graph.c and
 * cudnn_plan.c. Nobody else includes this but their test. CONV_CUDNN is defined where cudnn.h is recent enough. */
#ifndef CMKD_KERNELS_CUDA_CONV_CUDNN_INTERNAL_H
#define CMKD_KERNELS_CUDA_CONV_CUDNN_INTERNAL_H
#include "kernels/cuda/conv/cudnn.h"
#ifdef HAVE_CUDNN
#include <cudnn.h>
#endif
#if defined(HAVE_CUDNN) && CUDNN_VERSION >= 90800 /* the first that describes a device without it */
#define CONV_CUDNN 1

/* What is taken from the library, each a field of struct cmkd_cudnn. */
#define CONV_CUDNN_FUNCTIONS(X) \
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

struct cmkd_cudnn {
#define FIELD(name) __typeof__(name) *name;
  CONV_CUDNN_FUNCTIONS(FIELD)
#undef FIELD
  int version;
  cudnnHandle_t handle; /* NULL where `device` stands for the device */
  descriptor device;
};

/* ---- descriptors ---- */

enum { BAG = 128 };
/* The descriptors of one thing that is being built. After the first failure every call on it does nothing, so that
 * building reads straight; `status` is looked at in the end. */
typedef struct bag {
  const cmkd_cudnn *lib;
  cudnnStatus_t status; /* of the first call that failed */
  const char *what;     /* what was being made then */
  int count;
  descriptor held[BAG]; /* destroyed last to first */
} bag;

static inline int failed(bag *b, cudnnStatus_t status, const char *what) {
  if (b->status == CUDNN_STATUS_SUCCESS && status != CUDNN_STATUS_SUCCESS) b->status = status, b->what = what;
  return b->status != CUDNN_STATUS_SUCCESS;
}
static inline descriptor make(bag *b, cudnnBackendDescriptorType_t type) {
  descriptor d = NULL;
  if (b->status != CUDNN_STATUS_SUCCESS) return NULL;
  if (failed(b, b->count < BAG ? b->lib->cudnnBackendCreateDescriptor(type, &d) : CUDNN_STATUS_INTERNAL_ERROR,
             "a descriptor"))
    return NULL;
  return b->held[b->count++] = d;
}
static inline void set(bag *b, descriptor d, attribute name, cudnnBackendAttributeType_t type, int64_t count,
                       const void *values) {
  if (b->status == CUDNN_STATUS_SUCCESS)
    failed(b, b->lib->cudnnBackendSetAttribute(d, name, type, count, values), "an attribute");
}
static inline void set_int64(bag *b, descriptor d, attribute name, int64_t value) {
  set(b, d, name, CUDNN_TYPE_INT64, 1, &value);
}
static inline void set_part(bag *b, descriptor d, attribute name, descriptor part) {
  set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}
static inline void finish(bag *b, descriptor d, const char *what) {
  if (b->status == CUDNN_STATUS_SUCCESS) failed(b, b->lib->cudnnBackendFinalize(d), what);
}
/* How many values were got; 0 after a failure. */
static inline int64_t get(bag *b, descriptor d, attribute name, cudnnBackendAttributeType_t type, int64_t capacity,
                          void *values) {
  int64_t count = 0;
  if (b->status == CUDNN_STATUS_SUCCESS &&
      failed(b, b->lib->cudnnBackendGetAttribute(d, name, type, capacity, &count, values), "an attribute"))
    return 0;
  return capacity && count > capacity ? capacity : count;
}
static inline void empty(bag *b) {
  while (b->count)
    b->lib->cudnnBackendDestroyDescriptor(b->held[--b->count]);
}
static inline int unsupported(cudnnStatus_t status) {
  return CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_NOT_SUPPORTED;
}

static inline cmkd_status cudnn_fail(const cmkd_cudnn *lib, cmkd_error *err, cudnnStatus_t status, const char *what) {
  char why[512] = "";
  lib->cudnnGetLastErrorString(why, sizeof why);
  why[sizeof why - 1] = 0;
  for (char *p = why; *p; p++)
    if (*p == '\n' || *p == '\r') *p = ' ';
  return cmkd_fail(err, CMKD_ERR_DEVICE, "cuDNN %d: %s: %s%s%s", lib->version, what, lib->cudnnGetErrorString(status),
                   *why ? ": " : "", why);
}

/* ---- a request as a graph of operations (cudnn_graph.c) ---- */

/* Names of the tensors in a graph, by which a run gives their addresses: a, b and c of cmkd_conv_run. */
enum {
  UID_A = 1,
  UID_B,
  UID_C,
  UID_BIAS,
  UID_RESIDUAL,
  UID_INNER /* and on: between fused operations, never in memory */
};

typedef struct conv_graph { /* shared by the plans made of it */
  bag b;
  int users;
  descriptor graph;
} conv_graph;

/* *out NULL where cuDNN cannot be asked for this. */
cmkd_status cmkd_cudnn_graph_make(const cmkd_cudnn *lib, const cmkd_conv_request *request, conv_graph **out,
                                  cmkd_error *err);
void cmkd_cudnn_graph_release(conv_graph *graph); /* one user less; the last one frees it */
#endif
#endif
