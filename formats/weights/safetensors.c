/* safetensors: an 8-byte little-endian header length, a JSON header, one data buffer. Stricter than most readers: every
 * byte of the buffer belongs to exactly one tensor, names are unique, metadata values are strings. Not read: dtypes
 * below a byte or of 8-bit floats, which no network here uses. */
#include "formats/weights/safetensors.h"
#include "base/bytes.h"
#include "base/file.h"
#include "base/json.h"
#include "formats/weights/tensors.h"
#include <stdlib.h>
#include <string.h>

#define MAX_HEADER 100000000u /* the limit of the reference reader */
#define META "__metadata__"

typedef struct range {
  uint64_t begin, end;
  int tensor;
} range;

static cmkd_status parse_dtype(const char *text, const char *file, const char *tensor, cmkd_dtype *out,
                               cmkd_error *err) {
  for (int d = CMKD_F32; text && d <= CMKD_U64; d++)
    if (!strcmp(text, cmkd_dtype_name((cmkd_dtype)d))) {
      *out = (cmkd_dtype)d;
      return CMKD_OK;
    }
  if (!text) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: tensor %.200s has no dtype", file, tensor);
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                   "%s: tensor %.200s has dtype %.40s; known are F32 F64 F16 BF16 I8 I16 I32 I64 U8 U16 U32 U64 BOOL",
                   file, tensor, text);
}

static cmkd_status parse_tensor(const char *file, const char *name, json_t *value, uint64_t buffer, cmkd_tensor *t,
                                range *r, cmkd_error *err) {
  if (!name[0] || strlen(name) > CMKD_MAX_TENSOR_NAME)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: a tensor's name is empty or longer than %d bytes", file,
                     CMKD_MAX_TENSOR_NAME);
  if (!(t->name = strdup(name))) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", file);
  CMKD_TRY(parse_dtype(json_string_value(json_object_get(value, "dtype")), file, name, &t->dtype, err));
  json_t *shape = json_object_get(value, "shape"), *offsets = json_object_get(value, "data_offsets");
  if (!json_is_array(shape) || json_array_size(shape) > CMKD_MAX_DIMS)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: tensor %.200s has no shape of at most %d dimensions", file, name,
                     CMKD_MAX_DIMS);
  if (json_object_size(value) != 3)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: tensor %.200s has more fields than dtype, shape and data_offsets", file,
                     name);
  t->dims = (int)json_array_size(shape);
  for (int d = 0; d < t->dims; d++) {
    json_t *size = json_array_get(shape, (size_t)d);
    if (!json_is_integer(size))
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: the shape of tensor %.200s is not made of whole numbers", file, name);
    t->shape[d] = json_integer_value(size);
  }
  CMKD_TRY(cmkd_tensor_measure(t, file, err));
  json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: tensor %.200s has no pair of data_offsets", file, name);
  int64_t b = json_integer_value(begin), e = json_integer_value(end);
  if (b < 0 || e < b)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: the data_offsets of tensor %.200s run backwards", file, name);
  if ((uint64_t)e > buffer)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: truncated: tensor %.200s ends at byte %lld of %llu; fetch the file again", file, name,
                     (long long)e, (unsigned long long)buffer);
  if ((uint64_t)(e - b) != (uint64_t)t->count * cmkd_dtype_size(t->dtype))
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: tensor %.200s has %lld bytes where its shape and dtype need %llu", file,
                     name, (long long)(e - b), (unsigned long long)t->count * cmkd_dtype_size(t->dtype));
  r->begin = (uint64_t)b;
  r->end = (uint64_t)e;
  return CMKD_OK;
}

static cmkd_status parse_meta(const char *file, json_t *meta, cmkd_weights *w, cmkd_error *err) {
  if (!json_is_object(meta)) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %s is not an object", file, META);
  size_t count = json_object_size(meta);
  w->meta_keys = calloc(count + 1, sizeof *w->meta_keys);
  w->meta_values = calloc(count + 1, sizeof *w->meta_values);
  if (!w->meta_keys || !w->meta_values) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", file);
  const char *key;
  json_t *value;
  json_object_foreach(meta, key, value) {
    if (!json_is_string(value))
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: metadata '%.100s' is not a string", file, key);
    int i = w->meta_count++;
    w->meta_keys[i] = strdup(key);
    w->meta_values[i] = strdup(json_string_value(value));
    if (!w->meta_keys[i] || !w->meta_values[i]) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", file);
  }
  return CMKD_OK;
}

