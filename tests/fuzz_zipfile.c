/* Zip archives: every entry is read. */
#include "formats/weights/zipfile.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  cmkd_error err;
  cmkd_zip zip;
  if (cmkd_zip_open(data, size, "fuzz", &zip, &err) != CMKD_OK) return 0;
  for (uint32_t i = 0; i < zip.count; i++) {
    const uint8_t *content;
    uint8_t *owned;
    if (cmkd_zip_find(&zip, zip.entries[i].name, zip.entries[i].name_length) != &zip.entries[i]) abort();
    if (cmkd_zip_read(&zip, &zip.entries[i], 1 << 20, &content, &owned, &err) == CMKD_OK) free(owned);
  }
  cmkd_zip_close(&zip);
  return 0;
}
