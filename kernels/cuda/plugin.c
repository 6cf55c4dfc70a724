/* What libcmkd-cuda.so offers to the programs: the backend table, and looking for a driver and a device. The CUDA
 * runtime is linked statically and opens the driver itself, cuDNN is opened at run time, so the file loads on machines
 * without any CUDA library. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/conv/cudnn.h"

const cmkd_backend_table *cmkd_backend_plugin(void);

cmkd_status cmkd_cuda_status(cudaError_t error, const char *what, cmkd_error *err) {
  if (error == cudaSuccess) return CMKD_OK;
  (void)cudaGetLastError(); /* forgets it, or the next launch would seem to have failed */
  if (error == cudaErrorMemoryAllocation)
    return cmkd_fail(err, CMKD_ERR_MEMORY,
                     "--device cuda: %s: the GPU is out of memory; lower --batch, or free memory on it", what);
  return cmkd_fail(
      err, CMKD_ERR_DEVICE,
      "--device cuda: %s: %s; the run's state is the last saved one (CMKD_CUDA_CHECK=1 names the operation)", what,
      cudaGetErrorString(error));
}

cmkd_status cmkd_cuda_use(const cmkd_backend *b, cmkd_error *err) {
  return cmkd_cuda_status(cudaSetDevice(b->device), "using the device", err);
}

/* On the backend's stream, which does not wait for others: a plain cudaMemcpy would not be in order with it. */
static cmkd_status copy(cmkd_backend *b, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                        const char *what, cmkd_error *err) {
  if (!bytes) return CMKD_OK;
  CMKD_TRY(cmkd_cuda_status(cudaMemcpyAsync(to, from, bytes, kind, b->stream), what, err));
  return cmkd_cuda_status(cudaStreamSynchronize(b->stream), what, err);
}
cmkd_status cmkd_cuda_put(cmkd_backend *b, void *device, const void *host, size_t bytes, const char *what,
                          cmkd_error *err) {
  return copy(b, device, host, bytes, cudaMemcpyHostToDevice, what, err);
}
cmkd_status cmkd_cuda_get(cmkd_backend *b, void *host, const void *device, size_t bytes, const char *what,
                          cmkd_error *err) {
  return copy(b, host, device, bytes, cudaMemcpyDeviceToHost, what, err);
}

static cmkd_status find_device(int device, cmkd_error *err) {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                     "--device cuda: no NVIDIA driver here; install one, or use --device cpu");
  if (driver / 1000 < CUDART_VERSION / 1000)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                     "--device cuda: the NVIDIA driver knows CUDA %d.%d, this build needs %d.%d; update the driver, or "
                     "use --device cpu",
                     driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && devices == 0))
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "--device cuda: the NVIDIA driver finds no GPU; use --device cpu");
  if (error != cudaSuccess)
    return cmkd_fail(err, CMKD_ERR_DEVICE, "--device cuda: %s; use --device cpu", cudaGetErrorString(error));
  if (device < 0 || device >= devices)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "--device cuda: there is no GPU %d, the first of %d is 0", device,
                     devices);
  return CMKD_OK;
}

static cmkd_status set_precision(cmkd_backend *b, const char *precision, cmkd_error *err) {
  static const struct {
    const char *name;
    cmkd_dtype dtype;
    int tf32;
  } known[] = {{"fp32", CMKD_F32, 0}, {"tf32", CMKD_F32, 1}, {"bf16", CMKD_BF16, 0}, {"fp16", CMKD_F16, 0}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(precision, known[i].name)) {
      b->dtype = known[i].dtype;
      b->tf32 = known[i].tf32;
      snprintf(b->precision, sizeof b->precision, "%s", precision);
      return CMKD_OK;
    }
  return cmkd_fail(err, CMKD_ERR_USAGE, "--precision %.40s: unknown; there are fp32, tf32, bf16, fp16", precision);
}

static void close_device(cmkd_backend *b) {
  if (!b) return;
  (void)cmkd_cuda_use(b, NULL);
  cmkd_conv_selector_close(b->selector);
  cmkd_cudnn_close(b->cudnn);
  if (b->workspace) (void)cudaFree(b->workspace);
  if (b->fork) (void)cudaEventDestroy(b->fork);
  if (b->join) (void)cudaEventDestroy(b->join);
  if (b->side) (void)cudaStreamDestroy(b->side);
  if (b->stream) (void)cudaStreamDestroy(b->stream);
  free(b->profile);
  free(b);
}

