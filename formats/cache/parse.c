/* JSON of user blocks to structs. The text is hostile: nothing is allocated that the file could not hold, every number
 * has a range, and one unknown or missing piece fails with the name of the file. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include "formats/cache/meta.h"

typedef struct parser {
  const char *path;
  const char *what;
} parser; /* what: the first thing that was wrong, or NULL */

static void wrong(parser *p, const char *what) {
  if (!p->what) p->what = what;
}

static uint64_t number(parser *p, const json_t *value, const char *key, uint64_t min, uint64_t max) {
  if (!json_is_integer(value)) {
    wrong(p, key);
    return min;
  }
  json_int_t x = json_integer_value(value);
  if (x < 0 || (uint64_t)x < min || (uint64_t)x > max) {
    wrong(p, key);
    return min;
  }
  return (uint64_t)x;
}
static uint64_t get_number(parser *p, const json_t *o, const char *key, uint64_t min, uint64_t max) {
  return number(p, json_object_get(o, key), key, min, max);
}

static void get_text(parser *p, const json_t *o, const char *key, char *out, size_t capacity) {
  const json_t *value = json_object_get(o, key);
  size_t length = json_is_string(value) ? json_string_length(value) : capacity;
  out[0] = 0;
  if (length >= capacity || (length && strlen(json_string_value(value)) != length)) {
    wrong(p, key);
    return;
  }
  memcpy(out, json_string_value(value), length + 1);
}

static int is_hex(const char *s, size_t digits) {
  return strlen(s) == digits && strspn(s, "0123456789abcdef") == digits;
}

static void get_sha(parser *p, const json_t *o, const char *key, char out[CMKD_SHA256_HEX]) {
  get_text(p, o, key, out, CMKD_SHA256_HEX);
  if (!is_hex(out, 64)) wrong(p, key);
}

static int get_flag(parser *p, const json_t *o, const char *key) {
  const json_t *value = json_object_get(o, key);
  if (!json_is_boolean(value)) wrong(p, key);
  return json_is_true(value);
}

static void get_floats(parser *p, const json_t *o, const char *key, float out[3], int *count) {
  const json_t *array = json_object_get(o, key);
  size_t n = json_array_size(array);
  if (!json_is_array(array) || n > 3) {
    wrong(p, key);
    return;
  }
  for (size_t i = 0; i < n; i++) {
    double x = json_number_value(json_array_get(array, i));
    if (!json_is_number(json_array_get(array, i)) || !(fabs(x) < 1e30)) wrong(p, key);
    out[i] = (float)x;
  }
  *count = (int)n;
}

static void parse_identity(parser *p, const json_t *o, cmkd_cache_identity *id) {
  char text[32], *end;
  int stds = 0;
  get_sha(p, o, "teacher_sha256", id->teacher_sha256);
  get_text(p, o, "teacher_arch", id->teacher_arch, sizeof id->teacher_arch);
  get_text(p, o, "teacher_name", id->teacher_name, sizeof id->teacher_name);
  get_floats(p, o, "mean", id->mean, &id->channels);
  get_floats(p, o, "std", id->std, &stds);
  if (stds != id->channels) wrong(p, "std");
  get_text(p, o, "precision", id->precision, sizeof id->precision);
  id->precision_error = json_number_value(json_object_get(o, "precision_error")); /* not there: 0 */
  if (!(id->precision_error >= 0 && id->precision_error < 1e30)) wrong(p, "precision_error");
  id->teacher_batch = (int)get_number(p, o, "teacher_batch", 0, 1 << 24);
  get_text(p, o, "dataset", id->dataset, sizeof id->dataset);
  get_text(p, o, "split", id->split, sizeof id->split);
  get_text(p, o, "fingerprint", id->fingerprint, sizeof id->fingerprint);
  if (id->fingerprint[0] && !is_hex(id->fingerprint, 64)) wrong(p, "fingerprint");
  id->dataset_n = (uint32_t)get_number(p, o, "dataset_n", 0, UINT32_MAX);
  get_text(p, o, "augment", text, sizeof text);
  if (cmkd_policy_parse(text, &id->policy, NULL) != CMKD_OK) wrong(p, "augment");
  get_text(p, o, "rng", id->rng_version, sizeof id->rng_version);
  get_text(p, o, "cache_seed", text, sizeof text);
  id->cache_seed = strtoull(text, &end, 10);
  char again[32];
  snprintf(again, sizeof again, "%llu", (unsigned long long)id->cache_seed);
  if (strcmp(text, again) != 0) wrong(p, "cache_seed");
  id->all_variants = get_flag(p, o, "all_variants");
  id->clean_view = get_flag(p, o, "clean_view");
  get_text(p, o, "codec", id->codec, sizeof id->codec);
  get_text(p, o, "tool_version", id->tool_version, sizeof id->tool_version);
}

