/* Weight files by content, whatever their names: which reader a file is for. A new kind of file is a reader beside the
 * two and a line in `parse`. */
#include "cmkd/weights.h"
#include "base/file.h"
#include "base/hash.h"
#include "formats/weights/safetensors.h"
#include "formats/weights/torch_file.h"
#include <stdlib.h>
#include <string.h>

#define MAX_FILE (8ull << 30)

static cmkd_status parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *w, cmkd_error *err) {
  if (size == 0) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: empty; give a .safetensors or PyTorch .pth file", name);
  if (cmkd_torch_sniff(bytes, size)) return cmkd_torch_parse(bytes, size, name, w, err);
  return cmkd_safetensors_parse(bytes, size, name, w, err);
}

cmkd_status cmkd_weights_parse(const void *bytes, size_t size, const char *name, cmkd_weights **out, cmkd_error *err) {
  *out = NULL;
  cmkd_weights *w = calloc(1, sizeof *w);
  if (!w || !(w->path = strdup(name))) {
    free(w);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", name);
  }
  cmkd_status status = parse(bytes, size, name, w, err);
  if (status != CMKD_OK) {
    cmkd_weights_free(w);
    return status;
  }
  cmkd_sha256(bytes, size, w->sha256);
  *out = w;
  return CMKD_OK;
}

cmkd_status cmkd_weights_read(const char *path, cmkd_weights **out, cmkd_error *err) {
  uint8_t *bytes;
  size_t size;
  *out = NULL;
  CMKD_TRY(cmkd_file_read(path, MAX_FILE, &bytes, &size, err));
  cmkd_status status = cmkd_weights_parse(bytes, size, path, out, err);
  free(bytes);
  return status;
}
