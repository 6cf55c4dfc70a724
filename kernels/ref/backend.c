/* The whole backend table in double with plain loops: what every other backend is compared with. It keeps parameters,
 * momentum, activations and the loss in double, so that only upload and download round. Will not do: be fast, fold,
 * fuse or use threads. */
#include "kernels/backend.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/augment.h"
#include "kernels/loss.h"
#include "kernels/ref/ops.h"
#include "kernels/step.h"

const cmkd_ref_rule cmkd_ref_rules[CMKD_OP_SHUFFLE + 1] = {
    [CMKD_OP_CONV] = {cmkd_ref_conv, cmkd_ref_conv_backward},
    [CMKD_OP_NORM] = {cmkd_ref_norm, cmkd_ref_norm_backward},
    [CMKD_OP_ADD] = {cmkd_ref_add, cmkd_ref_add_backward},
    [CMKD_OP_ACT] = {cmkd_ref_act, cmkd_ref_act_backward},
    [CMKD_OP_MAXPOOL] = {cmkd_ref_maxpool, cmkd_ref_maxpool_backward},
    [CMKD_OP_AVGPOOL] = {cmkd_ref_avgpool, cmkd_ref_avgpool_backward},
    [CMKD_OP_GLOBALPOOL] = {cmkd_ref_globalpool, cmkd_ref_globalpool_backward},
    [CMKD_OP_LINEAR] = {cmkd_ref_linear, cmkd_ref_linear_backward},
    [CMKD_OP_PADSHORTCUT] = {cmkd_ref_padshortcut, cmkd_ref_padshortcut_backward},
    [CMKD_OP_CONCAT] = {cmkd_ref_concat, cmkd_ref_concat_backward},
    [CMKD_OP_SLICE] = {cmkd_ref_slice, cmkd_ref_slice_backward},
    [CMKD_OP_SHUFFLE] = {cmkd_ref_shuffle, cmkd_ref_shuffle_backward},
};

struct cmkd_backend {
  int unused;
};
struct cmkd_be_images {
  cmkd_image_set set; /* borrowed arrays */
};
struct cmkd_be_model {
  cmkd_model_config config;
  double **param, **grad, **momentum; /* (params) in graph order; convolution weights as (kh, kw, in/groups, out) */
  double **value, **value_grad;       /* (tensors) of a whole batch: activations and, when training, their gradients */
  double **saved;                     /* (ops): statistics of NORMs: mean and variance of the batch */
  uint8_t *bytes;                     /* one augmented image */
  double *teacher;                    /* (batch, classes) */
  int32_t *labels;                    /* (batch) */
  float *reduced;                     /* (all parameters) what a reduce hook sees */
  cmkd_results results;
  cmkd_objective_term objective[CMKD_MAX_OUTPUTS];
  void *pool[8]; /* what model_free frees: arrays of arrays above share few allocations */
};

static cmkd_status ref_open(const cmkd_backend_options *options, cmkd_backend **out, cmkd_error *err) {
  *out = NULL;
  if (options && options->precision && strcmp(options->precision, "fp32") && strcmp(options->precision, "fp64"))
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "ref: computes in double; precision `%s` is not offered",
                     options->precision);
  *out = calloc(1, sizeof **out);
  return *out ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
}
static void ref_close(cmkd_backend *backend) { free(backend); }
static const char *ref_describe(const cmkd_backend *backend) {
  (void)backend;
  return "ref: plain loops in double, 1 thread";
}

static cmkd_status ref_images_create(cmkd_backend *backend, const cmkd_image_set *set, cmkd_be_images **out,
                                     cmkd_error *err) {
  (void)backend;
  *out = malloc(sizeof **out);
  if (!*out) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  (*out)->set = *set;
  return CMKD_OK;
}
static void ref_images_free(cmkd_be_images *images) { free(images); }

/* `count` pointers into one zeroed allocation of the given sizes. */
static double **carve(int count, const size_t *sizes, void **storage) {
  size_t total = 0;
  for (int i = 0; i < count; i++)
    total += sizes[i];
  double **pointers = calloc((size_t)(unsigned)count, sizeof *pointers);
  double *next = total <= SIZE_MAX / sizeof(double) ? calloc(total ? total : 1, sizeof(double)) : NULL;
  *storage = next;
  if (!pointers || !next) {
    free(pointers);
    return NULL;
  }
  for (int i = 0; i < count; i++) {
    pointers[i] = sizes[i] ? next : NULL;
    next += sizes[i];
  }
  return pointers;
}

