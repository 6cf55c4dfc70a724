/* Rows of a resident array (a teacher's logits), gathered and decoded. A thread makes one number. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"

#define ROW_THREADS 256

static unsigned blocks_for(int64_t n) { return (unsigned)((n + ROW_THREADS - 1) / ROW_THREADS); }

/* grid (width, rows) */
__global__ void __launch_bounds__(ROW_THREADS)
    rows_f32_kernel(const float *rows, const uint32_t *index, int width, float *target) {
  const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
  if (c < width) target[(int64_t)blockIdx.y * width + c] = rows[(int64_t)index[blockIdx.y] * width + c];
}

__global__ void __launch_bounds__(ROW_THREADS)
    rows_f16_kernel(const __half *rows, const uint32_t *index, int width, float *target) {
  const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
  if (c < width) target[(int64_t)blockIdx.y * width + c] = __half2float(rows[(int64_t)index[blockIdx.y] * width + c]);
}

__global__ void __launch_bounds__(ROW_THREADS)
    rows_u8sqrt_kernel(const uint8_t *rows, const __half *row_max, const __half *row_range, const uint32_t *index,
                       int width, float *target) {
  const int c = (int)(blockIdx.x * ROW_THREADS + threadIdx.x);
  const int64_t row = index[blockIdx.y];
  if (c >= width) return;
  const int q = rows[row * width + c];
  const float step = __fdiv_rn(__half2float(row_range[row]), 65025.0f);
  target[(int64_t)blockIdx.y * width + c] = __fsub_rn(__half2float(row_max[row]), __fmul_rn(step, (float)(q * q)));
}

cmkd_status cmkd_cuda_rows(const cmkd_cuda_stored_rows *r, const uint32_t *index, int count, float *target,
                           void *stream_pointer, cmkd_error *err) {
  const bool planes = r->dtype != CMKD_U8 || (r->row_max && r->row_range);
  if (!r->data || !planes || !index || !target || count < 1 || count > 65535 || r->width < 1)
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "resident rows: %d rows of %d numbers are out of range (1 .. 65535 rows), or a pointer is NULL",
                     count, r->width);
  const dim3 grid(blocks_for(r->width), (unsigned)count), block(ROW_THREADS);
  cudaStream_t stream = (cudaStream_t)stream_pointer;
  if (r->dtype == CMKD_F32)
    CMKD_LAUNCH(rows_f32_kernel, grid, block, 0, stream, (const float *)r->data, index, r->width, target);
  else if (r->dtype == CMKD_F16)
    CMKD_LAUNCH(rows_f16_kernel, grid, block, 0, stream, (const __half *)r->data, index, r->width, target);
  else
    CMKD_LAUNCH(rows_u8sqrt_kernel, grid, block, 0, stream, (const uint8_t *)r->data, (const __half *)r->row_max,
                (const __half *)r->row_range, index, r->width, target);
  return launch_status("resident rows", err);
}
