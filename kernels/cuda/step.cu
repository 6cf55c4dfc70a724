/* The small kernels of a training step: teacher rows of a resident cache, decoded as they are gathered, and the optimizer over all
 * parameters at once. Bound by memory; a thread takes what is nearest. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"

#define STEP_THREADS 256

static unsigned blocks_for(int64_t n) { return (unsigned)((n + STEP_THREADS - 1) / STEP_THREADS); }

/* grid (classes, rows) */
__global__ void __launch_bounds__(STEP_THREADS) rows_f16_kernel(const __half *rows, const uint32_t *index, int classes, float *target) {
  const int c = (int)(blockIdx.x * STEP_THREADS + threadIdx.x);
  if (c < classes) target[(int64_t)blockIdx.y * classes + c] = __half2float(rows[(int64_t)index[blockIdx.y] * classes + c]);
}

__global__ void __launch_bounds__(STEP_THREADS) rows_u8sqrt_kernel(const uint8_t *rows, const __half *row_max, const __half *row_range, const uint32_t *index, int classes, float *target) {
  const int c = (int)(blockIdx.x * STEP_THREADS + threadIdx.x);
  const int64_t row = index[blockIdx.y];
  if (c >= classes) return;
  const int q = rows[row * classes + c];
  const float step = __fdiv_rn(__half2float(row_range[row]), 65025.0f);
  target[(int64_t)blockIdx.y * classes + c] = __fsub_rn(__half2float(row_max[row]), __fmul_rn(step, (float)(q * q)));
}

__global__ void __launch_bounds__(STEP_THREADS) sgd_kernel(float *w, float *m, const float *grad, int64_t count, const float *lr, float momentum, float decay, int nesterov, void *copy, int copy_dtype, const cmkd_loss_result *result) {
  if (result && result->bad_row >= 0) return;
  const float rate = *lr;
  for (int64_t i = (int64_t)blockIdx.x * STEP_THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * STEP_THREADS) {
    const float old = w[i], g = grad[i] + decay * old, v = momentum * m[i] + g, next = old - rate * (nesterov ? g + momentum * v : v);
    m[i] = v;
    w[i] = next;
    if (copy && copy_dtype == CMKD_F16) ((__half *)copy)[i] = __float2half_rn(next);
    else if (copy) ((__nv_bfloat16 *)copy)[i] = __float2bfloat16_rn(next);
  }
}

static cmkd_status check_rows(const void *rows, const void *index, int count, int classes, const void *target, cmkd_error *err) {
  if (rows && index && target && count >= 1 && count <= 65535 && classes >= 1) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE, "teacher rows: %d rows of %d classes are out of range (1 .. 65535 rows), or a pointer is NULL", count, classes);
}

cmkd_status cmkd_cuda_rows_f16(const uint16_t *rows, const uint32_t *index, int count, int classes, float *target, void *stream, cmkd_error *err) {
  CMKD_TRY(check_rows(rows, index, count, classes, target, err));
  CMKD_LAUNCH(rows_f16_kernel, dim3(blocks_for(classes), (unsigned)count), dim3(STEP_THREADS), 0, (cudaStream_t)stream, (const __half *)rows, index, classes, target);
  return launch_status("teacher rows", err);
}

cmkd_status cmkd_cuda_rows_u8sqrt(const uint8_t *rows, const uint16_t *row_max, const uint16_t *row_range, const uint32_t *index, int count, int classes, float *target, void *stream,
                                  cmkd_error *err) {
  CMKD_TRY(check_rows(rows, index, count, classes, target, err));
  CMKD_LAUNCH(rows_u8sqrt_kernel, dim3(blocks_for(classes), (unsigned)count), dim3(STEP_THREADS), 0, (cudaStream_t)stream, rows, (const __half *)row_max, (const __half *)row_range, index, classes,
              target);
  return launch_status("teacher rows", err);
}

cmkd_status cmkd_cuda_sgd(float *w, float *m, const float *grad, int64_t count, const float *lr, float momentum, float decay, int nesterov, void *copy, cmkd_dtype copy_dtype,
                          const cmkd_loss_result *result, void *stream, cmkd_error *err) {
  if (!w || !m || !grad || !lr || count < 1 || (copy && copy_dtype != CMKD_F16 && copy_dtype != CMKD_BF16))
    return cmkd_fail(err, CMKD_ERR_VALUE, "sgd: %lld numbers, or a pointer or dtype, is out of range", (long long)count);
  const unsigned blocks = blocks_for(count) < 4096 ? blocks_for(count) : 4096; /* a full device; the rest loops */
  CMKD_LAUNCH(sgd_kernel, dim3(blocks), dim3(STEP_THREADS), 0, (cudaStream_t)stream, w, m, grad, count, lr, momentum, decay, nesterov, copy, (int)copy_dtype, result);
  return launch_status("sgd", err);
}
