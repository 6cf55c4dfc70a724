/* A network with its numbers as an ONNX file (opset 13), for any runtime that reads those. */
#ifndef CMKD_NETS_ONNX_H
#define CMKD_NETS_ONNX_H
#include "nets/net.h"

/* Input `input` (batch, channels, height, width) float32, normalised; outputs `logits` (batch, classes) and, where
 * asked for, `features` (batch, d). The batch is free. fold: batch norms disappear into the convolutions before them,
 * where nothing else reads those. Metadata (architecture, normalisation, ...) goes into the model's properties. Same
 * input, same bytes; written atomically. */
typedef struct cmkd_onnx_options {
  int fold, features;
  const char *const *meta_keys, *const *meta_values; /* (meta_count) */
  int meta_count;
} cmkd_onnx_options;
cmkd_status cmkd_onnx_write(const cmkd_graph *graph, const cmkd_params *params, const cmkd_onnx_options *options,
                            const char *path, cmkd_error *err);
#endif
