/* A small language in which a family file reads like its network. Every call appends to the operation list and gives
 * back the index of the tensor that it writes. The first failure is kept and all later calls do nothing, so that
 * families need no error handling. Names are relative to the scope: net_scope(b, "layer%d.%d.", 1, 0); net_conv(b,
 * "conv1", ...) makes "layer1.0.conv1.weight". */
#ifndef CMKD_NETS_BUILDER_H
#define CMKD_NETS_BUILDER_H
#include "kernels/graph.h"
#include "nets/net.h"

typedef struct net_builder {
  cmkd_graph *graph;
  cmkd_status status;
  cmkd_error *err;
  char scope[64];
  cmkd_init conv_init, linear_init, linear_bias_init; /* what the family's recipe starts from */
  int tensor_capacity, op_capacity, param_capacity;
} net_builder;

/* Start and finish are the registry's; finish gives the checked graph or frees it. */
cmkd_status cmkd_net_start(net_builder *b, const char *arch, cmkd_net_shape shape, cmkd_error *err);
cmkd_status cmkd_net_finish(net_builder *b, cmkd_graph **out);

void cmkd_net_scope(net_builder *b, const char *format, ...) CMKD_PRINTF(2, 3);
int cmkd_net_channels(const net_builder *b, int x); /* 0 after a failure */
int cmkd_net_height(const net_builder *b, int x);
int cmkd_net_width(const net_builder *b, int x);
int cmkd_net_conv_full(net_builder *b, const char *name, int x, int out, int kernel, int stride, int pad, int groups,
                       int bias);
/* act(batchnorm(x) [+ residual]); residual -1: none. */
int cmkd_net_norm(net_builder *b, const char *name, int x, int residual, cmkd_act act);
/* Fixes the place of a norm's parameters in the state dict ahead of its operation: a residual is computed first but
 * listed later. */
void cmkd_net_declare_norm(net_builder *b, const char *name, int channels);
int cmkd_net_add(net_builder *b, int x, int y, cmkd_act act);
int cmkd_net_act(net_builder *b, int x, cmkd_act act);
int cmkd_net_maxpool(net_builder *b, int x, int kernel, int stride, int pad);
int cmkd_net_avgpool(net_builder *b, int x, int kernel, int stride, int pad);
int cmkd_net_globalpool(net_builder *b, int x);
int cmkd_net_linear(net_builder *b, const char *name, int x, int out);
int cmkd_net_padshortcut(net_builder *b, int x, int out, int stride); /* channels padded equally on both sides */
int cmkd_net_concat(net_builder *b, int x, int y);
int cmkd_net_slice(net_builder *b, int x, int first, int count);
int cmkd_net_shuffle(net_builder *b, int x, int groups);
/* The last layer: x, (1, 1, d), becomes the features, its linear map to all classes the logits. */
void cmkd_net_classifier(net_builder *b, const char *name, int x);
void cmkd_net_fail(net_builder *b, const char *message);

#define net_scope cmkd_net_scope
#define net_channels cmkd_net_channels
#define net_height cmkd_net_height
#define net_width cmkd_net_width
#define net_conv(b, name, x, out, kernel, stride, pad) cmkd_net_conv_full(b, name, x, out, kernel, stride, pad, 1, 0)
#define net_conv_groups(b, name, x, out, kernel, stride, pad, groups) \
  cmkd_net_conv_full(b, name, x, out, kernel, stride, pad, groups, 0)
#define net_conv_bias(b, name, x, out, kernel, stride, pad) \
  cmkd_net_conv_full(b, name, x, out, kernel, stride, pad, 1, 1)
#define net_norm cmkd_net_norm
#define net_declare_norm cmkd_net_declare_norm
#define net_add cmkd_net_add
#define net_act cmkd_net_act
#define net_maxpool cmkd_net_maxpool
#define net_avgpool cmkd_net_avgpool
#define net_globalpool cmkd_net_globalpool
#define net_linear cmkd_net_linear
#define net_padshortcut cmkd_net_padshortcut
#define net_concat cmkd_net_concat
#define net_slice cmkd_net_slice
#define net_shuffle cmkd_net_shuffle
#define net_classifier cmkd_net_classifier
#define net_fail cmkd_net_fail

/* A family builds every member from a few numbers (depth, width, ...) that the registry lists; x is the image. */
typedef void net_family(net_builder *b, int x, const int *size);
net_family cmkd_net_resnet_cifar, cmkd_net_resnet_imagenet, cmkd_net_wrn, cmkd_net_vgg, cmkd_net_vgg_imagenet,
    cmkd_net_mobilenetv1, cmkd_net_mobilenetv2, cmkd_net_mobilenetv2_cifar, cmkd_net_shufflenetv1_cifar,
    cmkd_net_shufflenetv2_cifar;
#endif
