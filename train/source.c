/* Rows of labels, cache and live teacher. See source.h. */
#include "train/source.h"
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "base/views.h"

/* A shuffle of which only the first `held` places are drawn says which samples are held out. Both parts are in rising
 * order: chance decides who belongs to which, and nothing else. */
static cmkd_status split_samples(cmkd_source *s, uint32_t samples, uint32_t held, cmkd_error *err) {
  uint8_t *out = calloc(samples, 1);
  uint32_t *shuffled = malloc((size_t)samples * sizeof *shuffled);
  s->n = samples - held;
  s->held = held;
  s->position = malloc((size_t)s->n * sizeof *s->position);
  s->val_rows = malloc(((size_t)held + 1) * sizeof *s->val_rows);
  if (!out || !shuffled || !s->position || !s->val_rows) {
    free(out);
    free(shuffled);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the order of %u samples", samples);
  }
  cmkd_rng rng = cmkd_rng_start(s->settings->seed, CMKD_STREAM_VAL, 0);
  for (uint32_t i = 0; i < samples; i++)
    shuffled[i] = i;
  for (uint32_t i = 0; i < held; i++) {
    uint32_t j = i + cmkd_rng_below(&rng, samples - i), t = shuffled[i];
    shuffled[i] = shuffled[j];
    shuffled[j] = t;
    out[shuffled[i]] = 1;
  }
  uint32_t in_train = 0, in_val = 0;
  for (uint32_t i = 0; i < samples; i++)
    if (out[i])
      s->val_rows[in_val++] = s->ids ? (uint32_t)s->ids[i] : i;
    else
      s->position[in_train++] = i;
  free(out);
  free(shuffled);
  return CMKD_OK;
}

cmkd_status cmkd_source_check(cmkd_cache *cache, const cmkd_dataset *data, cmkd_error *err) {
  const uint64_t *ids;
  const int32_t *labels;
  uint64_t samples = cmkd_cache_get_info(cache)->samples;
  CMKD_TRY(cmkd_cache_ids(cache, &ids, err));
  CMKD_TRY(cmkd_cache_labels(cache, &labels, err));
  for (uint64_t i = 0; i < samples; i++) {
    if (ids[i] >= data->n)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "the cache names sample %llu, %s has %u: rebuild the cache",
                       (unsigned long long)ids[i], data->name, data->n);
    if (labels[i] != data->labels[ids[i]])
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "sample %llu has label %d in the cache and %d in %s: rebuild the cache",
                       (unsigned long long)ids[i], labels[i], data->labels[ids[i]], data->name);
  }
  return CMKD_OK;
}

cmkd_status cmkd_source_open(cmkd_source *s, const cmkd_settings *settings, const cmkd_source_inputs *inputs,
                             cmkd_error *err) {
  memset(s, 0, sizeof *s);
  s->settings = settings;
  s->in = *inputs;
  if (s->in.cache) CMKD_TRY(cmkd_cache_ids(s->in.cache, &s->ids, err));
  CMKD_TRY(split_samples(s, settings->samples, settings->val, err));
  s->order = malloc((size_t)s->n * sizeof *s->order);
  if (!s->order) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the order of %u samples", s->n);
  if (s->in.resident) {
    uint64_t samples = cmkd_cache_get_info(s->in.cache)->samples;
    s->view_seeds = malloc((size_t)samples * sizeof *s->view_seeds);
    if (!s->view_seeds)
      return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the seeds of %llu samples",
                       (unsigned long long)samples);
  }
  if (s->in.teacher) {
    size_t batch = (size_t)cmkd_teacher_batch(s->in.teacher);
    s->ahead_rows = malloc(batch * sizeof *s->ahead_rows);
    s->ahead_seeds = malloc(batch * sizeof *s->ahead_seeds);
    s->ahead_logits = malloc(batch * (size_t)settings->session.classes * sizeof *s->ahead_logits);
    if (!s->ahead_rows || !s->ahead_seeds || !s->ahead_logits)
      return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for a teacher batch of %zu rows", batch);
  }
  return CMKD_OK;
}

void cmkd_source_close(cmkd_source *s) {
  free(s->view_seeds);
  if (s->stream) cmkd_stream_free(s->stream);
  free(s->position);
  free(s->val_rows);
  free(s->order);
  free(s->ahead_rows);
  free(s->ahead_seeds);
  free(s->ahead_logits);
  memset(s, 0, sizeof *s);
}

