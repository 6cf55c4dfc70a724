/* A list of operations queued on the device, in the plan's order: one TRAIN step, one INFER step. Who computes each
 * convolution was decided before (cmkd_cuda_prepare), so that all of this can be captured. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/backend.h"

cmkd_cuda_conv_shape cmkd_cuda_shape_of(const cmkd_be_model *m, int index, int count) {
  const cmkd_op *op = &m->graph->op[index];
  const cmkd_shape in = m->graph->tensor[op->in[0]], out = m->graph->tensor[op->out];
  const int logits = op->out == cmkd_graph_logits(m->graph);
  cmkd_cuda_conv_shape s = {.n = count,
                            .h = in.h,
                            .w = in.w,
                            .c = in.c,
                            .oh = out.h,
                            .ow = out.w,
                            .k = out.c,
                            .kh = op->kernel_h,
                            .kw = op->kernel_w,
                            .stride = op->stride,
                            .pad = op->pad,
                            .groups = op->groups,
                            .y_stride = logits ? out.c : cmkd_cuda_stride(out.c),
                            .dtype = m->backend->dtype,
                            .y_dtype = logits ? CMKD_F32 : m->backend->dtype};
  if (op->kind == CMKD_OP_LINEAR) s.kh = in.h, s.kw = in.w, s.stride = 1, s.pad = 0, s.groups = 1;
  return s;
}

/* ---- who computes what ---- */

cuda_conv_algorithms *cmkd_cuda_algorithms_for(cmkd_be_model *m, cmkd_list list, int count) {
  for (int i = 0; i < m->algorithms_count; i++)
    if (m->algorithms[i].count == count && m->algorithms[i].infer == (list == CMKD_LIST_INFER))
      return &m->algorithms[i];
  return NULL;
}

static cmkd_conv_algorithm *algorithm_of(cmkd_be_model *m, cmkd_list list, int count, int op, cmkd_conv_pass pass) {
  return cmkd_cuda_algorithms_for(m, list, count)->algorithm[op][pass];
}

/* The step of the backward plan that computes an op's gradients; NULL: nobody wants them. */
static const cmkd_plan_step *backward_step(const cmkd_be_model *m, int op) {
  for (int s = 0; s < m->train.steps; s++)
    if (m->train.step[s].op == op && m->train.step[s].kind == CMKD_STEP_BACKWARD) return &m->train.step[s];
  return NULL;
}

static void need(size_t *most, size_t bytes) {
  if (bytes > *most) *most = bytes;
}

static cmkd_status choose(cmkd_be_model *m, const cmkd_conv_request *request, cmkd_conv_algorithm **out,
                          size_t *workspace, cmkd_error *err) {
  CMKD_TRY(cmkd_conv_select(m->backend->selector, request, out, err));
  need(workspace, cmkd_conv_algorithm_workspace(*out));
  return CMKD_OK;
}

static cmkd_status choose_op(cmkd_be_model *m, cmkd_list list, int index, int count, cuda_conv_algorithms *algorithms,
                             size_t *workspace, cmkd_error *err) {
  cmkd_conv_algorithm **algorithm = algorithms->algorithm[index];
  const cmkd_op *op = &m->graph->op[index];
  cmkd_conv_request request = {.shape = cmkd_cuda_shape_of(m, index, count), .tf32 = m->backend->tf32};
  if (list == CMKD_LIST_INFER) {
    request.alone = 1; /* a cached row must not depend on who was computed beside it */
    const cmkd_op *norm = m->folded[index] >= 0 ? &m->graph->op[m->folded[index]] : NULL;
    request.pass = norm || op->param[1] >= 0 ? CMKD_CONV_FORWARD_FUSED : CMKD_CONV_FORWARD;
    request.residual = norm && norm->in[1] >= 0;
    request.act = norm ? norm->act : CMKD_ACT_NONE;
    return choose(m, &request, &algorithm[request.pass], workspace, err);
  }
  const cmkd_plan_step *step = backward_step(m, index);
  request.pass = CMKD_CONV_FORWARD;
  CMKD_TRY(choose(m, &request, &algorithm[request.pass], workspace, err));
  if (!step) return CMKD_OK;
  if (op->param[1] >= 0) need(workspace, cmkd_cuda_conv_scratch(&request.shape));
  request.pass = CMKD_CONV_BACKWARD_WEIGHTS;
  CMKD_TRY(choose(m, &request, &algorithm[request.pass], workspace, err));
  if (cmkd_conv_algorithm_dw_dtype(algorithm[request.pass]) != CMKD_F32) {
    const int64_t first = m->op[index].weight / CMKD_CUDA_CHUNK,
                  chunks = (cmkd_cuda_conv_weights(&request.shape) + CMKD_CUDA_CHUNK - 1) / CMKD_CUDA_CHUNK;
    memset(algorithms->from16_host + first, 1, (size_t)chunks);
  }
  if (step->skip[0]) return CMKD_OK;
  request.pass = CMKD_CONV_BACKWARD_DATA;
  request.accumulate = step->accumulate[0];
  return choose(m, &request, &algorithm[request.pass], workspace, err);
}

