/* Zip archives in memory. See zipfile.h. Structures and signatures: APPNOTE.TXT of PKWARE, sections 4.3 and 4.5. */
#include "formats/weights/zipfile.h"
#include "base/bytes.h"
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define END_SIZE 22u
#define END64_SIZE 56u
#define LOCATOR_SIZE 20u
#define CENTRAL_SIZE 46u
#define LOCAL_SIZE 30u
#define MAX_COMMENT 65535u
#define MAX_RATIO 1032 /* of deflate, the best that it can do */
enum { STORED = 0, DEFLATED = 8 };

static uint32_t u16(const uint8_t *p) { return (uint32_t)cmkd_load_little(p, 2); }
static uint32_t u32(const uint8_t *p) { return (uint32_t)cmkd_load_little(p, 4); }
static uint64_t u64(const uint8_t *p) { return cmkd_load_little(p, 8); }

static cmkd_status broken(const char *file, const char *what, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: damaged zip archive: %s; fetch the file again", file, what);
}

typedef struct directory {
  uint64_t offset, size, count;
} directory;

/* The end record is the last thing but a comment; its size must fit the file exactly, so a signature inside the comment
 * can't fool us. */
static cmkd_status find_directory(const uint8_t *bytes, uint64_t size, const char *file, directory *out,
                                  cmkd_error *err) {
  if (size < END_SIZE) return broken(file, "truncated", err);
  uint64_t lowest = size > END_SIZE + MAX_COMMENT ? size - END_SIZE - MAX_COMMENT : 0, at = size - END_SIZE;
  while (u32(bytes + at) != 0x06054b50 || at + END_SIZE + u16(bytes + at + 20) != size) {
    if (at == lowest) return broken(file, "truncated (no end record)", err);
    at--;
  }
  const uint8_t *end = bytes + at;
  uint64_t limit = at;
  *out = (directory){u32(end + 16), u32(end + 12), u16(end + 10)};
  if (u16(end + 4) || u16(end + 6) || u16(end + 8) != out->count) return broken(file, "it is one part of several", err);
  if (at >= LOCATOR_SIZE && u32(end - LOCATOR_SIZE) == 0x07064b50) {
    uint64_t where = u64(end - LOCATOR_SIZE + 8);
    if (where > at - LOCATOR_SIZE || at - LOCATOR_SIZE - where < END64_SIZE || u32(bytes + where) != 0x06064b50)
      return broken(file, "its zip64 end record is not where it should be", err);
    const uint8_t *wide = bytes + where;
    *out = (directory){u64(wide + 48), u64(wide + 40), u64(wide + 32)};
    limit = where;
  }
  if (out->offset > limit || out->size > limit - out->offset)
    return broken(file, "its directory reaches outside of the file", err);
  if (out->count > out->size / CENTRAL_SIZE) return broken(file, "its directory is too small for its entries", err);
  return CMKD_OK;
}

/* Fields that hold all ones live in the zip64 extra field, in this order. */
static cmkd_status widen(const uint8_t *extra, uint32_t length, cmkd_zip_entry *e, const char *file, cmkd_error *err) {
  uint64_t *fields[] = {&e->size, &e->packed, &e->header};
  while (length >= 4) {
    uint32_t id = u16(extra), body = u16(extra + 2);
    if (body > length - 4) break;
    if (id == 1) {
      const uint8_t *p = extra + 4;
      for (int i = 0; i < 3; i++)
        if (*fields[i] == UINT32_MAX) {
          if (body < 8) return broken(file, "a zip64 field is missing", err);
          *fields[i] = u64(p);
          p += 8;
          body -= 8;
        }
      return CMKD_OK;
    }
    extra += 4 + body;
    length -= 4 + body;
  }
  return CMKD_OK;
}

static int by_name(const void *a, const void *b) {
  const cmkd_zip_entry *x = a, *y = b;
  uint32_t n = x->name_length < y->name_length ? x->name_length : y->name_length;
  int order = memcmp(x->name, y->name, n);
  return order ? order : (x->name_length > y->name_length) - (x->name_length < y->name_length);
}

static cmkd_status read_directory(cmkd_zip *zip, const directory *d, cmkd_error *err) {
  const uint8_t *p = zip->bytes + d->offset, *end = p + d->size;
  for (uint64_t i = 0; i < d->count; i++) {
    if ((uint64_t)(end - p) < CENTRAL_SIZE || u32(p) != 0x02014b50)
      return broken(zip->file, "a directory entry has no signature", err);
    uint32_t name = u16(p + 28), extra = u16(p + 30), comment = u16(p + 32);
    if ((uint64_t)(end - p) - CENTRAL_SIZE < (uint64_t)name + extra + comment)
      return broken(zip->file, "a directory entry is cut", err);
    cmkd_zip_entry *e = &zip->entries[zip->count++];
    *e = (cmkd_zip_entry){.name = (const char *)p + CENTRAL_SIZE,
                          .name_length = name,
                          .method = (int)u16(p + 10),
                          .crc = u32(p + 16),
                          .packed = u32(p + 20),
                          .size = u32(p + 24),
                          .header = u32(p + 42)};
    CMKD_TRY(widen(p + CENTRAL_SIZE + name, extra, e, zip->file, err));
    if (u16(p + 8) & 1)
      return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: its entries are encrypted; give the plain file", zip->file);
    if (e->header > zip->size || e->packed > zip->size - e->header)
      return broken(zip->file, "an entry reaches outside of the file", err);
    p += CENTRAL_SIZE + name + extra + comment;
  }
  qsort(zip->entries, zip->count, sizeof *zip->entries, by_name);
  for (uint32_t i = 1; i < zip->count; i++)
    if (by_name(&zip->entries[i - 1], &zip->entries[i]) == 0) return broken(zip->file, "two entries of one name", err);
  return CMKD_OK;
}

