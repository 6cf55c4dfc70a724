/* Named tensors in memory: sizes, the storage behind them, finding, converting, freeing.
 * Not here: file formats (safetensors.c, torch_file.c), names of networks (nets/). */
#include "formats/weights/tensors.h"
#include "base/half.h"
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64 /* bytes; a cache line, and the widest vector register */

cmkd_status cmkd_tensor_measure(cmkd_tensor *tensor, const char *file, cmkd_error *err) {
  int64_t bytes = (int64_t)cmkd_dtype_size(tensor->dtype);
  tensor->count = 1;
  for (int d = 0; d < tensor->dims; d++) {
    if (tensor->shape[d] < 0)
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: tensor %.200s has a negative size", file, tensor->name);
    int overflow = __builtin_mul_overflow(tensor->count, tensor->shape[d], &tensor->count) ||
                   __builtin_mul_overflow(bytes, tensor->shape[d], &bytes);
    if (overflow || bytes > INT64_MAX / 2)
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: the shape of tensor %.200s is absurd", file, tensor->name);
  }
  return CMKD_OK;
}

static uint64_t bytes_of(const cmkd_tensor *tensor) { return (uint64_t)tensor->count * cmkd_dtype_size(tensor->dtype); }

static uint64_t aligned_bytes_of(const cmkd_tensor *tensor) {
  return (bytes_of(tensor) + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
}

cmkd_status cmkd_weights_reserve(cmkd_weights *weights, uint64_t limit, const char *file, cmkd_error *err) {
  uint64_t exact = 0, total = ALIGNMENT; /* never 0, which aligned_alloc need not grant */
  for (int i = 0; i < weights->count; i++) {
    exact += bytes_of(&weights->tensors[i]);
    total += aligned_bytes_of(&weights->tensors[i]);
    if (exact > limit)
      return cmkd_fail(err, CMKD_ERR_FORMAT,
                       "%s: its tensors would take more memory than the file can hold; the file is damaged or hostile",
                       file);
  }
  uint8_t *next = aligned_alloc(ALIGNMENT, total);
  if (!next)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for %llu bytes of tensors", file,
                     (unsigned long long)total);
  weights->storage = next;
  for (int i = 0; i < weights->count; i++) {
    weights->tensors[i].data = next;
    next += aligned_bytes_of(&weights->tensors[i]);
  }
  return CMKD_OK;
}

void cmkd_weights_free(cmkd_weights *weights) {
  if (!weights) return;
  for (int i = 0; weights->tensors && i < weights->count; i++)
    free(weights->tensors[i].name);
  for (int i = 0; i < weights->meta_count; i++) {
    if (weights->meta_keys) free(weights->meta_keys[i]);
    if (weights->meta_values) free(weights->meta_values[i]);
  }
  free(weights->tensors);
  free(weights->meta_keys);
  free(weights->meta_values);
  free(weights->storage);
  free(weights->path);
  free(weights);
}

const cmkd_tensor *cmkd_weights_find(const cmkd_weights *weights, const char *name) {
  for (int i = 0; i < weights->count; i++)
    if (!strcmp(weights->tensors[i].name, name)) return &weights->tensors[i];
  return NULL;
}

const char *cmkd_weights_meta(const cmkd_weights *weights, const char *key) {
  for (int i = 0; i < weights->meta_count; i++)
    if (!strcmp(weights->meta_keys[i], key)) return weights->meta_values[i];
  return NULL;
}

/* ---- conversion ---- */

static double double_at(const void *data, cmkd_dtype dtype, int64_t i) {
  switch (dtype) {
  case CMKD_F32: return ((const float *)data)[i];
  case CMKD_F64: return ((const double *)data)[i];
  case CMKD_F16: return cmkd_half_to_float(((const uint16_t *)data)[i]);
  case CMKD_BF16: return cmkd_bf16_to_float(((const uint16_t *)data)[i]);
  case CMKD_I64: return (double)((const int64_t *)data)[i];
  case CMKD_I32: return ((const int32_t *)data)[i];
  case CMKD_U8: return ((const uint8_t *)data)[i];
  case CMKD_BOOL: return ((const uint8_t *)data)[i] != 0;
  case CMKD_I8: return ((const int8_t *)data)[i];
  case CMKD_I16: return ((const int16_t *)data)[i];
  case CMKD_U16: return ((const uint16_t *)data)[i];
  case CMKD_U32: return ((const uint32_t *)data)[i];
  case CMKD_U64: return (double)((const uint64_t *)data)[i];
  }
  return 0;
}

/* Wide integers are rounded once, not to double first. All others are exact in double. */
static float float_at(const void *data, cmkd_dtype dtype, int64_t i) {
  switch (dtype) {
  case CMKD_I64: return (float)((const int64_t *)data)[i];
  case CMKD_U64: return (float)((const uint64_t *)data)[i];
  case CMKD_F16: return cmkd_half_to_float(((const uint16_t *)data)[i]);
  case CMKD_BF16: return cmkd_bf16_to_float(((const uint16_t *)data)[i]);
  default: return (float)double_at(data, dtype, i);
  }
}

void cmkd_tensor_to_float(const cmkd_tensor *tensor, float *out) {
  if (tensor->dtype == CMKD_F32 && tensor->count)
    memcpy(out, tensor->data, (size_t)tensor->count * sizeof *out);
  else
    for (int64_t i = 0; i < tensor->count; i++)
      out[i] = float_at(tensor->data, tensor->dtype, i);
}

void cmkd_tensor_to_double(const cmkd_tensor *tensor, double *out) {
  for (int64_t i = 0; i < tensor->count; i++)
    out[i] = double_at(tensor->data, tensor->dtype, i);
}
