/* The container before torch 1.6: pickles of magic, version, system, object and storage keys, one after the other; then
 * each storage: an int64 count and its items. */
#ifndef CMKD_FORMATS_WEIGHTS_TORCH_LEGACY_H
#define CMKD_FORMATS_WEIGHTS_TORCH_LEGACY_H
#include "formats/weights/torch_state.h"

cmkd_status cmkd_torch_legacy_parse(cmkd_torch_loader *l, const uint8_t *bytes, size_t size);
#endif
