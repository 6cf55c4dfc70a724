#include "formats/cache/parse.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

typedef struct parser {
  const char *path;
  const char *what; /* key of the first thing that was wrong, or NULL */
} parser;

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

static void parse_class_names(parser *p, const json_t *names, cmkd_cache_config *config) {
  if (json_is_null(names)) return;
  if (!json_is_array(names) || json_array_size(names) != config->classes) {
    wrong(p, "class_names");
    return;
  }
  config->class_names = calloc(config->classes, sizeof *config->class_names);
  if (!config->class_names) {
    wrong(p, "class_names");
    return;
  }
  for (uint32_t c = 0; c < config->classes; c++) {
    const json_t *name = json_array_get(names, c);
    config->class_names[c] = strdup(json_is_string(name) ? json_string_value(name) : "");
    if (!json_is_string(name) || !config->class_names[c] || strlen(config->class_names[c]) != json_string_length(name))
      wrong(p, "class_names");
  }
}

/* 0: of an unknown type, to be ignored. */
static int parse_layout(parser *p, const json_t *o, const cmkd_cache_config *config, cmkd_array_layout *layout) {
  cmkd_cache_array *array = &layout->array;
  const json_t *shape = json_object_get(o, "shape");
  char dtype[32];
  uint32_t same_name;
  memset(layout, 0, sizeof *layout);
  get_text(p, o, "name", array->name, sizeof array->name);
  get_text(p, o, "dtype", dtype, sizeof dtype);
  if (p->what || !cmkd_codec_of_dtype_name(dtype, &array->dtype)) return 0;
  if (!json_is_array(shape) || json_array_size(shape) > CMKD_CACHE_ARRAY_DIMS) {
    wrong(p, "shape");
    return 0;
  }
  array->dims = (int)json_array_size(shape);
  for (int d = 0; d < array->dims; d++)
    array->shape[d] = (uint32_t)number(p, json_array_get(shape, (size_t)d), "shape", 1, CMKD_CACHE_CHUNK_LIMIT);
  array->chunk_samples = (uint32_t)get_number(p, o, "chunk_rows", 1, config->shard_samples);
  const char *bad = p->what ? p->what : cmkd_layout_check(layout);
  if (bad)
    wrong(p, bad);
  else if ((uint64_t)array->chunk_samples * cmkd_layout_row_bytes(layout) > CMKD_CACHE_CHUNK_LIMIT)
    wrong(p, "chunk_rows");
  else if (cmkd_layout_find(config, config->layout_count, array->name, &same_name))
    wrong(p, "name");
  return !p->what;
}

static void parse_layouts(parser *p, const json_t *arrays, cmkd_cache_config *config) {
  if (!arrays) return;
  if (!json_is_array(arrays) || json_array_size(arrays) > CMKD_CACHE_MAX_ARRAYS) wrong(p, "named_arrays");
  for (size_t i = 0; !p->what && i < json_array_size(arrays); i++) {
    if (parse_layout(p, json_array_get(arrays, i), config, config->layouts + config->layout_count))
      config->layout_count++;
    else
      config->unknown_arrays++;
  }
}

static void parse_config(parser *p, const json_t *o, const char *format, cmkd_cache_config *config) {
  char text[32];
  const cmkd_codec *codec = NULL;
  get_text(p, o, "format", text, sizeof text);
  if (strcmp(text, format) != 0) wrong(p, "format");
  get_number(p, o, "schema", 1, 1);
  parse_identity(p, json_object_get(o, "identity"), &config->identity);
  if (cmkd_codec_find(config->identity.codec, &codec, NULL) != CMKD_OK) wrong(p, "codec");
  const json_t *shape = json_object_get(o, "shape");
  if (!json_is_array(shape) || json_array_size(shape) != 3) wrong(p, "shape");
  config->samples = number(p, json_array_get(shape, 0), "shape", 1, UINT32_MAX);
  config->views = (uint32_t)number(p, json_array_get(shape, 1), "shape", 1, CMKD_CACHE_MAX_VIEWS);
  config->classes = (uint32_t)number(p, json_array_get(shape, 2), "shape", 1, CMKD_CACHE_MAX_CLASSES);
  config->shards = (uint32_t)get_number(p, o, "shards", 1, CMKD_CACHE_MAX_SHARDS);
  config->shard_samples = (uint32_t)get_number(p, o, "shard_rows", 1, INT32_MAX);
  uint32_t chunk_samples = (uint32_t)get_number(p, o, "chunk_rows", 1, config->shard_samples);
  if ((config->samples + config->shard_samples - 1) / config->shard_samples != config->shards) wrong(p, "shards");
  if (p->what) return;
  if (codec->thin && cmkd_codec_keep(config->identity.codec) >= config->classes) wrong(p, "codec");
  cmkd_layout_of_logits(config, codec, chunk_samples);
  if ((uint64_t)chunk_samples * cmkd_layout_row_bytes(config->layouts) > CMKD_CACHE_CHUNK_LIMIT) wrong(p, "chunk_rows");
  if (!p->what) parse_class_names(p, json_object_get(o, "class_names"), config);
  if (!p->what) parse_layouts(p, json_object_get(o, "named_arrays"), config);
}

