/* The operations of a network that are neither convolution nor batch norm: pools, additions, activations, channel
 * moves; forwards and backwards, on n images of one thread. */
#ifndef CMKD_KERNELS_CPU_OPS_H
#define CMKD_KERNELS_CPU_OPS_H
#include "kernels/cpu/kernels.h"

/* in: values of op->in[0], op->in[1] (or NULL), each (n, h, w, c) of its shape. */
void cmkd_cpu_op_forward(const cmkd_cpu_kernels *k, const cmkd_graph *graph, const cmkd_op *op, int n,
                         const float *const in[2], float *out);
/* din[i] (+)= gradient, where din[i] is not NULL; accumulate[i]: add to what is there. out: the op's own result, for
 * masks. */
void cmkd_cpu_op_backward(const cmkd_cpu_kernels *k, const cmkd_graph *graph, const cmkd_op *op, int n,
                          const float *const in[2], const float *out, const float *dout, float *const din[2],
                          const int accumulate[2]);
#endif