cmkd_status cmkd_source_epoch(cmkd_source *s, uint32_t epoch, uint32_t at, cmkd_error *err) {
  const cmkd_settings *settings = s->settings;
  uint32_t views = settings->session.views;
  if (s->stream) cmkd_stream_free(s->stream);
  s->stream = NULL;
  s->epoch = epoch;
  s->at = at;
  s->view = views ? cmkd_epoch_view(settings->seed, epoch, views) : 0;
  s->ahead_n = 0;
  cmkd_epoch_order(settings->seed, epoch, s->n, settings->shuffle_block, s->order);
  for (uint32_t i = 0; i < s->n; i++)
    s->order[i] = s->position[s->order[i]];
  if (!s->in.cache || at == s->n) return CMKD_OK;
  if (s->in.resident) {
    CMKD_TRY(cmkd_cache_seeds(s->in.cache, s->view, s->view_seeds, err));
    return cmkd_resident_load(s->in.resident, s->view, err);
  }
  cmkd_stream_options options = {.threads = s->in.threads, .memory = s->in.memory};
  cmkd_status status = cmkd_stream_open(s->in.cache, s->view, s->order + at, s->n - at, &options, &s->stream, err);
  if (status != CMKD_ERR_MEMORY || !err) return status;
  return cmkd_fail(err, status, "%s (--stream-memory MB, --shuffle-block B)", err->message);
}

static uint64_t live_seed(const cmkd_source *s, uint32_t row) {
  const cmkd_session_settings *shared = &s->settings->session;
  const cmkd_view_draw draw = {.cache_seed = shared->cache_seed,
                               .policy = shared->policy,
                               .views = shared->views,
                               .all_variants = shared->all_variants,
                               .clean_view = shared->clean_view};
  return cmkd_view_draw_seed(&draw, row, s->view);
}

/* Runs one full teacher batch whatever the student's batch is: the logits are the same, and a full batch is fastest. */
static cmkd_status run_ahead(cmkd_source *s, cmkd_error *err) {
  uint32_t left = s->n - s->at, batch = (uint32_t)cmkd_teacher_batch(s->in.teacher);
  uint32_t count = left < batch ? left : batch;
  s->ahead_at = s->at;
  s->ahead_n = 0;
  for (uint32_t i = 0; i < count; i++) {
    s->ahead_rows[i] = s->order[s->at + i];
    s->ahead_seeds[i] = live_seed(s, s->ahead_rows[i]);
  }
  CMKD_TRY(cmkd_teacher_run(s->in.teacher, s->ahead_rows, s->ahead_seeds, count, s->ahead_logits, NULL, err));
  s->ahead_n = count;
  return CMKD_OK;
}

static cmkd_status next_live(cmkd_source *s, uint32_t count, const cmkd_source_rows *out, cmkd_error *err) {
  size_t classes = (size_t)s->settings->session.classes;
  for (uint32_t done = 0; done < count;) {
    if (s->at < s->ahead_at || s->at >= s->ahead_at + s->ahead_n) CMKD_TRY(run_ahead(s, err));
    uint32_t from = s->at - s->ahead_at, have = s->ahead_n - from;
    uint32_t take = have < count - done ? have : count - done;
    memcpy(out->rows + done, s->ahead_rows + from, take * sizeof *out->rows);
    memcpy(out->seeds + done, s->ahead_seeds + from, take * sizeof *out->seeds);
    memcpy(out->teacher + done * classes, s->ahead_logits + from * classes, take * classes * sizeof *out->teacher);
    s->at += take;
    done += take;
  }
  return CMKD_OK;
}

/* Rows of a cache whose logits are on the device: which of them, and their seeds. */
static void next_resident(const cmkd_source *s, uint32_t count, const cmkd_source_rows *out) {
  const uint32_t *order = s->order + s->at;
  const uint32_t first = s->view * (uint32_t)cmkd_cache_get_info(s->in.cache)->samples;
  for (uint32_t i = 0; i < count; i++) {
    out->index[i] = first + order[i];
    out->seeds[i] = s->view_seeds[order[i]];
  }
}

cmkd_status cmkd_source_next(cmkd_source *s, uint32_t count, const cmkd_source_rows *out, cmkd_error *err) {
  if (count > s->n - s->at)
    return cmkd_fail(err, CMKD_ERR_VALUE, "asked for %u samples of an epoch that has %u left", count, s->n - s->at);
  if (s->in.teacher) return next_live(s, count, out, err);
  const uint32_t *order = s->order + s->at;
  if (s->in.resident)
    next_resident(s, count, out);
  else if (s->in.cache)
    CMKD_TRY(cmkd_stream_next(s->stream, count, out->teacher, out->seeds, err));
  for (uint32_t i = 0; i < count; i++) {
    out->rows[i] = s->ids ? (uint32_t)s->ids[order[i]] : order[i];
    if (!s->in.cache) out->seeds[i] = cmkd_fresh_seed(s->settings->seed, s->epoch, out->rows[i]);
  }
  s->at += count;
  return CMKD_OK;
}
