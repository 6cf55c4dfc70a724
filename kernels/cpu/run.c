/* The steps of a plan: one TRAIN step, one INFER step. Every thread works on its own slice of the batch (training) or
 * takes the next chunk (inference, where a row's bits depend on the row and the step's count alone). */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/augment.h"
#include "kernels/cpu/model.h"
#include "kernels/cpu/ops.h"

/* One chunk of a thread: images [first, first + n) of the step. */
typedef struct cpu_chunk {
  cmkd_be_model *m;
  cpu_worker *worker;
  const cmkd_plan *plan;
  const cmkd_be_images *images;
  const cmkd_step *step;
  int thread, first, n, stride; /* stride: the phase's chunk */
  float *const *outputs;        /* INFER: the caller's */
} cpu_chunk;

/* Where the chunk's images of a tensor lie: in the thread's own buffer, or in the arena of the whole batch. */
static float *place(const cpu_chunk *c, const cmkd_plan_buffer *p) {
  if (!p->used) return NULL;
  return p->local ? c->worker->local + p->offset * (size_t)c->stride
                  : c->m->arena + p->offset * (size_t)c->m->config.batch + (size_t)c->first * p->size;
}
static float *value(const cpu_chunk *c, int tensor) { return tensor < 0 ? NULL : place(c, &c->plan->value[tensor]); }
static float *grad(const cpu_chunk *c, int tensor) { return tensor < 0 ? NULL : place(c, &c->plan->grad[tensor]); }
static int64_t pixels_of(const cpu_chunk *c, int tensor) {
  return (int64_t)c->n * c->m->graph->tensor[tensor].h * c->m->graph->tensor[tensor].w;
}

/* ---- batch norm's sums ---- */

/* Chan, Golub, LeVeque 1979: joins the statistics of nb numbers to those of na. */
static void join_moments(double *mean, double *m2, double na, double mean_b, double m2_b, double nb) {
  double delta = mean_b - *mean, n = na + nb;
  *mean += delta * nb / n;
  *m2 += m2_b + delta * delta * na * nb / n;
}

static void add_moments(cpu_chunk *c, int index) {
  const cmkd_op *op = &c->m->graph->op[index];
  cpu_worker *worker = c->worker;
  const int channels = c->m->graph->tensor[op->out].c;
  const size_t at = c->m->op[index].channel;
  const int64_t px = pixels_of(c, op->in[0]);
  c->m->backend->kernels->moments(value(c, op->in[0]), px, channels, worker->chunk_mean, worker->chunk_m2);
  for (int i = 0; i < channels; i++)
    join_moments(&worker->mean[at + (size_t)i], &worker->m2[at + (size_t)i], worker->count[index],
                 worker->chunk_mean[i], worker->chunk_m2[i], (double)px);
  worker->count[index] += (double)px;
}

/* All workers' statistics, in worker order, as the scale and shift of this step. */
static void combine_moments(cmkd_be_model *m, int thread, int index) {
  const cmkd_op *op = &m->graph->op[index];
  const cpu_worker *workers = m->worker;
  cpu_worker *own = &m->worker[thread];
  const float *gamma = m->value[op->param[CMKD_NORM_GAMMA]], *beta = m->value[op->param[CMKD_NORM_BETA]];
  for (int i = 0; i < m->graph->tensor[op->out].c; i++) {
    const size_t at = m->op[index].channel + (size_t)i;
    double mean = 0, m2 = 0, n = 0;
    for (int t = 0; t < m->backend->threads; t++) {
      if (!(workers[t].count[index] > 0)) continue;
      join_moments(&mean, &m2, n, workers[t].mean[at], workers[t].m2[at], workers[t].count[index]);
      n += workers[t].count[index];
    }
    const double var = m2 > 0 || !isfinite(m2) ? m2 / n : 0; /* rounding may leave m2 a little below 0 */
    const double rstd = 1.0 / sqrt(var + op->eps);
    own->rstd[at] = rstd;
    own->mean_f[at] = (float)mean;
    own->scale[at] = (float)(gamma[i] * rstd);
    own->shift[at] = (float)(beta[i] - mean * (gamma[i] * rstd));
    if (thread) continue;
    m->batch_mean[at] = mean;
    m->batch_var[at] = var;
  }
}

