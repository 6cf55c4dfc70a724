/* What callers of the writer see: open, fill, seal. */
#include "cmkd/cache_writer.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/cpu.h"
#include "base/file.h"
#include "formats/cache/paths.h"
#include "formats/cache/writer.h"

#define CHUNK_BYTES 200000u      /* raw bytes of a chunk: at least this, in a power of two of rows */
#define SHARD_BYTES (4ull << 20) /* raw bytes of a shard, unless that makes over 1024 of them */
#define SHARD_BYTES_MOST (128ull << 20)

static void choose_geometry(const cmkd_cache_spec *spec, const cmkd_codec *codec, cmkd_cache_head *head) {
  uint64_t row = (uint64_t)spec->classes * (uint64_t)codec->item, chunk = 1,
           most = spec->samples < INT32_MAX ? spec->samples : INT32_MAX;
  while (chunk * row < CHUNK_BYTES)
    chunk *= 2;
  if (spec->chunk_rows) chunk = spec->chunk_rows;
  uint64_t total = row * spec->views * spec->samples, target = total / 1024;
  target = target < SHARD_BYTES ? SHARD_BYTES : target > SHARD_BYTES_MOST ? SHARD_BYTES_MOST : target;
  uint64_t rows = target / (row * spec->views) / chunk * chunk;
  if (rows < chunk) rows = chunk;
  if (spec->shard_rows) rows = spec->shard_rows;
  if (rows > most) rows = most;
  if (chunk > rows) chunk = rows;
  head->shard_rows = (uint32_t)rows;
  head->chunk_rows = (uint32_t)chunk;
  uint64_t shards = (spec->samples + rows - 1) / rows;
  head->shards = shards > UINT32_MAX ? UINT32_MAX : (uint32_t)shards;
}

static cmkd_status check_spec(const char *path, const cmkd_cache_spec *spec, const cmkd_codec *codec,
                              cmkd_cache_head *head, cmkd_error *err) {
  if (!spec->samples || spec->samples > UINT32_MAX)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %llu samples; a cache has 1 to %u", path,
                     (unsigned long long)spec->samples, UINT32_MAX);
  if (!spec->views || spec->views > CMKD_CACHE_MAX_VIEWS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u views; a cache has 1 to %d", path, spec->views, CMKD_CACHE_MAX_VIEWS);
  if (!spec->classes || spec->classes > CMKD_CACHE_MAX_CLASSES)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u classes; a cache has 1 to %d", path, spec->classes,
                     CMKD_CACHE_MAX_CLASSES);
  if (strlen(spec->identity.teacher_sha256) != 64)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: the teacher's SHA-256 is missing", path);
  if (codec->thin && cmkd_codec_keep(spec->identity.codec) >= spec->classes)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: codec %s keeps all of %u logits; use f16", path, spec->identity.codec,
                     spec->classes);
  choose_geometry(spec, codec, head);
  if (head->shards > CMKD_CACHE_MAX_SHARDS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u shards; at most %d: raise --shard-rows", path, head->shards,
                     CMKD_CACHE_MAX_SHARDS);
  if ((uint64_t)head->chunk_rows * spec->classes * (uint64_t)codec->item > CMKD_CACHE_CHUNK_LIMIT) {
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: chunks of %u rows are over %u bytes; lower the chunk rows", path,
                     head->chunk_rows, CMKD_CACHE_CHUNK_LIMIT);
  }
  head->identity = spec->identity;
  head->samples = spec->samples;
  head->views = spec->views;
  head->classes = spec->classes;
  if (!spec->class_names) return CMKD_OK;
  head->class_names = calloc(spec->classes, sizeof *head->class_names);
  for (uint32_t c = 0; head->class_names && c < spec->classes; c++)
    if (!(head->class_names[c] = strdup(spec->class_names[c]))) {
      cmkd_cache_head_free(head);
      break;
    }
  return head->class_names ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for class names");
}

/* What stands under PATH already? Nothing, or a master of this same cache: go on. A damaged master is replaced; all
 * else is refused. */