static void ref_model_free(cmkd_be_model *model) {
  if (!model) return;
  for (size_t i = 0; i < sizeof model->pool / sizeof *model->pool; i++)
    free(model->pool[i]);
  free(model->param);
  free(model->grad);
  free(model->momentum);
  free(model->value);
  free(model->value_grad);
  free(model->saved);
  free(model->bytes);
  free(model->teacher);
  free(model->labels);
  free(model->reduced);
  cmkd_results_free(&model->results);
  free(model);
}

/* Of all parameters, as they follow each other in param, grad and momentum. */
static size_t numbers_of(const cmkd_graph *g) {
  size_t numbers = 0;
  for (int i = 0; i < g->params; i++)
    numbers += (size_t)g->param[i].count;
  return numbers;
}

static int allocate(cmkd_be_model *m) {
  const cmkd_graph *g = m->config.graph;
  int most = g->params > g->tensors ? g->params : g->tensors, train = m->config.train;
  size_t batch = (size_t)m->config.batch, *sizes = calloc((size_t)(most > g->ops ? most : g->ops), sizeof *sizes);
  if (!sizes) return 0;
  for (int i = 0; i < g->params; i++)
    sizes[i] = (size_t)g->param[i].count;
  m->param = carve(g->params, sizes, &m->pool[0]);
  if (train) {
    m->grad = carve(g->params, sizes, &m->pool[1]);
    m->momentum = carve(g->params, sizes, &m->pool[2]);
  }
  for (int i = 0; i < g->tensors; i++)
    sizes[i] = batch * g->tensor[i].h * g->tensor[i].w * g->tensor[i].c;
  m->value = carve(g->tensors, sizes, &m->pool[3]);
  if (train) m->value_grad = carve(g->tensors, sizes, &m->pool[4]);
  for (int i = 0; i < g->ops; i++)
    sizes[i] = g->op[i].kind == CMKD_OP_NORM ? 2 * (size_t)g->tensor[g->op[i].out].c : 0;
  m->saved = carve(g->ops, sizes, &m->pool[5]);
  free(sizes);
  cmkd_shape image = g->tensor[0];
  m->bytes = malloc((size_t)image.h * image.w * image.c);
  m->teacher = malloc(batch * g->classes * sizeof *m->teacher);
  m->labels = malloc(batch * sizeof *m->labels);
  m->reduced = malloc((numbers_of(g) + 1) * sizeof *m->reduced);
  return m->param && m->value && m->saved && m->bytes && m->teacher && m->labels && m->reduced &&
         (!train || (m->grad && m->momentum && m->value_grad));
}

static cmkd_status ref_model_create(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out,
                                    cmkd_error *err) {
  (void)backend;
  *out = NULL;
  CMKD_TRY(cmkd_model_check(config, err));
  cmkd_be_model *model = calloc(1, sizeof *model);
  if (model) model->config = *config;
  for (int i = 0; model && i < config->objectives; i++)
    model->objective[i] = cmkd_objective_of(config, i);
  if (!model || !allocate(model)) {
    ref_model_free(model);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "ref: out of memory for `%s` at batch %d; use a smaller batch",
                     config->graph->arch, config->batch);
  }
  *out = model;
  return CMKD_OK;
}

/* Between PyTorch's layout (out, in, kh, kw) outside and ours (kh, kw, in, out): exactly one of `to` and `from` is
 * written. */
static void exchange(const cmkd_param *p, double *inside, const float *from, float *to) {
  size_t taps = p->dims == 4 ? (size_t)(p->shape[2] * p->shape[3]) : 1, in = p->dims == 4 ? (size_t)p->shape[1] : 1,
         out = (size_t)p->count / taps / in;
  for (size_t o = 0, j = 0; o < out; o++)
    for (size_t i = 0; i < in; i++)
      for (size_t tap = 0; tap < taps; tap++, j++) {
        double *number = &inside[(tap * in + i) * out + o];
        if (to)
          to[j] = (float)*number;
        else
          *number = (double)from[j];
      }
}

static double **slot_of(cmkd_be_model *model, cmkd_param_slot slot) {
  return slot == CMKD_SLOT_VALUE ? model->param : model->momentum;
}

