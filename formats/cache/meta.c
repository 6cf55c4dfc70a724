/* Structs to canonical JSON. parse.c reads it back. */
#include "formats/cache/meta.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"

void cmkd_cache_head_free(cmkd_cache_head *head) {
  for (uint32_t c = 0; head->class_names && c < head->classes; c++)
    free(head->class_names[c]);
  free(head->class_names);
  head->class_names = NULL;
}
void cmkd_shard_meta_free(cmkd_shard_meta *meta) {
  free(meta->logits);
  meta->logits = NULL;
}
void cmkd_master_meta_free(cmkd_master_meta *meta) {
  cmkd_cache_head_free(&meta->head);
  free(meta->shards);
  meta->shards = NULL;
}

void cmkd_shard_name(const cmkd_cache_head *head, uint32_t k, char name[40]) {
  snprintf(name, 40, "shard-%05u-of-%05u.h5", k % 100000, head->shards % 100000);
}

cmkd_status cmkd_shard_meta_alloc(cmkd_shard_meta *meta, const cmkd_cache_head *head, cmkd_error *err) {
  const cmkd_codec *codec;
  CMKD_TRY(cmkd_codec_find(head->identity.codec, &codec, err));
  meta->first = (uint64_t)meta->index * head->shard_rows;
  meta->samples = cmkd_shard_samples(head, meta->index);
  uint32_t rows = cmkd_shard_chunk_rows(head, meta->samples);
  meta->blocks = (meta->samples + rows - 1) / rows;
  size_t views = head->views, count = views * meta->blocks + views * (codec->row_numbers ? 3 : 1);
  meta->logits = calloc(count, sizeof *meta->logits);
  if (!meta->logits) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a shard's chunk table (%zu entries)", count);
  meta->seeds = meta->logits + views * meta->blocks;
  meta->row_max = codec->row_numbers ? meta->seeds + views : NULL;
  meta->row_range = codec->row_numbers ? meta->row_max + views : NULL;
  return CMKD_OK;
}

/* Every builder below returns NULL on failure; jansson passes NULL through "set_new" and "append_new" as an error that
 * `bad` collects. */
static void set(json_t *object, const char *key, json_t *value, int *bad) {
  *bad |= json_object_set_new(object, key, value) != 0;
}
static json_t *text64(uint64_t x) {
  char s[24];
  snprintf(s, sizeof s, "%" PRIu64, x);
  return json_string(s);
} /* JSON integers end at 2^63 */

static json_t *identity_json(const cmkd_cache_identity *id) {
  int bad = 0;
  json_t *o = json_object(), *mean = json_array(), *std = json_array();
  set(o, "teacher_sha256", json_string(id->teacher_sha256), &bad);
  set(o, "teacher_arch", json_string(id->teacher_arch), &bad);
  set(o, "teacher_name", json_string(id->teacher_name), &bad);
  for (int c = 0; c < id->channels; c++)
    bad |= json_array_append_new(mean, json_real(id->mean[c])) || json_array_append_new(std, json_real(id->std[c]));
  set(o, "mean", mean, &bad);
  set(o, "std", std, &bad);
  set(o, "precision", json_string(id->precision), &bad);
  if (id->precision_error > 0) set(o, "precision_error", json_real(id->precision_error), &bad);
  set(o, "teacher_batch", json_integer(id->teacher_batch), &bad);
  set(o, "dataset", json_string(id->dataset), &bad);
  set(o, "split", json_string(id->split), &bad);
  set(o, "fingerprint", json_string(id->fingerprint), &bad);
  set(o, "dataset_n", json_integer(id->dataset_n), &bad);
  set(o, "augment", json_string(cmkd_policy_name(id->policy)), &bad);
  set(o, "rng", json_string(id->rng_version), &bad);
  set(o, "cache_seed", text64(id->cache_seed), &bad);
  set(o, "all_variants", json_boolean(id->all_variants), &bad);
  set(o, "clean_view", json_boolean(id->clean_view), &bad);
  set(o, "codec", json_string(id->codec), &bad);
  set(o, "tool_version", json_string(id->tool_version), &bad);
  if (bad) {
    json_decref(o);
    return NULL;
  }
  return o;
}

