/* SHA-256 of memory, files and streams (libcrypto underneath). */
#ifndef CMKD_BASE_HASH_H
#define CMKD_BASE_HASH_H
#include <stddef.h>
#include "cmkd/status.h"

#define CMKD_SHA256_HEX 65 /* 64 lower-case hex digits and the terminator */

void cmkd_sha256(const void *data, size_t size, char hex[CMKD_SHA256_HEX]);
cmkd_status cmkd_sha256_file(const char *path, char hex[CMKD_SHA256_HEX], cmkd_error *err);

typedef struct cmkd_hasher
    cmkd_hasher; /* opaque; finish frees it. NULL when out of memory; update and finish then do nothing and give "" */
cmkd_hasher *cmkd_hasher_start(void);
void cmkd_hasher_update(cmkd_hasher *hasher, const void *data, size_t size);
void cmkd_hasher_finish(cmkd_hasher *hasher, char hex[CMKD_SHA256_HEX]);
#endif
