/* What the readers of weight containers share. Internal to formats/: callers use include/cmkd/weights.h, which chooses
 * by content. */
#ifndef CMKD_FORMATS_WEIGHTS_CONTAINERS_H
#define CMKD_FORMATS_WEIGHTS_CONTAINERS_H
#include "cmkd/weights.h"

#define CMKD_MAX_TENSOR_NAME 512
#define CMKD_MAX_TENSORS (1 << 20)

/* Readers fill out->tensors, count, meta_*; name, path and sha256 are the caller's. On failure the caller frees what is
 * there. */
cmkd_status cmkd_safetensors_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *out,
                                   cmkd_error *err);
cmkd_status cmkd_torch_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *out, cmkd_error *err);
int cmkd_torch_sniff(const uint8_t *bytes, size_t size); /* a zip archive or a pickle */

/* Product of the shape, checked; fails on a negative size or past 2^62 bytes. */
cmkd_status cmkd_tensor_measure(cmkd_tensor *tensor, const char *file, cmkd_error *err);
/* One allocation, each tensor's data 64-byte aligned in it, to be filled by the reader. Fails where the sum passes
 * `limit` bytes. */
cmkd_status cmkd_weights_reserve(cmkd_weights *weights, uint64_t limit, const char *file, cmkd_error *err);
#endif
