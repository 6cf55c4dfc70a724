/* The operations of a network that are neither convolution nor batch norm: pools, additions, activations, and those
 * that only rearrange channels; forwards and backwards, on the calling thread. */
#ifndef CMKD_KERNELS_CPU_OPS_H
#define CMKD_KERNELS_CPU_OPS_H
#include "kernels/cpu/kernels.h"

/* One operation on n images. */
typedef struct cmkd_cpu_op_call {
  const cmkd_cpu_kernels *kernels;
  const cmkd_graph *graph;
  const cmkd_op *op;
  int n;
  const float *in[2]; /* values of op->in[0], op->in[1] (or NULL), each (n, h, w, c) of its shape */
} cmkd_cpu_op_call;

/* out (n, h, w, c) of the output's shape. */
void cmkd_cpu_op_forward(const cmkd_cpu_op_call *call, float *out);
/* din[i] = gradient of in[i], where din[i] is not NULL; added to what is there if accumulate[i]. out: the operation's
 * own result, for masks; dout: its gradient. */
void cmkd_cpu_op_backward(const cmkd_cpu_op_call *call, const float *out, const float *dout, float *const din[2],
                          const int accumulate[2]);
#endif