static int by_begin(const void *a, const void *b) {
  const range *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  if (x->end != y->end) return x->end < y->end ? -1 : 1;
  return x->tensor - y->tensor;
}

/* Sorts the ranges; each must begin where the one before ended, the last at the end of the buffer. */
static cmkd_status check_cover(const char *file, const cmkd_weights *w, range *ranges, uint64_t buffer,
                               cmkd_error *err) {
  uint64_t at = 0;
  qsort(ranges, (size_t)w->count, sizeof *ranges, by_begin);
  for (int i = 0; i < w->count; i++) {
    if (ranges[i].begin != at)
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: tensor %.200s %s", file, w->tensors[ranges[i].tensor].name,
                       ranges[i].begin < at ? "overlaps another one" : "leaves a hole before it");
    at = ranges[i].end;
  }
  if (at != buffer)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %llu bytes too many behind the last tensor", file,
                     (unsigned long long)(buffer - at));
  return CMKD_OK;
}

static cmkd_status parse_header(const char *file, json_t *header, const uint8_t *data, uint64_t buffer, cmkd_weights *w,
                                range *ranges, cmkd_error *err) {
  const char *key;
  json_t *value;
  json_object_foreach(header, key, value) {
    if (!strcmp(key, META)) {
      CMKD_TRY(parse_meta(file, value, w, err));
      continue;
    }
    if (!json_is_object(value))
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: entry '%.200s' of the header is not an object", file, key);
    int i = w->count++;
    ranges[i].tensor = i;
    CMKD_TRY(parse_tensor(file, key, value, buffer, &w->tensors[i], &ranges[i], err));
  }
  CMKD_TRY(check_cover(file, w, ranges, buffer, err));
  CMKD_TRY(cmkd_weights_reserve(w, buffer, file, err));
  for (int i = 0; i < w->count; i++)
    if (ranges[i].end > ranges[i].begin)
      memcpy((void *)w->tensors[ranges[i].tensor].data, data + ranges[i].begin, ranges[i].end - ranges[i].begin);
  return CMKD_OK;
}

cmkd_status cmkd_safetensors_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *out,
                                   cmkd_error *err) {
  uint64_t length = size < 8 ? 0 : cmkd_load_little(bytes, 8);
  if (size < 9 || length < 2 || length > MAX_HEADER || bytes[8] != '{')
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: not a weight file; known are safetensors and PyTorch's .pth, .pt and .th", name);
  if (length > size - 8)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: truncated: a header of %llu bytes in a file of %zu; fetch the file again", name,
                     (unsigned long long)length, size);
  json_error_t json_err;
  json_t *header = json_loadb((const char *)bytes + 8, (size_t)length, JSON_REJECT_DUPLICATES, &json_err);
  if (!header) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: damaged safetensors header: %.160s", name, json_err.text);
  size_t entries = json_object_size(header);
  range *ranges = calloc(entries + 1, sizeof *ranges);
  out->tensors = calloc(entries + 1, sizeof *out->tensors);
  cmkd_status status;
  if (!ranges || !out->tensors)
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", name);
  else if (entries > CMKD_MAX_TENSORS)
    status = cmkd_fail(err, CMKD_ERR_FORMAT, "%s: more than %d tensors", name, CMKD_MAX_TENSORS);
  else
    status = parse_header(name, header, bytes + 8 + length, size - 8 - length, out, ranges, err);
  free(ranges);
  json_decref(header);
  return status;
}

/* ---- writing ---- */

static cmkd_status check_tensor(const char *path, const cmkd_tensor *t, cmkd_error *err) {
  if (!t->name || !t->name[0] || strlen(t->name) > CMKD_MAX_TENSOR_NAME || !strcmp(t->name, META))
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: a tensor can't be written under the name '%.200s'", path,
                     t->name ? t->name : "");
  if (t->dims < 0 || t->dims > CMKD_MAX_DIMS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: tensor %.200s has %d dimensions; at most %d", path, t->name, t->dims,
                     CMKD_MAX_DIMS);
  cmkd_tensor copy = *t;
  CMKD_TRY(cmkd_tensor_measure(&copy, path, err));
  if (copy.count != t->count)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: tensor %.200s: count and shape differ", path, t->name);
  return CMKD_OK;
}

