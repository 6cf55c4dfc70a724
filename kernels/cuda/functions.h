/* A table of functions for tests and measurements: kernels, and the few memory functions that a program without the
 * CUDA runtime needs to call them. In the emulation the table is linked in, on a device it comes from libcmkd-cuda.so
 * by dlsym(CMKD_CUDA_FUNCTIONS_ENTRY). The backend itself calls its kernels by name. */
#ifndef CMKD_KERNELS_CUDA_FUNCTIONS_H
#define CMKD_KERNELS_CUDA_FUNCTIONS_H
#include "kernels/cuda/kernels.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmkd_cuda_functions {
  int version; /* CMKD_CUDA_FUNCTIONS_VERSION */
  /* Makes device 0 ready and writes its name; else an error that says what is missing. */
  cmkd_status (*device)(char name[256], cmkd_error *err);
  /* Device memory and copies between it and the host's. All of them wait for the device. */
  cmkd_status (*alloc)(void **out, size_t bytes, cmkd_error *err);
  void (*release)(void *memory);
  cmkd_status (*fill)(void *memory, int byte, size_t bytes, cmkd_error *err);
  cmkd_status (*put)(void *to, const void *host, size_t bytes, cmkd_error *err);
  cmkd_status (*get)(void *host, const void *from, size_t bytes, cmkd_error *err);
  /* cmkd_cuda_NAME of include/cmkd/loss_cuda.h and kernels/cuda/kernels.h */
  size_t (*loss_scratch)(const cmkd_loss *, int64_t, int64_t);
  cmkd_status (*loss_init)(void *, void *, cmkd_error *);
  cmkd_status (*loss_eval)(const cmkd_loss *, const cmkd_cuda_loss_batch *, void *, cmkd_loss_result *, void *,
                           cmkd_error *);
  size_t (*agreement_scratch)(int64_t, int64_t);
  cmkd_status (*agreement_add)(const cmkd_cuda_agreement_batch *, void *, cmkd_agreement *, void *, cmkd_error *);
  cmkd_status (*augment_bytes)(const cmkd_gather *, uint8_t *, void *, cmkd_error *);
  cmkd_status (*augment)(const cmkd_gather *, const float *, int, cmkd_dtype, void *, void *, cmkd_error *);
  cmkd_status (*rows)(const cmkd_cuda_stored_rows *, const uint32_t *, int, float *, void *, cmkd_error *);
} cmkd_cuda_functions;
#define CMKD_CUDA_FUNCTIONS_VERSION 3 /* counts changes of the struct */
#define CMKD_CUDA_FUNCTIONS_ENTRY "cmkd_cuda_functions_table"
/* The table; of static life. */
const cmkd_cuda_functions *cmkd_cuda_functions_table(void);

#ifdef __cplusplus
}
#endif
#endif
