/* After a step: gradients of all threads summed in thread order, SGD (sgd_impl.h), the weights packed anew for the
 * kernels, running statistics. For inference: batch norm folded into the convolutions. */
#include <math.h>
#include <omp.h>
#include <string.h>
#include "base/limits.h"
#include "kernels/cpu/model.h"

void cmkd_cpu_pack(cmkd_be_model *m) {
  const cmkd_graph *graph = m->graph;
#pragma omp parallel for schedule(dynamic) num_threads(m->backend->threads)
  for (int i = graph->ops - 1; i >= 0; i--) { /* the largest layers tend to come last */
    const cpu_op *o = &m->op[i];
    if (o->conv)
      cmkd_conv_pack(o->conv, 0, o->conv->g.oc, m->value[graph->op[i].param[0]], m->packed + o->forward_weights,
                     m->config.train ? m->packed + o->backward_weights : NULL);
  }
  m->stale = 0;
}

/* weights * gamma / sqrt(var + eps), and what is left as a bias. plain: scratch for the scaled weights. */
static void fold_one(cmkd_be_model *m, int i, float *plain) {
  const cmkd_graph *graph = m->graph;
  const cmkd_op *conv = &graph->op[i], *norm = &graph->op[m->norm_of[i]];
  const cpu_op *o = &m->op[i];
  const int channels = graph->tensor[conv->out].c;
  const int64_t each = graph->param[conv->param[0]].count / channels;
  const float *w = m->value[conv->param[0]];
  float *bias = m->packed + o->folded_bias;
  for (int c = 0; c < channels; c++) {
    double scale =
        m->value[norm->param[CMKD_NORM_GAMMA]][c] / sqrt((double)m->value[norm->param[CMKD_NORM_VAR]][c] + norm->eps);
    double own = conv->param[1] >= 0 ? m->value[conv->param[1]][c] : 0.0;
    bias[c] =
        (float)(m->value[norm->param[CMKD_NORM_BETA]][c] + (own - m->value[norm->param[CMKD_NORM_MEAN]][c]) * scale);
    for (int64_t j = 0; j < each; j++)
      plain[c * each + j] = (float)(w[c * each + j] * scale);
  }
  cmkd_conv_pack(o->conv, 0, o->conv->g.oc, plain, m->packed + o->folded_weights, NULL);
}

void cmkd_cpu_fold(cmkd_be_model *m) {
  const cmkd_graph *graph = m->graph;
#pragma omp parallel for schedule(dynamic) num_threads(m->backend->threads)
  for (int i = graph->ops - 1; i >= 0; i--) {
    const cpu_op *o = &m->op[i];
    if (!o->conv) continue;
    if (m->norm_of[i] >= 0)
      fold_one(m, i, m->worker[omp_get_thread_num()].scratch);
    else if (!m->config.train)
      cmkd_conv_pack(o->conv, 0, o->conv->g.oc, m->value[graph->op[i].param[0]], m->packed + o->forward_weights, NULL);
  }
  m->fold_stale = 0;
}

static void update_running(cmkd_be_model *m, int count) {
  const cmkd_graph *graph = m->graph;
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    if (op->kind != CMKD_OP_NORM) continue;
    const cmkd_shape s = graph->tensor[op->out];
    const double n = (double)count * s.h * s.w, unbias = n > 1 ? n / (n - 1) : 1.0, momentum = op->momentum;
    float *mean = m->value[op->param[CMKD_NORM_MEAN]], *var = m->value[op->param[CMKD_NORM_VAR]];
    for (int c = 0; c < s.c; c++) {
      mean[c] = (float)((1 - momentum) * mean[c] + momentum * m->batch_mean[m->op[i].channel + (size_t)c]);
      var[c] = (float)((1 - momentum) * var[c] + momentum * unbias * m->batch_var[m->op[i].channel + (size_t)c]);
    }
  }
}

/* The gradients of all workers, summed in worker order, into the model's. (Those of batch norms are there already.) */
static void collect_item(cmkd_be_model *m, const cpu_update_item *item) {
  const cmkd_op *op = &m->graph->op[item->op];
  const cpu_op *o = &m->op[item->op];
  const int threads = m->backend->threads, p = item->param;
  if (!o->conv) return;
  if (p == op->param[0]) {
    const float *grad[CMKD_MAX_THREADS];
    for (int t = 0; t < threads; t++)
      grad[t] = m->worker[t].packed_grad + o->weight_grad;
    cmkd_conv_unpack_grad(o->conv, grad, threads, item->first, item->count, m->grad[p]);
    return;
  }
  for (int k = item->first; k < item->first + item->count; k++) {
    double sum = 0;
    for (int t = 0; t < threads; t++)
      sum += m->worker[t].bias_sum[o->channel + (size_t)k];
    m->grad[p][k] = (float)sum;
  }
}

static void apply_item(cmkd_be_model *m, const cpu_update_item *item, float lr) {
  const cmkd_op *op = &m->graph->op[item->op];
  const cpu_op *o = &m->op[item->op];
  const cmkd_model_config *c = &m->config;
  const int p = item->param;
  const int64_t each = m->graph->param[p].count / m->graph->tensor[op->out].c, first = each * item->first;
  m->backend->kernels->sgd(m->value[p] + first, m->momentum[p] + first, m->grad[p] + first, each * item->count, lr,
                           c->momentum, c->weight_decay, c->nesterov);
  if (o->conv && p == op->param[0])
    cmkd_conv_pack(o->conv, item->first, item->count, m->value[p], m->packed + o->forward_weights,
                   m->packed + o->backward_weights); /* while it is in cache */
}

/* Collected, reduced, applied: every gradient is complete before the hook sees the first. */
static cmkd_status update_with_hook(cmkd_be_model *m, float lr, cmkd_error *err) {
  const cmkd_reduce *reduce = &m->config.reduce;
#pragma omp parallel for schedule(dynamic) num_threads(m->backend->threads)
  for (int i = m->items - 1; i >= 0; i--)
    collect_item(m, &m->item[i]);
  CMKD_TRY(reduce->run(reduce->self, m->grad_block, m->grad_block_floats, NULL, err));
#pragma omp parallel for schedule(dynamic) num_threads(m->backend->threads)
  for (int i = m->items - 1; i >= 0; i--)
    apply_item(m, &m->item[i], lr);
  return CMKD_OK;
}

cmkd_status cmkd_cpu_update(cmkd_be_model *m, float lr, int count, cmkd_error *err) {
  if (m->config.reduce.run)
    CMKD_TRY(update_with_hook(m, lr, err));
  else {
#pragma omp parallel for schedule(dynamic) num_threads(m->backend->threads)
    for (int i = m->items - 1; i >= 0; i--) {
      collect_item(m, &m->item[i]);
      apply_item(m, &m->item[i], lr);
    }
  }
  update_running(m, count);
  m->stale = 0;
  m->fold_stale = 1;
  return CMKD_OK;
}
