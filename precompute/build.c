/* The builder's loop: shards that are missing are filled batch by batch while the writer's threads compress and publish
 * the ones before. A teacher batch never straddles a shard, so a shard's bytes do not depend on which others were built
 * in the same run. */
#include "precompute/build.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "base/program/progress.h"

enum { MOST_BATCHES = 64 }; /* per call of the teacher */

typedef struct build {
  const cmkd_build_job *job;
  cmkd_build_result *result;
  cmkd_cache_writer *writer;
  cmkd_progress progress;
  uint32_t views;   /* with the clean one */
  uint64_t done;    /* rows */
  uint32_t batches; /* per call, grown until a call takes a tenth of a second */
} build;

static void set_text(char *out, size_t capacity, const char *text) {
  size_t i = 0;
  for (; i + 1 < capacity && text[i]; i++)
    out[i] = text[i] >= ' ' && text[i] < 127 ? text[i] : '?'; /* a file name need not be UTF-8, an attribute must */
  out[i] = 0;
}

static void fill_spec(const cmkd_build_job *job, cmkd_cache_spec *spec) {
  cmkd_cache_identity *id = &spec->identity;
  const cmkd_model_spec *model = cmkd_teacher_spec(job->teacher);
  const char *slash = strrchr(job->teacher_path, '/');
  memset(spec, 0, sizeof *spec);
  set_text(id->teacher_sha256, sizeof id->teacher_sha256, cmkd_teacher_sha256(job->teacher));
  set_text(id->teacher_arch, sizeof id->teacher_arch, model->arch);
  set_text(id->teacher_name, sizeof id->teacher_name, slash ? slash + 1 : job->teacher_path);
  id->channels = model->channels < 3 ? model->channels : 3;
  for (int c = 0; c < id->channels; c++) {
    id->mean[c] = model->mean[c];
    id->std[c] = model->std[c];
  }
  set_text(id->precision, sizeof id->precision, job->precision);
  id->precision_error = job->precision_error;
  id->teacher_batch = cmkd_teacher_batch(job->teacher);
  set_text(id->dataset, sizeof id->dataset, job->data->name);
  set_text(id->split, sizeof id->split, job->data->split);
  set_text(id->fingerprint, sizeof id->fingerprint, job->data->fingerprint);
  id->dataset_n = job->data->n;
  id->policy = job->policy;
  set_text(id->rng_version, sizeof id->rng_version, CMKD_RNG_VERSION);
  id->cache_seed = job->cache_seed;
  id->all_variants = job->all_variants;
  id->clean_view = job->clean_view;
  set_text(id->codec, sizeof id->codec, job->codec);
  set_text(id->tool_version, sizeof id->tool_version, CMKD_VERSION);
  spec->samples = job->samples;
  spec->views = job->views + (job->clean_view ? 1 : 0);
  spec->classes = (uint32_t)model->classes;
  spec->class_names = job->data->classes == model->classes ? job->data->class_names : NULL;
  spec->shard_rows = job->shard_rows;
  spec->threads = job->threads;
}

static cmkd_status stopped(build *b, cmkd_error *err) {
  cmkd_progress_end(&b->progress);
  return cmkd_fail(err, CMKD_ERR_INTERRUPTED,
                   "%s: stopped; the finished shards are kept, and running the same command again continues",
                   b->job->out);
}

/* Rows of a shard go view after view, sample after sample; each teacher call takes a stretch of that line. */
static cmkd_status run_rows(build *b, uint64_t first, uint32_t n, const uint64_t *seeds, uint32_t *rows,
                            uint64_t *batch_seeds, float *logits, cmkd_error *err) {
  const cmkd_build_job *job = b->job;
  uint32_t batch = (uint32_t)cmkd_teacher_batch(job->teacher), C = (uint32_t)cmkd_teacher_spec(job->teacher)->classes;
  uint64_t total = (uint64_t)n * b->views;
  for (uint64_t at = 0; at < total;) {
    if (job->interrupted && job->interrupted()) return stopped(b, err);
    uint32_t count = total - at < (uint64_t)batch * b->batches ? (uint32_t)(total - at) : batch * b->batches;
    for (uint32_t j = 0; j < count; j++) {
      uint32_t view = (uint32_t)((at + j) / n), i = (uint32_t)((at + j) % n);
      rows[j] = (uint32_t)first + i;
      batch_seeds[j] = seeds[(size_t)i * b->views + view];
    }
    double start = cmkd_seconds();
    CMKD_TRY(cmkd_teacher_run(job->teacher, rows, batch_seeds, count, logits, NULL, err));
    double seconds = cmkd_seconds() - start;
    b->result->teacher_seconds += seconds;
    b->result->teacher_rows += count;
    if (seconds < 0.1 && b->batches < MOST_BATCHES) b->batches *= 2;
    for (uint32_t j = 0, step; j < count; j += step) {
      uint32_t view = (uint32_t)((at + j) / n), i = (uint32_t)((at + j) % n);
      step = count - j < n - i ? count - j : n - i;
      CMKD_TRY(cmkd_cache_writer_put(b->writer, view, i, step, logits + (size_t)j * C, C, err));
    }
    at += count;
    b->done += count;
    cmkd_progress_update(&b->progress, b->done);
  }
  return CMKD_OK;
}

