/* Gather, crop, flip, normalise on the CPU. One thread: callers split the rows. Normalisation is a 256-entry table a
 * channel, so every value is exactly ((float)pixel / 255 - mean) / std whoever computes it. */
#include "kernels/augment.h"
#include <string.h>

/* Output columns [first, last) of a row come from the image; column x reads source column origin + step * x. */
typedef struct span {
  int first, last, origin, step;
} span;

static span columns(cmkd_view_transform transform, int w) {
  int shift = transform.dx - 4; /* cropped column x' reads x' + shift */
  int lo = shift < 0 ? -shift : 0, hi = shift > 0 ? w - shift : w;
  if (lo > w) lo = w;
  if (hi < lo) hi = lo;
  if (!transform.flip) return (span){lo, hi, shift, 1};
  return (span){w - hi, w - lo, w - 1 + shift, -1};
}

void cmkd_augment_bytes_cpu(cmkd_policy policy, const uint8_t *pixels, const uint32_t *rows, const uint64_t *seeds,
                            int count, int h, int w, int c, uint8_t *target) {
  size_t row_bytes = (size_t)w * (size_t)c, image = row_bytes * (size_t)h;
  for (int i = 0; i < count; i++) {
    const uint8_t *source = pixels + (size_t)rows[i] * image;
    uint8_t *out = target + (size_t)i * image;
    cmkd_view_transform transform = cmkd_view_transform_of(policy, seeds ? seeds[i] : cmkd_clean_seed(policy));
    span s = columns(transform, w);
    for (int y = 0; y < h; y++, out += row_bytes) {
      int sy = y + transform.dy - 4;
      if (sy < 0 || sy >= h) {
        memset(out, 0, row_bytes);
        continue;
      }
      const uint8_t *in = source + (size_t)sy * row_bytes;
      memset(out, 0, (size_t)(s.first * c));
      if (s.step > 0)
        memcpy(out + s.first * c, in + (s.origin + s.first) * c, (size_t)((s.last - s.first) * c));
      else
        for (int x = s.first; x < s.last; x++)
          for (int k = 0; k < c; k++)
            out[x * c + k] = in[(s.origin - x) * c + k];
      memset(out + s.last * c, 0, (size_t)((w - s.last) * c));
    }
  }
}

#define TABLE_CHANNELS 4 /* data sets have 1 or 3; more channels are normalised without a table */
static inline float normalise(int pixel, float mean, float std) { return ((float)pixel / 255.0f - mean) / std; }

/* One pixel: c numbers, then zeros up to stride_c. `in` NULL: outside the image. c and stride_c are constants where it
 * matters. */
static inline void put(float *out, const uint8_t *in, int c, int stride_c, const float (*table)[256], const float *mean,
                       const float *std) {
  for (int k = 0; k < c; k++)
    out[k] = table ? table[k][in ? in[k] : 0] : normalise(in ? in[k] : 0, mean[k], std[k]);
  for (int k = c; k < stride_c; k++)
    out[k] = 0;
}

static inline void put_row(float *out, const uint8_t *in, span s, int w, int c, int stride_c, const float (*table)[256],
                           const float *mean, const float *std) {
  int first = in ? s.first : w, last = in ? s.last : w;
  for (int x = 0; x < first; x++)
    put(out + (int64_t)x * stride_c, NULL, c, stride_c, table, mean, std);
  for (int x = first; x < last; x++)
    put(out + (int64_t)x * stride_c, in + (int64_t)(s.origin + s.step * x) * c, c, stride_c, table, mean, std);
  for (int x = last; x < w; x++)
    put(out + (int64_t)x * stride_c, NULL, c, stride_c, table, mean, std);
}

void cmkd_augment_cpu(cmkd_policy policy, const uint8_t *pixels, const uint32_t *rows, const uint64_t *seeds, int count,
                      int h, int w, int c, const float *mean, const float *std, int stride_c, float *target) {
  float table[TABLE_CHANNELS][256];
  size_t row_bytes = (size_t)w * (size_t)c, image = row_bytes * (size_t)h, row_floats = (size_t)w * (size_t)stride_c;
  for (int k = 0; k < c && k < TABLE_CHANNELS; k++)
    for (int p = 0; p < 256; p++)
      table[k][p] = normalise(p, mean[k], std[k]);
  for (int i = 0; i < count; i++) {
    const uint8_t *source = pixels + (size_t)rows[i] * image;
    float *out = target + (size_t)i * (size_t)h * row_floats;
    cmkd_view_transform transform = cmkd_view_transform_of(policy, seeds ? seeds[i] : cmkd_clean_seed(policy));
    span s = columns(transform, w);
    for (int y = 0; y < h; y++, out += row_floats) {
      int sy = y + transform.dy - 4;
      const uint8_t *in = sy < 0 || sy >= h ? NULL : source + (size_t)sy * row_bytes;
      if (c == 3 && stride_c == 3)
        put_row(out, in, s, w, 3, 3, table, mean, std);
      else if (c == 1 && stride_c == 1)
        put_row(out, in, s, w, 1, 1, table, mean, std);
      else
        put_row(out, in, s, w, c, stride_c, c <= TABLE_CHANNELS ? table : NULL, mean, std);
    }
  }
}
