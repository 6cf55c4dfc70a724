/* The builder's loop: shards that are missing are filled batch by batch while the writer's threads compress and publish
 * the ones before. A teacher batch never straddles a shard, so a shard's bytes do not depend on which others were built
 * in the same run. */
#include "cmkd/build.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "base/views.h"
#include "nets/teacher.h"

enum { DEFAULT_VIEWS = 4 };
enum { MAX_CALL_BATCHES = 64 }; /* of one cmkd_teacher_run, which takes them in runs of its own (MAX_RUN_BATCHES) */
/* What a call should last: shorter ones cost more than they compute, longer ones cannot stop. */
#define CALL_SECONDS 0.1
#define WAIT_SECONDS 0.2 /* between two looks at a shard that another process is writing */

typedef struct build {
  const char *out;
  const cmkd_dataset *data;
  cmkd_teacher *teacher;
  const cmkd_build_watch *watch;
  cmkd_build_result *result;
  cmkd_cache_writer *writer;
  cmkd_cache_spec spec; /* spec.views counts the clean one */
  cmkd_build_progress progress;
  unsigned part, parts;
  uint32_t batches; /* of a call, grown until one lasts CALL_SECONDS */
} build;

/* Memory for one shard. A call of the teacher has at most `most` rows. */
typedef struct shard_work {
  uint64_t first; /* of its samples in the split */
  uint32_t n;     /* samples */
  uint32_t most;
  uint64_t *ids, *seeds; /* (n), (n, views) */
  uint32_t *call_rows;   /* (most) */
  uint64_t *call_seeds;  /* (most) */
  float *logits;         /* (most, classes) */
} shard_work;

/* ---- what the cache will say of itself ---- */

static void set_text(char *out, size_t capacity, const char *text) {
  size_t i = 0;
  for (; i + 1 < capacity && text[i]; i++)
    out[i] = text[i] >= ' ' && text[i] < 127 ? text[i] : '?'; /* a file name need not be UTF-8, an attribute must */
  out[i] = 0;
}

static void describe_teacher(const cmkd_teacher *teacher, cmkd_cache_identity *id) {
  const cmkd_model_spec *model = cmkd_teacher_spec(teacher);
  const char *name = cmkd_teacher_name(teacher), *slash = strrchr(name, '/');
  set_text(id->teacher_sha256, sizeof id->teacher_sha256, cmkd_teacher_sha256(teacher));
  set_text(id->teacher_arch, sizeof id->teacher_arch, model->arch);
  set_text(id->teacher_name, sizeof id->teacher_name, slash ? slash + 1 : name);
  id->channels = model->channels < 3 ? model->channels : 3;
  for (int c = 0; c < id->channels; c++) {
    id->mean[c] = model->mean[c];
    id->std[c] = model->std[c];
  }
  set_text(id->precision, sizeof id->precision, cmkd_teacher_precision(teacher, &id->precision_error));
  id->teacher_batch = cmkd_teacher_batch(teacher);
  id->policy = cmkd_teacher_policy(teacher);
}

static cmkd_status fill_spec(build *b, const cmkd_build_options *o, cmkd_error *err) {
  cmkd_cache_spec *spec = &b->spec;
  cmkd_cache_identity *id = &spec->identity;
  const cmkd_dataset *data = b->data;
  describe_teacher(b->teacher, id);
  const int augmented = id->policy != CMKD_AUGMENT_NONE;
  if (o->samples > data->n)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--samples %u: %s has %u in its %s split", o->samples, data->name, data->n,
                     data->split);
  if (!augmented && !o->all_variants && o->views > 1)
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "--views %u: without augmentation all views are the same image; leave it out or choose --augment",
                     o->views);
  set_text(id->dataset, sizeof id->dataset, data->name);
  set_text(id->split, sizeof id->split, data->split);
  set_text(id->fingerprint, sizeof id->fingerprint, data->fingerprint);
  id->dataset_n = data->n;
  set_text(id->rng_version, sizeof id->rng_version, CMKD_RNG_VERSION);
  id->cache_seed = o->cache_seed;
  id->all_variants = o->all_variants && augmented;
  id->clean_view = o->clean_view && augmented; /* without augmentation the one view is the clean one */
  set_text(id->codec, sizeof id->codec, o->codec ? o->codec : "f16");
  set_text(id->tool_version, sizeof id->tool_version, CMKD_VERSION);
  uint32_t views = o->views ? o->views : augmented ? DEFAULT_VIEWS : 1;
  if (o->all_variants) views = cmkd_policy_variants(id->policy);
  if (views >= CMKD_CACHE_MAX_VIEWS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--views %u: at most %d", views, CMKD_CACHE_MAX_VIEWS - 1);
  spec->samples = o->samples ? o->samples : data->n;
  spec->views = views + (id->clean_view ? 1 : 0);
  spec->classes = (uint32_t)cmkd_teacher_spec(b->teacher)->classes;
  spec->class_names = data->class_names;
  spec->shard_samples = o->shard_samples;
  spec->threads = o->threads;
  return CMKD_OK;
}

