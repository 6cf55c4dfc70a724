/* What libcmkd-cuda.so offers to the programs: a backend table whose open() looks for a driver and a device, and says what is missing. This
 * build evaluates losses and single kernels on a device (cmkd/loss_cuda.h, kernels/cuda/kernels.h) and does not train there, so open() ends
 * with a line that says so, and `--device auto` goes on with the CPU. The CUDA runtime is linked statically and opens the driver itself, so
 * the file loads on machines without any CUDA library. */
#include <cuda_runtime_api.h>
#include "kernels/backend.h"

static cmkd_status find_device(int device, cmkd_error *err) {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "--device cuda: no NVIDIA driver here; install one, or use --device cpu");
  if (driver / 1000 < CUDART_VERSION / 1000)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "--device cuda: the NVIDIA driver knows CUDA %d.%d, this build needs %d.%d; update the driver, or use --device cpu", driver / 1000,
                     driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && devices == 0)) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "--device cuda: the NVIDIA driver finds no GPU; use --device cpu");
  if (error != cudaSuccess) return cmkd_fail(err, CMKD_ERR_DEVICE, "--device cuda: %s; use --device cpu", cudaGetErrorString(error));
  if (device < 0 || device >= devices) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "--device cuda: there is no GPU %d, the first of %d is 0", device, devices);
  return CMKD_OK;
}

static cmkd_status losses_only(cmkd_error *err) { return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "--device cuda: this build's CUDA backend evaluates losses only; train with --device cpu"); }

static cmkd_status open_device(const cmkd_backend_options *options, cmkd_backend **out, cmkd_error *err) {
  *out = NULL;
  CMKD_TRY(find_device(options->device, err));
  return losses_only(err);
}
static void close_device(cmkd_backend *backend) {}
static const char *describe(const cmkd_backend *backend) { return "cuda: losses only"; }

/* Nothing is ever open, so nothing below is reached through the registry; a caller who tries gets the same line. */
static cmkd_status images_create(cmkd_backend *backend, const uint8_t *pixels, const int32_t *labels, uint32_t n, int h, int w, int c, cmkd_be_images **out, cmkd_error *err) { return losses_only(err); }
static void images_free(cmkd_be_images *images) {}
static cmkd_status model_create(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out, cmkd_error *err) { return losses_only(err); }
static void model_free(cmkd_be_model *model) {}
static cmkd_status upload(cmkd_be_model *model, cmkd_param_slot slot, const float *const *params, cmkd_error *err) { return losses_only(err); }
static cmkd_status download(cmkd_be_model *model, cmkd_param_slot slot, float *const *params, cmkd_error *err) { return losses_only(err); }
static cmkd_status run(cmkd_be_model *model, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps, int k, float *logits, float *features, cmkd_error *err) { return losses_only(err); }
static cmkd_status read_back(cmkd_be_model *model, cmkd_step_result *results, int *k, cmkd_error *err) { return losses_only(err); }

const cmkd_backend_table *cmkd_backend_plugin(void);
const cmkd_backend_table *cmkd_backend_plugin(void) {
  static const cmkd_backend_table table = {
    .version = CMKD_BACKEND_VERSION, .name = "cuda", .open = open_device, .close = close_device, .describe = describe,
    .images_create = images_create, .images_free = images_free, .model_create = model_create, .model_free = model_free,
    .upload = upload, .download = download, .run = run, .read = read_back, .gradients = NULL,
  };
  return &table;
}
