/* Any weight file against the search for a network that it fits, and against one network's names and shapes. */
#include <stddef.h>
#include <stdint.h>
#include "nets/net.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  cmkd_weights *weights;
  cmkd_model_spec spec;
  cmkd_graph *graph;
  cmkd_params params;
  cmkd_error err;
  if (cmkd_weights_parse(data, size, "fuzz", &weights, &err) != CMKD_OK) return 0;
  cmkd_model_spec_read(weights, NULL, NULL, NULL, &spec, &err);
  if (cmkd_net_build("resnet8", (cmkd_net_shape){32, 32, 3, 10}, &graph, &err) == CMKD_OK) {
    if (cmkd_params_create(graph, &params, &err) == CMKD_OK) {
      cmkd_params_load(graph, weights, &params, &err);
      cmkd_params_free(&params);
    }
    cmkd_graph_free(graph);
  }
  cmkd_weights_free(weights);
  return 0;
}
