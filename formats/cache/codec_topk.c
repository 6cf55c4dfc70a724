/* topk:K: the K largest logits of a row (of equals the lower classes), all others as one value, the logarithm of their
 * mean exponential. So the softmax keeps the mass of every kept class and of the rest as a whole, which is spread
 * evenly, at T = 1. Stored like f16. What is lost: every order and difference among the rest. Rank-based losses refuse
 * such a cache (cmkd_loss_needs_full_row). */
#include <math.h>
#include <string.h>
#include "formats/cache/codec.h"

/* The k-th largest of x (n), which is permuted: selection by three-way partition, so that ties cost nothing. */
static float select_largest(float *x, size_t n, size_t k) {
  size_t low = 0, high = n; /* the answer lies in x[low .. high) */
  for (;;) {
    float pivot = x[low + (high - low) / 2];
    /* x[low .. greater) > pivot, x[greater .. at) == pivot, x[smaller .. high) < pivot */
    size_t greater = low, at = low, smaller = high;
    while (at < smaller) {
      float value = x[at];
      if (value > pivot) {
        x[at++] = x[greater];
        x[greater++] = value;
      } else if (value < pivot) {
        x[at] = x[--smaller];
        x[smaller] = value;
      } else
        at++;
    }
    if (k <= greater)
      high = greater;
    else if (k <= smaller)
      return pivot;
    else
      low = smaller;
  }
}

static void thin(const float *row, size_t classes, uint32_t keep, float *out) {
  memcpy(out, row, classes * sizeof *out);
  float cut = select_largest(out, classes, keep), top = -HUGE_VALF;
  size_t above = 0;
  for (size_t c = 0; c < classes; c++)
    above += row[c] > cut;
  size_t equals = keep - above, left = equals;
  for (size_t c = 0; c < classes; c++) {
    int kept = row[c] > cut || (row[c] == cut && left && left--);
    if (!kept && row[c] > top) top = row[c];
  }
  double sum = 0;
  left = equals;
  for (size_t c = 0; c < classes; c++)
    if (!(row[c] > cut || (row[c] == cut && left && left--))) sum += exp((double)row[c] - top);
  float rest = (float)(top + log(sum / (double)(classes - keep)));
  left = equals;
  for (size_t c = 0; c < classes; c++)
    out[c] = row[c] > cut || (row[c] == cut && left && left--) ? row[c] : rest;
}

static void encode(const float *logits, size_t rows, size_t classes, uint8_t *items, uint16_t *row_max,
                   uint16_t *row_range) {
  cmkd_codec_f16.encode(logits, rows, classes, items, row_max, row_range);
}
static void decode(const cmkd_chunk_view *chunk, size_t first, size_t rows, float *out) {
  cmkd_codec_f16.decode(chunk, first, rows, out);
}

const cmkd_codec cmkd_codec_topk = {.name = "topk",
                                    .summary = "the K largest of a row, the rest one tie; not for rank-based losses",
                                    .item = 2,
                                    .limit = 65504,
                                    .tolerance = 0x1p-11,
                                    .encode = encode,
                                    .decode = decode,
                                    .thin = thin};