static cmkd_status ref_upload(cmkd_be_model *model, cmkd_param_slot slot, const float *const *params, cmkd_error *err) {
  (void)err;
  const cmkd_graph *g = model->config.graph;
  double **to = slot_of(model, slot);
  for (int i = 0; i < g->params && to; i++)
    if (params[i]) exchange(&g->param[i], to[i], params[i], NULL);
  return CMKD_OK;
}

static void give(const cmkd_graph *g, double *const *from, float *const *params) {
  for (int i = 0; i < g->params; i++)
    if (params[i] && from)
      exchange(&g->param[i], from[i], NULL, params[i]);
    else if (params[i])
      memset(params[i], 0, (size_t)g->param[i].count * sizeof(float));
}

static cmkd_status ref_download(cmkd_be_model *model, cmkd_param_slot slot, float *const *params, cmkd_error *err) {
  (void)err;
  give(model->config.graph, slot_of(model, slot), params);
  return CMKD_OK;
}

static cmkd_status ref_gradients(cmkd_be_model *model, float *const *params, cmkd_error *err) {
  if (!model->grad) return cmkd_fail(err, CMKD_ERR_USAGE, "ref: an inference model has no gradients");
  give(model->config.graph, model->grad, params);
  return CMKD_OK;
}

/* Gather, augment, normalise. */
static void load_images(cmkd_be_model *model, const cmkd_image_set *images, const cmkd_step *step) {
  size_t size = (size_t)images->h * images->w * images->c;
  for (int i = 0; i < step->count; i++) {
    cmkd_augment_ref(model->config.policy, step->seeds ? step->seeds[i] : cmkd_clean_seed(model->config.policy),
                     images->pixels + step->rows[i] * size, model->bytes, images->h, images->w, images->c);
    for (size_t j = 0; j < size; j++) {
      double mean = (double)model->config.mean[j % images->c], std = (double)model->config.std[j % images->c];
      model->value[0][i * size + j] = (model->bytes[j] / 255.0 - mean) / std;
    }
  }
}

static cmkd_ref_call call_of(cmkd_be_model *model, int index, int count, int train, int backward) {
  const cmkd_graph *g = model->config.graph;
  const cmkd_op *op = &g->op[index];
  cmkd_ref_call call = {.op = op,
                        .n = count,
                        .train = train,
                        .out = g->tensor[op->out],
                        .y = model->value[op->out],
                        .saved = model->saved[index]};
  for (int k = 0; k < 2; k++)
    if (op->in[k] >= 0) {
      call.in[k] = g->tensor[op->in[k]];
      call.x[k] = model->value[op->in[k]];
      if (backward && op->in[k]) call.dx[k] = model->value_grad[op->in[k]]; /* the image's gradient is not needed */
    }
  for (int k = 0; k < 4; k++)
    if (op->param[k] >= 0) {
      call.param[k] = model->param[op->param[k]];
      if (backward && CMKD_PARAM_TRAINED(g->param[op->param[k]].kind)) call.grad[k] = model->grad[op->param[k]];
    }
  if (backward) call.dy = model->value_grad[op->out];
  return call;
}

static void forward(cmkd_be_model *model, int count, int train) {
  for (int i = 0; i < model->config.graph->ops; i++) {
    cmkd_ref_call call = call_of(model, i, count, train, 0);
    cmkd_ref_rules[call.op->kind].forward(&call);
  }
}

static void backward(cmkd_be_model *model, int count) {
  for (int i = model->config.graph->ops - 1; i >= 0; i--) {
    cmkd_ref_call call = call_of(model, i, count, 1, 1);
    cmkd_ref_rules[call.op->kind].backward(&call);
  }
}

static void update(cmkd_be_model *model, int count, double lr) {
  const cmkd_graph *g = model->config.graph;
  for (int i = 0; i < g->params; i++)
    if (CMKD_PARAM_TRAINED(g->param[i].kind))
      cmkd_ref_sgd(model->param[i], model->momentum[i], model->grad[i], g->param[i].count, lr,
                   (double)model->config.momentum, (double)model->config.weight_decay, model->config.nesterov);
  for (int i = 0; i < g->ops; i++) {
    const cmkd_op *op = &g->op[i];
    cmkd_shape s = g->tensor[op->out];
    if (op->kind == CMKD_OP_NORM)
      cmkd_ref_norm_update(op, (int64_t)count * s.h * s.w, s.c, model->saved[i],
                           model->param[op->param[CMKD_NORM_MEAN]], model->param[op->param[CMKD_NORM_VAR]]);
  }
}

