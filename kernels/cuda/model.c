/* A model of the CUDA backend: planned, its memory allocated once and carved, parameters in and out.
 *
 *   memory  | parameters, statistics of norms, inference weights | outputs | input of the step, state, results |
 *   arena   | activations | gradients that share memory |   of the backend's dtype; training and inference use the same
 *
 * kernels/cuda/backend.h says what each array is. */
#include <stdlib.h>
#include <string.h>
#include "base/half.h"
#include "base/limits.h"
#include "kernels/cuda/backend.h"

static void release(void *memory) {
  if (memory) (void)cudaFree(memory);
}

void cmkd_cuda_model_free(cmkd_be_model *m) {
  if (!m) return;
  (void)cmkd_cuda_use(m->backend, NULL);
  (void)cudaStreamSynchronize(m->backend->stream);
  cmkd_cuda_forget_graphs(m);
  cmkd_cuda_profile_close(m);
  for (int i = 0; i < m->algorithms_count; i++)
    cmkd_cuda_algorithms_free(m, &m->algorithms[i]);
  for (int b = 0; b < CUDA_BUFFERS; b++)
    if (m->taken[b]) (void)cudaEventDestroy(m->taken[b]);
  cmkd_results_free(&m->fetched);
  cmkd_plan_free(&m->train);
  cmkd_plan_free(&m->infer);
  release(m->memory);
  release(m->arena);
  cmkd_cuda_queue_free(m);
  if (m->out) (void)cudaFreeHost(m->out);
  void *const owned[] = {m->op, m->folded, m->host, m};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    free(owned[i]);
}

/* ---- layout ---- */

static int64_t take(int64_t *total, int64_t count) {
  int64_t at = *total;
  *total += (count + CMKD_CUDA_CHUNK - 1) / CMKD_CUDA_CHUNK * CMKD_CUDA_CHUNK;
  return at;
}

/* Offsets of every op's numbers. Deep networks of a few channels waste most of a chunk on each vector: a few hundred
 * KB. */
static void place_params(cmkd_be_model *m) {
  const cmkd_graph *graph = m->graph;
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    cuda_op *o = &m->op[i];
    const int stride = cmkd_cuda_stride(graph->tensor[op->out].c);
    *o = (cuda_op){-1, -1, -1, -1, 0};
    if (op->kind == CMKD_OP_NORM) {
      o->gamma = take(&m->values, stride);
      o->beta = take(&m->values, stride);
      o->channel = m->channels;
      m->channels += (size_t)stride;
    }
    if (!cuda_is_conv(op)) continue;
    const cmkd_cuda_conv_shape shape = cmkd_cuda_shape_of(m, i, 1);
    o->weight = take(&m->values, cmkd_cuda_conv_weights(&shape));
    if (op->param[1] >= 0) o->bias = take(&m->values, stride);
    o->channel = m->biases;
    m->biases += (size_t)stride;
  }
}

/* With base NULL only *total grows: the same walk sizes and places. */
static void *carve(char *base, size_t *total, size_t count, size_t size) {
  char *at = base ? base + *total : NULL;
  *total += (count * size + 255) / 256 * 256;
  return at;
}

static size_t lay_out(cmkd_be_model *m, char *base) {
  const cmkd_model_config *c = &m->config;
  const cmkd_graph *graph = m->graph;
  const size_t values = (size_t)m->values, wide = cuda_dtype_size(m->backend->dtype), batch = (size_t)c->batch,
               classes = (size_t)graph->classes;
  size_t at = 0;
  m->value = carve(base, &at, values, sizeof(float));
  m->mean = carve(base, &at, m->channels, sizeof(float));
  m->var = carve(base, &at, m->channels, sizeof(float));
  m->fold_weight = carve(base, &at, values, wide);
  m->fold_bias = carve(base, &at, m->biases, sizeof(float));
  for (int o = 0; o < graph->outputs; o++)
    if (o && cuda_is_logits(m, graph->output[o].tensor)) /* another name for them */
      m->output[o] = m->output[CMKD_OUTPUT_LOGITS];
    else
      m->output[o] = carve(base, &at, batch * cmkd_graph_output_width(graph, o), sizeof(float));
  m->pixel_table = carve(base, &at, 4 * 256, sizeof(float));
  m->state = carve(base, &at, 1, sizeof *m->state);
  m->input.seeds = carve(base, &at, batch, sizeof(uint64_t));
  m->input.rows = carve(base, &at, batch, sizeof(uint32_t));
  m->input.labels = carve(base, &at, batch, sizeof(int32_t));
  m->input.pixels = carve(base, &at, batch * cuda_image_bytes(m), 1);
  if (!c->train) return at;
  m->momentum = carve(base, &at, values, sizeof(float));
  m->grad = carve(base, &at, values, sizeof(float));
  if (m->backend->dtype != CMKD_F32) {
    m->copy = carve(base, &at, values, wide);
    m->grad16 = carve(base, &at, values, wide);
  }
  m->batch_mean = carve(base, &at, m->channels, sizeof(float));
  m->batch_var = carve(base, &at, m->channels, sizeof(float));
  m->batch_rstd = carve(base, &at, m->channels, sizeof(float));
  m->norm_momentum = carve(base, &at, m->channels, sizeof(float));
  m->pixels = carve(base, &at, m->channels, sizeof(int32_t));
  m->logits_grad = carve(base, &at, batch * classes, sizeof(float));
  for (int t = 0; t < m->targets; t++) {
    m->input.target[t] = carve(base, &at, batch * (size_t)m->width[t], sizeof(float));
    m->input.index[t] = carve(base, &at, batch, sizeof(uint32_t));
  }
  m->loss_scratch = carve(base, &at, cmkd_cuda_loss_scratch(c->loss, c->batch, graph->classes), 1);
  m->agreement_scratch = carve(base, &at, cmkd_cuda_agreement_scratch(c->batch, graph->classes), 1);
  if (c->objectives) m->objective_scratch = carve(base, &at, cmkd_cuda_objective_scratch(c->batch), 1);
  m->results = carve(base, &at, CUDA_RESULTS, sizeof *m->results);
  return at;
}

