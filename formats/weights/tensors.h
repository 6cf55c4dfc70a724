/* Named tensors in memory, which the readers of weight files fill. The lowest file of formats/weights: it knows no
 * reader. Private to formats/; callers use include/cmkd/weights.h. */
#ifndef CMKD_FORMATS_WEIGHTS_TENSORS_H
#define CMKD_FORMATS_WEIGHTS_TENSORS_H
#include "cmkd/weights.h"

#define CMKD_MAX_TENSOR_NAME 512 /* bytes */
#define CMKD_MAX_TENSORS (1 << 20)

/* Sets tensor->count to the product of its shape. CMKD_ERR_FORMAT on a negative size or where the bytes pass 2^62.
 * `file` is for messages. */
cmkd_status cmkd_tensor_measure(cmkd_tensor *tensor, const char *file, cmkd_error *err);

/* Allocates weights->storage for all tensors, whose shapes were measured, and points each one's data to its place,
 * 64-byte aligned, for the reader to fill. CMKD_ERR_FORMAT where the tensors' bytes pass `limit`. */
cmkd_status cmkd_weights_reserve(cmkd_weights *weights, uint64_t limit, const char *file, cmkd_error *err);
#endif