/* First row with a non-finite logit (or, training, a bad label); -1: none. */
static int bad_row(const cmkd_be_model *model, const cmkd_step *step, int labels) {
  const cmkd_graph *g = model->config.graph;
  const float *teacher = step->target[CMKD_TARGET_TEACHER].values;
  for (int i = 0; i < step->count; i++) {
    if (labels && (model->labels[i] < 0 || model->labels[i] >= g->classes)) return i;
    for (int c = 0; c < g->classes; c++)
      if (!isfinite(model->value[cmkd_graph_logits(g)][(size_t)i * g->classes + c]) ||
          (labels && teacher && !isfinite(teacher[(size_t)i * g->classes + c])))
        return i;
  }
  return -1;
}

static cmkd_status fail_row(const cmkd_be_model *model, const cmkd_step *step, int row, int labels, cmkd_error *err) {
  int label = model->labels[row], classes = model->config.graph->classes;
  if (labels && (label < 0 || label >= classes))
    return cmkd_fail(err, CMKD_ERR_VALUE, "image %u: label %d is outside 0 .. %d", step->rows[row], label, classes - 1);
  return cmkd_fail(err, CMKD_ERR_VALUE, "image %u: the logits of `%s` are not finite", step->rows[row],
                   model->config.graph->arch);
}

/* The loss, top-1 and top-5, and the agreement with the teacher. Overwrites the gradient of the logits. */
static cmkd_status evaluate_loss(cmkd_be_model *model, const cmkd_step *step, cmkd_step_result *result,
                                 cmkd_error *err) {
  const cmkd_graph *g = model->config.graph;
  const cmkd_model_config *config = &model->config;
  const double *logits = model->value[cmkd_graph_logits(g)];
  const float *teacher = step->target[CMKD_TARGET_TEACHER].values;
  int64_t numbers = (int64_t)step->count * g->classes;
  for (int64_t i = 0; i < numbers && teacher; i++)
    model->teacher[i] = (double)teacher[i];
  const cmkd_loss_ref_batch batch = {.batch = step->count,
                                     .classes = g->classes,
                                     .student = logits,
                                     .teacher = teacher ? model->teacher : NULL,
                                     .labels = model->labels,
                                     .grad = model->value_grad[cmkd_graph_logits(g)],
                                     .epoch = step->epoch,
                                     .label_smoothing = config->label_smoothing,
                                     .entropy_mean = cmkd_step_entropy_mean(step)};
  CMKD_TRY(cmkd_loss_ref_double(config->loss, &batch, &result->loss, NULL, err));
  result->loss.bad_row = -1;
  for (int i = 0; i < step->count; i++) {
    cmkd_result_count_rank(result,
                           cmkd_label_rank_double(logits + (size_t)i * g->classes, g->classes, model->labels[i]));
    if (!teacher) continue;
    double pearson = 0, spearman = 0, blocks = 0;
    CMKD_TRY(cmkd_agreement_ref(g->classes, logits + (size_t)i * g->classes, model->teacher + (size_t)i * g->classes,
                                config->kappa, &pearson, &spearman, &blocks, err));
    result->agreement.pearson += pearson;
    result->agreement.spearman += spearman;
    result->agreement.blocks += blocks;
    result->agreement.rows++;
  }
  return CMKD_OK;
}

/* One further term: its value, and its gradient added to that of its output. */
static cmkd_status add_objective(cmkd_be_model *model, const cmkd_step *step, int index, cmkd_step_result *result,
                                 cmkd_error *err) {
  const cmkd_objective_term *term = &model->objective[index];
  const double numbers = (double)step->count * term->width, *output = model->value[term->tensor];
  const float *target = step->target[term->target].values;
  for (int i = 0; i < step->count; i++)
    for (int j = 0; j < term->width; j++) {
      const size_t at = (size_t)i * (size_t)term->width + (size_t)j;
      const double difference = output[at] - (double)target[at];
      if (!isfinite(difference)) {
        result->loss.bad_row = i;
        return cmkd_fail(err, CMKD_ERR_VALUE, "image %u: output `%s` or target `%s` is not finite", step->rows[i],
                         model->config.objective[index].output, model->config.objective[index].target);
      }
      result->objective[index] += difference * difference / numbers;
      model->value_grad[term->tensor][at] += 2 * term->weight * difference / numbers;
    }
  return CMKD_OK;
}

