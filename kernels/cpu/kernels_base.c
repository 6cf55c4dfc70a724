/* The CPU backend's inner loops for any machine, and the choice between the instruction sets. */
#define KERNELS_TABLE cmkd_cpu_kernels_base
#define KERNELS_NAME "baseline"
#include "kernels/cpu/kernels_impl.h"
#include "base/cpu.h"

const cmkd_cpu_kernels *cmkd_cpu_kernels_get(void) {
  switch (cmkd_cpu_isa()) {
  case CMKD_ISA_AVX512: return &cmkd_cpu_kernels_avx512;
  case CMKD_ISA_AVX2: return &cmkd_cpu_kernels_avx2;
  default: return &cmkd_cpu_kernels_base;
  }
}
