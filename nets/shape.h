/* What a network is built for. */
#ifndef CMKD_NETS_SHAPE_H
#define CMKD_NETS_SHAPE_H

typedef struct cmkd_net_shape {
  int height, width, channels; /* of the images */
  int classes;
} cmkd_net_shape;
#endif