/* What the extents of an array must be: their count, and where and how large each may be. */
typedef struct extent_rule {
  size_t count;
  uint64_t payload, min, max;
} extent_rule;

static void parse_extents(parser *p, const json_t *array, const char *key, extent_rule rule, cmkd_extent *out) {
  if (!json_is_array(array) || json_array_size(array) != rule.count) {
    wrong(p, key);
    return;
  }
  for (size_t i = 0; i < rule.count && !p->what; i++) {
    const json_t *entry = json_array_get(array, i), *hash = json_array_get(entry, 2);
    if (!json_is_array(entry) || json_array_size(entry) != 3 || !json_is_string(hash) ||
        !is_hex(json_string_value(hash), 16)) {
      wrong(p, key);
      return;
    }
    out[i].offset = number(p, json_array_get(entry, 0), key, 0, rule.payload);
    out[i].size = number(p, json_array_get(entry, 1), key, rule.min, rule.max);
    if (out[i].size > rule.payload - out[i].offset) wrong(p, key);
    out[i].hash = strtoull(json_string_value(hash), NULL, 16);
  }
}

static int by_offset(const void *a, const void *b) {
  uint64_t x = ((const cmkd_extent *)a)->offset, y = ((const cmkd_extent *)b)->offset;
  return (x > y) - (x < y);
}

