#include "cmkd/dtype.h"

static const struct {
  const char *name;
  size_t size;
} dtypes[] = {[CMKD_F32] = {"F32", 4}, [CMKD_F64] = {"F64", 8}, [CMKD_F16] = {"F16", 2}, [CMKD_BF16] = {"BF16", 2},
              [CMKD_I64] = {"I64", 8}, [CMKD_I32] = {"I32", 4}, [CMKD_U8] = {"U8", 1},   [CMKD_BOOL] = {"BOOL", 1},
              [CMKD_I8] = {"I8", 1},   [CMKD_I16] = {"I16", 2}, [CMKD_U16] = {"U16", 2}, [CMKD_U32] = {"U32", 4},
              [CMKD_U64] = {"U64", 8}};

size_t cmkd_dtype_size(cmkd_dtype dtype) { return dtypes[dtype].size; }
const char *cmkd_dtype_name(cmkd_dtype dtype) { return dtypes[dtype].name; }
