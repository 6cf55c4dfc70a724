/* The queue of commands, memory and graphs behind the emulated CUDA runtime. See runtime.h. */
#include "tests/simt/runtime.h"
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

struct node { command *what; node *next; };
struct list { node *first, **last; };
struct simt_stream { simt_graph *capture; };
struct simt_event { double at; };
struct simt_graph { list commands; int owners; };

static list queue = {nullptr, &queue.first};
static simt_graph *capturing; /* one capture at a time, whichever streams take part */
static simt_stream *capturing_on;
static bool deferred, sticky;
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

void simt::submit(cudaStream_t, command *what) {
  if (capturing) { append(&capturing->commands, what); return; }
  append(&queue, what);
  if (!deferred) drain();
}

bool simt_fails_now() { return launch_to_fail >= 0 && launch_to_fail-- == 0; }

static cudaError_t status() { return sticky ? cudaErrorLaunchFailure : cudaSuccess; }

template <class F> struct doing : command {
  F body;
  explicit doing(F f) : body(f) {}
  void run() override { body(); }
};
template <class F> static cudaError_t later(cudaStream_t stream, F f) {
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
  if (capturing) return cudaErrorInvalidValue;
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
  return status();
}
cudaError_t cudaPeekAtLastError(void) { return status(); }
const char *cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return *simt_problem_text() ? simt_problem_text() : "invalid value";
}
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidValue : cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
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
  if (capturing) return cudaErrorInvalidValue;
  if (bytes > memory_limit || memory_used > memory_limit - bytes || posix_memalign((void **)&block, 256, bytes + 256)) return cudaErrorMemoryAllocation;
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
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) { return posix_memalign(memory, 256, bytes) ? cudaErrorMemoryAllocation : cudaSuccess; }
cudaError_t cudaFreeHost(void *memory) { drain(); free(memory); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) { return later(stream, [=] { memset(memory, value, bytes); }); }
cudaError_t cudaMemset(void *memory, int value, size_t bytes) { cudaMemsetAsync(memory, value, bytes, nullptr); return wait(); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) { return later(stream, [=] { memcpy(to, from, bytes); }); }
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) { cudaMemcpyAsync(to, from, bytes, kind, nullptr); return wait(); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { *stream = new simt_stream{nullptr}; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { drain(); delete stream; return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; } /* the queue is in order already */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { *event = new simt_event{0}; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { drain(); delete event; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return later(stream, [=] { event->at = seconds(); }); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait(); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t first, cudaEvent_t last) { *milliseconds = (float)(1e3 * (last->at - first->at)); return status(); }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (capturing || !stream) return cudaErrorInvalidValue;
  capturing = new simt_graph{{nullptr, nullptr}, 1};
  capturing->commands.last = &capturing->commands.first;
  capturing_on = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  *graph = nullptr;
  if (!capturing || stream != capturing_on) return cudaErrorInvalidValue;
  *graph = capturing;
  capturing = nullptr;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  *count = 0;
  for (node *n = graph->commands.first; n && !nodes; n = n->next) ++*count;
  return nodes ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) { graph->owners++; *exec = graph; return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (--graph->owners) return cudaSuccess;
  clear(&graph->commands);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { drain(); return cudaGraphDestroy(exec); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return later(stream, [=] {
    for (node *n = exec->commands.first; n && !simt_broken(); n = n->next) n->what->run();
  });
}

void cmkd_simt_defer(int on) { drain(); deferred = on; }
void cmkd_simt_memory(size_t limit) { memory_limit = limit ? limit : SIZE_MAX; }
size_t cmkd_simt_memory_used(void) { return memory_used; }
void cmkd_simt_fail_launch(long number) { launch_to_fail = number; }
void cmkd_simt_reset(void) { sticky = false; simt_mend(); launch_to_fail = -1; }
}
