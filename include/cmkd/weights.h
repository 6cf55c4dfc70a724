/* Weight files: named tensors with metadata. Reads safetensors and PyTorch's .pth (told apart by content), writes
 * safetensors. docs/examples/weights.c is a whole program. Files are hostile input: no code in a pickle is run, and
 * nothing is allocated that the file could not hold.
 *
 * Threads: what was read is never changed and may be used by any number of threads. */
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
  int dims;                     /* 0: a scalar */
  int64_t shape[CMKD_MAX_DIMS]; /* (dims) */
  int64_t count;                /* product of shape; 1 for a scalar */
  const void *data; /* count * cmkd_dtype_size(dtype) bytes, little endian, aligned for the type, row-major */
} cmkd_tensor;

/* Everything belongs to it and lives until cmkd_weights_free. */
typedef struct cmkd_weights {
  char *path;
  char sha256[65]; /* of the file, 64 hex digits */
  int count;
  cmkd_tensor *tensors;            /* (count) in file order */
  int meta_count;                  /* of metadata, which .pth files have none of */
  char **meta_keys, **meta_values; /* (meta_count) each */
  void *storage;                   /* internal: the data of all tensors */
} cmkd_weights;

/* CMKD_ERR_IO, CMKD_ERR_MEMORY, CMKD_ERR_FORMAT (not a weight file, damaged, or a pickle that asks for code). */
CMKD_API cmkd_status cmkd_weights_read(const char *path, cmkd_weights **out, cmkd_error *err);
/* The same from memory, which is only read during the call; `name` stands for the path in messages. */
CMKD_API cmkd_status cmkd_weights_parse(const void *bytes, size_t size, const char *name, cmkd_weights **out,
                                        cmkd_error *err);
/* NULL does nothing. */
CMKD_API void cmkd_weights_free(cmkd_weights *weights);
/* The tensor, the metadata of that name; NULL: there is none. Owned by the weights. */
CMKD_API const cmkd_tensor *cmkd_weights_find(const cmkd_weights *weights, const char *name);
CMKD_API const char *cmkd_weights_meta(const cmkd_weights *weights, const char *key);
/* All numbers of a tensor of any type into `out` (tensor->count), converted as C does; true is 1. */
CMKD_API void cmkd_tensor_to_float(const cmkd_tensor *tensor, float *out);
CMKD_API void cmkd_tensor_to_double(const cmkd_tensor *tensor, double *out);

/* Writes tensors (count) and metadata (meta_count, both lists) as a safetensors file: complete under its name or not at
 * all. Everything is borrowed during the call; meta_count may be 0 with NULL lists. The same input gives the same
 * bytes: no times, 8-byte aligned data. CMKD_ERR_IO where the file cannot be written. */
CMKD_API cmkd_status cmkd_weights_write(const char *path, const cmkd_tensor *tensors, int count,
                                        const char *const *meta_keys, const char *const *meta_values, int meta_count,
                                        cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
