/* Opens a data set and replays a view of its first image: the bytes that a teacher saw before normalisation.
 *
 *     cc dataset.c $(pkg-config --cflags --libs cmkd)
 *     ./a.out fashion-mnist            # or mnist:DIR, cifar10:DIR, cifar100:DIR */
#include <stdio.h>
#include <stdlib.h>
#include "cmkd/dataset.h"
#include "cmkd/views.h"

enum { CACHE_SEED = 1 };

/* Two rows of text a line: one channel, eight shades. */
static void draw(const uint8_t *image, const cmkd_dataset *data) {
  for (int y = 0; y < data->height; y += 2) {
    for (int x = 0; x < data->width; x++)
      putchar(" .:-=+*#"[image[(y * data->width + x) * data->channels] / 32]);
    putchar('\n');
  }
}

int main(int argc, char **argv) {
  cmkd_error err;
  cmkd_dataset *data;
  if (argc != 2) {
    fprintf(stderr, "usage: dataset NAME[:DIR]\n");
    return 2;
  }
  if (cmkd_dataset_open(argv[1], "train", NULL, &data, &err) != CMKD_OK) {
    fprintf(stderr, "%s\n", err.message);
    return 1;
  }
  printf("%s/%s: %u images of %d x %d x %d, %d classes, fingerprint %.16s\n", data->name, data->split, data->n,
         data->height, data->width, data->channels, data->classes, data->fingerprint);

  const uint32_t rows[2] = {0, 0};
  cmkd_policy policy;
  int status = 1;
  uint8_t *pixels = malloc(2 * (size_t)data->height * (size_t)data->width * (size_t)data->channels);
  if (pixels && cmkd_dataset_policy(argv[1], &policy, &err) == CMKD_OK) {
    const uint64_t seeds[2] = {cmkd_clean_seed(policy), cmkd_view_seed(CACHE_SEED, rows[1], 0, policy, 0)};
    if (cmkd_dataset_replay(data, policy, rows, seeds, 2, pixels, &err) == CMKD_OK) {
      printf("image 0, label %d, as it is and under view 0 of cache seed %d (%s):\n", data->labels[0], CACHE_SEED,
             cmkd_policy_name(policy));
      draw(pixels, data);
      draw(pixels + (size_t)data->height * (size_t)data->width * (size_t)data->channels, data);
      status = 0;
    }
  }
  if (status != 0) fprintf(stderr, "%s\n", pixels ? err.message : "out of memory");
  free(pixels);
  cmkd_dataset_close(data);
  return status;
}
