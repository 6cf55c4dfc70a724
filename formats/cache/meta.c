/* Structs to canonical JSON. parse.c reads it back. */
#include "formats/cache/meta.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"

void cmkd_cache_config_free(cmkd_cache_config *config) {
  for (uint32_t c = 0; config->class_names && c < config->classes; c++)
    free(config->class_names[c]);
  free(config->class_names);
  config->class_names = NULL;
}
void cmkd_shard_meta_free(cmkd_shard_meta *meta) {
  free(meta->tables);
  meta->tables = NULL;
}
void cmkd_master_meta_free(cmkd_master_meta *meta) {
  cmkd_cache_config_free(&meta->config);
  free(meta->shards);
  meta->shards = NULL;
}

void cmkd_shard_name(const cmkd_cache_config *config, uint32_t k, char name[40]) {
  snprintf(name, 40, "shard-%05u-of-%05u.h5", k % 100000, config->shards % 100000);
}

cmkd_status cmkd_shard_meta_alloc(cmkd_shard_meta *meta, const cmkd_cache_config *config, cmkd_error *err) {
  const int row_numbers = config->layouts[0].codec->row_numbers;
  const size_t views = config->views;
  size_t extents = views * (row_numbers ? 3 : 1);
  meta->first = (uint64_t)meta->index * config->shard_samples;
  meta->samples = cmkd_shard_samples(config, meta->index);
  for (uint32_t a = 0; a < config->layout_count; a++) {
    uint32_t rows = cmkd_layout_chunk_samples(config->layouts + a, meta->samples);
    extents += views * ((meta->samples + rows - 1) / rows);
  }
  meta->tables = calloc(1, config->layout_count * sizeof *meta->tables + extents * sizeof(cmkd_extent));
  if (!meta->tables)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a shard's chunk table (%zu entries)", extents);
  cmkd_extent *next = (cmkd_extent *)(meta->tables + config->layout_count);
  for (uint32_t a = 0; a < config->layout_count; a++) {
    cmkd_chunk_table *table = meta->tables + a;
    table->chunk_samples = cmkd_layout_chunk_samples(config->layouts + a, meta->samples);
    table->chunks_per_view = (meta->samples + table->chunk_samples - 1) / table->chunk_samples;
    table->extents = next;
    next += views * table->chunks_per_view;
  }
  meta->seeds = next;
  meta->row_max = row_numbers ? meta->seeds + views : NULL;
  meta->row_range = row_numbers ? meta->row_max + views : NULL;
  return CMKD_OK;
}

void cmkd_layout_of_logits(cmkd_cache_config *config, const cmkd_codec *codec, uint32_t chunk_samples) {
  static const cmkd_dtype dtypes[] = {[1] = CMKD_U8, [2] = CMKD_F16, [4] = CMKD_F32};
  config->layouts[0] = (cmkd_array_layout){.array = {.name = "logits",
                                                     .dtype = dtypes[codec->item],
                                                     .dims = 1,
                                                     .shape = {config->classes},
                                                     .elements = config->classes,
                                                     .chunk_samples = chunk_samples},
                                           .codec = codec};
  config->layout_count = 1;
}

