/* A model of the CPU backend: planned, its memory allocated once and carved, parameters in and out. */
#include "kernels/cpu/model.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kernels/cpu/backend.h"

#define SLACK 64 /* floats past the end of every array that vector loads may touch */

static void worker_free(cpu_worker *worker) {
  free(worker->floats);
  free(worker->doubles);
}

void cmkd_cpu_model_free(cmkd_be_model *m) {
  if (!m) return;
  for (int i = 0; m->op && i < m->graph->ops; i++)
    cmkd_conv_free(m->op[i].conv);
  for (int t = 0; m->worker && t < m->backend->threads; t++)
    worker_free(&m->worker[t]);
  cmkd_plan_free(&m->train);
  cmkd_plan_free(&m->infer);
  void *const owned[] = {
      m->op,        m->norm_of, m->worker,     m->value, m->momentum, m->grad,         m->storage,
      m->packed,    m->arena,   m->batch_mean, m->item,  m->labels,   m->loss_scratch, m->agreement_scratch,
      m->row_error, m};
  cmkd_results_free(&m->results);
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    free(owned[i]);
}

/* `count` elements, 64-byte aligned, the rest of the last cache line and SLACK floats zeroed; NULL when that is more
 * than the machine has. */
static void *array(size_t count, size_t size) {
  size_t bytes, physical = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
  if (__builtin_mul_overflow(count, size, &bytes) || bytes > physical) return NULL;
  size_t whole = (bytes + 63) / 64 * 64 + SLACK * sizeof(float);
  char *p = aligned_alloc(64, whole);
  if (p) memset(p + bytes, 0, whole - bytes);
  return p;
}

static cmkd_status no_memory(const cmkd_be_model *m, cmkd_error *err) {
  const double mb_a_float = 4e-6;
  double mb =
      mb_a_float * ((double)m->train.arena * m->config.batch +
                    m->backend->threads * ((double)m->packed_grad_floats + (double)(m->train.local + m->infer.local)) +
                    4.0 * (double)m->packed_floats);
  return cmkd_fail(err, CMKD_ERR_MEMORY,
                   "not enough memory for `%s` at batch %d on %d threads (about %.0f MB); lower --batch or --threads",
                   m->graph->arch, m->config.batch, m->backend->threads, mb);
}

static cmkd_conv_geometry geometry_of(const cmkd_graph *graph, const cmkd_op *op) {
  cmkd_shape in = graph->tensor[op->in[0]], out = graph->tensor[op->out];
  if (op->kind == CMKD_OP_LINEAR) /* a 1x1 convolution of one pixel of h * w * c channels */
    return (cmkd_conv_geometry){.ih = 1,
                                .iw = 1,
                                .ic = in.h * in.w * in.c,
                                .oh = 1,
                                .ow = 1,
                                .oc = out.c,
                                .kh = 1,
                                .kw = 1,
                                .stride = 1,
                                .groups = 1,
                                .plane = in.h * in.w};
  return (cmkd_conv_geometry){.ih = in.h,
                              .iw = in.w,
                              .ic = in.c,
                              .oh = out.h,
                              .ow = out.w,
                              .oc = out.c,
                              .kh = op->kernel_h,
                              .kw = op->kernel_w,
                              .stride = op->stride,
                              .pad = op->pad,
                              .groups = op->groups,
                              .plane = 1};
}

static int is_conv(const cmkd_op *op) { return cmkd_op_traits_of(op->kind)->weighted; }

static size_t padded(size_t floats) { return (floats + 15) / 16 * 16; }

/* Plans every convolution and lays out packed weights, workers' gradients and statistics. */
static cmkd_status plan_ops(cmkd_be_model *m, size_t *scratch, cmkd_error *err) {
  const cmkd_graph *graph = m->graph;
  const cmkd_conv_options options = {.kernels = m->backend->kernels,
                                     .train = m->config.train,
                                     .dnnl = m->backend->dnnl,
                                     .threads = m->backend->threads};
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    cpu_op *o = &m->op[i];
    size_t channels = (size_t)graph->tensor[op->out].c;
    m->widest = channels > m->widest ? channels : m->widest;
    if (op->kind == CMKD_OP_NORM) {
      o->channel = m->channels;
      m->channels += channels;
    }
    if (!is_conv(op)) continue;
    cmkd_conv_geometry geometry = geometry_of(graph, op);
    CMKD_TRY(cmkd_conv_create(&geometry, &options, &o->conv, err));
    if (op->param[1] >= 0) {
      o->channel = m->bias_channels;
      m->bias_channels += channels;
    }
    o->forward_weights = m->packed_floats;
    m->packed_floats += padded(o->conv->forward_floats);
    o->folded_weights = o->forward_weights;
    if (m->norm_of[i] >= 0) {
      size_t weights = (size_t)graph->param[op->param[0]].count; /* folding scales a copy */
      *scratch = weights > *scratch ? weights : *scratch;
      if (m->config.train) { /* both forms are kept */
        o->folded_weights = m->packed_floats;
        m->packed_floats += padded(o->conv->forward_floats);
      }
      o->folded_bias = m->packed_floats;
      m->packed_floats += padded(channels);
    }
    if (!m->config.train) continue;
    o->backward_weights = m->packed_floats;
    m->packed_floats += padded(o->conv->backward_floats);
    o->weight_grad = m->packed_grad_floats;
    m->packed_grad_floats += padded(o->conv->grad_floats);
  }
  return CMKD_OK;
}

