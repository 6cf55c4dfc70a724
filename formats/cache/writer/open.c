/* Opening and closing a writer: is the spec a cache's, does its place belong to it? */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cpu.h"
#include "base/file.h"
#include "formats/cache/parse.h"
#include "formats/cache/paths.h"
#include "formats/cache/writer/writer.h"

#define CHUNK_BYTES 200000u      /* raw bytes of a chunk: at least this, in a power of two of samples */
#define SHARD_BYTES (4ull << 20) /* raw bytes of a shard, unless that makes over 1024 of them */
#define SHARD_BYTES_MOST (128ull << 20)

static uint64_t chunk_samples_for(uint64_t row_bytes, uint32_t asked) {
  uint64_t rows = 1;
  if (asked) return asked;
  while (rows * row_bytes < CHUNK_BYTES)
    rows *= 2;
  return rows;
}

/* Samples of shards and chunks, where the spec leaves them open. The layouts are there but for their chunk_samples. */
static void choose_geometry(const cmkd_cache_spec *spec, cmkd_cache_config *config) {
  const uint64_t chunk = chunk_samples_for(cmkd_layout_row_bytes(config->layouts), spec->chunk_samples),
                 most = spec->samples < INT32_MAX ? spec->samples : INT32_MAX;
  uint64_t row = 0;
  for (uint32_t a = 0; a < config->layout_count; a++)
    row += cmkd_layout_row_bytes(config->layouts + a);
  uint64_t target = row * spec->views * spec->samples / 1024;
  if (target < SHARD_BYTES) target = SHARD_BYTES;
  if (target > SHARD_BYTES_MOST) target = SHARD_BYTES_MOST;
  uint64_t rows = target / (row * spec->views) / chunk * chunk;
  if (rows < chunk) rows = chunk;
  if (spec->shard_samples) rows = spec->shard_samples;
  if (rows > most) rows = most;
  config->shard_samples = (uint32_t)rows;
  uint64_t shards = (spec->samples + rows - 1) / rows;
  config->shards = shards > UINT32_MAX ? UINT32_MAX : (uint32_t)shards;
  for (uint32_t a = 0; a < config->layout_count; a++) {
    const cmkd_array_layout *layout = config->layouts + a;
    uint64_t of_chunk =
        chunk_samples_for(cmkd_layout_row_bytes(layout), a ? spec->arrays[a - 1].chunk_samples : spec->chunk_samples);
    config->layouts[a].array.chunk_samples = (uint32_t)(of_chunk < rows ? of_chunk : rows);
  }
}

/* The layouts of the logits and of the named arrays. */
static cmkd_status take_layouts(const char *path, const cmkd_cache_spec *spec, const cmkd_codec *codec,
                                cmkd_cache_config *config, cmkd_error *err) {
  cmkd_layout_of_logits(config, codec, 0);
  if (spec->array_count > CMKD_CACHE_MAX_ARRAYS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u named arrays; at most %d", path, spec->array_count,
                     CMKD_CACHE_MAX_ARRAYS);
  for (uint32_t i = 0; i < spec->array_count; i++) {
    cmkd_array_layout *layout = config->layouts + config->layout_count;
    *layout = (cmkd_array_layout){.array = spec->arrays[i]};
    const char *bad = cmkd_layout_check(layout);
    uint32_t same_name;
    if (bad)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: the %s of named array %u (\"%.40s\") is none that a cache can hold",
                       path, bad, i + 1, layout->array.name);
    if (cmkd_layout_find(config, config->layout_count, layout->array.name, &same_name))
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: two named arrays are called \"%s\"", path, layout->array.name);
    for (int d = layout->array.dims; d < CMKD_CACHE_ARRAY_DIMS; d++)
      layout->array.shape[d] = 0;
    config->layout_count++;
  }
  return CMKD_OK;
}

static cmkd_status take_class_names(const cmkd_cache_spec *spec, cmkd_cache_config *config, cmkd_error *err) {
  if (!spec->class_names) return CMKD_OK;
  config->class_names = calloc(spec->classes, sizeof *config->class_names);
  for (uint32_t c = 0; config->class_names && c < spec->classes; c++)
    if (!(config->class_names[c] = strdup(spec->class_names[c]))) {
      cmkd_cache_config_free(config);
      break;
    }
  return config->class_names ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for class names");
}

static int is_sha256(const char *text) { return strspn(text, "0123456789abcdef") == 64 && !text[64]; }

