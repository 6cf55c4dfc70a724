/* The zip reader: archives made here byte by byte and by the seeds of tests/seeds/weights; damage of every field. */
#include "tests/support.h"
#include "formats/weights/zipfile.h"
#include "base/file.h"
#include "base/rng.h"
#include <zlib.h>

static uint8_t archive[1 << 16];
static size_t at;
static void number(uint64_t v, int bytes) {
  for (int i = 0; i < bytes; i++)
    archive[at++] = (uint8_t)(v >> 8 * i);
}
static void bytes(const void *p, size_t n) {
  memcpy(archive + at, p, n);
  at += n;
}

typedef struct made {
  const char *name;
  const uint8_t *packed;
  size_t packed_size, size;
  int method, flags;
  uint32_t crc;
} made;

static void local_header(const made *e) {
  number(0x04034b50, 4);
  number(20, 2);
  number((uint64_t)e->flags, 2);
  number((uint64_t)e->method, 2);
  number(0, 4);
  number(e->crc, 4);
  number(e->packed_size, 4);
  number(e->size, 4);
  number(strlen(e->name), 2);
  number(3, 2);
  bytes(e->name, strlen(e->name));
  bytes("xyz", 3); /* an extra field that is only padding */
  bytes(e->packed, e->packed_size);
}

static size_t make(const made *entries, int count) {
  size_t where[8], start;
  at = 0;
  for (int i = 0; i < count; i++) {
    where[i] = at;
    local_header(&entries[i]);
  }
  start = at;
  for (int i = 0; i < count; i++) {
    const made *e = &entries[i];
    number(0x02014b50, 4);
    number(20, 2);
    number(20, 2);
    number((uint64_t)e->flags, 2);
    number((uint64_t)e->method, 2);
    number(0, 4);
    number(e->crc, 4);
    number(e->packed_size, 4);
    number(e->size, 4);
    number(strlen(e->name), 2);
    number(0, 2);
    number(0, 2);
    number(0, 2);
    number(0, 2);
    number(0, 4);
    number(where[i], 4);
    bytes(e->name, strlen(e->name));
  }
  size_t size = at - start;
  number(0x06054b50, 4);
  number(0, 4);
  number((uint64_t)count, 2);
  number((uint64_t)count, 2);
  number(size, 4);
  number(start, 4);
  number(0, 2);
  return at;
}

static made stored(const char *name, const char *text) {
  return (made){name,
                (const uint8_t *)text,
                strlen(text),
                strlen(text),
                0,
                0,
                (uint32_t)crc32(0, (const uint8_t *)text, (uInt)strlen(text))};
}

static made deflated(const char *name, const uint8_t *data, size_t size, uint8_t *capacity, size_t buffer_size) {
  z_stream z = {0};
  assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY), Z_OK);
  z.next_in = (Bytef *)data;
  z.avail_in = (uInt)size;
  z.next_out = capacity;
  z.avail_out = (uInt)buffer_size;
  assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
  made e = {name, capacity, z.total_out, size, 8, 0, (uint32_t)crc32(0, data, (uInt)size)};
  deflateEnd(&z);
  return e;
}

/* Opens a copy of the archive and reads every entry; gives the first failure. */
static cmkd_status read_all(const uint8_t *file, size_t size, uint64_t limit, cmkd_error *err) {
  uint8_t *copy = malloc(size + !size), *owned;
  const uint8_t *data;
  cmkd_zip zip;
  memcpy(copy, file, size);
  cmkd_status status = cmkd_zip_open(copy, size, "z", &zip, err);
  for (uint32_t i = 0; status == CMKD_OK && i < zip.count; i++) {
    assert_ptr_equal(cmkd_zip_find(&zip, zip.entries[i].name, zip.entries[i].name_length), &zip.entries[i]);
    status = cmkd_zip_read(&zip, &zip.entries[i], limit, &data, &owned, err);
    if (status == CMKD_OK) {
      volatile uint8_t sum = 0;
      for (uint64_t k = 0; k < zip.entries[i].size; k++)
        sum ^= data[k];
      free(owned);
    }
  }
  cmkd_zip_close(&zip);
  free(copy);
  return status;
}

