/* Damage: 10 000 random bit flips and truncations over a cache's files. Each must be noticed by verify, and a reader
 * either refuses or delivers the true numbers. Also headers that lie, from the inside: consistent hashes around
 * nonsense. */
#include "tests/support.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "base/hash.h"
#include "base/rng.h"
#include "formats/cache/user_block.h"
#include "formats/cache/chunk.h"
#include "formats/cache/hash.h"
#include "formats/cache/meta.h"
#include "formats/cache/reader/verify.h"
#include "tests/support_cache.h"

static cmkd_error err;
static const synthetic small = {.samples = 90,
                                .views = 2,
                                .classes = 10,
                                .shard_samples = 50,
                                .chunk_samples = 20,
                                .codec = "f16",
                                .seed = 5,
                                .threads = 1,
                                .names = 1};
enum { CELLS = 90 * 10 };

typedef struct truth {
  float rows[2][CELLS];
  uint64_t seeds[2][90];
  int32_t labels[90];
  uint64_t ids[90];
  char sha256[65];
} truth;

static void load(cmkd_cache *cache, truth *t, int *refused) {
  const int32_t *labels = NULL;
  const uint64_t *ids = NULL;
  *refused = 0;
  for (uint32_t v = 0; v < 2; v++) {
    if (cmkd_cache_read(cache, v, 0, 90, t->rows[v], &err) != CMKD_OK) *refused |= 1 << v;
    if (cmkd_cache_seeds(cache, v, t->seeds[v], &err) != CMKD_OK) *refused |= 4 << v;
  }
  if (cmkd_cache_labels(cache, &labels, &err) != CMKD_OK)
    *refused |= 16;
  else
    memcpy(t->labels, labels, sizeof t->labels);
  if (cmkd_cache_ids(cache, &ids, &err) != CMKD_OK)
    *refused |= 32;
  else
    memcpy(t->ids, ids, sizeof t->ids);
  memcpy(t->sha256, cmkd_cache_get_info(cache)->content_sha256, 65);
}

/* 0: opening failed; 1: something was refused; 2: all read and equal to `expected`. verify must have noticed either
 * way. */
static int look(const char *path, const truth *expected, const char *what) {
  cmkd_cache *cache;
  static truth found;
  int refused;
  cmkd_verify_report report;
  if (cmkd_cache_open(path, &cache, &err) != CMKD_OK) return 0;
  load(cache, &found, &refused);
  for (uint32_t v = 0; v < 2; v++) {
    if (!(refused & 1 << v) && memcmp(found.rows[v], expected->rows[v], sizeof found.rows[v]) != 0)
      fail_msg("%s: logits changed silently", what);
    if (!(refused & 4 << v) && memcmp(found.seeds[v], expected->seeds[v], sizeof found.seeds[v]) != 0)
      fail_msg("%s: seeds changed silently", what);
  }
  if (!(refused & 16) && memcmp(found.labels, expected->labels, sizeof found.labels) != 0)
    fail_msg("%s: labels changed silently", what);
  if (!(refused & 32) && memcmp(found.ids, expected->ids, sizeof found.ids) != 0)
    fail_msg("%s: ids changed silently", what);
  cmkd_cache_verify(cache, 0, 1, NULL, NULL, &report);
  if (!report.problems) fail_msg("%s: verify did not notice", what);
  cmkd_cache_close(cache);
  return refused ? 1 : 2;
}

