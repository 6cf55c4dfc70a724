/* Reading rows of the inputs and writing them in the output's order. See reshape.h. */
#include "precompute/reshape.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/interrupt.h"
#include "base/program/progress.h"
#include "precompute/shared_caches.h"

typedef struct job {
  const cmkd_reshape *shape;
  cmkd_cache_spec spec; /* of the output: the shape's, without named arrays for an average */
  cmkd_cache_writer *writer;
  cmkd_progress progress;
  uint64_t done;          /* rows */
  uint64_t *ids, *column; /* (shard); column: seeds of one view */
  uint64_t *seeds;        /* (shard, views) */
  int32_t *labels;        /* (shard) */
  float *rows;            /* (shard, classes), or an array's elements where those are more */
  float *other;           /* (shard, classes), for averages */
  double *sum;
} job;

static int own_input(const cmkd_reshape *shape, uint64_t i) { return shape->input_of ? shape->input_of[i] : 0; }

/* Rows first .. first + count of the output, all of one input; array NULL: logits. */
typedef struct stretch {
  const char *array;
  int input;
  uint32_t view; /* of the input */
  uint64_t first;
  uint32_t count;
} stretch;

static cmkd_status read_stretch(const cmkd_reshape *shape, stretch from, float *rows, uint64_t *seeds,
                                cmkd_error *err) {
  const cmkd_stream_options options = {.array = from.array};
  const uint32_t *order = shape->position + from.first;
  cmkd_stream *stream;
  CMKD_TRY(cmkd_stream_open(shape->inputs[from.input], from.view, order, from.count, &options, &stream, err));
  cmkd_status status = cmkd_stream_next(stream, from.count, rows, seeds, err);
  cmkd_stream_free(stream);
  return status;
}

/* Rows first .. first + count of output view v into j->rows, `width` numbers each; seeds into the job's column. */
static cmkd_status read_view(job *j, const char *array, size_t width, uint32_t v, uint64_t first, uint32_t count,
                             cmkd_error *err) {
  const cmkd_reshape *shape = j->shape;
  const cmkd_reshape_view from = shape->views[v];
  for (uint32_t at = 0, step; at < count; at += step) { /* stretches whose samples live in the same input */
    int input = from.input >= 0 ? from.input : own_input(shape, first + at);
    for (step = 1; at + step < count && (from.input >= 0 || own_input(shape, first + at + step) == input); step++) {
    }
    const stretch part = {array, input, from.view, first + at, step};
    CMKD_TRY(read_stretch(shape, part, j->rows + at * width, j->column + at, err));
  }
  return CMKD_OK;
}

/* j->rows becomes the mean over all inputs; it holds the rows of the first. */
static cmkd_status average(job *j, uint32_t v, uint64_t first, uint32_t count, cmkd_error *err) {
  const cmkd_reshape *shape = j->shape;
  const size_t numbers = (size_t)count * shape->spec.classes;
  for (size_t k = 0; k < numbers; k++)
    j->sum[k] = j->rows[k];
  for (int input = 1; input < shape->count; input++) {
    const stretch from = {NULL, input, shape->views[v].view, first, count};
    CMKD_TRY(read_stretch(shape, from, j->other, NULL, err));
    for (size_t k = 0; k < numbers; k++)
      j->sum[k] += j->other[k];
  }
  for (size_t k = 0; k < numbers; k++)
    j->rows[k] = (float)(j->sum[k] / shape->count);
  return CMKD_OK;
}

static cmkd_status write_view(job *j, uint32_t v, uint64_t first, uint32_t count, cmkd_error *err) {
  const cmkd_cache_spec *spec = &j->spec;
  for (uint32_t a = 0; a < spec->array_count; a++) {
    const cmkd_cache_array *array = spec->arrays + a;
    CMKD_TRY(read_view(j, array->name, array->elements, v, first, count, err));
    CMKD_TRY(cmkd_cache_writer_put_array(j->writer, array->name, v, 0, count, j->rows, array->elements, err));
  }
  CMKD_TRY(read_view(j, NULL, spec->classes, v, first, count, err));
  if (j->shape->average) CMKD_TRY(average(j, v, first, count, err));
  return cmkd_cache_writer_put(j->writer, v, 0, count, j->rows, spec->classes, err);
}

