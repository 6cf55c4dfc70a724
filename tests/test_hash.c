#include "tests/support.h"
#include <sys/stat.h>
#include "base/file.h"
#include "base/hash.h"

/* FIPS 180-2, appendix B, and the empty message. */
static const struct {
  const char *text, *hex;
} vectors[] = {
    {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
};
#define MILLION_A "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"

static void fips_vectors(void **state) {
  (void)state;
  char hex[CMKD_SHA256_HEX];
  for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
    cmkd_sha256(vectors[i].text, strlen(vectors[i].text), hex);
    assert_string_equal(hex, vectors[i].hex);
  }
  cmkd_sha256(NULL, 0, hex);
  assert_string_equal(hex, vectors[0].hex);
}

static void streams_and_files(void **state) {
  (void)state;
  cmkd_error err = {0};
  char hex[CMKD_SHA256_HEX], *path = cmkd_path_join(scratch_dir(), "a");
  char *text = malloc(1000000);
  memset(text, 'a', 1000000);
  cmkd_hasher *hasher = cmkd_hasher_start();
  assert_non_null(hasher);
  for (size_t at = 0, step = 1; at < 1000000; at += step, step = step * 3 % 4099) {
    if (step > 1000000 - at) step = 1000000 - at;
    cmkd_hasher_update(hasher, text + at, step);
  }
  cmkd_hasher_update(hasher, NULL, 0);
  cmkd_hasher_finish(hasher, hex);
  assert_string_equal(hex, MILLION_A);
  assert_ok(cmkd_file_write(path, &(cmkd_piece){text, 1000000}, 1, &err));
  assert_ok(cmkd_sha256_file(path, hex, &err));
  assert_string_equal(hex, MILLION_A);
  free(text);
  free(path);
}

static void refusals(void **state) {
  (void)state;
  cmkd_error err = {0};
  char hex[CMKD_SHA256_HEX] = "x", *fifo = cmkd_path_join(scratch_dir(), "fifo");
  assert_int_equal(mkfifo(fifo, 0600), 0);
  assert_int_equal(cmkd_sha256_file("/no/such/file", hex, &err), CMKD_ERR_IO);
  assert_string_equal(hex, "");
  assert_non_null(strstr(err.message, "/no/such/file"));
  assert_int_equal(cmkd_sha256_file("/tmp", hex, &err), CMKD_ERR_IO);
  assert_int_equal(cmkd_sha256_file(fifo, hex, &err), CMKD_ERR_IO); /* and does not hang */
  cmkd_hasher_update(NULL, "a", 1);
  strcpy(hex, "x");
  cmkd_hasher_finish(NULL, hex);
  assert_string_equal(hex, "");
  free(fifo);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(fips_vectors), cmocka_unit_test(streams_and_files),
                                     cmocka_unit_test(refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
