/* The seeds of all views of a sample, the clean one included: the one rule that makes a cache and a live teacher agree.
 * Over the rules of cmkd/views.h; pure functions for any thread. */
#ifndef CMKD_BASE_VIEWS_H
#define CMKD_BASE_VIEWS_H
#include "cmkd/views.h"

typedef struct cmkd_view_draw {
  uint64_t cache_seed;
  cmkd_policy policy;
  uint32_t views; /* of a sample, the clean one included */
  int all_variants;
  int clean_view; /* 1: the last view is the image as it is */
} cmkd_view_draw;
/* The seed of view `view` (below draw->views) of a sample. */
uint64_t cmkd_view_draw_seed(const cmkd_view_draw *draw, uint64_t sample_id, uint32_t view);
/* Of all its views: out (draw->views). */
void cmkd_view_draw_seeds(const cmkd_view_draw *draw, uint64_t sample_id, uint64_t *out);
#endif
