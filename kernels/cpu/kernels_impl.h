/* The table of kernels.h for the instruction set that the including file is compiled for: included by kernels_base.c,
 * kernels_avx2.c and kernels_avx512.c, which define KERNELS_TABLE and KERNELS_NAME and differ in compiler flags (see
 * vector.h). */
#include "kernels/cpu/conv/direct_impl.h"
#include "kernels/cpu/elementwise_impl.h"
#include "kernels/cpu/norm_impl.h"
#include "kernels/cpu/pool_impl.h"
#include "kernels/cpu/sgd_impl.h"

const cmkd_cpu_kernels KERNELS_TABLE = {.name = KERNELS_NAME,
                                        .channel_block = BLOCK,
                                        .conv_run = conv_run,
                                        .conv_wgrad = conv_wgrad,
                                        .depth_run = depth_run,
                                        .depth_wgrad = depth_wgrad,
                                        .moments = moments,
                                        .affine = affine,
                                        .norm_backward_sums = norm_backward_sums,
                                        .norm_backward = norm_backward,
                                        .channel_sums = channel_sums,
                                        .add = add,
                                        .add_act = add_act,
                                        .act_backward = act_backward,
                                        .sgd = sgd,
                                        .max_window = max_window,
                                        .max_window_backward = max_window_backward,
                                        .add_scaled = add_scaled};
