/* The zip container of torch >= 1.6: NAME/data.pkl, NAME/byteorder, NAME/data/KEY. */
#ifndef CMKD_FORMATS_WEIGHTS_TORCH_ZIP_H
#define CMKD_FORMATS_WEIGHTS_TORCH_ZIP_H
#include "formats/weights/torch_state.h"

cmkd_status cmkd_torch_zip_parse(cmkd_torch_loader *l, const uint8_t *bytes, size_t size);
#endif
