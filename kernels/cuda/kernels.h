/* What this folder offers beside the losses, and one table of everything, through which the CUDA backend and the tests
 * call it: directly in the emulation, by dlsym of cmkd_cuda_functions from libcmkd-cuda.so on a device. Pointers are
 * device memory unless said otherwise; everything but the table's memory functions only queues work on `stream`. */
#ifndef CMKD_KERNELS_CUDA_KERNELS_H
#define CMKD_KERNELS_CUDA_KERNELS_H
#include "cmkd/loss_cuda.h"
#include "cmkd/views.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Agreement figures of a batch, added to *sums (all zero at first). Rows that are degenerate or not finite add 0.
 * `scratch` is prepared by cmkd_cuda_loss_init, as for the losses. */
size_t cmkd_cuda_agreement_scratch(int64_t batch, int64_t classes);
cmkd_status cmkd_cuda_agreement_add(const void *student, cmkd_dtype student_dtype, const void *teacher,
                                    cmkd_dtype teacher_dtype, int64_t batch, int64_t classes, double kappa,
                                    void *scratch, cmkd_agreement *sums, void *stream, cmkd_error *err);

/* Gather + crop + flip of uint8 images, the bytes of kernels/augment.h. pixels (n, h, w, c), rows (count) < n, seeds
 * (count) or NULL: clean. bytes: target (count, h, w, c). Else: target (count, h, w, stride_c) of `dtype`, channel k of
 * pixel p is table[k * 256 + p] (made on the host, so normalisation is the CPU's to the bit: cmkd_cuda_pixel_table),
 * rounded to dtype; channels from c on are 0. */
static inline void cmkd_cuda_pixel_table(const float *mean, const float *std, int c,
                                         float *table) { /* host: (c, 256) */
  for (int k = 0; k < c; k++)
    for (int p = 0; p < 256; p++)
      table[k * 256 + p] = ((float)p / 255.0f - mean[k]) / std[k];
}
cmkd_status cmkd_cuda_augment_bytes(cmkd_policy policy, const uint8_t *pixels, const uint32_t *rows,
                                    const uint64_t *seeds, int count, int h, int w, int c, uint8_t *target,
                                    void *stream, cmkd_error *err);
cmkd_status cmkd_cuda_augment(cmkd_policy policy, const uint8_t *pixels, const uint32_t *rows, const uint64_t *seeds,
                              int count, int h, int w, int c, const float *table, int stride_c, cmkd_dtype dtype,
                              void *target, void *stream, cmkd_error *err);

/* Teacher rows of a resident cache as float: target (count, classes) from rows (n, classes) picked by index (count).
 * u8sqrt: logit = max - range / 65025 * q^2 in float without fused operations, row_max and row_range (n) halves. Bit
 * for bit the CPU's decoder. */
cmkd_status cmkd_cuda_rows_f32(const float *rows, const uint32_t *index, int count, int classes, float *target,
                               void *stream, cmkd_error *err);
cmkd_status cmkd_cuda_rows_f16(const uint16_t *rows, const uint32_t *index, int count, int classes, float *target,
                               void *stream, cmkd_error *err);
cmkd_status cmkd_cuda_rows_u8sqrt(const uint8_t *rows, const uint16_t *row_max, const uint16_t *row_range,
                                  const uint32_t *index, int count, int classes, float *target, void *stream,
                                  cmkd_error *err);

typedef struct cmkd_cuda_functions {
  int version; /* CMKD_CUDA_FUNCTIONS_VERSION */
  /* Makes device 0 ready; its name, or one line that says what is missing. Host memory in and out; all of these wait.
   */
  cmkd_status (*device)(char name[256], cmkd_error *err);
  cmkd_status (*alloc)(void **out, size_t bytes, cmkd_error *err);
  void (*release)(void *memory);
  cmkd_status (*fill)(void *memory, int byte, size_t bytes, cmkd_error *err);
  cmkd_status (*put)(void *to, const void *host, size_t bytes, cmkd_error *err);
  cmkd_status (*get)(void *host, const void *from, size_t bytes, cmkd_error *err);
  size_t (*loss_scratch)(const cmkd_loss *, int64_t, int64_t);
  cmkd_status (*loss_init)(void *, void *, cmkd_error *);
  cmkd_status (*loss_eval)(const cmkd_loss *, const cmkd_cuda_loss_batch *, void *, cmkd_loss_result *, void *,
                           cmkd_error *);
  size_t (*agreement_scratch)(int64_t, int64_t);
  cmkd_status (*agreement_add)(const void *, cmkd_dtype, const void *, cmkd_dtype, int64_t, int64_t, double, void *,
                               cmkd_agreement *, void *, cmkd_error *);
  cmkd_status (*augment_bytes)(cmkd_policy, const uint8_t *, const uint32_t *, const uint64_t *, int, int, int, int,
                               uint8_t *, void *, cmkd_error *);
  cmkd_status (*augment)(cmkd_policy, const uint8_t *, const uint32_t *, const uint64_t *, int, int, int, int,
                         const float *, int, cmkd_dtype, void *, void *, cmkd_error *);
  cmkd_status (*rows_f16)(const uint16_t *, const uint32_t *, int, int, float *, void *, cmkd_error *);
  cmkd_status (*rows_u8sqrt)(const uint8_t *, const uint16_t *, const uint16_t *, const uint32_t *, int, int, float *,
                             void *, cmkd_error *);
} cmkd_cuda_functions_table;
#define CMKD_CUDA_FUNCTIONS_VERSION 2
#define CMKD_CUDA_FUNCTIONS_ENTRY "cmkd_cuda_functions"
const cmkd_cuda_functions_table *cmkd_cuda_functions(void);

#ifdef __cplusplus
}
#endif
#endif