static cmkd_status write_shard(job *j, uint32_t k, cmkd_error *err) {
  const cmkd_reshape *shape = j->shape;
  uint32_t count, views = shape->spec.views;
  uint64_t first;
  cmkd_cache_writer_range(j->writer, k, &first, &count);
  for (uint32_t i = 0; i < count; i++) {
    const uint64_t *ids;
    const int32_t *labels;
    cmkd_cache *cache = shape->inputs[own_input(shape, first + i)];
    CMKD_TRY(cmkd_cache_ids(cache, &ids, err));
    CMKD_TRY(cmkd_cache_labels(cache, &labels, err));
    j->ids[i] = ids[shape->position[first + i]];
    j->labels[i] = labels[shape->position[first + i]];
  }
  for (uint32_t v = 0; v < views; v++) {
    if (cmkd_interrupted())
      return cmkd_fail(err, CMKD_ERR_INTERRUPTED, "%s: stopped; nothing of it was kept", shape->out);
    CMKD_TRY(write_view(j, v, first, count, err));
    for (uint32_t i = 0; i < count; i++)
      j->seeds[(size_t)i * views + v] = j->column[i];
    cmkd_progress_update(&j->progress, j->done += count);
  }
  CMKD_TRY(cmkd_cache_writer_samples(j->writer, j->ids, j->labels, j->seeds, err));
  return cmkd_cache_writer_end(j->writer, err);
}

static cmkd_status allocate(job *j, cmkd_error *err) {
  uint64_t first;
  uint32_t n; /* the first shard is the largest */
  cmkd_cache_writer_range(j->writer, 0, &first, &n);
  size_t cells = (size_t)n * j->spec.classes, width = j->spec.classes;
  for (uint32_t a = 0; a < j->spec.array_count; a++)
    if (j->spec.arrays[a].elements > width) width = j->spec.arrays[a].elements;
  j->ids = malloc(n * sizeof *j->ids);
  j->column = malloc(n * sizeof *j->column);
  j->labels = malloc(n * sizeof *j->labels);
  j->seeds = malloc((size_t)n * j->shape->spec.views * sizeof *j->seeds);
  j->rows = malloc(n * width * sizeof *j->rows);
  j->other = j->shape->average ? malloc(cells * sizeof *j->other) : NULL;
  j->sum = j->shape->average ? malloc(cells * sizeof *j->sum) : NULL;
  if (j->ids && j->column && j->labels && j->seeds && j->rows && (!j->shape->average || (j->other && j->sum)))
    return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for a shard of %u samples; lower --shard-rows", j->shape->out,
                   n);
}

static void release(job *j) {
  free(j->ids);
  free(j->column);
  free(j->labels);
  free(j->seeds);
  free(j->rows);
  free(j->other);
  free(j->sum);
}

/* What a top-k cache dropped does not come back: its rows must not pass for whole ones. */
static cmkd_status check_top_k(const cmkd_reshape *shape, cmkd_error *err) {
  const char *codec = shape->spec.identity.codec;
  int thinned = 0;
  for (int i = 0; i < shape->count; i++) {
    const cmkd_cache_info *info = cmkd_cache_get_info(shape->inputs[i]);
    if (info->kept == info->classes) continue;
    thinned++;
    if (shape->average)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "input %d keeps %u of %u logits a row (%s); an average needs whole rows",
                       i + 1, info->kept, info->classes, info->identity.codec);
    if (strcmp(info->identity.codec, codec) != 0)
      return cmkd_fail(
          err, CMKD_ERR_MISMATCH,
          "input %d keeps %u of %u logits a row and codec %s would hide that; what is made of it stays --codec %s",
          i + 1, info->kept, info->classes, codec, info->identity.codec);
  }
  return cmkd_codec_allowed(codec, thinned == shape->count || shape->allow_top_k, err);
}

