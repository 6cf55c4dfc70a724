/* The queue of commands, memory and graphs behind the emulated CUDA runtime. See tests/simt/runtime.h. */
#include "tests/simt/runtime.h"
#include <set>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "tests/simt/emulate.h"
#include "tests/simt/simt.h"

using simt::command;

/* simt.cpp */
bool simt_broken();
void simt_mend();
const char *simt_problem_text();

struct node {
  command *what;
  node *next;
};
struct list {
  node *first, **last;
};
/* capture: the number of the capture that it takes part in; open: it has captured work that nobody has joined;
 * recorded: by an event since */
struct simt_stream {
  int device;
  long capture;
  bool open, recorded;
};
struct simt_event {
  double at;
  long capture;
  bool ever;
  simt_stream *on;
}; /* capture: recorded in that one; 0: outside of any */
struct simt_graph {
  list commands;
  int owners;
};

static list queue = {nullptr, &queue.first};
static simt_graph *capturing; /* one capture at a time, of the streams that take part */
static simt_stream *capturing_on;
static long captures;    /* so far; the number of the one under way */
static int open_streams; /* that fork from it */
static bool spoiled;     /* it has failed: there will be no graph */
static bool deferred, sticky;
static cudaError_t last_error; /* of a call, until somebody asks */
static thread_local int current_device;
static std::set<const void *> loaded; /* kernels that were launched outside of a capture */
static const char *unloaded = "";
static size_t memory_limit = SIZE_MAX, memory_used;
static long launch_to_fail = -1;

static void append(list *to, command *what) {
  node *n = new node{what, nullptr};
  *to->last = n;
  to->last = &n->next;
}

static void clear(list *of) {
  while (node *n = of->first) {
    of->first = n->next;
    delete n->what;
    delete n;
  }
  of->last = &of->first;
}

static void drain() {
  while (node *n = queue.first) {
    queue.first = n->next;
    if (!queue.first) queue.last = &queue.first;
    if (!sticky) n->what->run(); /* nothing runs on a device that has failed */
    if (simt_broken()) sticky = true;
    delete n->what;
    delete n;
  }
}

static cudaError_t failed(cudaError_t error) { return last_error = error; }

/* What is queued on a stream that takes no part in the capture under way is not captured: it would run now, before all
 * that is. */
static bool can_take(cudaStream_t stream) {
  if (!capturing || (stream && stream->capture == captures)) return true;
  spoiled = true;
  failed(cudaErrorStreamCaptureImplicit);
  return false;
}

void simt::submit(cudaStream_t stream, command *what) {
  if (!can_take(stream)) {
    delete what;
    return;
  }
  if (capturing) {
    if (stream != capturing_on && !stream->open) stream->open = true, open_streams++;
    stream->recorded = false;
    append(&capturing->commands, what);
    return;
  }
  append(&queue, what);
  if (!deferred) drain();
}

void simt::submit_kernel(cudaStream_t stream, const void *kernel, const char *name, command *what) {
  if (stream && stream->device != current_device) {
    delete what;
    failed(cudaErrorInvalidResourceHandle);
    return;
  }
  if (!capturing)
    loaded.insert(kernel);
  else if (!loaded.count(kernel) && !*unloaded)
    unloaded = name;
  submit(stream, what);
}

bool simt_fails_now() { return launch_to_fail >= 0 && launch_to_fail-- == 0; }

static cudaError_t status() { return sticky ? cudaErrorLaunchFailure : cudaSuccess; }

template <class F> struct doing : command {
  F body;
  explicit doing(F f) : body(f) {}
  void run() override { body(); }
};
template <class F> static cudaError_t later(cudaStream_t stream, F f) {
  if (!can_take(stream)) return last_error;
  simt::submit(stream, new doing<F>(f));
  return deferred ? cudaSuccess : status();
}

static double seconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A wait while capturing is an error on a device too. */
static cudaError_t wait() {
  if (capturing) {
    spoiled = true;
    return failed(cudaErrorStreamCaptureUnsupported);
  }
  drain();
  return status();
}

extern "C" {
cudaError_t cudaGetLastError(void) {
  if (sticky && !deferred) { /* a broken rule is told once, so that tests may go on */
    sticky = false;
    simt_mend();
    return cudaErrorLaunchFailure;
  }
  const cudaError_t error = sticky ? cudaErrorLaunchFailure : last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError(void) { return sticky ? cudaErrorLaunchFailure : last_error; }
const char *cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  if (error == cudaErrorStreamCaptureUnsupported) return "operation not permitted when stream is capturing";
  if (error == cudaErrorStreamCaptureInvalidated) return "operation failed due to a previous error during capture";
  if (error == cudaErrorStreamCaptureUnjoined) return "capturing stream has unjoined work";
  if (error == cudaErrorStreamCaptureIsolation) return "dependency created on uncaptured work in another stream";
  if (error == cudaErrorStreamCaptureImplicit)
    return "operation would make the legacy stream depend on a capturing blocking stream";
  if (error == cudaErrorInvalidResourceHandle) return "invalid resource handle";
  return *simt_problem_text() ? simt_problem_text() : "invalid value";
}
cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
  *count = 2;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return failed(cudaErrorInvalidValue);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
  (void)device;
  *p = cudaDeviceProp{"emulated", memory_limit, 9, 0, 132};
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return wait(); }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *total = memory_limit == SIZE_MAX ? (size_t)80 << 30 : memory_limit;
  *free = *total > memory_used ? *total - memory_used : 0;
  return cudaSuccess;
}