/* ---- asking and telling ---- */

static cmkd_status go_on(const build *b, cmkd_error *err) {
  if (!b->watch || !b->watch->stop || !b->watch->stop(b->watch->self)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_INTERRUPTED,
                   "%s: stopped; the finished shards are kept, and running the same command again continues", b->out);
}

static void tell(const build *b) {
  if (b->watch && b->watch->progress) b->watch->progress(b->watch->self, &b->progress);
}

/* ---- one shard ---- */

static cmkd_status call_teacher(build *b, const shard_work *work, uint32_t count, cmkd_error *err) {
  const double start = cmkd_seconds();
  CMKD_TRY(cmkd_teacher_run(b->teacher, work->call_rows, work->call_seeds, count, work->logits, NULL, err));
  const double seconds = cmkd_seconds() - start;
  b->result->teacher_seconds += seconds;
  b->result->teacher_rows += count;
  if (seconds < CALL_SECONDS && b->batches < MAX_CALL_BATCHES) b->batches *= 2;
  return CMKD_OK;
}

/* Rows of a shard go view after view, sample after sample; each teacher call takes a stretch of that line. */
static cmkd_status run_rows(build *b, const shard_work *work, cmkd_error *err) {
  const uint32_t views = b->spec.views, n = work->n, batch = (uint32_t)cmkd_teacher_batch(b->teacher);
  const size_t classes = b->spec.classes;
  const uint64_t total = (uint64_t)n * views;
  for (uint64_t at = 0; at < total;) {
    CMKD_TRY(go_on(b, err));
    const uint64_t left = total - at, wanted = (uint64_t)batch * b->batches;
    const uint32_t count = (uint32_t)(left < wanted ? left : wanted);
    for (uint32_t j = 0; j < count; j++) {
      const uint32_t view = (uint32_t)((at + j) / n), i = (uint32_t)((at + j) % n);
      work->call_rows[j] = (uint32_t)work->first + i;
      work->call_seeds[j] = work->seeds[(size_t)i * views + view];
    }
    CMKD_TRY(call_teacher(b, work, count, err));
    for (uint32_t j = 0, step; j < count; j += step) {
      const uint32_t view = (uint32_t)((at + j) / n), i = (uint32_t)((at + j) % n);
      step = count - j < n - i ? count - j : n - i;
      CMKD_TRY(cmkd_cache_writer_put(b->writer, view, i, step, work->logits + (size_t)j * classes, classes, err));
    }
    at += count;
    b->progress.done += count;
    tell(b);
  }
  return CMKD_OK;
}

static cmkd_status shard_work_create(const build *b, uint32_t k, shard_work *work, cmkd_error *err) {
  memset(work, 0, sizeof *work);
  cmkd_cache_writer_range(b->writer, k, &work->first, &work->n);
  const size_t rows = (size_t)work->n * b->spec.views, call = (size_t)cmkd_teacher_batch(b->teacher) * MAX_CALL_BATCHES;
  work->most = (uint32_t)(call < rows ? call : rows);
  work->ids = malloc(work->n * sizeof *work->ids);
  work->seeds = malloc(rows * sizeof *work->seeds);
  work->call_rows = malloc(work->most * sizeof *work->call_rows);
  work->call_seeds = malloc(work->most * sizeof *work->call_seeds);
  work->logits = malloc(work->most * (size_t)b->spec.classes * sizeof *work->logits);
  if (work->ids && work->seeds && work->call_rows && work->call_seeds && work->logits) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for a shard of %u samples; lower --shard-rows", b->out,
                   work->n);
}

static void shard_work_free(shard_work *work) {
  free(work->ids);
  free(work->seeds);
  free(work->call_rows);
  free(work->call_seeds);
  free(work->logits);
}

static void draw_seeds(const build *b, shard_work *work) {
  const cmkd_cache_identity *id = &b->spec.identity;
  const cmkd_view_draw draw = {.cache_seed = id->cache_seed,
                               .policy = id->policy,
                               .views = b->spec.views,
                               .all_variants = id->all_variants,
                               .clean_view = id->clean_view};
  for (uint32_t i = 0; i < work->n; i++) {
    work->ids[i] = work->first + i;
    cmkd_view_draw_seeds(&draw, work->ids[i], work->seeds + (size_t)i * draw.views);
  }
}

