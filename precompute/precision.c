/* Measuring a teacher's precisions against fp32. See precision.h. */
#include "precompute/precision.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "formats/cache/chunk.h"

enum { SAMPLE = 256 };

/* Logits (count, classes) of views spread over the split, in one arithmetic. */
static cmkd_status sample_logits(const cmkd_precision_wish *w, const char *precision, uint32_t count, float *logits,
                                 cmkd_error *err) {
  cmkd_backend_options options = w->device;
  cmkd_backend *backend = NULL;
  cmkd_teacher *teacher = NULL;
  uint32_t rows[SAMPLE];
  uint64_t seeds[SAMPLE];
  for (uint32_t i = 0; i < count; i++) {
    rows[i] = (uint32_t)((uint64_t)i * w->data->n / count);
    seeds[i] = cmkd_view_seed(w->cache_seed, rows[i], 0, w->teacher->policy, w->all_variants);
  }
  options.precision = precision;
  CMKD_TRY(w->table->open(&options, &backend, err));
  cmkd_status status = cmkd_teacher_open(w->teacher, w->table, backend, w->data, &teacher, err);
  if (status == CMKD_OK) status = cmkd_teacher_run(teacher, rows, seeds, count, logits, NULL, err);
  cmkd_teacher_close(teacher);
  w->table->close(backend);
  return status;
}

static double rms(const float *a, const float *b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++)
    sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
  return sqrt(sum / (double)n);
}

/* What encoding and decoding change. */
static cmkd_status codec_error(const cmkd_codec *codec, const float *logits, uint32_t rows, size_t classes, double *out,
                               cmkd_error *err) {
  const size_t n = rows * classes;
  uint8_t *items = malloc(2 * n * sizeof(float)); /* encoded, then byte-shuffled; an item has at most 4 bytes */
  float *back = malloc(n * sizeof *back);
  uint16_t numbers[2 * SAMPLE];
  if (!items || !back || cmkd_codec_first_bad(logits, n, codec->limit) >= 0) {
    const int memory = !items || !back;
    free(items);
    free(back);
    return memory ? cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for %u rows", rows)
                  : cmkd_fail(err, CMKD_ERR_VALUE, "codec %s cannot hold the teacher's logits; take --codec f32",
                              codec->name);
  }
  codec->encode(logits, rows, classes, items, numbers, numbers + SAMPLE);
  cmkd_byte_shuffle(items, items + n * 4, n, codec->item);
  codec->decode(&(cmkd_chunk_view){items + n * 4, n, classes, numbers, numbers + SAMPLE}, 0, rows, back);
  *out = rms(logits, back, n);
  free(items);
  free(back);
  return CMKD_OK;
}

static cmkd_status measure(const cmkd_precision_wish *w, uint32_t count, float *exact, float *other,
                           cmkd_precision *out, cmkd_error *err) {
  const char *const asked[] = {w->asked, NULL}, *const *candidates = w->asked ? asked : w->table->precisions;
  const size_t classes = (size_t)w->data->classes;
  CMKD_TRY(sample_logits(w, "fp32", count, exact, err));
  if (!w->codec->thin)
    CMKD_TRY(codec_error(w->codec, exact, count, classes, &out->codec_error, err)); /* top-k's loss hides nothing */
  for (int i = 0; candidates[i]; i++) {
    CMKD_TRY(sample_logits(w, candidates[i], count, other, err));
    double error = rms(exact, other, count * classes);
    if (!w->asked && !(error < out->codec_error)) continue;
    out->name = candidates[i];
    out->error = error;
    return CMKD_OK;
  }
  return CMKD_OK;
}

cmkd_status cmkd_precision_choose(const cmkd_precision_wish *w, cmkd_precision *out, cmkd_error *err) {
  *out = (cmkd_precision){w->asked ? w->asked : "fp32", 0, 0};
  /* A backend of one precision that was asked for another says so itself. */
  if (!w->table->precisions || (w->asked && !strcmp(w->asked, "fp32"))) return CMKD_OK;
  const uint32_t count = w->data->n < SAMPLE ? w->data->n : SAMPLE;
  const size_t numbers = count * (size_t)w->data->classes;
  float *exact = malloc(2 * numbers * sizeof *exact);
  if (!exact) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for %u rows", count);
  cmkd_status status = measure(w, count, exact, exact + numbers, out, err);
  free(exact);
  return status;
}
