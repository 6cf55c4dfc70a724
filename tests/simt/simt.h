/* SIMT on a CPU: what a CUDA kernel source sees when it is compiled for the host with -DCMKD_SIMT
 * (kernels/cuda/device.h includes this instead of the toolkit's headers). A block's threads are fibers (simt.cpp);
 * blocks run one after another. What it checks:
 *   - every __syncthreads is reached by all threads of the block at the same source line, every warp operation by all
 * lanes of its mask;
 *   - shuffles name a lane inside the warp and inside the mask; launches fit a real device's limits;
 *   - shared memory is a fresh heap block of the exact size, filled with 0xFF, for every thread block: AddressSanitizer
 * sees overruns, and reading what was never written gives NaN or -1. Threads run in forward, reverse or random order
 * between barriers, so a missing barrier changes the result in one of them. What it won't do: cooperative groups,
 * textures, cp.async, several blocks at once, time. No CUDA toolkit is needed; half and bfloat16 come from simt_half.h,
 * tensor cores (nvcuda::wmma) from simt_mma.h. Not thread-safe. */
#ifndef CMKD_TESTS_SIMT_SIMT_H
#define CMKD_TESTS_SIMT_SIMT_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tuple>
#include "tests/simt/runtime.h"
#include "tests/simt/simt_half.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
typedef dim3 uint3;
struct float4 {
  float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }

namespace simt {

struct place {
  dim3 thread, block, block_dim, grid_dim;
};
extern place here; /* of the running thread */

enum op { SYNC_BLOCK, SYNC_BLOCK_OR, SYNC_WARP, BALLOT, SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };
/* Stops the running thread until all that must take part have arrived; gives this thread's result. */
uint64_t meet(op what, unsigned mask, uint64_t value, int lane, int width, const char *file, int line);
/* Ends the launch with this line unless `holds`. */
void require(bool holds, const char *rule);
/* A variable in shared memory: the same address for all threads of a block, told apart by `key`. */
void *shared(const void *key, size_t bytes);
void *dynamic_shared();

/* Runs a launch to its end, now. */
void launch(const char *name, dim3 grid, dim3 block, size_t dynamic_bytes, command &body);
/* Arguments are copied when the launch is queued, as on a device. */
template <class... P> struct launch_command : command {
  struct thread_body : command {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    thread_body(void (*k)(P...), P... a) : kernel(k), arguments(a...) {}
    void run() override { std::apply(kernel, arguments); }
  } body;
  const char *name;
  dim3 grid, block;
  size_t bytes;
  launch_command(const char *n, dim3 g, dim3 b, size_t d, void (*k)(P...), P... a)
      : body(k, a...), name(n), grid(g), block(b), bytes(d) {}
  void run() override { launch(name, grid, block, bytes, body); }
};
template <class... P, class... A> void launch_kernel(cudaStream_t stream, const char *name, dim3 grid, dim3 block,
                                                     size_t bytes, void (*kernel)(P...), A... arguments) {
  submit_kernel(stream, (const void *)kernel, name,
                new launch_command<P...>(name, grid, block, bytes, kernel, (P)arguments...));
}

template <class T> uint64_t to_bits(T v) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t b = 0;
  memcpy(&b, &v, sizeof v);
  return b;
}
template <class T> T from_bits(uint64_t b) {
  T v;
  memcpy(&v, &b, sizeof v);
  return v;
}
} // namespace simt

#define threadIdx (simt::here.thread)
#define blockIdx (simt::here.block)
#define blockDim (simt::here.block_dim)
#define gridDim (simt::here.grid_dim)
#define warpSize 32

#define __syncthreads() simt::meet(simt::SYNC_BLOCK, ~0u, 0, 0, 32, __FILE__, __LINE__)
#define __syncthreads_or(p) ((int)simt::meet(simt::SYNC_BLOCK_OR, ~0u, (p) ? 1 : 0, 0, 32, __FILE__, __LINE__))
#define __syncwarp() simt::meet(simt::SYNC_WARP, ~0u, 0, 0, 32, __FILE__, __LINE__)
#define __ballot_sync(mask, p) ((unsigned)simt::meet(simt::BALLOT, mask, (p) ? 1 : 0, 0, 32, __FILE__, __LINE__))
#define __any_sync(mask, p) (__ballot_sync(mask, p) != 0)
#define __all_sync(mask, p) (__ballot_sync(mask, !(p)) == 0)

#define CMKD_SIMT_SHUFFLE(name, what) \
  template <class T> T name(unsigned mask, T value, int lane, int width = 32, const char *file = __builtin_FILE(), \
                            int line = __builtin_LINE()) { \
    return simt::from_bits<T>(simt::meet(simt::what, mask, simt::to_bits(value), lane, width, file, line)); \
  }
CMKD_SIMT_SHUFFLE(__shfl_sync, SHUFFLE)
CMKD_SIMT_SHUFFLE(__shfl_up_sync, SHUFFLE_UP)
CMKD_SIMT_SHUFFLE(__shfl_down_sync, SHUFFLE_DOWN)
CMKD_SIMT_SHUFFLE(__shfl_xor_sync, SHUFFLE_XOR)

/* Fibers never run at the same time, so plain arithmetic is atomic and fences are nothing. */
static inline void __threadfence() {}
template <class T, class V> T atomicAdd(T *p, V v) {
  T old = *p;
  *p = (T)(old + (T)v);
  return old;
}
template <class T, class V> T atomicMin(T *p, V v) {
  T old = *p;
  if ((T)v < old) *p = (T)v;
  return old;
}
template <class T, class V> T atomicMax(T *p, V v) {
  T old = *p;
  if ((T)v > old) *p = (T)v;
  return old;
}

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
static inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
static inline float __uint_as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline float __fmul_rn(float a, float b) { return a * b; } /* the build contracts nothing */
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }

#define CMKD_SHARED(type, name, count) \
  static const char name##_key = 0; \
  type *const name = (type *)simt::shared(&name##_key, sizeof(type) * (size_t)(count))
#define CMKD_DYNAMIC_SHARED(name) unsigned char *const name = (unsigned char *)simt::dynamic_shared()
#define CMKD_LAUNCH(kernel, grid, block, smem, stream, ...) \
  simt::launch_kernel(stream, #kernel, grid, block, smem, kernel, __VA_ARGS__)
#define CMKD_SHARED_LIMIT(kernel, bytes) ((bytes) <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue)
#include "tests/simt/simt_mma.h"
#endif