static void flips_and_truncations(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  char *files[3] = {cmkd_format("%s/t.h5", dir), cmkd_format("%s/t.shards/shard-00000-of-00002.h5", dir),
                    cmkd_format("%s/t.shards/shard-00001-of-00002.h5", dir)},
       what[128];
  static truth expected;
  cmkd_cache *cache;
  int refused, outcome[3] = {0};
  assert_ok(synthetic_build(&small, files[0], NULL, &err));
  assert_ok(cmkd_cache_open(files[0], &cache, &err));
  load(cache, &expected, &refused);
  assert_int_equal(refused, 0);
  cmkd_cache_close(cache);
  cmkd_rng rng = cmkd_rng_start(8, CMKD_STREAM_TEST, 0);
  for (int i = 0; i < 11000; i++) {
    const char *file = files[cmkd_rng_below(&rng, 3)];
    int fd = open(file, O_RDWR);
    struct stat st;
    uint8_t byte, bad;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    uint32_t at = cmkd_rng_below(&rng, (uint32_t)st.st_size);
    if (i % 11 == 10) { /* truncated there; the whole is put back */
      uint8_t *rest = malloc((size_t)st.st_size - at);
      assert_int_equal(pread(fd, rest, (size_t)st.st_size - at, at), st.st_size - at);
      assert_int_equal(ftruncate(fd, at), 0);
      snprintf(what, sizeof what, "%s cut at %u", file + strlen(dir), at);
      assert_int_equal(look(files[0], &expected, what), 0);
      assert_int_equal(pwrite(fd, rest, (size_t)st.st_size - at, at), st.st_size - at);
      free(rest);
    } else {
      assert_int_equal(pread(fd, &byte, 1, at), 1);
      bad = (uint8_t)(byte ^ 1u << cmkd_rng_below(&rng, 8));
      assert_int_equal(pwrite(fd, &bad, 1, at), 1);
      snprintf(what, sizeof what, "%s, byte %u", file + strlen(dir), at);
      outcome[look(files[0], &expected, what)]++;
      assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
  }
  print_message("10000 flips: %d refused on opening, %d on reading, %d harmless to reading; verify noticed all\n",
                outcome[0], outcome[1], outcome[2]);
  assert_ok(cmkd_cache_open(files[0], &cache, &err));
  cmkd_cache_close(cache);
  for (int i = 0; i < 3; i++)
    free(files[i]);
}

/* Rebuilds the master around `json`, hashes and all. */
static cmkd_status open_with_json(const char *path, const char *json) {
  uint8_t *data;
  size_t size, block_size;
  cmkd_user_block block;
  cmkd_cache *cache;
  assert_ok(cmkd_file_read(path, 1 << 24, &data, &size, &err));
  assert_ok(cmkd_user_block_parse(data, size, size, path, &block, &err));
  size_t payload = size - (size_t)block.block_size;
  char *lie = cmkd_format("%s.lie", path);
  uint8_t *made =
      cmkd_user_block_make(CMKD_USER_BLOCK_MASTER, json, strlen(json), block.payload_sha256, payload, &block_size);
  const cmkd_piece pieces[] = {{made, block_size}, {data + block.block_size, payload}};
  assert_ok(cmkd_file_write(lie, pieces, 2, &err));
  cmkd_status status = cmkd_cache_open(lie, &cache, &err);
  if (status == CMKD_OK) cmkd_cache_close(cache);
  free(made);
  free(data);
  free(lie);
  return status;
}

static char *master_json(const char *path) {
  uint8_t *data;
  size_t size;
  cmkd_user_block block;
  assert_ok(cmkd_file_read(path, 1 << 24, &data, &size, &err));
  assert_ok(cmkd_user_block_parse(data, size, size, path, &block, &err));
  char *json = strndup(block.json, block.json_size);
  free(data);
  return json;
}

static void lying_headers_are_refused(void **state) {
  (void)state;
  char *path = cmkd_format("%s/t.h5", scratch_dir());
  assert_ok(synthetic_build(&small, path, NULL, &err));
  char *json = master_json(path);
  assert_int_equal(open_with_json(path, json), CMKD_OK); /* the rebuilding itself is sound */
  static const char *const lies[][2] = {
      {"[90,2,10]", "[4294967295,2,10]"},
      {"[90,2,10]", "[4294967296,2,10]"},
      {"[90,2,10]", "[0,2,10]"},
      {"[90,2,10]", "[90,-2,10]"},
      {"[90,2,10]", "[90,2,131073]"},
      {"[90,2,10]", "[90,2]"},
      {"[90,2,10]", "[90,2,10.5]"},
      {"\"shards\":2", "\"shards\":99999"},
      {"\"shards\":2", "\"shards\":18446744073709551615"},
      {"\"shard_rows\":50", "\"shard_rows\":0"},
      {"\"chunk_rows\":20", "\"chunk_rows\":51"},
      {"\"folder\":\"t.shards\"", "\"folder\":\"../t.shards\""},
      {"\"folder\":\"t.shards\"", "\"folder\":\"..\""},
      {"\"folder\":\"t.shards\"", "\"folder\":\"\""},
      {"\"folder\":\"t.shards\"", "\"folder\":\"nowhere\""},
      {"shard-00001-of-00002.h5", "../../../etc/passwd.1234"},
      {"\"codec\":\"f16\"", "\"codec\":\"f32\""},
      {"\"codec\":\"f16\"", "\"codec\":\"zip\""},
      {"\"augment\":\"crop+flip\"", "\"augment\":\"crop\""},
      {"\"cache_seed\":\"5\"", "\"cache_seed\":\"-5\""},
      {"\"cache_seed\":\"5\"", "\"cache_seed\":\"6\""},
      {"\"elk\"", "\"elk\\u0000\""},
      {"\"elk\"", "7"},
      {"\"schema\":1", "\"schema\":2"},
      {"\"schema\":1", "\"schema\":1,\"schema\":1"},
      {"\"mean\":[", "\"mean\":[1e400,"},
      {"\"mean\":[", "\"mean\":[0.5,"},
      {"\"format\":\"cmkd-cache\"", "\"format\":\"cmkd-shard\""},
      {"\"dataset\":\"cifar100\"", "\"dataset\":\"a name that is far too long for a data set\""},
  };
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
    char *at = strstr(json, lies[i][0]);
    assert_non_null(at);
    char *changed = cmkd_format("%.*s%s%s", (int)(at - json), json, lies[i][1], at + strlen(lies[i][0]));
    if (open_with_json(path, changed) == CMKD_OK) fail_msg("%s was believed", lies[i][1]);
    assert_null(strchr(err.message, '\n'));
    free(changed);
  }
  assert_int_not_equal(open_with_json(path, "[]"), CMKD_OK);
  assert_int_not_equal(open_with_json(path, "{"), CMKD_OK);
  assert_int_not_equal(open_with_json(path, ""), CMKD_OK);
  free(json);
  free(path);
}

