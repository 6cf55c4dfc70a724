/* The gunzip of cmkd_file_read_gz: memory stays under its limit, whatever the members claim. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  enum { LIMIT = 1 << 16 };
  static int fd = -1;
  char path[64];
  uint8_t *out;
  size_t out_size;
  cmkd_error err;
  if (fd < 0) fd = memfd_create("fuzz", 0);
  if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) return 0;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  if (cmkd_file_read_gz(path, LIMIT, &out, &out_size, &err) == CMKD_OK) {
    if (out_size > LIMIT || out[out_size]) abort();
    free(out);
  }
  return 0;
}
