#include "base/hash.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void to_hex(const unsigned char digest[32], char hex[CMKD_SHA256_HEX]) {
  static const char digit[] = "0123456789abcdef";
  for (int i = 0; i < 32; i++) {
    hex[2 * i] = digit[digest[i] >> 4];
    hex[2 * i + 1] = digit[digest[i] & 15];
  }
  hex[64] = 0;
}

void cmkd_sha256(const void *data, size_t size, char hex[CMKD_SHA256_HEX]) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  hex[0] = 0;
  if (EVP_Digest(size ? data : "", size, digest, NULL, EVP_sha256(), NULL) == 1) to_hex(digest, hex);
}

struct cmkd_hasher {
  EVP_MD_CTX *context;
};

cmkd_hasher *cmkd_hasher_start(void) {
  cmkd_hasher *hasher = malloc(sizeof *hasher);
  if (!hasher) return NULL;
  hasher->context = EVP_MD_CTX_new();
  if (!hasher->context || EVP_DigestInit_ex(hasher->context, EVP_sha256(), NULL) != 1) {
    EVP_MD_CTX_free(hasher->context);
    free(hasher);
    return NULL;
  }
  return hasher;
}

void cmkd_hasher_update(cmkd_hasher *hasher, const void *data, size_t size) {
  if (!hasher || !hasher->context || !size) return;
  if (EVP_DigestUpdate(hasher->context, data, size) != 1) {
    EVP_MD_CTX_free(hasher->context); /* finish then answers "", which equals no hash */
    hasher->context = NULL;
  }
}

void cmkd_hasher_finish(cmkd_hasher *hasher, char hex[CMKD_SHA256_HEX]) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  hex[0] = 0;
  if (!hasher) return;
  if (hasher->context && EVP_DigestFinal_ex(hasher->context, digest, NULL) == 1) to_hex(digest, hex);
  EVP_MD_CTX_free(hasher->context);
  free(hasher);
}

cmkd_status cmkd_sha256_file(const char *path, char hex[CMKD_SHA256_HEX], cmkd_error *err) {
  enum { CHUNK = 1 << 18 };
  cmkd_status status = CMKD_OK;
  unsigned char *chunk = NULL;
  struct stat info;
  hex[0] = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
  if (fd < 0) return cmkd_fail(err, CMKD_ERR_IO, "%s: %s", path, strerror(errno));
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return cmkd_fail(err, CMKD_ERR_IO, "%s: not a regular file", path);
  }
  chunk = malloc(CHUNK);
  cmkd_hasher *hasher = cmkd_hasher_start();
  while (chunk && hasher) {
    ssize_t got = read(fd, chunk, CHUNK);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) status = cmkd_fail(err, CMKD_ERR_IO, "%s: reading failed: %s", path, strerror(errno));
    if (got <= 0) break;
    cmkd_hasher_update(hasher, chunk, (size_t)got);
  }
  cmkd_hasher_finish(hasher, hex);
  if (status != CMKD_OK)
    hex[0] = 0;
  else if (!hex[0])
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory while hashing", path);
  free(chunk);
  close(fd);
  return status;
}
