/* The CPU backend's inner loops compiled for baseline x86-64 (SSE2); also the dispatcher. */
#include "kernels/cpu/kernels.h"
#include "base/cpu.h"
#include <xmmintrin.h>

#define V 4
static inline __m128 load_part(const float *p, int n) {
  return n == 1 ? _mm_load_ss(p) : n == 2 ? _mm_set_ps(0, 0, p[1], p[0]) : _mm_set_ps(0, p[2], p[1], p[0]);
}
static inline void store_part(float *p, __m128 v, int n) {
  for (int i = 0; i < n; i++)
    p[i] = v[i];
}
#include "kernels/cpu/conv/direct.h"
#include "kernels/cpu/norm_impl.h"
#include "kernels/cpu/pool_impl.h"

const cmkd_cpu_kernels cmkd_cpu_kernels_base = {
    "baseline", 2 * V,        conv_run,    conv_wgrad, depth_run,           depth_wgrad,
    moments,    affine,       norm_reduce, norm_apply, channel_sums,        add,
    add_act,    act_backward, sgd,         max_window, max_window_backward, add_scaled};

const cmkd_cpu_kernels *cmkd_cpu_kernels_get(void) {
  const cmkd_isa isa = cmkd_cpu_isa();
  return isa == CMKD_ISA_AVX512 ? &cmkd_cpu_kernels_avx512
         : isa == CMKD_ISA_AVX2 ? &cmkd_cpu_kernels_avx2
                                : &cmkd_cpu_kernels_base;
}
