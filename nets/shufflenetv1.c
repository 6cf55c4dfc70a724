/* ShuffleNetV1 (Zhang et al. 2018) of the CIFAR toolkits: 3 groups, widths 240-480-960, a 1x1 stem without stride. A
 * strided block concatenates its pooled input, others add it. */
#include "nets/families.h"

static int block(cmkd_net_builder *b, int x, int out, int stride, int first) {
  int groups = first ? 1 : 3, mid = out / 4; /* the stem's 24 channels are too few to group */
  int y = cmkd_net_norm(b, "bn1", cmkd_net_conv_groups(b, "conv1", x, mid, 1, 1, 0, groups), -1, CMKD_ACT_RELU);
  if (groups > 1) y = cmkd_net_shuffle(b, y, groups);
  y = cmkd_net_norm(b, "bn2", cmkd_net_conv_groups(b, "conv2", y, mid, 3, stride, 1, mid), -1, CMKD_ACT_RELU);
  y = cmkd_net_conv_groups(b, "conv3", y, out, 1, 1, 0, 3);
  if (stride == 1) return cmkd_net_norm(b, "bn3", y, x, CMKD_ACT_RELU);
  y = cmkd_net_norm(b, "bn3", y, -1, CMKD_ACT_NONE);
  return cmkd_net_act(b, cmkd_net_concat(b, y, cmkd_net_avgpool(b, x, 3, 2, 1)), CMKD_ACT_RELU);
}

void cmkd_net_shufflenetv1_cifar(cmkd_net_builder *b, int x, const int *size) {
  (void)size;
  static const int width[3] = {240, 480, 960}, blocks[3] = {4, 8, 4};
  b->conv_init = CMKD_INIT_UNIFORM_FAN_IN;
  x = cmkd_net_norm(b, "bn1", cmkd_net_conv(b, "conv1", x, 24, 1, 1, 0), -1, CMKD_ACT_RELU);
  for (int stage = 0; stage < 3; stage++)
    for (int i = 0; i < blocks[stage]; i++) {
      cmkd_net_scope(b, "layer%d.%d.", stage + 1, i);
      x = block(b, x, i ? width[stage] : width[stage] - cmkd_net_channels(b, x), i ? 1 : 2, !stage && !i);
    }
  cmkd_net_scope(b, "%s", "");
  cmkd_net_classifier(b, "linear", cmkd_net_globalpool(b, x));
}