static void norm_sums(cpu_chunk *c, int index) {
  const cmkd_op *op = &c->m->graph->op[index];
  cpu_worker *worker = c->worker;
  const size_t at = c->m->op[index].channel;
  float *dy = grad(c, op->out);
  const int passed_on = op->in[1] >= 0 && op->act != CMKD_ACT_NONE; /* the shortcut receives the masked gradient */
  const cmkd_norm_gradient g = {.dy = dy,
                                .x = value(c, op->in[0]),
                                .y = passed_on ? value(c, op->out) : NULL,
                                .scale = worker->scale + at,
                                .shift = worker->shift + at,
                                .mean = worker->mean_f + at,
                                .act = op->act,
                                .px = pixels_of(c, op->out),
                                .c = c->m->graph->tensor[op->out].c};
  c->m->backend->kernels->norm_backward_sums(&g, passed_on ? dy : NULL, worker->sum1 + at, worker->sum2 + at);
}

/* All workers' backward sums: dx = scale * (dz - mean(dz) - (x - mean) * rstd^2 * mean(dz * (x - mean))). */
static void combine_sums(cmkd_be_model *m, int thread, int index, int count) {
  const cmkd_op *op = &m->graph->op[index];
  const cmkd_shape s = m->graph->tensor[op->out];
  const double n = (double)count * s.h * s.w;
  cpu_worker *own = &m->worker[thread];
  for (int i = 0; i < s.c; i++) {
    const size_t at = m->op[index].channel + (size_t)i;
    double sum1 = 0, sum2 = 0, rstd = own->rstd[at], scale = m->value[op->param[CMKD_NORM_GAMMA]][i] * rstd;
    for (int t = 0; t < m->backend->threads; t++) {
      sum1 += m->worker[t].sum1[at];
      sum2 += m->worker[t].sum2[at];
    }
    own->dx_scale[at] = (float)(-scale * rstd * rstd * sum2 / n);
    own->dx_shift[at] = (float)(-scale * sum1 / n);
    if (thread) continue;
    m->grad[op->param[CMKD_NORM_GAMMA]][i] = (float)(sum2 * rstd);
    m->grad[op->param[CMKD_NORM_BETA]][i] = (float)sum1;
  }
}

static void norm_backward(cpu_chunk *c, const cmkd_plan_item *item) {
  const cmkd_graph *graph = c->m->graph;
  const cmkd_cpu_kernels *k = c->m->backend->kernels;
  const cmkd_op *op = &graph->op[item->op];
  const cpu_worker *worker = c->worker;
  const size_t at = c->m->op[item->op].channel;
  const float *dy = grad(c, op->out);
  const int64_t px = pixels_of(c, op->out);
  const int channels = graph->tensor[op->out].c;
  const cmkd_act act = op->in[1] >= 0 ? CMKD_ACT_NONE : op->act; /* norm_sums has masked dy */
  const cmkd_norm_gradient g = {.dy = dy,
                                .x = value(c, op->in[0]),
                                .scale = worker->scale + at,
                                .shift = worker->shift + at,
                                .mean = worker->mean_f + at,
                                .act = act,
                                .px = px,
                                .c = channels};
  if (!item->skip[0])
    k->norm_backward(&g, worker->dx_scale + at, worker->dx_shift + at, item->accumulate[0], grad(c, op->in[0]));
  if (op->in[1] < 0 || item->skip[1]) return;
  if (item->accumulate[1])
    k->add(grad(c, op->in[1]), dy, px * channels);
  else
    memcpy(grad(c, op->in[1]), dy, sizeof(float) * (size_t)(px * channels));
}

/* ---- forward and backward of one op on one chunk ---- */

static void gather(cpu_chunk *c) {
  const cmkd_image_set *im = &c->images->set;
  const cmkd_model_config *config = &c->m->config;
  const cmkd_gather rows = {.policy = config->policy,
                            .pixels = im->pixels,
                            .rows = c->step->rows + c->first,
                            .seeds = c->step->seeds ? c->step->seeds + c->first : NULL,
                            .count = c->n,
                            .h = im->h,
                            .w = im->w,
                            .c = im->c};
  cmkd_augment_cpu(&rows, config->mean, config->std, im->c, value(c, 0));
}

/* Batch norm with running statistics that could not be folded. */
static void norm_infer(cpu_chunk *c, const cmkd_op *op) {
  const cmkd_be_model *m = c->m;
  const int channels = m->graph->tensor[op->out].c;
  float *scale = c->worker->chunk_mean, *shift = c->worker->chunk_m2;
  for (int i = 0; i < channels; i++) {
    double s = m->value[op->param[CMKD_NORM_GAMMA]][i] / sqrt((double)m->value[op->param[CMKD_NORM_VAR]][i] + op->eps);
    scale[i] = (float)s;
    shift[i] = (float)(m->value[op->param[CMKD_NORM_BETA]][i] - m->value[op->param[CMKD_NORM_MEAN]][i] * s);
  }
  m->backend->kernels->affine(value(c, op->in[0]), scale, shift, value(c, op->in[1]), op->act, value(c, op->out),
                              pixels_of(c, op->out), channels);
}

