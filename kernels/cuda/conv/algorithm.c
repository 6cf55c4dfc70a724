/* One selected algorithm: made, shared, run. */
#include <stdio.h>
#include <stdlib.h>
#include "kernels/cuda/conv/select.h"

void cmkd_conv_algorithm_free(cmkd_conv_algorithm *algorithm) {
  if (!algorithm || (algorithm->users && --algorithm->users)) return;
  for (cmkd_conv_algorithm **at = &algorithm->selector->live; *at; at = &(*at)->next)
    if (*at == algorithm) {
      *at = algorithm->next;
      break;
    }
  cmkd_cudnn_plan_free(algorithm->plan);
  free(algorithm);
}

cmkd_status cmkd_conv_algorithm_make(cmkd_conv_selector *selector, const cmkd_conv_request *request,
                                     cmkd_cudnn_plan *plan, int separate, cmkd_conv_algorithm **out, cmkd_error *err) {
  *out = calloc(1, sizeof **out);
  if (!*out) {
    cmkd_cudnn_plan_free(plan);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  }
  (*out)->selector = selector;
  (*out)->request = *request;
  (*out)->plan = plan;
  (*out)->separate = separate;
  snprintf((*out)->name, sizeof(*out)->name, "%s%s", plan ? cmkd_cudnn_plan_name(plan) : CONV_OWN,
           separate ? CONV_SEPARATE : "");
  return CMKD_OK;
}

size_t cmkd_conv_algorithm_workspace(const cmkd_conv_algorithm *algorithm) {
  return algorithm->plan ? cmkd_cudnn_plan_workspace(algorithm->plan)
                         : cmkd_cuda_conv_scratch(&algorithm->request.shape);
}
cmkd_dtype cmkd_conv_algorithm_dw_dtype(const cmkd_conv_algorithm *algorithm) {
  return algorithm->plan ? cmkd_cudnn_plan_dw_dtype(algorithm->plan) : CMKD_F32;
}
const char *cmkd_conv_algorithm_name(const cmkd_conv_algorithm *algorithm) { return algorithm->name; }

static cmkd_status run_own(const cmkd_conv_request *r, const void *a, const void *b, void *c,
                           const cmkd_cuda_epilogue *epilogue, void *workspace, void *stream, cmkd_error *err) {
  if (r->pass == CMKD_CONV_BACKWARD_DATA)
    return cmkd_cuda_conv_backward_data(&r->shape, a, b, c, r->accumulate, workspace, stream, err);
  if (r->pass == CMKD_CONV_BACKWARD_WEIGHTS)
    return cmkd_cuda_conv_backward_weights(&r->shape, a, b, c, workspace, stream, err);
  return cmkd_cuda_conv_forward(&r->shape, a, b, epilogue, c, workspace, stream, err);
}

cmkd_status cmkd_conv_run(const cmkd_conv_algorithm *algorithm, const void *a, const void *b, void *c,
                          const cmkd_cuda_epilogue *epilogue, void *workspace, void *stream, cmkd_error *err) {
  const cmkd_conv_request *r = &algorithm->request;
  const cmkd_cuda_conv_shape *s = &r->shape;
  const int fused = r->pass == CMKD_CONV_FORWARD_FUSED;
  if (!fused != !epilogue ||
      (fused && (!epilogue->bias || !epilogue->residual != !r->residual || epilogue->act != r->act)))
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: not the epilogue that was asked for", algorithm->name);
  if (!algorithm->plan) return run_own(r, a, b, c, epilogue, workspace, stream, err);
  if (stream != algorithm->selector->stream)
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: not the selector's stream", algorithm->name);
  CMKD_TRY(cmkd_cudnn_run(algorithm->selector->cudnn, algorithm->plan, a, b, c, algorithm->separate ? NULL : epilogue,
                          workspace, err));
  if (algorithm->separate) return cmkd_cuda_conv_epilogue(s, epilogue, c, stream, err);
  if (r->pass == CMKD_CONV_BACKWARD_WEIGHTS && s->groups == 1 &&
      s->y_stride != cmkd_cuda_stride(s->k)) { /* dy has no padding channels, so cuDNN leaves their weights alone */
    const size_t size = cmkd_dtype_size(cmkd_conv_algorithm_dw_dtype(algorithm)),
                 all = (size_t)cmkd_cuda_conv_weights(s), written = all / (size_t)cmkd_cuda_stride(s->k) * (size_t)s->k;
    cudaError_t error = cudaMemsetAsync((char *)c + written * size, 0, (all - written) * size, stream);
    if (error != cudaSuccess)
      return cmkd_fail(err, CMKD_ERR_DEVICE, "%s: %s", algorithm->name, cudaGetErrorString(error));
  }
  return CMKD_OK;
}