static void parse_class_names(parser *p, const json_t *names, cmkd_cache_head *head) {
  if (json_is_null(names)) return;
  if (!json_is_array(names) || json_array_size(names) != head->classes) {
    wrong(p, "class_names");
    return;
  }
  head->class_names = calloc(head->classes, sizeof *head->class_names);
  if (!head->class_names) {
    wrong(p, "class_names");
    return;
  }
  for (uint32_t c = 0; c < head->classes; c++) {
    const json_t *name = json_array_get(names, c);
    head->class_names[c] = strdup(json_is_string(name) ? json_string_value(name) : "");
    if (!json_is_string(name) || !head->class_names[c] || strlen(head->class_names[c]) != json_string_length(name))
      wrong(p, "class_names");
  }
}

/* `file_size` bounds what the shape may claim: a master has shards of 512 bytes and more, a shard at least 12 bytes a
 * sample. */
static const cmkd_codec *parse_head(parser *p, const json_t *o, const char *format, cmkd_cache_head *head) {
  char text[32];
  const cmkd_codec *codec = NULL;
  get_text(p, o, "format", text, sizeof text);
  if (strcmp(text, format) != 0) wrong(p, "format");
  get_number(p, o, "schema", 1, 1);
  parse_identity(p, json_object_get(o, "identity"), &head->identity);
  if (cmkd_codec_find(head->identity.codec, &codec, NULL) != CMKD_OK) wrong(p, "codec");
  const json_t *shape = json_object_get(o, "shape");
  if (!json_is_array(shape) || json_array_size(shape) != 3) wrong(p, "shape");
  head->samples = number(p, json_array_get(shape, 0), "shape", 1, UINT32_MAX);
  head->views = (uint32_t)number(p, json_array_get(shape, 1), "shape", 1, CMKD_CACHE_MAX_VIEWS);
  head->classes = (uint32_t)number(p, json_array_get(shape, 2), "shape", 1, CMKD_CACHE_MAX_CLASSES);
  head->shards = (uint32_t)get_number(p, o, "shards", 1, CMKD_CACHE_MAX_SHARDS);
  head->shard_rows = (uint32_t)get_number(p, o, "shard_rows", 1, INT32_MAX);
  head->chunk_rows = (uint32_t)get_number(p, o, "chunk_rows", 1, head->shard_rows);
  if ((head->samples + head->shard_rows - 1) / head->shard_rows != head->shards) wrong(p, "shards");
  if (codec && codec->thin && cmkd_codec_keep(head->identity.codec) >= head->classes) wrong(p, "codec");
  if (codec && (uint64_t)head->chunk_rows * head->classes * (uint64_t)codec->item > CMKD_CACHE_CHUNK_LIMIT)
    wrong(p, "chunk_rows");
  if (!p->what) parse_class_names(p, json_object_get(o, "class_names"), head);
  return codec;
}

static void parse_extents(parser *p, const json_t *array, const char *key, size_t count, uint64_t payload, uint64_t min,
                          uint64_t max, cmkd_extent *out) {
  if (!json_is_array(array) || json_array_size(array) != count) {
    wrong(p, key);
    return;
  }
  for (size_t i = 0; i < count && !p->what; i++) {
    const json_t *entry = json_array_get(array, i), *hash = json_array_get(entry, 2);
    if (!json_is_array(entry) || json_array_size(entry) != 3 || !json_is_string(hash) ||
        !is_hex(json_string_value(hash), 16)) {
      wrong(p, key);
      return;
    }
    out[i].offset = number(p, json_array_get(entry, 0), key, 0, payload);
    out[i].size = number(p, json_array_get(entry, 1), key, min, max);
    if (out[i].size > payload - out[i].offset) wrong(p, key);
    out[i].hash = strtoull(json_string_value(hash), NULL, 16);
  }
}

static json_t *load(parser *p, const char *json, size_t size) {
  json_t *o = json_loadb(json, size, JSON_REJECT_DUPLICATES, NULL);
  if (!json_is_object(o)) wrong(p, "JSON");
  return o;
}
static cmkd_status verdict(const parser *p, cmkd_error *err) {
  if (!p->what) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_FORMAT,
                   "%s: its header makes no sense (\"%s\"); it was not written by cmkd-cache, or by a newer one",
                   p->path, p->what);
}

