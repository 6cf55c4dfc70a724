/* Makes the plans of direct convolution (direct.h), and puts weights into the order in which those read them. */
#ifndef CMKD_KERNELS_CPU_CONV_PLAN_H
#define CMKD_KERNELS_CPU_CONV_PLAN_H
#include <stddef.h>
#include "kernels/cpu/conv/direct.h"
#include "kernels/cpu/conv/geometry.h"

/* Output channels that are packed and unpacked together. Threads that share a layer take slices of so many. */
#define CMKD_CONV_SLICE 16

/* Destination pixels at one position modulo the stride: they share their taps, but for the image's edges. */
typedef struct cmkd_stride_phase {
  int taps;
  int64_t weights; /* where the phase's packed weights begin */
} cmkd_stride_phase;

typedef struct cmkd_direct_plan {
  cmkd_conv_geometry g;
  int depthwise;
  int block;                /* output channels packed together: cmkd_cpu_kernels.channel_block */
  cmkd_direct_pass pass;    /* its arrays are the plan's */
  int *tap;                 /* kernel_y * kw + kernel_x of every tap, in packed order, phase by phase */
  cmkd_stride_phase *phase; /* (phases); backward-data only: a forward pass is one phase */
  int phases;
  size_t floats; /* packed weights */
} cmkd_direct_plan;

/* 1 on success; 0 when out of memory, and the plan must be freed nevertheless. */
int cmkd_direct_plan_forward(const cmkd_conv_geometry *geometry, int block, cmkd_direct_plan *plan);
int cmkd_direct_plan_backward(const cmkd_conv_geometry *geometry, int block, cmkd_direct_plan *plan);
/* A plan of zeros may be freed. */
void cmkd_direct_plan_free(cmkd_direct_plan *plan);

/* plain (oc, ic / groups, kh, kw), output channels [first, first + count) -> packed (plan->floats), whose padding is
 * left alone and must be zeros. Each for the plan of its direction. */
void cmkd_direct_pack_forward(const cmkd_direct_plan *plan, int first, int count, const float *plain, float *packed);
void cmkd_direct_pack_backward(const cmkd_direct_plan *plan, int first, int count, const float *plain, float *packed);
/* plain = sum of the gradients of all `workers`, packed like the forward weights, in that order; output channels as
 * above. */
void cmkd_direct_unpack_grad(const cmkd_direct_plan *plan, const float *const *packed, int workers, int first,
                             int count, float *plain);
#endif