static int worker_alloc(const cmkd_be_model *m, cpu_worker *worker, size_t scratch) {
  const size_t local = m->train.local > m->infer.local ? m->train.local : m->infer.local,
               channels = padded(m->channels), widest = padded(m->widest);
  const size_t ops = (size_t)m->graph->ops;
  worker->floats =
      array(padded(scratch) + padded(local) + SLACK + padded(m->packed_grad_floats) + 5 * channels + 2 * widest,
            sizeof(float));
  worker->doubles = array(5 * m->channels + ops + m->bias_channels, sizeof(double));
  if (!worker->floats || !worker->doubles) return 0;
  float *f = worker->floats;
  worker->scratch = f;
  f += padded(scratch);
  worker->local = f;
  f += padded(local) + SLACK;
  worker->packed_grad = f;
  f += padded(m->packed_grad_floats);
  float **const five[] = {&worker->scale, &worker->shift, &worker->mean_f, &worker->dx_scale, &worker->dx_shift};
  for (int i = 0; i < 5; i++, f += channels)
    *five[i] = f;
  worker->chunk_mean = f;
  worker->chunk_m2 = f + widest;
  double **const sums[] = {&worker->mean, &worker->m2, &worker->sum1, &worker->sum2, &worker->rstd};
  double *d = worker->doubles;
  for (int i = 0; i < 5; i++, d += m->channels)
    *sums[i] = d;
  worker->count = d;
  worker->bias_sum = d + ops;
  return 1;
}

/* Value, momentum and gradient of every parameter, in one block of each kind. */
static int params_alloc(cmkd_be_model *m) {
  const cmkd_graph *graph = m->graph;
  const int kinds = m->config.train ? 3 : 1;
  size_t total = 0;
  for (int i = 0; i < graph->params; i++)
    total += padded((size_t)graph->param[i].count);
  m->storage = array(total * (size_t)kinds, sizeof(float));
  float ***const tables[] = {&m->value, &m->momentum, &m->grad};
  if (m->storage) memset(m->storage, 0, total * (size_t)kinds * sizeof(float));
  for (int k = 0; k < kinds && m->storage; k++) {
    float *at = m->storage + (size_t)k * total;
    if (!(*tables[k] = calloc((size_t)graph->params, sizeof(float *)))) return 0;
    for (int i = 0; i < graph->params; i++) {
      (*tables[k])[i] = at;
      at += padded((size_t)graph->param[i].count);
    }
  }
  if (!m->storage) return 0;
  m->grad_block = m->config.train ? m->storage + 2 * total : NULL;
  m->grad_block_floats = total;
  return 1;
}

/* The items of the update: weights in slices of output channels, so that threads share even one large layer. */
static int items_alloc(cmkd_be_model *m) {
  const cmkd_graph *graph = m->graph;
  for (int pass = 0; pass < 2; pass++) {
    m->items = 0;
    for (int i = 0; i < graph->ops; i++) {
      const cmkd_op *op = &graph->op[i];
      const int slots = cmkd_op_traits_of(op->kind)->trained, channels = graph->tensor[op->out].c;
      for (int s = 0; s < slots; s++) {
        if (op->param[s] < 0) continue;
        int sliced = is_conv(op) && s == 0 && !m->op[i].conv->dnnl, slice = sliced ? CMKD_CONV_SLICE : channels;
        for (int first = 0; first < channels; first += slice, m->items++)
          if (pass)
            m->item[m->items] =
                (cpu_update_item){i, op->param[s], first, channels - first < slice ? channels - first : slice};
      }
    }
    if (!pass && !(m->item = calloc((size_t)m->items + 1, sizeof *m->item))) return 0;
  }
  return 1;
}

