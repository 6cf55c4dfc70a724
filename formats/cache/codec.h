/* How a row of C numbers becomes bytes: of logits, C classes; of a named array, C elements. One file a codec, one line
 * in the registry (codec.c). A codec turns (rows, C) floats into (rows, C) items of 1, 2 or 4 bytes, plus at most two
 * float16 numbers a row; compression is the chunk's business (chunk.h). */
#ifndef CMKD_FORMATS_CACHE_CODEC_H
#define CMKD_FORMATS_CACHE_CODEC_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/dtype.h"
#include "cmkd/status.h"

/* Decoding reads a chunk as it comes out of zstd: byte-shuffled, item byte p of element e at raw[p * plane + e]. */
typedef struct cmkd_chunk_view {
  const uint8_t *raw;
  size_t plane;                        /* elements in a whole chunk: its samples * C */
  size_t classes;                      /* C */
  const uint16_t *row_max, *row_range; /* (samples of the chunk) float16; NULL unless the codec has row numbers */
} cmkd_chunk_view;

typedef struct cmkd_codec {
  const char *name;
  const char *summary; /* one line for help and docs */
  int item;            /* bytes of one number */
  int row_numbers;     /* 1: /row_max and /row_range exist */
  int whole;           /* 1: it holds whole numbers from 0 to limit and no others */
  double limit;        /* largest magnitude it can hold */
  double tolerance;    /* |decoded - x| <= tolerance * max(1, |x|), or for codecs with row numbers of the row's range */
  /* (rows, C) floats -> items (rows * C * item bytes, little endian). row_max, row_range (rows) where it has them, else
   * NULL. Every number is one that cmkd_codec_first_refused lets pass. */
  void (*encode)(const float *logits, size_t rows, size_t classes, uint8_t *items, uint16_t *row_max,
                 uint16_t *row_range);
  /* rows [first, first + rows) of a chunk -> out (rows, C) */
  void (*decode)(const cmkd_chunk_view *chunk, size_t first, size_t rows, float *out);
  /* Codecs that keep K logits of a row, under the name NAME:K, else NULL: what decoding will give but for rounding, row
   * (classes) -> out (classes), 0 < keep < classes. Goes before encode. */
  void (*thin)(const float *row, size_t classes, uint32_t keep, float *out);
} cmkd_codec;

/* The codec of logits. Unknown names fail with CMKD_ERR_USAGE and suggest the nearest. "topk:K" is topk. */
cmkd_status cmkd_codec_find(const char *name, const cmkd_codec **out, cmkd_error *err);
/* The codec that stores numbers of a named array as they are, and the one of that name; NULL for other types and
 * names. */
const cmkd_codec *cmkd_codec_of_dtype(cmkd_dtype dtype);
const cmkd_codec *cmkd_codec_of_dtype_name(const char *name, cmkd_dtype *dtype);
uint32_t cmkd_codec_keep(const char *name); /* K of "topk:K", 0 of codecs that keep all */

/* Index of the first element that is not finite or beyond `limit`, or -1. */
int64_t cmkd_codec_first_bad(const float *logits, size_t count, double limit);
/* Index of the first element that the codec cannot hold, or -1. */
int64_t cmkd_codec_first_refused(const cmkd_codec *codec, const float *values, size_t count);

/* Vector versions of the inner loops, of codecs and of the byte shuffle (chunk.h); a NULL entry means the portable loop
 * serves. */
typedef struct cmkd_codec_kernels {
  void (*half_from_float)(const float *in, uint16_t *out, size_t count);
  void (*float_from_half_planes)(const uint8_t *low, const uint8_t *high, float *out, size_t count);
  void (*float_from_planes)(const uint8_t *const plane[4], float *out, size_t count);
  void (*float_from_u8sqrt)(const uint8_t *q, float max, float step, float *out, size_t count);
  int64_t (*first_bad)(const float *in, size_t count, float limit);
  void (*shuffle2)(const uint8_t *in, uint8_t *out, size_t count);
} cmkd_codec_kernels;
const cmkd_codec_kernels *cmkd_codec_kernels_get(void); /* by what the machine runs */
extern const cmkd_codec_kernels cmkd_codec_kernels_avx2;

extern const cmkd_codec cmkd_codec_f32, cmkd_codec_f16, cmkd_codec_u8sqrt, cmkd_codec_topk;
extern const cmkd_codec cmkd_codec_u8; /* of named arrays only */
#endif