static void reads(void **state) {
  (void)state;
  cmkd_error err = {0};
  uint8_t capacity[4096], text[3000], *owned;
  for (size_t i = 0; i < sizeof text; i++)
    text[i] = (uint8_t)(i % 251);
  made entries[] = {stored("b/two", "hello"), deflated("a", text, sizeof text, capacity, sizeof capacity),
                    stored("b/", "")};
  size_t size = make(entries, 3);
  cmkd_zip zip;
  const uint8_t *data;
  assert_ok(cmkd_zip_open(archive, size, "z", &zip, &err));
  assert_int_equal(zip.count, 3);
  assert_null(cmkd_zip_find(&zip, "b/tw", 4));
  const cmkd_zip_entry *e = cmkd_zip_find(&zip, "b/two", 5);
  assert_ok(cmkd_zip_read(&zip, e, 5, &data, &owned, &err));
  assert_memory_equal(data, "hello", 5);
  assert_null(owned);
  assert_int_equal(cmkd_zip_read(&zip, e, 4, &data, &owned, &err), CMKD_ERR_FORMAT); /* over the limit */
  e = cmkd_zip_find(&zip, "a", 1);
  assert_ok(cmkd_zip_read(&zip, e, 3000, &data, &owned, &err));
  assert_memory_equal(data, text, sizeof text);
  free(owned);
  cmkd_zip_close(&zip);
}

static void refusals(void **state) {
  (void)state;
  cmkd_error err = {0};
  static uint8_t zeros[1 << 19], capacity[4096];
  made good = stored("x", "hello"), e;
#define REFUSED(says) \
  do { \
    size_t n_ = make(&e, 1); \
    err.message[0] = 0; \
    if (read_all(archive, n_, 1 << 18, &err) == CMKD_OK || !strstr(err.message, says)) fail_msg("'%s'", err.message); \
  } while (0)
  e = good;
  e.crc ^= 1;
  REFUSED("checksum");
  e = good;
  e.size = 6;
  REFUSED("two sizes");
  e = good;
  e.method = 12;
  REFUSED("method 12");
  e = good;
  e.flags = 1;
  REFUSED("encrypted");
  e = good;
  e.method = 8;
  REFUSED("not what its sizes say");
  e = deflated("bomb", zeros, sizeof zeros, capacity, sizeof capacity);
  REFUSED("bomb"); /* honest about its size: over the limit */
  e.size = 100;
  REFUSED("not what its sizes say"); /* lies: inflation stops at what it said */
  e = good;
  e.method = 8;
  e.size = 1 << 17;
  REFUSED("bomb"); /* more than deflate can make of 5 bytes */
  made twice[] = {good, good};
  assert_int_not_equal(read_all(archive, make(twice, 2), 100, &err), CMKD_OK);
  assert_non_null(strstr(err.message, "one name"));
  size_t n = make(&good, 1);
  for (size_t k = 0; k < n; k++)
    assert_int_not_equal(read_all(archive, k, 100, &err), CMKD_OK);
  /* a comment that looks like an end record */
  archive[n - 2] = 22;
  memcpy(archive + n, archive + n - 22, 20);
  archive[n + 20] = 1;
  archive[n + 21] = 0;
  assert_ok(read_all(archive, n + 22, 100, &err));
  e = good;
  e.crc = 0; /* a writer that skips checksums */
  assert_ok(read_all(archive, make(&e, 1), 100, &err));
}

static void survives_mutations(void **state) {
  (void)state;
  static const char *const seeds[] = {"deflated.pth", "streamed.pth", "zip64.pth", "strided.pth"};
  cmkd_rng rng = cmkd_rng_start(4, CMKD_STREAM_TEST, 0);
  for (int s = 0; s < 4; s++) {
    cmkd_error err = {0};
    uint8_t *file;
    size_t size;
    char *path = cmkd_format("tests/seeds/weights/%s", seeds[s]);
    assert_ok(cmkd_file_read(path, 1 << 20, &file, &size, &err));
    assert_ok(read_all(file, size, 1 << 20, &err));
    for (int i = 0; i < 2000; i++) {
      size_t where = cmkd_rng_below(&rng, (uint32_t)size);
      uint8_t kept = file[where];
      file[where] = (uint8_t)cmkd_rng_u32(&rng);
      read_all(file, size, 1 << 20, &err);
      file[where] = kept;
    }
    free(file);
    free(path);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(reads), cmocka_unit_test(refusals),
                                     cmocka_unit_test(survives_mutations)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