cmkd_status cmkd_zip_open(const uint8_t *bytes, size_t size, const char *file, cmkd_zip *out, cmkd_error *err) {
  directory d = {0};
  *out = (cmkd_zip){.bytes = bytes, .size = size, .file = file};
  CMKD_TRY(find_directory(bytes, size, file, &d, err));
  out->entries = malloc((size_t)(d.count + 1) * sizeof *out->entries);
  if (!out->entries) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", file);
  cmkd_status status = read_directory(out, &d, err);
  if (status != CMKD_OK) cmkd_zip_close(out);
  return status;
}

void cmkd_zip_close(cmkd_zip *zip) {
  free(zip->entries);
  zip->entries = NULL;
  zip->count = 0;
}

const cmkd_zip_entry *cmkd_zip_find(const cmkd_zip *zip, const char *name, size_t length) {
  cmkd_zip_entry key = {.name = name, .name_length = (uint32_t)length};
  if (length > UINT16_MAX || !zip->count) return NULL;
  return bsearch(&key, zip->entries, zip->count, sizeof key, by_name);
}

/* zlib counts in 32 bits. */
static uInt at_most(uint64_t bytes) { return bytes > 1u << 30 ? 1u << 30 : (uInt)bytes; }

/* Raw deflate of exactly e->size bytes. The size was checked against the limit and against what deflate can reach at
 * all. */
static cmkd_status inflate_entry(const cmkd_zip *zip, const cmkd_zip_entry *e, const uint8_t *packed, uint8_t **owned,
                                 cmkd_error *err) {
  z_stream z = {0};
  uint8_t *out = malloc((size_t)e->size + 1); /* one more shows an entry that goes on */
  if (!out || inflateInit2(&z, -15) != Z_OK) {
    free(out);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for %llu bytes", zip->file, (unsigned long long)e->size);
  }
  uint64_t in = 0, done = 0;
  int code = Z_OK;
  while (code == Z_OK) {
    uInt give = at_most(e->packed - in), capacity = at_most(e->size + 1 - done);
    z.next_in = (Bytef *)packed + in;
    z.avail_in = give;
    z.next_out = out + done;
    z.avail_out = capacity;
    code = inflate(&z, Z_NO_FLUSH);
    in += give - z.avail_in;
    done += capacity - z.avail_out;
    int stuck = give == z.avail_in && capacity == z.avail_out;
    if (code == Z_OK && stuck) break;
  }
  inflateEnd(&z);
  if (code == Z_STREAM_END && done == e->size && in == e->packed) {
    *owned = out;
    return CMKD_OK;
  }
  free(out);
  return broken(zip->file, "a deflated entry is not what its sizes say", err);
}

cmkd_status cmkd_zip_read(const cmkd_zip *zip, const cmkd_zip_entry *e, uint64_t limit, const uint8_t **data,
                          uint8_t **owned, cmkd_error *err) {
  *data = *owned = NULL;
  const uint8_t *local = zip->bytes + e->header;
  uint64_t left = zip->size - e->header;
  if (left < LOCAL_SIZE || u32(local) != 0x04034b50) return broken(zip->file, "an entry has no local header", err);
  /* The local header's own sizes are not read: they may be 0, with a data descriptor behind the data instead. */
  uint64_t skip = (uint64_t)LOCAL_SIZE + u16(local + 26) + u16(local + 28);
  if (skip > left || e->packed > left - skip)
    return broken(zip->file, "truncated: an entry reaches outside of the file", err);
  if (u16(local + 26) != e->name_length || memcmp(local + LOCAL_SIZE, e->name, e->name_length))
    return broken(zip->file, "an entry has two names", err);
  if (e->size > limit || (e->method == DEFLATED && e->size / MAX_RATIO > e->packed + 1))
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: refused: an entry would inflate to %llu bytes (a zip bomb?)", zip->file,
                     (unsigned long long)e->size);
  if (e->method == STORED) {
    if (e->packed != e->size) return broken(zip->file, "a stored entry has two sizes", err);
    *data = local + skip;
  } else if (e->method == DEFLATED) {
    CMKD_TRY(inflate_entry(zip, e, local + skip, owned, err));
    *data = *owned;
  } else {
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                     "%s: a zip entry is compressed by method %d; known are stored and deflate", zip->file, e->method);
  }
  /* writers that skip checksums leave 0 */
  if (e->crc && crc32_z(0, *data, (size_t)e->size) != e->crc) {
    free(*owned);
    *owned = NULL;
    return broken(zip->file, "a checksum does not match its entry", err);
  }
  return CMKD_OK;
}