void cmkd_cuda_algorithms_free(cmkd_be_model *m, cuda_conv_algorithms *c) {
  for (int i = 0; c->algorithm && i < m->graph->ops; i++)
    for (int pass = 0; pass <= CMKD_CONV_BACKWARD_WEIGHTS; pass++)
      if (c->algorithm[i][pass]) cmkd_conv_algorithm_free(c->algorithm[i][pass]);
  if (c->from16) (void)cudaFree(c->from16);
  free(c->algorithm);
  free(c->from16_host);
}

/* The shared workspace grows; graphs that were captured before point at the old one. */
static cmkd_status grow_workspace(cmkd_backend *b, size_t bytes, cmkd_error *err) {
  if (bytes <= b->workspace_bytes) return CMKD_OK;
  CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(b->stream), "workspace of the convolutions", err));
  if (b->workspace) (void)cudaFree(b->workspace);
  b->workspace = NULL;
  b->workspace_bytes = 0;
  b->workspace_generation++;
  CMKD_TRY(cmkd_cuda_status(cudaMalloc(&b->workspace, bytes), "workspace of the convolutions", err));
  b->workspace_bytes = bytes;
  return CMKD_OK;
}

static cmkd_status prepare(cmkd_be_model *m, cmkd_list list, cuda_conv_algorithms *c, cmkd_error *err) {
  const size_t chunks = (size_t)(m->values / CMKD_CUDA_CHUNK);
  size_t workspace = 256;
  c->algorithm = calloc((size_t)m->graph->ops, sizeof *c->algorithm);
  c->from16_host = calloc(chunks, 1);
  if (!c->algorithm || !c->from16_host) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int i = 0; i < m->graph->ops; i++) {
    const cmkd_op *op = &m->graph->op[i];
    const cmkd_shape s = m->graph->tensor[op->out];
    if (op->kind == CMKD_OP_NORM) need(&workspace, cmkd_cuda_norm_scratch((int64_t)c->count * s.h * s.w, s.c));
    if (cuda_is_conv(op)) CMKD_TRY(choose_op(m, list, i, c->count, c, &workspace, err));
  }
  if (m->grad16 && list == CMKD_LIST_TRAIN) {
    CMKD_TRY(cmkd_cuda_status(cudaMalloc((void **)&c->from16, chunks), "optimizer", err));
    CMKD_TRY(cmkd_cuda_put(m->backend, c->from16, c->from16_host, chunks, "optimizer", err));
  }
  return grow_workspace(m->backend, workspace, err);
}

cmkd_status cmkd_cuda_prepare(cmkd_be_model *m, cmkd_list list, int count, cmkd_error *err) {
  if (cmkd_cuda_algorithms_for(m, list, count)) return CMKD_OK;
  if (m->algorithms_count == CUDA_ALGORITHMS)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "steps of more than %d different sizes", CUDA_ALGORITHMS);
  cuda_conv_algorithms *c = &m->algorithms[m->algorithms_count];
  *c = (cuda_conv_algorithms){.count = count, .infer = list == CMKD_LIST_INFER};
  cmkd_status status = prepare(m, list, c, err);
  if (status == CMKD_OK)
    m->algorithms_count++;
  else
    cmkd_cuda_algorithms_free(m, c);
  return status;
}

/* ---- walking the plan ---- */

typedef struct walk {
  cmkd_be_model *m;
  const cmkd_plan *plan;
  cmkd_list list;
  int count;
} walk;