/* ---- creation ---- */

/* What this backend wants beyond cmkd_model_check. */
static cmkd_status check_config(const cmkd_model_config *c, cmkd_error *err) {
  const cmkd_graph *graph = c->graph;
  if (c->batch > CMKD_MAX_CUDA_BATCH)
    return cmkd_fail(err, CMKD_ERR_VALUE, "batch %d is out of range (1 to %d with --device cuda)", c->batch,
                     CMKD_MAX_CUDA_BATCH);
  for (int i = 0; i < graph->ops; i++) {
    if (graph->op[i].out == cmkd_graph_logits(graph) && graph->op[i].kind != CMKD_OP_LINEAR)
      return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s`: its logits do not come from a linear layer; use --device cpu",
                       graph->arch);
    if (graph->op[i].in[0] == cmkd_graph_logits(graph) || graph->op[i].in[1] == cmkd_graph_logits(graph))
      return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s`: its logits are read again; use --device cpu", graph->arch);
  }
  return CMKD_OK;
}

static cmkd_status alloc_device(cmkd_be_model *m, void *out, size_t bytes, cmkd_error *err) {
  size_t free_bytes = 0, total = 0;
  cudaError_t error = cudaMalloc((void **)out, bytes);
  if (error != cudaErrorMemoryAllocation) return cmkd_cuda_status(error, "device memory", err);
  (void)cudaGetLastError();
  (void)cudaMemGetInfo(&free_bytes, &total);
  return cmkd_fail(
      err, CMKD_ERR_MEMORY,
      "--device cuda: `%s` at batch %d needs %.0f MB more, the GPU has %.0f of %.0f MB left; lower --batch%s",
      m->graph->arch, m->config.batch, 1e-6 * (double)bytes, 1e-6 * (double)free_bytes, 1e-6 * (double)total,
      m->backend->dtype == CMKD_F32 ? ", or take --precision bf16" : "");
}

/* What never changes: pixel table, sizes and momenta of the batch norms, padding. Everything else of `memory` starts as
 * 0. */
static cmkd_status fill_constants(cmkd_be_model *m, size_t bytes, cmkd_error *err) {
  const cmkd_graph *graph = m->graph;
  cudaStream_t stream = m->backend->stream;
  float table[4 * 256] = {0};
  cmkd_cuda_pixel_table(m->config.mean, m->config.std, graph->tensor[0].c, table);
  CMKD_TRY(cmkd_cuda_status(cudaMemsetAsync(m->memory, 0, bytes, stream), "clearing memory", err));
  CMKD_TRY(cmkd_cuda_put(m->backend, m->pixel_table, table, sizeof table, "pixel table", err));
  cmkd_cuda_state state = {.scale = m->backend->dtype == CMKD_F16 ? CMKD_CUDA_SCALE_FIRST : 1};
  CMKD_TRY(cmkd_cuda_put(m->backend, m->state, &state, sizeof state, "state", err));
  if (!m->config.train) return CMKD_OK;
  CMKD_TRY(cmkd_cuda_loss_init(m->loss_scratch, stream, err));
  CMKD_TRY(cmkd_cuda_loss_init(m->agreement_scratch, stream, err));
  float *momentum = calloc(m->channels + 1, sizeof *momentum);
  int32_t *pixels = calloc(m->channels + 1, sizeof *pixels);
  cmkd_status status = momentum && pixels ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int i = 0; i < graph->ops && status == CMKD_OK; i++) {
    const cmkd_op *op = &graph->op[i];
    const cmkd_shape s = graph->tensor[op->out];
    for (int c = 0; op->kind == CMKD_OP_NORM && c < cmkd_cuda_stride(s.c); c++) {
      momentum[m->op[i].channel + (size_t)c] = op->momentum;
      pixels[m->op[i].channel + (size_t)c] = s.h * s.w;
    }
  }
  if (status == CMKD_OK)
    status = cmkd_cuda_put(m->backend, m->norm_momentum, momentum, m->channels * sizeof *momentum, "norms", err);
  if (status == CMKD_OK)
    status = cmkd_cuda_put(m->backend, m->pixels, pixels, m->channels * sizeof *pixels, "norms", err);
  free(momentum);
  free(pixels);
  return status;
}

