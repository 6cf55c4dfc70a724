/* Architectures by name. */
#ifndef CMKD_NETS_REGISTRY_H
#define CMKD_NETS_REGISTRY_H
#include "cmkd/status.h"
#include "kernels/graph.h"
#include "nets/shape.h"

/* Builds the operation list of `arch`. An unknown name is CMKD_ERR_USAGE and suggests the nearest. Free with
 * cmkd_graph_free. */
cmkd_status cmkd_net_build(const char *arch, cmkd_net_shape shape, cmkd_graph **out, cmkd_error *err);
/* All names, NULL-terminated, in the order of the literature. */
const char *const *cmkd_net_names(void);
/* Side of the square images that `arch` is published for (32, 224); 0: unknown name. */
int cmkd_net_side(const char *arch);
#endif