/* The first field that no reader would accept, or NULL. */
static const char *bad_identity(const cmkd_cache_identity *id) {
  const struct {
    const char *name, *text;
    size_t size;
  } texts[] = {{"teacher_sha256", id->teacher_sha256, sizeof id->teacher_sha256},
               {"teacher_arch", id->teacher_arch, sizeof id->teacher_arch},
               {"teacher_name", id->teacher_name, sizeof id->teacher_name},
               {"precision", id->precision, sizeof id->precision},
               {"dataset", id->dataset, sizeof id->dataset},
               {"split", id->split, sizeof id->split},
               {"fingerprint", id->fingerprint, sizeof id->fingerprint},
               {"rng_version", id->rng_version, sizeof id->rng_version},
               {"codec", id->codec, sizeof id->codec},
               {"tool_version", id->tool_version, sizeof id->tool_version}};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    if (!memchr(texts[i].text, 0, texts[i].size)) return texts[i].name;
  if (id->fingerprint[0] && !is_sha256(id->fingerprint)) return "fingerprint";
  if (id->channels < 0 || id->channels > 3) return "channels";
  for (int c = 0; c < id->channels; c++)
    if (!(fabsf(id->mean[c]) < 1e30f && fabsf(id->std[c]) < 1e30f)) return "mean or std";
  if (id->teacher_batch < 0 || id->teacher_batch > 1 << 24) return "teacher_batch";
  if (!(id->precision_error >= 0 && id->precision_error < 1e30)) return "precision_error";
  if ((int)id->policy < CMKD_AUGMENT_NONE || (int)id->policy > CMKD_AUGMENT_CROP_FLIP) return "policy";
  return NULL;
}

static cmkd_status check_spec(const char *path, const cmkd_cache_spec *spec, cmkd_cache_config *config,
                              cmkd_error *err) {
  const cmkd_codec *codec;
  const char *bad = bad_identity(&spec->identity);
  if (bad) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: the identity's %s is none that a cache can hold", path, bad);
  CMKD_TRY(cmkd_codec_find(spec->identity.codec, &codec, err));
  if (!spec->samples || spec->samples > UINT32_MAX)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %llu samples; a cache has 1 to %u", path,
                     (unsigned long long)spec->samples, UINT32_MAX);
  if (!spec->views || spec->views > CMKD_CACHE_MAX_VIEWS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u views; a cache has 1 to %d", path, spec->views, CMKD_CACHE_MAX_VIEWS);
  if (!spec->classes || spec->classes > CMKD_CACHE_MAX_CLASSES)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u classes; a cache has 1 to %d", path, spec->classes,
                     CMKD_CACHE_MAX_CLASSES);
  if (!is_sha256(spec->identity.teacher_sha256))
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: the teacher's SHA-256 is missing", path);
  if (codec->thin && cmkd_codec_keep(spec->identity.codec) >= spec->classes)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: codec %s keeps all of %u logits; use f16", path, spec->identity.codec,
                     spec->classes);
  config->identity = spec->identity;
  config->samples = spec->samples;
  config->views = spec->views;
  config->classes = spec->classes;
  CMKD_TRY(take_layouts(path, spec, codec, config, err));
  choose_geometry(spec, config);
  if (config->shards > CMKD_CACHE_MAX_SHARDS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: %u shards; at most %d: put more samples into one", path, config->shards,
                     CMKD_CACHE_MAX_SHARDS);
  for (uint32_t a = 0; a < config->layout_count; a++)
    if (cmkd_layout_chunk_bytes(config->layouts + a) > CMKD_CACHE_CHUNK_LIMIT)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s: chunks of %u samples are over %u bytes; use smaller chunks", path,
                       config->layouts[a].array.chunk_samples, CMKD_CACHE_CHUNK_LIMIT);
  return take_class_names(spec, config, err);
}

/* What stands under PATH already? Nothing, or a master of this same cache: go on. A damaged master is replaced; all
 * else is refused. */
static cmkd_status check_target(const cmkd_cache_writer *w, cmkd_error *err) {
  int fd = open(w->path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return CMKD_OK;
  if (fd < 0)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: exists and cannot be read (%s); choose another name", w->path,
                     strerror(errno));
  uint8_t *bytes = NULL, start[8] = {0};
  cmkd_user_block block;
  cmkd_master_meta meta = {0};
  ssize_t got = pread(fd, start, sizeof start, 0);
  cmkd_status status = cmkd_user_block_read(fd, w->path, CMKD_USER_BLOCK_MASTER, &bytes, &block, NULL);
  if (status == CMKD_OK) status = cmkd_master_json_parse(block.json, block.json_size, w->path, &meta, NULL);
  close(fd);
  free(bytes);
  if (status != CMKD_OK) {
    if (got == 8 && !memcmp(start, cmkd_user_block_magic, 8)) return CMKD_OK;
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: exists and is not a cache; choose another name or move it away",
                     w->path);
  }
  int same = cmkd_cache_config_is(&meta.config, w->config_text);
  if (!same) {
    cmkd_fail(err, CMKD_ERR_MISMATCH,
              "%s: holds another cache (%s %s, %" PRIu64 " samples, %u views, %s, seed %" PRIu64
              "); choose another name, or remove it and %s",
              w->path, meta.config.identity.dataset, meta.config.identity.split, meta.config.samples, meta.config.views,
              meta.config.identity.codec, meta.config.identity.cache_seed, w->folder);
  }
  cmkd_master_meta_free(&meta);
  return same ? CMKD_OK : CMKD_ERR_MISMATCH;
}

