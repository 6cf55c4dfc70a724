/* The pixels of views: images gathered by row and transformed by seed, the same bytes on every device. */
#ifndef CMKD_KERNELS_AUGMENT_H
#define CMKD_KERNELS_AUGMENT_H
#include <stdint.h>
#include "cmkd/views.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Zeros around an image before it is cropped: dy = dx = CMKD_CROP_PAD leaves it where it was (cmkd/views.h). */
#define CMKD_CROP_PAD 4

/* Which images, and how each is transformed. Pointers are memory of the device that computes. */
typedef struct cmkd_gather {
  cmkd_policy policy;
  const uint8_t *pixels; /* (n, h, w, c) */
  const uint32_t *rows;  /* (count), each below n */
  const uint64_t *seeds; /* (count); NULL: every row clean */
  int count, h, w, c;
} cmkd_gather;

/* One image in plain loops, source and target (h, w, c), not overlapping: what the others are tested against
 * (kernels/ref/augment.c). */
void cmkd_augment_ref(cmkd_policy policy, uint64_t seed, const uint8_t *source, uint8_t *target, int h, int w, int c);
/* target (count, h, w, c). Runs on the calling thread, as the next one does (kernels/cpu/augment.c). */
void cmkd_augment_bytes_cpu(const cmkd_gather *gather, uint8_t *target);
/* Normalised as well: target (count, h, w, stride_c), x = (pixel / 255 - mean) / std, channels from c on 0. Pixels
 * outside the image are 0 before they are normalised. */
void cmkd_augment_cpu(const cmkd_gather *gather, const float *mean, const float *std, int stride_c, float *target);
#ifdef __cplusplus
}
#endif
#endif
