/* Views and orders are functions of their arguments: this program prints what a cache and a trainer will agree on
 * without either of them.
 *
 *     cc views.c $(pkg-config --cflags --libs cmkd) */
#include <inttypes.h>
#include <stdio.h>
#include "cmkd/views.h"

enum { CACHE_SEED = 1, TRAIN_SEED = 7, VIEWS = 4, SAMPLES = 10 };

int main(void) {
  const cmkd_policy policy = CMKD_AUGMENT_CROP_FLIP;
  const uint64_t sample = 3;

  /* the augmented views of one sample, as a cache of this seed holds them */
  uint64_t seeds[VIEWS];
  cmkd_view_seeds(CACHE_SEED, sample, VIEWS, policy, 0, seeds);
  for (int v = 0; v < VIEWS; v++) {
    const cmkd_view_transform t = cmkd_view_transform_of(policy, seeds[v]);
    printf("sample %" PRIu64 ", view %d: seed %016" PRIx64 ", shifted by (%d, %d)%s\n", sample, v, seeds[v], t.dy - 4,
           t.dx - 4, t.flip ? ", mirrored" : "");
  }
  const cmkd_view_transform clean = cmkd_view_transform_of(policy, cmkd_clean_seed(policy));
  printf("clean: shifted by (%d, %d)%s\n", clean.dy - 4, clean.dx - 4, clean.flip ? ", mirrored" : "");

  /* which view, and in which order, the epochs of a training run take: every view once in VIEWS epochs */
  for (uint32_t epoch = 0; epoch < VIEWS; epoch++) {
    uint32_t order[SAMPLES];
    cmkd_epoch_order(TRAIN_SEED, epoch, SAMPLES, 0, order);
    printf("epoch %u: view %u, samples", epoch + 1, cmkd_epoch_view(TRAIN_SEED, epoch, VIEWS));
    for (int i = 0; i < SAMPLES; i++)
      printf(" %u", order[i]);
    printf("\n");
  }
  return 0;
}
