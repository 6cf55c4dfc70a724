/* Which tensor of a weight file is which parameter. Private to nets/. */
#ifndef CMKD_NETS_BINDING_H
#define CMKD_NETS_BINDING_H
#include "nets/net.h"

typedef struct net_binding {
  const cmkd_tensor **tensor;     /* (params), NULL where the file has none */
  const cmkd_tensor **unexpected; /* (unexpected_count) */
  int unexpected_count;
} net_binding;
cmkd_status cmkd_net_bind(const cmkd_graph *graph, const cmkd_weights *weights, net_binding *out, cmkd_error *err);
void cmkd_net_unbind(net_binding *bound);
#endif
