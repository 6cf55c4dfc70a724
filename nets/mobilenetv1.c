/* MobileNetV1 (Howard et al. 2017), width 1: depthwise 3x3 and pointwise 1x1 pairs, tensors named as in the ImageNet KD
 * toolkits. */
#include "nets/families.h"

void cmkd_net_mobilenetv1(cmkd_net_builder *b, int x, const int *size) {
  (void)size;
  static const int width[13] = {64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024};
  b->conv_init = CMKD_INIT_UNIFORM_FAN_IN;
  cmkd_net_scope(b, "%s", "model.0.");
  x = cmkd_net_norm(b, "1", cmkd_net_conv(b, "0", x, 32, 3, 2, 1), -1, CMKD_ACT_RELU);
  for (int i = 0; i < 13; i++) {
    int in = cmkd_net_channels(b, x), stride = i && width[i] != width[i - 1] ? 2 : 1;
    cmkd_net_scope(b, "model.%d.", i + 1);
    x = cmkd_net_norm(b, "1", cmkd_net_conv_groups(b, "0", x, in, 3, stride, 1, in), -1, CMKD_ACT_RELU);
    x = cmkd_net_norm(b, "4", cmkd_net_conv(b, "3", x, width[i], 1, 1, 0), -1, CMKD_ACT_RELU);
  }
  cmkd_net_scope(b, "%s", "");
  cmkd_net_classifier(b, "fc", cmkd_net_globalpool(b, x));
}