static cmkd_status check_target(const cmkd_cache_writer *w, cmkd_error *err) {
  int fd = open(w->path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return CMKD_OK;
  if (fd < 0)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: exists and cannot be read (%s); choose another --out", w->path,
                     strerror(errno));
  uint8_t *bytes = NULL, start[8] = {0};
  cmkd_user_block block;
  cmkd_master_meta meta = {0};
  ssize_t got = pread(fd, start, sizeof start, 0);
  cmkd_status status = cmkd_user_block_read(fd, w->path, CMKD_USER_BLOCK_MASTER, &bytes, &block, NULL);
  if (status == CMKD_OK)
    status = cmkd_master_json_parse(block.json, block.json_size, block.file_size, w->path, &meta, NULL);
  close(fd);
  free(bytes);
  if (status != CMKD_OK) {
    if (got == 8 && !memcmp(start, "CMKD\r\n\x1a\n", 8)) return CMKD_OK;
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: exists and is not a cache; choose another --out or move it away",
                     w->path);
  }
  char *text = cmkd_cache_head_text(&meta.head);
  int same = text && !strcmp(text, w->head_text);
  if (!same) {
    cmkd_fail(err, CMKD_ERR_MISMATCH,
              "%s: holds another cache (%s %s, %" PRIu64 " samples, %u views, %s, seed %" PRIu64
              "); choose another --out, or remove it and %s",
              w->path, meta.head.identity.dataset, meta.head.identity.split, meta.head.samples, meta.head.views,
              meta.head.identity.codec, meta.head.identity.cache_seed, w->folder);
  }
  free(text);
  cmkd_master_meta_free(&meta);
  return same ? CMKD_OK : CMKD_ERR_MISMATCH;
}

static cmkd_status share_session(cmkd_cache_writer *w, cmkd_error *err) {
  char word[CMKD_SHA256_HEX],
      *path = cmkd_format("%s.lock", w->path),
      *refusal = cmkd_format(
          "%s: another cmkd-cache is building a different cache there now; choose another --out or wait for it",
          w->path);
  cmkd_sha256(w->head_text, strlen(w->head_text), word);
  cmkd_status status = path && refusal ? cmkd_lock_share(path, word, refusal, &w->session, err)
                                       : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory");
  free(path);
  free(refusal);
  return status;
}

static cmkd_status open_common(cmkd_cache_writer *w, int threads, cmkd_error *err) {
  CMKD_TRY(cmkd_codec_find(w->head.identity.codec, &w->codec, err));
  w->keep = cmkd_codec_keep(w->head.identity.codec);
  w->thin = w->codec->thin ? malloc(w->head.classes * sizeof *w->thin) : NULL;
  if (w->codec->thin && !w->thin) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", w->path);
  w->head_text = cmkd_cache_head_text(&w->head);
  w->entries = calloc(w->head.shards, sizeof *w->entries);
  if (!w->head_text)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: a name (teacher, class) is not UTF-8, or memory is short", w->path);
  if (!w->entries) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for %u shards", w->path, w->head.shards);
  for (uint32_t k = 0; k < w->head.shards; k++) {
    cmkd_shard_entry *entry = w->entries + k;
    cmkd_shard_name(&w->head, k, entry->file);
    entry->first = (uint64_t)k * w->head.shard_rows;
    entry->samples = cmkd_shard_samples(&w->head, k);
  }
  CMKD_TRY(check_target(w, err));
  CMKD_TRY(cmkd_make_dirs(w->folder, err));
  CMKD_TRY(share_session(w, err));
  w->thread_count = threads > 0 ? threads : cmkd_cpu_count();
  return cmkd_writer_threads_start(w, err);
}

