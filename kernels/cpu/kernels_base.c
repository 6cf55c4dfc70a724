/* The CPU backend's inner loops compiled for baseline x86-64 (SSE2); also the dispatcher. */
#include "kernels/cpu/kernels.h"
#include "base/cpu.h"
#define V 4
#include "kernels/cpu/conv_impl.h"
#include "kernels/cpu/norm_impl.h"

const cmkd_cpu_kernels cmkd_cpu_kernels_base = {"baseline", 2 * V, conv_run, conv_wgrad, depth_run, depth_wgrad, moments, affine, norm_reduce, norm_apply, channel_sums, add, add_act, act_backward, sgd};

const cmkd_cpu_kernels *cmkd_cpu_kernels_get(void) {
  return cmkd_cpu_isa() >= CMKD_ISA_AVX2 ? &cmkd_cpu_kernels_avx2 : &cmkd_cpu_kernels_base;
}
