/* What the JSON of a user block says, as structs, and how these become JSON: canonical, with fixed key order and
 * compact, so that the same meaning is the same text. parse.h reads it. */
#ifndef CMKD_FORMATS_CACHE_META_H
#define CMKD_FORMATS_CACHE_META_H
#include "base/hash.h"
#include "cmkd/cache.h"
#include "formats/cache/user_block.h"
#include "formats/cache/codec.h"

#define CMKD_CACHE_MAX_SHARDS 99999
#define CMKD_CACHE_CHUNK_LIMIT (1u << 20) /* raw bytes of a chunk: h5py's default chunk cache */

/* How an array of (samples, views) + shape is stored in chunks: the logits, or a named array. */
typedef struct cmkd_array_layout {
  cmkd_cache_array array; /* of the logits: name "logits", one dimension, the classes */
  const cmkd_codec *codec;
} cmkd_array_layout;

/* What all files of one cache agree on. */
typedef struct cmkd_cache_config {
  cmkd_cache_identity identity;
  uint64_t samples;
  uint32_t views, classes;
  uint32_t shards, shard_samples;                       /* samples of a shard; the last may have fewer */
  char **class_names;                                   /* (classes) or NULL; owned */
  cmkd_array_layout layouts[1 + CMKD_CACHE_MAX_ARRAYS]; /* (layout_count): the logits, then the named arrays */
  uint32_t layout_count;
  uint32_t unknown_arrays; /* declared in the file, of a type that this version does not know */
} cmkd_cache_config;

/* Stored bytes: `offset` from the end of the user block; XXH64 of the bytes. */
typedef struct cmkd_extent {
  uint64_t offset, size, hash;
} cmkd_extent;

/* The chunks of one layout in one shard. */
typedef struct cmkd_chunk_table {
  uint32_t chunk_samples;   /* the last chunk may be padded with zeros */
  uint32_t chunks_per_view; /* along the sample axis */
  cmkd_extent *extents;     /* (views, chunks_per_view) */
} cmkd_chunk_table;

/* All tables lie in one allocation, that of `tables`. */
typedef struct cmkd_shard_meta {
  uint32_t index, samples;
  uint64_t first;
  cmkd_chunk_table *tables;         /* (config.layout_count) */
  cmkd_extent *seeds;               /* (views) */
  cmkd_extent *row_max, *row_range; /* (views), NULL unless the codec has row numbers */
  cmkd_extent label, sample_id;
} cmkd_shard_meta;

typedef struct cmkd_shard_entry {
  char file[40];
  uint64_t size, first;
  uint32_t samples;
  char block_sha256[CMKD_SHA256_HEX];
} cmkd_shard_entry;

typedef struct cmkd_master_meta {
  cmkd_cache_config config;
  char folder[256];         /* of the shards, beside the master; a plain name */
  cmkd_shard_entry *shards; /* (config.shards) */
  char content_sha256[CMKD_SHA256_HEX];
} cmkd_master_meta;

void cmkd_cache_config_free(cmkd_cache_config *config);
void cmkd_shard_meta_free(cmkd_shard_meta *meta);
void cmkd_master_meta_free(cmkd_master_meta *meta);
/* Fills in what follows from meta->index and the configuration, and makes empty tables. */
cmkd_status cmkd_shard_meta_alloc(cmkd_shard_meta *meta, const cmkd_cache_config *config, cmkd_error *err);

/* Layout 0: the logits, from config->classes and the codec of config->identity. */
void cmkd_layout_of_logits(cmkd_cache_config *config, const cmkd_codec *codec, uint32_t chunk_samples);
/* Checks name, type and shape of a named array; fills layout->codec and elements. NULL, or the key that is wrong. */
const char *cmkd_layout_check(cmkd_array_layout *layout);
/* Is there a layout of that name among the first `count`? */
int cmkd_layout_find(const cmkd_cache_config *config, uint32_t count, const char *name, uint32_t *index);
static inline size_t cmkd_layout_row_bytes(const cmkd_array_layout *layout) {
  return layout->array.elements * (size_t)layout->codec->item;
}
/* Raw bytes of a whole chunk of chunk_samples samples, the most that a chunk of this layout has. */
static inline size_t cmkd_layout_chunk_bytes(const cmkd_array_layout *layout) {
  return layout->array.chunk_samples * cmkd_layout_row_bytes(layout);
}

/* Samples in shard k, which begins with sample k * shard_samples. */
static inline uint32_t cmkd_shard_samples(const cmkd_cache_config *config, uint32_t k) {
  uint64_t first = (uint64_t)k * config->shard_samples, left = config->samples - first;
  return left < config->shard_samples ? (uint32_t)left : config->shard_samples;
}
/* Samples of a chunk in a shard of n samples: the last, shorter shard may have smaller chunks. */
static inline uint32_t cmkd_layout_chunk_samples(const cmkd_array_layout *layout, uint32_t n) {
  return layout->array.chunk_samples < n ? layout->array.chunk_samples : n;
}
void cmkd_shard_name(const cmkd_cache_config *config, uint32_t k, char name[40]); /* shard-00000-of-00064.h5 */

/* Fresh text, caller frees; NULL when out of memory or a string is not UTF-8. Two builds with equal text of their
 * configurations make equal caches. */
char *cmkd_cache_config_text(const cmkd_cache_config *config);
char *cmkd_shard_json(const cmkd_cache_config *config, const cmkd_shard_meta *meta);
char *cmkd_master_json(const cmkd_master_meta *meta);
/* Is `text` the configuration of `config`, all of it known to this version? */
int cmkd_cache_config_is(const cmkd_cache_config *config, const char *text);
/* SHA-256 over the configuration (without named arrays, which the shards' user blocks tell) and the shards' user
 * blocks: equal for equal content, whatever the file names. Fills meta->content_sha256. */
cmkd_status cmkd_master_content_sha256(cmkd_master_meta *meta, cmkd_error *err);
#endif