static cmkd_cpu_op_call call_of(const cpu_chunk *c, const cmkd_op *op) {
  return (cmkd_cpu_op_call){.kernels = c->m->backend->kernels,
                            .graph = c->m->graph,
                            .op = op,
                            .n = c->n,
                            .in = {value(c, op->in[0]), value(c, op->in[1])}};
}

static void forward(cpu_chunk *c, const cmkd_plan_item *item) {
  const cmkd_be_model *m = c->m;
  const cmkd_op *op = &m->graph->op[item->op];
  const cpu_op *o = &m->op[item->op];
  const size_t at = o->channel;
  if (item->kind == CMKD_PLAN_FUSED) {
    const cmkd_op *norm = &m->graph->op[item->norm];
    cmkd_epilogue e = {m->packed + o->folded_bias, value(c, norm->in[1]), norm->act};
    cmkd_conv_forward(o->conv, c->thread, c->n, value(c, op->in[0]), m->packed + o->folded_weights, &e,
                      value(c, norm->out));
  } else if (o->conv) {
    cmkd_epilogue e = {op->param[1] >= 0 ? m->value[op->param[1]] : NULL, NULL, CMKD_ACT_NONE};
    cmkd_conv_forward(o->conv, c->thread, c->n, value(c, op->in[0]), m->packed + o->forward_weights, &e,
                      value(c, op->out));
  } else if (op->kind != CMKD_OP_NORM) {
    const cmkd_cpu_op_call call = call_of(c, op);
    cmkd_cpu_op_forward(&call, value(c, op->out));
  } else if (c->plan == &m->infer)
    norm_infer(c, op);
  else
    m->backend->kernels->affine(value(c, op->in[0]), c->worker->scale + at, c->worker->shift + at, value(c, op->in[1]),
                                op->act, value(c, op->out), pixels_of(c, op->out), m->graph->tensor[op->out].c);
}

static void backward(cpu_chunk *c, const cmkd_plan_item *item) {
  const cmkd_be_model *m = c->m;
  const cmkd_op *op = &m->graph->op[item->op];
  const cpu_op *o = &m->op[item->op];
  const float *dout = grad(c, op->out);
  if (!o->conv) {
    float *const din[2] = {item->skip[0] ? NULL : grad(c, op->in[0]), item->skip[1] ? NULL : grad(c, op->in[1])};
    const cmkd_cpu_op_call call = call_of(c, op);
    cmkd_cpu_op_backward(&call, value(c, op->out), dout, din, item->accumulate);
    return;
  }
  cmkd_conv_backward_weights(o->conv, c->thread, c->n, value(c, op->in[0]), dout,
                             c->worker->packed_grad + o->weight_grad);
  if (op->param[1] >= 0)
    m->backend->kernels->channel_sums(dout, pixels_of(c, op->out), m->graph->tensor[op->out].c,
                                      c->worker->bias_sum + o->channel);
  if (!item->skip[0])
    cmkd_conv_backward_data(o->conv, c->thread, c->n, dout, m->packed + o->backward_weights, item->accumulate[0],
                            grad(c, op->in[0]));
}

static void output(cpu_chunk *c) {
  const cmkd_graph *graph = c->m->graph;
  for (int i = 0; i < graph->outputs; i++) {
    const size_t width = cmkd_graph_output_width(graph, i);
    if (c->outputs[i])
      memcpy(c->outputs[i] + (size_t)c->first * width, value(c, graph->output[i].tensor),
             (size_t)c->n * width * sizeof(float));
  }
}

static void run_chunk(cpu_chunk *c, const cmkd_plan_phase *phase) {
  for (int i = phase->first; i < phase->first + phase->items; i++) {
    const cmkd_plan_item *item = &c->plan->item[i];
    switch (item->kind) {
    case CMKD_PLAN_GATHER: gather(c); break;
    case CMKD_PLAN_FORWARD:
    case CMKD_PLAN_FUSED: forward(c, item); break;
    case CMKD_PLAN_MOMENTS: add_moments(c, item->op); break;
    case CMKD_PLAN_NORM_SUMS: norm_sums(c, item->op); break;
    case CMKD_PLAN_NORM_BACKWARD: norm_backward(c, item); break;
    case CMKD_PLAN_BACKWARD: backward(c, item); break;
    case CMKD_PLAN_OUTPUT: output(c); break;
    }
  }
}

/* ---- a TRAIN step ---- */

