/* Header, little endian: 0 magic[8], 8 u32 version, 12 u32 kind, 16 u64 block size, 24 u64 file size, 32 u64 JSON size,
 * 40 zeros[24], 64 SHA-256(JSON)[32], 96 SHA-256(bytes after the block)[32]. */
#include "formats/cache/user_block.h"
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/bytes.h"
#include "base/file.h"

const uint8_t cmkd_user_block_magic[8] = {'C', 'M', 'K', 'D', '\r', '\n', 0x1A, '\n'};

static void bytes_of_hex(const char *hex, uint8_t out[32]) {
  for (int i = 0; i < 64; i++) {
    int digit = hex[i] <= '9' ? hex[i] - '0' : hex[i] - 'a' + 10;
    out[i / 2] = (uint8_t)(i & 1 ? out[i / 2] | digit : digit << 4);
  }
}
static void hex_of_bytes(const uint8_t *bytes, char hex[CMKD_SHA256_HEX]) {
  for (int i = 0; i < 64; i++)
    hex[i] = "0123456789abcdef"[i & 1 ? bytes[i / 2] & 15 : bytes[i / 2] >> 4];
  hex[64] = 0;
}

uint8_t *cmkd_user_block_make(int kind, const char *json, size_t json_size, const char *payload_sha256,
                              uint64_t payload_size, size_t *block_size) {
  size_t size = 512;
  while (size < CMKD_USER_BLOCK_HEADER + json_size)
    size *= 2;
  uint8_t *block = calloc(1, size);
  char json_sha256[CMKD_SHA256_HEX];
  if (!block) return NULL;
  memcpy(block, cmkd_user_block_magic, 8);
  cmkd_store_little(block + 8, 4, CMKD_USER_BLOCK_VERSION);
  cmkd_store_little(block + 12, 4, (uint32_t)kind);
  cmkd_store_little(block + 16, 8, size);
  cmkd_store_little(block + 24, 8, size + payload_size);
  cmkd_store_little(block + 32, 8, json_size);
  cmkd_sha256(json, json_size, json_sha256);
  bytes_of_hex(json_sha256, block + 64);
  bytes_of_hex(payload_sha256, block + 96);
  memcpy(block + CMKD_USER_BLOCK_HEADER, json, json_size);
  *block_size = size;
  return block;
}

cmkd_status cmkd_user_block_peek(const uint8_t *header, size_t size, uint64_t file_size, const char *path,
                                 uint64_t *block_size, cmkd_error *err) {
  if (size < CMKD_USER_BLOCK_HEADER || file_size < CMKD_USER_BLOCK_HEADER ||
      memcmp(header, cmkd_user_block_magic, 8) != 0) {
    if (size >= 8 && !memcmp(header, "\x89HDF\r\n\x1a\n", 8))
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: an HDF5 file, but not a cache made by cmkd-cache", path);
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: not a cache file (made by cmkd-cache build)", path);
  }
  uint32_t version = (uint32_t)cmkd_load_little(header + 8, 4);
  if (version != CMKD_USER_BLOCK_VERSION)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: cache format version %u; this program reads version %d: update it",
                     path, version, CMKD_USER_BLOCK_VERSION);
  uint64_t block = cmkd_load_little(header + 16, 8), whole = cmkd_load_little(header + 24, 8),
           json = cmkd_load_little(header + 32, 8);
  if (whole != file_size) {
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: %llu bytes, but its header says %llu: truncated or changed; run the build again", path,
                     (unsigned long long)file_size, (unsigned long long)whole);
  }
  int power = block >= 512 && (block & (block - 1)) == 0;
  if (!power || block > file_size || json > block - CMKD_USER_BLOCK_HEADER)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: corrupt header; run the build again", path);
  *block_size = block;
  return CMKD_OK;
}

cmkd_status cmkd_user_block_parse(const uint8_t *bytes, size_t size, uint64_t file_size, const char *path,
                                  cmkd_user_block *out, cmkd_error *err) {
  uint64_t block_size = 0;
  CMKD_TRY(cmkd_user_block_peek(bytes, size, file_size, path, &block_size, err));
  if (size < block_size)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: truncated inside its header; run the build again", path);
  memset(out, 0, sizeof *out);
  out->kind = (int)cmkd_load_little(bytes + 12, 4);
  out->block_size = block_size;
  out->file_size = file_size;
  out->json = (const char *)bytes + CMKD_USER_BLOCK_HEADER;
  out->json_size = (size_t)cmkd_load_little(bytes + 32, 8);
  hex_of_bytes(bytes + 96, out->payload_sha256);
  char stored[CMKD_SHA256_HEX], found[CMKD_SHA256_HEX];
  hex_of_bytes(bytes + 64, stored);
  cmkd_sha256(out->json, out->json_size, found);
  int zeros = 1;
  for (size_t i = 40; i < 64; i++)
    zeros &= bytes[i] == 0;
  for (size_t i = CMKD_USER_BLOCK_HEADER + out->json_size; i < block_size; i++)
    zeros &= bytes[i] == 0;
  if (strcmp(stored, found) != 0 || !zeros)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: corrupt header (its hash does not match); run the build again", path);
  return CMKD_OK;
}

cmkd_status cmkd_user_block_read(int fd, const char *path, int kind, uint8_t **bytes, cmkd_user_block *out,
                                 cmkd_error *err) {
  struct stat st;
  uint8_t header[CMKD_USER_BLOCK_HEADER], *block;
  uint64_t block_size = 0;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: not a regular file; a cache is a file made by cmkd-cache build", path);
  uint64_t file_size = (uint64_t)st.st_size;
  size_t head = file_size < sizeof header ? (size_t)file_size : sizeof header;
  CMKD_TRY(cmkd_pread_full(fd, header, head, 0, path, err));
  CMKD_TRY(cmkd_user_block_peek(header, head, file_size, path, &block_size, err));
  block = malloc((size_t)block_size);
  if (!block)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for its header (%llu bytes)", path,
                     (unsigned long long)block_size);
  cmkd_status status = cmkd_pread_full(fd, block, (size_t)block_size, 0, path, err);
  if (status == CMKD_OK) status = cmkd_user_block_parse(block, (size_t)block_size, file_size, path, out, err);
  if (status == CMKD_OK && out->kind != kind) {
    status = cmkd_fail(err, CMKD_ERR_FORMAT,
                       kind == CMKD_USER_BLOCK_MASTER
                           ? "%s: one shard of a cache; name the .h5 file beside its .shards folder"
                           : "%s: not a shard; run the build again",
                       path);
  }
  if (status != CMKD_OK) {
    free(block);
    return status;
  }
  *bytes = block;
  return CMKD_OK;
}

cmkd_status cmkd_payload_sha256(int fd, const cmkd_user_block *block, const char *path, char hex[CMKD_SHA256_HEX],
                                cmkd_error *err) {
  enum { STEP = 1 << 20 };
  uint8_t *buffer = malloc(STEP);
  cmkd_hasher *hasher = buffer ? cmkd_hasher_start() : NULL;
  cmkd_status status = hasher ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory to check it", path);
  for (uint64_t at = block->block_size; at < block->file_size && status == CMKD_OK;) {
    size_t step = block->file_size - at < STEP ? (size_t)(block->file_size - at) : STEP;
    status = cmkd_pread_full(fd, buffer, step, at, path, err);
    if (status == CMKD_OK) cmkd_hasher_update(hasher, buffer, step);
    at += step;
  }
  cmkd_hasher_finish(hasher, hex);
  free(buffer);
  return status;
}
