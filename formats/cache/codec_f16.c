/* f16: IEEE half, round to nearest even. The default. */
#include <string.h>
#include "base/half.h"
#include "formats/cache/codec.h"

static void encode(const float *logits, size_t rows, size_t classes, uint8_t *items, uint16_t *row_max,
                   uint16_t *row_range) {
  (void)row_max;
  (void)row_range;
  const cmkd_codec_kernels *kernels = cmkd_codec_kernels_get();
  size_t count = rows * classes;
  if (kernels->half_from_float) {
    kernels->half_from_float(logits, (uint16_t *)(void *)items, count);
    return;
  }
  for (size_t i = 0; i < count; i++) {
    uint16_t half = cmkd_float_to_half(logits[i]);
    memcpy(items + 2 * i, &half, 2);
  }
}

static void decode(const cmkd_chunk_view *chunk, size_t first, size_t rows, float *out) {
  size_t start = first * chunk->classes, count = rows * chunk->classes;
  const uint8_t *low = chunk->raw + start, *high = low + chunk->plane;
  const cmkd_codec_kernels *kernels = cmkd_codec_kernels_get();
  if (kernels->float_from_half_planes) {
    kernels->float_from_half_planes(low, high, out, count);
    return;
  }
  for (size_t i = 0; i < count; i++)
    out[i] = cmkd_half_to_float((uint16_t)(low[i] | high[i] << 8));
}

const cmkd_codec cmkd_codec_f16 = {.name = "f16",
                                   .summary = "IEEE half (default)",
                                   .item = 2,
                                   .limit = 65504,
                                   .tolerance = 0x1p-11,
                                   .encode = encode,
                                   .decode = decode};