static cmkd_status writer_create(const char *path, cmkd_cache_writer **out, cmkd_error *err) {
  cmkd_cache_writer *w = calloc(1, sizeof *w);
  *out = w;
  if (!w) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a cache writer");
  w->session = (cmkd_lock)CMKD_LOCK_NONE;
  pthread_mutex_init(&w->mutex, NULL);
  pthread_mutex_init(&w->buffer_mutex, NULL);
  pthread_cond_init(&w->work, NULL);
  pthread_cond_init(&w->space, NULL);
  pthread_cond_init(&w->changed, NULL);
  w->path = strdup(path);
  w->dir = cmkd_path_dir(path);
  w->folder = cmkd_cache_folder(path);
  if (!w->path || !w->dir || !w->folder) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a cache writer");
  const char *slash = strrchr(w->folder, '/');
  w->folder_name = strdup(slash ? slash + 1 : w->folder);
  if (!w->folder_name) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a cache writer");
  if (!strcmp(w->folder_name, ".shards") || !path[0] || path[strlen(path) - 1] == '/')
    return cmkd_fail(err, CMKD_ERR_USAGE, "\"%s\": --out names a file such as teacher.h5", path);
  return CMKD_OK;
}

static cmkd_status opened(cmkd_status status, cmkd_cache_writer *w, cmkd_cache_writer **out) {
  if (status == CMKD_OK)
    *out = w;
  else
    cmkd_cache_writer_close(w);
  return status;
}

cmkd_status cmkd_cache_writer_open(const char *path, const cmkd_cache_spec *spec, cmkd_cache_writer **out,
                                   cmkd_error *err) {
  cmkd_cache_writer *w;
  const cmkd_codec *codec;
  *out = NULL;
  CMKD_TRY(cmkd_codec_find(spec->identity.codec, &codec, err));
  cmkd_status status = writer_create(path, &w, err);
  if (status == CMKD_OK) status = check_spec(path, spec, codec, &w->head, err);
  if (status == CMKD_OK) status = open_common(w, spec->threads, err);
  return opened(status, w, out);
}

/* The spec of any readable shard in the folder. */
static cmkd_status find_head(cmkd_cache_writer *w, cmkd_error *err) {
  DIR *dir = opendir(w->folder);
  if (!dir) return cmkd_fail(err, CMKD_ERR_IO, "%s: no such folder of shards; build a part first", w->folder);
  int found = 0;
  for (struct dirent *entry; !found && (entry = readdir(dir));) {
    size_t length = strlen(entry->d_name);
    if (length < 4 || strcmp(entry->d_name + length - 3, ".h5") != 0) continue;
    char *path = cmkd_path_join(w->folder, entry->d_name);
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    uint8_t *bytes = NULL;
    cmkd_user_block block;
    cmkd_shard_meta meta = {0};
    if (fd >= 0 && cmkd_user_block_read(fd, path, CMKD_USER_BLOCK_SHARD, &bytes, &block, NULL) == CMKD_OK)
      found = cmkd_shard_json_parse(block.json, block.json_size, block.file_size - block.block_size, path, &w->head,
                                    &meta, NULL) == CMKD_OK;
    if (fd >= 0) close(fd);
    cmkd_shard_meta_free(&meta);
    free(bytes);
    free(path);
  }
  closedir(dir);
  return found ? CMKD_OK : cmkd_fail(err, CMKD_ERR_FORMAT, "%s: holds no shard; build a part first", w->folder);
}

cmkd_status cmkd_cache_writer_join(const char *path, cmkd_cache_writer **out, cmkd_error *err) {
  cmkd_cache_writer *w;
  *out = NULL;
  cmkd_status status = writer_create(path, &w, err);
  if (status == CMKD_OK) status = find_head(w, err);
  if (status == CMKD_OK) status = open_common(w, 1, err);
  return opened(status, w, out);
}

void cmkd_cache_writer_close(cmkd_cache_writer *w) {
  if (!w) return;
  cmkd_cache_writer_abandon(w);
  cmkd_writer_threads_stop(w);
  if (w->session.fd >= 0 && w->folder) rmdir(w->folder); /* succeeds only when nothing was built */
  cmkd_lock_release(&w->session);
  cmkd_writer_buffers_free(w);
  cmkd_image_free(&w->image);
  pthread_mutex_destroy(&w->mutex);
  pthread_mutex_destroy(&w->buffer_mutex);
  pthread_cond_destroy(&w->work);
  pthread_cond_destroy(&w->space);
  pthread_cond_destroy(&w->changed);
  cmkd_cache_head_free(&w->head);
  free(w->entries);
  free(w->head_text);
  free(w->thin);
  free(w->path);
  free(w->dir);
  free(w->folder);
  free(w->folder_name);
  free(w);
}

