/* The scheduler of the SIMT emulation: runs a launch block by block, a block's threads as fibers until all are done,
 * and answers warp and block operations once everybody has come. A broken rule ends the launch with one line
 * (cmkd_simt_problem) instead of a hang. */
#include "tests/simt/simt.h"
#include "tests/simt/emulate.h"
#include "tests/simt/fiber.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bool simt_fails_now(); /* runtime.cpp */

namespace simt {

place here;

enum state { READY, WAITING, DONE };

struct post {
  op what;
  unsigned mask;
  uint64_t value;
  int lane, width;
  const char *file;
  int line;
};

struct worker {
  fiber f;
  state at;
  post asked;
  uint64_t answer;
};

struct variable {
  const void *key;
  void *memory;
  size_t bytes;
};

static const int MAX_THREADS = 1024, MAX_VARIABLES = 64;
static worker workers[MAX_THREADS];
static int threads, current, order_kind, variables;
static variable variable_list[MAX_VARIABLES];
static void *dynamic_memory;
static size_t shared_bytes;
static command *body_of_launch;
static const char *kernel_name;
static char problem[512];
static bool broken;
static uint64_t random_state = 1;
static cmkd_simt_counts counts;

static const char *const op_names[] = {"__syncthreads", "__syncthreads_or", "__syncwarp",       "__ballot_sync",
                                       "__shfl_sync",   "__shfl_up_sync",   "__shfl_down_sync", "__shfl_xor_sync"};

static void complain(const char *format, ...) {
  broken = true;
  if (problem[0]) return;
  int n = snprintf(problem, sizeof problem, "%s: ", kernel_name);
  va_list args;
  va_start(args, format);
  vsnprintf(problem + n, sizeof problem - (size_t)n, format, args);
  va_end(args);
}

static uint32_t random_below(uint32_t bound) { /* splitmix64 */
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (uint32_t)(((z ^ z >> 31) >> 32) * bound >> 32);
}

/* order[0..n-1]: who goes first, second, ... */
static void make_order(int *order, int n) {
  for (int i = 0; i < n; i++)
    order[i] = order_kind == CMKD_SIMT_REVERSE ? n - 1 - i : i;
  if (order_kind != CMKD_SIMT_RANDOM) return;
  for (int i = n - 1; i > 0; i--) {
    int j = (int)random_below((uint32_t)i + 1), t = order[i];
    order[i] = order[j];
    order[j] = t;
  }
}

/* ---- what running threads call ---- */
uint64_t meet(op what, unsigned mask, uint64_t value, int lane, int width, const char *file, int line) {
  worker &w = workers[current];
  int me = current, my_lane = current % 32;
  if (what > SYNC_BLOCK_OR) {
    if (!(mask >> my_lane & 1))
      complain("thread %d: %s at %s:%d: lane %d is not in its own mask %08x", me, op_names[what], file, line, my_lane,
               mask);
    if (width < 1 || width > 32 || (width & (width - 1)))
      complain("thread %d: %s at %s:%d: width %d", me, op_names[what], file, line, width);
    bool outside = what == SHUFFLE ? lane < 0 || lane >= width : what >= SHUFFLE_UP && (lane < 0 || lane >= width);
    if (outside)
      complain("thread %d: %s at %s:%d: lane or distance %d is outside a width of %d", me, op_names[what], file, line,
               lane, width);
  }
  w.asked = post{what, mask, value, lane, width, file, line};
  w.at = WAITING;
  fiber_yield(w.f);
  return workers[current].answer;
}

void require(bool holds, const char *rule) {
  if (!holds) complain("thread %d: %s", current, rule);
}

void *shared(const void *key, size_t bytes) {
  for (int i = 0; i < variables; i++)
    if (variable_list[i].key == key) return variable_list[i].memory;
  void *memory = nullptr;
  if (variables == MAX_VARIABLES || posix_memalign(&memory, 128, bytes)) {
    fprintf(stderr, "simt: no room for a shared variable\n");
    abort();
  }
  memset(memory, 0xFF, bytes);
  variable_list[variables++] = variable{key, memory, bytes};
  shared_bytes += bytes;
  if (shared_bytes > 227 * 1024) complain("%zu bytes of shared memory", shared_bytes);
  return memory;
}

void *dynamic_shared() {
  if (!dynamic_memory) complain("dynamic shared memory is used, but the launch gave none");
  return dynamic_memory;
}

/* ---- warp and block operations ---- */
static uint64_t answer_of(int first, int lane, bool &known) {
  const post &p = workers[first + lane].asked;
  int base = lane & ~(p.width - 1), source = lane;
  uint64_t ballot = 0;
  switch (p.what) {
  case BALLOT:
    for (int i = 0; i < 32; i++)
      if (p.mask >> i & 1) ballot |= workers[first + i].asked.value << i;
    return ballot;
  case SHUFFLE: source = base + (p.lane & (p.width - 1)); break;
  case SHUFFLE_UP: source = lane - p.lane >= base ? lane - p.lane : lane; break;
  case SHUFFLE_DOWN: source = lane + p.lane < base + p.width ? lane + p.lane : lane; break;
  case SHUFFLE_XOR: source = (lane ^ p.lane) < base + p.width ? lane ^ p.lane : lane; break;
  default: return 0;
  }
  known = p.mask >> source & 1;
  return known ? workers[first + source].asked.value : 0;
}

/* Releases the warp operation that lane `lane` of the warp at `first` waits for, if all lanes of its mask have come. */
static void release_warp(int first, int lane) {
  const post &p = workers[first + lane].asked;
  int lanes = threads - first < 32 ? threads - first : 32;
  unsigned mask = p.mask & (lanes == 32 ? ~0u : (1u << lanes) - 1);
  for (int i = 0; i < lanes; i++) {
    if (!(mask >> i & 1)) continue;
    const worker &w = workers[first + i];
    if (w.at == DONE) {
      complain("thread %d waits in %s at %s:%d for lane %d, which has ended", first + lane, op_names[p.what], p.file,
               p.line, i);
      return;
    }
    if (w.at != WAITING) return;
    const post &q = w.asked;
    if (q.what <= SYNC_BLOCK_OR) return; /* a deadlock unless somebody still moves: found when nobody does */
    if (q.what != p.what || q.mask != p.mask || q.width != p.width || q.line != p.line) {
      complain("lanes of one warp are in different operations: thread %d in %s at %s:%d, thread %d in %s at %s:%d",
               first + lane, op_names[p.what], p.file, p.line, first + i, op_names[q.what], q.file, q.line);
      return;
    }
  }
  for (int i = 0; i < lanes; i++)
    if (mask >> i & 1) {
      bool known = true;
      workers[first + i].answer = answer_of(first, i, known);
      if (!known)
        complain("thread %d: %s at %s:%d reads a lane that is not in the mask", first + i, op_names[p.what], p.file,
                 p.line);
    }
  for (int i = 0; i < lanes; i++)
    if (mask >> i & 1) workers[first + i].at = READY;
}

/* Nobody can move: lets the block barrier go if all wait there, else says who waits where. */
static void release_block() {
  const post &p = workers[0].asked;
  uint64_t any = 0;
  for (int i = 0; i < threads; i++) {
    const worker &w = workers[i];
    if (w.at == DONE || workers[0].at == DONE) {
      int waits = 0;
      while (workers[waits].at == DONE)
        waits++;
      const post &q = workers[waits].asked;
      complain("divergent barrier: thread %d waits in %s at %s:%d, another thread has ended", waits, op_names[q.what],
               q.file, q.line);
      return;
    }
    if (w.asked.what != p.what || w.asked.line != p.line || p.what > SYNC_BLOCK_OR) {
      complain("divergent barrier: thread 0 waits in %s at %s:%d, thread %d in %s at %s:%d", op_names[p.what], p.file,
               p.line, i, op_names[w.asked.what], w.asked.file, w.asked.line);
      return;
    }
    any |= w.asked.value;
  }
  for (int i = 0; i < threads; i++) {
    workers[i].answer = any;
    workers[i].at = READY;
  }
}

/* ---- running ---- */
static void thread_main() {
  body_of_launch->run();
  workers[current].at = DONE;
  fiber_leave(workers[current].f);
}

static void enter(int t, dim3 block_dim) {
  current = t;
  here.thread =
      dim3((unsigned)t % block_dim.x, (unsigned)t / block_dim.x % block_dim.y, (unsigned)t / block_dim.x / block_dim.y);
  fiber_enter(workers[t].f);
}

/* Lets every thread of the warp that can move go on until it waits; true if one did. */
static bool run_warp(int warp, dim3 block_dim) {
  int first = warp * 32, lanes = threads - first < 32 ? threads - first : 32, order[32];
  bool moved = false;
  make_order(order, lanes);
  for (int i = 0; i < lanes && !broken; i++)
    if (workers[first + order[i]].at == READY) {
      enter(first + order[i], block_dim);
      moved = true;
    }
  for (int i = 0; i < lanes && !broken; i++)
    if (workers[first + i].at == WAITING && workers[first + i].asked.what > SYNC_BLOCK_OR) release_warp(first, i);
  return moved;
}

static void run_block(dim3 block_dim) {
  int warps = (threads + 31) / 32, order[MAX_THREADS / 32], done = 0;
  for (int t = 0; t < threads; t++) {
    fiber_start(workers[t].f, thread_main);
    workers[t].at = READY;
  }
  while (!broken && done < threads) {
    bool moved = false;
    make_order(order, warps);
    /* Forward and reverse run a warp as far as it can go before the next; random lets warps drift apart. */
    for (int i = 0; i < warps && !broken; i++)
      while (run_warp(order[i], block_dim)) {
        moved = true;
        if (broken || (order_kind == CMKD_SIMT_RANDOM && random_below(4) == 0)) break;
      }
    done = 0;
    for (int t = 0; t < threads; t++)
      done += workers[t].at == DONE;
    if (!moved && done < threads && !broken) release_block();
  }
}

static void free_shared() {
  for (int i = 0; i < variables; i++)
    free(variable_list[i].memory);
  free(dynamic_memory);
  variables = 0;
  dynamic_memory = nullptr;
}

void launch(const char *name, dim3 grid, dim3 block, size_t dynamic_bytes, command &body) {
  kernel_name = name;
  broken = false;
  if (simt_fails_now()) {
    complain("unspecified launch failure");
    return;
  }
  size_t count = (size_t)block.x * block.y * block.z, blocks = (size_t)grid.x * grid.y * grid.z;
  if (count == 0 || count > (size_t)MAX_THREADS || block.z > 64) {
    complain("a block of %zu threads", count);
    return;
  }
  if (blocks == 0 || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) {
    complain("a grid of %u x %u x %u", grid.x, grid.y, grid.z);
    return;
  }
  if (dynamic_bytes > 227 * 1024) {
    complain("%zu bytes of dynamic shared memory", dynamic_bytes);
    return;
  }
  threads = (int)count;
  for (int t = 0; t < threads; t++)
    if (!workers[t].f.stack && !fiber_create(workers[t].f)) {
      complain("out of memory for the stack of thread %d", t);
      return;
    }
  int *order = (int *)malloc(blocks * sizeof *order);
  if (!order) {
    complain("out of memory");
    return;
  }
  make_order(order, (int)blocks);
  body_of_launch = &body;
  for (size_t i = 0; i < blocks && !broken; i++) {
    unsigned b = (unsigned)order[i];
    here.block = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    here.block_dim = block;
    here.grid_dim = grid;
    shared_bytes = dynamic_bytes;
    if (dynamic_bytes && posix_memalign(&dynamic_memory, 128, dynamic_bytes)) {
      dynamic_memory = nullptr;
      complain("out of memory");
      break;
    }
    if (dynamic_bytes) memset(dynamic_memory, 0xFF, dynamic_bytes);
    run_block(block);
    if (shared_bytes > counts.shared_max) counts.shared_max = shared_bytes;
    free_shared();
  }
  free(order);
  counts.launches++;
  counts.blocks += (long)blocks;
  if (threads > counts.threads_max) counts.threads_max = threads;
}
} // namespace simt

bool simt_broken() { return simt::broken; }
void simt_mend() { simt::broken = false; }
const char *simt_problem_text() { return simt::problem; }

extern "C" {
void cmkd_simt_order(int order, unsigned seed) {
  simt::order_kind = order;
  simt::random_state = seed;
}
const char *cmkd_simt_problem(void) {
  static char text[sizeof simt::problem];
  memcpy(text, simt::problem, sizeof text);
  simt::problem[0] = 0;
  return text;
}
cmkd_simt_counts cmkd_simt_counted(void) { return simt::counts; }
void cmkd_simt_count_reset(void) { simt::counts = cmkd_simt_counts{}; }
}