static cmkd_status open_streams(cmkd_backend *b, cmkd_error *err) {
  struct cudaDeviceProp properties;
  CMKD_TRY(cmkd_cuda_status(cudaSetDevice(b->device), "opening the device", err));
  CMKD_TRY(cmkd_cuda_status(cudaGetDeviceProperties(&properties, b->device), "opening the device", err));
  snprintf(b->name, sizeof b->name, "%s", properties.name);
  if (properties.major < 8 && b->dtype != CMKD_F32)
    return cmkd_fail(
        err, CMKD_ERR_UNSUPPORTED,
        "--device cuda: %s has compute capability %d.%d; --precision %s needs 8.0 (Ampere) or later, use fp32", b->name,
        properties.major, properties.minor, b->precision);
  CMKD_TRY(cmkd_cuda_status(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), "opening the device", err));
  CMKD_TRY(cmkd_cuda_status(cudaStreamCreateWithFlags(&b->side, cudaStreamNonBlocking), "opening the device", err));
  CMKD_TRY(cmkd_cuda_status(cudaEventCreateWithFlags(&b->fork, cudaEventDisableTiming), "opening the device", err));
  return cmkd_cuda_status(cudaEventCreateWithFlags(&b->join, cudaEventDisableTiming), "opening the device", err);
}

/* cuDNN where it is. One that was named must be there: a measurement must not fall back on our own kernels unseen. */
static cmkd_status open_convolutions(cmkd_backend *b, const cmkd_backend_options *options, cmkd_error *err) {
  const char *named = options->cudnn, *file = options->algorithm_file;
  cmkd_error missing = {CMKD_OK, ""};
  char library[64];
  if (cmkd_cudnn_open(named, b->stream, NULL, &b->cudnn, &missing) == CMKD_OK) {
    int v = cmkd_cudnn_version(b->cudnn);
    snprintf(library, sizeof library, "cuDNN %d.%d.%d", v / 10000, v / 100 % 100, v % 100);
  } else if (named && *named && strcmp(named, "off")) {
    return cmkd_fail(err, missing.status,
                     "--device cuda: CMKD_CUDNN=%s: %s; CMKD_CUDNN=off goes without cuDNN, "
                     "--device cpu without the GPU",
                     named, missing.message);
  } else {
    b->cudnn = NULL;
    snprintf(library, sizeof library, "own convolutions (no cuDNN)");
  }
  snprintf(b->text, sizeof b->text, "cuda: %s, %s, %s", b->name, b->precision, library);
  return cmkd_conv_selector_open(b->cudnn, b->name, file && *file ? file : NULL, b->stream, &b->selector, err);
}

static cmkd_status open_device(const cmkd_backend_options *options, cmkd_backend **out, cmkd_error *err) {
  static const cmkd_backend_options defaults;
  *out = NULL;
  if (!options) options = &defaults;
  CMKD_TRY(find_device(options->device, err));
  cmkd_backend *b = calloc(1, sizeof *b);
  if (!b) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  b->device = options->device;
  b->check = options->check;
  b->streamed = options->streamed;
  cmkd_status status = CMKD_OK;
  if (options->profile && *options->profile && !(b->profile = strdup(options->profile)))
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  if (status == CMKD_OK) status = set_precision(b, options->precision ? options->precision : "fp32", err);
  if (status == CMKD_OK) status = open_streams(b, err);
  if (status == CMKD_OK) status = open_convolutions(b, options, err);
  if (status == CMKD_OK && !options->skip_selfcheck) status = cmkd_cuda_selfcheck(cmkd_backend_plugin(), b, err);
  if (status == CMKD_OK)
    *out = b;
  else
    close_device(b);
  return status;
}

static const char *describe(const cmkd_backend *b) { return b->text; }

const cmkd_backend_table *cmkd_backend_plugin(void) {
  static const char *const precisions[] = {"fp16", "tf32", NULL};
  static const cmkd_backend_table table = {
      .version = CMKD_BACKEND_VERSION,
      .name = "cuda",
      .computes_off_cpu = 1,
      .precisions = precisions,
      .open = open_device,
      .close = close_device,
      .describe = describe,
      .images_create = cmkd_cuda_images_create,
      .images_free = cmkd_cuda_images_free,
      .model_create = cmkd_cuda_model_create,
      .model_free = cmkd_cuda_model_free,
      .upload = cmkd_cuda_upload,
      .download = cmkd_cuda_download,
      .run = cmkd_cuda_run,
      .read = cmkd_cuda_read,
      .gradients = cmkd_cuda_gradients,
      .rows_create = cmkd_cuda_rows_create,
      .rows_write = cmkd_cuda_rows_write,
      .rows_free = cmkd_cuda_rows_free,
      .save = cmkd_cuda_save,
      .load = cmkd_cuda_load,
  };
  return &table;
}
