/* Named tensors with metadata, as weight files hold them. safetensors in and out; the reader is chosen by content, so
 * other containers join without a caller noticing. Files are hostile input: nothing is allocated that the file could
 * not hold. */
#ifndef CMKD_WEIGHTS_H
#define CMKD_WEIGHTS_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/dtype.h"
#include "cmkd/status.h"
#ifdef __cplusplus
extern "C" {
#endif

#define CMKD_MAX_DIMS 8

typedef struct cmkd_tensor {
  char *name;
  cmkd_dtype dtype;
  int dims;
  int64_t shape[CMKD_MAX_DIMS];
  int64_t count;    /* product of shape; 1 for a scalar */
  const void *data; /* count * cmkd_dtype_size(dtype) bytes, little endian, suitably aligned, row-major */
} cmkd_tensor;

typedef struct cmkd_weights {
  char *path;
  char sha256[65]; /* of the file */
  int count;
  cmkd_tensor *tensors; /* in file order */
  int meta_count;
  char **meta_keys, **meta_values;
  void *storage; /* owns the data of all tensors that were read */
} cmkd_weights;

CMKD_API cmkd_status cmkd_weights_read(const char *path, cmkd_weights **out, cmkd_error *err);
/* The same from memory (tests, fuzzing); `name` is for messages. Copies what it needs. */
CMKD_API cmkd_status cmkd_weights_parse(const void *bytes, size_t size, const char *name, cmkd_weights **out,
                                        cmkd_error *err);
CMKD_API void cmkd_weights_free(cmkd_weights *weights);
CMKD_API const cmkd_tensor *cmkd_weights_find(const cmkd_weights *weights, const char *name); /* NULL when absent */
CMKD_API const char *cmkd_weights_meta(const cmkd_weights *weights, const char *key);         /* NULL when absent */
/* Any numeric dtype as float or double into `out` (count numbers). */
CMKD_API void cmkd_tensor_to_float(const cmkd_tensor *tensor, float *out);
CMKD_API void cmkd_tensor_to_double(const cmkd_tensor *tensor, double *out);

/* Writes a safetensors file atomically. Tensor names, shapes, dtypes and data are borrowed. Same input, same bytes:
 * keys in the order given, 8-byte aligned data, no times. */
CMKD_API cmkd_status cmkd_weights_write(const char *path, const cmkd_tensor *tensors, int count,
                                        const char *const *meta_keys, const char *const *meta_values, int meta_count,
                                        cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
