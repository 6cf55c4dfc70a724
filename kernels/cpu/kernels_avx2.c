/* The CPU backend's inner loops compiled for AVX2 + FMA; reached through cmkd_cpu_kernels_get() only. */
#include "kernels/cpu/kernels.h"
#include <immintrin.h>

#define V 8
static const int32_t lane_masks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
static inline __m256i first_lanes(int n) { return _mm256_loadu_si256((const __m256i *)(lane_masks + 8 - n)); }
static inline __m256 load_part(const float *p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
static inline void store_part(float *p, __m256 v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
#include "kernels/cpu/conv/direct.h"
#include "kernels/cpu/norm_impl.h"
#include "kernels/cpu/pool_impl.h"

const cmkd_cpu_kernels cmkd_cpu_kernels_avx2 = {
    "avx2",  2 * V,        conv_run,    conv_wgrad, depth_run,           depth_wgrad,
    moments, affine,       norm_reduce, norm_apply, channel_sums,        add,
    add_act, act_backward, sgd,         max_window, max_window_backward, add_scaled};
