/* The operation list's own arithmetic: freeing, counting, and the rules that every op's shapes must obey.
 * Will not do: build networks (nets/) or compute anything (the backends). */
#include "kernels/graph.h"
#include <stdlib.h>
#include <string.h>

#define MAX_SIDE 16384 /* pixels; keeps every product below inside 64 bits */
#define MAX_CHANNELS (1 << 20)
#define MAX_TENSOR (1LL << 31) /* numbers of one image's activation */

void cmkd_graph_free(cmkd_graph *graph) {
  if (!graph) return;
  free(graph->tensor);
  free(graph->op);
  free(graph->param);
  free(graph);
}

int cmkd_graph_output_find(const cmkd_graph *graph, const char *name) {
  for (int i = 0; i < graph->outputs; i++)
    if (!strcmp(graph->output[i].name, name)) return i;
  return -1;
}

int cmkd_graph_output_set(cmkd_graph *graph, const char *name, int tensor) {
  int i = cmkd_graph_output_find(graph, name);
  if (i < 0) {
    const size_t length = strlen(name);
    if (graph->outputs == CMKD_MAX_OUTPUTS || !length || length >= sizeof graph->output[0].name) return -1;
    i = graph->outputs++;
    memcpy(graph->output[i].name, name, length + 1);
  }
  graph->output[i].tensor = tensor;
  return i;
}

int64_t cmkd_graph_parameters(const cmkd_graph *graph) {
  int64_t sum = 0;
  for (int i = 0; i < graph->params; i++)
    if (CMKD_PARAM_TRAINED(graph->param[i].kind)) sum += graph->param[i].count;
  return sum;
}

int64_t cmkd_graph_macs(const cmkd_graph *graph) {
  int64_t sum = 0;
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    cmkd_shape out = graph->tensor[op->out];
    if (cmkd_op_traits_of(op->kind)->weighted) sum += graph->param[op->param[0]].count * out.h * out.w;
  }
  return sum;
}

const cmkd_op_traits *cmkd_op_traits_of(cmkd_op_kind kind) {
  static const cmkd_op_traits traits[] = {[CMKD_OP_CONV] = {"conv", 1, 1, 2, 2, 1},
                                          [CMKD_OP_NORM] = {"norm", 1, 2, 4, 2, 0},
                                          [CMKD_OP_ADD] = {"add", 2, 2, 0, 0, 0},
                                          [CMKD_OP_ACT] = {"act", 1, 1, 0, 0, 0},
                                          [CMKD_OP_MAXPOOL] = {"maxpool", 1, 1, 0, 0, 0},
                                          [CMKD_OP_AVGPOOL] = {"avgpool", 1, 1, 0, 0, 0},
                                          [CMKD_OP_GLOBALPOOL] = {"globalpool", 1, 1, 0, 0, 0},
                                          [CMKD_OP_LINEAR] = {"linear", 1, 1, 2, 2, 1},
                                          [CMKD_OP_PADSHORTCUT] = {"padshortcut", 1, 1, 0, 0, 0},
                                          [CMKD_OP_CONCAT] = {"concat", 2, 2, 0, 0, 0},
                                          [CMKD_OP_SLICE] = {"slice", 1, 1, 0, 0, 0},
                                          [CMKD_OP_SHUFFLE] = {"shuffle", 1, 1, 0, 0, 0}};
  return (unsigned)kind < sizeof traits / sizeof *traits ? &traits[kind] : NULL;
}

const char *cmkd_op_name(cmkd_op_kind kind) {
  const cmkd_op_traits *traits = cmkd_op_traits_of(kind);
  return traits ? traits->name : "unknown";
}

static int good_shape(cmkd_shape s) {
  return s.h >= 1 && s.w >= 1 && s.c >= 1 && s.h <= MAX_SIDE && s.w <= MAX_SIDE && s.c <= MAX_CHANNELS &&
         (int64_t)s.h * s.w * s.c <= MAX_TENSOR;
}

/* Windows of a convolution or pool along one side; 0 when none fits. */
static int windows(int side, int kernel, int stride, int pad) {
  return side + 2 * pad < kernel ? 0 : (side + 2 * pad - kernel) / stride + 1;
}

