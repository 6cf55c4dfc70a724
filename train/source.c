/* Rows of labels, cache and live teacher. See source.h. */
#include "train/source.h"
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"

/* The first `held` places of a partial shuffle are held out; both parts in rising order, so that only membership is
 * random. */
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

/* The cache's samples must be those of the data set: ids inside it, labels equal. */
static cmkd_status check_cache(cmkd_source *s, cmkd_error *err) {
  const int32_t *labels;
  uint64_t samples = cmkd_cache_get_info(s->cache)->samples;
  CMKD_TRY(cmkd_cache_ids(s->cache, &s->ids, err));
  CMKD_TRY(cmkd_cache_labels(s->cache, &labels, err));
  for (uint64_t i = 0; i < samples; i++) {
    if (s->ids[i] >= s->data->n)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "the cache names sample %llu, %s has %u: rebuild the cache",
                       (unsigned long long)s->ids[i], s->data->name, s->data->n);
    if (labels[i] != s->data->labels[s->ids[i]])
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "sample %llu has label %d in the cache and %d in %s: rebuild the cache",
                       (unsigned long long)s->ids[i], labels[i], s->data->labels[s->ids[i]], s->data->name);
  }
  return CMKD_OK;
}

cmkd_status cmkd_source_open(cmkd_source *s, const cmkd_settings *settings, const cmkd_dataset *data, cmkd_cache *cache,
                             cmkd_teacher *teacher, cmkd_error *err) {
  memset(s, 0, sizeof *s);
  s->settings = settings;
  s->data = data;
  s->cache = cache;
  s->teacher = teacher;
  s->threads = 1;
  if (cache) CMKD_TRY(check_cache(s, err));
  CMKD_TRY(split_samples(s, settings->samples, settings->val, err));
  s->order = malloc((size_t)s->n * sizeof *s->order);
  if (!s->order) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the order of %u samples", s->n);
  if (teacher) {
    size_t batch = (size_t)cmkd_teacher_batch(teacher);
    s->window_rows = malloc(batch * sizeof *s->window_rows);
    s->window_seeds = malloc(batch * sizeof *s->window_seeds);
    s->window = malloc(batch * (size_t)settings->classes * sizeof *s->window);
    if (!s->window_rows || !s->window_seeds || !s->window)
      return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for a teacher batch of %zu rows", batch);
  }
  return CMKD_OK;
}

cmkd_status cmkd_source_reside(cmkd_source *s, const cmkd_backend_table *table, cmkd_backend *backend,
                               cmkd_error *err) {
  if (!s->cache || !table->rows_create) return CMKD_OK;
  const cmkd_cache_info *info = cmkd_cache_get_info(s->cache);
  cmkd_be_rows *rows = NULL;
  cmkd_error why;
  cmkd_status status =
      table->rows_create(backend, info->identity.codec, info->samples * info->views, (int)info->classes, &rows, &why);
  if (status == CMKD_ERR_MEMORY || status == CMKD_ERR_UNSUPPORTED) return CMKD_OK; /* streamed, then */
  if (status != CMKD_OK) return cmkd_fail(err, status, "%s", why.message);
  s->table = table;
  s->resident = rows;
  s->loaded = calloc(info->views, 1);
  s->view_seeds = malloc((size_t)info->samples * sizeof *s->view_seeds);
  return s->loaded && s->view_seeds ? CMKD_OK
                                    : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the seeds of %llu samples",
                                                (unsigned long long)info->samples);
}

/* The epoch's view on the device, and its seeds here. */
static cmkd_status load_view(cmkd_source *s, cmkd_error *err) {
  const uint64_t n = cmkd_cache_get_info(s->cache)->samples;
  const size_t row = (size_t)s->settings->classes * (size_t)cmkd_cache_item(s->cache);
  CMKD_TRY(cmkd_cache_seeds(s->cache, s->view, s->view_seeds, err));
  if (s->loaded[s->view]) return CMKD_OK;
  uint8_t *items = malloc((size_t)n * (row + 4));
  uint16_t *numbers = (uint16_t *)(void *)(items + (size_t)n * row);
  if (!items) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the logits of one view");
  cmkd_status status = cmkd_cache_read_items(s->cache, s->view, 0, n, items, numbers, numbers + n, err);
  if (status == CMKD_OK)
    status = s->table->rows_write(s->resident, (uint64_t)s->view * n, n, items, numbers, numbers + n, err);
  free(items);
  s->loaded[s->view] = status == CMKD_OK;
  return status;
}

