/* See reference.h. */
#include "bench/gpu/reference.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include "base/file.h"
#include "base/hash.h"

#define MOST_GRADIENT 1e30 /* far below what a float holds, far above what a gradient is */
#define MAGIC "CMKD reference 1\n"
enum { MAGIC_SIZE = sizeof MAGIC - 1, HEAD_SIZE = MAGIC_SIZE + CMKD_SHA256_HEX, LEVEL = 19 };
enum { PLANES = 3, SIGN = 1 << 23 };
#define MOST_WHOLE 8388607.0 /* 2^23 - 1 */

/* ---- the file ---- */

cmkd_status bench_reference_bad(const char *name, const char *what, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_FORMAT, "%.200s: %s; make it again: make gpu-reference", name, what);
}

cmkd_status bench_reference_write(const char *path, const json_t *about, const void *numbers, size_t size,
                                  cmkd_error *err) {
  char *text = json_dumps(about, JSON_COMPACT);
  const size_t length = text ? strlen(text) + 1 : 0, bound = ZSTD_compressBound(length + size);
  char *plain = malloc(length + size + 1), *packed = malloc(bound), head[HEAD_SIZE + 1] = MAGIC;
  cmkd_status status = text && plain && packed ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  if (status == CMKD_OK && length + size > BENCH_REFERENCE_LIMIT)
    status = cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: %zu bytes of answers; at most %zu are read again", path,
                       length + size, BENCH_REFERENCE_LIMIT);
  if (status == CMKD_OK) {
    memcpy(plain, text, length);
    plain[length - 1] = '\n';
    memcpy(plain + length, numbers, size);
    const size_t got = ZSTD_compress(packed, bound, plain, length + size, LEVEL);
    if (ZSTD_isError(got))
      status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: %s", path, ZSTD_getErrorName(got));
    else {
      cmkd_sha256(packed, got, head + MAGIC_SIZE);
      head[HEAD_SIZE - 1] = '\n';
      status = cmkd_file_write(path, (cmkd_piece[]){{head, HEAD_SIZE}, {packed, got}}, 2, err);
    }
  }
  free(packed);
  free(plain);
  free(text);
  return status;
}

/* The zstd frame, behind which nothing may come. Its size is believed only within the limit. */
static cmkd_status inflate_frame(const uint8_t *frame, size_t frame_size, const char *name, char **out, size_t *size,
                                 cmkd_error *err) {
  const unsigned long long claimed = ZSTD_getFrameContentSize(frame, frame_size);
  if (claimed > BENCH_REFERENCE_LIMIT) return bench_reference_bad(name, "damaged: no zstd frame of a known size", err);
  if (!(*out = malloc((size_t)claimed + 1)))
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%.200s: out of memory for %llu bytes", name, claimed);
  *size = ZSTD_decompress(*out, (size_t)claimed, frame, frame_size);
  return *size == claimed ? CMKD_OK : bench_reference_bad(name, "damaged: its zstd frame does not unpack", err);
}

cmkd_status bench_reference_parse(const uint8_t *bytes, size_t bytes_size, const char *name, json_t **about,
                                  uint8_t **numbers, size_t *size, cmkd_error *err) {
  char hex[CMKD_SHA256_HEX], *plain = NULL, *line;
  *about = NULL;
  *numbers = NULL;
  if (bytes_size < MAGIC_SIZE || memcmp(bytes, MAGIC, MAGIC_SIZE))
    return bench_reference_bad(name, "not a file of reference answers", err);
  if (bytes_size < HEAD_SIZE) return bench_reference_bad(name, "truncated in its head", err);
  cmkd_sha256(bytes + HEAD_SIZE, bytes_size - HEAD_SIZE, hex);
  if (memcmp(bytes + MAGIC_SIZE, hex, CMKD_SHA256_HEX - 1) || bytes[HEAD_SIZE - 1] != '\n')
    return bench_reference_bad(name, "damaged: its bytes are not those of its SHA-256", err);
  size_t plain_size = 0;
  cmkd_status status = inflate_frame(bytes + HEAD_SIZE, bytes_size - HEAD_SIZE, name, &plain, &plain_size, err);
  if (status == CMKD_OK && !(line = memchr(plain, '\n', plain_size)))
    status = bench_reference_bad(name, "damaged: no line of JSON", err);
  if (status == CMKD_OK) {
    *about = json_loadb(plain, (size_t)(line - plain), JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(json_object_get(*about, "settings")))
      status = bench_reference_bad(name, "damaged: its JSON has no settings", err);
  }
  if (status == CMKD_OK) {
    *size = plain_size - (size_t)(line + 1 - plain);
    memmove(plain, line + 1, *size);
    *numbers = (uint8_t *)plain;
    return CMKD_OK;
  }
  free(plain);
  json_decref(*about);
  *about = NULL;
  return status;
}

