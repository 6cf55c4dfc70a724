/* Pixel moves: crop and flip of uint8 images by a seed, the same bytes on every device. */
#ifndef CMKD_KERNELS_AUGMENT_H
#define CMKD_KERNELS_AUGMENT_H
#include <stdint.h>
#include "cmkd/views.h"

/* Plain: source and target (h, w, c) uint8, not overlapping. The oracle for the others (kernels/ref/augment.c). */
void cmkd_augment_ref(cmkd_policy policy, uint64_t seed, const uint8_t *source, uint8_t *target, int h, int w, int c);
/* Gather + move + normalise: rows of `pixels` (n, h, w, c) into NHWC float with `stride_c` >= c channels, the rest zero
 * (kernels/cpu/augment.c). x = (pixel / 255 - mean) / std; pixels outside the image are pixel 0, normalised like any
 * other. */
void cmkd_augment_cpu(cmkd_policy policy, const uint8_t *pixels, const uint32_t *rows, const uint64_t *seeds, int count,
                      int h, int w, int c, const float *mean, const float *std, int stride_c, float *target);
/* The same moves, bytes out: target (count, h, w, c). */
void cmkd_augment_bytes_cpu(cmkd_policy policy, const uint8_t *pixels, const uint32_t *rows, const uint64_t *seeds,
                            int count, int h, int w, int c, uint8_t *target);
#endif
