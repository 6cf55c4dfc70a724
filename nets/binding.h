/* Which tensor of a weight file is which parameter. Private to nets/. */
#ifndef CMKD_NETS_BINDING_H
#define CMKD_NETS_BINDING_H
#include "cmkd/status.h"
#include "cmkd/weights.h"
#include "kernels/graph.h"

typedef struct cmkd_net_binding {
  const cmkd_tensor **tensor;     /* (params), NULL where the file has none */
  const cmkd_tensor **unexpected; /* (unexpected_count) */
  int unexpected_count;
} cmkd_net_binding;
/* By name alone: shapes are not compared. The tensors are the file's. Free with cmkd_net_unbind. */
cmkd_status cmkd_net_bind(const cmkd_graph *graph, const cmkd_weights *weights, cmkd_net_binding *out, cmkd_error *err);
void cmkd_net_unbind(cmkd_net_binding *bound);
/* 1 where rank and every side are the same. */
int cmkd_net_same_shape(const cmkd_param *param, const cmkd_tensor *tensor);
#endif