static json_t *head_json(const cmkd_cache_head *head, const char *format) {
  int bad = 0;
  json_t *o = json_object(), *names = head->class_names ? json_array() : json_null();
  if (format) set(o, "format", json_string(format), &bad);
  set(o, "schema", json_integer(1), &bad);
  set(o, "identity", identity_json(&head->identity), &bad);
  set(o, "shape", json_pack("[I,i,i]", (json_int_t)head->samples, (int)head->views, (int)head->classes), &bad);
  for (uint32_t c = 0; head->class_names && c < head->classes; c++)
    bad |= json_array_append_new(names, json_string(head->class_names[c])) != 0;
  set(o, "class_names", names, &bad);
  set(o, "shards", json_integer(head->shards), &bad);
  set(o, "shard_rows", json_integer(head->shard_rows), &bad);
  set(o, "chunk_rows", json_integer(head->chunk_rows), &bad);
  if (bad) {
    json_decref(o);
    return NULL;
  }
  return o;
}

static char *dump(json_t *o) {
  char *text = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
  json_decref(o);
  return text;
}

char *cmkd_cache_head_text(const cmkd_cache_head *head) { return dump(head_json(head, NULL)); }

static json_t *extents_json(const cmkd_extent *extents, size_t count) {
  json_t *array = json_array();
  int bad = !array;
  for (size_t i = 0; i < count && !bad; i++) {
    char hash[17];
    snprintf(hash, sizeof hash, "%016" PRIx64, extents[i].hash);
    bad |= json_array_append_new(
               array, json_pack("[I,I,s]", (json_int_t)extents[i].offset, (json_int_t)extents[i].size, hash)) != 0;
  }
  if (bad) {
    json_decref(array);
    return NULL;
  }
  return array;
}

char *cmkd_shard_json(const cmkd_cache_head *head, const cmkd_shard_meta *meta) {
  json_t *o = head_json(head, "cmkd-shard"), *arrays = json_object();
  int bad = !o;
  set(o, "shard",
      json_pack("{s:i,s:I,s:i}", "index", (int)meta->index, "first", (json_int_t)meta->first, "samples",
                (int)meta->samples),
      &bad);
  set(o, "logits", extents_json(meta->logits, (size_t)head->views * meta->blocks), &bad);
  set(arrays, "seeds", extents_json(meta->seeds, head->views), &bad);
  set(arrays, "sample_id", extents_json(&meta->sample_id, 1), &bad);
  set(arrays, "label", extents_json(&meta->label, 1), &bad);
  if (meta->row_max) set(arrays, "row_max", extents_json(meta->row_max, head->views), &bad);
  if (meta->row_max) set(arrays, "row_range", extents_json(meta->row_range, head->views), &bad);
  set(o, "arrays", arrays, &bad);
  if (bad) {
    json_decref(o);
    return NULL;
  }
  return dump(o);
}

char *cmkd_master_json(const cmkd_master_meta *meta) {
  json_t *o = head_json(&meta->head, "cmkd-cache"), *shards = json_array();
  int bad = !o || !shards;
  set(o, "folder", json_string(meta->folder), &bad);
  for (uint32_t k = 0; k < meta->head.shards && !bad; k++) {
    const cmkd_shard_entry *s = meta->shards + k;
    bad |= json_array_append_new(shards, json_pack("[s,I,I,i,s]", s->file, (json_int_t)s->size, (json_int_t)s->first,
                                                   (int)s->samples, s->block_sha256)) != 0;
  }
  set(o, "files", shards, &bad);
  set(o, "cache_sha256", json_string(meta->fingerprint), &bad);
  if (bad) {
    json_decref(o);
    return NULL;
  }
  return dump(o);
}

cmkd_status cmkd_master_fingerprint(cmkd_master_meta *meta, cmkd_error *err) {
  char *text = cmkd_cache_head_text(&meta->head);
  cmkd_hasher *hasher = cmkd_hasher_start();
  if (text && hasher) {
    cmkd_hasher_update(hasher, "cmkd-cache-1\n", 13);
    cmkd_hasher_update(hasher, text, strlen(text));
    for (uint32_t k = 0; k < meta->head.shards; k++) {
      cmkd_hasher_update(hasher, "\n", 1);
      cmkd_hasher_update(hasher, meta->shards[k].block_sha256, 64);
    }
  }
  int failed = !text || !hasher;
  cmkd_hasher_finish(hasher, meta->fingerprint);
  free(text);
  return failed ? cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for the cache's fingerprint") : CMKD_OK;
}
