/* CIFAR ResNets (He et al. 2016, section 4.2): three stages of (depth - 2) / 6 basic blocks, widths 16-32-64 behind a
 * stem of 16. The wide ones (resnet8x4, resnet32x4) have 64-128-256 behind a stem of 32. Where the shape changes, the
 * shortcut is a 1x1 convolution; in `resnetN_pad` (option A of the paper) it is subsampling with zero channels on both
 * sides, and the classifier is called `linear`. */
#include "nets/families.h"

/* relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut) */
static int basic_block(cmkd_net_builder *b, int x, int out, int stride, int pad_shortcut) {
  int shortcut = x, changes = stride != 1 || cmkd_net_channels(b, x) != out;
  int y = cmkd_net_conv(b, "conv1", x, out, 3, stride, 1);
  y = cmkd_net_norm(b, "bn1", y, -1, CMKD_ACT_RELU);
  y = cmkd_net_conv(b, "conv2", y, out, 3, 1, 1);
  cmkd_net_declare_norm(b, "bn2", out);
  if (changes && pad_shortcut)
    shortcut = cmkd_net_padshortcut(b, x, out, stride);
  else if (changes)
    shortcut =
        cmkd_net_norm(b, "downsample.1", cmkd_net_conv(b, "downsample.0", x, out, 1, stride, 0), -1, CMKD_ACT_NONE);
  return cmkd_net_norm(b, "bn2", y, shortcut, CMKD_ACT_RELU);
}

/* size: depth, stem width, width of the first stage, parameter-free shortcut */
void cmkd_net_resnet_cifar(cmkd_net_builder *b, int x, const int *size) {
  int depth = size[0], stem = size[1], width = size[2], pad_shortcut = size[3];
  x = cmkd_net_conv(b, "conv1", x, stem, 3, 1, 1);
  x = cmkd_net_norm(b, "bn1", x, -1, CMKD_ACT_RELU);
  for (int stage = 1; stage <= 3; stage++, width *= 2)
    for (int block = 0; block < (depth - 2) / 6; block++) {
      cmkd_net_scope(b, "layer%d.%d.", stage, block);
      x = basic_block(b, x, width, stage > 1 && block == 0 ? 2 : 1, pad_shortcut);
    }
  cmkd_net_scope(b, "%s", "");
  cmkd_net_classifier(b, pad_shortcut ? "linear" : "fc", cmkd_net_globalpool(b, x));
}
