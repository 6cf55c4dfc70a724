/* Named arrays in files that are not as this version wrote them: what a reader does not know it passes over, and what
 * lies or is damaged it refuses. Orders and damage are drawn from the test's seed. */
#include "tests/support.h"
#include <fcntl.h>
#include <math.h>
#include <unistd.h>
#include "base/file.h"
#include "base/rng.h"
#include "formats/cache/chunk.h"
#include "formats/cache/hash.h"
#include "formats/cache/parse.h"
#include "formats/cache/reader/verify.h"
#include "tests/support_cache.h"

static cmkd_error err;

static cmkd_cache *opened(const char *path) {
  cmkd_cache *cache;
  assert_ok(cmkd_cache_open(path, &cache, &err));
  return cache;
}

/* A change of the JSON: the first `from` of the text becomes `to`. */
typedef struct edit {
  const char *from, *to;
} edit;

static char *edited(const char *text, edit e) {
  const char *at = e.from ? strstr(text, e.from) : NULL;
  if (!at) return strdup(text);
  return cmkd_format("%.*s%s%s", (int)(at - text), text, e.to, at + strlen(e.from));
}

/* Writes a file of the cache: `payload` behind a user block of that JSON, with hashes to match. Fills in the block's
 * hash and the file's size unless `entry` is NULL. */
static void rewrite(const char *path, int kind, const char *json, const uint8_t *payload, size_t payload_size,
                    cmkd_shard_entry *entry) {
  char sha256[CMKD_SHA256_HEX];
  size_t block_size;
  cmkd_sha256(payload, payload_size, sha256);
  uint8_t *block = cmkd_user_block_make(kind, json, strlen(json), sha256, payload_size, &block_size);
  const cmkd_piece pieces[] = {{block, block_size}, {payload, payload_size}};
  assert_ok(cmkd_file_write(path, pieces, 2, &err));
  if (entry) {
    cmkd_sha256(block, block_size, entry->block_sha256);
    entry->size = block_size + payload_size;
  }
  free(block);
}

/* Makes a whole, consistent cache in `dir` whose shards and master say something else; `damage` may change shard
 * 0's JSON and what follows its user block first. */
static void forge(const char *dir, edit shards, edit master, void (*damage)(char **json, uint8_t *payload)) {
  char *path = cmkd_path_join(dir, "t.h5");
  uint8_t *bytes;
  size_t size;
  cmkd_user_block block;
  cmkd_master_meta meta;
  assert_ok(synthetic_build(&synthetic_small, path, NULL, &err));
  assert_ok(cmkd_file_read(path, 1 << 24, &bytes, &size, &err));
  assert_ok(cmkd_user_block_parse(bytes, size, size, path, &block, &err));
  assert_ok(cmkd_master_json_parse(block.json, block.json_size, path, &meta, &err));
  for (uint32_t k = 0; k < meta.config.shards; k++) {
    char *shard = cmkd_format("%s/t.shards/%s", dir, meta.shards[k].file);
    uint8_t *data;
    size_t length;
    cmkd_user_block its;
    assert_ok(cmkd_file_read(shard, 1 << 24, &data, &length, &err));
    assert_ok(cmkd_user_block_parse(data, length, length, shard, &its, &err));
    char *old = strndup(its.json, its.json_size), *json = edited(old, shards);
    if (damage && k == 0) damage(&json, data + its.block_size);
    rewrite(shard, CMKD_USER_BLOCK_SHARD, json, data + its.block_size, length - (size_t)its.block_size,
            meta.shards + k);
    free(old);
    free(json);
    free(data);
    free(shard);
  }
  assert_ok(cmkd_master_content_sha256(&meta, &err));
  char *old = cmkd_master_json(&meta), *json = edited(old, master);
  rewrite(path, CMKD_USER_BLOCK_MASTER, json, bytes + block.block_size, size - (size_t)block.block_size, NULL);
  free(old);
  free(json);
  cmkd_master_meta_free(&meta);
  free(bytes);
  free(path);
}