cmkd_status cmkd_op_shape(cmkd_op_kind kind, const cmkd_op *op, cmkd_shape in0, cmkd_shape in1, int out_c,
                          cmkd_shape *out, cmkd_error *err) {
  cmkd_shape s = in0;
  const char *name = cmkd_op_name(kind);
  switch (kind) {
  case CMKD_OP_CONV:
  case CMKD_OP_MAXPOOL:
  case CMKD_OP_AVGPOOL:
    if (op->kernel_h < 1 || op->kernel_w < 1 || op->stride < 1 || op->pad < 0 || op->kernel_h > 64 ||
        op->kernel_w > 64 || op->stride > 64 || op->pad > 64)
      return cmkd_fail(err, CMKD_ERR_VALUE, "%s: kernel %dx%d, stride %d, padding %d is not a window", name,
                       op->kernel_h, op->kernel_w, op->stride, op->pad);
    if (kind != CMKD_OP_CONV && (2 * op->pad > op->kernel_h || 2 * op->pad > op->kernel_w))
      return cmkd_fail(err, CMKD_ERR_VALUE, "%s: padding %d is more than half the kernel", name, op->pad);
    s.h = windows(in0.h, op->kernel_h, op->stride, op->pad);
    s.w = windows(in0.w, op->kernel_w, op->stride, op->pad);
    if (s.h < 1 || s.w < 1)
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s: a %dx%d window does not fit into %dx%d; the images are too small for this network", name,
                       op->kernel_h, op->kernel_w, in0.h, in0.w);
    if (kind == CMKD_OP_CONV) {
      if (op->groups < 1 || in0.c % op->groups || out_c % op->groups)
        return cmkd_fail(err, CMKD_ERR_VALUE, "conv: %d groups do not divide %d and %d channels", op->groups, in0.c,
                         out_c);
      s.c = out_c;
    }
    break;
  case CMKD_OP_NORM:
  case CMKD_OP_ACT: break;
  case CMKD_OP_ADD:
    if (in0.h != in1.h || in0.w != in1.w || in0.c != in1.c)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "add: %dx%dx%d and %dx%dx%d differ", in0.h, in0.w, in0.c, in1.h, in1.w,
                       in1.c);
    break;
  case CMKD_OP_GLOBALPOOL: s.h = s.w = 1; break;
  case CMKD_OP_LINEAR: s = (cmkd_shape){1, 1, out_c}; break;
  case CMKD_OP_PADSHORTCUT:
    if (op->stride < 1 || op->stride > 64 || op->first < 0 || out_c < in0.c || op->first > out_c - in0.c)
      return cmkd_fail(err, CMKD_ERR_VALUE, "padshortcut: %d channels from %d on do not fit into %d", in0.c, op->first,
                       out_c);
    s = (cmkd_shape){(in0.h - 1) / op->stride + 1, (in0.w - 1) / op->stride + 1, out_c};
    break;
  case CMKD_OP_CONCAT:
    if (in0.h != in1.h || in0.w != in1.w)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "concat: %dx%d and %dx%d differ", in0.h, in0.w, in1.h, in1.w);
    s.c = in0.c + in1.c;
    break;
  case CMKD_OP_SLICE:
    if (op->first < 0 || out_c < 1 || op->first > in0.c - out_c)
      return cmkd_fail(err, CMKD_ERR_VALUE, "slice: channels %d .. %d of %d", op->first, op->first + out_c - 1, in0.c);
    s.c = out_c;
    break;
  case CMKD_OP_SHUFFLE:
    if (op->groups < 1 || in0.c % op->groups)
      return cmkd_fail(err, CMKD_ERR_VALUE, "shuffle: %d groups do not divide %d channels", op->groups, in0.c);
    break;
  default: return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "operation %d is unknown", (int)kind);
  }
  if (!good_shape(s)) return cmkd_fail(err, CMKD_ERR_VALUE, "%s: output %dx%dx%d is out of range", name, s.h, s.w, s.c);
  *out = s;
  return CMKD_OK;
}

