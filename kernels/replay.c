/* Views' pixels for other programs: what kernels/augment.h computes, checked and on all cores. */
#include <stddef.h>
#include "cmkd/dataset.h"
#include "kernels/augment.h"

cmkd_status cmkd_dataset_replay(const cmkd_dataset *data, cmkd_policy policy, const uint32_t *rows,
                                const uint64_t *seeds, uint32_t count, uint8_t *out, cmkd_error *err) {
  const size_t image = (size_t)data->height * (size_t)data->width * (size_t)data->channels;
  for (uint32_t i = 0; i < count; i++)
    if (rows[i] >= data->n) return cmkd_fail(err, CMKD_ERR_VALUE, "sample %u: the data set has %u", rows[i], data->n);
#pragma omp parallel for schedule(static) if (count > 64)
  for (uint32_t i = 0; i < count; i++) {
    const cmkd_gather one = {.policy = policy,
                             .pixels = data->pixels,
                             .rows = &rows[i],
                             .seeds = seeds ? &seeds[i] : NULL,
                             .count = 1,
                             .h = data->height,
                             .w = data->width,
                             .c = data->channels};
    cmkd_augment_bytes_cpu(&one, out + i * image);
  }
  return CMKD_OK;
}
