/* Inference: batch norm folded into the weights, steps, and their outputs back to the host. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/half.h"
#include "kernels/cuda/backend.h"

#define OUT_BYTES ((size_t)16 << 20)

static void narrow(const cmkd_be_model *m, const float *wide, size_t count, uint16_t *to) {
  for (size_t i = 0; i < count; i++)
    to[i] = m->backend->dtype == CMKD_F16 ? cmkd_float_to_half(wide[i]) : cmkd_float_to_bf16(wide[i]);
}

/* Batch norm folded into the convolutions' weights, on the host, in double. */
static cmkd_status fold(cmkd_be_model *m, cmkd_error *err) {
  const size_t values = (size_t)m->values, channels = m->channels + 1, biases = m->biases + 1;
  float *memory = malloc((values + 2 * channels + biases) * sizeof *memory), *mean = memory + values,
        *var = mean + channels, *bias = var + channels;
  if (!memory) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_backend *b = m->backend;
  const int wide = b->dtype == CMKD_F32;
  memset(memory, 0, values * sizeof *memory);
  cmkd_status status = cmkd_cuda_get(b, m->host, m->value, values * sizeof(float), "folding batch norm", err);
  if (status == CMKD_OK)
    status = cmkd_cuda_get(b, mean, m->mean, m->channels * sizeof(float), "folding batch norm", err);
  if (status == CMKD_OK) status = cmkd_cuda_get(b, var, m->var, m->channels * sizeof(float), "folding batch norm", err);
  if (status == CMKD_OK) cmkd_cuda_fold(m, m->host, mean, var, memory, bias);
  if (status == CMKD_OK && !wide) narrow(m, memory, values, (uint16_t *)m->host);
  if (status == CMKD_OK)
    status = cmkd_cuda_put(b, m->fold_weight, wide ? (void *)memory : (void *)m->host,
                           values * cuda_dtype_size(b->dtype), "folding batch norm", err);
  if (status == CMKD_OK)
    status = cmkd_cuda_put(b, m->fold_bias, bias, m->biases * sizeof(float), "folding batch norm", err);
  free(memory);
  if (status != CMKD_OK) return status;
  m->fold_stale = 0;
  return CMKD_OK;
}

/* Pinned memory for the outputs of some steps: (out_steps, out_floats), output o of a step at its out_at[o]. */
static cmkd_status make_out(cmkd_be_model *m, cmkd_error *err) {
  if (m->out) return CMKD_OK;
  m->out_floats = 0;
  for (int o = 0; o < m->graph->outputs; o++) {
    m->out_at[o] = m->out_floats;
    m->out_floats += (size_t)m->config.batch * cmkd_graph_output_width(m->graph, o);
  }
  const size_t fit = OUT_BYTES / (m->out_floats * sizeof(float));
  m->out_steps = fit > CUDA_MAX_SLOTS ? CUDA_MAX_SLOTS : (int)fit;
  if (m->out_steps < 1) m->out_steps = 1;
  return cmkd_cuda_status(
      cudaHostAlloc((void **)&m->out, (size_t)m->out_steps * m->out_floats * sizeof(float), cudaHostAllocDefault),
      "pinned memory", err);
}

/* Outputs of the steps that ran, from pinned memory to the caller's arrays, which move on; the first row whose logits
 * are not finite fails. */
static cmkd_status fetch_outputs(const cmkd_be_model *m, const cmkd_step *steps, int k, float **outputs,
                                 cmkd_error *err) {
  const size_t classes = (size_t)m->graph->classes;
  for (int i = 0; i < k; i++) {
    const size_t count = (size_t)steps[i].count;
    const float *step = m->out + (size_t)i * m->out_floats, *logits = step + m->out_at[CMKD_OUTPUT_LOGITS];
    for (size_t j = 0; j < count * classes; j++)
      if (!isfinite(logits[j]))
        return cmkd_fail(
            err, CMKD_ERR_VALUE,
            "`%s`: logits of image %u are NaN or Inf; the weights are broken or the learning rate was too high",
            m->graph->arch, steps[i].rows[j / classes]);
    for (int o = 0; o < m->graph->outputs; o++) {
      if (!outputs[o]) continue;
      const size_t floats = count * cmkd_graph_output_width(m->graph, o);
      memcpy(outputs[o], step + m->out_at[o], floats * sizeof(float));
      outputs[o] += floats;
    }
  }
  return CMKD_OK;
}

static cmkd_status queue_outputs(const cmkd_be_model *m, int count, float *const *outputs, float *to, cmkd_error *err) {
  for (int o = 0; o < m->graph->outputs; o++) {
    if (!outputs[o] && o != CMKD_OUTPUT_LOGITS) continue; /* logits are looked at in any case */
    const size_t floats = (size_t)count * cmkd_graph_output_width(m->graph, o);
    CMKD_TRY(cmkd_cuda_status(cudaMemcpyAsync(to + m->out_at[o], m->output[o], floats * sizeof(float),
                                              cudaMemcpyDeviceToHost, m->backend->stream),
                              m->graph->output[o].name, err));
  }
  return CMKD_OK;
}

cmkd_status cmkd_cuda_run_infer(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                                float *const *wanted, cmkd_error *err) {
  cudaStream_t stream = m->backend->stream;
  float *outputs[CMKD_MAX_OUTPUTS] = {NULL};
  for (int o = 0; o < m->graph->outputs && wanted; o++)
    outputs[o] = wanted[o];
  for (int i = 0; i < k; i++)
    CMKD_TRY(cmkd_cuda_prepare(m, CMKD_LIST_INFER, steps[i].count, err));
  CMKD_TRY(make_out(m, err));
  if (m->fold_stale) CMKD_TRY(fold(m, err));
  for (int i = 0; i < k;) {
    const int most = m->slots < m->out_steps ? m->slots : m->out_steps, n = k - i < most ? k - i : most;
    CMKD_TRY(cmkd_cuda_queue_send(m, images, steps + i, n, err));
    for (int j = 0; j < n; j++) {
      const cuda_step_kind kind = cmkd_cuda_kind_of(m, CMKD_LIST_INFER, images, &steps[i + j]);
      CMKD_TRY(cmkd_cuda_launch(m, &kind, 1, err));
      CMKD_TRY(queue_outputs(m, kind.count, outputs, m->out + (size_t)j * m->out_floats, err));
    }
    CMKD_TRY(cmkd_cuda_queue_taken(m, err));
    CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(stream), "inference", err));
    CMKD_TRY(fetch_outputs(m, steps + i, n, outputs, err));
    i += n;
  }
  return CMKD_OK;
}
