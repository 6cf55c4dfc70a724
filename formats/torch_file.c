#include "formats/containers.h"
int cmkd_torch_sniff(const uint8_t *bytes, size_t size) { return 0; }
cmkd_status cmkd_torch_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *out, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s", name);
}
