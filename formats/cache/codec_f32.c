/* f32: every bit kept. */
#include <float.h>
#include <string.h>
#include "formats/cache/codec.h"

static void encode(const float *logits, size_t rows, size_t classes, uint8_t *items, uint16_t *row_max,
                   uint16_t *row_range) {
  (void)row_max;
  (void)row_range;
  memcpy(items, logits, rows * classes * 4);
}

static void decode(const cmkd_chunk_view *chunk, size_t first, size_t rows, float *out) {
  size_t start = first * chunk->classes, count = rows * chunk->classes;
  const uint8_t *plane[4];
  for (size_t p = 0; p < 4; p++)
    plane[p] = chunk->raw + p * chunk->plane + start;
  const cmkd_codec_kernels *kernels = cmkd_codec_kernels_get();
  if (kernels->float_from_planes) {
    kernels->float_from_planes(plane, out, count);
    return;
  }
  for (size_t i = 0; i < count; i++) {
    uint32_t bits =
        plane[0][i] | (uint32_t)plane[1][i] << 8 | (uint32_t)plane[2][i] << 16 | (uint32_t)plane[3][i] << 24;
    memcpy(out + i, &bits, 4);
  }
}

const cmkd_codec cmkd_codec_f32 = {
    .name = "f32", .summary = "IEEE single, exact", .item = 4, .limit = FLT_MAX, .encode = encode, .decode = decode};
