/* Weight files of every container, chosen by content as the programs do. */
#include "cmkd/weights.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  cmkd_error err;
  cmkd_weights *w;
  if (cmkd_weights_parse(data, size, "fuzz", &w, &err) != CMKD_OK) return 0;
  for (int i = 0; i < w->count; i++) { /* touch every number */
    double *out = malloc(((size_t)w->tensors[i].count + 1) * sizeof *out);
    if (!out) break;
    cmkd_tensor_to_double(&w->tensors[i], out);
    free(out);
  }
  cmkd_weights_free(w);
  return 0;
}