/* One worker's part of a phase: the sums that the barrier before it has completed, then its slice of the batch. */
static void run_worker(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *step, int thread,
                       const cmkd_plan_phase *phase) {
  for (int i = phase->first; i < phase->first + phase->items; i++) {
    const cmkd_plan_item *p = &m->train.item[i];
    if (p->kind == CMKD_PLAN_FORWARD && m->graph->op[p->op].kind == CMKD_OP_NORM) combine_moments(m, thread, p->op);
    if (p->kind == CMKD_PLAN_NORM_BACKWARD) combine_sums(m, thread, p->op, step->count);
  }
  const int first = (int)((int64_t)step->count * thread / m->backend->threads),
            end = (int)((int64_t)step->count * (thread + 1) / m->backend->threads);
  for (int i = first; i < end; i += phase->chunk) {
    cpu_chunk c = {.m = m,
                   .worker = &m->worker[thread],
                   .plan = &m->train,
                   .images = images,
                   .step = step,
                   .thread = thread,
                   .first = i,
                   .n = end - i < phase->chunk ? end - i : phase->chunk,
                   .stride = phase->chunk};
    run_chunk(&c, phase);
  }
}

static void clear_worker(cmkd_be_model *m, int thread) {
  cpu_worker *worker = &m->worker[thread];
  memset(worker->packed_grad, 0, m->packed_grad_floats * sizeof *worker->packed_grad);
  memset(worker->doubles, 0, (5 * m->channels + (size_t)m->graph->ops + m->bias_channels) * sizeof *worker->doubles);
}

/* Phases [from, to); `clear` first sets all gradients and sums to zero. A team of fewer threads than there are workers
 * (nested parallelism, thread limits) takes the workers in turn: same sums, same bytes. */
static void run_phases(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *step, int clear, int from,
                       int to) {
  const int workers = m->backend->threads;
#pragma omp parallel num_threads(workers)
  {
    const int team = omp_get_num_threads(), me = omp_get_thread_num();
    if (clear) {
      for (int t = me; t < workers; t += team)
        clear_worker(m, t);
#pragma omp barrier
    }
    for (int p = from; p < to; p++) {
      for (int t = me; t < workers; t += team)
        run_worker(m, images, step, t, &m->train.phase[p]);
#pragma omp barrier
    }
  }
}

/* Of the whole batch; tensors of a training plan that cross phases lie in the arena. */
static float *whole(const cmkd_be_model *m, const cmkd_plan_buffer *buffer) {
  return m->arena + buffer->offset * (size_t)m->config.batch;
}

/* The loss, top-1 and top-5, and the agreement with the teacher. Overwrites the gradient of the logits. */
static cmkd_status evaluate_loss(cmkd_be_model *m, const cmkd_step *step, cmkd_step_result *r, cmkd_error *err) {
  const int classes = m->graph->classes, tensor = cmkd_graph_logits(m->graph);
  const float *logits = whole(m, &m->train.value[tensor]), *teacher = step->target[CMKD_TARGET_TEACHER].values;
  const cmkd_loss_batch b = {.batch = step->count,
                             .classes = classes,
                             .student = logits,
                             .teacher = teacher,
                             .teacher_dtype = CMKD_F32,
                             .labels = m->labels,
                             .grad = whole(m, &m->train.grad[tensor]),
                             .epoch = step->epoch,
                             .label_smoothing = m->config.label_smoothing,
                             .entropy_mean = cmkd_step_entropy_mean(step)};
  const int threads = omp_get_max_threads();
  omp_set_num_threads(m->backend->threads); /* the loss takes what its caller allows */
  cmkd_status status = cmkd_loss_eval(m->config.loss, "cpu", &b, m->loss_scratch, &r->loss, err);
  if (status == CMKD_OK && teacher)
    status = cmkd_agreement_add(&(cmkd_agreement_batch){.batch = step->count,
                                                        .classes = classes,
                                                        .student = logits,
                                                        .teacher = teacher,
                                                        .teacher_dtype = CMKD_F32,
                                                        .kappa = m->config.kappa},
                                m->agreement_scratch, &r->agreement, err);
  omp_set_num_threads(threads);
  CMKD_TRY(status);
  for (int i = 0; i < step->count; i++)
    cmkd_result_count_rank(r, cmkd_label_rank(logits + (size_t)i * (size_t)classes, classes, m->labels[i]));
  return CMKD_OK;
}

/* One further term: its value, and its gradient added to that of its output. Rows are summed in order, whatever the
 * number of threads. */
