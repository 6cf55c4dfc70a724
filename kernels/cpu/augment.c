/* Gather, crop, flip, normalise on the CPU. One thread: callers split the rows. Normalisation is a 256-entry table a
 * channel, so every value is exactly ((float)pixel / 255 - mean) / std on every device. */
#include "kernels/augment.h"
#include <string.h>

/* Output columns [first, last) of a row come from the image; column x reads source column origin + direction * x. */
typedef struct span {
  int first, last, origin, direction;
} span;

static span columns(cmkd_view_transform transform, int w) {
  int shift = transform.dx - CMKD_CROP_PAD; /* cropped column x' reads x' + shift */
  int lo = shift < 0 ? -shift : 0, hi = shift > 0 ? w - shift : w;
  if (lo > w) lo = w;
  if (hi < lo) hi = lo;
  if (!transform.flip) return (span){lo, hi, shift, 1};
  return (span){w - hi, w - lo, w - 1 + shift, -1};
}

static cmkd_view_transform transform_of(const cmkd_gather *g, int i) {
  return cmkd_view_transform_of(g->policy, g->seeds ? g->seeds[i] : cmkd_clean_seed(g->policy));
}

void cmkd_augment_bytes_cpu(const cmkd_gather *g, uint8_t *target) {
  const int h = g->h, w = g->w, c = g->c;
  size_t row_bytes = (size_t)w * (size_t)c, image = row_bytes * (size_t)h;
  for (int i = 0; i < g->count; i++) {
    const uint8_t *source = g->pixels + (size_t)g->rows[i] * image;
    uint8_t *out = target + (size_t)i * image;
    cmkd_view_transform transform = transform_of(g, i);
    span s = columns(transform, w);
    for (int y = 0; y < h; y++, out += row_bytes) {
      int sy = y + transform.dy - CMKD_CROP_PAD;
      if (sy < 0 || sy >= h) {
        memset(out, 0, row_bytes);
        continue;
      }
      const uint8_t *in = source + (size_t)sy * row_bytes;
      memset(out, 0, (size_t)(s.first * c));
      if (s.direction > 0)
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

/* What a pixel's value becomes. c and stride_c are constants where it matters. */
typedef struct normalisation {
  const float *mean, *std;   /* (c) */
  const float (*table)[256]; /* (c): by value, or NULL where there are too many channels */
} normalisation;

/* One pixel: c numbers, then zeros up to stride_c. `in` NULL: outside the image. */
static inline void put(float *out, const uint8_t *in, int c, int stride_c, const normalisation *by) {
  for (int k = 0; k < c; k++) {
    int pixel = in ? in[k] : 0;
    out[k] = by->table ? by->table[k][pixel] : normalise(pixel, by->mean[k], by->std[k]);
  }
  for (int k = c; k < stride_c; k++)
    out[k] = 0;
}

static inline void put_row(float *out, const uint8_t *in, span s, int w, int c, int stride_c, const normalisation *by) {
  int first = in ? s.first : w, last = in ? s.last : w;
  for (int x = 0; x < first; x++)
    put(out + (int64_t)x * stride_c, NULL, c, stride_c, by);
  for (int x = first; x < last; x++)
    put(out + (int64_t)x * stride_c, in + (int64_t)(s.origin + s.direction * x) * c, c, stride_c, by);
  for (int x = last; x < w; x++)
    put(out + (int64_t)x * stride_c, NULL, c, stride_c, by);
}

void cmkd_augment_cpu(const cmkd_gather *g, const float *mean, const float *std, int stride_c, float *target) {
  const int h = g->h, w = g->w, c = g->c;
  float table[TABLE_CHANNELS][256];
  const normalisation by_table = {mean, std, (const float(*)[256])table}, plain = {mean, std, NULL};
  size_t row_bytes = (size_t)w * (size_t)c, image = row_bytes * (size_t)h, row_floats = (size_t)w * (size_t)stride_c;
  for (int k = 0; k < c && k < TABLE_CHANNELS; k++)
    for (int p = 0; p < 256; p++)
      table[k][p] = normalise(p, mean[k], std[k]);
  for (int i = 0; i < g->count; i++) {
    const uint8_t *source = g->pixels + (size_t)g->rows[i] * image;
    float *out = target + (size_t)i * (size_t)h * row_floats;
    cmkd_view_transform transform = transform_of(g, i);
    span s = columns(transform, w);
    for (int y = 0; y < h; y++, out += row_floats) {
      int sy = y + transform.dy - CMKD_CROP_PAD;
      const uint8_t *in = sy < 0 || sy >= h ? NULL : source + (size_t)sy * row_bytes;
      if (c == 3 && stride_c == 3)
        put_row(out, in, s, w, 3, 3, &by_table);
      else if (c == 1 && stride_c == 1)
        put_row(out, in, s, w, 1, 1, &by_table);
      else
        put_row(out, in, s, w, c, stride_c, c <= TABLE_CHANNELS ? &by_table : &plain);
    }
  }
}
