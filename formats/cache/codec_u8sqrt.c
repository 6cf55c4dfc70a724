/* u8sqrt: one byte a class, finest near the top: logit = max - range * (q / 255)^2. q is 0 for the argmax (the first
 * one) and at least 1 for all others, so the decoded argmax is exact. Decoding is defined in float32 without fused
 * operations: step = range / 65025; logit = max - step * (q * q). */
#include <math.h>
#include "base/half.h"
#include "formats/cache/codec.h"

static uint16_t half_at_least(float x) { /* x >= 0 */
  uint16_t half = cmkd_float_to_half(x);
  return cmkd_half_to_float(half) < x && half < 0x7BFF ? (uint16_t)(half + 1) : half;
}

static void encode_row(const float *row, size_t classes, uint8_t *q, uint16_t *row_max, uint16_t *row_range) {
  size_t top = 0;
  float least = row[0];
  for (size_t c = 1; c < classes; c++) {
    if (row[c] > row[top]) top = c;
    if (row[c] < least) least = row[c];
  }
  float max = row[top];
  *row_max = cmkd_float_to_half(max);
  uint16_t range = half_at_least(fminf(max - least, 65504.0f));
  float stored_max = cmkd_half_to_float(*row_max);
  if (max > least) /* a range too small to tell q = 1 from q = 0 in float32 would lose the argmax */
    while (range < 0x7BFF && !(stored_max - cmkd_half_to_float(range) / 65025.0f < stored_max))
      range++;
  *row_range = range;
  double scale = cmkd_half_to_float(range);
  for (size_t c = 0; c < classes; c++) {
    double level = scale > 0 ? 255.0 * sqrt(((double)max - (double)row[c]) / scale) : 1;
    long rounded = lrint(level);
    q[c] = (uint8_t)(rounded < 1 ? 1 : rounded > 255 ? 255 : rounded);
  }
  q[top] = 0;
}

static void encode(const float *logits, size_t rows, size_t classes, uint8_t *items, uint16_t *row_max,
                   uint16_t *row_range) {
  for (size_t r = 0; r < rows; r++)
    encode_row(logits + r * classes, classes, items + r * classes, row_max + r, row_range + r);
}

static void decode(const cmkd_chunk_view *chunk, size_t first, size_t rows, float *out) {
  const cmkd_codec_kernels *kernels = cmkd_codec_kernels_get();
  for (size_t r = 0; r < rows; r++) {
    const uint8_t *q = chunk->raw + (first + r) * chunk->classes;
    float max = cmkd_half_to_float(chunk->row_max[first + r]),
          step = cmkd_half_to_float(chunk->row_range[first + r]) / 65025.0f;
    float *target = out + r * chunk->classes;
    if (kernels->float_from_u8sqrt) {
      kernels->float_from_u8sqrt(q, max, step, target, chunk->classes);
      continue;
    }
    for (size_t c = 0; c < chunk->classes; c++) {
      float drop = step * (float)(q[c] * q[c]);
      target[c] = max - drop;
    }
  }
}

const cmkd_codec cmkd_codec_u8sqrt = {.name = "u8sqrt",
                                      .summary = "one byte a class, half the size, argmax exact",
                                      .item = 1,
                                      .row_numbers = 1,
                                      .limit = 65504,
                                      .tolerance = 1.0 / 128,
                                      .encode = encode,
                                      .decode = decode};