static int buffers_alloc(cmkd_be_model *m) {
  const size_t batch = (size_t)m->config.batch;
  size_t arena;
  m->packed = array(m->packed_floats, sizeof(float));
  if (!m->packed || !params_alloc(m)) return 0;
  memset(m->packed, 0, m->packed_floats * sizeof(float));
  if (!m->config.train) return 1;
  if (__builtin_mul_overflow(m->train.arena, batch, &arena)) return 0;
  m->arena = array(arena, sizeof(float));
  m->batch_mean = array(2 * m->channels + 2, sizeof(double));
  m->labels = array(batch, sizeof *m->labels);
  m->row_error = array(batch, sizeof *m->row_error);
  m->loss_scratch = array(cmkd_loss_scratch(m->config.loss, "cpu", m->config.batch, m->graph->classes), 1);
  m->agreement_scratch = array(cmkd_agreement_scratch(m->config.batch, m->graph->classes), 1);
  if (!m->arena || !m->batch_mean || !m->labels || !m->row_error || !m->loss_scratch || !m->agreement_scratch) return 0;
  m->batch_var = m->batch_mean + m->channels;
  return items_alloc(m);
}

cmkd_status cmkd_cpu_model_create(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out,
                                  cmkd_error *err) {
  *out = NULL;
  CMKD_TRY(cmkd_model_check(config, err));
  cmkd_be_model *m = calloc(1, sizeof *m);
  if (!m) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  m->backend = backend;
  m->config = *config;
  m->graph = config->graph;
  m->stale = m->fold_stale = 1;
  m->roots = cmkd_gradient_roots(config, m->root);
  m->objectives = config->objectives;
  for (int i = 0; i < m->objectives; i++)
    m->objective[i] = cmkd_objective_of(config, i);
  const size_t ops = (size_t)m->graph->ops;
  m->op = calloc(ops, sizeof *m->op);
  m->norm_of = calloc(ops, sizeof *m->norm_of);
  m->worker = calloc((size_t)backend->threads, sizeof *m->worker);
  const cmkd_plan_layout infer_layout = {.pad = 1, .align = 16, .local = 1};
  const cmkd_plan_layout train_layout = {.pad = 1, .align = 1, .local = 1};
  size_t scratch = 0;
  cmkd_status status = m->op && m->norm_of && m->worker ? CMKD_OK : no_memory(m, err);
  if (status == CMKD_OK) status = cmkd_plan_infer(m->graph, infer_layout, m->norm_of, &m->infer, err);
  if (status == CMKD_OK && config->train)
    status = cmkd_plan_train(m->graph, train_layout, m->root, m->roots, &m->train, err);
  if (status == CMKD_OK) status = plan_ops(m, &scratch, err);
  if (status == CMKD_OK && !buffers_alloc(m)) status = no_memory(m, err);
  for (int t = 0; status == CMKD_OK && t < backend->threads; t++)
    if (!worker_alloc(m, &m->worker[t], scratch)) status = no_memory(m, err);
  if (status != CMKD_OK) {
    cmkd_cpu_model_free(m);
    return status;
  }
  *out = m;
  return CMKD_OK;
}

static cmkd_status slot_of(const cmkd_be_model *m, cmkd_param_slot slot, float ***table, cmkd_error *err) {
  *table = slot == CMKD_SLOT_VALUE ? m->value : m->momentum;
  return *table
             ? CMKD_OK
             : cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s` was made for inference: it has no momentum", m->graph->arch);
}

cmkd_status cmkd_cpu_upload(cmkd_be_model *m, cmkd_param_slot slot, const float *const *params, cmkd_error *err) {
  float **table;
  CMKD_TRY(slot_of(m, slot, &table, err));
  for (int i = 0; i < m->graph->params; i++)
    if (params[i]) memcpy(table[i], params[i], sizeof(float) * (size_t)m->graph->param[i].count);
  if (slot == CMKD_SLOT_VALUE) m->stale = m->fold_stale = 1;
  return CMKD_OK;
}

cmkd_status cmkd_cpu_download(cmkd_be_model *m, cmkd_param_slot slot, float *const *params, cmkd_error *err) {
  float **table;
  CMKD_TRY(slot_of(m, slot, &table, err));
  for (int i = 0; i < m->graph->params; i++)
    if (params[i]) memcpy(params[i], table[i], sizeof(float) * (size_t)m->graph->param[i].count);
  return CMKD_OK;
}

cmkd_status cmkd_cpu_gradients(cmkd_be_model *m, float *const *params, cmkd_error *err) {
  if (!m->grad)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s` was made for inference: it has no gradients", m->graph->arch);
  for (int i = 0; i < m->graph->params; i++)
    if (params[i]) memcpy(params[i], m->grad[i], sizeof(float) * (size_t)m->graph->param[i].count);
  return CMKD_OK;
}
