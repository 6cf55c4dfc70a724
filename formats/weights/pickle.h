/* A reader of pickles that can't run anything: it knows numbers, strings, plain containers and PyTorch's tensors, and
 * refuses every other opcode and global by name. Memory is a small multiple of the pickle's own size; strings point
 * into its bytes, which must outlive it. Not here: calls, imports, objects of any class; text opcodes of
 * protocols 0 and 1. */
#ifndef CMKD_FORMATS_WEIGHTS_PICKLE_H
#define CMKD_FORMATS_WEIGHTS_PICKLE_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/weights.h"

#define CMKD_MAX_PICKLE (16u << 20) /* bytes; a thousand tensors take about 100 KB */

typedef enum cmkd_pk_kind {
  CMKD_PK_NONE,
  CMKD_PK_BOOL,
  CMKD_PK_INT,
  CMKD_PK_BIG,
  CMKD_PK_FLOAT,
  CMKD_PK_STRING,
  CMKD_PK_BYTES,
  CMKD_PK_TUPLE,
  CMKD_PK_LIST,
  CMKD_PK_DICT,
  CMKD_PK_GLOBAL,
  CMKD_PK_STORAGE,
  CMKD_PK_TENSOR
} cmkd_pk_kind;

typedef struct cmkd_pk_value {
  cmkd_pk_kind kind;
  uint32_t length; /* of `text` in bytes, of `item` in indices; 0 for other kinds */
  union {
    int64_t integer;     /* INT, BOOL; GLOBAL: which one (private to pickle_calls.c) */
    double real;         /* FLOAT */
    const uint8_t *text; /* STRING, BYTES, BIG (two's complement, little endian); points into the pickle */
    uint32_t *item;      /* TUPLE, LIST: indices into values. DICT: of key, value, key, value ... in order of insertion,
                            repeated keys included */
    uint32_t index;      /* STORAGE, TENSOR: into storages, tensors */
  } as;
} cmkd_pk_value;

/* What a persistent id names: `numel` items of `dtype` under `key`, of which a window may be all that is meant. */
typedef struct cmkd_pk_storage {
  const uint8_t *key;
  uint32_t key_length;
  cmkd_dtype dtype;
  int64_t numel;                   /* of the whole storage */
  int64_t view_offset, view_numel; /* the window; (0, numel) without one */
} cmkd_pk_storage;

typedef struct cmkd_pk_tensor {
  uint32_t storage; /* into storages */
  int64_t offset;   /* of the first item in the storage's window; offset and strides count items */
  int dims;
  int64_t size[CMKD_MAX_DIMS], stride[CMKD_MAX_DIMS]; /* (dims) */
} cmkd_pk_tensor;

typedef struct cmkd_pickle {
  cmkd_pk_value *values;
  uint32_t value_count, value_capacity;
  cmkd_pk_storage *storages;
  uint32_t storage_count, storage_capacity;
  cmkd_pk_tensor *tensors;
  uint32_t tensor_count, tensor_capacity;
  uint32_t root; /* what STOP returned */
  size_t used;   /* bytes up to and with STOP: another pickle may follow */
} cmkd_pickle;

/* Reads the pickle that `bytes` begin with; `file` is for messages. Free with cmkd_pickle_free. */
cmkd_status cmkd_pickle_load(const uint8_t *bytes, size_t size, const char *file, cmkd_pickle **out, cmkd_error *err);
void cmkd_pickle_free(cmkd_pickle *pickle);
/* The last value under a string key of a dict; NULL when absent or `dict` is no dict. */
const cmkd_pk_value *cmkd_pickle_get(const cmkd_pickle *pickle, const cmkd_pk_value *dict, const char *key);
#endif
