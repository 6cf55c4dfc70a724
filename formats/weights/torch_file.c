/* What torch.save wrote: which container, and what both have in common. The pickle in either is read by pickle.c, which
 * can't run anything. Not read: whole pickled modules, TorchScript, tar files of 2016, big-endian files. */
#include "formats/weights/torch_file.h"
#include "formats/weights/torch_legacy.h"
#include "formats/weights/torch_zip.h"
#include <stdlib.h>
#include <string.h>

int cmkd_torch_sniff(const uint8_t *bytes, size_t size) {
  if (size > 8 && bytes[8] == '{') return 0; /* safetensors whose header length looks like a magic number */
  if (size >= 4 && !memcmp(bytes, "PK\3\4", 4)) return 1;
  return size >= 2 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5;
}

cmkd_status cmkd_torch_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_weights *out, cmkd_error *err) {
  cmkd_torch_loader l = {.file = name, .out = out, .err = err};
  cmkd_status status =
      bytes[0] == 'P' ? cmkd_torch_zip_parse(&l, bytes, size) : cmkd_torch_legacy_parse(&l, bytes, size);
  free(l.tensor);
  return status;
}