/* The size lies before the block, 256 bytes of it to keep the alignment. */
cudaError_t cudaMalloc(void **memory, size_t bytes) {
  char *block;
  *memory = nullptr;
  if (capturing) return failed(cudaErrorStreamCaptureUnsupported);
  if (bytes > memory_limit || memory_used > memory_limit - bytes || posix_memalign((void **)&block, 256, bytes + 256))
    return failed(cudaErrorMemoryAllocation);
  memcpy(block, &bytes, sizeof bytes);
  memset(block + 256, 0xFF, bytes);
  memory_used += bytes;
  *memory = block + 256;
  return cudaSuccess;
}
cudaError_t cudaFree(void *memory) {
  if (!memory) return cudaSuccess;
  drain();
  size_t bytes;
  char *block = (char *)memory - 256;
  memcpy(&bytes, block, sizeof bytes);
  memory_used -= bytes;
  free(block);
  return status();
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
  return posix_memalign(memory, 256, bytes) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void *memory) {
  drain();
  free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
  return later(stream, [=] { memset(memory, value, bytes); });
}
cudaError_t cudaMemset(void *memory, int value, size_t bytes) {
  cudaMemsetAsync(memory, value, bytes, nullptr);
  return wait();
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return later(stream, [=] { memcpy(to, from, bytes); });
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return wait();
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  *stream = new simt_stream{current_device, 0, false, false};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  drain();
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait(); }
/* The queue is in order already; but a wait brings a stream into a capture, and back. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (!event->ever) return cudaSuccess;
  if (!capturing) return event->capture ? failed(cudaErrorInvalidValue) : cudaSuccess;
  if (event->capture != captures) {
    if (stream->capture != captures) return cudaSuccess; /* both outside */
    spoiled = true;
    return failed(cudaErrorStreamCaptureIsolation);
  }
  stream->capture = captures;
  if (event->on->open && event->on->recorded) event->on->open = false, open_streams--;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = new simt_event{0, 0, false, nullptr};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  drain();
  delete event;
  return cudaSuccess;
}
/* In a capture an event has a place, but no time: nothing happens to it when the graph runs. */
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (!can_take(stream)) return last_error;
  event->ever = true;
  event->on = stream;
  event->capture = capturing ? captures : 0;
  if (!capturing) return later(stream, [=] { event->at = seconds(); });
  stream->recorded = true;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return event->capture ? failed(cudaErrorInvalidValue) : wait(); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t first, cudaEvent_t last) {
  if (first->capture || last->capture || !first->ever || !last->ever) return failed(cudaErrorInvalidResourceHandle);
  *milliseconds = (float)(1e3 * (last->at - first->at));
  return status();
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (capturing || !stream) return failed(cudaErrorInvalidValue);
  capturing = new simt_graph{{nullptr, nullptr}, 1};
  capturing->commands.last = &capturing->commands.first;
  capturing_on = stream;
  stream->capture = ++captures;
  open_streams = 0;
  spoiled = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  *graph = nullptr;
  if (!capturing || stream != capturing_on) return failed(cudaErrorInvalidValue);
  simt_graph *made = capturing;
  capturing = nullptr;
  if (!spoiled && !open_streams) {
    *graph = made;
    return cudaSuccess;
  }
  cudaGraphDestroy(made);
  return failed(spoiled ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  *count = 0;
  for (node *n = graph->commands.first; n && !nodes; n = n->next)
    ++*count;
  return nodes ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
  graph->owners++;
  *exec = graph;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (--graph->owners) return cudaSuccess;
  clear(&graph->commands);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  drain();
  return cudaGraphDestroy(exec);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return later(stream, [=] {
    for (node *n = exec->commands.first; n && !simt_broken(); n = n->next)
      n->what->run();
  });
}

void cmkd_simt_defer(int on) {
  drain();
  deferred = on;
}
void cmkd_simt_memory(size_t limit) { memory_limit = limit ? limit : SIZE_MAX; }
size_t cmkd_simt_memory_used(void) { return memory_used; }
void cmkd_simt_fail_launch(long number) { launch_to_fail = number; }
void cmkd_simt_unload(void) {
  loaded.clear();
  unloaded = "";
}
const char *cmkd_simt_unloaded(void) { return unloaded; }
void cmkd_simt_reset(void) {
  sticky = false;
  last_error = cudaSuccess;
  simt_mend();
  launch_to_fail = -1;
}
}
