/* Which architecture a weight file is of, by its tensors alone. */
#ifndef CMKD_NETS_FITS_H
#define CMKD_NETS_FITS_H
#include "cmkd/weights.h"
#include "kernels/graph.h"
#include "nets/shape.h"

/* The architectures that a weight file fits exactly (names and shapes), NULL-terminated, at most CMKD_NET_FITS; returns
 * how many. */
#define CMKD_NET_FITS 8
int cmkd_net_fits(const cmkd_weights *weights, const char *fits[CMKD_NET_FITS + 1]);

/* Sets classes and channels of `shape` to those of the file's classifier and first layer, taking the file for one of
 * graph->arch. 0: the file has no such tensors, or absurd ones, and `shape` is as it was. */
int cmkd_net_read_shape(const cmkd_graph *graph, const cmkd_weights *weights, cmkd_net_shape *shape);
#endif