static cmkd_status check_param(const cmkd_graph *graph, const cmkd_op *op, int slot, cmkd_param_kind kind, int dims,
                               const int64_t *shape, cmkd_error *err) {
  int index = op->param[slot];
  if (index < 0 || index >= graph->params)
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: parameter index %d is out of range", cmkd_op_name(op->kind), index);
  const cmkd_param *param = &graph->param[index];
  int64_t count = 1;
  if (param->kind != kind || param->dims != dims)
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: `%s` is of the wrong kind", cmkd_op_name(op->kind), param->name);
  for (int d = 0; d < dims; d++) {
    if (param->shape[d] != shape[d])
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: `%s` has %lld where %lld is needed (dimension %d)",
                       cmkd_op_name(op->kind), param->name, (long long)param->shape[d], (long long)shape[d], d);
    count *= shape[d];
  }
  return param->count == count ? CMKD_OK
                               : cmkd_fail(err, CMKD_ERR_VALUE, "`%s` counts %lld numbers, its shape %lld", param->name,
                                           (long long)param->count, (long long)count);
}

static cmkd_status check_params(const cmkd_graph *graph, const cmkd_op *op, cmkd_error *err) {
  cmkd_shape in = graph->tensor[op->in[0]], out = graph->tensor[op->out];
  if (op->kind == CMKD_OP_CONV || op->kind == CMKD_OP_LINEAR) {
    const int64_t conv[4] = {out.c, in.c / (op->kind == CMKD_OP_CONV ? op->groups : 1), op->kernel_h, op->kernel_w},
                  linear[2] = {out.c, (int64_t)in.h * in.w * in.c};
    CMKD_TRY(op->kind == CMKD_OP_CONV ? check_param(graph, op, 0, CMKD_PARAM_WEIGHT, 4, conv, err)
                                      : check_param(graph, op, 0, CMKD_PARAM_WEIGHT, 2, linear, err));
    return op->param[1] < 0 ? CMKD_OK : check_param(graph, op, 1, CMKD_PARAM_BIAS, 1, conv, err);
  }
  if (op->kind != CMKD_OP_NORM) return CMKD_OK;
  const int64_t channels[1] = {out.c};
  for (int slot = 0; slot < CMKD_NORM_PARAMS; slot++)
    CMKD_TRY(check_param(graph, op, slot, (cmkd_param_kind)(CMKD_PARAM_SCALE + slot), 1, channels, err));
  return op->eps > 0 && op->momentum >= 0 && op->momentum <= 1
             ? CMKD_OK
             : cmkd_fail(err, CMKD_ERR_VALUE, "norm: eps %g or momentum %g is out of range", op->eps, op->momentum);
}

static int takes_second(const cmkd_op *op) {
  const cmkd_op_traits *traits = cmkd_op_traits_of(op->kind);
  return traits && (traits->inputs_needed == 2 || (traits->inputs_possible == 2 && op->in[1] >= 0));
}

static cmkd_status check_op(const cmkd_graph *graph, const cmkd_op *op, const uint8_t *written, cmkd_error *err) {
  const char *name = cmkd_op_name(op->kind);
  int inputs = takes_second(op) ? 2 : 1;
  for (int i = 0; i < inputs; i++)
    if (op->in[i] < 0 || op->in[i] >= graph->tensors || !written[op->in[i]])
      return cmkd_fail(err, CMKD_ERR_VALUE, "%s: reads tensor %d before it is written", name, op->in[i]);
  if (op->out < 0 || op->out >= graph->tensors || written[op->out])
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: tensor %d is written twice or does not exist", name, op->out);
  if ((unsigned)op->act > CMKD_ACT_RELU6 ||
      (op->act != CMKD_ACT_NONE && op->kind != CMKD_OP_NORM && op->kind != CMKD_OP_ADD && op->kind != CMKD_OP_ACT))
    return cmkd_fail(err, CMKD_ERR_VALUE, "%s: has no activation %d", name, (int)op->act);
  cmkd_shape in0 = graph->tensor[op->in[0]], in1 = inputs == 2 ? graph->tensor[op->in[1]] : (cmkd_shape){0, 0, 0},
             out = graph->tensor[op->out], expected;
  CMKD_TRY(cmkd_op_shape(op->kind, op, in0, in1, out.c, &expected, err));
  if (op->kind == CMKD_OP_NORM && inputs == 2 && (in1.h != in0.h || in1.w != in0.w || in1.c != in0.c))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "norm: the shortcut %dx%dx%d does not fit %dx%dx%d", in1.h, in1.w, in1.c,
                     in0.h, in0.w, in0.c);
  if (expected.h != out.h || expected.w != out.w || expected.c != out.c)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: writes %dx%dx%d into a tensor of %dx%dx%d", name, expected.h,
                     expected.w, expected.c, out.h, out.w, out.c);
  return check_params(graph, op, err);
}

