/* What a training step left behind, and files that carry such answers (and loss curves) to a machine that then need
 * not compute them.
 * A file is three parts, little endian, written atomically:
 *   "CMKD reference 1\n"
 *   SHA-256 of the rest, 64 hex digits, "\n"
 *   a zstd frame: one line of JSON (`about`), "\n", then numbers as bytes
 * about.settings says what they were computed for. Files are hostile input: hash, sizes and ranges are checked; a bad
 * one is CMKD_ERR_FORMAT, in one line that names the file and the remedy. */
#ifndef CMKD_BENCH_GPU_REFERENCE_H
#define CMKD_BENCH_GPU_REFERENCE_H
#include <jansson.h>
#include "nets/net.h"

#define BENCH_REFERENCE_LIMIT ((size_t)1 << 28) /* bytes, of a file and of what it unpacks to */

/* about: borrowed; must hold an object `settings`. numbers: `size` bytes, borrowed. */
cmkd_status bench_reference_write(const char *path, const json_t *about, const void *numbers, size_t size,
                                  cmkd_error *err);
/* The caller gives back *about with json_decref and *numbers with free. */
cmkd_status bench_reference_read(const char *path, json_t **about, uint8_t **numbers, size_t *size, cmkd_error *err);
/* The same from memory; `name` is for messages. */
cmkd_status bench_reference_parse(const uint8_t *bytes, size_t bytes_size, const char *name, json_t **about,
                                  uint8_t **numbers, size_t *size, cmkd_error *err);
/* Each of `settings` must be in about.settings with the same value: else CMKD_ERR_MISMATCH, naming the first. */
cmkd_status bench_reference_match(const json_t *about, const json_t *settings, const char *name, cmkd_error *err);
/* "NAME: WHAT; make it again: make gpu-reference" */
cmkd_status bench_reference_bad(const char *name, const char *what, cmkd_error *err);

/* One training step, and inference after it. Gradients and momentum of buffers (running statistics) are unused. */
typedef struct bench_answers {
  double loss;                           /* mean of the batch */
  cmkd_params gradient, value, momentum; /* value and momentum: after the step */
  float *logits;                         /* (count, classes): of the step's rows, inference with the weights after it */
} bench_answers;
cmkd_status bench_answers_create(const cmkd_graph *graph, int count, bench_answers *out, cmkd_error *err);
void bench_answers_free(bench_answers *answers);

/* How a step is packed. A gradient is whole numbers of 24 bits relative to its tensor's largest entry, so wrong by up
 * to 2^-24 of that entry, in three planes of bytes, high ones first. From zero momentum, SGD gives momentum = gradient
 * + weight_decay * start and value = start - lr * momentum, so neither is stored. Running statistics and logits are
 * stored as they are. */
typedef struct bench_packing {
  const cmkd_graph *graph;
  const cmkd_params *start; /* parameters before the step */
  double lr, weight_decay;
  int count;   /* rows of the step */
  int sampled; /* 0: all entries of a gradient; n: at most n, every bench_stride(entries, n)th */
} bench_packing;
int64_t bench_stride(int64_t entries, int sampled);
double bench_largest(const float *x, int64_t n, int64_t stride); /* |x[i]| of every stride'th */
size_t bench_packed_size(const bench_packing *p);
/* CMKD_ERR_VALUE where a gradient or the loss is not finite, or where unpacking would not give the step back. */
cmkd_status bench_answers_pack(const bench_packing *p, const bench_answers *answers, uint8_t *packed, cmkd_error *err);
/* `out` from bench_answers_create; gradient, momentum and value get the sampled entries alone. Fails with
 * CMKD_ERR_FORMAT, in words that bench_reference_bad takes. */
cmkd_status bench_answers_unpack(const bench_packing *p, const uint8_t *packed, bench_answers *out, cmkd_error *err);
#endif
