/* MobileNetV1 (Howard et al. 2017), width 1: depthwise 3x3 and pointwise 1x1 pairs, tensors named as in the ImageNet KD
 * toolkits. */
#include "nets/builder.h"

void cmkd_net_mobilenetv1(net_builder *b, int x, const int *size) {
  (void)size;
  static const int width[13] = {64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024};
  b->conv_init = CMKD_INIT_UNIFORM_FAN_IN;
  net_scope(b, "%s", "model.0.");
  x = net_norm(b, "1", net_conv(b, "0", x, 32, 3, 2, 1), -1, CMKD_ACT_RELU);
  for (int i = 0; i < 13; i++) {
    int in = net_channels(b, x), stride = i && width[i] != width[i - 1] ? 2 : 1;
    net_scope(b, "model.%d.", i + 1);
    x = net_norm(b, "1", net_conv_groups(b, "0", x, in, 3, stride, 1, in), -1, CMKD_ACT_RELU);
    x = net_norm(b, "4", net_conv(b, "3", x, width[i], 1, 1, 0), -1, CMKD_ACT_RELU);
  }
  net_scope(b, "%s", "");
  net_classifier(b, "fc", net_globalpool(b, x));
}
