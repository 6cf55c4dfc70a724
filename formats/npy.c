#include "formats/npy.h"
#include "base/bytes.h"
#include "base/file.h"
#include "formats/weights/tensors.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEADER (1u << 20)

static const char *const descriptions[] = {
    [CMKD_F32] = "<f4", [CMKD_F64] = "<f8", [CMKD_F16] = "<f2",  [CMKD_BF16] = NULL, [CMKD_I64] = "<i8",
    [CMKD_I32] = "<i4", [CMKD_U8] = "|u1",  [CMKD_BOOL] = "|b1", [CMKD_I8] = "|i1",  [CMKD_I16] = "<i2",
    [CMKD_U16] = "<u2", [CMKD_U32] = "<u4", [CMKD_U64] = "<u8"};

/* ---- reading: the header is a Python dict literal of exactly three keys ---- */

typedef struct text {
  const char *at, *end;
} text;

static void blanks(text *t) {
  while (t->at < t->end && (*t->at == ' ' || *t->at == '\n' || *t->at == '\t'))
    t->at++;
}

static int accept(text *t, char c) {
  blanks(t);
  if (t->at == t->end || *t->at != c) return 0;
  t->at++;
  return 1;
}

/* 'word' or "word"; no escapes. */
static int quoted(text *t, const char **word, size_t *length) {
  blanks(t);
  if (t->at == t->end || (*t->at != '\'' && *t->at != '"')) return 0;
  const char *stop = memchr(t->at + 1, *t->at, (size_t)(t->end - t->at - 1));
  if (!stop) return 0;
  *word = t->at + 1;
  *length = (size_t)(stop - t->at - 1);
  t->at = stop + 1;
  return 1;
}

static int is(const char *word, size_t length, const char *what) {
  return length == strlen(what) && !memcmp(word, what, length);
}

static int boolean(text *t, int *out) {
  blanks(t);
  for (int v = 0; v < 2; v++) {
    size_t n = v ? 4 : 5;
    if ((size_t)(t->end - t->at) >= n && !memcmp(t->at, v ? "True" : "False", n)) {
      t->at += n;
      *out = v;
      return 1;
    }
  }
  return 0;
}

/* (3, 4), (3,), (): at most CMKD_MAX_DIMS whole numbers. */
static int tuple(text *t, cmkd_npy *array) {
  if (!accept(t, '(')) return 0;
  while (!accept(t, ')')) {
    if (array->dims == CMKD_MAX_DIMS) return 0;
    int64_t v = 0;
    const char *first = t->at;
    for (; t->at < t->end && *t->at >= '0' && *t->at <= '9'; t->at++)
      if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *t->at - '0', &v)) return 0;
    if (t->at == first) return 0;
    array->shape[array->dims++] = v;
    if (!accept(t, ',')) return accept(t, ')') && array->dims > 1;
  }
  return 1;
}

static cmkd_status description(const char *word, size_t length, const char *name, cmkd_dtype *out, cmkd_error *err) {
  for (int d = CMKD_F32; d <= CMKD_U64; d++) {
    const char *known = descriptions[d];
    if (!known || (!is(word, length, known) && (known[0] != '|' || length != 3 || memcmp(word + 1, known + 1, 2))))
      continue;
    *out = (cmkd_dtype)d;
    return CMKD_OK;
  }
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                   "%s: an array of type '%.*s'; known are little-endian floats, integers and booleans", name,
                   (int)(length < 40 ? length : 40), word);
}

static cmkd_status parse_header(text t, const char *name, cmkd_npy *array, cmkd_error *err) {
  int seen = 0, fortran = 0;
  const char *word, *key;
  size_t length, key_length;
  if (!accept(&t, '{')) goto damaged;
  while (!accept(&t, '}')) {
    if (!quoted(&t, &key, &key_length) || !accept(&t, ':')) goto damaged;
    int which = is(key, key_length, "descr")           ? 1
                : is(key, key_length, "fortran_order") ? 2
                : is(key, key_length, "shape")         ? 4
                                                       : 0;
    if (!which || seen & which) goto damaged;
    seen |= which;
    if (which == 1) {
      if (!quoted(&t, &word, &length))
        return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: a structured array; only plain numbers are read", name);
      CMKD_TRY(description(word, length, name, &array->dtype, err));
    } else if (!(which == 2 ? boolean(&t, &fortran) : tuple(&t, array)))
      goto damaged;
    if (!accept(&t, ',')) {
      if (!accept(&t, '}')) goto damaged;
      break;
    }
  }
  blanks(&t);
  if (seen != 7 || t.at != t.end) goto damaged;
  if (fortran && array->dims > 1)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: in Fortran order; save numpy.ascontiguousarray(x)", name);
  return CMKD_OK;
damaged:
  return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: damaged .npy header; write the file again", name);
}