static cmkd_status share_build_lock(cmkd_cache_writer *w, cmkd_error *err) {
  char word[CMKD_SHA256_HEX],
      *path = cmkd_format("%s.lock", w->path),
      *refusal = cmkd_format(
          "%s: another cmkd-cache is building a different cache there now; choose another name or wait for it",
          w->path);
  cmkd_sha256(w->config_text, strlen(w->config_text), word);
  cmkd_status status = path && refusal ? cmkd_lock_share(path, word, refusal, &w->build_lock, err)
                                       : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory");
  free(path);
  free(refusal);
  return status;
}

static cmkd_status open_common(cmkd_cache_writer *w, int threads, cmkd_error *err) {
  const cmkd_codec *codec = w->config.layouts[0].codec;
  w->keep = cmkd_codec_keep(w->config.identity.codec);
  w->thin = codec->thin ? malloc(w->config.classes * sizeof *w->thin) : NULL;
  if (codec->thin && !w->thin) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", w->path);
  w->config_text = cmkd_cache_config_text(&w->config);
  w->entries = calloc(w->config.shards, sizeof *w->entries);
  if (!w->config_text)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s: a name (teacher, class) is not UTF-8, or memory is short", w->path);
  if (!w->entries) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory for %u shards", w->path, w->config.shards);
  for (uint32_t k = 0; k < w->config.shards; k++) {
    cmkd_shard_entry *entry = w->entries + k;
    cmkd_shard_name(&w->config, k, entry->file);
    entry->first = (uint64_t)k * w->config.shard_samples;
    entry->samples = cmkd_shard_samples(&w->config, k);
  }
  CMKD_TRY(check_target(w, err));
  CMKD_TRY(cmkd_make_dirs(w->folder, err));
  CMKD_TRY(share_build_lock(w, err));
  w->thread_count = threads > 0 ? threads : cmkd_cpu_count();
  return cmkd_writer_threads_start(w, err);
}

static cmkd_status writer_create(const char *path, cmkd_cache_writer **out, cmkd_error *err) {
  cmkd_cache_writer *w = calloc(1, sizeof *w);
  *out = w;
  if (!w) return cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a cache writer");
  w->build_lock = (cmkd_lock)CMKD_LOCK_NONE;
  pthread_mutex_init(&w->mutex, NULL);
  pthread_mutex_init(&w->buffer_mutex, NULL);
  pthread_cond_init(&w->job, NULL);
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
    return cmkd_fail(err, CMKD_ERR_USAGE, "\"%s\": a cache is a file such as teacher.h5", path);
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
  *out = NULL;
  cmkd_status status = writer_create(path, &w, err);
  if (status == CMKD_OK) status = check_spec(path, spec, &w->config, err);
  if (status == CMKD_OK) status = open_common(w, spec->threads, err);
  return opened(status, w, out);
}

/* The configuration of any readable shard in the folder. */
static cmkd_status find_config(cmkd_cache_writer *w, cmkd_error *err) {
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
      found = cmkd_shard_json_parse(block.json, block.json_size, block.file_size - block.block_size, path, &w->config,
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
  if (status == CMKD_OK) status = find_config(w, err);
  if (status == CMKD_OK && w->config.unknown_arrays)
    status = cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                       "%s: holds named arrays of a newer cmkd-cache; finish it with that one", w->folder);
  if (status == CMKD_OK) status = open_common(w, 1, err);
  return opened(status, w, out);
}

void cmkd_cache_writer_close(cmkd_cache_writer *w) {
  if (!w) return;
  cmkd_cache_writer_abandon(w);
  cmkd_writer_threads_stop(w);
  if (w->build_lock.fd >= 0 && w->folder) rmdir(w->folder); /* succeeds only when nothing was built */
  cmkd_lock_release(&w->build_lock);
  cmkd_writer_buffers_free(w);
  cmkd_file_image_free(&w->image);
  pthread_mutex_destroy(&w->mutex);
  pthread_mutex_destroy(&w->buffer_mutex);
  pthread_cond_destroy(&w->job);
  pthread_cond_destroy(&w->space);
  pthread_cond_destroy(&w->changed);
  cmkd_cache_config_free(&w->config);
  free(w->entries);
  free(w->config_text);
  free(w->thin);
  free(w->path);
  free(w->dir);
  free(w->folder);
  free(w->folder_name);
  free(w);
}

uint32_t cmkd_cache_writer_shards(const cmkd_cache_writer *w) { return w->config.shards; }
uint32_t cmkd_cache_writer_chunk_samples(const cmkd_cache_writer *w) {
  return w->config.layouts[0].array.chunk_samples;
}
void cmkd_cache_writer_range(const cmkd_cache_writer *w, uint32_t k, uint64_t *first, uint32_t *count) {
  *first = w->entries[k].first;
  *count = w->entries[k].samples;
}
