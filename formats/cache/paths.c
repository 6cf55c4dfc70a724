#include "formats/cache/paths.h"
#include <string.h>
#include "base/file.h"

static int stem_length(const char *path) {
  size_t length = strlen(path);
  return (int)(length > 3 && !strcmp(path + length - 3, ".h5") ? length - 3 : length);
}

char *cmkd_cache_folder(const char *path) { return cmkd_format("%.*s.shards", stem_length(path), path); }

char *cmkd_cache_companion(const char *path) { return cmkd_format("%.*s.test.h5", stem_length(path), path); }
