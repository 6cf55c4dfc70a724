/* The CUDA dialect of this folder. Every .cu file here compiles twice: with nvcc for a device, and with g++ -DCMKD_SIMT
 * for the emulation in tests/simt. So kernels launch through CMKD_LAUNCH, declare shared memory through the macros
 * below, give full warp masks, and use no CUB, cooperative groups, inline PTX (but for one load in conv/mma.h) or
 * printf. */
#ifndef CMKD_KERNELS_CUDA_DEVICE_H
#define CMKD_KERNELS_CUDA_DEVICE_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/status.h"
#include "cmkd/weights.h"
#ifdef CMKD_SIMT
#include "tests/simt/simt.h"
#define CMKD_NOINLINE
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>
#define CMKD_NOINLINE __noinline__
#define CMKD_SHARED(type, name, count) __shared__ type name[count]
#define CMKD_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define CMKD_LAUNCH(kernel, grid, block, smem, stream, ...) kernel<<<grid, block, smem, stream>>>(__VA_ARGS__)
/* More than 48 KB of dynamic shared memory must be asked for. */
#define CMKD_SHARED_LIMIT(kernel, bytes) \
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes))
#endif

#define CMKD_WARP 0xFFFFFFFFu

/* Element i of an array of CMKD_F32, CMKD_F16 or CMKD_BF16 as float. The branch is the same for all threads of a
 * launch. */
static __device__ __forceinline__ float load_float(const void *array, int dtype, int64_t i) {
  if (dtype == CMKD_F16) return __half2float(((const __half *)array)[i]);
  if (dtype == CMKD_BF16) return __bfloat162float(((const __nv_bfloat16 *)array)[i]);
  return ((const float *)array)[i];
}

static inline int float_dtype(cmkd_dtype dtype) { return dtype == CMKD_F32 || dtype == CMKD_F16 || dtype == CMKD_BF16; }

/* The status of the launches since the last call. */
static inline cmkd_status launch_status(const char *what, cmkd_error *err) {
  cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? CMKD_OK : cmkd_fail(err, CMKD_ERR_DEVICE, "%s: %s", what, cudaGetErrorString(error));
}
#endif
