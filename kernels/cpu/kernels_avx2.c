/* The CPU backend's inner loops for AVX2 with FMA; reached through cmkd_cpu_kernels_get() only. */
#define KERNELS_TABLE cmkd_cpu_kernels_avx2
#define KERNELS_NAME "avx2"
#include "kernels/cpu/kernels_impl.h"
