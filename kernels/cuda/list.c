/* A list of operations queued on the device, in the plan's order: one TRAIN step, one INFER step. Algorithms were
 * selected before (cmkd_cuda_prepare), so all of this can be captured. */
#include <math.h>
#include <stdio.h>
#include "kernels/cuda/backend.h"

static cmkd_conv_algorithm *algorithm_of(cmkd_be_model *m, cmkd_list list, int count, int op, cmkd_conv_pass pass) {
  return cmkd_cuda_algorithms_for(m, list, count)->algorithm[op][pass];
}

typedef struct walk {
  cmkd_be_model *m;
  const cmkd_plan *plan;
  cmkd_list list;
  int count;
} walk;

static void *place(const walk *w, const cmkd_plan_buffer *p) {
  return p->used ? w->m->arena + p->offset * (size_t)w->m->config.batch * cuda_dtype_size(w->m->backend->dtype) : NULL;
}
/* Where a tensor of the graph and its gradient lie; NULL for none. Logits are float and without padding, outside of the
 * arena. */
static void *value(const walk *w, int tensor) {
  if (tensor < 0) return NULL;
  return cuda_is_logits(w->m, tensor) ? w->m->output[CMKD_OUTPUT_LOGITS] : place(w, &w->plan->value[tensor]);
}
static void *grad(const walk *w, int tensor) {
  if (tensor < 0) return NULL;
  return cuda_is_logits(w->m, tensor) ? w->m->logits_grad : place(w, &w->plan->grad[tensor]);
}

static cmkd_cuda_norm norm_of(const walk *w, int index) {
  const cmkd_be_model *m = w->m;
  const cmkd_op *op = &m->graph->op[index];
  const cuda_op *o = &m->op[index];
  const cmkd_shape s = m->graph->tensor[op->out];
  cmkd_cuda_norm n = {.pixels = (int64_t)w->count * s.h * s.w,
                      .c = s.c,
                      .dtype = m->backend->dtype,
                      .act = op->act,
                      .eps = op->eps,
                      .x = value(w, op->in[0]),
                      .residual = value(w, op->in[1]),
                      .y = value(w, op->out),
                      .gamma = m->value + o->gamma,
                      .beta = m->value + o->beta,
                      .partial = m->backend->workspace};
  if (w->list == CMKD_LIST_INFER) {
    n.mean = m->mean + o->channel;
    n.var = m->var + o->channel;
    return n;
  }
  n.mean = m->batch_mean + o->channel;
  n.var = m->batch_var + o->channel;
  n.rstd = m->batch_rstd + o->channel;
  n.dy = grad(w, op->out);
  n.mask_dy = op->in[1] >= 0 && op->act != CMKD_ACT_NONE; /* the shortcut receives the masked gradient */
  n.dgamma = m->grad + o->gamma;
  n.dbeta = m->grad + o->beta;
  return n;
}

static cmkd_cuda_call call_of(const walk *w, const cmkd_op *op) {
  const cmkd_graph *graph = w->m->graph;
  cmkd_cuda_call call = {
      .op = op, .n = w->count, .dtype = w->m->backend->dtype, .out = graph->tensor[op->out], .y = value(w, op->out)};
  for (int i = 0; i < 2; i++)
    if (op->in[i] >= 0) {
      call.in[i] = graph->tensor[op->in[i]];
      call.x[i] = value(w, op->in[i]);
    }
  return call;
}