uint32_t cmkd_cache_writer_shards(const cmkd_cache_writer *w) { return w->head.shards; }
uint32_t cmkd_cache_writer_chunk_rows(const cmkd_cache_writer *w) { return w->head.chunk_rows; }
void cmkd_cache_writer_range(const cmkd_cache_writer *w, uint32_t k, uint64_t *first, uint32_t *count) {
  *first = w->entries[k].first;
  *count = w->entries[k].samples;
}

static cmkd_status shard_create(cmkd_cache_writer *w, uint32_t k, cmkd_shard_work **out, cmkd_error *err) {
  cmkd_shard_work *s = calloc(1, sizeof *s);
  *out = s;
  if (!s) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for shard %u", k);
  s->lock = (cmkd_lock)CMKD_LOCK_NONE;
  s->meta.index = k;
  CMKD_TRY(cmkd_shard_meta_alloc(&s->meta, &w->head, err));
  s->rows = cmkd_shard_chunk_rows(&w->head, s->meta.samples);
  s->chunk_count = (uint64_t)w->head.views * s->meta.blocks;
  size_t n = s->meta.samples, cells = n * w->head.views;
  s->chunks = calloc(s->chunk_count, sizeof *s->chunks);
  s->seeds = malloc(cells * 8 + n * 8 + n * 4 +
                    (w->codec->row_numbers ? cells * 4 : 0)); /* seeds | ids | labels | max | range */
  if (!s->chunks || !s->seeds)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for shard %u (%zu rows); lower --shard-rows", k, cells);
  s->ids = s->seeds + cells;
  s->labels = (int32_t *)(s->ids + n);
  s->row_max = w->codec->row_numbers ? (uint16_t *)(s->labels + n) : NULL;
  s->row_range = s->row_max ? s->row_max + cells : NULL;
  return CMKD_OK;
}

