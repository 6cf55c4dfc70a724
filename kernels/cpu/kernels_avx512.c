/* The CPU backend's inner loops compiled for AVX-512; reached through cmkd_cpu_kernels_get() only. */
#include "kernels/cpu/kernels.h"
#include <immintrin.h>

#define V 16
static inline __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1); }
static inline __m512 load_part(const float *p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
static inline void store_part(float *p, __m512 v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
#include "kernels/cpu/conv/direct.h"
#include "kernels/cpu/norm_impl.h"
#include "kernels/cpu/pool_impl.h"

const cmkd_cpu_kernels cmkd_cpu_kernels_avx512 = {
    "avx512", 2 * V,        conv_run,    conv_wgrad, depth_run,           depth_wgrad,
    moments,  affine,       norm_reduce, norm_apply, channel_sums,        add,
    add_act,  act_backward, sgd,         max_window, max_window_backward, add_scaled};