static int same_array(const cmkd_cache_array *a, const cmkd_cache_array *b) {
  return !strcmp(a->name, b->name) && a->dtype == b->dtype && a->dims == b->dims &&
         !memcmp(a->shape, b->shape, (size_t)a->dims * sizeof *a->shape);
}

/* All inputs must hold the arrays of the output. Says what the output leaves out. */
static cmkd_status check_arrays(job *j, cmkd_error *err) {
  const cmkd_reshape *shape = j->shape;
  cmkd_cache_spec *spec = &j->spec;
  uint32_t unknown = 0;
  if (shape->average && spec->array_count) {
    fprintf(stderr, "cmkd-cache: %s: without the named arrays of its inputs; only logits are averaged\n", shape->out);
    spec->array_count = 0;
  }
  for (int i = 0; i < shape->count; i++) {
    const cmkd_cache_info *info = cmkd_cache_get_info(shape->inputs[i]);
    int same = shape->average || info->array_count == spec->array_count;
    for (uint32_t a = 0; same && a < spec->array_count; a++)
      same = same_array(info->arrays + a, spec->arrays + a);
    if (!same)
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "input %d declares other named arrays than input 1; they can't be one cache", i + 1);
    unknown += info->unknown_arrays;
  }
  if (unknown)
    fprintf(stderr, "cmkd-cache: %s: without %u named arrays of types that this version does not know\n", shape->out,
            unknown);
  return CMKD_OK;
}

cmkd_status cmkd_reshape_run(const cmkd_reshape *shape, cmkd_cache_writer_stats *stats, cmkd_error *err) {
  job j = {.shape = shape, .spec = shape->spec};
  CMKD_TRY(check_top_k(shape, err));
  CMKD_TRY(check_arrays(&j, err));
  CMKD_TRY(cmkd_output_is_new(shape->out, err));
  CMKD_TRY(cmkd_cache_writer_open(shape->out, &j.spec, &j.writer, err));
  cmkd_progress_start(&j.progress, shape->label, "rows", shape->spec.samples * shape->spec.views, 0, shape->quiet);
  cmkd_status status = allocate(&j, err);
  for (uint32_t k = 0; k < cmkd_cache_writer_shards(j.writer) && status == CMKD_OK; k++) {
    cmkd_cache_shard_state state;
    status = cmkd_cache_writer_begin(j.writer, k, &state, err);
    if (status == CMKD_OK && state != CMKD_CACHE_SHARD_NEEDED)
      status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: another process writes it; choose another name", shape->out);
    if (status == CMKD_OK) status = write_shard(&j, k, err);
  }
  if (status == CMKD_OK) status = cmkd_cache_writer_finish(j.writer, err);
  if (stats) cmkd_cache_writer_get_stats(j.writer, stats);
  cmkd_progress_end(&j.progress);
  cmkd_cache_writer_close(j.writer);
  release(&j);
  if (status != CMKD_OK) cmkd_output_remove(shape->out);
  return status;
}

void cmkd_reshape_spec(const cmkd_cache_info *info, const char *codec, cmkd_cache_spec *spec) {
  memset(spec, 0, sizeof *spec);
  spec->identity = info->identity;
  if (codec) snprintf(spec->identity.codec, sizeof spec->identity.codec, "%s", codec);
  snprintf(spec->identity.tool_version, sizeof spec->identity.tool_version, "%s", CMKD_VERSION);
  spec->samples = info->samples;
  spec->views = info->views;
  spec->classes = info->classes;
  spec->class_names = info->class_names;
  spec->arrays = info->arrays;
  spec->array_count = info->array_count;
}