static cmkd_status parse(const uint8_t *bytes, size_t size, const char *name, cmkd_npy *array, cmkd_error *err) {
  if (size < 10 || memcmp(bytes, "\x93NUMPY", 6)) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: not a .npy file", name);
  size_t start = bytes[6] == 1 ? 10 : 12;
  if (bytes[6] < 1 || bytes[6] > 3 || bytes[7] != 0)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: .npy version %u.%u; known are 1.0 to 3.0", name, bytes[6],
                     bytes[7]);
  if (size < start) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: truncated in its header", name);
  size_t length = (size_t)cmkd_load_little(bytes + 8, start == 10 ? 2 : 4);
  if (length > MAX_HEADER || length > size - start)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: truncated in its header of %zu bytes", name, length);
  CMKD_TRY(parse_header((text){(const char *)bytes + start, (const char *)bytes + start + length}, name, array, err));
  cmkd_tensor measure = {.name = "", .dtype = array->dtype, .dims = array->dims};
  memcpy(measure.shape, array->shape, sizeof measure.shape);
  CMKD_TRY(cmkd_tensor_measure(&measure, name, err));
  array->count = measure.count;
  size_t have = size - start - length;
  uint64_t want = (uint64_t)array->count * cmkd_dtype_size(array->dtype);
  if (have != want)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %s: %zu bytes of numbers where its shape needs %llu", name,
                     have < want ? "truncated" : "oversized", have, (unsigned long long)want);
  if (!(array->data = malloc(have + 1)))
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for %zu bytes", name, have);
  memcpy(array->data, bytes + start + length, have);
  return CMKD_OK;
}

cmkd_status cmkd_npy_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_npy **out, cmkd_error *err) {
  *out = NULL;
  cmkd_npy *array = calloc(1, sizeof *array);
  if (!array) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", name);
  cmkd_status status = parse(bytes, size, name, array, err);
  if (status != CMKD_OK) {
    cmkd_npy_free(array);
    return status;
  }
  *out = array;
  return CMKD_OK;
}

cmkd_status cmkd_npy_read(const char *path, uint64_t limit, cmkd_npy **out, cmkd_error *err) {
  uint8_t *bytes;
  size_t size;
  *out = NULL;
  CMKD_TRY(cmkd_file_read(path, limit, &bytes, &size, err));
  cmkd_status status = cmkd_npy_parse(bytes, size, path, out, err);
  free(bytes);
  return status;
}

void cmkd_npy_free(cmkd_npy *array) {
  if (!array) return;
  free(array->data);
  free(array);
}

/* ---- writing ---- */

struct cmkd_npy_writer {
  char *path;
  cmkd_file_writer *file;
  size_t item;   /* bytes */
  uint64_t left; /* items still to come */
};

void cmkd_npy_abort(cmkd_npy_writer *w) {
  if (!w) return;
  cmkd_file_abort(w->file);
  free(w->path);
  free(w);
}

/* "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }", blanks and a newline up to a multiple of 64 with the
 * 10 bytes before it. */
static size_t build_header(cmkd_dtype dtype, int dims, const int64_t *shape, uint8_t out[512]) {
  char *dict = (char *)out + 10;
  size_t at = (size_t)snprintf(dict, 400, "{'descr': '%s', 'fortran_order': False, 'shape': (", descriptions[dtype]);
  for (int d = 0; d < dims; d++)
    at += (size_t)snprintf(dict + at, 400 - at, d ? ", %lld" : "%lld", (long long)shape[d]);
  if (dims == 1) at += (size_t)snprintf(dict + at, 400 - at, ",");
  at += (size_t)snprintf(dict + at, 400 - at, "), }");
  while ((10 + at + 1) % 64)
    dict[at++] = ' ';
  dict[at++] = '\n';
  memcpy(out, "\x93NUMPY\1", 8);
  out[8] = (uint8_t)at;
  out[9] = (uint8_t)(at >> 8);
  return 10 + at;
}

cmkd_status cmkd_npy_begin(const char *path, cmkd_dtype dtype, int dims, const int64_t *shape, cmkd_npy_writer **out,
                           cmkd_error *err) {
  uint8_t header[512];
  *out = NULL;
  if (dims < 0 || dims > CMKD_MAX_DIMS || !descriptions[dtype])
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: NumPy can't hold %d dimensions of %s", path, dims,
                     cmkd_dtype_name(dtype));
  cmkd_tensor measure = {.name = "", .dtype = dtype, .dims = dims};
  for (int d = 0; d < dims; d++)
    measure.shape[d] = shape[d];
  CMKD_TRY(cmkd_tensor_measure(&measure, path, err));
  cmkd_npy_writer *w = calloc(1, sizeof *w);
  if (!w) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  w->path = strdup(path);
  w->item = cmkd_dtype_size(dtype);
  w->left = (uint64_t)measure.count;
  cmkd_status status =
      w->path ? cmkd_file_begin(path, &w->file, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  if (status == CMKD_OK) {
    const cmkd_piece piece = {header, build_header(dtype, dims, shape, header)};
    status = cmkd_file_append(w->file, &piece, 1, err);
  }
  if (status != CMKD_OK) {
    cmkd_npy_abort(w);
    return status;
  }
  *out = w;
  return CMKD_OK;
}

cmkd_status cmkd_npy_append(cmkd_npy_writer *w, const void *items, uint64_t count, cmkd_error *err) {
  if (count > w->left) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: more numbers than its shape holds", w->path);
  const cmkd_piece piece = {items, (size_t)(count * w->item)};
  CMKD_TRY(cmkd_file_append(w->file, &piece, 1, err));
  w->left -= count;
  return CMKD_OK;
}

cmkd_status cmkd_npy_end(cmkd_npy_writer *w, cmkd_error *err) {
  cmkd_status status = CMKD_OK;
  if (w->left)
    status = cmkd_fail(err, CMKD_ERR_USAGE, "%s: %llu numbers fewer than its shape holds", w->path,
                       (unsigned long long)w->left);
  else {
    status = cmkd_file_end(w->file, err);
    w->file = NULL;
  }
  cmkd_npy_abort(w);
  return status;
}