static void the_unknown_is_passed_over(void **state) {
  (void)state;
  static const struct {
    edit shards, master;
    uint32_t known, unknown;
  } cases[] = {
      /* a type of the future, also one whose shape makes no sense today */
      {{"\"dtype\":\"f16\"", "\"dtype\":\"f8e4m3\""}, {"\"dtype\":\"f16\"", "\"dtype\":\"f8e4m3\""}, 2, 1},
      {{"\"dtype\":\"f16\",\"shape\":[3,2]", "\"dtype\":\"ragged\",\"shape\":\"any\""},
       {"\"dtype\":\"f16\",\"shape\":[3,2]", "\"dtype\":\"ragged\",\"shape\":\"any\""},
       2,
       1},
      /* keys of the future, in an entry, beside the chunk tables, and beside all */
      {{"\"dtype\":\"f16\"", "\"dtype\":\"f16\",\"later\":{\"a\":[1]}"},
       {"\"dtype\":\"f16\"", "\"dtype\":\"f16\",\"later\":null"},
       3,
       0},
      {{"\"named_chunks\":{", "\"named_chunks\":{\"later\":[1,2],"}, {"\"folder\"", "\"later\":1,\"folder\""}, 3, 0},
  };
  uint32_t order[230];
  cmkd_epoch_order(test_seed(), 2, 230, 0, order);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *dir = scratch_dir();
    char *path = cmkd_path_join(dir, "t.h5");
    cmkd_verify_report report;
    float rows[230 * 10], row[10];
    cmkd_stream *stream;
    forge(dir, cases[i].shards, cases[i].master, NULL);
    cmkd_cache *cache = opened(path);
    const cmkd_cache_info *info = cmkd_cache_get_info(cache);
    assert_int_equal(info->array_count, cases[i].known);
    assert_int_equal(info->unknown_arrays, cases[i].unknown);
    if (!cases[i].unknown) synthetic_check(&synthetic_small, cache, order, 230);
    assert_ok(cmkd_stream_open(cache, 1, order, 230, NULL, &stream, &err));
    assert_ok(cmkd_stream_next(stream, 230, rows, NULL, &err));
    cmkd_stream_free(stream);
    for (int k = 0; k < 230; k++) {
      synthetic_row(&synthetic_small, order[k], 1, row);
      for (int c = 0; c < 10; c++)
        assert_true(rows[k * 10 + c] == (float)(_Float16)row[c]);
    }
    cmkd_cache_verify(cache, 1, 1, NULL, NULL, &report);
    assert_int_equal(report.problems, 0);
    cmkd_cache_close(cache);
    run_cache_program(dir, "verify --deep --quiet t.h5");
    run_cache_program(dir, "export --out logits.npy --quiet t.h5");
    run_cache_program(dir, "info t.h5");
    if (cases[i].unknown) { /* who does not know it does not go on with it */
      cmkd_cache_writer *w;
      assert_int_equal(synthetic_build(&synthetic_small, path, NULL, &err), CMKD_ERR_MISMATCH);
      assert_int_equal(cmkd_cache_writer_join(path, &w, &err), CMKD_ERR_UNSUPPORTED);
    }
    free(path);
  }
}