void cmkd_source_close(cmkd_source *s) {
  if (s->resident) s->table->rows_free(s->resident);
  free(s->loaded);
  free(s->view_seeds);
  if (s->stream) cmkd_stream_free(s->stream);
  free(s->position);
  free(s->val_rows);
  free(s->order);
  free(s->window_rows);
  free(s->window_seeds);
  free(s->window);
  memset(s, 0, sizeof *s);
}

cmkd_status cmkd_source_epoch(cmkd_source *s, uint32_t epoch, uint32_t at, cmkd_error *err) {
  const cmkd_settings *settings = s->settings;
  if (s->stream) cmkd_stream_free(s->stream);
  s->stream = NULL;
  s->epoch = epoch;
  s->at = at;
  s->view = settings->views ? cmkd_epoch_view(settings->seed, epoch, settings->views) : 0;
  s->window_n = 0;
  cmkd_epoch_order(settings->seed, epoch, s->n, settings->shuffle_block, s->order);
  for (uint32_t i = 0; i < s->n; i++)
    s->order[i] = s->position[s->order[i]];
  if (!s->cache || at == s->n) return CMKD_OK;
  if (s->resident) return load_view(s, err);
  cmkd_stream_options options = {.threads = s->threads, .memory = s->memory};
  return cmkd_stream_open(s->cache, s->view, s->order + at, s->n - at, &options, &s->stream, err);
}

static uint64_t live_seed(const cmkd_source *s, uint32_t row) {
  const cmkd_settings *settings = s->settings;
  if (settings->clean_view && s->view == settings->views - 1) return cmkd_clean_seed(settings->policy);
  return cmkd_view_seed(settings->cache_seed, row, s->view, settings->policy, settings->all_variants);
}

/* The teacher's rows are made a whole teacher batch at a time, whatever the student's batch: a row's bits do not depend
 * on its group. */
static cmkd_status refill(cmkd_source *s, cmkd_error *err) {
  uint32_t left = s->n - s->at, batch = (uint32_t)cmkd_teacher_batch(s->teacher);
  s->window_at = s->at;
  s->window_n = 0;
  uint32_t count = left < batch ? left : batch;
  for (uint32_t i = 0; i < count; i++) {
    s->window_rows[i] = s->order[s->at + i];
    s->window_seeds[i] = live_seed(s, s->window_rows[i]);
  }
  CMKD_TRY(cmkd_teacher_run(s->teacher, s->window_rows, s->window_seeds, count, s->window, NULL, err));
  s->window_n = count;
  return CMKD_OK;
}

static cmkd_status next_live(cmkd_source *s, uint32_t count, uint32_t *rows, uint64_t *seeds, float *teacher,
                             cmkd_error *err) {
  size_t classes = (size_t)s->settings->classes;
  for (uint32_t done = 0; done < count;) {
    if (s->at < s->window_at || s->at >= s->window_at + s->window_n) CMKD_TRY(refill(s, err));
    uint32_t from = s->at - s->window_at, have = s->window_n - from, take = have < count - done ? have : count - done;
    memcpy(rows + done, s->window_rows + from, take * sizeof *rows);
    memcpy(seeds + done, s->window_seeds + from, take * sizeof *seeds);
    memcpy(teacher + done * classes, s->window + from * classes, take * classes * sizeof *teacher);
    s->at += take;
    done += take;
  }
  return CMKD_OK;
}

cmkd_status cmkd_source_next(cmkd_source *s, uint32_t count, uint32_t *rows, uint64_t *seeds, float *teacher,
                             uint32_t *index, cmkd_error *err) {
  if (count > s->n - s->at)
    return cmkd_fail(err, CMKD_ERR_VALUE, "asked for %u samples of an epoch that has %u left", count, s->n - s->at);
  if (s->teacher) return next_live(s, count, rows, seeds, teacher, err);
  const uint32_t *order = s->order + s->at;
  const uint32_t first = s->resident ? s->view * (uint32_t)cmkd_cache_get_info(s->cache)->samples : 0;
  for (uint32_t i = 0; s->resident && i < count; i++) {
    index[i] = first + order[i];
    seeds[i] = s->view_seeds[order[i]];
  }
  if (s->cache && !s->resident) CMKD_TRY(cmkd_stream_next(s->stream, count, teacher, seeds, err));
  for (uint32_t i = 0; i < count; i++) {
    rows[i] = s->ids ? (uint32_t)s->ids[order[i]] : order[i];
    if (!s->cache) seeds[i] = cmkd_fresh_seed(s->settings->seed, s->epoch, rows[i]);
  }
  s->at += count;
  return CMKD_OK;
}
