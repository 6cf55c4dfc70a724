/* Writes a small cache and reads it back: usage: cache_writer [OUT.h5]. Without OUT it goes to a folder of its own
 * under $TMPDIR and is removed at the end. The "teacher" is a formula; a real one gives logits for the pixels that a
 * view's seed stands for (cmkd/views.h).
 *
 *     cc cache_writer.c $(pkg-config --cflags --libs cmkd) */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cmkd/cache.h"
#include "cmkd/cache_writer.h"
#include "cmkd/views.h"

enum { SAMPLES = 6, VIEWS = 2, CLASSES = 3, FEATURES = 2, SEED = 1 };

static float logit(uint64_t sample, uint32_t view, uint32_t c) {
  return (float)(sample % CLASSES == c) * 4 + 0.25f * (float)view;
}

/* One shard: its samples, then all rows of the logits and of the named array. */
static cmkd_status write_shard(cmkd_cache_writer *writer, uint32_t k, cmkd_error *err) {
  uint64_t first, ids[SAMPLES], seeds[SAMPLES * VIEWS];
  int32_t labels[SAMPLES];
  uint32_t count;
  cmkd_cache_writer_range(writer, k, &first, &count);
  for (uint32_t i = 0; i < count; i++) {
    ids[i] = first + i;
    labels[i] = (int32_t)(ids[i] % CLASSES);
    cmkd_view_seeds(SEED, ids[i], VIEWS, CMKD_AUGMENT_CROP_FLIP, 0, seeds + i * VIEWS);
  }
  CMKD_TRY(cmkd_cache_writer_samples(writer, ids, labels, seeds, err));
  for (uint32_t view = 0; view < VIEWS; view++) {
    float logits[SAMPLES * CLASSES], features[SAMPLES * FEATURES];
    for (uint32_t i = 0; i < count; i++) {
      for (uint32_t c = 0; c < CLASSES; c++)
        logits[i * CLASSES + c] = logit(ids[i], view, c);
      for (uint32_t f = 0; f < FEATURES; f++)
        features[i * FEATURES + f] = (float)(ids[i] + f);
    }
    CMKD_TRY(cmkd_cache_writer_put(writer, view, 0, count, logits, CLASSES, err));
    CMKD_TRY(cmkd_cache_writer_put_array(writer, "features", view, 0, count, features, FEATURES, err));
  }
  return cmkd_cache_writer_end(writer, err);
}

static cmkd_status write_cache(const char *path, cmkd_error *err) {
  const cmkd_cache_array features = {.name = "features", .dtype = CMKD_F16, .dims = 1, .shape = {FEATURES}};
  cmkd_cache_spec spec = {.samples = SAMPLES,
                          .views = VIEWS,
                          .classes = CLASSES,
                          .shard_samples = 4, /* two shards; 0 lets the library choose */
                          .arrays = &features,
                          .array_count = 1};
  memset(spec.identity.teacher_sha256, '0', 64); /* of the weight file */
  strcpy(spec.identity.teacher_name, "a formula");
  strcpy(spec.identity.codec, "f16");
  strcpy(spec.identity.dataset, "none");
  strcpy(spec.identity.split, "train");
  strcpy(spec.identity.rng_version, CMKD_RNG_VERSION);
  spec.identity.policy = CMKD_AUGMENT_CROP_FLIP;
  spec.identity.cache_seed = SEED;

  cmkd_cache_writer *writer;
  CMKD_TRY(cmkd_cache_writer_open(path, &spec, &writer, err));
  cmkd_status status = CMKD_OK;
  for (uint32_t k = 0; k < cmkd_cache_writer_shards(writer) && status == CMKD_OK; k++) {
    cmkd_cache_shard_state state;
    status = cmkd_cache_writer_begin(writer, k, &state, err);
    if (status == CMKD_OK && state == CMKD_CACHE_SHARD_NEEDED) status = write_shard(writer, k, err);
  }
  if (status == CMKD_OK) status = cmkd_cache_writer_finish(writer, err); /* fails while another process has a shard */
  cmkd_cache_writer_close(writer);
  return status;
}

static cmkd_status print_row(const char *path, cmkd_error *err) {
  cmkd_cache *cache;
  float logits[CLASSES], features[FEATURES];
  CMKD_TRY(cmkd_cache_open(path, &cache, err));
  cmkd_status status = cmkd_cache_read(cache, 1, 4, 1, logits, err);
  if (status == CMKD_OK) status = cmkd_cache_read_array(cache, "features", 1, 4, 1, features, err);
  if (status == CMKD_OK)
    printf("%" PRIu64 " samples in %u shards; sample 4, view 1: logits %g %g %g, features %g %g\n",
           cmkd_cache_get_info(cache)->samples, cmkd_cache_get_info(cache)->shards, (double)logits[0],
           (double)logits[1], (double)logits[2], (double)features[0], (double)features[1]);
  cmkd_cache_close(cache);
  return status;
}

/* What the cache in `folder` consists of, and the folder. */
static void remove_cache(const char *folder) {
  static const char *const names[] = {"/t.h5", "/t.shards/shard-00000-of-00002.h5",
                                      "/t.shards/shard-00001-of-00002.h5"};
  char path[1100];
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    snprintf(path, sizeof path, "%s%s", folder, names[i]);
    unlink(path);
  }
  snprintf(path, sizeof path, "%s/t.shards", folder);
  rmdir(path);
  rmdir(folder);
}

int main(int argc, char **argv) {
  char folder[1000] = "", own[1010];
  const char *path = argc > 1 ? argv[1] : own, *base = getenv("TMPDIR");
  if (argc < 2) {
    snprintf(folder, sizeof folder, "%s/cmkd-example-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(folder)) {
      perror(folder);
      return 1;
    }
    snprintf(own, sizeof own, "%s/t.h5", folder);
  }
  cmkd_error err;
  cmkd_status status = write_cache(path, &err);
  if (status == CMKD_OK) status = print_row(path, &err);
  if (status != CMKD_OK) fprintf(stderr, "%s\n", err.message);
  if (folder[0]) remove_cache(folder);
  return status == CMKD_OK ? 0 : 1;
}
