/* The plan of a direct convolution pass, as plan.c makes it and the kernels of direct_impl.h run it. Data only.
 *
 * A pass forms every destination pixel as a sum over taps (kernel positions) of source channels times weights. The
 * forward pass reads the input and writes the output; the backward-data pass reads output gradients and writes input
 * gradients. A destination pixel's base is the source pixel that a tap of offset 0 reads. Images are NHWC float32.
 * Nothing is padded: destination pixels whose windows overhang the image on the same sides form a region, and a region
 * lists only the taps inside. */
#ifndef CMKD_KERNELS_CPU_CONV_DIRECT_H
#define CMKD_KERNELS_CPU_CONV_DIRECT_H
#include <stdint.h>
#include "kernels/graph.h"

/* Taps whose source floats lie side by side, read as one run. */
typedef struct cmkd_tap_run {
  int64_t offset; /* source floats from the destination pixel's base to the run */
  int length;     /* source floats */
  int weights;    /* where their weights begin: an index k into the region's packed weights */
} cmkd_tap_run;

/* Destination pixels (y0 + i * s, x0 + j * s), i < ny, j < nx, that share one list of taps. s is the forward stride in
 * a backward-data pass, else 1; it is no field, but inside the pass's dst_row and dst_col. */
typedef struct cmkd_conv_region {
  int ny, nx;
  int y0, x0;
  int k;                   /* source floats whose weights are packed together, >= the sum of the runs' lengths */
  int64_t base;            /* source offset of the base of the region's first pixel */
  int64_t weights;         /* offset of the region's weights in the packed weights */
  int runs;                /* length of run[] */
  const cmkd_tap_run *run; /* (runs) */
} cmkd_conv_region;

/* Weight gradients: output rows [y, y + ny) of nx pixels each, all of which read `length` source floats. */
typedef struct cmkd_wgrad_rect {
  int y, ny, nx;
  int length;
  int weights;  /* index k of the first source float's weights */
  int64_t src;  /* offset of the first source float in the source rows of an output row */
  int64_t ddst; /* offset of the first pixel in an output row */
} cmkd_wgrad_rect;

/* Packed weights: [group][block][k][B], B = cmkd_cpu_kernels.channel_block output channels, the last block
 * padded with zeros. Depthwise: [k][channels]. Strides are in floats. */
typedef struct cmkd_direct_pass {
  int groups;
  int outs;                       /* destination channels per group */
  int64_t src_row, src_col;       /* source: between destination pixels one down, one right */
  int64_t src_group, src_image;   /* source: between groups, images */
  int64_t dst_row, dst_col;       /* destination: between neighbouring pixels of one region (s is inside) */
  int64_t dst_y, dst_x;           /* destination: between neighbouring pixels of the image */
  int64_t dst_image;              /* destination: between images */
  int regions, rects;             /* lengths of region[], rect[] */
  const cmkd_conv_region *region; /* (regions) */
  const cmkd_tap_run *run;        /* the memory that the regions' runs lie in */
  const cmkd_wgrad_rect *rect;    /* (rects); forward passes only, else NULL */
} cmkd_direct_pass;

/* What happens to a finished sum before it is stored: act(sum + bias[channel] + add[same place as the destination]). */
typedef struct cmkd_epilogue {
  const float *bias; /* (destination channels), or NULL */
  const float *add;  /* like the destination, or NULL; may be the destination itself */
  cmkd_act act;
} cmkd_epilogue;
#endif