static void missing_and_foreign_files(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *output;
  char *path = cmkd_format("%s/t.h5", dir), *other = cmkd_format("%s/renamed.h5", dir);
  cmkd_cache *cache;
  assert_int_equal(cmkd_cache_open(path, &cache, &err), CMKD_ERR_IO);
  assert_int_equal(cmkd_cache_open(dir, &cache, &err), CMKD_ERR_FORMAT);
  assert_int_equal(cmkd_cache_open("/dev/null", &cache, &err), CMKD_ERR_FORMAT);
  assert_ok(synthetic_build(&small, path, NULL, &err));
  if (run_command(&output, "cd '%s' && mv t.h5 renamed.h5 && mv t.shards renamed.shards", dir) != 0)
    fail_msg("%s", output);
  assert_ok(cmkd_cache_open(other, &cache, &err)); /* both renamed: still one cache */
  cmkd_cache_close(cache);
  if (run_command(&output,
                  "cd '%s/renamed.shards' && cp shard-00000-of-00002.h5 ../s.h5 && mv shard-00001-of-00002.h5 x",
                  dir) != 0)
    fail_msg("%s", output);
  assert_int_equal(cmkd_cache_open(other, &cache, &err), CMKD_ERR_IO);
  assert_non_null(strstr(err.message, "shard-00001-of-00002.h5"));
  if (run_command(&output, "cd '%s/renamed.shards' && cp shard-00000-of-00002.h5 shard-00001-of-00002.h5", dir) != 0)
    fail_msg("%s", output);
  assert_int_equal(cmkd_cache_open(other, &cache, &err), CMKD_ERR_MISMATCH);
  char *shard = cmkd_format("%s/s.h5", dir);
  assert_int_equal(cmkd_cache_open(shard, &cache, &err), CMKD_ERR_FORMAT);
  assert_non_null(strstr(err.message, "one shard of a cache"));
  free(shard);
  free(path);
  free(other);
}

