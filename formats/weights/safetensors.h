/* The safetensors reader. Writing is cmkd_weights_write of include/cmkd/weights.h. */
#ifndef CMKD_FORMATS_WEIGHTS_SAFETENSORS_H
#define CMKD_FORMATS_WEIGHTS_SAFETENSORS_H
#include "cmkd/weights.h"

/* Fills tensors, storage and meta_* of `out`; name, path and sha256 are the caller's. On failure the caller frees what
 * is there already. `name` is for messages. */
cmkd_status cmkd_safetensors_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *out,
                                   cmkd_error *err);
#endif
