/* The format as it was when tests/data was written: a cache of version 1 must read the same for ever. Run from the
 * repository's root. */
#include "tests/support.h"
#include <math.h>
#include "base/file.h"
#include "base/hash.h"
#include "formats/cache/parse.h"
#include "formats/cache/paths.h"
#include "formats/cache/reader/verify.h"
#include "tests/support_cache.h"

static cmkd_error err;

static void hash_of(cmkd_cache *cache, char hex[CMKD_SHA256_HEX]) {
  float rows[12 * 10];
  uint64_t seeds[12];
  const int32_t *labels;
  const uint64_t *ids;
  cmkd_hasher *hasher = cmkd_hasher_start();
  assert_ok(cmkd_cache_labels(cache, &labels, &err));
  assert_ok(cmkd_cache_ids(cache, &ids, &err));
  for (uint32_t v = 0; v < 2; v++) {
    assert_ok(cmkd_cache_read(cache, v, 0, 12, rows, &err));
    assert_ok(cmkd_cache_seeds(cache, v, seeds, &err));
    cmkd_hasher_update(hasher, rows, sizeof rows);
    cmkd_hasher_update(hasher, seeds, sizeof seeds);
  }
  cmkd_hasher_update(hasher, labels, 12 * sizeof *labels);
  cmkd_hasher_update(hasher, ids, 12 * sizeof *ids);
  cmkd_hasher_finish(hasher, hex);
}

static void old_caches_read_the_same(void **state) {
  (void)state;
  static const struct {
    const char *codec, *content, *cache;
  } known[] = {
      {"f16", "3ce828e99d1539dc384b4d4ff09a89762c977e54360acf747d30fdc285ee3f16",
       "b8a25ed7d2392a312ab9b9946eecf318895c48abed8f0122a028125661bde1c4"},
      {"u8sqrt", "d54bf991ae20d690cab7de54e2d4fb05517adcbad3aa4864f1850c2f94d12a9b",
       "9553d7be9b7f63d035169e6c6e03cf82fea8af1ab2954b678736fa4734f80870"},
  };
  for (size_t i = 0; i < 2; i++) {
    char *path = cmkd_format("tests/data/cache-%s.h5", known[i].codec), content[CMKD_SHA256_HEX];
    cmkd_cache *cache;
    cmkd_verify_report report;
    assert_ok(cmkd_cache_open(path, &cache, &err));
    const cmkd_cache_info *info = cmkd_cache_get_info(cache);
    assert_true(info->samples == 12 && info->views == 2 && info->classes == 10 && info->shards == 2);
    assert_string_equal(info->class_names[9], "jay");
    assert_string_equal(info->identity.codec, known[i].codec);
    assert_string_equal(info->identity.teacher_name, "synthetic.safetensors");
    assert_true(info->identity.cache_seed == 2026 && info->identity.policy == CMKD_AUGMENT_CROP_FLIP &&
                info->identity.std[2] == 0.25f);
    cmkd_cache_verify(cache, 1, 1, NULL, NULL, &report);
    assert_int_equal(report.problems, 0);
    hash_of(cache, content);
    assert_string_equal(content, known[i].content);
    assert_string_equal(info->content_sha256, known[i].cache);
    cmkd_cache_close(cache);
    free(path);
  }
}

/* The first 128 bytes and the place of the HDF5 signature, byte by byte as docs/cache-format.md says. */
static void block_is_laid_out_as_documented(void **state) {
  (void)state;
  uint8_t *data;
  size_t size;
  char hex[CMKD_SHA256_HEX], stored[CMKD_SHA256_HEX];
  assert_ok(cmkd_file_read("tests/data/cache-f16.shards/shard-00001-of-00002.h5", 1 << 20, &data, &size, &err));
  assert_memory_equal(data,
                      "CMKD\r\n\x1a\n"
                      "\1\0\0\0"
                      "\1\0\0\0",
                      16);
  uint64_t field[3];
  memcpy(field, data + 16, sizeof field);
  assert_true(field[0] % 512 == 0 && (field[0] & (field[0] - 1)) == 0 && field[1] == size &&
              128 + field[2] <= field[0]);
  assert_memory_equal(data + field[0], "\x89HDF\r\n\x1a\n", 8);
  for (int i = 0; i < 2; i++) {
    for (int k = 0; k < 32; k++)
      snprintf(stored + 2 * k, 3, "%02x", data[64 + 32 * i + k]);
    cmkd_sha256(i ? data + field[0] : data + 128, i ? size - field[0] : field[2], hex);
    assert_string_equal(hex, stored);
  }
  const char *start = "{\"format\":\"cmkd-shard\",\"schema\":1,\"identity\":{\"teacher_sha256\":\"aaaa";
  assert_memory_equal(data + 128, start, strlen(start));
  free(data);
}

