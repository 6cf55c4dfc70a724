/* Wide ResNets (Zagoruyko and Komodakis 2016) of the CIFAR toolkits: pre-activation blocks, (depth - 4) / 6 a stage,
 * widths 16 - 16k - 32k - 64k, no dropout. Where the width changes, block and shortcut share the activated input. */
#include "nets/builder.h"

static int block(net_builder *b, int x, int out, int stride) {
  int changes = net_channels(b, x) != out;
  int active = net_norm(b, "bn1", x, -1, CMKD_ACT_RELU);
  int y = net_conv(b, "conv1", active, out, 3, stride, 1);
  y = net_norm(b, "bn2", y, -1, CMKD_ACT_RELU);
  y = net_conv(b, "conv2", y, out, 3, 1, 1);
  return net_add(b, y, changes ? net_conv(b, "convShortcut", active, out, 1, stride, 0) : x, CMKD_ACT_NONE);
}

/* size: depth, k */
void cmkd_net_wrn(net_builder *b, int x, const int *size) {
  b->linear_bias_init = CMKD_INIT_ZERO;
  x = net_conv(b, "conv1", x, 16, 3, 1, 1);
  for (int stage = 1, width = 16 * size[1]; stage <= 3; stage++, width *= 2)
    for (int i = 0; i < (size[0] - 4) / 6; i++) {
      net_scope(b, "block%d.layer.%d.", stage, i);
      x = block(b, x, width, stage > 1 && i == 0 ? 2 : 1);
    }
  net_scope(b, "%s", "");
  x = net_norm(b, "bn1", x, -1, CMKD_ACT_RELU);
  net_classifier(b, "fc", net_globalpool(b, x));
}
