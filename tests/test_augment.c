/* The CPU's pixel moves and normalisation against the plain loops. */
#include "tests/support.h"
#include "kernels/augment.h"
#include "base/rng.h"

static void check_shape(cmkd_policy policy, int h, int w, int c, int stride_c) {
  static const float mean[] = {0.5071f, 0.4867f, 0.4408f, 0.3f, 0.1f, 0.2f},
                     std[] = {0.2675f, 0.2565f, 0.2761f, 0.3f, 0.2f, 0.4f};
  size_t image = (size_t)h * w * c, floats = (size_t)h * w * stride_c;
  uint32_t n = 5, count = cmkd_policy_variants(policy) + 1, *rows = malloc(count * sizeof *rows);
  uint64_t *seeds = malloc(count * sizeof *seeds);
  uint8_t *pixels = malloc(n * image), *bytes = malloc(count * image), *expected = malloc(image);
  float *out = malloc(count * floats * sizeof *out);
  cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, (uint64_t)h);
  for (size_t i = 0; i < n * image; i++)
    pixels[i] = (uint8_t)cmkd_rng_u32(&rng);
  for (uint32_t i = 0; i < count; i++) {
    rows[i] = cmkd_rng_below(&rng, n);
    seeds[i] = i;
  }
  seeds[count - 1] = cmkd_clean_seed(policy);
  memset(out, 0xff, count * floats * sizeof *out);
  cmkd_gather gather = {policy, pixels, rows, seeds, (int)count, h, w, c};
  cmkd_augment_bytes_cpu(&gather, bytes);
  cmkd_augment_cpu(&gather, mean, std, stride_c, out);
  for (uint32_t i = 0; i < count; i++) {
    cmkd_augment_ref(policy, seeds[i], pixels + rows[i] * image, expected, h, w, c);
    assert_memory_equal(bytes + i * image, expected, image);
    for (int p = 0; p < h * w; p++)
      for (int k = 0; k < stride_c; k++) {
        float want = k < c ? ((float)expected[p * c + k] / 255.0f - mean[k]) / std[k] : 0.0f;
        assert_memory_equal(&out[i * floats + (size_t)(p * stride_c + k)], &want, 4);
      }
  }
  gather.seeds = NULL;
  gather.count = 1;
  cmkd_augment_bytes_cpu(&gather, bytes);
  assert_memory_equal(bytes, pixels + rows[0] * image, image);
  free(out);
  free(expected);
  free(bytes);
  free(pixels);
  free(seeds);
  free(rows);
}

static void equals_reference(void **state) {
  (void)state;
  static const int shapes[][4] = {{28, 28, 1, 1}, {28, 28, 1, 8}, {32, 32, 3, 3}, {32, 32, 3, 4},
                                  {5, 9, 3, 8},   {3, 2, 2, 2},   {1, 1, 3, 3},   {7, 4, 6, 8}};
  for (int p = 0; p < 4; p++)
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++)
      check_shape((cmkd_policy)p, shapes[k][0], shapes[k][1], shapes[k][2], shapes[k][3]);
}

/* By hand: one row of four, moved one to the left, then flipped. */
static void by_hand(void **state) {
  (void)state;
  const uint8_t source[] = {1, 2, 3, 4};
  uint8_t out[4];
  uint64_t variant = 1 + 2 * 5 + 18 * 4; /* flip, dx 5, dy 4 */
  cmkd_augment_ref(CMKD_AUGMENT_CROP_FLIP, variant, source, out, 1, 4, 1);
  assert_memory_equal(out, ((uint8_t[]){0, 4, 3, 2}), 4);
  cmkd_augment_ref(CMKD_AUGMENT_CROP_FLIP, variant - 1, source, out, 1, 4, 1);
  assert_memory_equal(out, ((uint8_t[]){2, 3, 4, 0}), 4);
  cmkd_augment_ref(CMKD_AUGMENT_CROP_FLIP, variant + 18, source, out, 1, 4, 1); /* one down: nothing left */
  assert_memory_equal(out, ((uint8_t[]){0, 0, 0, 0}), 4);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(equals_reference), cmocka_unit_test(by_hand)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