static cmkd_status check_outputs(const cmkd_graph *graph, const uint8_t *written, cmkd_error *err) {
  if (graph->outputs < 2 || graph->outputs > CMKD_MAX_OUTPUTS || strcmp(graph->output[0].name, "logits") ||
      strcmp(graph->output[1].name, "features"))
    return cmkd_fail(err, CMKD_ERR_VALUE, "network `%s`: its first outputs are not `logits` and `features`",
                     graph->arch);
  for (int i = 0; i < graph->outputs; i++) {
    const cmkd_graph_output *output = &graph->output[i];
    if (cmkd_graph_output_find(graph, output->name) != i)
      return cmkd_fail(err, CMKD_ERR_VALUE, "network `%s`: two outputs `%s`", graph->arch, output->name);
    if (output->tensor < 0 || output->tensor >= graph->tensors || !written[output->tensor])
      return cmkd_fail(err, CMKD_ERR_VALUE, "network `%s`: no operation writes output `%s`", graph->arch, output->name);
  }
  const cmkd_shape logits = graph->tensor[cmkd_graph_logits(graph)],
                   features = graph->tensor[cmkd_graph_features(graph)];
  if (cmkd_graph_logits(graph) == 0 || logits.h != 1 || logits.w != 1 || logits.c != graph->classes ||
      features.h != 1 || features.w != 1)
    return cmkd_fail(err, CMKD_ERR_VALUE, "network `%s`: logits or features have no proper shape", graph->arch);
  return CMKD_OK;
}

cmkd_status cmkd_graph_check(const cmkd_graph *graph, cmkd_error *err) {
  if (graph->tensors < 2 || graph->ops < 1 || graph->params < 1 || graph->classes < 2)
    return cmkd_fail(err, CMKD_ERR_VALUE, "network `%s` is empty", graph->arch);
  for (int i = 0; i < graph->tensors; i++)
    if (!good_shape(graph->tensor[i]))
      return cmkd_fail(err, CMKD_ERR_VALUE, "network `%s`: tensor %d has no proper shape", graph->arch, i);
  uint8_t *written = calloc((size_t)graph->tensors + (size_t)graph->params, 1), *used = written + graph->tensors;
  if (!written) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory checking network `%s`", graph->arch);
  written[0] = 1;
  cmkd_status status = CMKD_OK;
  for (int i = 0; i < graph->ops && status == CMKD_OK; i++) {
    const cmkd_op *op = &graph->op[i];
    status = check_op(graph, op, written, err);
    if (status != CMKD_OK) break;
    written[op->out] = 1;
    const int slots = cmkd_op_traits_of(op->kind)->params;
    for (int slot = 0; slot < slots && status == CMKD_OK; slot++) {
      int index = op->param[slot];
      if (index >= 0 && used[index]++)
        status =
            cmkd_fail(err, CMKD_ERR_VALUE, "network `%s`: `%s` is used twice", graph->arch, graph->param[index].name);
    }
  }
  for (int i = 0; i < graph->params && status == CMKD_OK; i++)
    if (!used[i])
      status =
          cmkd_fail(err, CMKD_ERR_VALUE, "network `%s`: no operation uses `%s`", graph->arch, graph->param[i].name);
  if (status == CMKD_OK) status = check_outputs(graph, written, err);
  free(written);
  return status;
}