/* A name is also that of an HDF5 dataset in the shard's root. */
static int good_name(const char *name) {
  static const char *const taken[] = {"logits", "seeds", "sample_id", "label", "row_max", "row_range", "class_names"};
  static const char first[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
  const size_t length = strlen(name);
  for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
    if (!strcmp(name, taken[i])) return 0;
  if (!length || !strchr(first, name[0])) return 0;
  for (size_t i = 1; i < length; i++)
    if (!strchr(first, name[i]) && name[i] != '-' && name[i] != '.') return 0;
  return 1;
}

const char *cmkd_layout_check(cmkd_array_layout *layout) {
  cmkd_cache_array *array = &layout->array;
  uint64_t elements = 1;
  if (!memchr(array->name, 0, sizeof array->name) || !good_name(array->name)) return "name";
  layout->codec = cmkd_codec_of_dtype(array->dtype);
  if (!layout->codec) return "dtype";
  if (array->dims < 1 || array->dims > CMKD_CACHE_ARRAY_DIMS) return "shape";
  for (int d = 0; d < array->dims; d++) {
    elements *= array->shape[d]; /* at most 2^20 * 2^32 */
    if (!elements || elements * (uint64_t)layout->codec->item > CMKD_CACHE_CHUNK_LIMIT) return "shape";
  }
  array->elements = (uint32_t)elements;
  return NULL;
}

int cmkd_layout_find(const cmkd_cache_config *config, uint32_t count, const char *name, uint32_t *index) {
  for (uint32_t a = 0; a < count; a++)
    if (!strcmp(config->layouts[a].array.name, name)) {
      *index = a;
      return 1;
    }
  return 0;
}

/* JSON integers end at 2^63. */
static json_t *text64(uint64_t x) {
  char s[24];
  snprintf(s, sizeof s, "%" PRIu64, x);
  return json_string(s);
}

static json_t *floats_json(const float *x, int count) {
  cmkd_json array = cmkd_json_array();
  for (int i = 0; i < count; i++)
    cmkd_json_append(&array, json_real(x[i]));
  return cmkd_json_end(&array);
}

static json_t *identity_json(const cmkd_cache_identity *id) {
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "teacher_sha256", json_string(id->teacher_sha256));
  cmkd_json_set(&o, "teacher_arch", json_string(id->teacher_arch));
  cmkd_json_set(&o, "teacher_name", json_string(id->teacher_name));
  cmkd_json_set(&o, "mean", floats_json(id->mean, id->channels));
  cmkd_json_set(&o, "std", floats_json(id->std, id->channels));
  cmkd_json_set(&o, "precision", json_string(id->precision));
  if (id->precision_error > 0) cmkd_json_set(&o, "precision_error", json_real(id->precision_error));
  cmkd_json_set(&o, "teacher_batch", json_integer(id->teacher_batch));
  cmkd_json_set(&o, "dataset", json_string(id->dataset));
  cmkd_json_set(&o, "split", json_string(id->split));
  cmkd_json_set(&o, "fingerprint", json_string(id->fingerprint));
  cmkd_json_set(&o, "dataset_n", json_integer(id->dataset_n));
  cmkd_json_set(&o, "augment", json_string(cmkd_policy_name(id->policy)));
  cmkd_json_set(&o, "rng", json_string(id->rng_version));
  cmkd_json_set(&o, "cache_seed", text64(id->cache_seed));
  cmkd_json_set(&o, "all_variants", json_boolean(id->all_variants));
  cmkd_json_set(&o, "clean_view", json_boolean(id->clean_view));
  cmkd_json_set(&o, "codec", json_string(id->codec));
  cmkd_json_set(&o, "tool_version", json_string(id->tool_version));
  return cmkd_json_end(&o);
}

static json_t *class_names_json(const cmkd_cache_config *config) {
  if (!config->class_names) return json_null();
  cmkd_json names = cmkd_json_array();
  for (uint32_t c = 0; c < config->classes; c++)
    cmkd_json_append(&names, json_string(config->class_names[c]));
  return cmkd_json_end(&names);
}

static json_t *layout_json(const cmkd_array_layout *layout) {
  cmkd_json o = cmkd_json_object(), shape = cmkd_json_array();
  for (int d = 0; d < layout->array.dims; d++)
    cmkd_json_append(&shape, json_integer(layout->array.shape[d]));
  cmkd_json_set(&o, "name", json_string(layout->array.name));
  cmkd_json_set(&o, "dtype", json_string(layout->codec->name));
  cmkd_json_set(&o, "shape", cmkd_json_end(&shape));
  cmkd_json_set(&o, "chunk_rows", json_integer(layout->array.chunk_samples));
  return cmkd_json_end(&o);
}

static json_t *layouts_json(const cmkd_cache_config *config) {
  cmkd_json array = cmkd_json_array();
  for (uint32_t a = 1; a < config->layout_count; a++)
    cmkd_json_append(&array, layout_json(config->layouts + a));
  return cmkd_json_end(&array);
}

/* `format` NULL: left out. Named arrays are mentioned only where there are any. */
static cmkd_json config_json(const cmkd_cache_config *config, const char *format, int named_arrays) {
  cmkd_json o = cmkd_json_object();
  if (format) cmkd_json_set(&o, "format", json_string(format));
  cmkd_json_set(&o, "schema", json_integer(1));
  cmkd_json_set(&o, "identity", identity_json(&config->identity));
  cmkd_json_set(&o, "shape",
                json_pack("[I,i,i]", (json_int_t)config->samples, (int)config->views, (int)config->classes));
  cmkd_json_set(&o, "class_names", class_names_json(config));
  cmkd_json_set(&o, "shards", json_integer(config->shards));
  cmkd_json_set(&o, "shard_rows", json_integer(config->shard_samples));
  cmkd_json_set(&o, "chunk_rows", json_integer(config->layouts[0].array.chunk_samples));
  if (named_arrays && config->layout_count > 1) cmkd_json_set(&o, "named_arrays", layouts_json(config));
  return o;
}