/* The hook sees floats; a number that it leaves alone keeps its double. */
static cmkd_status reduce(cmkd_be_model *model, cmkd_error *err) {
  const cmkd_reduce *hook = &model->config.reduce;
  const size_t numbers = numbers_of(model->config.graph);
  double *grad = model->pool[1];
  if (!hook->run) return CMKD_OK;
  for (size_t i = 0; i < numbers; i++)
    model->reduced[i] = (float)grad[i];
  CMKD_TRY(hook->run(hook->self, model->reduced, numbers, NULL, err));
  for (size_t i = 0; i < numbers; i++)
    if (model->reduced[i] != (float)grad[i]) grad[i] = (double)model->reduced[i];
  return CMKD_OK;
}

static cmkd_status train_step(cmkd_be_model *model, const cmkd_be_images *images, const cmkd_step *step,
                              cmkd_step_result *result, cmkd_error *err) {
  const cmkd_graph *g = model->config.graph;
  result->count = step->count;
  for (int i = 0; i < step->count; i++)
    model->labels[i] = images->set.labels[step->rows[i]];
  load_images(model, &images->set, step);
  forward(model, step->count, 1);
  int bad = bad_row(model, step, 1);
  if (bad >= 0) {
    result->loss.bad_row = bad;
    return fail_row(model, step, bad, 1, err);
  }
  for (int i = 0; i < g->tensors; i++)
    memset(model->value_grad[i], 0,
           (size_t)step->count * g->tensor[i].h * g->tensor[i].w * g->tensor[i].c * sizeof(double));
  for (int i = 0; i < g->params; i++)
    memset(model->grad[i], 0, (size_t)g->param[i].count * sizeof(double));
  CMKD_TRY(evaluate_loss(model, step, result, err));
  for (int i = 0; i < model->config.objectives; i++)
    CMKD_TRY(add_objective(model, step, i, result, err));
  backward(model, step->count);
  CMKD_TRY(reduce(model, err));
  update(model, step->count, step->lr);
  return CMKD_OK;
}

static cmkd_status infer_step(cmkd_be_model *model, const cmkd_be_images *images, const cmkd_step *step,
                              float **outputs, cmkd_error *err) {
  const cmkd_graph *g = model->config.graph;
  load_images(model, &images->set, step);
  forward(model, step->count, 0);
  for (int k = 0; k < g->outputs; k++) {
    const double *value = model->value[g->output[k].tensor];
    size_t numbers = (size_t)step->count * cmkd_graph_output_width(g, k);
    if (!outputs[k]) continue;
    for (size_t i = 0; i < numbers; i++)
      outputs[k][i] = (float)value[i];
    outputs[k] += numbers;
  }
  int bad = bad_row(model, step, 0);
  return bad < 0 ? CMKD_OK : fail_row(model, step, bad, 0, err);
}

static cmkd_status ref_run(cmkd_be_model *model, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps,
                           int k, float *const *outputs, cmkd_error *err) {
  float *at[CMKD_MAX_OUTPUTS] = {NULL}; /* where the next step's rows go */
  for (int i = 0; outputs && i < model->config.graph->outputs; i++)
    at[i] = outputs[i];
  for (int i = 0; i < k; i++) {
    CMKD_TRY(cmkd_step_check(&model->config, list, &images->set, &steps[i], 0, err));
    if (list == CMKD_LIST_INFER) {
      CMKD_TRY(infer_step(model, images, &steps[i], at, err));
      continue;
    }
    cmkd_step_result *result;
    CMKD_TRY(cmkd_results_add(&model->results, &result, err));
    const cmkd_status status = train_step(model, images, &steps[i], result, err);
    if (status == CMKD_OK) continue;
    if (result->loss.bad_row < 0) model->results.count--; /* the step failed before it had a result */
    return status;
  }
  return CMKD_OK;
}

static cmkd_status ref_read(cmkd_be_model *model, cmkd_step_result *results, int *k, cmkd_error *err) {
  (void)err;
  cmkd_results_take(&model->results, results, k);
  return CMKD_OK;
}

const cmkd_backend_table cmkd_backend_ref = {
    .version = CMKD_BACKEND_VERSION,
    .name = "ref",
    .open = ref_open,
    .close = ref_close,
    .describe = ref_describe,
    .images_create = ref_images_create,
    .images_free = ref_images_free,
    .model_create = ref_model_create,
    .model_free = ref_model_free,
    .upload = ref_upload,
    .download = ref_download,
    .run = ref_run,
    .read = ref_read,
    .gradients = ref_gradients,
};