static cmkd_status create(cmkd_be_model *m, cmkd_error *err) {
  const cmkd_plan_layout layout = {CMKD_CUDA_PAD, 128, 0};
  const size_t ops = (size_t)m->graph->ops, wide = cuda_dtype_size(m->backend->dtype), batch = (size_t)m->config.batch;
  m->op = calloc(ops, sizeof *m->op);
  m->folded = calloc(ops, sizeof *m->folded);
  if (!m->op || !m->folded) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  CMKD_TRY(cmkd_plan_infer(m->graph, layout, m->folded, &m->infer, err));
  if (m->config.train) {
    int roots[CMKD_MAX_OUTPUTS + 1];
    const int count = cmkd_gradient_roots(&m->config, roots);
    CMKD_TRY(cmkd_plan_train(m->graph, layout, roots, count, &m->train, err));
  }
  place_params(m);
  const size_t bytes = lay_out(m, NULL), arena = (m->train.arena > m->infer.local ? m->train.arena : m->infer.local);
  if (arena > SIZE_MAX / (wide * batch))
    return cmkd_fail(err, CMKD_ERR_MEMORY, "`%s` at batch %d needs more memory than there is; lower --batch",
                     m->graph->arch, m->config.batch);
  CMKD_TRY(alloc_device(m, &m->memory, bytes, err));
  CMKD_TRY(alloc_device(m, &m->arena, arena * wide * batch, err));
  lay_out(m, m->memory);
  CMKD_TRY(fill_constants(m, bytes, err));
  m->host = calloc((size_t)m->values, sizeof *m->host);
  if (!m->host) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int b = 0; b < CUDA_BUFFERS; b++)
    CMKD_TRY(cmkd_cuda_status(cudaEventCreateWithFlags(&m->taken[b], cudaEventDisableTiming), "queue", err));
  return CMKD_OK;
}

cmkd_status cmkd_cuda_model_create(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out,
                                   cmkd_error *err) {
  *out = NULL;
  CMKD_TRY(cmkd_cuda_use(backend, err));
  CMKD_TRY(cmkd_model_check(config, err));
  CMKD_TRY(check_config(config, err));
  cmkd_be_model *m = calloc(1, sizeof *m);
  if (!m) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  m->backend = backend;
  m->config = *config;
  m->graph = config->graph;
  m->fold_stale = 1;
  m->targets = config->targets ? config->targets : 1;
  for (int t = 0; t < m->targets; t++)
    m->width[t] = config->targets ? config->target[t].width : config->graph->classes;
  for (int i = 0; i < config->objectives; i++)
    m->objective[i] = cmkd_objective_of(config, i);
  cmkd_status status = create(m, err);
  if (status == CMKD_OK) status = cmkd_cuda_profile_open(m, err);
  if (status == CMKD_OK)
    *out = m;
  else
    cmkd_cuda_model_free(m);
  return status;
}

/* ---- parameters in and out ---- */

static cmkd_status copy_floats(cmkd_be_model *m, float *host, float *device, size_t count, enum cudaMemcpyKind kind,
                               cmkd_error *err) {
  if (kind == cudaMemcpyHostToDevice)
    return cmkd_cuda_put(m->backend, device, host, count * sizeof(float), "parameters", err);
  return cmkd_cuda_get(m->backend, host, device, count * sizeof(float), "parameters", err);
}

/* The parameters of one device array, in or out; `into` NULL: out. Arrays are fetched first, so that what is left alone
 * stays. */
static cmkd_status exchange(cmkd_be_model *m, float *device, size_t count, int (*belongs)(cmkd_param_kind),
                            const float *const *into, float *const *out, cmkd_error *err) {
  if (!device || !count) return CMKD_OK;
  CMKD_TRY(copy_floats(m, m->host, device, count, cudaMemcpyDeviceToHost, err));
  for (int i = 0; i < m->graph->params; i++) {
    if (!belongs(m->graph->param[i].kind)) continue;
    if (into && into[i]) cmkd_cuda_param_store(m, i, into[i], m->host);
    if (out && out[i]) cmkd_cuda_param_load(m, i, m->host, out[i]);
  }
  return into ? copy_floats(m, m->host, device, count, cudaMemcpyHostToDevice, err) : CMKD_OK;
}

