/* Crop and flip, pixel by pixel: the oracle for kernels/cpu and kernels/cuda. Will not do: gather, normalise. */
#include "kernels/augment.h"

void cmkd_augment_ref(cmkd_policy policy, uint64_t seed, const uint8_t *source, uint8_t *target, int h, int w, int c) {
  cmkd_view_transform transform = cmkd_view_transform_of(policy, seed);
  for (int y = 0; y < h; y++)
    for (int x = 0; x < w; x++)
      for (int k = 0; k < c; k++) {
        int cropped_x = transform.flip ? w - 1 - x : x;
        int sy = y + transform.dy - CMKD_CROP_PAD, sx = cropped_x + transform.dx - CMKD_CROP_PAD;
        int inside = sy >= 0 && sy < h && sx >= 0 && sx < w;
        target[((int64_t)y * w + x) * c + k] = inside ? source[((int64_t)sy * w + sx) * c + k] : 0;
      }
}