static cmkd_status conv_forward(const walk *w, int index, int norm, cmkd_error *err) {
  cmkd_be_model *m = w->m;
  const cmkd_op *op = &m->graph->op[index], *n = norm >= 0 ? &m->graph->op[norm] : NULL;
  const cuda_op *o = &m->op[index];
  void *stream = m->backend->stream, *x = value(w, op->in[0]), *y = value(w, n ? n->out : op->out);
  const size_t offset = (size_t)o->weight * cuda_dtype_size(m->backend->dtype);
  if (w->list == CMKD_LIST_INFER) {
    const cmkd_cuda_epilogue e = {m->fold_bias + o->channel, n ? value(w, n->in[1]) : NULL, n ? n->act : CMKD_ACT_NONE};
    const int fused = n || op->param[1] >= 0;
    return cmkd_conv_run(algorithm_of(m, w->list, w->count, index, fused ? CMKD_CONV_FORWARD_FUSED : CMKD_CONV_FORWARD),
                         x, (char *)m->fold_weight + offset, y, fused ? &e : NULL, m->backend->workspace, stream, err);
  }
  const char *weights = m->copy ? (char *)m->copy : (char *)m->value;
  CMKD_TRY(cmkd_conv_run(algorithm_of(m, w->list, w->count, index, CMKD_CONV_FORWARD), x, weights + offset, y, NULL,
                         m->backend->workspace, stream, err));
  if (o->bias < 0) return CMKD_OK;
  const cmkd_cuda_conv_shape shape = cmkd_cuda_shape_of(m, index, w->count);
  const cmkd_cuda_epilogue e = {m->value + o->bias, NULL, CMKD_ACT_NONE};
  return cmkd_cuda_conv_epilogue(&shape, &e, y, stream, err);
}

static cmkd_status conv_backward(const walk *w, const cmkd_plan_item *item, cmkd_error *err) {
  cmkd_be_model *m = w->m;
  const cmkd_op *op = &m->graph->op[item->op];
  const cuda_op *o = &m->op[item->op];
  void *stream = m->backend->stream, *workspace = m->backend->workspace, *dy = grad(w, op->out);
  const cmkd_conv_algorithm *weights = algorithm_of(m, w->list, w->count, item->op, CMKD_CONV_BACKWARD_WEIGHTS);
  const size_t size = cuda_dtype_size(m->backend->dtype);
  void *dw = cmkd_conv_algorithm_dw_dtype(weights) == CMKD_F32 ? (void *)(m->grad + o->weight)
                                                               : (char *)m->grad16 + (size_t)o->weight * size;
  CMKD_TRY(cmkd_conv_run(weights, value(w, op->in[0]), dy, dw, NULL, workspace, stream, err));
  if (o->bias >= 0) {
    const cmkd_cuda_conv_shape shape = cmkd_cuda_shape_of(m, item->op, w->count);
    CMKD_TRY(cmkd_cuda_conv_backward_bias(&shape, dy, m->grad + o->bias, workspace, stream, err));
  }
  cmkd_cuda_profile_mark(m, CUDA_CONV_WEIGHTS);
  if (item->skip[0]) return CMKD_OK;
  const char *value_w = m->copy ? (char *)m->copy : (char *)m->value;
  return cmkd_conv_run(algorithm_of(m, w->list, w->count, item->op, CMKD_CONV_BACKWARD_DATA), dy,
                       value_w + (size_t)o->weight * size, grad(w, op->in[0]), NULL, workspace, stream, err);
}

static cmkd_status queue_forward(const walk *w, const cmkd_plan_item *item, cmkd_error *err) {
  const cmkd_op *op = &w->m->graph->op[item->op];
  void *stream = w->m->backend->stream;
  if (cuda_is_conv(op)) return conv_forward(w, item->op, item->norm, err);
  if (op->kind == CMKD_OP_NORM) {
    const cmkd_cuda_norm norm = norm_of(w, item->op);
    if (w->list == CMKD_LIST_INFER) return cmkd_cuda_norm_infer(&norm, stream, err);
    CMKD_TRY(cmkd_cuda_norm_moments(&norm, stream, err));
    return cmkd_cuda_norm_forward(&norm, stream, err);
  }
  const cmkd_cuda_call call = call_of(w, op);
  return cmkd_cuda_forward(&call, stream, err);
}

