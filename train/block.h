/* A block of steps: their rows, read from a source, and the arrays that a backend borrows while they run. */
#ifndef CMKD_TRAIN_BLOCK_H
#define CMKD_TRAIN_BLOCK_H
#include "kernels/backend.h"
#include "train/source.h"

enum { CMKD_BLOCK_STEPS = 64 }; /* the most a block may have */

typedef struct cmkd_step_block {
  int capacity;    /* steps that fit */
  int steps, done; /* filled, and of them run */
  cmkd_step step[CMKD_BLOCK_STEPS];
  uint32_t *rows;  /* (capacity * batch) */
  uint64_t *seeds; /* (capacity * batch) */
  float *teacher;  /* (capacity * batch, classes); NULL without a teacher, and where its logits are resident */
  uint32_t *index; /* (capacity * batch) rows of resident logits; NULL without those */
} cmkd_step_block;

cmkd_status cmkd_block_create(const cmkd_source *source, cmkd_step_block **out, cmkd_error *err);
void cmkd_block_free(cmkd_step_block *block);
/* Replaces what the block holds by the next `steps` steps of the source (at most what the block holds and the epoch
 * has left); the first of them is step `first` of its epoch, from 0. */
cmkd_status cmkd_block_fill(cmkd_step_block *block, cmkd_source *source, int64_t first, int steps, cmkd_error *err);
#endif
