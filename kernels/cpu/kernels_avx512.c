/* The CPU backend's inner loops for AVX-512; reached through cmkd_cpu_kernels_get() only. */
#define KERNELS_TABLE cmkd_cpu_kernels_avx512
#define KERNELS_NAME "avx512"
#include "kernels/cpu/kernels_impl.h"
