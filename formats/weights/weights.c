/* Named tensors, whatever container they came in: choosing the reader, finding, converting, freeing.
 * Will not do: know a container's bytes (safetensors.c, torch_file.c) or a network's names (nets/). */
#include "cmkd/weights.h"
#include "base/file.h"
#include "base/half.h"
#include "base/hash.h"
#include "formats/weights/containers.h"
#include <stdlib.h>
#include <string.h>

#define MAX_FILE (8ull << 30)

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

static uint64_t padded_bytes(const cmkd_tensor *t) {
  return ((uint64_t)t->count * cmkd_dtype_size(t->dtype) + 63) & ~63ull;
}

cmkd_status cmkd_weights_reserve(cmkd_weights *weights, uint64_t limit, const char *file, cmkd_error *err) {
  uint64_t exact = 0, total = 64;
  for (int i = 0; i < weights->count; i++) {
    const cmkd_tensor *t = &weights->tensors[i];
    exact += (uint64_t)t->count * cmkd_dtype_size(t->dtype);
    total += padded_bytes(t);
    if (exact > limit)
      return cmkd_fail(err, CMKD_ERR_FORMAT,
                       "%s: its tensors would take more memory than the file can hold; the file is damaged or hostile",
                       file);
  }
  uint8_t *base = aligned_alloc(64, total);
  if (!base)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for %llu bytes of tensors", file,
                     (unsigned long long)total);
  weights->storage = base;
  for (int i = 0; i < weights->count; i++) {
    weights->tensors[i].data = base;
    base += padded_bytes(&weights->tensors[i]);
  }
  return CMKD_OK;
}

/* By content: a zip archive or a pickle is PyTorch's, a '{' behind an 8-byte length is safetensors. */
static cmkd_status parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *w, cmkd_error *err) {
  if (size == 0) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: empty; give a .safetensors or PyTorch .pth file", name);
  if (cmkd_torch_sniff(bytes, size)) return cmkd_torch_parse(bytes, size, name, w, err);
  return cmkd_safetensors_parse(bytes, size, name, w, err);
}

cmkd_status cmkd_weights_parse(const void *bytes, size_t size, const char *name, cmkd_weights **out, cmkd_error *err) {
  *out = NULL;
  cmkd_weights *w = calloc(1, sizeof *w);
  if (!w || !(w->path = strdup(name))) {
    free(w);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", name);
  }
  cmkd_status status = parse(bytes, size, name, w, err);
  if (status != CMKD_OK) {
    cmkd_weights_free(w);
    return status;
  }
  cmkd_sha256(bytes, size, w->sha256);
  *out = w;
  return CMKD_OK;
}

cmkd_status cmkd_weights_read(const char *path, cmkd_weights **out, cmkd_error *err) {
  uint8_t *bytes;
  size_t size;
  *out = NULL;
  CMKD_TRY(cmkd_file_read(path, MAX_FILE, &bytes, &size, err));
  cmkd_status status = cmkd_weights_parse(bytes, size, path, out, err);
  free(bytes);
  return status;
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

/* `expression` of the i-th item, called x, of a type */
#define EACH(type, expression) \
  for (int64_t i = 0; i < tensor->count; i++) { \
    type x = ((const type *)tensor->data)[i]; \
    out[i] = (expression); \
  } \
  break
#define CONVERT(number) \
  switch (tensor->dtype) { \
  case CMKD_F32: EACH(float, x); \
  case CMKD_F64: EACH(double, (number)x); \
  case CMKD_F16: EACH(uint16_t, cmkd_half_to_float(x)); \
  case CMKD_BF16: EACH(uint16_t, cmkd_bf16_to_float(x)); \
  case CMKD_I64: EACH(int64_t, (number)x); \
  case CMKD_I32: EACH(int32_t, (number)x); \
  case CMKD_U8: EACH(uint8_t, x); \
  case CMKD_BOOL: EACH(uint8_t, x != 0); \
  case CMKD_I8: EACH(int8_t, x); \
  case CMKD_I16: EACH(int16_t, x); \
  case CMKD_U16: EACH(uint16_t, x); \
  case CMKD_U32: EACH(uint32_t, (number)x); \
  case CMKD_U64: EACH(uint64_t, (number)x); \
  }

void cmkd_tensor_to_float(const cmkd_tensor *tensor, float *out) { CONVERT(float) }
void cmkd_tensor_to_double(const cmkd_tensor *tensor, double *out) { CONVERT(double) }