static void lies_are_refused(void **state) {
  (void)state;
  static const edit lies[] = {
      {"\"name\":\"aux\"", "\"name\":\"logits\""},
      {"\"name\":\"aux\"", "\"name\":\"label\""},
      {"\"name\":\"aux\"", "\"name\":\"mask\""},
      {"\"name\":\"aux\"", "\"name\":\"\""},
      {"\"name\":\"aux\"", "\"name\":\"../../etc/passwd\""},
      {"\"name\":\"aux\"", "\"name\":\"a/b\""},
      {"\"name\":\"aux\"", "\"name\":\"a\\u0000b\""},
      {"\"name\":\"aux\"", "\"name\":7"},
      {"\"name\":\"aux\"", "\"name\":\"a_name_of_sixty-four_letters_is_one_more_than_what_an_array_may_have\""},
      {"\"name\":\"aux\",", ""},
      {"\"dtype\":\"f32\"", "\"dtype\":4"},
      {"\"shape\":[5]", "\"shape\":[0]"},
      {"\"shape\":[5]", "\"shape\":[-5]"},
      {"\"shape\":[5]", "\"shape\":[5.5]"},
      {"\"shape\":[5]", "\"shape\":[]"},
      {"\"shape\":[5]", "\"shape\":5"},
      {"\"shape\":[5]", "\"shape\":[1,1,1,1,1,1,5]"},
      {"\"shape\":[5]", "\"shape\":[4294967301]"},
      {"\"shape\":[5]", "\"shape\":[1048576,1048576,1048576,1048576,1048576,1048576]"},
      {"\"shape\":[5]", "\"shape\":[262145]"},
      {"\"chunk_rows\":17", "\"chunk_rows\":0"},
      {"\"chunk_rows\":17", "\"chunk_rows\":51"},
      {"\"chunk_rows\":17", "\"chunk_rows\":16"},
      {"\"chunk_rows\":17", "\"chunk_rows\":\"17\""},
      {"\"named_arrays\":[", "\"named_arrays\":[7,"},
      {"\"named_arrays\":[", "\"named_arrays\":[[],"},
      {"\"named_arrays\":[{", "\"named_arrays\":{\"x\":[{"},
      {"\"named_chunks\":{\"aux\":", "\"named_chunks\":{\"xua\":"},
      {"\"named_chunks\":{\"aux\":[", "\"named_chunks\":{\"aux\":[[0,5,\"0000000000000000\"],"},
      {"\"named_chunks\":{\"aux\":[[", "\"named_chunks\":{\"aux\":[[1"},
      {"\"named_chunks\":{\"aux\":[[", "\"named_chunks\":{\"aux\":[[9223372036854775"},
      {"\"named_chunks\":{\"aux\":[[", "\"named_chunks\":{\"aux\":[[-"},
  };
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
    const char *dir = scratch_dir();
    char *path = cmkd_path_join(dir, "t.h5");
    cmkd_cache *cache;
    forge(dir, lies[i], lies[i], NULL);
    cmkd_status status = cmkd_cache_open(path, &cache, &err);
    if (status != CMKD_ERR_FORMAT || cache || strchr(err.message, '\n'))
      fail_msg("%s: %d, %s", lies[i].to, status, err.message);
    free(path);
  }
  /* master and shards that tell two stories */
  const char *dir = scratch_dir();
  char *path = cmkd_path_join(dir, "t.h5");
  cmkd_cache *cache;
  forge(dir, (edit){0}, (edit){"\"name\":\"aux\"", "\"name\":\"axu\""}, NULL);
  assert_int_equal(cmkd_cache_open(path, &cache, &err), CMKD_ERR_MISMATCH);
  free(path);
}

/* The chunk table of an array in shard 0's JSON: where its first entry's numbers stand. */
static void first_entry(const char *json, const char *name, cmkd_extent *extent) {
  char *key = cmkd_format("\"%s\":[[", name), *end;
  const char *named = strstr(json, "\"named_chunks\""), *at = named ? strstr(named, key) : NULL;
  if (!at) fail_msg("no table of %s", name);
  extent->offset = strtoull(at + strlen(key), &end, 10);
  extent->size = strtoull(end + 1, NULL, 10);
  free(key);
}

static void overlap(char **json, uint8_t *payload) {
  (void)payload;
  cmkd_extent a, b;
  first_entry(*json, "aux", &a);
  first_entry(*json, "mask", &b);
  char *from = cmkd_format("[[%llu,%llu,", (unsigned long long)a.offset, (unsigned long long)a.size),
       *to = cmkd_format("[[%llu,%llu,", (unsigned long long)b.offset, (unsigned long long)a.size);
  char *changed = edited(*json, (edit){from, to});
  free(*json);
  *json = changed;
  free(from);
  free(to);
}

/* The first chunk of /aux becomes one whose hashes are right and whose numbers are not. */
static void infinity(char **json, uint8_t *payload) {
  enum { NUMBERS = 17 * 5 };
  cmkd_extent old;
  float numbers[NUMBERS];
  uint8_t scratch[NUMBERS * 4], stored[2048];
  first_entry(*json, "aux", &old);
  for (int i = 0; i < NUMBERS; i++)
    numbers[i] = i == 5 * 7 + 2 ? INFINITY : 1;
  cmkd_chunk_coder *coder = cmkd_chunk_coder_create();
  size_t size = cmkd_chunk_encode(coder, (const uint8_t *)numbers, NUMBERS, 4, scratch, stored);
  cmkd_chunk_coder_free(coder);
  assert_true(size && size < old.size);
  memcpy(payload + old.offset, stored, size);
  char *from = cmkd_format("[[%llu,%llu,", (unsigned long long)old.offset, (unsigned long long)old.size);
  char *at = strstr(*json, from);
  assert_non_null(at);
  char *changed = cmkd_format("%.*s[[%llu,%zu,\"%016llx\"%s", (int)(at - *json), *json, (unsigned long long)old.offset,
                              size, (unsigned long long)cmkd_xxh64(stored, size), strchr(at, ']'));
  free(*json);
  *json = changed;
  free(from);
}

