/* Pickles on their own, and as the object of a legacy PyTorch stream with one storage of four floats behind it. */
#include "cmkd/weights.h"
#include "formats/weights/pickle.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char head[] =
      "\x80\2\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\2M\xe9\3.\x80\2}(X\r\0\0\0little_endian\x88u.";
  static const char tail[] = "\x80\2]X\1\0\0\0000a."
                             "\4\0\0\0\0\0\0\0"
                             "\0\0\0\0\0\0\200?\0\0\0@\0\0@@";
  cmkd_error err;
  cmkd_pickle *p;
  cmkd_weights *w;
  if (cmkd_pickle_load(data, size, "fuzz", &p, &err) != CMKD_OK) return 0;
  size_t used = p->used;
  cmkd_pickle_get(p, &p->values[p->root], "state_dict");
  cmkd_pickle_free(p);
  uint8_t *file = malloc(sizeof head - 1 + used + sizeof tail - 1);
  if (!file) return 0;
  memcpy(file, head, sizeof head - 1);
  memcpy(file + sizeof head - 1, data, used);
  memcpy(file + sizeof head - 1 + used, tail, sizeof tail - 1);
  if (cmkd_weights_parse(file, sizeof head - 1 + used + sizeof tail - 1, "fuzz", &w, &err) == CMKD_OK)
    cmkd_weights_free(w);
  free(file);
  return 0;
}
