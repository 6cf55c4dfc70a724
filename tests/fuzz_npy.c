/* .npy arrays. */
#include "formats/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  cmkd_error err;
  cmkd_npy *array;
  if (cmkd_npy_parse(data, size, "fuzz", &array, &err) == CMKD_OK) cmkd_npy_free(array);
  return 0;
}
