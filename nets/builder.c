/* The builder behind the family files: grows the operation list, names parameters, derives shapes. Not here:
 * the numbers of parameters. */
#include "nets/builder.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/loss.h"

#define NONE ((cmkd_shape){0, 0, 0})

static int failed(cmkd_net_builder *b, cmkd_status status) {
  if (b->status == CMKD_OK) b->status = status;
  return -1;
}

void cmkd_net_fail(cmkd_net_builder *b, const char *message) {
  if (b->status == CMKD_OK) failed(b, cmkd_fail(b->err, CMKD_ERR_MISMATCH, "`%s`: %s", b->graph->arch, message));
}

/* One more element in a growing array; NULL after a failure. */
static void *grow(cmkd_net_builder *b, void **array, int *count, int *capacity, size_t size) {
  if (*count == *capacity) {
    int more = *capacity ? *capacity * 2 : 64;
    void *bigger = realloc(*array, (size_t)more * size);
    if (!bigger) {
      failed(b, cmkd_fail(b->err, CMKD_ERR_MEMORY, "out of memory building `%s`", b->graph->arch));
      return NULL;
    }
    *array = bigger;
    *capacity = more;
  }
  void *element = (char *)*array + (size_t)(*count)++ * size;
  memset(element, 0, size);
  return element;
}

static int add_tensor(cmkd_net_builder *b, cmkd_shape shape) {
  cmkd_shape *s = grow(b, (void **)&b->graph->tensor, &b->graph->tensors, &b->tensor_capacity, sizeof *s);
  if (!s) return -1;
  *s = shape;
  return b->graph->tensors - 1;
}