static void *place(const walk *w, const cmkd_plan_buffer *p) {
  return p->used ? w->m->arena + p->offset * (size_t)w->m->config.batch * cuda_dtype_size(w->m->backend->dtype) : NULL;
}
static void *value(const walk *w, int tensor) {
  return tensor < 0                                 ? NULL
         : tensor == cmkd_graph_logits(w->m->graph) ? (void *)w->m->logits
                                                    : place(w, &w->plan->value[tensor]);
}
static void *grad(const walk *w, int tensor) {
  return tensor < 0                                 ? NULL
         : tensor == cmkd_graph_logits(w->m->graph) ? (void *)w->m->logits_grad
                                                    : place(w, &w->plan->grad[tensor]);
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
                      .gamma = m->value + o->scale,
                      .beta = m->value + o->shift,
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
  n.dgamma = m->grad + o->scale;
  n.dbeta = m->grad + o->shift;
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

static cmkd_status conv_backward(const walk *w, const cmkd_plan_step *step, cmkd_error *err) {
  cmkd_be_model *m = w->m;
  const cmkd_op *op = &m->graph->op[step->op];
  const cuda_op *o = &m->op[step->op];
  void *stream = m->backend->stream, *workspace = m->backend->workspace, *dy = grad(w, op->out);
  const cmkd_conv_algorithm *weights = algorithm_of(m, w->list, w->count, step->op, CMKD_CONV_BACKWARD_WEIGHTS);
  const size_t size = cuda_dtype_size(m->backend->dtype);
  void *dw = cmkd_conv_algorithm_dw_dtype(weights) == CMKD_F32 ? (void *)(m->grad + o->weight)
                                                               : (char *)m->grad16 + (size_t)o->weight * size;
  CMKD_TRY(cmkd_conv_run(weights, value(w, op->in[0]), dy, dw, NULL, workspace, stream, err));
  if (o->bias >= 0) {
    const cmkd_cuda_conv_shape shape = cmkd_cuda_shape_of(m, step->op, w->count);
    CMKD_TRY(cmkd_cuda_conv_backward_bias(&shape, dy, m->grad + o->bias, workspace, stream, err));
  }
  cmkd_cuda_profile_mark(m, CUDA_CONV_WEIGHTS);
  if (step->skip[0]) return CMKD_OK;
  const char *value_w = m->copy ? (char *)m->copy : (char *)m->value;
  return cmkd_conv_run(algorithm_of(m, w->list, w->count, step->op, CMKD_CONV_BACKWARD_DATA), dy,
                       value_w + (size_t)o->weight * size, grad(w, op->in[0]), NULL, workspace, stream, err);
}

static cmkd_status queue_forward(const walk *w, const cmkd_plan_step *step, cmkd_error *err) {
  const cmkd_op *op = &w->m->graph->op[step->op];
  void *stream = w->m->backend->stream;
  if (cuda_is_conv(op)) return conv_forward(w, step->op, step->norm, err);
  if (op->kind == CMKD_OP_NORM) {
    const cmkd_cuda_norm norm = norm_of(w, step->op);
    if (w->list == CMKD_LIST_INFER) return cmkd_cuda_norm_infer(&norm, stream, err);
    CMKD_TRY(cmkd_cuda_norm_moments(&norm, stream, err));
    return cmkd_cuda_norm_forward(&norm, stream, err);
  }
  const cmkd_cuda_call call = call_of(w, op);
  return cmkd_cuda_forward(&call, stream, err);
}

static cmkd_status queue_backward(const walk *w, const cmkd_plan_step *step, cmkd_error *err) {
  const cmkd_op *op = &w->m->graph->op[step->op];
  void *stream = w->m->backend->stream;
  if (step->kind == CMKD_STEP_BACKWARD && cuda_is_conv(op)) return conv_backward(w, step, err);
  void *const dx[2] = {step->skip[0] ? NULL : grad(w, op->in[0]), step->skip[1] ? NULL : grad(w, op->in[1])};
  if (step->kind == CMKD_STEP_BACKWARD) {
    cmkd_cuda_call call = call_of(w, op);
    call.dy = grad(w, op->out);
    for (int i = 0; i < 2; i++)
      call.dx[i] = dx[i], call.accumulate[i] = step->accumulate[i];
    return cmkd_cuda_backward(&call, stream, err);
  }
  cmkd_cuda_norm norm = norm_of(w, step->op);
  norm.dx = dx[0], norm.accumulate = step->accumulate[0];
  norm.dresidual = dx[1], norm.accumulate_residual = step->accumulate[1];
  if (step->kind == CMKD_STEP_REDUCE) return cmkd_cuda_norm_reduce(&norm, stream, err);
  return cmkd_cuda_norm_backward(&norm, stream, err);
}

static cmkd_status queue_gather(const walk *w, const cmkd_be_images *images, cmkd_error *err) {
  const cmkd_be_model *m = w->m;
  const cmkd_cuda_gather gather = {.policy = m->config.policy,
                                   .pixels = images->resident ? images->resident : m->input.pixels,
                                   .rows = m->input.rows,
                                   .seeds = m->input.seeds,
                                   .count = w->count,
                                   .h = images->h,
                                   .w = images->w,
                                   .c = images->c};
  return cmkd_cuda_augment(&gather, m->pixel_table, cmkd_cuda_stride(images->c), m->backend->dtype, value(w, 0),
                           m->backend->stream, err);
}

static cmkd_status queue_plan_step(const walk *w, const cmkd_be_images *images, const cmkd_plan_step *step,
                                   cmkd_error *err) {
  cmkd_be_model *m = w->m;
  void *stream = m->backend->stream;
  switch (step->kind) {
  case CMKD_STEP_GATHER: return queue_gather(w, images, err);
  case CMKD_STEP_FORWARD:
  case CMKD_STEP_FUSED: return queue_forward(w, step, err);
  case CMKD_STEP_REDUCE:
  case CMKD_STEP_APPLY:
  case CMKD_STEP_BACKWARD: return queue_backward(w, step, err);
  case CMKD_STEP_OUTPUT: { /* logits are float and dense already */
    const int features = cmkd_graph_features(m->graph);
    return cmkd_cuda_to_float(value(w, features), m->backend->dtype, w->count, m->graph->tensor[features].c,
                              m->features, stream, err);
  }
  case CMKD_STEP_MOMENTS: break; /* with the norm itself */
  }
  return CMKD_OK;
}

static cuda_class class_of(const walk *w, const cmkd_plan_step *step) {
  if (step->op < 0) return CUDA_INPUT;
  if (w->m->graph->op[step->op].kind == CMKD_OP_NORM) return CUDA_NORM;
  if (!cuda_is_conv(&w->m->graph->op[step->op])) return CUDA_OTHER;
  return step->kind == CMKD_STEP_BACKWARD ? CUDA_CONV_DATA : CUDA_CONV_FORWARD;
}

/* CMKD_CUDA_CHECK: waits, and names what failed. */
static cmkd_status checked(const cmkd_be_model *m, const char *what, cmkd_error *err) {
  return m->backend->check ? cmkd_cuda_status(cudaStreamSynchronize(m->backend->stream), what, err) : CMKD_OK;
}
static cmkd_status checked_step(const walk *w, const cmkd_plan_step *step, cmkd_error *err) {
  static const char *const kinds[] = {"gather",        "forward",  "forward",  "moments",
                                      "backward sums", "backward", "backward", "output"};
  char what[160];
  snprintf(what, sizeof what, "%s of operation %d (%s) of `%s`", kinds[step->kind], step->op,
           step->op < 0 ? "images" : cmkd_op_name(w->m->graph->op[step->op].kind), w->m->graph->arch);
  return checked(w->m, what, err);
}

static cmkd_status queue_phases(const walk *w, const cmkd_be_images *images, int from, int to, cmkd_error *err) {
  for (int p = from; p < to; p++)
    for (int s = w->plan->phase[p].first; s < w->plan->phase[p].first + w->plan->phase[p].steps; s++) {
      CMKD_TRY(queue_plan_step(w, images, &w->plan->step[s], err));
      cmkd_cuda_profile_mark(w->m, class_of(w, &w->plan->step[s]));
      CMKD_TRY(checked_step(w, &w->plan->step[s], err));
    }
  return CMKD_OK;
}

/* ---- a step ---- */

static cmkd_status queue_loss(cmkd_be_model *m, int count, int teacher, cmkd_error *err) {
  cmkd_backend *b = m->backend;
  const int classes = m->graph->classes;
  const cmkd_cuda_loss_batch batch = {.batch = count,
                                      .classes = classes,
                                      .student = m->logits,
                                      .student_dtype = CMKD_F32,
                                      .teacher = teacher ? m->input.teacher : NULL,
                                      .teacher_dtype = CMKD_F32,
                                      .labels = m->input.labels,
                                      .grad = m->logits_grad,
                                      .epoch = 1,
                                      .epoch_now = &m->state->epoch,
                                      .label_smoothing = m->config.label_smoothing,
                                      .entropy_mean = NAN};
  const cmkd_cuda_agreement_batch agreement = {.batch = count,
                                               .classes = classes,
                                               .student = m->logits,
                                               .student_dtype = CMKD_F32,
                                               .teacher = m->input.teacher,
                                               .teacher_dtype = CMKD_F32,
                                               .kappa = m->config.kappa};
  CMKD_TRY(cmkd_cuda_loss_eval(m->config.loss, &batch, m->loss_scratch, &m->state->loss, b->stream, err));
  CMKD_TRY(cmkd_cuda_judge(m->logits, m->input.labels, count, classes, m->state, b->stream, err));
  if (teacher) { /* figures for the log, beside the backward pass */
    CMKD_TRY(cmkd_cuda_status(cudaEventRecord(b->fork, b->stream), "agreement", err));
    CMKD_TRY(cmkd_cuda_status(cudaStreamWaitEvent(b->side, b->fork, 0), "agreement", err));
    CMKD_TRY(cmkd_cuda_agreement_add(&agreement, m->agreement_scratch, &m->state->agreement, b->side, err));
    CMKD_TRY(cmkd_cuda_status(cudaEventRecord(b->join, b->side), "agreement", err));
  }
  return b->dtype == CMKD_F16 ? cmkd_cuda_scale(m->logits_grad, (int64_t)count * classes, m->state, b->stream, err)
                              : CMKD_OK;
}

static cmkd_status queue_update(cmkd_be_model *m, int count, cmkd_error *err) {
  cmkd_backend *b = m->backend;
  const cmkd_cuda_update update = {.count = m->values,
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
  if (b->dtype == CMKD_F16) CMKD_TRY(cmkd_cuda_check_gradients(&update, m->state, b->stream, err));
  CMKD_TRY(cmkd_cuda_sgd(&update, m->state, b->stream, err));
  if (!m->channels) return CMKD_OK;
  const cmkd_cuda_running running = {.channels = (int)m->channels,
                                     .mean = m->mean,
                                     .var = m->var,
                                     .batch_mean = m->batch_mean,
                                     .batch_var = m->batch_var,
                                     .plane = m->plane,
                                     .rate = m->rate,
                                     .halted = &m->state->skip};
  return cmkd_cuda_norm_running(&running, count, b->stream, err);
}

/* The step's rows of a resident teacher, as float. */
static cmkd_status queue_rows(cmkd_be_model *m, const cmkd_be_rows *rows, int count, cmkd_error *err) {
  const cmkd_cuda_stored_rows stored = {rows->dtype, rows->classes, rows->data, rows->row_max, rows->row_range};
  return cmkd_cuda_rows(&stored, m->input.index, count, m->input.teacher, m->backend->stream, err);
}

cmkd_status cmkd_cuda_queue_step(cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images,
                                 const cmkd_be_rows *rows, int count, int teacher, cmkd_error *err) {
  cmkd_backend *b = m->backend;
  const walk w = {m, list == CMKD_LIST_TRAIN ? &m->train : &m->infer, list, count};
  cmkd_cuda_input input = m->input;
  if (images->resident) input.pixels = NULL;
  if (!teacher) input.teacher = NULL; /* not from the queue */
  if (!rows) input.index = NULL;
  cmkd_cuda_profile_mark(m, CUDA_INPUT);
  CMKD_TRY(cmkd_cuda_begin(&m->layout, &input, m->state, count, m->graph->classes,
                           (int64_t)images->h * images->w * images->c, b->stream, err));
  if (list == CMKD_LIST_INFER) {
    CMKD_TRY(queue_phases(&w, images, 0, w.plan->phases, err));
    return cmkd_cuda_end(m->state, NULL, count, 0, b->stream, err);
  }
  if (rows) CMKD_TRY(queue_rows(m, rows, count, err));
  teacher = teacher || rows;
  CMKD_TRY(queue_phases(&w, images, 0, m->train.backward, err));
  CMKD_TRY(queue_loss(m, count, teacher, err));
  cmkd_cuda_profile_mark(m, CUDA_LOSS);
  CMKD_TRY(checked(m, "the loss", err));
  CMKD_TRY(queue_phases(&w, images, m->train.backward, m->train.phases, err));
  CMKD_TRY(queue_update(m, count, err));
  cmkd_cuda_profile_mark(m, CUDA_UPDATE);
  CMKD_TRY(checked(m, "the optimizer", err));
  if (teacher) CMKD_TRY(cmkd_cuda_status(cudaStreamWaitEvent(b->stream, b->join, 0), "agreement", err));
  return cmkd_cuda_end(m->state, m->results, count, b->dtype == CMKD_F16, b->stream, err);
}
