/* State files of runs: any bytes give a state or one error. */
#include "nets/net.h"
#include "train/state.h"
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static cmkd_graph *graph;
  cmkd_weights *file;
  cmkd_state state;
  json_t *settings;
  if (!graph && cmkd_net_build("resnet8", (cmkd_net_shape){8, 8, 1, 2}, &graph, NULL) != CMKD_OK) return 0;
  if (cmkd_weights_parse(data, size, "fuzz", &file, NULL) != CMKD_OK) return 0;
  if (cmkd_state_settings(file, &settings, NULL) == CMKD_OK) json_decref(settings);
  if (cmkd_state_create(graph, &state, NULL) == CMKD_OK) {
    (void)cmkd_state_load(graph, file, &state, NULL);
    cmkd_state_free(&state);
  }
  cmkd_weights_free(file);
  return 0;
}
