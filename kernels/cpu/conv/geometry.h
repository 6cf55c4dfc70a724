/* The shape of a convolution and how it is to be planned: what conv.h, direct.h's planner and dnnl.h share. */
#ifndef CMKD_KERNELS_CPU_CONV_GEOMETRY_H
#define CMKD_KERNELS_CPU_CONV_GEOMETRY_H
#include <stddef.h>
#include "kernels/cpu/kernels.h"

/* Input (n, ih, iw, ic), output (n, oh, ow, oc), weights (oc, ic / groups, kh, kw). */
typedef struct cmkd_conv_geometry {
  int ih, iw, ic, oh, ow, oc, kh, kw, stride, pad, groups;
  int plane; /* linear layers: h * w of the flattened input, whose weights are in (c, h, w) order; else 1 */
} cmkd_conv_geometry;

typedef struct cmkd_conv_options {
  const cmkd_cpu_kernels *kernels;
  int train;   /* plan the backward passes too */
  int dnnl;    /* let oneDNN compute where it can */
  int threads; /* how many may run the convolution at once */
} cmkd_conv_options;

/* Floats of an implementation's own weight layouts. backward, grad: 0 without training. */
typedef struct cmkd_conv_packed_sizes {
  size_t forward, backward, grad;
} cmkd_conv_packed_sizes;

/* Every channel a group of its own. */
static inline int cmkd_conv_depthwise(const cmkd_conv_geometry *g) {
  return g->groups > 1 && g->groups == g->ic && g->groups == g->oc;
}
/* Floats of one image. */
static inline size_t cmkd_conv_in_floats(const cmkd_conv_geometry *g) {
  return (size_t)g->ih * (size_t)g->iw * (size_t)g->ic;
}
static inline size_t cmkd_conv_out_floats(const cmkd_conv_geometry *g) {
  return (size_t)g->oh * (size_t)g->ow * (size_t)g->oc;
}
#endif
