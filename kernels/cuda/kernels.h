/* What this folder's kernels offer beside the losses (include/cmkd/loss_cuda.h) and the operations of a network
 * (kernels/cuda/ops.h): agreement, images, resident rows. Pointers are device memory unless said otherwise; every
 * function only queues work on `stream` (a cudaStream_t). */
#ifndef CMKD_KERNELS_CUDA_KERNELS_H
#define CMKD_KERNELS_CUDA_KERNELS_H
#include "cmkd/loss_cuda.h"
#include "kernels/augment.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Agreement figures of a batch, added to *sums (all zero at first). Rows that are degenerate or not finite add 0.
 * `scratch` is prepared by cmkd_cuda_loss_init, as for the losses. */
size_t cmkd_cuda_agreement_scratch(int64_t batch, int64_t classes);
typedef struct cmkd_cuda_agreement_batch {
  int64_t batch, classes;
  const void *student, *teacher; /* (batch, classes) logits */
  cmkd_dtype student_dtype, teacher_dtype;
  double kappa; /* of the soft rank */
} cmkd_cuda_agreement_batch;
cmkd_status cmkd_cuda_agreement_add(const cmkd_cuda_agreement_batch *batch, void *scratch, cmkd_agreement *sums,
                                    void *stream, cmkd_error *err);

/* Images gathered and transformed: the bytes of kernels/augment.h. */

/* Host memory: table (c, 256), what a pixel's value becomes. Made on the host, so that normalisation is the CPU's to
 * the bit. */
static inline void cmkd_cuda_pixel_table(const float *mean, const float *std, int c, float *table) {
  for (int k = 0; k < c; k++)
    for (int p = 0; p < 256; p++)
      table[k * 256 + p] = ((float)p / 255.0f - mean[k]) / std[k];
}
/* target (count, h, w, c). */
cmkd_status cmkd_cuda_augment_bytes(const cmkd_gather *gather, uint8_t *target, void *stream, cmkd_error *err);
/* target (count, h, w, stride_c) of `dtype`: channel k of pixel p is table[k * 256 + p] rounded to dtype; channels from
 * c on are 0. */
cmkd_status cmkd_cuda_augment(const cmkd_gather *gather, const float *table, int stride_c, cmkd_dtype dtype,
                              void *target, void *stream, cmkd_error *err);

/* Rows of a resident array as its cache stores them. */
typedef struct cmkd_cuda_stored_rows {
  cmkd_dtype dtype;                    /* CMKD_F32; CMKD_F16; CMKD_U8: codec u8sqrt */
  int width;                           /* numbers a row */
  const void *data;                    /* (n, width) of dtype */
  const uint16_t *row_max, *row_range; /* u8sqrt: (n) float16 */
} cmkd_cuda_stored_rows;
/* target (count, width) floats: rows index[0] .. index[count - 1]. Bit for bit what the CPU decodes; u8sqrt: max -
 * range / 65025 * q^2 in float without fused operations. */
cmkd_status cmkd_cuda_rows(const cmkd_cuda_stored_rows *rows, const uint32_t *index, int count, float *target,
                           void *stream, cmkd_error *err);

#ifdef __cplusplus
}
#endif
#endif
