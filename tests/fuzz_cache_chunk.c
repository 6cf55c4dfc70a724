/* One stored chunk: decompressed and decoded by every codec. The first three bytes choose codec, rows and classes. */
#include <stdlib.h>
#include <string.h>
#include "formats/cache/chunk.h"
#include "formats/cache/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const cmkd_codec *const codecs[] = {&cmkd_codec_f16, &cmkd_codec_f32, &cmkd_codec_u8sqrt, &cmkd_codec_topk,
                                             &cmkd_codec_u8};
  if (size < 3) return 0;
  const cmkd_codec *codec = codecs[data[0] % 5];
  size_t rows = (size_t)data[1] % 64 + 1, classes = (size_t)data[2] % 64 + 1,
         raw = rows * classes * (size_t)codec->item;
  cmkd_chunk_coder *coder = cmkd_chunk_coder_create();
  uint8_t *out = malloc(raw); /* exact, so that AddressSanitizer sees a byte too many */
  float *floats = malloc(rows * classes * sizeof *floats);
  uint16_t numbers[128] = {0};
  cmkd_error err;
  if (coder && out && floats && cmkd_chunk_decode(coder, data + 3, size - 3, out, raw, "fuzz", &err) == CMKD_OK) {
    memcpy(numbers, data, size < sizeof numbers ? size : sizeof numbers);
    cmkd_chunk_view view = {out, rows * classes, classes, numbers, numbers + 64};
    codec->decode(&view, 0, rows, floats);
  }
  free(out);
  free(floats);
  cmkd_chunk_coder_free(coder);
  return 0;
}