static cmkd_status add_objective(cmkd_be_model *m, const cmkd_step *step, int index, cmkd_step_result *r,
                                 cmkd_error *err) {
  const cmkd_objective_term *term = &m->objective[index];
  const size_t width = (size_t)term->width;
  const double scale = 2 * term->weight / ((double)step->count * (double)width);
  const float *output = whole(m, &m->train.value[term->tensor]), *target = step->target[term->target].values;
  float *gradient = term->tensor > 0 ? whole(m, &m->train.grad[term->tensor]) : NULL;
#pragma omp parallel for num_threads(m->backend->threads)
  for (int i = 0; i < step->count; i++) {
    double sum = 0;
    for (size_t j = (size_t)i * width; j < ((size_t)i + 1) * width; j++) {
      const double difference = (double)output[j] - (double)target[j];
      sum += difference * difference;
      if (gradient) gradient[j] += (float)(scale * difference);
    }
    m->row_error[i] = sum / (double)width;
  }
  double total = 0;
  for (int i = 0; i < step->count; i++) {
    if (!isfinite(m->row_error[i])) {
      r->loss.bad_row = i;
      return cmkd_fail(err, CMKD_ERR_VALUE, "image %u: output `%s` or target `%s` is not finite", step->rows[i],
                       m->config.objective[index].output, m->config.objective[index].target);
    }
    total += m->row_error[i];
  }
  r->objective[index] = total / step->count;
  return CMKD_OK;
}

/* Everything between forward and backward. */
static cmkd_status evaluate(cmkd_be_model *m, const cmkd_step *step, cmkd_step_result *r, cmkd_error *err) {
  r->count = step->count;
  CMKD_TRY(evaluate_loss(m, step, r, err));
  for (int i = 0; i < m->roots; i++) {
    const int tensor = m->root[i];
    if (tensor <= 0 || tensor == cmkd_graph_logits(m->graph)) continue; /* the loss has written that of the logits */
    memset(whole(m, &m->train.grad[tensor]), 0, (size_t)step->count * m->train.grad[tensor].size * sizeof(float));
  }
  for (int i = 0; i < m->objectives; i++)
    CMKD_TRY(add_objective(m, step, i, r, err));
  return CMKD_OK;
}

static cmkd_status train_step(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *step,
                              cmkd_step_result *result, cmkd_error *err) {
  for (int i = 0; i < step->count; i++)
    m->labels[i] = images->set.labels[step->rows[i]];
  if (m->stale) cmkd_cpu_pack(m);
  run_phases(m, images, step, 1, 0, m->train.backward);
  CMKD_TRY(evaluate(m, step, result, err));
  run_phases(m, images, step, 0, m->train.backward, m->train.phases);
  return cmkd_cpu_update(m, (float)step->lr, step->count, err);
}

cmkd_status cmkd_cpu_train_step(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *step,
                                cmkd_error *err) {
  cmkd_step_result *result;
  CMKD_TRY(cmkd_results_add(&m->results, &result, err));
  cmkd_status status = train_step(m, images, step, result, err);
  if (status != CMKD_OK && result->loss.bad_row < 0) m->results.count--; /* the step failed before it had a result */
  return status;
}

/* ---- an INFER step ---- */

cmkd_status cmkd_cpu_infer_step(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *step,
                                float *const *outputs, cmkd_error *err) {
  const cmkd_plan_phase *phase = &m->infer.phase[0];
  const int classes = m->graph->classes, chunks = (step->count + phase->chunk - 1) / phase->chunk;
  int bad = step->count;
  if (m->fold_stale) cmkd_cpu_fold(m);
  if (m->config.train && m->stale) cmkd_cpu_pack(m);
#pragma omp parallel for schedule(dynamic) num_threads(m->backend->threads) reduction(min : bad)
  for (int i = 0; i < chunks; i++) {
    const int first = i * phase->chunk, thread = omp_get_thread_num();
    cpu_chunk c = {.m = m,
                   .worker = &m->worker[thread],
                   .plan = &m->infer,
                   .images = images,
                   .step = step,
                   .thread = thread,
                   .first = first,
                   .n = step->count - first < phase->chunk ? step->count - first : phase->chunk,
                   .stride = phase->chunk,
                   .outputs = outputs};
    run_chunk(&c, phase);
    const float *z = value(&c, cmkd_graph_logits(m->graph));
    for (int j = c.n * classes - 1; j >= 0; j--)
      if (!isfinite(z[j]) && first + j / classes < bad) bad = first + j / classes;
  }
  if (bad == step->count) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_VALUE,
                   "`%s`: logits of image %u are NaN or Inf; the weights are broken or the learning rate was too high",
                   m->graph->arch, step->rows[bad]);
}
