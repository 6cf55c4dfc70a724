/* Where the rows of a student's steps come from: which samples, under which seeds of their views, and what the teacher
 * says of them. Three kinds behind one interface: labels alone, a cache, a live teacher. All follow the contract of
 * cmkd/views.h, so that a cache and a live teacher with the same seeds give the same rows. The order of samples and
 * views depends on the student's seed, so every student has a source of its own; what sources read from is shared and
 * not changed. Knows nothing of networks, losses or results. */
#ifndef CMKD_TRAIN_SOURCE_H
#define CMKD_TRAIN_SOURCE_H
#include "cmkd/cache.h"
#include "cmkd/dataset.h"
#include "nets/teacher.h"
#include "train/resident.h"
#include "train/settings.h"

/* What rows are read from; all borrowed. */
typedef struct cmkd_source_inputs {
  const cmkd_dataset *data;
  cmkd_cache *cache;       /* of CMKD_SOURCE_CACHE, else NULL */
  cmkd_resident *resident; /* the cache's logits on the device, or NULL: they are streamed */
  cmkd_teacher *teacher;   /* of CMKD_SOURCE_TEACHER, else NULL */
  int threads;             /* of the cache stream; 0: all cores */
  uint64_t memory;         /* cap of the cache stream, bytes; 0: its default */
} cmkd_source_inputs;

typedef struct cmkd_source {
  cmkd_source_inputs in;
  const cmkd_settings *settings; /* borrowed */

  uint32_t n, held;    /* samples trained on, held out */
  uint32_t *position;  /* (n) positions in the cache, or in the split, rising */
  uint32_t *val_rows;  /* (held) sample ids */
  const uint64_t *ids; /* (cache samples) sample ids of the cache; NULL otherwise: position = id */

  uint32_t epoch, at, view; /* the epoch under way, the next place in its order, its view */
  uint32_t *order;          /* (n) positions of this epoch */
  cmkd_stream *stream;      /* of a cache that is not resident */
  uint64_t *view_seeds;     /* (cache samples) of the epoch's view; resident */

  /* The teacher batch that was computed last: `ahead_n` samples of the order, from place `ahead_at` on. */
  uint32_t ahead_at, ahead_n;
  uint32_t *ahead_rows;  /* (teacher batch) */
  uint64_t *ahead_seeds; /* (teacher batch) */
  float *ahead_logits;   /* (teacher batch, classes) */
} cmkd_source;

/* Where the next rows of an epoch are put. */
typedef struct cmkd_source_rows {
  uint32_t *rows;  /* (count) sample ids */
  uint64_t *seeds; /* (count) */
  float *teacher;  /* (count, classes); not touched without a teacher, and where logits are resident */
  uint32_t *index; /* (count) rows of the resident logits; NULL where logits are not resident */
} cmkd_source_rows;

/* The cache's samples must be those of the data set: ids inside it, labels equal. */
cmkd_status cmkd_source_check(cmkd_cache *cache, const cmkd_dataset *data, cmkd_error *err);
/* Chooses the held-out samples. */
cmkd_status cmkd_source_open(cmkd_source *source, const cmkd_settings *settings, const cmkd_source_inputs *inputs,
                             cmkd_error *err);
void cmkd_source_close(cmkd_source *source);
/* Starts epoch `epoch` (from 0) at place `at` of its order. */
cmkd_status cmkd_source_epoch(cmkd_source *source, uint32_t epoch, uint32_t at, cmkd_error *err);
/* The next `count` rows of the epoch. */
cmkd_status cmkd_source_next(cmkd_source *source, uint32_t count, const cmkd_source_rows *out, cmkd_error *err);
#endif
