/* ResNets with four stages (He et al. 2016). Tensors are torchvision's, the stride of a bottleneck is in its 3x3
 * convolution. The `_cifar` members have a 3x3 stem without stride or pool and call their shortcut `shortcut`, their
 * classifier `linear`, as the CIFAR toolkits do. */
#include "nets/families.h"

static int shortcut_of(cmkd_net_builder *b, int x, int out, int stride, int cifar) {
  if (stride == 1 && cmkd_net_channels(b, x) == out) return x;
  int y = cmkd_net_conv(b, cifar ? "shortcut.0" : "downsample.0", x, out, 1, stride, 0);
  return cmkd_net_norm(b, cifar ? "shortcut.1" : "downsample.1", y, -1, CMKD_ACT_NONE);
}

static int basic_block(cmkd_net_builder *b, int x, int width, int stride, int cifar) {
  int y = cmkd_net_norm(b, "bn1", cmkd_net_conv(b, "conv1", x, width, 3, stride, 1), -1, CMKD_ACT_RELU);
  y = cmkd_net_conv(b, "conv2", y, width, 3, 1, 1);
  cmkd_net_declare_norm(b, "bn2", width);
  return cmkd_net_norm(b, "bn2", y, shortcut_of(b, x, width, stride, cifar), CMKD_ACT_RELU);
}

static int bottleneck(cmkd_net_builder *b, int x, int width, int stride, int cifar) {
  int y = cmkd_net_norm(b, "bn1", cmkd_net_conv(b, "conv1", x, width, 1, 1, 0), -1, CMKD_ACT_RELU);
  y = cmkd_net_norm(b, "bn2", cmkd_net_conv(b, "conv2", y, width, 3, stride, 1), -1, CMKD_ACT_RELU);
  y = cmkd_net_conv(b, "conv3", y, 4 * width, 1, 1, 0);
  cmkd_net_declare_norm(b, "bn3", 4 * width);
  return cmkd_net_norm(b, "bn3", y, shortcut_of(b, x, 4 * width, stride, cifar), CMKD_ACT_RELU);
}

/* size: blocks of the four stages, whether they are bottlenecks, whether it is a `_cifar` member */
void cmkd_net_resnet_imagenet(cmkd_net_builder *b, int x, const int *size) {
  int deep = size[4], cifar = size[5];
  x = cifar ? cmkd_net_conv(b, "conv1", x, 64, 3, 1, 1) : cmkd_net_conv(b, "conv1", x, 64, 7, 2, 3);
  x = cmkd_net_norm(b, "bn1", x, -1, CMKD_ACT_RELU);
  if (!cifar) x = cmkd_net_maxpool(b, x, 3, 2, 1);
  for (int stage = 0; stage < 4; stage++)
    for (int i = 0; i < size[stage]; i++) {
      int stride = stage && !i ? 2 : 1;
      cmkd_net_scope(b, "layer%d.%d.", stage + 1, i);
      x = deep ? bottleneck(b, x, 64 << stage, stride, cifar) : basic_block(b, x, 64 << stage, stride, cifar);
    }
  cmkd_net_scope(b, "%s", "");
  cmkd_net_classifier(b, cifar ? "linear" : "fc", cmkd_net_globalpool(b, x));
}