static int trained(cmkd_param_kind kind) { return CMKD_PARAM_TRAINED(kind); }
static int is_mean(cmkd_param_kind kind) { return kind == CMKD_PARAM_MEAN; }
static int is_var(cmkd_param_kind kind) { return kind == CMKD_PARAM_VAR; }

static cmkd_status slot_of(const cmkd_be_model *m, cmkd_param_slot slot, float **device, cmkd_error *err) {
  *device = slot == CMKD_SLOT_VALUE ? m->value : m->momentum;
  return *device
             ? CMKD_OK
             : cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s` was made for inference: it has no momentum", m->graph->arch);
}

cmkd_status cmkd_cuda_upload(cmkd_be_model *m, cmkd_param_slot slot, const float *const *params, cmkd_error *err) {
  float *device;
  CMKD_TRY(cmkd_cuda_use(m->backend, err));
  CMKD_TRY(slot_of(m, slot, &device, err));
  CMKD_TRY(exchange(m, device, (size_t)m->values, trained, params, NULL, err));
  if (slot != CMKD_SLOT_VALUE) return CMKD_OK;
  CMKD_TRY(exchange(m, m->mean, m->channels, is_mean, params, NULL, err));
  CMKD_TRY(exchange(m, m->var, m->channels, is_var, params, NULL, err));
  m->fold_stale = 1;
  return m->copy ? cmkd_cuda_round(m->value, m->values, m->copy, m->backend->dtype, m->backend->stream, err) : CMKD_OK;
}

cmkd_status cmkd_cuda_download(cmkd_be_model *m, cmkd_param_slot slot, float *const *params, cmkd_error *err) {
  float *device;
  CMKD_TRY(cmkd_cuda_use(m->backend, err));
  CMKD_TRY(slot_of(m, slot, &device, err));
  CMKD_TRY(exchange(m, device, (size_t)m->values, trained, NULL, params, err));
  for (int i = 0; i < m->graph->params && slot != CMKD_SLOT_VALUE; i++) /* buffers have none */
    if (params[i] && !trained(m->graph->param[i].kind))
      memset(params[i], 0, (size_t)m->graph->param[i].count * sizeof(float));
  if (slot != CMKD_SLOT_VALUE) return CMKD_OK;
  CMKD_TRY(exchange(m, m->mean, m->channels, is_mean, NULL, params, err));
  return exchange(m, m->var, m->channels, is_var, NULL, params, err);
}

/* As the optimizer saw them: 16-bit ones widened, the loss scale taken out. */
cmkd_status cmkd_cuda_gradients(cmkd_be_model *m, float *const *params, cmkd_error *err) {
  if (!m->grad)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s` was made for inference: it has no gradients", m->graph->arch);
  cmkd_cuda_state state;
  CMKD_TRY(cmkd_cuda_use(m->backend, err));
  CMKD_TRY(copy_floats(m, m->host, m->grad, (size_t)m->values, cudaMemcpyDeviceToHost, err));
  CMKD_TRY(cmkd_cuda_get(m->backend, &state, m->state, sizeof state, "gradients", err));
  const cuda_conv_algorithms *last = cmkd_cuda_algorithms_for(m, CMKD_LIST_TRAIN, m->trained_count);
  const int64_t chunks = last && last->from16 && !m->config.reduce.run ? m->values / CMKD_CUDA_CHUNK : 0;
  for (int64_t chunk = 0; chunk < chunks; chunk++) { /* with a hook all of them are floats */
    uint16_t narrow[CMKD_CUDA_CHUNK];
    if (!last->from16_host[chunk]) continue;
    CMKD_TRY(cmkd_cuda_get(m->backend, narrow, (uint16_t *)m->grad16 + chunk * CMKD_CUDA_CHUNK, sizeof narrow,
                           "gradients", err));
    for (int i = 0; i < CMKD_CUDA_CHUNK; i++)
      m->host[chunk * CMKD_CUDA_CHUNK + i] =
          m->backend->dtype == CMKD_F16 ? cmkd_half_to_float(narrow[i]) : cmkd_bf16_to_float(narrow[i]);
  }
  for (int64_t i = 0; i < m->values; i++)
    m->host[i] /= state.scale;
  for (int i = 0; i < m->graph->params; i++)
    if (params[i] && trained(m->graph->param[i].kind)) cmkd_cuda_param_load(m, i, m->host, params[i]);
  return CMKD_OK;
}