static cmkd_status build_shard(build *b, uint32_t k, cmkd_error *err) {
  shard_work work;
  cmkd_status status = shard_work_create(b, k, &work, err);
  if (status == CMKD_OK) {
    draw_seeds(b, &work);
    status = cmkd_cache_writer_samples(b->writer, work.ids, b->data->labels + work.first, work.seeds, err);
  }
  if (status == CMKD_OK) status = run_rows(b, &work, err);
  if (status == CMKD_OK) status = cmkd_cache_writer_end(b->writer, err);
  shard_work_free(&work);
  return status;
}

/* ---- all shards of this part ---- */

static uint64_t shard_size(const build *b, uint32_t k) {
  uint64_t first;
  uint32_t n;
  cmkd_cache_writer_range(b->writer, k, &first, &n);
  return (uint64_t)n * b->spec.views;
}

/* One look at shard k: builds it, finds it done, or leaves it to the process that is writing it (*done stays 0). */
static cmkd_status visit_shard(build *b, uint32_t k, uint8_t *done, cmkd_error *err) {
  cmkd_cache_shard_state state;
  CMKD_TRY(go_on(b, err));
  CMKD_TRY(cmkd_cache_writer_begin(b->writer, k, &state, err));
  if (state == CMKD_CACHE_SHARD_BUSY) return CMKD_OK;
  b->progress.waiting = 0;
  if (state == CMKD_CACHE_SHARD_NEEDED) {
    CMKD_TRY(build_shard(b, k, err));
  } else {
    b->progress.done += shard_size(b, k);
    b->progress.reused += shard_size(b, k);
    tell(b);
  }
  *done = 1;
  b->result->shards_done++;
  return CMKD_OK;
}

/* Goes round the shards until all of this part are done, by us or by another builder on the same output. */
static cmkd_status build_shards(build *b, uint8_t *done, cmkd_error *err) {
  const uint32_t shards = cmkd_cache_writer_shards(b->writer);
  while (b->result->shards_done < b->result->shards) {
    const uint32_t before = b->result->shards_done;
    for (uint32_t k = b->part; k < shards; k += b->parts)
      if (!done[k]) CMKD_TRY(visit_shard(b, k, &done[k], err));
    if (b->result->shards_done != before) continue;
    b->progress.waiting = 1;
    tell(b);
    nanosleep(&(struct timespec){0, (long)(WAIT_SECONDS * 1e9)}, NULL);
  }
  return CMKD_OK;
}

static cmkd_status build_part(build *b, cmkd_error *err) {
  const uint32_t shards = cmkd_cache_writer_shards(b->writer);
  for (uint32_t k = b->part; k < shards; k += b->parts) {
    b->result->shards++;
    b->progress.total += shard_size(b, k);
  }
  tell(b);
  uint8_t *done = calloc(shards, 1);
  if (!done) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for %u shards", b->out, shards);
  cmkd_status status = build_shards(b, done, err);
  free(done);
  if (status == CMKD_OK) status = cmkd_cache_writer_wait(b->writer, err);
  if (status != CMKD_OK || b->parts > 1) return status;
  CMKD_TRY(cmkd_cache_writer_finish(b->writer, err));
  b->result->finished = 1;
  return CMKD_OK;
}

cmkd_status cmkd_build_cache(const cmkd_build_options *options, cmkd_teacher *teacher, const cmkd_build_watch *watch,
                             cmkd_build_result *result, cmkd_error *err) {
  cmkd_build_result unseen;
  build b = {.out = options->out,
             .data = cmkd_teacher_data(teacher),
             .teacher = teacher,
             .watch = watch,
             .result = result ? result : &unseen,
             .part = options->part,
             .parts = options->parts ? options->parts : 1,
             .batches = 1};
  const double start = cmkd_seconds();
  memset(b.result, 0, sizeof *b.result);
  if (!options->out || !*options->out) return cmkd_fail(err, CMKD_ERR_USAGE, "where to? give --out FILE.h5");
  if (b.part >= b.parts) return cmkd_fail(err, CMKD_ERR_USAGE, "part %u of %u; parts count from 0", b.part, b.parts);
  CMKD_TRY(fill_spec(&b, options, err));
  CMKD_TRY(cmkd_cache_writer_open(options->out, &b.spec, &b.writer, err));
  const cmkd_status status = build_part(&b, err);
  cmkd_cache_writer_get_stats(b.writer, &b.result->writer);
  cmkd_cache_writer_close(b.writer);
  b.result->samples = (uint32_t)b.spec.samples;
  b.result->views = b.spec.views;
  b.result->seconds = cmkd_seconds() - start;
  return status;
}