static cmkd_status queue_backward(const walk *w, const cmkd_plan_item *item, cmkd_error *err) {
  const cmkd_op *op = &w->m->graph->op[item->op];
  void *stream = w->m->backend->stream;
  if (item->kind == CMKD_PLAN_BACKWARD && cuda_is_conv(op)) return conv_backward(w, item, err);
  void *const dx[2] = {item->skip[0] ? NULL : grad(w, op->in[0]), item->skip[1] ? NULL : grad(w, op->in[1])};
  if (item->kind == CMKD_PLAN_BACKWARD) {
    cmkd_cuda_call call = call_of(w, op);
    call.dy = grad(w, op->out);
    for (int i = 0; i < 2; i++) {
      call.dx[i] = dx[i];
      call.accumulate[i] = item->accumulate[i];
    }
    return cmkd_cuda_backward(&call, stream, err);
  }
  cmkd_cuda_norm norm = norm_of(w, item->op);
  norm.dx = dx[0];
  norm.accumulate = item->accumulate[0];
  norm.dresidual = dx[1];
  norm.accumulate_residual = item->accumulate[1];
  if (item->kind == CMKD_PLAN_NORM_SUMS) return cmkd_cuda_norm_backward_sums(&norm, stream, err);
  return cmkd_cuda_norm_backward(&norm, stream, err);
}

static cmkd_status queue_gather(const walk *w, const cmkd_be_images *images, cmkd_error *err) {
  const cmkd_be_model *m = w->m;
  const cmkd_gather gather = {.policy = m->config.policy,
                              .pixels = images->resident ? images->resident : m->input.pixels,
                              .rows = m->input.rows,
                              .seeds = m->input.seeds,
                              .count = w->count,
                              .h = images->set.h,
                              .w = images->set.w,
                              .c = images->set.c};
  return cmkd_cuda_augment(&gather, m->pixel_table, cmkd_cuda_stride(images->set.c), m->backend->dtype, value(w, 0),
                           m->backend->stream, err);
}

/* The outputs as the caller gets them; logits are that already. */
static cmkd_status queue_outputs(const walk *w, cmkd_error *err) {
  const cmkd_be_model *m = w->m;
  for (int o = 0; o < m->graph->outputs; o++) {
    const int tensor = m->graph->output[o].tensor;
    const cmkd_shape s = m->graph->tensor[tensor];
    if (cuda_is_logits(m, tensor)) continue;
    CMKD_TRY(cmkd_cuda_to_float(value(w, tensor), m->backend->dtype, (int64_t)w->count * s.h * s.w, s.c, m->output[o],
                                m->backend->stream, err));
  }
  return CMKD_OK;
}

static cmkd_status queue_item(const walk *w, const cmkd_be_images *images, const cmkd_plan_item *item,
                              cmkd_error *err) {
  switch (item->kind) {
  case CMKD_PLAN_GATHER: return queue_gather(w, images, err);
  case CMKD_PLAN_FORWARD:
  case CMKD_PLAN_FUSED: return queue_forward(w, item, err);
  case CMKD_PLAN_NORM_SUMS:
  case CMKD_PLAN_NORM_BACKWARD:
  case CMKD_PLAN_BACKWARD: return queue_backward(w, item, err);
  case CMKD_PLAN_OUTPUT: return queue_outputs(w, err);
  case CMKD_PLAN_MOMENTS: break; /* with the norm itself */
  }
  return CMKD_OK;
}

static cuda_class class_of(const walk *w, const cmkd_plan_item *item) {
  if (item->op < 0) return CUDA_INPUT;
  if (w->m->graph->op[item->op].kind == CMKD_OP_NORM) return CUDA_NORM;
  if (!cuda_is_conv(&w->m->graph->op[item->op])) return CUDA_OTHER;
  return item->kind == CMKD_PLAN_BACKWARD ? CUDA_CONV_DATA : CUDA_CONV_FORWARD;
}

