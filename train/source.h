/* Where the rows of a step come from: which samples, moved by which seeds, and what the teacher says of them. Three
 * kinds behind one face: labels alone, a cache, a live teacher. A cache's logits stay on the device where they fit:
 * then a step names rows instead of carrying them. All follow the contract of cmkd/views.h, so that a cache and a live
 * teacher with the same seeds give the same rows. Knows nothing of students, losses or epochs' results. */
#ifndef CMKD_TRAIN_SOURCE_H
#define CMKD_TRAIN_SOURCE_H
#include <stdint.h>
#include "cmkd/cache.h"
#include "cmkd/dataset.h"
#include "nets/teacher.h"
#include "train/config.h"

typedef struct cmkd_source {
  const cmkd_settings *settings; /* borrowed, like data, cache and teacher */
  const cmkd_dataset *data;
  cmkd_cache *cache;     /* of CMKD_SOURCE_CACHE, else NULL */
  cmkd_teacher *teacher; /* of CMKD_SOURCE_TEACHER, else NULL */
  int threads;           /* of the cache stream */
  uint64_t memory;       /* cap of the cache stream, bytes; 0: its default */

  uint32_t n, held;    /* samples trained on, held out */
  uint32_t *position;  /* (n) positions in the cache, or in the split, rising */
  uint32_t *val_rows;  /* (held) rows of the split */
  const uint64_t *ids; /* (cache samples) sample ids of the cache; NULL otherwise: position = row */

  uint32_t epoch, at, view; /* the epoch under way, the next place in its order, its view */
  uint32_t *order;          /* (n) positions of this epoch */
  cmkd_stream *stream;
  const cmkd_backend_table *table;
  cmkd_be_rows *resident;       /* the cache's logits on the device, view by view as epochs need them; or NULL */
  uint8_t *loaded;              /* (views): that view's rows are on the device */
  uint64_t *view_seeds;         /* (cache samples) of the epoch's view, when resident */
  uint32_t window_at, window_n; /* live: order places whose teacher rows are in `window` */
  uint32_t *window_rows;
  uint64_t *window_seeds;
  float *window; /* (teacher batch, classes) */
} cmkd_source;

/* Chooses the held-out samples and checks the cache's ids and labels against the data set. */
cmkd_status cmkd_source_open(cmkd_source *source, const cmkd_settings *settings, const cmkd_dataset *data,
                             cmkd_cache *cache, cmkd_teacher *teacher, cmkd_error *err);
void cmkd_source_close(cmkd_source *source);
/* Keeps the cache's logits on the backend's device from now on, if the backend can and they fit; nothing happens
 * otherwise. */
cmkd_status cmkd_source_reside(cmkd_source *source, const cmkd_backend_table *table, cmkd_backend *backend,
                               cmkd_error *err);
/* Starts epoch `epoch` (from 0) at place `at` of its order. */
cmkd_status cmkd_source_epoch(cmkd_source *source, uint32_t epoch, uint32_t at, cmkd_error *err);
/* The next `count` rows of the epoch: rows, seeds (count), teacher (count, classes; untouched without a teacher).
 * Resident: index (count), rows of source->resident, and teacher untouched. */
cmkd_status cmkd_source_next(cmkd_source *source, uint32_t count, uint32_t *rows, uint64_t *seeds, float *teacher,
                             uint32_t *index, cmkd_error *err);
#endif