cmkd_status bench_reference_read(const char *path, json_t **about, uint8_t **numbers, size_t *size, cmkd_error *err) {
  uint8_t *bytes;
  size_t bytes_size;
  cmkd_error why = {0};
  *about = NULL;
  *numbers = NULL;
  cmkd_status status = cmkd_file_read(path, BENCH_REFERENCE_LIMIT, &bytes, &bytes_size, &why);
  if (status != CMKD_OK) return cmkd_fail(err, status, "%s; make it: make gpu-reference", why.message);
  status = bench_reference_parse(bytes, bytes_size, path, about, numbers, size, err);
  free(bytes);
  return status;
}

cmkd_status bench_reference_match(const json_t *about, const json_t *settings, const char *name, cmkd_error *err) {
  const json_t *made_for = json_object_get(about, "settings");
  const char *key;
  json_t *want;
  json_object_foreach((json_t *)settings, key, want) {
    const json_t *have = json_object_get(made_for, key);
    if (json_equal(want, have)) continue;
    char *a = have ? json_dumps(have, JSON_ENCODE_ANY) : NULL, *b = json_dumps(want, JSON_ENCODE_ANY);
    cmkd_fail(err, CMKD_ERR_MISMATCH,
              "%.200s: made for %s %.80s, not %.80s; give the same options, or make it again: make gpu-reference", name,
              key, a ? a : "unknown", b ? b : "?");
    free(a);
    free(b);
    return CMKD_ERR_MISMATCH;
  }
  return CMKD_OK;
}

/* ---- a step ---- */

cmkd_status bench_answers_create(const cmkd_graph *graph, int count, bench_answers *out, cmkd_error *err) {
  memset(out, 0, sizeof *out);
  CMKD_TRY(cmkd_params_create(graph, &out->gradient, err));
  CMKD_TRY(cmkd_params_create(graph, &out->value, err));
  CMKD_TRY(cmkd_params_create(graph, &out->momentum, err));
  out->logits = calloc((size_t)count * (size_t)graph->classes, sizeof *out->logits);
  return out->logits ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the logits of %d rows", count);
}

void bench_answers_free(bench_answers *a) {
  cmkd_params_free(&a->gradient);
  cmkd_params_free(&a->value);
  cmkd_params_free(&a->momentum);
  free(a->logits);
}

int64_t bench_stride(int64_t entries, int sampled) {
  int64_t stride = sampled ? (entries - 1) / sampled + 1 : 1;
  /* no factor of 2 or 3: it would meet one tap of a kernel, or a few channels, only */
  while (stride > 1 && (stride % 2 == 0 || stride % 3 == 0))
    stride++;
  return stride;
}

static int trained(const cmkd_graph *g, int i) { return CMKD_PARAM_TRAINED(g->param[i].kind); }

/* Entries of a parameter's gradient that are stored. */
static int64_t stored(const bench_packing *p, int i) {
  const int64_t entries = p->graph->param[i].count;
  return trained(p->graph, i) ? (entries - 1) / bench_stride(entries, p->sampled) + 1 : 0;
}

/* Numbers in a plane. */
static size_t plane_size(const bench_packing *p) {
  size_t sum = 0;
  for (int i = 0; i < p->graph->params; i++)
    sum += (size_t)stored(p, i);
  return sum;
}

/* loss and largest entries (params) as double, running statistics and logits (count, classes) as float, planes */
size_t bench_packed_size(const bench_packing *p) {
  const cmkd_graph *g = p->graph;
  size_t floats = (size_t)p->count * (size_t)g->classes;
  for (int i = 0; i < g->params; i++)
    floats += trained(g, i) ? 0 : (size_t)g->param[i].count;
  return (1 + (size_t)g->params) * sizeof(double) + floats * sizeof(float) + PLANES * plane_size(p);
}

static void put(uint8_t **at, const void *from, size_t size) {
  memcpy(*at, from, size);
  *at += size;
}

static void take(const uint8_t **at, void *to, size_t size) {
  memcpy(to, *at, size);
  *at += size;
}

double bench_largest(const float *x, int64_t n, int64_t stride) {
  double most = 0;
  for (int64_t i = 0; i < n; i += stride)
    most = fmax(most, fabs((double)x[i]));
  return most;
}

static int all_finite(const float *x, int64_t n) {
  int finite = 1;
  for (int64_t i = 0; i < n; i++)
    finite &= isfinite(x[i]) != 0;
  return finite;
}

/* No |a[i] - b[i]| of every stride'th entry is above `most`. */
static int near(const float *a, const float *b, int64_t n, int64_t stride, double most) {
  for (int64_t i = 0; i < n; i += stride)
    if (!(fabs((double)a[i] - (double)b[i]) <= most)) return 0;
  return 1;
}

