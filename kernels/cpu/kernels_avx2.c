/* The CPU backend's inner loops compiled for AVX2 + FMA; reached through cmkd_cpu_kernels_get() only. */
#include "kernels/cpu/kernels.h"

#define V 8
#include "kernels/cpu/conv_impl.h"
#include "kernels/cpu/norm_impl.h"

const cmkd_cpu_kernels cmkd_cpu_kernels_avx2 = {"avx2", 2 * V, conv_run, conv_wgrad, depth_run, depth_wgrad, moments, affine, norm_reduce, norm_apply, channel_sums, add, add_act, act_backward, sgd};