/* CMKD_CUDA_CHECK: waits, and names what failed. */
static cmkd_status checked(const cmkd_be_model *m, const char *what, cmkd_error *err) {
  return m->backend->check ? cmkd_cuda_status(cudaStreamSynchronize(m->backend->stream), what, err) : CMKD_OK;
}
static cmkd_status checked_item(const walk *w, const cmkd_plan_item *item, cmkd_error *err) {
  static const char *const kinds[] = {[CMKD_PLAN_GATHER] = "gather",           [CMKD_PLAN_FORWARD] = "forward",
                                      [CMKD_PLAN_FUSED] = "forward",           [CMKD_PLAN_MOMENTS] = "moments",
                                      [CMKD_PLAN_NORM_SUMS] = "backward sums", [CMKD_PLAN_NORM_BACKWARD] = "backward",
                                      [CMKD_PLAN_BACKWARD] = "backward",       [CMKD_PLAN_OUTPUT] = "output"};
  char what[160];
  snprintf(what, sizeof what, "%s of operation %d (%s) of `%s`", kinds[item->kind], item->op,
           item->op < 0 ? "images" : cmkd_op_name(w->m->graph->op[item->op].kind), w->m->graph->arch);
  return checked(w->m, what, err);
}

static cmkd_status queue_phases(const walk *w, const cmkd_be_images *images, int from, int to, cmkd_error *err) {
  for (int p = from; p < to; p++)
    for (int i = 0; i < w->plan->phase[p].items; i++) {
      const cmkd_plan_item *item = &w->plan->item[w->plan->phase[p].first + i];
      CMKD_TRY(queue_item(w, images, item, err));
      cmkd_cuda_profile_mark(w->m, class_of(w, item));
      CMKD_TRY(checked_item(w, item, err));
    }
  return CMKD_OK;
}

/* ---- a step ---- */

static cmkd_status queue_agreement(cmkd_be_model *m, int count, cmkd_error *err) {
  cmkd_backend *b = m->backend;
  const cmkd_cuda_agreement_batch agreement = {.batch = count,
                                               .classes = m->graph->classes,
                                               .student = m->output[CMKD_OUTPUT_LOGITS],
                                               .student_dtype = CMKD_F32,
                                               .teacher = m->input.target[CMKD_TARGET_TEACHER],
                                               .teacher_dtype = CMKD_F32,
                                               .kappa = m->config.kappa};
  CMKD_TRY(cmkd_cuda_status(cudaEventRecord(b->fork, b->stream), "agreement", err));
  CMKD_TRY(cmkd_cuda_status(cudaStreamWaitEvent(b->side, b->fork, 0), "agreement", err));
  CMKD_TRY(cmkd_cuda_agreement_add(&agreement, m->agreement_scratch, &m->state->agreement, b->side, err));
  return cmkd_cuda_status(cudaEventRecord(b->join, b->side), "agreement", err);
}

/* The further terms of the objective and their gradients at the outputs: the first one that reaches a tensor other than
 * the logits overwrites its gradient. */
static cmkd_status queue_objectives(const walk *w, cmkd_error *err) {
  cmkd_be_model *m = w->m;
  for (int i = 0; i < m->config.objectives; i++) {
    const cmkd_objective_term *term = &m->objective[i];
    const int logits = cuda_is_logits(m, term->tensor);
    const cmkd_shape s = m->graph->tensor[term->tensor];
    int accumulate = logits;
    for (int j = 0; j < i; j++)
      accumulate |= m->objective[j].tensor == term->tensor;
    const cmkd_cuda_objective objective = {.output = value(w, term->tensor),
                                           .dtype = logits ? CMKD_F32 : m->backend->dtype,
                                           .rows = w->count,
                                           .c = s.c,
                                           .stride = logits ? s.c : cmkd_cuda_stride(s.c),
                                           .pixels = (int64_t)s.h * s.w,
                                           .target = m->input.target[term->target],
                                           .grad = grad(w, term->tensor),
                                           .accumulate = accumulate,
                                           .weight = term->weight};
    CMKD_TRY(cmkd_cuda_objective_add(&objective, m->objective_scratch, &m->state->objective[i], m->state,
                                     m->backend->stream, err));
  }
  return CMKD_OK;
}

