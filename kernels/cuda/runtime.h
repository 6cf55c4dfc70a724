/* The CUDA runtime as C files here see it: the toolkit's, or the emulation's in tests/simt. */
#ifndef CMKD_KERNELS_CUDA_RUNTIME_H
#define CMKD_KERNELS_CUDA_RUNTIME_H
#ifdef CMKD_SIMT
#include "tests/simt/runtime.h"
#else
#include <cuda_runtime_api.h>
#endif
#endif
