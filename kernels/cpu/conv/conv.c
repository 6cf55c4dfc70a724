/* A planned convolution: hands every pass to the direct kernels or to oneDNN. */
#include "kernels/cpu/conv/conv.h"
#include <stdlib.h>
#include "kernels/cpu/conv/dnnl.h"

void cmkd_conv_free(cmkd_conv *conv) {
  if (!conv) return;
  cmkd_conv_dnnl_free(conv->dnnl);
  cmkd_direct_plan_free(&conv->forward);
  cmkd_direct_plan_free(&conv->backward);
  free(conv);
}

double cmkd_conv_flops(const cmkd_conv *conv) {
  const cmkd_conv_geometry *g = &conv->g;
  return 2.0 * g->oh * g->ow * g->oc * (g->ic / g->groups) * g->kh * g->kw;
}

cmkd_status cmkd_conv_create(const cmkd_conv_geometry *geometry, const cmkd_conv_options *options, cmkd_conv **out,
                             cmkd_error *err) {
  cmkd_conv *conv = calloc(1, sizeof *conv);
  if (!conv) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning a convolution");
  const cmkd_conv_geometry *g = geometry;
  const int block = options->kernels->channel_block;
  conv->g = *g;
  conv->kernels = options->kernels;
  conv->in_floats = cmkd_conv_in_floats(g);
  conv->out_floats = cmkd_conv_out_floats(g);
  if (!cmkd_direct_plan_forward(g, block, &conv->forward) ||
      (options->train && !cmkd_direct_plan_backward(g, block, &conv->backward))) {
    cmkd_conv_free(conv);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning a %dx%d convolution of %d channels", g->kh, g->kw,
                     g->ic);
  }
  cmkd_conv_packed_sizes sizes = {conv->forward.floats, conv->backward.floats, conv->forward.floats};
  if (options->dnnl) {
    cmkd_status status = cmkd_conv_dnnl_create(g, options, &conv->dnnl, &sizes, err);
    if (status != CMKD_OK) {
      cmkd_conv_free(conv);
      return status;
    }
  }
  conv->forward_floats = sizes.forward;
  conv->backward_floats = sizes.backward;
  conv->grad_floats = sizes.grad;
  *out = conv;
  return CMKD_OK;
}

void cmkd_conv_pack(const cmkd_conv *conv, int first, int count, const float *plain, float *forward, float *backward) {
  if (conv->dnnl) {
    cmkd_conv_dnnl_pack(conv->dnnl, plain, forward, backward);
    return;
  }
  if (forward) cmkd_direct_pack_forward(&conv->forward, first, count, plain, forward);
  if (backward) cmkd_direct_pack_backward(&conv->backward, first, count, plain, backward);
}

void cmkd_conv_unpack_grad(const cmkd_conv *conv, const float *const *packed, int workers, int first, int count,
                           float *plain) {
  if (conv->dnnl)
    cmkd_conv_dnnl_unpack_grad(conv->dnnl, packed, workers, plain);
  else
    cmkd_direct_unpack_grad(&conv->forward, packed, workers, first, count, plain);
}

static void run_direct(const cmkd_conv *conv, const cmkd_direct_plan *plan, int n, const float *src,
                       const float *weights, const cmkd_epilogue *epilogue, float *dst) {
  if (plan->depthwise)
    conv->kernels->depth_run(&plan->pass, n, src, weights, epilogue, dst);
  else
    conv->kernels->conv_run(&plan->pass, n, src, weights, epilogue, dst);
}

void cmkd_conv_forward(const cmkd_conv *conv, int thread, int n, const float *src, const float *weights,
                       const cmkd_epilogue *epilogue, float *dst) {
  if (conv->dnnl)
    cmkd_conv_dnnl_forward(conv->dnnl, thread, n, src, weights, epilogue, dst);
  else
    run_direct(conv, &conv->forward, n, src, weights, epilogue, dst);
}

void cmkd_conv_backward_data(const cmkd_conv *conv, int thread, int n, const float *ddst, const float *weights,
                             int accumulate, float *dsrc) {
  const cmkd_epilogue epilogue = {.add = accumulate ? dsrc : NULL, .act = CMKD_ACT_NONE};
  if (conv->dnnl)
    cmkd_conv_dnnl_backward_data(conv->dnnl, thread, n, ddst, weights, accumulate, dsrc);
  else
    run_direct(conv, &conv->backward, n, ddst, weights, &epilogue, dsrc);
}

void cmkd_conv_backward_weights(const cmkd_conv *conv, int thread, int n, const float *src, const float *ddst,
                                float *grad) {
  if (conv->dnnl)
    cmkd_conv_dnnl_backward_weights(conv->dnnl, thread, n, src, ddst, grad);
  else if (conv->forward.depthwise)
    conv->kernels->depth_wgrad(&conv->forward.pass, n, src, ddst, grad);
  else
    conv->kernels->conv_wgrad(&conv->forward.pass, n, src, ddst, grad);
}
