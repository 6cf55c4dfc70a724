/* Data set files: IDX of images and of labels, CIFAR records of both kinds. The first byte chooses. */
#include "formats/images/cifar.h"
#include "formats/images/idx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static uint8_t pixels[4 * CMKD_CIFAR_PIXELS];
  int32_t labels[4];
  cmkd_error err;
  cmkd_idx idx;
  if (size == 0) return 0;
  int kind = data[0] & 3;
  data++;
  size--;
  if (kind < 2) {
    if (cmkd_idx_parse(data, size, "fuzz", kind ? 3 : 1, &idx, &err) != CMKD_OK) return 0;
    uint64_t items = kind ? (uint64_t)idx.shape[0] * idx.shape[1] * idx.shape[2] : idx.shape[0];
    return idx.data + items != data + size; /* exactly the file */
  }
  size_t record = CMKD_CIFAR_PIXELS + (kind == 2 ? 1 : 2), count = size / record;
  const cmkd_cifar_records records = {.bytes = data,
                                      .count = count < 4 ? (uint32_t)count : 4,
                                      .name = "fuzz",
                                      .coarse_classes = kind == 2 ? 0 : 20,
                                      .classes = kind == 2 ? 10 : 100};
  cmkd_cifar_decode(&records, pixels, labels, &err);
  return 0;
}
