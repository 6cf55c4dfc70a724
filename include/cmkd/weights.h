/* Named tensors with metadata, as weight files hold them. safetensors in and out; the reader is chosen by content, so
 * other containers join without a caller noticing. Files are hostile input: nothing is allocated that the file could
 * not hold. */
#ifndef CMKD_WEIGHTS_H
#define CMKD_WEIGHTS_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/status.h"
#ifdef __cplusplus
extern "C" {
#endif

#define CMKD_MAX_DIMS 8
typedef enum cmkd_dtype {
  CMKD_F32 = 0,
  CMKD_F64,
  CMKD_F16,
  CMKD_BF16,
  CMKD_I64,
  CMKD_I32,
  CMKD_U8,
  CMKD_BOOL,
  CMKD_I8,
  CMKD_I16,
  CMKD_U16,
  CMKD_U32,
  CMKD_U64
} cmkd_dtype;
size_t cmkd_dtype_size(cmkd_dtype dtype);
const char *cmkd_dtype_name(cmkd_dtype dtype); /* "F32", as safetensors spells it */

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

cmkd_status cmkd_weights_read(const char *path, cmkd_weights **out, cmkd_error *err);
/* The same from memory (tests, fuzzing); `name` is for messages. Copies what it needs. */
cmkd_status cmkd_weights_parse(const void *bytes, size_t size, const char *name, cmkd_weights **out, cmkd_error *err);
void cmkd_weights_free(cmkd_weights *weights);
const cmkd_tensor *cmkd_weights_find(const cmkd_weights *weights, const char *name); /* NULL when absent */
const char *cmkd_weights_meta(const cmkd_weights *weights, const char *key);         /* NULL when absent */
/* Any numeric dtype as float or double into `out` (count numbers). */
void cmkd_tensor_to_float(const cmkd_tensor *tensor, float *out);
void cmkd_tensor_to_double(const cmkd_tensor *tensor, double *out);

/* Writes a safetensors file atomically. Tensor names, shapes, dtypes and data are borrowed. Same input, same bytes:
 * keys in the order given, 8-byte aligned data, no times. */
cmkd_status cmkd_weights_write(const char *path, const cmkd_tensor *tensors, int count, const char *const *meta_keys,
                               const char *const *meta_values, int meta_count, cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
