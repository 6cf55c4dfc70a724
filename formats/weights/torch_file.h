/* The reader of what torch.save wrote: zip archives and the legacy stream. */
#ifndef CMKD_FORMATS_WEIGHTS_TORCH_FILE_H
#define CMKD_FORMATS_WEIGHTS_TORCH_FILE_H
#include "cmkd/weights.h"

int cmkd_torch_sniff(const uint8_t *bytes, size_t size); /* 1: a zip archive or a pickle */
/* Of a file for which cmkd_torch_sniff is 1. Fills tensors and storage of `out`; name, path and sha256 are the
 * caller's. On failure the caller frees what is there already. `name` is for messages. */
cmkd_status cmkd_torch_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *out, cmkd_error *err);
#endif