static char *configuration_of(const char *path, cmkd_cache_config *config) {
  uint8_t *data;
  size_t size;
  cmkd_user_block block;
  cmkd_shard_meta meta;
  assert_ok(cmkd_file_read(path, 1 << 20, &data, &size, &err));
  assert_ok(cmkd_user_block_parse(data, size, size, path, &block, &err));
  assert_ok(cmkd_shard_json_parse(block.json, block.json_size, size - block.block_size, path, config, &meta, &err));
  const char *end = strstr(block.json, ",\"shard\":"); /* between the configuration and what is the shard's own */
  assert_non_null(end);
  char *text = strndup(block.json, (size_t)(end - block.json));
  cmkd_shard_meta_free(&meta);
  free(data);
  return text;
}

/* The same spec gives the same text, which decides whether a build of today continues a cache of then. (Compressed
 * bytes may differ between versions of zstd.) */
static void new_caches_are_written_the_same(void **state) {
  (void)state;
  static const char *const codecs[] = {"f16", "u8sqrt"};
  for (size_t i = 0; i < 2; i++) {
    const char *dir = scratch_dir();
    char *old = cmkd_format("tests/data/cache-%s.shards/shard-00001-of-00002.h5", codecs[i]),
         *path = cmkd_format("%s/t.h5", dir), *shard = cmkd_format("%s/t.shards/shard-00001-of-00002.h5", dir);
    cmkd_cache_config config, again;
    char *before = configuration_of(old, &config);
    const synthetic s = {.samples = 12,
                         .views = 2,
                         .classes = 10,
                         .shard_samples = config.shard_samples,
                         .chunk_samples = config.layouts[0].array.chunk_samples,
                         .codec = codecs[i],
                         .seed = 2026,
                         .names = 1};
    assert_ok(synthetic_build(&s, path, NULL, &err));
    char *now = configuration_of(shard, &again);
    assert_string_equal(before, now);
    cmkd_cache_config_free(&config);
    cmkd_cache_config_free(&again);
    free(before);
    free(now);
    free(old);
    free(path);
    free(shard);
  }
}

/* Whatever the writer takes, the reader takes: each field in turn is one that parse.c refuses. */
static void specs_that_make_no_cache_are_refused(void **state) {
  (void)state;
  const synthetic s = {.samples = 12, .views = 2, .classes = 10, .codec = "f16", .seed = 1, .names = 1};
  char *path = cmkd_format("%s/t.h5", scratch_dir());
  static const char *const not_utf8[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "\xff"};
  enum { CASES = 17 };
  for (int i = 0; i < CASES; i++) {
    cmkd_cache_spec spec;
    cmkd_cache_writer *w;
    synthetic_spec(&s, &spec);
    cmkd_cache_identity *id = &spec.identity;
    switch (i) {
    case 0: id->teacher_sha256[63] = 'A'; break;
    case 1: id->teacher_sha256[63] = 0; break;
    case 2: memset(id->teacher_sha256, 'a', sizeof id->teacher_sha256); break;
    case 3: memset(id->tool_version, 'x', sizeof id->tool_version); break;
    case 4: strcpy(id->fingerprint, "abc"); break;
    case 5: id->channels = 4; break;
    case 6: id->channels = -1; break;
    case 7: id->std[1] = (float)INFINITY; break;
    case 8: id->teacher_batch = -1; break;
    case 9: id->precision_error = (double)NAN; break;
    case 10: id->policy = (cmkd_policy)4; break;
    case 11: strcpy(id->codec, "f17"); break;
    case 12: spec.samples = 0; break;
    case 13: spec.views = CMKD_CACHE_MAX_VIEWS + 1; break;
    case 14: spec.classes = CMKD_CACHE_MAX_CLASSES + 1; break;
    case 15: spec.class_names = not_utf8; break;
    default: strcpy(id->dataset, "\xc3"); break;
    }
    if (cmkd_cache_writer_open(path, &spec, &w, &err) != CMKD_ERR_USAGE || w) fail_msg("case %d: %s", i, err.message);
    assert_false(cmkd_file_exists(path));
  }
  free(path);
}

static void names_follow_from_the_masters(void **state) {
  (void)state;
  static const char *const names[][3] = {
      {"teacher.h5", "teacher.shards", "teacher.test.h5"},
      {"a.b/teacher", "a.b/teacher.shards", "a.b/teacher.test.h5"},
      {"x.h5.h5", "x.h5.shards", "x.h5.test.h5"},
      {".h5", ".h5.shards", ".h5.test.h5"},
      {"", ".shards", ".test.h5"},
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char *folder = cmkd_cache_folder(names[i][0]), *companion = cmkd_cache_companion(names[i][0]);
    assert_string_equal(folder, names[i][1]);
    assert_string_equal(companion, names[i][2]);
    free(folder);
    free(companion);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(old_caches_read_the_same), cmocka_unit_test(new_caches_are_written_the_same),
      cmocka_unit_test(specs_that_make_no_cache_are_refused), cmocka_unit_test(names_follow_from_the_masters),
      cmocka_unit_test(block_is_laid_out_as_documented)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
