/* The table of functions for tests (kernels/cuda/functions.h) and its memory functions. */
#include "kernels/cuda/functions.h"
#include "kernels/cuda/device.h"

static cmkd_status status_of(cudaError_t error, const char *what, cmkd_error *err) {
  if (error == cudaSuccess) return CMKD_OK;
  return cmkd_fail(err, error == cudaErrorMemoryAllocation ? CMKD_ERR_MEMORY : CMKD_ERR_DEVICE, "%s: %s", what,
                   cudaGetErrorString(error));
}

static cmkd_status device(char name[256], cmkd_error *err) {
  cudaDeviceProp properties;
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "no NVIDIA driver here");
  CMKD_TRY(status_of(cudaSetDevice(0), "cuda device 0", err));
  CMKD_TRY(status_of(cudaGetDeviceProperties(&properties, 0), "cuda device 0", err));
  memcpy(name, properties.name, 255);
  name[255] = 0;
  return CMKD_OK;
}
static cmkd_status alloc(void **out, size_t bytes, cmkd_error *err) {
  return status_of(cudaMalloc(out, bytes), "device memory", err);
}
static void release(void *memory) { (void)cudaFree(memory); }
static cmkd_status fill(void *memory, int byte, size_t bytes, cmkd_error *err) {
  return status_of(cudaMemset(memory, byte, bytes), "filling device memory", err);
}
static cmkd_status put(void *to, const void *host, size_t bytes, cmkd_error *err) {
  return status_of(cudaMemcpy(to, host, bytes, cudaMemcpyHostToDevice), "to the device", err);
}
static cmkd_status get(void *host, const void *from, size_t bytes, cmkd_error *err) {
  return status_of(cudaMemcpy(host, from, bytes, cudaMemcpyDeviceToHost), "from the device", err);
}

const cmkd_cuda_functions *cmkd_cuda_functions_table(void) {
  static const cmkd_cuda_functions table = {CMKD_CUDA_FUNCTIONS_VERSION,
                                            device,
                                            alloc,
                                            release,
                                            fill,
                                            put,
                                            get,
                                            cmkd_cuda_loss_scratch,
                                            cmkd_cuda_loss_init,
                                            cmkd_cuda_loss_eval,
                                            cmkd_cuda_agreement_scratch,
                                            cmkd_cuda_agreement_add,
                                            cmkd_cuda_augment_bytes,
                                            cmkd_cuda_augment,
                                            cmkd_cuda_rows};
  return &table;
}