static json_t *describe(const cmkd_tensor *t, uint64_t begin) {
  cmkd_json shape = cmkd_json_array();
  for (int d = 0; d < t->dims; d++)
    cmkd_json_append(&shape, json_integer(t->shape[d]));
  return json_pack("{s:s, s:o, s:[I, I]}", "dtype", cmkd_dtype_name(t->dtype), "shape", cmkd_json_end(&shape),
                   "data_offsets", (json_int_t)begin,
                   (json_int_t)(begin + (uint64_t)t->count * cmkd_dtype_size(t->dtype)));
}

/* The order in which the tensors are written, and where each begins. Widest items first, otherwise as given: then every
 * tensor is aligned without the holes that the format forbids. */
static void lay_out(const cmkd_tensor *tensors, int count, int *order, uint64_t *begin) {
  uint64_t at = 0;
  int placed = 0;
  for (size_t width = 8; width > 0; width /= 2)
    for (int i = 0; i < count; i++)
      if (cmkd_dtype_size(tensors[i].dtype) == width) {
        order[placed++] = i;
        begin[i] = at;
        at += (uint64_t)tensors[i].count * width;
      }
}

typedef struct metadata {
  const char *const *keys, *const *values;
  int count;
} metadata;

static cmkd_status describe_metadata(const char *path, const metadata *meta, json_t *out, cmkd_error *err) {
  for (int i = 0; i < meta->count; i++)
    if (json_object_get(out, meta->keys[i]) ||
        json_object_set_new(out, meta->keys[i], json_string(meta->values[i])) != 0)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: metadata '%.100s' is given twice or is not UTF-8", path,
                       meta->keys[i]);
  return CMKD_OK;
}

/* The header's text; begin[i] is the offset of tensor i. */
static cmkd_status build_header(const char *path, const cmkd_tensor *tensors, int count, const uint64_t *begin,
                                const metadata *meta, char **text, cmkd_error *err) {
  json_t *header = json_object(), *strings = json_object();
  int good = header && strings && (!meta->count || json_object_set(header, META, strings) == 0);
  cmkd_status status =
      good ? describe_metadata(path, meta, strings, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  for (int i = 0; i < count && status == CMKD_OK; i++)
    if (json_object_get(header, tensors[i].name) ||
        json_object_set_new(header, tensors[i].name, describe(&tensors[i], begin[i])) != 0)
      status = cmkd_fail(err, CMKD_ERR_USAGE, "%s: tensor name %.200s is given twice or is not UTF-8", path,
                         tensors[i].name);
  *text = status == CMKD_OK ? json_dumps(header, JSON_COMPACT) : NULL;
  if (status == CMKD_OK && !*text) status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  json_decref(strings);
  json_decref(header);
  return status;
}

cmkd_status cmkd_weights_write(const char *path, const cmkd_tensor *tensors, int count, const char *const *meta_keys,
                               const char *const *meta_values, int meta_count, cmkd_error *err) {
  for (int i = 0; i < count; i++)
    CMKD_TRY(check_tensor(path, &tensors[i], err));
  int *order = calloc((size_t)count + 1, sizeof *order);
  uint64_t *begin = calloc((size_t)count + 1, sizeof *begin);
  cmkd_piece *pieces = calloc((size_t)count + 3, sizeof *pieces);
  char *text = NULL;
  uint8_t head[8];
  cmkd_status status = CMKD_OK;
  if (!order || !begin || !pieces) {
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  } else {
    const metadata meta = {meta_keys, meta_values, meta_count};
    lay_out(tensors, count, order, begin);
    status = build_header(path, tensors, count, begin, &meta, &text, err);
  }
  if (status == CMKD_OK) {
    size_t length = strlen(text), padding = (8 - length % 8) % 8;
    cmkd_store_little(head, 8, length + padding);
    pieces[0] = (cmkd_piece){head, 8};
    pieces[1] = (cmkd_piece){text, length};
    pieces[2] = (cmkd_piece){"       ", padding};
    for (int i = 0; i < count; i++)
      pieces[3 + i] = (cmkd_piece){tensors[order[i]].data,
                                   (size_t)tensors[order[i]].count * cmkd_dtype_size(tensors[order[i]].dtype)};
    status = cmkd_file_write(path, pieces, count + 3, err);
  }
  free(text);
  free(pieces);
  free(begin);
  free(order);
  return status;
}
