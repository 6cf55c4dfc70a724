/* Blocks of steps. See block.h. */
#include "train/block.h"
#include <stdlib.h>

#define BLOCK_BYTES (16 << 20) /* of a block's largest array: what stays in the caches of a large machine */

static int capacity(const cmkd_settings *s, int carries_logits) {
  const size_t row = carries_logits ? (size_t)s->session.classes * sizeof(float) : sizeof(uint64_t);
  const int64_t fits = BLOCK_BYTES / ((int64_t)s->batch * (int64_t)row);
  if (fits > CMKD_BLOCK_STEPS) return CMKD_BLOCK_STEPS;
  return fits < 1 ? 1 : (int)fits;
}

cmkd_status cmkd_block_create(const cmkd_source *source, cmkd_step_block **out, cmkd_error *err) {
  const cmkd_settings *s = source->settings;
  const int resident = source->in.resident != NULL, carries_logits = s->session.views && !resident;
  cmkd_step_block *b = *out = calloc(1, sizeof *b);
  if (!b) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for batches of %d", s->batch);
  b->capacity = capacity(s, carries_logits);
  size_t rows = (size_t)b->capacity * (size_t)s->batch;
  b->rows = malloc(rows * sizeof *b->rows);
  b->seeds = malloc(rows * sizeof *b->seeds);
  if (resident) b->index = malloc(rows * sizeof *b->index);
  if (carries_logits) b->teacher = malloc(rows * (size_t)s->session.classes * sizeof *b->teacher);
  if (b->rows && b->seeds && (b->index || !resident) && (b->teacher || !carries_logits)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for batches of %d", s->batch);
}

void cmkd_block_free(cmkd_step_block *b) {
  if (!b) return;
  free(b->rows);
  free(b->seeds);
  free(b->teacher);
  free(b->index);
  free(b);
}

cmkd_status cmkd_block_fill(cmkd_step_block *b, cmkd_source *source, int64_t first, int steps, cmkd_error *err) {
  const cmkd_settings *s = source->settings;
  const uint32_t batch = (uint32_t)s->batch;
  size_t at = 0;
  b->steps = b->done = 0;
  for (int i = 0; i < steps && i < b->capacity && source->at < source->n; i++) {
    uint32_t left = source->n - source->at, count = left < batch ? left : batch;
    const cmkd_source_rows out = {.rows = b->rows + at,
                                  .seeds = b->seeds + at,
                                  .teacher = b->teacher ? b->teacher + at * (size_t)s->session.classes : NULL,
                                  .index = b->index ? b->index + at : NULL};
    CMKD_TRY(cmkd_source_next(source, count, &out, err));
    cmkd_target teacher = {.values = out.teacher};
    if (source->in.resident)
      teacher = (cmkd_target){.resident = cmkd_resident_rows(source->in.resident), .index = out.index};
    b->step[i] = (cmkd_step){.count = (int)count,
                             .rows = out.rows,
                             .seeds = out.seeds,
                             .target[CMKD_TARGET_TEACHER] = teacher,
                             .lr = cmkd_schedule_rate(&s->schedule, (int)source->epoch, (int)(first + i)),
                             .epoch = (double)source->epoch + 1};
    at += count;
    b->steps++;
  }
  return CMKD_OK;
}
