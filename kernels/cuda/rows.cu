/* Teacher rows of a resident cache, decoded as they are gathered. Bound by memory; a thread takes what is nearest. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"

#define ROW_THREADS 256

static unsigned blocks_for(int64_t n) { return (unsigned)((n + ROW_THREADS - 1) / ROW_THREADS); }

/* grid (classes, rows) */
__global__ void __launch_bounds__(ROW_THREADS)
    rows_f32_kernel(const float *rows, const uint32_t *index, int classes, float *target) {
  const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
  if (c < classes) target[(int64_t)blockIdx.y * classes + c] = rows[(int64_t)index[blockIdx.y] * classes + c];
}

__global__ void __launch_bounds__(ROW_THREADS)
    rows_f16_kernel(const __half *rows, const uint32_t *index, int classes, float *target) {
  const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
  if (c < classes)
    target[(int64_t)blockIdx.y * classes + c] = __half2float(rows[(int64_t)index[blockIdx.y] * classes + c]);
}

__global__ void __launch_bounds__(ROW_THREADS)
    rows_u8sqrt_kernel(const uint8_t *rows, const __half *row_max, const __half *row_range, const uint32_t *index,
                       int classes, float *target) {
  const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
  const int64_t row = index[blockIdx.y];
  if (c >= classes) return;
  const int q = rows[row * classes + c];
  const float step = __fdiv_rn(__half2float(row_range[row]), 65025.0f);
  target[(int64_t)blockIdx.y * classes + c] = __fsub_rn(__half2float(row_max[row]), __fmul_rn(step, (float)(q * q)));
}

static cmkd_status check_rows(const void *rows, const void *index, int count, int classes, const void *target,
                              cmkd_error *err) {
  if (rows && index && target && count >= 1 && count <= 65535 && classes >= 1) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "teacher rows: %d rows of %d classes are out of range (1 .. 65535 rows), or a pointer is NULL",
                   count, classes);
}

cmkd_status cmkd_cuda_rows_f32(const float *rows, const uint32_t *index, int count, int classes, float *target,
                               void *stream, cmkd_error *err) {
  CMKD_TRY(check_rows(rows, index, count, classes, target, err));
  CMKD_LAUNCH(rows_f32_kernel, dim3(blocks_for(classes), (unsigned)count), dim3(ROW_THREADS), 0, (cudaStream_t)stream,
              rows, index, classes, target);
  return launch_status("teacher rows", err);
}

cmkd_status cmkd_cuda_rows_f16(const uint16_t *rows, const uint32_t *index, int count, int classes, float *target,
                               void *stream, cmkd_error *err) {
  CMKD_TRY(check_rows(rows, index, count, classes, target, err));
  CMKD_LAUNCH(rows_f16_kernel, dim3(blocks_for(classes), (unsigned)count), dim3(ROW_THREADS), 0, (cudaStream_t)stream,
              (const __half *)rows, index, classes, target);
  return launch_status("teacher rows", err);
}

cmkd_status cmkd_cuda_rows_u8sqrt(const uint8_t *rows, const uint16_t *row_max, const uint16_t *row_range,
                                  const uint32_t *index, int count, int classes, float *target, void *stream,
                                  cmkd_error *err) {
  CMKD_TRY(check_rows(rows, index, count, classes, target, err));
  CMKD_LAUNCH(rows_u8sqrt_kernel, dim3(blocks_for(classes), (unsigned)count), dim3(ROW_THREADS), 0,
              (cudaStream_t)stream, rows, (const __half *)row_max, (const __half *)row_range, index, classes, target);
  return launch_status("teacher rows", err);
}
