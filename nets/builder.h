/* A small language in which a family file reads like its network. Every call appends an operation to the list and gives
 * back the index of the tensor that it writes; x, y are such indices, 0 is the image. The first failure is kept and all
 * later calls do nothing, so that families need no error handling. Names are relative to the scope:
 * cmkd_net_scope(b, "layer%d.%d.", 1, 0); cmkd_net_conv(b, "conv1", ...) makes the parameter "layer1.0.conv1.weight".
 * An operation kind of kernels/graph.h has its function here. */
#ifndef CMKD_NETS_BUILDER_H
#define CMKD_NETS_BUILDER_H
#include "kernels/graph.h"
#include "nets/shape.h"

typedef struct cmkd_net_builder {
  cmkd_graph *graph;
  cmkd_status status; /* of the first call that failed */
  cmkd_error *err;
  char scope[64];
  /* Of weights to come; a family sets what its recipe starts from. */
  cmkd_init conv_init, linear_init, linear_bias_init;
  int tensor_capacity, op_capacity, param_capacity;
} cmkd_net_builder;

/* Start and finish are the registry's. finish gives the checked graph, or frees it and returns the first failure. */
cmkd_status cmkd_net_start(cmkd_net_builder *b, const char *arch, cmkd_net_shape shape, cmkd_error *err);
cmkd_status cmkd_net_finish(cmkd_net_builder *b, cmkd_graph **out);
void cmkd_net_fail(cmkd_net_builder *b, const char *message); /* CMKD_ERR_MISMATCH, with the architecture's name */

void cmkd_net_scope(cmkd_net_builder *b, const char *format, ...) CMKD_PRINTF(2, 3);
int cmkd_net_channels(const cmkd_net_builder *b, int x); /* 0 after a failure */
int cmkd_net_height(const cmkd_net_builder *b, int x);
int cmkd_net_width(const cmkd_net_builder *b, int x);

/* Square kernels. The weight is (out, channels of x / groups, kernel, kernel); no bias but in _bias. */
int cmkd_net_conv(cmkd_net_builder *b, const char *name, int x, int out, int kernel, int stride, int pad);
int cmkd_net_conv_groups(cmkd_net_builder *b, const char *name, int x, int out, int kernel, int stride, int pad,
                         int groups);
int cmkd_net_conv_bias(cmkd_net_builder *b, const char *name, int x, int out, int kernel, int stride, int pad);
/* act(batchnorm(x) [+ residual]); residual -1: none. */
int cmkd_net_norm(cmkd_net_builder *b, const char *name, int x, int residual, cmkd_act act);
/* Fixes the place of a norm's parameters in the state dict ahead of its operation: a shortcut is computed before the
 * norm that adds it, but PyTorch lists it after. */
void cmkd_net_declare_norm(cmkd_net_builder *b, const char *name, int channels);
int cmkd_net_linear(cmkd_net_builder *b, const char *name, int x, int out); /* with bias; x of any shape, flattened */
int cmkd_net_add(cmkd_net_builder *b, int x, int y, cmkd_act act);
int cmkd_net_act(cmkd_net_builder *b, int x, cmkd_act act);
int cmkd_net_maxpool(cmkd_net_builder *b, int x, int kernel, int stride, int pad);
int cmkd_net_avgpool(cmkd_net_builder *b, int x, int kernel, int stride, int pad); /* padding counts as zeros */
int cmkd_net_globalpool(cmkd_net_builder *b, int x);                               /* (h, w, c) -> (1, 1, c) */
int cmkd_net_padshortcut(cmkd_net_builder *b, int x, int out, int stride); /* every stride-th pixel; out channels, the
                                                                              new ones zero, half on either side */
int cmkd_net_concat(cmkd_net_builder *b, int x, int y);                    /* channels of x, then of y */
int cmkd_net_slice(cmkd_net_builder *b, int x, int first, int count);      /* of channels */
int cmkd_net_shuffle(cmkd_net_builder *b, int x, int groups);              /* of channels, as ShuffleNet does */
/* The last layer: x, (1, 1, d), becomes the features, its linear map to all classes the logits. */
void cmkd_net_classifier(cmkd_net_builder *b, const char *name, int x);
#endif
