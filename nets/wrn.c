/* Wide ResNets (Zagoruyko and Komodakis 2016) of the CIFAR toolkits: pre-activation blocks, (depth - 4) / 6 a stage,
 * widths 16 - 16k - 32k - 64k, no dropout. Where the width changes, block and shortcut share the activated input. */
#include "nets/families.h"

static int block(cmkd_net_builder *b, int x, int out, int stride) {
  int changes = cmkd_net_channels(b, x) != out;
  int active = cmkd_net_norm(b, "bn1", x, -1, CMKD_ACT_RELU);
  int y = cmkd_net_conv(b, "conv1", active, out, 3, stride, 1);
  y = cmkd_net_norm(b, "bn2", y, -1, CMKD_ACT_RELU);
  y = cmkd_net_conv(b, "conv2", y, out, 3, 1, 1);
  return cmkd_net_add(b, y, changes ? cmkd_net_conv(b, "convShortcut", active, out, 1, stride, 0) : x, CMKD_ACT_NONE);
}

/* size: depth, k */
void cmkd_net_wrn(cmkd_net_builder *b, int x, const int *size) {
  b->linear_bias_init = CMKD_INIT_ZERO;
  x = cmkd_net_conv(b, "conv1", x, 16, 3, 1, 1);
  for (int stage = 1, width = 16 * size[1]; stage <= 3; stage++, width *= 2)
    for (int i = 0; i < (size[0] - 4) / 6; i++) {
      cmkd_net_scope(b, "block%d.layer.%d.", stage, i);
      x = block(b, x, width, stage > 1 && i == 0 ? 2 : 1);
    }
  cmkd_net_scope(b, "%s", "");
  x = cmkd_net_norm(b, "bn1", x, -1, CMKD_ACT_RELU);
  cmkd_net_classifier(b, "fc", cmkd_net_globalpool(b, x));
}