static void verify_looks_into_arrays(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  char *path = cmkd_path_join(dir, "t.h5");
  cmkd_cache *cache;
  cmkd_verify_report report;
  forge(dir, (edit){0}, (edit){0}, overlap);
  assert_int_equal(cmkd_cache_open(path, &cache, &err), CMKD_ERR_FORMAT);
  assert_non_null(strstr(err.message, "named_chunks"));
  free(path);
  dir = scratch_dir();
  path = cmkd_path_join(dir, "t.h5");
  forge(dir, (edit){0}, (edit){0}, infinity);
  cache = opened(path);
  cmkd_cache_verify(cache, 0, 1, NULL, NULL, &report);
  assert_int_equal(report.problems, 0);
  cmkd_cache_verify(cache, 1, 1, NULL, NULL, &report);
  assert_int_equal(report.problems, 1);
  assert_int_equal(report.first.status, CMKD_ERR_VALUE);
  assert_non_null(strstr(report.first.message, "/aux of sample 7, view 0"));
  cmkd_cache_close(cache);
  free(path);
}

/* Bytes of an array's chunk are changed on disk: its rows are refused or right, and verify notices. */
static void damage_is_noticed(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  char *path = cmkd_path_join(dir, "t.h5"), *shard = cmkd_path_join(dir, "t.shards/shard-00000-of-00005.h5");
  uint8_t *data;
  size_t size;
  cmkd_user_block block;
  cmkd_extent extent;
  cmkd_rng rng = cmkd_rng_start(test_seed(), CMKD_STREAM_TEST, 4);
  float rows[17 * 5], right[17 * 5];
  int refused = 0;
  assert_ok(synthetic_build(&synthetic_small, path, NULL, &err));
  assert_ok(cmkd_file_read(shard, 1 << 24, &data, &size, &err));
  assert_ok(cmkd_user_block_parse(data, size, size, shard, &block, &err));
  char *json = strndup(block.json, block.json_size);
  first_entry(json, "aux", &extent);
  cmkd_cache *cache = opened(path);
  int fd = open(shard, O_WRONLY);
  assert_true(fd >= 0);
  assert_ok(cmkd_cache_read_array(cache, "aux", 0, 0, 17, right, &err));
  for (int i = 0; i < 200; i++) {
    const uint64_t at = block.block_size + extent.offset + cmkd_rng_below(&rng, (uint32_t)extent.size);
    const uint8_t bad = (uint8_t)(data[at] ^ 1u << cmkd_rng_below(&rng, 8));
    cmkd_verify_report report;
    assert_int_equal(pwrite(fd, &bad, 1, (off_t)at), 1);
    if (cmkd_cache_read_array(cache, "aux", 0, 0, 17, rows, &err) == CMKD_OK)
      assert_memory_equal(rows, right, sizeof rows);
    else {
      assert_non_null(strstr(err.message, "of /aux"));
      refused++;
    }
    assert_ok(cmkd_cache_read(cache, 0, 0, 4, rows, &err));
    cmkd_cache_verify(cache, 0, 1, NULL, NULL, &report);
    assert_int_equal(report.problems, 1);
    assert_int_equal(pwrite(fd, data + at, 1, (off_t)at), 1);
  }
  assert_true(refused > 100); /* not those in fletcher32 */
  close(fd);
  cmkd_cache_close(cache);
  free(json);
  free(data);
  free(path);
  free(shard);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(the_unknown_is_passed_over), cmocka_unit_test(lies_are_refused),
                                     cmocka_unit_test(verify_looks_into_arrays), cmocka_unit_test(damage_is_noticed)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
