/* Reads a cache as a training loop does: usage: cache CACHE.h5. Prints who made it, then streams the rows of one epoch
 * in shuffled order and prints how often the teacher's largest logit is the label.
 *
 *     cc cache.c $(pkg-config --cflags --libs cmkd) */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "cmkd/cache.h"
#include "cmkd/views.h"

enum { BATCH = 256, TRAIN_SEED = 7, EPOCH = 0 };

static void print_identity(const cmkd_cache_info *info) {
  const cmkd_cache_identity *id = &info->identity;
  printf("teacher %s (%.16s), data %s/%s, views %s\n", id->teacher_name, id->teacher_sha256, id->dataset, id->split,
         cmkd_policy_name(id->policy));
  printf("%" PRIu64 " samples, %u views, %u classes, %s, fingerprint %.16s\n", info->samples, info->views,
         info->classes, id->codec, info->content_sha256);
  for (uint32_t a = 0; a < info->array_count; a++)
    printf("array %s: %s, %u numbers a row\n", info->arrays[a].name, cmkd_dtype_name(info->arrays[a].dtype),
           info->arrays[a].elements);
}

static uint32_t argmax(const float *row, uint32_t classes) {
  uint32_t best = 0;
  for (uint32_t c = 1; c < classes; c++)
    if (row[c] > row[best]) best = c;
  return best;
}

/* All samples once, in the order and with the view of that epoch. */
static cmkd_status stream_epoch(cmkd_cache *cache, const uint32_t *order, float *rows, cmkd_error *err) {
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const uint32_t n = (uint32_t)info->samples, view = cmkd_epoch_view(TRAIN_SEED, EPOCH, info->views);
  const int32_t *labels;
  uint64_t seeds[BATCH]; /* each says which pixels the row belongs to */
  uint32_t agree = 0;
  cmkd_stream *stream;
  CMKD_TRY(cmkd_cache_labels(cache, &labels, err));
  CMKD_TRY(cmkd_stream_open(cache, view, order, n, NULL, &stream, err));
  cmkd_status status = CMKD_OK;
  for (uint32_t at = 0, count; at < n && status == CMKD_OK; at += count) {
    count = n - at < BATCH ? n - at : BATCH;
    status = cmkd_stream_next(stream, count, rows, seeds, err);
    for (uint32_t i = 0; i < count && status == CMKD_OK; i++)
      agree += argmax(rows + (size_t)i * info->classes, info->classes) == (uint32_t)labels[order[at + i]];
  }
  cmkd_stream_free(stream);
  if (status == CMKD_OK) printf("view %u: the teacher is right on %u of %u samples\n", view, agree, n);
  return status;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: cache CACHE.h5\n");
    return 2;
  }
  cmkd_error err;
  cmkd_cache *cache;
  if (cmkd_cache_open(argv[1], &cache, &err) != CMKD_OK) {
    fprintf(stderr, "%s\n", err.message);
    return 1;
  }
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  print_identity(info);
  uint32_t *order = malloc(info->samples * sizeof *order);
  float *rows = malloc((size_t)BATCH * info->classes * sizeof *rows);
  cmkd_status status = CMKD_ERR_MEMORY;
  if (order && rows) {
    cmkd_epoch_order(TRAIN_SEED, EPOCH, (uint32_t)info->samples, 0, order);
    status = stream_epoch(cache, order, rows, &err);
    if (status != CMKD_OK) fprintf(stderr, "%s\n", err.message);
  }
  free(order);
  free(rows);
  cmkd_cache_close(cache);
  return status == CMKD_OK ? 0 : 1;
}
