/* ShuffleNetV2 (Ma et al. 2018) at width 1 of the CIFAR toolkits: a 1x1 stem without stride or pool; a plain block
 * works on the second half of the channels, a strided one on two whole branches; both end in a shuffle. */
#include "nets/families.h"

static int plain_block(cmkd_net_builder *b, int x) {
  int half = cmkd_net_channels(b, x) / 2;
  int keep = cmkd_net_slice(b, x, 0, half), y = cmkd_net_slice(b, x, half, half);
  y = cmkd_net_norm(b, "bn1", cmkd_net_conv(b, "conv1", y, half, 1, 1, 0), -1, CMKD_ACT_RELU);
  y = cmkd_net_norm(b, "bn2", cmkd_net_conv_groups(b, "conv2", y, half, 3, 1, 1, half), -1, CMKD_ACT_NONE);
  y = cmkd_net_norm(b, "bn3", cmkd_net_conv(b, "conv3", y, half, 1, 1, 0), -1, CMKD_ACT_RELU);
  return cmkd_net_shuffle(b, cmkd_net_concat(b, keep, y), 2);
}

static int down_block(cmkd_net_builder *b, int x, int out) {
  int in = cmkd_net_channels(b, x), half = out / 2;
  int left = cmkd_net_norm(b, "bn1", cmkd_net_conv_groups(b, "conv1", x, in, 3, 2, 1, in), -1, CMKD_ACT_NONE);
  left = cmkd_net_norm(b, "bn2", cmkd_net_conv(b, "conv2", left, half, 1, 1, 0), -1, CMKD_ACT_RELU);
  int right = cmkd_net_norm(b, "bn3", cmkd_net_conv(b, "conv3", x, half, 1, 1, 0), -1, CMKD_ACT_RELU);
  right = cmkd_net_norm(b, "bn4", cmkd_net_conv_groups(b, "conv4", right, half, 3, 2, 1, half), -1, CMKD_ACT_NONE);
  right = cmkd_net_norm(b, "bn5", cmkd_net_conv(b, "conv5", right, half, 1, 1, 0), -1, CMKD_ACT_RELU);
  return cmkd_net_shuffle(b, cmkd_net_concat(b, left, right), 2);
}

void cmkd_net_shufflenetv2_cifar(cmkd_net_builder *b, int x, const int *size) {
  (void)size;
  static const int width[3] = {116, 232, 464}, blocks[3] = {3, 7, 3};
  b->conv_init = CMKD_INIT_UNIFORM_FAN_IN;
  x = cmkd_net_norm(b, "bn1", cmkd_net_conv(b, "conv1", x, 24, 1, 1, 0), -1, CMKD_ACT_RELU);
  for (int stage = 0; stage < 3; stage++)
    for (int i = 0; i <= blocks[stage]; i++) {
      cmkd_net_scope(b, "layer%d.%d.", stage + 1, i);
      x = i ? plain_block(b, x) : down_block(b, x, width[stage]);
    }
  cmkd_net_scope(b, "%s", "");
  x = cmkd_net_norm(b, "bn2", cmkd_net_conv(b, "conv2", x, 1024, 1, 1, 0), -1, CMKD_ACT_RELU);
  cmkd_net_classifier(b, "linear", cmkd_net_globalpool(b, x));
}