cmkd_status cmkd_shard_json_parse(const char *json, size_t size, uint64_t payload, const char *path,
                                  cmkd_cache_head *head, cmkd_shard_meta *meta, cmkd_error *err) {
  parser p = {path, NULL};
  memset(head, 0, sizeof *head);
  memset(meta, 0, sizeof *meta);
  json_t *o = load(&p, json, size);
  const cmkd_codec *codec = parse_head(&p, o, "cmkd-shard", head);
  const json_t *shard = json_object_get(o, "shard"), *logits = json_object_get(o, "logits"),
               *arrays = json_object_get(o, "arrays");
  cmkd_status status = CMKD_OK;
  if (!p.what) {
    meta->index = (uint32_t)get_number(&p, shard, "index", 0, head->shards - 1);
    uint32_t n = cmkd_shard_samples(head, meta->index), rows = cmkd_shard_chunk_rows(head, n);
    uint64_t chunks = (uint64_t)head->views * ((n + rows - 1) / rows);
    get_number(&p, shard, "samples", n, n);
    get_number(&p, shard, "first", (uint64_t)meta->index * head->shard_rows, (uint64_t)meta->index * head->shard_rows);
    if (!json_is_array(logits) || json_array_size(logits) != chunks || (uint64_t)n * 12 > payload) wrong(&p, "logits");
  }
  if (!p.what) status = cmkd_shard_meta_alloc(meta, head, err); /* its size is bounded by the JSON's own array */
  if (!p.what && status == CMKD_OK) {
    uint64_t n = meta->samples,
             raw = (uint64_t)cmkd_shard_chunk_rows(head, meta->samples) * head->classes * (uint64_t)codec->item;
    parse_extents(&p, logits, "logits", (size_t)head->views * meta->blocks, payload, 5,
                  ZSTD_compressBound((size_t)raw) + 4, meta->logits);
    parse_extents(&p, json_object_get(arrays, "seeds"), "seeds", head->views, payload, 8 * n, 8 * n, meta->seeds);
    parse_extents(&p, json_object_get(arrays, "sample_id"), "sample_id", 1, payload, 8 * n, 8 * n, &meta->sample_id);
    parse_extents(&p, json_object_get(arrays, "label"), "label", 1, payload, 4 * n, 4 * n, &meta->label);
    if (meta->row_max)
      parse_extents(&p, json_object_get(arrays, "row_max"), "row_max", head->views, payload, 2 * n, 2 * n,
                    meta->row_max);
    if (meta->row_max)
      parse_extents(&p, json_object_get(arrays, "row_range"), "row_range", head->views, payload, 2 * n, 2 * n,
                    meta->row_range);
  }
  json_decref(o);
  if (status == CMKD_OK) status = verdict(&p, err);
  if (status != CMKD_OK) {
    cmkd_cache_head_free(head);
    cmkd_shard_meta_free(meta);
  }
  return status;
}

static void parse_files(parser *p, const json_t *files, cmkd_master_meta *meta) {
  for (uint32_t k = 0; k < meta->head.shards && !p->what; k++) {
    const json_t *entry = json_array_get(files, k), *file = json_array_get(entry, 0), *sha = json_array_get(entry, 4);
    cmkd_shard_entry *s = meta->shards + k;
    uint64_t first = (uint64_t)k * meta->head.shard_rows;
    uint32_t n = cmkd_shard_samples(&meta->head, k);
    if (!json_is_array(entry) || json_array_size(entry) != 5 || !json_is_string(file) || !json_is_string(sha) ||
        !is_hex(json_string_value(sha), 64)) {
      wrong(p, "files");
      return;
    }
    cmkd_shard_name(&meta->head, k,
                    s->file); /* the name follows from the place: a path of another kind can't be smuggled in */
    if (strcmp(s->file, json_string_value(file)) != 0) wrong(p, "files");
    s->size = number(p, json_array_get(entry, 1), "files", 512, INT64_MAX);
    s->first = number(p, json_array_get(entry, 2), "files", first, first);
    s->samples = (uint32_t)number(p, json_array_get(entry, 3), "files", n, n);
    memcpy(s->block_sha256, json_string_value(sha), sizeof s->block_sha256);
  }
}

cmkd_status cmkd_master_json_parse(const char *json, size_t size, uint64_t file_size, const char *path,
                                   cmkd_master_meta *meta, cmkd_error *err) {
  (void)file_size;
  parser p = {path, NULL};
  memset(meta, 0, sizeof *meta);
  json_t *o = load(&p, json, size);
  parse_head(&p, o, "cmkd-cache", &meta->head);
  get_text(&p, o, "folder", meta->folder, sizeof meta->folder);
  if (!meta->folder[0] || strchr(meta->folder, '/') || !strcmp(meta->folder, ".") || !strcmp(meta->folder, ".."))
    wrong(&p, "folder");
  get_sha(&p, o, "cache_sha256", meta->fingerprint);
  const json_t *files = json_object_get(o, "files");
  if (!p.what && (!json_is_array(files) || json_array_size(files) != meta->head.shards)) wrong(&p, "files");
  if (!p.what && !(meta->shards = calloc(meta->head.shards, sizeof *meta->shards))) wrong(&p, "files");
  if (!p.what) parse_files(&p, files, meta);
  json_decref(o);
  cmkd_status status = verdict(&p, err);
  if (status == CMKD_OK) { /* the fingerprint is a function of the rest */
    char stored[CMKD_SHA256_HEX];
    memcpy(stored, meta->fingerprint, sizeof stored);
    status = cmkd_master_fingerprint(meta, err);
    if (status == CMKD_OK && strcmp(stored, meta->fingerprint) != 0)
      status = cmkd_fail(err, CMKD_ERR_FORMAT, "%s: its fingerprint does not match its content; build it again", path);
  }
  if (status != CMKD_OK) cmkd_master_meta_free(meta);
  return status;
}