/* Loss and further terms of the objective with their gradients at the outputs, correct rows, and figures for the log.
 * Sets *forked once the side stream has work that is to be joined. */
static cmkd_status queue_loss(const walk *w, const cuda_step_kind *kind, int *forked, cmkd_error *err) {
  cmkd_be_model *m = w->m;
  cmkd_backend *b = m->backend;
  const int classes = m->graph->classes, teacher = cuda_has_teacher(kind);
  const cmkd_cuda_loss_batch batch = {.batch = kind->count,
                                      .classes = classes,
                                      .student = m->output[CMKD_OUTPUT_LOGITS],
                                      .student_dtype = CMKD_F32,
                                      .teacher = teacher ? m->input.target[CMKD_TARGET_TEACHER] : NULL,
                                      .teacher_dtype = CMKD_F32,
                                      .labels = m->input.labels,
                                      .grad = m->logits_grad,
                                      .epoch = 1,
                                      .epoch_now = &m->state->epoch,
                                      .label_smoothing = m->config.label_smoothing,
                                      .entropy_mean = NAN,
                                      .entropy_mean_now = &m->state->entropy_mean};
  CMKD_TRY(cmkd_cuda_loss_eval(m->config.loss, &batch, m->loss_scratch, &m->state->loss, b->stream, err));
  if (teacher) {
    CMKD_TRY(queue_agreement(m, kind->count, err));
    *forked = 1;
  }
  if (b->dtype == CMKD_F16)
    CMKD_TRY(cmkd_cuda_scale(m->logits_grad, (int64_t)kind->count * classes, m->state, b->stream, err));
  CMKD_TRY(queue_objectives(w, err));
  CMKD_TRY(cmkd_cuda_count_correct(m->output[CMKD_OUTPUT_LOGITS], m->input.labels, kind->count, classes, m->state,
                                   b->stream, err));
  cmkd_cuda_profile_mark(m, CUDA_LOSS);
  return checked(m, "the loss", err);
}

/* The caller's sum or average over ranks, on one block of floats that holds all gradients. */
static cmkd_status queue_reduce(const cmkd_be_model *m, cmkd_cuda_update *update, cmkd_error *err) {
  const cmkd_reduce *reduce = &m->config.reduce;
  if (!reduce->run) return CMKD_OK;
  CMKD_TRY(cmkd_cuda_widen(update, m->backend->stream, err));
  update->from16 = NULL;
  return reduce->run(reduce->self, m->grad, (size_t)m->values, m->backend->stream, err);
}

/* Batch norm's running statistics after a step of `count` rows. */
static cmkd_status queue_running(const cmkd_be_model *m, int count, cmkd_error *err) {
  if (!m->channels) return CMKD_OK;
  const cmkd_cuda_running running = {.channels = (int)m->channels,
                                     .mean = m->mean,
                                     .var = m->var,
                                     .batch_mean = m->batch_mean,
                                     .batch_var = m->batch_var,
                                     .pixels = m->pixels,
                                     .momentum = m->norm_momentum,
                                     .halted = &m->state->skip};
  return cmkd_cuda_norm_running(&running, count, m->backend->stream, err);
}

