/* The types of numbers in tensors: weight files, teacher logits, .npy arrays. docs/examples/weights.c uses them. The
 * functions may be called from any thread; a value that is none of the enum is undefined behaviour. */
#ifndef CMKD_DTYPE_H
#define CMKD_DTYPE_H
#include <stddef.h>
#include "cmkd/api.h"
#ifdef __cplusplus
extern "C" {
#endif

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

/* Bytes of one number. */
CMKD_API size_t cmkd_dtype_size(cmkd_dtype dtype);
/* "F32", "BF16", "BOOL", ...: as safetensors spells it. Static storage. */
CMKD_API const char *cmkd_dtype_name(cmkd_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