static char *dump(cmkd_json json) {
  json_t *o = cmkd_json_end(&json);
  char *text = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
  json_decref(o);
  return text;
}

char *cmkd_cache_config_text(const cmkd_cache_config *config) { return dump(config_json(config, NULL, 1)); }

int cmkd_cache_config_is(const cmkd_cache_config *config, const char *text) {
  char *mine = config->unknown_arrays ? NULL : cmkd_cache_config_text(config);
  int same = mine && !strcmp(mine, text);
  free(mine);
  return same;
}

static json_t *extents_json(const cmkd_extent *extents, size_t count) {
  cmkd_json array = cmkd_json_array();
  for (size_t i = 0; i < count; i++) {
    char hash[17];
    snprintf(hash, sizeof hash, "%016" PRIx64, extents[i].hash);
    cmkd_json_append(&array, json_pack("[I,I,s]", (json_int_t)extents[i].offset, (json_int_t)extents[i].size, hash));
  }
  return cmkd_json_end(&array);
}

static json_t *table_json(const cmkd_cache_config *config, const cmkd_chunk_table *table) {
  return extents_json(table->extents, (size_t)config->views * table->chunks_per_view);
}

char *cmkd_shard_json(const cmkd_cache_config *config, const cmkd_shard_meta *meta) {
  cmkd_json o = config_json(config, "cmkd-shard", 1), arrays = cmkd_json_object();
  cmkd_json_set(&o, "shard",
                json_pack("{s:i,s:I,s:i}", "index", (int)meta->index, "first", (json_int_t)meta->first, "samples",
                          (int)meta->samples));
  cmkd_json_set(&o, "logits", table_json(config, meta->tables));
  cmkd_json_set(&arrays, "seeds", extents_json(meta->seeds, config->views));
  cmkd_json_set(&arrays, "sample_id", extents_json(&meta->sample_id, 1));
  cmkd_json_set(&arrays, "label", extents_json(&meta->label, 1));
  if (meta->row_max) cmkd_json_set(&arrays, "row_max", extents_json(meta->row_max, config->views));
  if (meta->row_max) cmkd_json_set(&arrays, "row_range", extents_json(meta->row_range, config->views));
  cmkd_json_set(&o, "arrays", cmkd_json_end(&arrays));
  if (config->layout_count > 1) {
    cmkd_json tables = cmkd_json_object();
    for (uint32_t a = 1; a < config->layout_count; a++)
      cmkd_json_set(&tables, config->layouts[a].array.name, table_json(config, meta->tables + a));
    cmkd_json_set(&o, "named_chunks", cmkd_json_end(&tables));
  }
  return dump(o);
}

char *cmkd_master_json(const cmkd_master_meta *meta) {
  cmkd_json o = config_json(&meta->config, "cmkd-cache", 1), shards = cmkd_json_array();
  cmkd_json_set(&o, "folder", json_string(meta->folder));
  for (uint32_t k = 0; k < meta->config.shards; k++) {
    const cmkd_shard_entry *s = meta->shards + k;
    cmkd_json_append(&shards, json_pack("[s,I,I,i,s]", s->file, (json_int_t)s->size, (json_int_t)s->first,
                                        (int)s->samples, s->block_sha256));
  }
  cmkd_json_set(&o, "files", cmkd_json_end(&shards));
  cmkd_json_set(&o, "cache_sha256", json_string(meta->content_sha256));
  return dump(o);
}

cmkd_status cmkd_master_content_sha256(cmkd_master_meta *meta, cmkd_error *err) {
  char *text = dump(config_json(&meta->config, NULL, 0));
  cmkd_hasher *hasher = cmkd_hasher_start();
  if (text && hasher) {
    cmkd_hasher_update(hasher, "cmkd-cache-1\n", 13);
    cmkd_hasher_update(hasher, text, strlen(text));
    for (uint32_t k = 0; k < meta->config.shards; k++) {
      cmkd_hasher_update(hasher, "\n", 1);
      cmkd_hasher_update(hasher, meta->shards[k].block_sha256, 64);
    }
  }
  int failed = !text || !hasher;
  cmkd_hasher_finish(hasher, meta->content_sha256);
  free(text);
  return failed ? cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for the cache's fingerprint") : CMKD_OK;
}