/* What was packed, unpacked again, is what the step left, but for the rounding of whole numbers and of floats. */
static cmkd_status check_packed(const bench_packing *p, const bench_answers *a, const uint8_t *packed,
                                cmkd_error *err) {
  const cmkd_graph *g = p->graph;
  bench_answers again;
  cmkd_status status = bench_answers_create(g, p->count, &again, err);
  if (status == CMKD_OK) status = bench_answers_unpack(p, packed, &again, err);
  for (int i = 0; status == CMKD_OK && i < g->params; i++) {
    const int64_t n = g->param[i].count, stride = bench_stride(n, p->sampled);
    const float *gradient = a->gradient.value[i], *momentum = a->momentum.value[i], *value = a->value.value[i];
    const double whole = 0x1p-22 * bench_largest(gradient, n, 1);
    if (!trained(g, i)) continue;
    if (!near(again.gradient.value[i], gradient, n, stride, whole) ||
        !near(again.momentum.value[i], momentum, n, stride, whole + 0x1p-22 * bench_largest(momentum, n, 1)) ||
        !near(again.value.value[i], value, n, stride, p->lr * whole + 0x1p-22 * bench_largest(value, n, 1)))
      status = cmkd_fail(err, CMKD_ERR_VALUE,
                         "`%s` after a step does not follow from its gradient, weight decay %g and learning rate %g",
                         g->param[i].name, p->weight_decay, p->lr);
  }
  bench_answers_free(&again);
  return status;
}

cmkd_status bench_answers_pack(const bench_packing *p, const bench_answers *a, uint8_t *packed, cmkd_error *err) {
  const cmkd_graph *g = p->graph;
  const size_t plane = plane_size(p);
  uint8_t *at = packed;
  put(&at, &a->loss, sizeof a->loss);
  for (int i = 0; i < g->params; i++) {
    const int64_t n = g->param[i].count;
    const double most = trained(g, i) ? bench_largest(a->gradient.value[i], n, bench_stride(n, p->sampled)) : 0;
    if (!isfinite(a->loss) || (trained(g, i) && !all_finite(a->gradient.value[i], n)))
      return cmkd_fail(err, CMKD_ERR_VALUE, "the loss or the gradient of `%s` is not finite", g->param[i].name);
    put(&at, &most, sizeof most);
  }
  for (int i = 0; i < g->params; i++)
    if (!trained(g, i)) put(&at, a->value.value[i], (size_t)g->param[i].count * sizeof(float));
  put(&at, a->logits, (size_t)p->count * (size_t)g->classes * sizeof(float));
  for (int i = 0; i < g->params; i++) {
    const int64_t n = g->param[i].count, stride = bench_stride(n, p->sampled);
    const float *gradient = a->gradient.value[i];
    const double most = bench_largest(gradient, n, stride), scale = most > 0 ? MOST_WHOLE / most : 0;
    for (int64_t j = 0; trained(g, i) && j < n; j += stride, at++) {
      const uint32_t whole = (uint32_t)(int64_t)nearbyint(scale * (double)gradient[j]);
      for (int b = 0; b < PLANES; b++)
        at[(size_t)b * plane] = (uint8_t)(whole >> 8 * (PLANES - 1 - b));
    }
  }
  return check_packed(p, a, packed, err);
}

/* Gradient of one parameter from its first plane on, then what SGD makes of it. */
static void unpack_param(const bench_packing *p, int i, double most, const uint8_t *at, size_t plane,
                         bench_answers *out) {
  const int64_t n = p->graph->param[i].count, stride = bench_stride(n, p->sampled);
  for (int64_t j = 0; j < n; j += stride, at++) {
    uint32_t whole = 0;
    for (int b = 0; b < PLANES; b++)
      whole = whole << 8 | at[(size_t)b * plane];
    const int64_t with_sign = whole & SIGN ? (int64_t)whole - 2 * SIGN : whole;
    const double gradient = most / MOST_WHOLE * (double)with_sign, start = (double)p->start->value[i][j];
    const double momentum = gradient + p->weight_decay * start;
    out->gradient.value[i][j] = (float)gradient;
    out->momentum.value[i][j] = (float)momentum;
    out->value.value[i][j] = (float)(start - p->lr * momentum);
  }
}

cmkd_status bench_answers_unpack(const bench_packing *p, const uint8_t *packed, bench_answers *out, cmkd_error *err) {
  const cmkd_graph *g = p->graph;
  const size_t plane = plane_size(p), logits = (size_t)p->count * (size_t)g->classes;
  const uint8_t *at = packed, *scales;
  int finite = 1;
  take(&at, &out->loss, sizeof out->loss);
  scales = at;
  at += (size_t)g->params * sizeof(double);
  for (int i = 0; i < g->params; i++) {
    if (trained(g, i)) continue;
    take(&at, out->value.value[i], (size_t)g->param[i].count * sizeof(float));
    finite &= all_finite(out->value.value[i], g->param[i].count);
  }
  take(&at, out->logits, logits * sizeof(float));
  finite &= isfinite(out->loss) && all_finite(out->logits, (int64_t)logits);
  for (int i = 0; i < g->params; i++) {
    double most;
    take(&scales, &most, sizeof most);
    finite &= most >= 0 && most <= MOST_GRADIENT;
    if (trained(g, i)) unpack_param(p, i, finite ? most : 0, at, plane, out);
    at += stored(p, i);
  }
  return finite ? CMKD_OK : cmkd_fail(err, CMKD_ERR_FORMAT, "damaged: a number that is not finite");
}