/* Chunks of named arrays may share no byte with each other or with those of the logits. */
static void check_overlap(parser *p, const cmkd_cache_config *config, const cmkd_shard_meta *meta) {
  if (p->what || config->layout_count == 1) return;
  size_t count = 0;
  for (uint32_t a = 0; a < config->layout_count; a++)
    count += (size_t)config->views * meta->tables[a].chunks_per_view;
  cmkd_extent *sorted = malloc(count * sizeof *sorted);
  if (!sorted) {
    wrong(p, "named_chunks");
    return;
  }
  memcpy(sorted, meta->tables[0].extents, count * sizeof *sorted); /* the tables follow each other */
  qsort(sorted, count, sizeof *sorted, by_offset);
  for (size_t i = 1; i < count; i++)
    if (sorted[i].offset - sorted[i - 1].offset < sorted[i - 1].size) wrong(p, "named_chunks");
  free(sorted);
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

/* The JSON arrays that hold the chunk tables: so long, the text itself pays for the memory of their extents. */
static void check_tables(parser *p, const json_t *o, const cmkd_cache_config *config, uint32_t n) {
  for (uint32_t a = 0; a < config->layout_count && !p->what; a++) {
    const cmkd_array_layout *layout = config->layouts + a;
    uint32_t rows = cmkd_layout_chunk_samples(layout, n);
    const json_t *table =
        a ? json_object_get(json_object_get(o, "named_chunks"), layout->array.name) : json_object_get(o, "logits");
    if (json_array_size(table) != (uint64_t)config->views * ((n + rows - 1) / rows))
      wrong(p, a ? "named_chunks" : "logits");
  }
}

static void parse_tables(parser *p, const json_t *o, uint64_t payload, const cmkd_cache_config *config,
                         cmkd_shard_meta *meta) {
  const json_t *arrays = json_object_get(o, "arrays"), *named = json_object_get(o, "named_chunks");
  const uint64_t n = meta->samples;
  for (uint32_t a = 0; a < config->layout_count; a++) {
    const cmkd_array_layout *layout = config->layouts + a;
    const cmkd_chunk_table *table = meta->tables + a;
    size_t raw = table->chunk_samples * cmkd_layout_row_bytes(layout);
    extent_rule rule = {(size_t)config->views * table->chunks_per_view, payload, 5, ZSTD_compressBound(raw) + 4};
    if (a)
      parse_extents(p, json_object_get(named, layout->array.name), "named_chunks", rule, table->extents);
    else
      parse_extents(p, json_object_get(o, "logits"), "logits", rule, table->extents);
  }
  const extent_rule seeds = {config->views, payload, 8 * n, 8 * n},
                    row_numbers = {config->views, payload, 2 * n, 2 * n};
  const extent_rule ids = {1, payload, 8 * n, 8 * n}, labels = {1, payload, 4 * n, 4 * n};
  parse_extents(p, json_object_get(arrays, "seeds"), "seeds", seeds, meta->seeds);
  parse_extents(p, json_object_get(arrays, "sample_id"), "sample_id", ids, &meta->sample_id);
  parse_extents(p, json_object_get(arrays, "label"), "label", labels, &meta->label);
  if (!meta->row_max) return;
  parse_extents(p, json_object_get(arrays, "row_max"), "row_max", row_numbers, meta->row_max);
  parse_extents(p, json_object_get(arrays, "row_range"), "row_range", row_numbers, meta->row_range);
}

cmkd_status cmkd_shard_json_parse(const char *json, size_t size, uint64_t payload, const char *path,
                                  cmkd_cache_config *config, cmkd_shard_meta *meta, cmkd_error *err) {
  parser p = {path, NULL};
  memset(config, 0, sizeof *config);
  memset(meta, 0, sizeof *meta);
  json_t *o = load(&p, json, size);
  parse_config(&p, o, "cmkd-shard", config);
  const json_t *shard = json_object_get(o, "shard");
  cmkd_status status = CMKD_OK;
  if (!p.what) {
    meta->index = (uint32_t)get_number(&p, shard, "index", 0, config->shards - 1);
    uint32_t n = cmkd_shard_samples(config, meta->index);
    get_number(&p, shard, "samples", n, n);
    get_number(&p, shard, "first", (uint64_t)meta->index * config->shard_samples,
               (uint64_t)meta->index * config->shard_samples);
    if ((uint64_t)n * 12 > payload) wrong(&p, "logits");
    check_tables(&p, o, config, n);
  }
  if (!p.what) status = cmkd_shard_meta_alloc(meta, config, err);
  if (!p.what && status == CMKD_OK) {
    parse_tables(&p, o, payload, config, meta);
    check_overlap(&p, config, meta);
  }
  json_decref(o);
  if (status == CMKD_OK) status = verdict(&p, err);
  if (status != CMKD_OK) {
    cmkd_cache_config_free(config);
    cmkd_shard_meta_free(meta);
  }
  return status;
}

static void parse_files(parser *p, const json_t *files, cmkd_master_meta *meta) {
  for (uint32_t k = 0; k < meta->config.shards && !p->what; k++) {
    const json_t *entry = json_array_get(files, k), *file = json_array_get(entry, 0), *sha = json_array_get(entry, 4);
    cmkd_shard_entry *s = meta->shards + k;
    uint64_t first = (uint64_t)k * meta->config.shard_samples;
    uint32_t n = cmkd_shard_samples(&meta->config, k);
    if (!json_is_array(entry) || json_array_size(entry) != 5 || !json_is_string(file) || !json_is_string(sha) ||
        !is_hex(json_string_value(sha), 64)) {
      wrong(p, "files");
      return;
    }
    cmkd_shard_name(&meta->config, k,
                    s->file); /* the name follows from the place: a path of another kind can't be smuggled in */
    if (strcmp(s->file, json_string_value(file)) != 0) wrong(p, "files");
    s->size = number(p, json_array_get(entry, 1), "files", 512, INT64_MAX);
    s->first = number(p, json_array_get(entry, 2), "files", first, first);
    s->samples = (uint32_t)number(p, json_array_get(entry, 3), "files", n, n);
    memcpy(s->block_sha256, json_string_value(sha), sizeof s->block_sha256);
  }
}

cmkd_status cmkd_master_json_parse(const char *json, size_t size, const char *path, cmkd_master_meta *meta,
                                   cmkd_error *err) {
  parser p = {path, NULL};
  memset(meta, 0, sizeof *meta);
  json_t *o = load(&p, json, size);
  parse_config(&p, o, "cmkd-cache", &meta->config);
  get_text(&p, o, "folder", meta->folder, sizeof meta->folder);
  if (!meta->folder[0] || strchr(meta->folder, '/') || !strcmp(meta->folder, ".") || !strcmp(meta->folder, ".."))
    wrong(&p, "folder");
  get_sha(&p, o, "cache_sha256", meta->content_sha256);
  const json_t *files = json_object_get(o, "files");
  if (!p.what && (!json_is_array(files) || json_array_size(files) != meta->config.shards)) wrong(&p, "files");
  if (!p.what && !(meta->shards = calloc(meta->config.shards, sizeof *meta->shards))) wrong(&p, "files");
  if (!p.what) parse_files(&p, files, meta);
  json_decref(o);
  cmkd_status status = verdict(&p, err);
  if (status == CMKD_OK) { /* the hash is a function of the rest */
    char stored[CMKD_SHA256_HEX];
    memcpy(stored, meta->content_sha256, sizeof stored);
    status = cmkd_master_content_sha256(meta, err);
    if (status == CMKD_OK && strcmp(stored, meta->content_sha256) != 0)
      status = cmkd_fail(err, CMKD_ERR_FORMAT, "%s: its fingerprint does not match its content; build it again", path);
  }
  if (status != CMKD_OK) cmkd_master_meta_free(meta);
  return status;
}
