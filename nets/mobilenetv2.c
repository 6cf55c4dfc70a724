/* MobileNetV2 (Sandler et al. 2018): inverted residuals. `mobilenetv2_cifar` is the KD literature's: width 0.5, ReLU,
 * the second stage not strided, T = 6 in every stage but the first. `mobilenetv2` is torchvision's at width 1, with
 * ReLU6; its dropout is left out. */
#include "nets/families.h"

typedef struct stage {
  int expand, width, blocks, stride;
} stage;
static const stage stages[7] = {{1, 16, 1, 1}, {6, 24, 2, 2},  {6, 32, 3, 2}, {6, 64, 4, 2},
                                {6, 96, 3, 1}, {6, 160, 3, 2}, {6, 320, 1, 1}};

/* pointwise - depthwise - pointwise, the last one linear; the input is added where shapes allow. Here expansion by 1 is
 * a layer too. */
static int inverted_residual(cmkd_net_builder *b, int x, int expand, int out, int stride) {
  int in = cmkd_net_channels(b, x), mid = in * expand, residual = stride == 1 && in == out ? x : -1;
  int y = cmkd_net_norm(b, "1", cmkd_net_conv(b, "0", x, mid, 1, 1, 0), -1, CMKD_ACT_RELU);
  y = cmkd_net_norm(b, "4", cmkd_net_conv_groups(b, "3", y, mid, 3, stride, 1, mid), -1, CMKD_ACT_RELU);
  return cmkd_net_norm(b, "7", cmkd_net_conv(b, "6", y, out, 1, 1, 0), residual, CMKD_ACT_NONE);
}

void cmkd_net_mobilenetv2_cifar(cmkd_net_builder *b, int x, const int *size) {
  (void)size;
  b->linear_init = CMKD_INIT_NORMAL_001;
  b->linear_bias_init = CMKD_INIT_ZERO;
  cmkd_net_scope(b, "%s", "conv1.");
  x = cmkd_net_norm(b, "1", cmkd_net_conv(b, "0", x, 16, 3, 2, 1), -1, CMKD_ACT_RELU);
  for (int s = 0; s < 7; s++)
    for (int i = 0; i < stages[s].blocks; i++) {
      cmkd_net_scope(b, "blocks.%d.%d.conv.", s, i);
      x = inverted_residual(b, x, stages[s].expand, stages[s].width / 2, i == 0 && s != 1 ? stages[s].stride : 1);
    }
  cmkd_net_scope(b, "%s", "conv2.");
  x = cmkd_net_norm(b, "1", cmkd_net_conv(b, "0", x, 1280, 1, 1, 0), -1, CMKD_ACT_RELU);
  cmkd_net_scope(b, "%s", "");
  cmkd_net_classifier(b, "classifier.0", cmkd_net_globalpool(b, x));
}

/* torchvision's spelling, which has no layer for expansion by 1. */
static int inverted_residual6(cmkd_net_builder *b, int x, int expand, int out, int stride) {
  int in = cmkd_net_channels(b, x), mid = in * expand, residual = stride == 1 && in == out ? x : -1, y = x;
  if (expand == 1) {
    y = cmkd_net_norm(b, "0.1", cmkd_net_conv_groups(b, "0.0", y, mid, 3, stride, 1, mid), -1, CMKD_ACT_RELU6);
    return cmkd_net_norm(b, "2", cmkd_net_conv(b, "1", y, out, 1, 1, 0), residual, CMKD_ACT_NONE);
  }
  y = cmkd_net_norm(b, "0.1", cmkd_net_conv(b, "0.0", x, mid, 1, 1, 0), -1, CMKD_ACT_RELU6);
  y = cmkd_net_norm(b, "1.1", cmkd_net_conv_groups(b, "1.0", y, mid, 3, stride, 1, mid), -1, CMKD_ACT_RELU6);
  return cmkd_net_norm(b, "3", cmkd_net_conv(b, "2", y, out, 1, 1, 0), residual, CMKD_ACT_NONE);
}

void cmkd_net_mobilenetv2(cmkd_net_builder *b, int x, const int *size) {
  (void)size;
  b->linear_init = CMKD_INIT_NORMAL_001;
  b->linear_bias_init = CMKD_INIT_ZERO;
  cmkd_net_scope(b, "%s", "features.0.");
  x = cmkd_net_norm(b, "1", cmkd_net_conv(b, "0", x, 32, 3, 2, 1), -1, CMKD_ACT_RELU6);
  for (int s = 0, index = 1; s < 7; s++)
    for (int i = 0; i < stages[s].blocks; i++, index++) {
      cmkd_net_scope(b, "features.%d.conv.", index);
      x = inverted_residual6(b, x, stages[s].expand, stages[s].width, i == 0 ? stages[s].stride : 1);
    }
  cmkd_net_scope(b, "%s", "features.18.");
  x = cmkd_net_norm(b, "1", cmkd_net_conv(b, "0", x, 1280, 1, 1, 0), -1, CMKD_ACT_RELU6);
  cmkd_net_scope(b, "%s", "");
  cmkd_net_classifier(b, "classifier.1", cmkd_net_globalpool(b, x));
}