static void chunks_that_are_not_ours(void **state) {
  (void)state;
  uint8_t items[2000], scratch[2000], stored[4096], out[2000];
  cmkd_rng rng = cmkd_rng_start(8, CMKD_STREAM_TEST, 1);
  for (size_t i = 0; i < sizeof items; i++)
    items[i] = (uint8_t)(cmkd_rng_below(&rng, 7) * (i & 1));
  cmkd_chunk_coder *coder = cmkd_chunk_coder_create();
  size_t size = cmkd_chunk_encode(coder, items, 1000, 2, scratch, stored);
  assert_true(size > 10 && size < 2000);
  assert_ok(cmkd_chunk_decode(coder, stored, size, out, 2000, "it", &err));
  assert_memory_equal(out, scratch, 2000);
  assert_int_equal(cmkd_chunk_decode(coder, stored, size, out, 1999, "it", &err), CMKD_ERR_FORMAT);
  assert_int_equal(cmkd_chunk_decode(coder, stored, size - 1, out, 2000, "it", &err), CMKD_ERR_FORMAT);
  for (size_t i = 0; i < 6; i++)
    assert_int_equal(cmkd_chunk_decode(coder, stored, i, out, 2000, "it", &err), CMKD_ERR_FORMAT);
  for (size_t bit = 0; bit < (size - 4) * 8; bit++) { /* behind that stands fletcher32, which is h5py's */
    stored[bit / 8] ^= (uint8_t)(1u << bit % 8);
    if (cmkd_chunk_decode(coder, stored, size, out, 2000, "it", &err) == CMKD_OK)
      assert_memory_equal(out, scratch, 2000);
    stored[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
  cmkd_chunk_coder_free(coder);
}

static void short_hashes_have_known_answers(void **state) {
  (void)state;
  char text[1000];
  for (size_t i = 0; i < sizeof text; i++)
    text[i] = (char)(i * 7);
  assert_true(cmkd_xxh64("", 0) == 0xEF46DB3751D8E999ull);
  assert_true(cmkd_xxh64("a", 1) == 0xD24EC4F1A98C6E5Bull);
  assert_true(cmkd_xxh64("abc", 3) == 0x44BC2CF5AD770999ull);
  assert_int_equal(cmkd_lookup3("", 0), 0xDEADBEEFu);
  assert_int_equal(cmkd_lookup3("Four score and seven years ago", 30), 0x17770551u); /* from lookup3.c's own test */
  assert_int_equal(cmkd_fletcher32("", 0), 0);
  assert_int_equal(cmkd_fletcher32("\xFF\xFF\xFF\xFF", 4), 0xFFFFFFFFu); /* 0 modulo 65535, written 65535 */
  assert_int_equal(cmkd_fletcher32("ab", 2), 0x61626162u);
  /* h5py checks fletcher32 of every chunk in test_cache_read; zstd's frame checksum is XXH64, too */
  cmkd_chunk_coder *coder = cmkd_chunk_coder_create();
  uint8_t stored[2048];
  size_t size = cmkd_chunk_encode(coder, (const uint8_t *)text, sizeof text, 1, NULL, stored);
  uint32_t sum = (uint32_t)stored[size - 8] | (uint32_t)stored[size - 7] << 8 | (uint32_t)stored[size - 6] << 16 |
                 (uint32_t)stored[size - 5] << 24;
  assert_int_equal(sum, (uint32_t)cmkd_xxh64(text, sizeof text));
  cmkd_chunk_coder_free(coder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(flips_and_truncations),           cmocka_unit_test(lying_headers_are_refused),
      cmocka_unit_test(missing_and_foreign_files),       cmocka_unit_test(chunks_that_are_not_ours),
      cmocka_unit_test(short_hashes_have_known_answers),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