static cmkd_status queue_update(cmkd_be_model *m, int count, cmkd_error *err) {
  cmkd_backend *b = m->backend;
  cmkd_cuda_update update = {.count = m->values,
                             .w = m->value,
                             .m = m->momentum,
                             .grad = m->grad,
                             .grad16 = m->grad16,
                             .from16 = cmkd_cuda_algorithms_for(m, CMKD_LIST_TRAIN, count)->from16,
                             .copy = m->copy,
                             .copy_dtype = b->dtype,
                             .momentum = m->config.momentum,
                             .decay = m->config.weight_decay,
                             .nesterov = m->config.nesterov};
  CMKD_TRY(queue_reduce(m, &update, err));
  if (b->dtype == CMKD_F16) CMKD_TRY(cmkd_cuda_check_gradients(&update, m->state, b->stream, err));
  CMKD_TRY(cmkd_cuda_sgd(&update, m->state, b->stream, err));
  CMKD_TRY(queue_running(m, count, err));
  cmkd_cuda_profile_mark(m, CUDA_UPDATE);
  return checked(m, "the optimizer", err);
}

/* The step's rows of resident targets, as float. */
static cmkd_status queue_rows(cmkd_be_model *m, const cuda_step_kind *kind, cmkd_error *err) {
  for (int t = 0; t < m->targets; t++) {
    const cmkd_be_rows *rows = kind->rows[t];
    if (!rows) continue;
    const cmkd_cuda_stored_rows stored = {rows->dtype, rows->width, rows->data, rows->row_max, rows->row_range};
    CMKD_TRY(cmkd_cuda_rows(&stored, m->input.index[t], kind->count, m->input.target[t], m->backend->stream, err));
  }
  return CMKD_OK;
}

/* Input from the queue: what is resident is not in it. */
static cmkd_status queue_begin(cmkd_be_model *m, const cuda_step_kind *kind, cmkd_error *err) {
  cmkd_cuda_sizes sizes = {.rows = kind->count, .image = (int64_t)cuda_image_bytes(m)};
  cmkd_cuda_input input = m->input;
  if (kind->images->resident) input.pixels = NULL;
  for (int t = 0; t < m->targets; t++) {
    sizes.width[t] = m->width[t];
    if (!(kind->values >> t & 1)) input.target[t] = NULL;
    if (!kind->rows[t]) input.index[t] = NULL;
  }
  return cmkd_cuda_begin(&m->layout, &input, &sizes, m->state, m->backend->stream, err);
}

static cmkd_status queue_train(const walk *w, const cuda_step_kind *kind, int *forked, cmkd_error *err) {
  CMKD_TRY(queue_rows(w->m, kind, err));
  CMKD_TRY(queue_phases(w, kind->images, 0, w->plan->backward, err));
  CMKD_TRY(queue_loss(w, kind, forked, err));
  CMKD_TRY(queue_phases(w, kind->images, w->plan->backward, w->plan->phases, err));
  return queue_update(w->m, kind->count, err);
}

cmkd_status cmkd_cuda_queue_step(cmkd_be_model *m, const cuda_step_kind *kind, cmkd_error *err) {
  cmkd_backend *b = m->backend;
  const walk w = {m, kind->list == CMKD_LIST_TRAIN ? &m->train : &m->infer, kind->list, kind->count};
  int forked = 0;
  cmkd_cuda_profile_mark(m, CUDA_INPUT);
  CMKD_TRY(queue_begin(m, kind, err));
  if (kind->list == CMKD_LIST_INFER) {
    CMKD_TRY(queue_phases(&w, kind->images, 0, w.plan->phases, err));
    return cmkd_cuda_end(m->state, NULL, kind->count, 0, b->stream, err);
  }
  cmkd_status status = queue_train(&w, kind, &forked, err);
  if (forked) { /* after a failure too, or a capture could not be ended */
    const cudaError_t joined = cudaStreamWaitEvent(b->stream, b->join, 0);
    if (status == CMKD_OK) status = cmkd_cuda_status(joined, "agreement", err);
  }
  if (status != CMKD_OK) return status;
  return cmkd_cuda_end(m->state, m->results, kind->count, b->dtype == CMKD_F16, b->stream, err);
}