static cmkd_status build_shard(build *b, uint32_t k, cmkd_error *err) {
  const cmkd_build_job *job = b->job;
  uint64_t first;
  uint32_t n;
  cmkd_cache_writer_range(b->writer, k, &first, &n);
  size_t C = (size_t)cmkd_teacher_spec(job->teacher)->classes, cells = (size_t)n * b->views;
  size_t most = (size_t)cmkd_teacher_batch(job->teacher) * MOST_BATCHES < cells
                    ? (size_t)cmkd_teacher_batch(job->teacher) * MOST_BATCHES
                    : cells;
  uint64_t *seeds = malloc((cells + n + most) * sizeof *seeds), *ids = seeds ? seeds + cells : NULL,
           *batch_seeds = seeds ? ids + n : NULL;
  uint32_t *rows = malloc(most * sizeof *rows);
  float *logits = malloc(most * C * sizeof *logits);
  cmkd_status status = CMKD_OK;
  if (!seeds || !rows || !logits)
    status =
        cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for a shard of %u samples; lower --shard-rows", job->out, n);
  for (uint32_t i = 0; i < n && status == CMKD_OK; i++) {
    uint64_t *mine = seeds + (size_t)i * b->views;
    ids[i] = first + i;
    cmkd_view_seeds(job->cache_seed, first + i, job->views, job->policy, job->all_variants, mine);
    if (job->clean_view) mine[job->views] = cmkd_clean_seed(job->policy);
  }
  if (status == CMKD_OK) status = cmkd_cache_writer_samples(b->writer, ids, job->data->labels + first, seeds, err);
  if (status == CMKD_OK) status = run_rows(b, first, n, seeds, rows, batch_seeds, logits, err);
  if (status == CMKD_OK) status = cmkd_cache_writer_end(b->writer, err);
  free(seeds);
  free(rows);
  free(logits);
  return status;
}

/* Goes round the shards until all of this part are done, by us or by another builder on the same output. */
static cmkd_status build_shards(build *b, cmkd_error *err) {
  const cmkd_build_job *job = b->job;
  uint32_t shards = cmkd_cache_writer_shards(b->writer), left = 0;
  uint8_t *done = calloc(shards, 1);
  cmkd_status status =
      done ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for %u shards", job->out, shards);
  for (uint32_t k = 0; k < shards && done; k++)
    if (k % job->part.count == job->part.index)
      left++;
    else
      done[k] = 1;
  b->result->shards = left;
  int waiting = 0;
  while (left && status == CMKD_OK) {
    int progressed = 0;
    for (uint32_t k = 0; k < shards && status == CMKD_OK; k++) {
      cmkd_cache_shard_state state;
      uint64_t first;
      uint32_t n;
      if (done[k]) continue;
      if (job->interrupted && job->interrupted()) {
        status = stopped(b, err);
        break;
      }
      status = cmkd_cache_writer_begin(b->writer, k, &state, err);
      if (status != CMKD_OK || state == CMKD_CACHE_SHARD_BUSY) continue;
      cmkd_cache_writer_range(b->writer, k, &first, &n);
      if (state == CMKD_CACHE_SHARD_DONE) {
        b->done += (uint64_t)n * b->views;
        b->progress.base += (uint64_t)n * b->views; /* not of this run's rate */
        cmkd_progress_update(&b->progress, b->done);
      } else
        status = build_shard(b, k, err);
      done[k] = 1;
      left--;
      b->result->shards_done += status == CMKD_OK;
      progressed = 1;
    }
    if (progressed || !left) continue;
    if (!waiting++)
      snprintf(b->progress.note, sizeof b->progress.note, "waiting for another cmkd-cache on the same output");
    cmkd_progress_update(&b->progress, b->done);
    nanosleep(&(struct timespec){0, 200000000}, NULL);
  }
  free(done);
  return status;
}

static uint64_t rows_of_part(const build *b) {
  uint64_t rows = 0, first;
  uint32_t n;
  for (uint32_t k = b->job->part.index; k < cmkd_cache_writer_shards(b->writer); k += b->job->part.count) {
    cmkd_cache_writer_range(b->writer, k, &first, &n);
    rows += (uint64_t)n * b->views;
  }
  return rows;
}

cmkd_status cmkd_build_cache(const cmkd_build_job *job, cmkd_build_result *result, cmkd_error *err) {
  cmkd_cache_spec spec;
  build b = {.job = job, .result = result, .batches = 1};
  double start = cmkd_seconds();
  memset(result, 0, sizeof *result);
  fill_spec(job, &spec);
  b.views = spec.views;
  CMKD_TRY(cmkd_cache_writer_open(job->out, &spec, &b.writer, err));
  cmkd_progress_start(&b.progress, job->label, "images", rows_of_part(&b), 0, job->quiet);
  cmkd_status status = build_shards(&b, err);
  if (status == CMKD_OK) status = cmkd_cache_writer_wait(b.writer, err);
  if (status == CMKD_OK && job->part.count == 1) {
    status = cmkd_cache_writer_finish(b.writer, err);
    result->finished = status == CMKD_OK;
  }
  cmkd_progress_end(&b.progress);
  cmkd_cache_writer_get_stats(b.writer, &result->writer);
  cmkd_cache_writer_close(b.writer);
  result->seconds = cmkd_seconds() - start;
  return status;
}