cmkd_status cmkd_cache_writer_begin(cmkd_cache_writer *w, uint32_t k, cmkd_cache_shard_state *state, cmkd_error *err) {
  if (w->filling || k >= w->head.shards)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: shard %u cannot be begun now", w->path, k);
  CMKD_TRY(cmkd_writer_failed(w, err));
  char *shard = cmkd_writer_shard_path(w, k), *path = shard ? cmkd_format("%s.lock", shard) : NULL;
  cmkd_lock lock = CMKD_LOCK_NONE;
  int taken = 0;
  cmkd_status status =
      path ? cmkd_lock_take(path, 0, &lock, &taken, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a file name");
  free(shard);
  free(path);
  if (status != CMKD_OK) return status;
  if (!taken) {
    *state = CMKD_CACHE_SHARD_BUSY;
    return CMKD_OK;
  }
  int known = w->entries[k].block_sha256[0] != 0;
  if (cmkd_writer_check(w, k)) {
    cmkd_lock_release(&lock);
    pthread_mutex_lock(&w->mutex);
    if (!known) w->stats.reused_rows += (uint64_t)w->entries[k].samples * w->head.views;
    pthread_mutex_unlock(&w->mutex);
    *state = CMKD_CACHE_SHARD_DONE;
    return CMKD_OK;
  }
  status = shard_create(w, k, &w->filling, err);
  if (w->filling)
    w->filling->lock = lock;
  else
    cmkd_lock_release(&lock);
  if (status != CMKD_OK) cmkd_cache_writer_abandon(w);
  *state = CMKD_CACHE_SHARD_NEEDED;
  return status;
}

cmkd_status cmkd_cache_writer_samples(cmkd_cache_writer *w, const uint64_t *ids, const int32_t *labels,
                                      const uint64_t *seeds, cmkd_error *err) {
  cmkd_shard_work *s = w->filling;
  if (!s) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: no shard was begun", w->path);
  size_t n = s->meta.samples, views = w->head.views;
  for (size_t i = 0; i < n; i++) {
    if (labels[i] >= 0 && (uint32_t)labels[i] < w->head.classes) continue;
    return cmkd_fail(err, CMKD_ERR_VALUE, "sample %" PRIu64 ": label %d is outside 0..%u; is this the right data set?",
                     ids[i], labels[i], w->head.classes - 1);
  }
  memcpy(s->ids, ids, n * 8);
  memcpy(s->labels, labels, n * 4);
  for (size_t v = 0; v < views; v++)
    for (size_t i = 0; i < n; i++)
      s->seeds[v * n + i] = seeds[i * views + v];
  s->have_samples = 1;
  return CMKD_OK;
}

/* Rows [at, at + count) of one chunk; contiguous logits. */
static void fill(cmkd_cache_writer *w, uint32_t view, uint32_t first, uint32_t count, const float *logits,
                 size_t stride) {
  cmkd_shard_work *s = w->filling;
  size_t C = w->head.classes, n = s->meta.samples, row = C * (size_t)w->codec->item;
  cmkd_chunk_work *chunk = s->chunks + (size_t)view * s->meta.blocks + first / s->rows;
  uint8_t *target = chunk->items + first % s->rows * row;
  uint16_t *max = s->row_max ? s->row_max + view * n + first : NULL,
           *range = s->row_max ? s->row_range + view * n + first : NULL;
  if (w->thin)
    for (size_t i = 0; i < count; i++) {
      w->codec->thin(logits + i * stride, C, w->keep, w->thin);
      w->codec->encode(w->thin, 1, C, target + i * row, NULL, NULL);
    }
  else if (stride == C)
    w->codec->encode(logits, count, C, target, max, range);
  else
    for (size_t i = 0; i < count; i++)
      w->codec->encode(logits + i * stride, 1, C, target + i * row, max ? max + i : NULL, range ? range + i : NULL);
}

static cmkd_status check_values(cmkd_cache_writer *w, uint32_t view, uint32_t first, uint32_t count,
                                const float *logits, size_t stride, cmkd_error *err) {
  size_t C = w->head.classes;
  int64_t bad = -1;
  if (stride == C)
    bad = cmkd_codec_first_bad(logits, count * C, w->codec->limit);
  else
    for (size_t i = 0; i < count && bad < 0; i++) {
      int64_t at = cmkd_codec_first_bad(logits + i * stride, C, w->codec->limit);
      if (at >= 0) bad = (int64_t)(i * C) + at;
    }
  if (bad < 0) return CMKD_OK;
  size_t row = (size_t)bad / C, class = (size_t)bad % C;
  float value = logits[row * stride + class];
  uint64_t sample = w->filling->meta.first + first + row;
  if (value - value != 0)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "sample %" PRIu64
                     " (view %u, class %zu): the teacher's logit is not finite; check its weights and --mean/--std",
                     sample, view, class);
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "sample %" PRIu64
                   " (view %u, class %zu): logit %g is beyond +-%g, the range of codec %s; use --codec f32",
                   sample, view, class, (double)value, w->codec->limit, w->codec->name);
}

/* Edge chunks are stored full: zeros behind the last row. */
static uint8_t *new_items(cmkd_cache_writer *w, uint32_t rows, uint32_t used) {
  size_t row = w->head.classes * (size_t)w->codec->item;
  uint8_t *items = cmkd_writer_buffer_take(w);
  if (items) memset(items + used * row, 0, (rows - used) * row);
  return items;
}

