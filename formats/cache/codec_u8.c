/* u8: whole numbers from 0 to 255, as they are. For named arrays. */
#include "formats/cache/codec.h"

static void encode(const float *values, size_t rows, size_t elements, uint8_t *items, uint16_t *row_max,
                   uint16_t *row_range) {
  (void)row_max;
  (void)row_range;
  for (size_t i = 0; i < rows * elements; i++)
    items[i] = (uint8_t)values[i];
}

static void decode(const cmkd_chunk_view *chunk, size_t first, size_t rows, float *out) {
  const uint8_t *items = chunk->raw + first * chunk->classes;
  for (size_t i = 0; i < rows * chunk->classes; i++)
    out[i] = items[i];
}

const cmkd_codec cmkd_codec_u8 = {.name = "u8",
                                  .summary = "whole numbers from 0 to 255",
                                  .item = 1,
                                  .whole = 1,
                                  .limit = 255,
                                  .encode = encode,
                                  .decode = decode};
