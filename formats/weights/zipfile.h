/* A reader of zip archives in memory: stored and deflated entries, zip64, data descriptors. The central directory is
 * the truth. Never inflates more than the caller allows. Not here: encryption, spanning, writing. */
#ifndef CMKD_FORMATS_WEIGHTS_ZIPFILE_H
#define CMKD_FORMATS_WEIGHTS_ZIPFILE_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/status.h"

typedef struct cmkd_zip_entry {
  const char *name; /* (name_length), points into the archive, no terminator */
  uint32_t name_length;
  int method; /* 0 stored, 8 deflated */
  uint32_t crc;
  uint64_t packed, size; /* bytes in the archive, bytes out */
  uint64_t header;       /* offset of the local header */
} cmkd_zip_entry;

typedef struct cmkd_zip {
  const uint8_t *bytes;
  uint64_t size;
  const char *file;
  cmkd_zip_entry *entries; /* (count), sorted by name, unique */
  uint32_t count;
} cmkd_zip;

/* `bytes` must outlive the zip; `file` is for messages. */
cmkd_status cmkd_zip_open(const uint8_t *bytes, size_t size, const char *file, cmkd_zip *out, cmkd_error *err);
void cmkd_zip_close(cmkd_zip *zip);
const cmkd_zip_entry *cmkd_zip_find(const cmkd_zip *zip, const char *name, size_t length); /* NULL when absent */
/* An entry's content, its checksum verified. *data points into the archive (stored) or at *owned, which the caller
 * frees (deflated). Entries of more than `limit` bytes are refused before anything is allocated. */
cmkd_status cmkd_zip_read(const cmkd_zip *zip, const cmkd_zip_entry *entry, uint64_t limit, const uint8_t **data,
                          uint8_t **owned, cmkd_error *err);
#endif