cmkd_status cmkd_cache_writer_put(cmkd_cache_writer *w, uint32_t view, uint32_t first, uint32_t count,
                                  const float *logits, size_t stride, cmkd_error *err) {
  cmkd_shard_work *s = w->filling;
  if (!s || view >= w->head.views || first > s->meta.samples || count > s->meta.samples - first ||
      stride < w->head.classes)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: rows %u..%u of view %u are outside the shard", w->path, first,
                     first + count, view);
  CMKD_TRY(check_values(w, view, first, count, logits, stride, err));
  while (count) {
    uint32_t block = first / s->rows, left = (block + 1) * s->rows - first, step = count < left ? count : left;
    uint32_t whole = s->meta.samples - block * s->rows < s->rows ? s->meta.samples - block * s->rows : s->rows;
    uint64_t index = (uint64_t)view * s->meta.blocks + block;
    cmkd_chunk_work *chunk = s->chunks + index;
    if (!chunk->items && !chunk->filled) chunk->items = new_items(w, s->rows, whole);
    if (chunk->filled + step > whole)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: rows %u.. of view %u came twice", w->path, first, view);
    if (!chunk->items)
      return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for shard %u; lower --shard-rows", s->meta.index);
    fill(w, view, first, step, logits, stride);
    chunk->filled += step;
    if (chunk->filled == whole) {
      s->full++;
      CMKD_TRY(cmkd_writer_submit(w, s, index, err));
    }
    first += step;
    count -= step;
    logits += step * stride;
  }
  return CMKD_OK;
}

cmkd_status cmkd_cache_writer_end(cmkd_cache_writer *w, cmkd_error *err) {
  cmkd_shard_work *s = w->filling;
  if (!s || !s->have_samples || s->full != s->chunk_count)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: a shard was ended before it was filled", w->path);
  CMKD_TRY(cmkd_writer_seal(w, s, err));
  w->filling = NULL;
  return CMKD_OK;
}

void cmkd_cache_writer_abandon(cmkd_cache_writer *w) {
  if (!w->filling) return;
  cmkd_writer_drain(w, w->filling);
  cmkd_shard_work_free(w, w->filling);
  w->filling = NULL;
}

/* Begins the shard that sample w->added opens, waiting for another process that has it in work. */
static cmkd_status add_begin(cmkd_cache_writer *w, cmkd_error *err) {
  uint32_t k = (uint32_t)(w->added / w->head.shard_rows);
  cmkd_cache_shard_state state;
  for (;;) {
    CMKD_TRY(cmkd_cache_writer_begin(w, k, &state, err));
    if (state != CMKD_CACHE_SHARD_BUSY) break;
    nanosleep(&(struct timespec){0, 100000000}, NULL);
  }
  w->add_open = 1;
  w->add_skip = state == CMKD_CACHE_SHARD_DONE;
  if (w->filling) w->filling->have_samples = 1; /* they arrive with the rows */
  return CMKD_OK;
}

cmkd_status cmkd_cache_writer_add(cmkd_cache_writer *w, uint32_t count, const uint64_t *ids, const int32_t *labels,
                                  const uint64_t *seeds, const float *logits, cmkd_error *err) {
  size_t views = w->head.views, C = w->head.classes;
  while (count) {
    if (w->added >= w->head.samples)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: more than the promised %" PRIu64 " samples", w->path, w->head.samples);
    if (!w->add_open) CMKD_TRY(add_begin(w, err));
    uint32_t at = (uint32_t)(w->added % w->head.shard_rows),
             n = cmkd_shard_samples(&w->head, (uint32_t)(w->added / w->head.shard_rows));
    uint32_t step = count < n - at ? count : n - at;
    cmkd_shard_work *s = w->filling;
    for (uint32_t i = 0; !w->add_skip && i < step; i++) {
      if (labels[i] < 0 || (uint32_t)labels[i] >= C)
        return cmkd_fail(err, CMKD_ERR_VALUE, "sample %" PRIu64 ": label %d is outside 0..%zu", ids[i], labels[i],
                         C - 1);
      s->ids[at + i] = ids[i];
      s->labels[at + i] = labels[i];
      for (size_t v = 0; v < views; v++)
        s->seeds[v * n + at + i] = seeds[i * views + v];
    }
    for (uint32_t v = 0; !w->add_skip && v < views; v++)
      CMKD_TRY(cmkd_cache_writer_put(w, v, at, step, logits + v * C, views * C, err));
    if (at + step == n) {
      if (!w->add_skip) CMKD_TRY(cmkd_cache_writer_end(w, err));
      w->add_open = 0;
    }
    w->added += step;
    count -= step;
    ids += step;
    labels += step;
    seeds += step * views;
    logits += step * views * C;
  }
  return CMKD_OK;
}
