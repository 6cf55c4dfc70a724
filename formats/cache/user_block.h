/* The user block that opens every file of a cache: 128 bytes of header, JSON, zeros up to 512 * 2^k.
 * docs/cache-format.md has the table. Knows nothing of what the JSON means. */
#ifndef CMKD_FORMATS_CACHE_USER_BLOCK_H
#define CMKD_FORMATS_CACHE_USER_BLOCK_H
#include <stddef.h>
#include <stdint.h>
#include "base/hash.h"
#include "cmkd/status.h"

#define CMKD_USER_BLOCK_HEADER 128
#define CMKD_USER_BLOCK_VERSION 1
extern const uint8_t cmkd_user_block_magic[8]; /* the first bytes of each file */
enum cmkd_user_block_kind { CMKD_USER_BLOCK_SHARD = 1, CMKD_USER_BLOCK_MASTER = 2 };

typedef struct cmkd_user_block {
  int kind;
  uint64_t block_size, file_size; /* bytes; the HDF5 image lies in [block_size, file_size) */
  const char *json;               /* (json_size) inside the caller's bytes, not terminated */
  size_t json_size;
  char payload_sha256[CMKD_SHA256_HEX]; /* of everything after the block */
} cmkd_user_block;

/* The whole block in fresh memory (caller frees); NULL when out of memory. */
uint8_t *cmkd_user_block_make(int kind, const char *json, size_t json_size, const char *payload_sha256,
                              uint64_t payload_size, size_t *block_size);

/* Checks the first CMKD_USER_BLOCK_HEADER bytes of a file of `file_size` bytes; gives the size of the whole block, at
 * most file_size. */
cmkd_status cmkd_user_block_peek(const uint8_t *header, size_t size, uint64_t file_size, const char *path,
                                 uint64_t *block_size, cmkd_error *err);
/* Parses a whole block (block_size bytes from peek) and checks the JSON's hash and the zeros. `out` points into
 * `bytes`. */
cmkd_status cmkd_user_block_parse(const uint8_t *bytes, size_t size, uint64_t file_size, const char *path,
                                  cmkd_user_block *out, cmkd_error *err);
/* Reads, peeks and parses the block of an open file. *bytes is fresh memory that `out` points into (caller frees). */
cmkd_status cmkd_user_block_read(int fd, const char *path, int kind, uint8_t **bytes, cmkd_user_block *out,
                                 cmkd_error *err);
/* SHA-256 of everything after the block of an open file, to be compared with block->payload_sha256. */
cmkd_status cmkd_payload_sha256(int fd, const cmkd_user_block *block, const char *path, char hex[CMKD_SHA256_HEX],
                                cmkd_error *err);
#endif
