/* VGG with batch norm (Simonyan and Zisserman 2015). `vgg` is the CIFAR toolkits': five blocks, the fourth pool at 64
 * pixels only, a mean over what is left, one linear layer. `vgg_imagenet` is torchvision's; its dropout is left out, as
 * inference leaves it. */
#include <stdio.h>
#include "nets/families.h"

static const int widths[5] = {64, 128, 256, 512, 512};

static int conv_norm_relu(cmkd_net_builder *b, int x, int index, int out) {
  char conv[16], norm[16];
  snprintf(conv, sizeof conv, "%d", index);
  snprintf(norm, sizeof norm, "%d", index + 1);
  return cmkd_net_norm(b, norm, cmkd_net_conv_bias(b, conv, x, out, 3, 1, 1), -1, CMKD_ACT_RELU);
}

/* size: convolutions in each block */
void cmkd_net_vgg(cmkd_net_builder *b, int x, const int *size) {
  int side = cmkd_net_height(b, x);
  b->linear_init = CMKD_INIT_NORMAL_001;
  b->linear_bias_init = CMKD_INIT_ZERO;
  for (int block = 0; block < 5; block++) {
    cmkd_net_scope(b, "block%d.", block);
    for (int i = 0; i < size[block]; i++)
      x = conv_norm_relu(b, x, 3 * i, widths[block]);
    if (block < 3 || (block == 3 && side == 64)) x = cmkd_net_maxpool(b, x, 2, 2, 0);
  }
  cmkd_net_scope(b, "%s", "");
  cmkd_net_classifier(b, "classifier", cmkd_net_globalpool(b, x));
}

void cmkd_net_vgg_imagenet(cmkd_net_builder *b, int x, const int *size) {
  b->linear_init = CMKD_INIT_NORMAL_001;
  b->linear_bias_init = CMKD_INIT_ZERO;
  cmkd_net_scope(b, "%s", "features.");
  for (int block = 0, index = 0; block < 5; block++, index++) {
    for (int i = 0; i < size[block]; i++, index += 3)
      x = conv_norm_relu(b, x, index, widths[block]);
    x = cmkd_net_maxpool(b, x, 2, 2, 0);
  }
  int side = cmkd_net_height(b, x);
  if (side != cmkd_net_width(b, x) || side % 7)
    cmkd_net_fail(b, "its classifier reads 7x7 maps: images must be square, a multiple of 224 pixels wide");
  if (side > 7) x = cmkd_net_avgpool(b, x, side / 7, side / 7, 0);
  cmkd_net_scope(b, "%s", "classifier.");
  x = cmkd_net_act(b, cmkd_net_linear(b, "0", x, 4096), CMKD_ACT_RELU);
  x = cmkd_net_act(b, cmkd_net_linear(b, "3", x, 4096), CMKD_ACT_RELU);
  cmkd_net_classifier(b, "6", x);
}
