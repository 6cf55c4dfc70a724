/* The families of architectures, one file each. The registry lists their members. */
#ifndef CMKD_NETS_FAMILIES_H
#define CMKD_NETS_FAMILIES_H
#include "nets/builder.h"

/* Appends a network to `b`, which holds nothing yet but the image, tensor x. `size`: a few numbers (depth, width, ...)
 * that tell members of the family apart; each file says which. */
typedef void cmkd_net_family(cmkd_net_builder *b, int x, const int *size);
cmkd_net_family cmkd_net_resnet_cifar, cmkd_net_resnet_imagenet, cmkd_net_wrn, cmkd_net_vgg, cmkd_net_vgg_imagenet,
    cmkd_net_mobilenetv1, cmkd_net_mobilenetv2, cmkd_net_mobilenetv2_cifar, cmkd_net_shufflenetv1_cifar,
    cmkd_net_shufflenetv2_cifar;
#endif