cmkd_status cmkd_net_start(cmkd_net_builder *b, const char *arch, cmkd_net_shape shape, cmkd_error *err) {
  *b = (cmkd_net_builder){.err = err,
                          .conv_init = CMKD_INIT_KAIMING_FAN_OUT,
                          .linear_init = CMKD_INIT_UNIFORM_FAN_IN,
                          .linear_bias_init = CMKD_INIT_UNIFORM_FAN_IN};
  if (shape.channels != 1 && shape.channels != 3)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s`: images of %d channels; networks take 1 or 3", arch,
                     shape.channels);
  if (shape.height < 1 || shape.width < 1 || shape.height > 4096 || shape.width > 4096)
    return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: images of %dx%d pixels are out of range", arch, shape.height,
                     shape.width);
  if (shape.classes < CMKD_LOSS_MIN_CLASSES || shape.classes > CMKD_LOSS_MAX_CLASSES)
    return cmkd_fail(err, CMKD_ERR_VALUE, "`%s`: %d classes; a classifier has %d to %d", arch, shape.classes,
                     CMKD_LOSS_MIN_CLASSES, CMKD_LOSS_MAX_CLASSES);
  b->graph = calloc(1, sizeof *b->graph);
  if (!b->graph) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory building `%s`", arch);
  snprintf(b->graph->arch, sizeof b->graph->arch, "%s", arch);
  b->graph->classes = shape.classes;
  cmkd_graph_output_set(b->graph, "logits", -1);
  cmkd_graph_output_set(b->graph, "features", -1);
  add_tensor(b, (cmkd_shape){shape.height, shape.width, shape.channels});
  return b->status;
}

cmkd_status cmkd_net_finish(cmkd_net_builder *b, cmkd_graph **out) {
  if (b->status == CMKD_OK) b->status = cmkd_graph_check(b->graph, b->err);
  if (b->status == CMKD_OK)
    *out = b->graph;
  else
    cmkd_graph_free(b->graph);
  b->graph = NULL;
  return b->status;
}

void cmkd_net_scope(cmkd_net_builder *b, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(b->scope, sizeof b->scope, format, args);
  va_end(args);
}

static cmkd_shape shape_of(const cmkd_net_builder *b, int x) {
  return b->status == CMKD_OK && x >= 0 && x < b->graph->tensors ? b->graph->tensor[x] : NONE;
}
int cmkd_net_channels(const cmkd_net_builder *b, int x) { return shape_of(b, x).c; }
int cmkd_net_height(const cmkd_net_builder *b, int x) { return shape_of(b, x).h; }
int cmkd_net_width(const cmkd_net_builder *b, int x) { return shape_of(b, x).w; }

/* Appends op, its output shaped by the op's rule. */
static int append(cmkd_net_builder *b, cmkd_op op, int out_c) {
  if (b->status != CMKD_OK) return -1;
  cmkd_shape out;
  cmkd_error why = {0};
  cmkd_status status = cmkd_op_shape(op.kind, &op, shape_of(b, op.in[0]), op.in[1] < 0 ? NONE : shape_of(b, op.in[1]),
                                     out_c, &out, &why);
  if (status != CMKD_OK) {
    cmkd_shape image = b->graph->tensor[0];
    return failed(b,
                  cmkd_fail(b->err, status, "`%s` on %dx%d images: %s", b->graph->arch, image.h, image.w, why.message));
  }
  op.out = add_tensor(b, out);
  cmkd_op *slot =
      b->status == CMKD_OK ? grow(b, (void **)&b->graph->op, &b->graph->ops, &b->op_capacity, sizeof *slot) : NULL;
  if (!slot) return -1;
  *slot = op;
  return op.out;
}

static cmkd_op op_of(cmkd_op_kind kind, int x) {
  return (cmkd_op){.kind = kind,
                   .in = {x, -1},
                   .param = {-1, -1, -1, -1},
                   .kernel_h = 1,
                   .kernel_w = 1,
                   .stride = 1,
                   .groups = 1,
                   .eps = 1e-5f,
                   .momentum = 0.1f};
}

static int add_param(cmkd_net_builder *b, const char *name, const char *suffix, cmkd_param_kind kind, cmkd_init init,
                     int dims, const int64_t *shape, int64_t fan_in) {
  if (b->status != CMKD_OK) return -1;
  cmkd_param *p = grow(b, (void **)&b->graph->param, &b->graph->params, &b->param_capacity, sizeof *p);
  if (!p) return -1;
  int length = snprintf(p->name, sizeof p->name, "%s%s.%s", b->scope, name, suffix);
  if (length < 0 || (size_t)length >= sizeof p->name)
    return failed(b, cmkd_fail(b->err, CMKD_ERR_VALUE, "`%s`: a parameter's name is too long", b->graph->arch));
  p->kind = kind;
  p->init = init;
  p->dims = dims;
  p->fan_in = fan_in;
  p->count = 1;
  for (int d = 0; d < dims; d++) {
    p->shape[d] = shape[d];
    p->count *= shape[d];
  }
  return b->graph->params - 1;
}

typedef struct conv_spec {
  int out, kernel, stride, pad, groups, bias;
} conv_spec;

static int conv(cmkd_net_builder *b, const char *name, int x, conv_spec spec) {
  cmkd_op op = op_of(CMKD_OP_CONV, x);
  op.kernel_h = op.kernel_w = spec.kernel;
  op.stride = spec.stride;
  op.pad = spec.pad;
  op.groups = spec.groups;
  int in = cmkd_net_channels(b, x);
  if (b->status == CMKD_OK && (spec.groups < 1 || in % spec.groups))
    cmkd_net_fail(b, "groups of a convolution do not divide its channels");
  if (b->status != CMKD_OK) return -1;
  const int64_t shape[4] = {spec.out, in / spec.groups, spec.kernel, spec.kernel};
  const int64_t fan_in = shape[1] * spec.kernel * spec.kernel;
  op.param[0] = add_param(b, name, "weight", CMKD_PARAM_WEIGHT, b->conv_init, 4, shape, fan_in);
  if (spec.bias) {
    cmkd_init init = b->conv_init == CMKD_INIT_UNIFORM_FAN_IN ? CMKD_INIT_UNIFORM_FAN_IN : CMKD_INIT_ZERO;
    op.param[1] = add_param(b, name, "bias", CMKD_PARAM_BIAS, init, 1, shape, fan_in);
  }
  return append(b, op, spec.out);
}

int cmkd_net_conv(cmkd_net_builder *b, const char *name, int x, int out, int kernel, int stride, int pad) {
  return conv(b, name, x, (conv_spec){out, kernel, stride, pad, .groups = 1});
}

int cmkd_net_conv_groups(cmkd_net_builder *b, const char *name, int x, int out, int kernel, int stride, int pad,
                         int groups) {
  return conv(b, name, x, (conv_spec){out, kernel, stride, pad, .groups = groups});
}

int cmkd_net_conv_bias(cmkd_net_builder *b, const char *name, int x, int out, int kernel, int stride, int pad) {
  return conv(b, name, x, (conv_spec){out, kernel, stride, pad, .groups = 1, .bias = 1});
}

static int find_param(const cmkd_net_builder *b, const char *name, const char *suffix) {
  char full[160];
  snprintf(full, sizeof full, "%s%s.%s", b->scope, name, suffix);
  for (int i = 0; i < b->graph->params; i++)
    if (!strcmp(b->graph->param[i].name, full)) return i;
  return -1;
}

void cmkd_net_declare_norm(cmkd_net_builder *b, const char *name, int channels) {
  const int64_t shape[1] = {channels};
  add_param(b, name, "weight", CMKD_PARAM_SCALE, CMKD_INIT_ONE, 1, shape, channels);
  add_param(b, name, "bias", CMKD_PARAM_SHIFT, CMKD_INIT_ZERO, 1, shape, channels);
  add_param(b, name, "running_mean", CMKD_PARAM_MEAN, CMKD_INIT_ZERO, 1, shape, channels);
  add_param(b, name, "running_var", CMKD_PARAM_VAR, CMKD_INIT_ONE, 1, shape, channels);
}

int cmkd_net_norm(cmkd_net_builder *b, const char *name, int x, int residual, cmkd_act act) {
  if (b->status != CMKD_OK) return -1;
  cmkd_op op = op_of(CMKD_OP_NORM, x);
  op.in[1] = residual;
  op.act = act;
  int first = find_param(b, name, "weight");
  if (first < 0) {
    first = b->graph->params;
    cmkd_net_declare_norm(b, name, cmkd_net_channels(b, x));
  }
  for (int i = 0; i < 4; i++)
    op.param[i] = first + i;
  return append(b, op, 0);
}

int cmkd_net_linear(cmkd_net_builder *b, const char *name, int x, int out) {
  if (b->status != CMKD_OK) return -1;
  cmkd_op op = op_of(CMKD_OP_LINEAR, x);
  cmkd_shape in = shape_of(b, x);
  const int64_t shape[2] = {out, (int64_t)in.h * in.w * in.c};
  op.param[0] = add_param(b, name, "weight", CMKD_PARAM_WEIGHT, b->linear_init, 2, shape, shape[1]);
  op.param[1] = add_param(b, name, "bias", CMKD_PARAM_BIAS, b->linear_bias_init, 1, shape, shape[1]);
  return append(b, op, out);
}

int cmkd_net_add(cmkd_net_builder *b, int x, int y, cmkd_act act) {
  cmkd_op op = op_of(CMKD_OP_ADD, x);
  op.in[1] = y;
  op.act = act;
  return append(b, op, 0);
}

int cmkd_net_act(cmkd_net_builder *b, int x, cmkd_act act) {
  cmkd_op op = op_of(CMKD_OP_ACT, x);
  op.act = act;
  return append(b, op, 0);
}

static int pool(cmkd_net_builder *b, cmkd_op_kind kind, int x, int kernel, int stride, int pad) {
  cmkd_op op = op_of(kind, x);
  op.kernel_h = op.kernel_w = kernel;
  op.stride = stride;
  op.pad = pad;
  return append(b, op, 0);
}
int cmkd_net_maxpool(cmkd_net_builder *b, int x, int kernel, int stride, int pad) {
  return pool(b, CMKD_OP_MAXPOOL, x, kernel, stride, pad);
}
int cmkd_net_avgpool(cmkd_net_builder *b, int x, int kernel, int stride, int pad) {
  return pool(b, CMKD_OP_AVGPOOL, x, kernel, stride, pad);
}
int cmkd_net_globalpool(cmkd_net_builder *b, int x) { return append(b, op_of(CMKD_OP_GLOBALPOOL, x), 0); }

int cmkd_net_padshortcut(cmkd_net_builder *b, int x, int out, int stride) {
  cmkd_op op = op_of(CMKD_OP_PADSHORTCUT, x);
  op.stride = stride;
  op.first = (out - cmkd_net_channels(b, x)) / 2;
  return append(b, op, out);
}

int cmkd_net_concat(cmkd_net_builder *b, int x, int y) {
  cmkd_op op = op_of(CMKD_OP_CONCAT, x);
  op.in[1] = y;
  return append(b, op, 0);
}

int cmkd_net_slice(cmkd_net_builder *b, int x, int first, int count) {
  cmkd_op op = op_of(CMKD_OP_SLICE, x);
  op.first = first;
  return append(b, op, count);
}

int cmkd_net_shuffle(cmkd_net_builder *b, int x, int groups) {
  cmkd_op op = op_of(CMKD_OP_SHUFFLE, x);
  op.groups = groups;
  return append(b, op, 0);
}

void cmkd_net_classifier(cmkd_net_builder *b, const char *name, int x) {
  if (b->status != CMKD_OK) return;
  cmkd_graph_output_set(b->graph, "features", x);
  cmkd_graph_output_set(b->graph, "logits", cmkd_net_linear(b, name, x, b->graph->classes));
}
