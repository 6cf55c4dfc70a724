/* ONNX export: an operation list as protocol buffers (the dozen fields of onnx.proto that a network needs). An
 * operation kind of kernels/graph.h has a line in `writers`. Not here: reading ONNX, quantising, normalising. */
#include "nets/onnx.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "nets/protobuf.h"

#define IR_VERSION 7
#define OPSET 13

/* Field numbers of onnx.proto, message by message. */
enum {
  MODEL_IR = 1,
  MODEL_PRODUCER = 2,
  MODEL_PRODUCER_VERSION = 3,
  MODEL_GRAPH = 7,
  MODEL_OPSET = 8,
  MODEL_META = 14,
  OPSET_VERSION = 2,
  META_KEY = 1,
  META_VALUE = 2,
  GRAPH_NODE = 1,
  GRAPH_NAME = 2,
  GRAPH_INITIALIZER = 5,
  GRAPH_INPUT = 11,
  GRAPH_OUTPUT = 12,
  NODE_INPUT = 1,
  NODE_OUTPUT = 2,
  NODE_TYPE = 4,
  NODE_ATTRIBUTE = 5,
  ATTR_NAME = 1,
  ATTR_FLOAT = 2,
  ATTR_INT = 3,
  ATTR_INTS = 8,
  ATTR_TYPE = 20,
  TENSOR_DIMS = 1,
  TENSOR_TYPE = 2,
  TENSOR_NAME = 8,
  TENSOR_RAW = 9,
  VALUE_NAME = 1,
  VALUE_TYPE = 2,
  TYPE_TENSOR = 1,
  TENSOR_TYPE_ELEM = 1,
  TENSOR_TYPE_SHAPE = 2,
  SHAPE_DIM = 1,
  DIM_VALUE = 1,
  DIM_PARAM = 2
};
enum { ELEM_FLOAT = 1, ELEM_INT64 = 7, KIND_FLOAT = 1, KIND_INT = 2, KIND_INTS = 7 };

/* ---- nodes and initializers ---- */
typedef struct exporter {
  const cmkd_graph *graph;
  const cmkd_params *params;
  int fold, features;
  int *readers;       /* (tensors) how many ops read it */
  int *producer;      /* (tensors) the op that writes it; -1: none */
  cmkd_protobuf out;  /* the graph */
  cmkd_protobuf node; /* the node being written */
  cmkd_protobuf part; /* an attribute or tensor of it */
  int clip_bounds;    /* 1: the constants of ReLU6 are written */
} exporter;

typedef struct name {
  char text[48];
} name;

/* The name of a tensor of the graph, or with a suffix of a value on the way to it. */
static name value(const exporter *e, int tensor, const char *suffix) {
  name n;
  if (tensor == 0)
    snprintf(n.text, sizeof n.text, "input");
  else if (tensor == cmkd_graph_logits(e->graph))
    snprintf(n.text, sizeof n.text, "logits%s", suffix);
  else
    snprintf(n.text, sizeof n.text, "t%d%s", tensor, suffix);
  return n;
}

/* A node is started, given inputs and attributes, and finished. */
static void start(exporter *e, const char *type, const char *input) {
  e->node.size = 0;
  cmkd_protobuf_text(&e->node, NODE_TYPE, type);
  cmkd_protobuf_text(&e->node, NODE_INPUT, input);
}

static void in(exporter *e, const char *text) { cmkd_protobuf_text(&e->node, NODE_INPUT, text); }

static void finish(exporter *e, const char *out) {
  cmkd_protobuf_text(&e->node, NODE_OUTPUT, out);
  cmkd_protobuf_message(&e->out, GRAPH_NODE, &e->node);
}

static void node(exporter *e, const char *type, const char *input, const char *out) {
  start(e, type, input);
  finish(e, out);
}

static void node2(exporter *e, const char *type, const char *first, const char *second, const char *out) {
  start(e, type, first);
  in(e, second);
  finish(e, out);
}

static void attribute_int(exporter *e, const char *key, int64_t v) {
  cmkd_protobuf_text(&e->part, ATTR_NAME, key);
  cmkd_protobuf_int(&e->part, ATTR_INT, v);
  cmkd_protobuf_int(&e->part, ATTR_TYPE, KIND_INT);
  cmkd_protobuf_message(&e->node, NODE_ATTRIBUTE, &e->part);
}

static void attribute_float(exporter *e, const char *key, float v) {
  cmkd_protobuf_text(&e->part, ATTR_NAME, key);
  cmkd_protobuf_float(&e->part, ATTR_FLOAT, v);
  cmkd_protobuf_int(&e->part, ATTR_TYPE, KIND_FLOAT);
  cmkd_protobuf_message(&e->node, NODE_ATTRIBUTE, &e->part);
}

static void attribute_ints(exporter *e, const char *key, int count, const int64_t *v) {
  cmkd_protobuf_text(&e->part, ATTR_NAME, key);
  for (int i = 0; i < count; i++)
    cmkd_protobuf_int(&e->part, ATTR_INTS, v[i]);
  cmkd_protobuf_int(&e->part, ATTR_TYPE, KIND_INTS);
  cmkd_protobuf_message(&e->node, NODE_ATTRIBUTE, &e->part);
}

static void initializer(exporter *e, const char *text, int elem, int dims, const int64_t *shape, const void *data,
                        size_t bytes) {
  cmkd_protobuf *p = &e->part;
  p->size = 0;
  for (int d = 0; d < dims; d++)
    cmkd_protobuf_int(p, TENSOR_DIMS, shape[d]);
  cmkd_protobuf_int(p, TENSOR_TYPE, elem);
  cmkd_protobuf_text(p, TENSOR_NAME, text);
  cmkd_protobuf_head(p, TENSOR_RAW, bytes);
  cmkd_protobuf_head(&e->out, GRAPH_INITIALIZER, p->size + bytes); /* the data, which are large, are copied once */
  cmkd_protobuf_bytes(&e->out, p->data, p->size);
  cmkd_protobuf_bytes(&e->out, data, bytes);
  p->size = 0;
}

static void constants(exporter *e, const char *text, int count, const int64_t *v) {
  initializer(e, text, ELEM_INT64, 1, (int64_t[]){count}, v, (size_t)count * sizeof *v);
}

/* A parameter as it is. Returns the name under which nodes read it; -1 is no parameter: NULL. */
static const char *parameter(exporter *e, int index) {
  if (index < 0) return NULL;
  const cmkd_param *p = &e->graph->param[index];
  initializer(e, p->name, ELEM_FLOAT, p->dims, p->shape, e->params->value[index], (size_t)p->count * sizeof(float));
  return p->name;
}

/* ---- operations ---- */
/* From a raw value to the op's output tensor. An op without activation writes its tensor itself. */
static void activate(exporter *e, cmkd_act act, const char *raw, int tensor) {
  name out = value(e, tensor, "");
  if (act != CMKD_ACT_RELU6) {
    node(e, "Relu", raw, out.text);
    return;
  }
  if (!e->clip_bounds) {
    initializer(e, "clip.min", ELEM_FLOAT, 0, NULL, &(float){0}, 4);
    initializer(e, "clip.max", ELEM_FLOAT, 0, NULL, &(float){6}, 4);
    e->clip_bounds = 1;
  }
  start(e, "Clip", raw);
  in(e, "clip.min");
  in(e, "clip.max");
  finish(e, out.text);
}

static void windows(exporter *e, const cmkd_op *op) {
  attribute_ints(e, "kernel_shape", 2, (int64_t[]){op->kernel_h, op->kernel_w});
  attribute_ints(e, "strides", 2, (int64_t[]){op->stride, op->stride});
  attribute_ints(e, "pads", 4, (int64_t[]){op->pad, op->pad, op->pad, op->pad});
}

static void conv_node(exporter *e, const cmkd_op *op, const char *weight, const char *bias, const char *out) {
  start(e, "Conv", value(e, op->in[0], "").text);
  in(e, weight);
  if (bias) in(e, bias);
  windows(e, op);
  attribute_int(e, "group", op->groups);
  finish(e, out);
}

/* The convolution that a norm swallows, or NULL. */
static const cmkd_op *folded_conv(const exporter *e, const cmkd_op *norm) {
  int from = norm->in[0], index = e->producer[from];
  if (!e->fold || index < 0 || e->readers[from] != 1) return NULL;
  const cmkd_op *op = &e->graph->op[index];
  return op->kind == CMKD_OP_CONV ? op : NULL;
}

/* The norm that swallows a convolution, or NULL. */
static const cmkd_op *folding_norm(const exporter *e, const cmkd_op *conv) {
  for (int i = 0; i < e->graph->ops; i++) {
    const cmkd_op *op = &e->graph->op[i];
    if (op->kind == CMKD_OP_NORM && op->in[0] == conv->out && folded_conv(e, op)) return op;
  }
  return NULL;
}

/* w' = w g / sqrt(var + eps), b' = beta + (b - mean) g / sqrt(var + eps) */
static int fold_numbers(exporter *e, const cmkd_op *conv, const cmkd_op *norm) {
  const cmkd_param *w = &e->graph->param[conv->param[0]];
  float *const *v = e->params->value;
  float *weight = malloc((size_t)w->count * sizeof *weight), *bias = malloc((size_t)w->shape[0] * sizeof *bias);
  int64_t each = w->count / w->shape[0]; /* numbers of one output channel */
  for (int64_t o = 0; weight && bias && o < w->shape[0]; o++) {
    double scale = (double)v[norm->param[0]][o] / sqrt((double)v[norm->param[3]][o] + (double)norm->eps);
    double old = conv->param[1] < 0 ? 0 : (double)v[conv->param[1]][o];
    for (int64_t i = 0; i < each; i++)
      weight[o * each + i] = (float)((double)v[conv->param[0]][o * each + i] * scale);
    bias[o] = (float)((double)v[norm->param[1]][o] + (old - (double)v[norm->param[2]][o]) * scale);
  }
  if (weight && bias) {
    char text[112];
    snprintf(text, sizeof text, "%s.folded", w->name);
    initializer(e, text, ELEM_FLOAT, 4, w->shape, weight, (size_t)w->count * sizeof(float));
    snprintf(text, sizeof text, "%s.folded", e->graph->param[norm->param[1]].name);
    initializer(e, text, ELEM_FLOAT, 1, w->shape, bias, (size_t)w->shape[0] * sizeof(float));
  }
  int good = weight && bias;
  free(weight);
  free(bias);
  return good;
}

static void write_conv(exporter *e, const cmkd_op *op) {
  if (folding_norm(e, op)) return; /* which writes it */
  const char *weight = parameter(e, op->param[0]), *bias = parameter(e, op->param[1]);
  conv_node(e, op, weight, bias, value(e, op->out, "").text);
}

static void folded_norm(exporter *e, const cmkd_op *conv, const cmkd_op *norm, const char *out) {
  char weight[112], bias[112];
  if (!fold_numbers(e, conv, norm)) e->out.failed = 1;
  snprintf(weight, sizeof weight, "%s.folded", e->graph->param[conv->param[0]].name);
  snprintf(bias, sizeof bias, "%s.folded", e->graph->param[norm->param[1]].name);
  conv_node(e, conv, weight, bias, out);
}

static void plain_norm(exporter *e, const cmkd_op *op, const char *out) {
  for (int i = 0; i < 4; i++)
    parameter(e, op->param[i]);
  start(e, "BatchNormalization", value(e, op->in[0], "").text);
  for (int i = 0; i < 4; i++)
    in(e, e->graph->param[op->param[i]].name);
  attribute_float(e, "epsilon", op->eps);
  finish(e, out);
}

/* act(norm(in0) [+ in1]) is up to three nodes; the last one writes the op's tensor. */
static void write_norm(exporter *e, const cmkd_op *op) {
  const cmkd_op *conv = folded_conv(e, op);
  int adds = op->in[1] >= 0;
  name out = value(e, op->out, "");
  name raw = adds || op->act ? value(e, op->out, "_norm") : out, sum = op->act ? value(e, op->out, "_sum") : out;
  if (conv)
    folded_norm(e, conv, op, raw.text);
  else
    plain_norm(e, op, raw.text);
  if (adds) {
    node2(e, "Add", raw.text, value(e, op->in[1], "").text, sum.text);
    raw = sum;
  }
  if (op->act) activate(e, op->act, raw.text, op->out);
}

static void write_add(exporter *e, const cmkd_op *op) {
  name raw = value(e, op->out, op->act ? "_sum" : "");
  node2(e, "Add", value(e, op->in[0], "").text, value(e, op->in[1], "").text, raw.text);
  if (op->act) activate(e, op->act, raw.text, op->out);
}

static void write_act(exporter *e, const cmkd_op *op) {
  name from = value(e, op->in[0], "");
  if (op->act)
    activate(e, op->act, from.text, op->out);
  else
    node(e, "Identity", from.text, value(e, op->out, "").text);
}

static void write_maxpool(exporter *e, const cmkd_op *op) {
  start(e, "MaxPool", value(e, op->in[0], "").text);
  windows(e, op);
  finish(e, value(e, op->out, "").text);
}

static void write_avgpool(exporter *e, const cmkd_op *op) {
  start(e, "AveragePool", value(e, op->in[0], "").text);
  windows(e, op);
  attribute_int(e, "count_include_pad", 1);
  finish(e, value(e, op->out, "").text);
}

static void write_globalpool(exporter *e, const cmkd_op *op) {
  node(e, "GlobalAveragePool", value(e, op->in[0], "").text, value(e, op->out, "").text);
}

/* (batch, c, h, w) -> (batch, c h w) */
static void flatten(exporter *e, const char *from, const char *out) {
  start(e, "Flatten", from);
  attribute_int(e, "axis", 1);
  finish(e, out);
}

static void write_linear(exporter *e, const cmkd_op *op) {
  name flat = value(e, op->out, "_flat");
  flatten(e, value(e, op->in[0], "").text, flat.text);
  const char *weight = parameter(e, op->param[0]), *bias = parameter(e, op->param[1]);
  start(e, "Gemm", flat.text);
  in(e, weight);
  if (bias) in(e, bias);
  attribute_int(e, "transB", 1);
  finish(e, value(e, op->out, "").text);
}

/* Items first, first + step, ... below `end` on one axis or two. */
typedef struct range {
  int axes;        /* how many */
  int64_t axis[2]; /* of (batch, c, h, w) */
  int64_t first, end, step;
} range;

static void slice(exporter *e, const cmkd_op *op, const range *r, const char *out) {
  const int64_t number[4][2] = {{r->first, r->first}, {r->end, r->end}, {r->axis[0], r->axis[1]}, {r->step, r->step}};
  static const char *const what[4] = {"_starts", "_ends", "_axes", "_steps"};
  for (int i = 0; i < 4; i++)
    constants(e, value(e, op->out, what[i]).text, r->axes, number[i]);
  start(e, "Slice", value(e, op->in[0], "").text);
  for (int i = 0; i < 4; i++)
    in(e, value(e, op->out, what[i]).text);
  finish(e, out);
}

static void write_slice(exporter *e, const cmkd_op *op) {
  const range channels = {
      .axes = 1, .axis = {1}, .first = op->first, .end = op->first + e->graph->tensor[op->out].c, .step = 1};
  slice(e, op, &channels, value(e, op->out, "").text);
}

static void write_padshortcut(exporter *e, const cmkd_op *op) {
  const range pixels = {.axes = 2, .axis = {2, 3}, .first = 0, .end = INT32_MAX, .step = op->stride};
  int before = op->first, after = e->graph->tensor[op->out].c - e->graph->tensor[op->in[0]].c - before;
  name strided = value(e, op->out, "_strided"), pads = value(e, op->out, "_pads");
  slice(e, op, &pixels, strided.text);
  constants(e, pads.text, 8, (int64_t[]){0, before, 0, 0, 0, after, 0, 0});
  node2(e, "Pad", strided.text, pads.text, value(e, op->out, "").text);
}

static void write_concat(exporter *e, const cmkd_op *op) {
  start(e, "Concat", value(e, op->in[0], "").text);
  in(e, value(e, op->in[1], "").text);
  attribute_int(e, "axis", 1);
  finish(e, value(e, op->out, "").text);
}

/* Channels (groups, c / groups) transposed. */
static void write_shuffle(exporter *e, const cmkd_op *op) {
  cmkd_shape s = e->graph->tensor[op->out];
  name split = value(e, op->out, "_split"), turned = value(e, op->out, "_turned");
  name five = value(e, op->out, "_five"), four = value(e, op->out, "_four");
  constants(e, five.text, 5, (int64_t[]){-1, op->groups, s.c / op->groups, s.h, s.w});
  constants(e, four.text, 4, (int64_t[]){-1, s.c, s.h, s.w});
  node2(e, "Reshape", value(e, op->in[0], "").text, five.text, split.text);
  start(e, "Transpose", split.text);
  attribute_ints(e, "perm", 5, (int64_t[]){0, 2, 1, 3, 4});
  finish(e, turned.text);
  node2(e, "Reshape", turned.text, four.text, value(e, op->out, "").text);
}

static void (*const writers[])(exporter *e, const cmkd_op *op) = {
    [CMKD_OP_CONV] = write_conv,
    [CMKD_OP_NORM] = write_norm,
    [CMKD_OP_ADD] = write_add,
    [CMKD_OP_ACT] = write_act,
    [CMKD_OP_MAXPOOL] = write_maxpool,
    [CMKD_OP_AVGPOOL] = write_avgpool,
    [CMKD_OP_GLOBALPOOL] = write_globalpool,
    [CMKD_OP_LINEAR] = write_linear,
    [CMKD_OP_PADSHORTCUT] = write_padshortcut,
    [CMKD_OP_CONCAT] = write_concat,
    [CMKD_OP_SLICE] = write_slice,
    [CMKD_OP_SHUFFLE] = write_shuffle,
};

static cmkd_status check_ops(const cmkd_graph *graph, const char *path, cmkd_error *err) {
  for (int i = 0; i < graph->ops; i++) {
    cmkd_op_kind kind = graph->op[i].kind;
    if ((size_t)kind >= sizeof writers / sizeof *writers || !writers[kind])
      return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: the operation %s of `%s` cannot be written as ONNX", path,
                       cmkd_op_name(kind), graph->arch);
  }
  return CMKD_OK;
}

/* ---- the model ---- */
/* An input or output: float32 (batch, shape...), the batch free. */
static void describe(exporter *e, int field, const char *text, int dims, const int64_t *shape) {
  cmkd_protobuf dim = {0}, list = {0}, tensor = {0}, type = {0}, info = {0};
  cmkd_protobuf_text(&dim, DIM_PARAM, "batch");
  cmkd_protobuf_message(&list, SHAPE_DIM, &dim);
  for (int d = 0; d < dims; d++) {
    cmkd_protobuf_int(&dim, DIM_VALUE, shape[d]);
    cmkd_protobuf_message(&list, SHAPE_DIM, &dim);
  }
  cmkd_protobuf_int(&tensor, TENSOR_TYPE_ELEM, ELEM_FLOAT);
  cmkd_protobuf_message(&tensor, TENSOR_TYPE_SHAPE, &list);
  cmkd_protobuf_message(&type, TYPE_TENSOR, &tensor);
  cmkd_protobuf_text(&info, VALUE_NAME, text);
  cmkd_protobuf_message(&info, VALUE_TYPE, &type);
  cmkd_protobuf_message(&e->out, field, &info);
  free(dim.data);
  free(list.data);
  free(tensor.data);
  free(type.data);
  free(info.data);
}

static void write_graph(exporter *e) {
  const cmkd_graph *g = e->graph;
  cmkd_shape image = g->tensor[0];
  cmkd_protobuf_text(&e->out, GRAPH_NAME, g->arch);
  for (int i = 0; i < g->ops; i++)
    writers[g->op[i].kind](e, &g->op[i]);
  describe(e, GRAPH_INPUT, "input", 3, (int64_t[]){image.c, image.h, image.w});
  describe(e, GRAPH_OUTPUT, "logits", 1, (int64_t[]){g->classes});
  if (e->features) {
    flatten(e, value(e, cmkd_graph_features(g), "").text, "features");
    describe(e, GRAPH_OUTPUT, "features", 1, (int64_t[]){g->tensor[cmkd_graph_features(g)].c});
  }
}

/* All of the model but its graph, whose field comes last. */
static void write_model(const cmkd_onnx_options *options, cmkd_protobuf *head) {
  cmkd_protobuf part = {0};
  cmkd_protobuf_int(head, MODEL_IR, IR_VERSION);
  cmkd_protobuf_text(head, MODEL_PRODUCER, "cmkd");
  cmkd_protobuf_text(head, MODEL_PRODUCER_VERSION, CMKD_VERSION);
  cmkd_protobuf_int(&part, OPSET_VERSION, OPSET);
  cmkd_protobuf_message(head, MODEL_OPSET, &part);
  for (int i = 0; i < options->meta_count; i++) {
    cmkd_protobuf_text(&part, META_KEY, options->meta_keys[i]);
    cmkd_protobuf_text(&part, META_VALUE, options->meta_values[i]);
    cmkd_protobuf_message(head, MODEL_META, &part);
  }
  free(part.data);
}

/* Who writes and who reads each tensor. 0: no memory. */
static int trace(exporter *e) {
  const cmkd_graph *g = e->graph;
  e->readers = calloc((size_t)g->tensors, sizeof *e->readers);
  e->producer = malloc((size_t)g->tensors * sizeof *e->producer);
  if (!e->readers || !e->producer) return 0;
  for (int i = 0; i < g->tensors; i++)
    e->producer[i] = -1;
  for (int i = 0; i < g->ops; i++) {
    e->producer[g->op[i].out] = i;
    for (int k = 0; k < 2; k++)
      if (g->op[i].in[k] >= 0) e->readers[g->op[i].in[k]]++;
  }
  return 1;
}

cmkd_status cmkd_onnx_write(const cmkd_graph *graph, const cmkd_params *params, const cmkd_onnx_options *options,
                            const char *path, cmkd_error *err) {
  exporter e = {.graph = graph, .params = params, .fold = options->fold, .features = options->features};
  cmkd_protobuf head = {0};
  if ((uint64_t)cmkd_graph_parameters(graph) > CMKD_PROTOBUF_MAX / sizeof(float))
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: `%s` is larger than the 2 GB of an ONNX file", path, graph->arch);
  CMKD_TRY(check_ops(graph, path, err));
  int good = trace(&e);
  if (good) {
    write_graph(&e);
    write_model(options, &head);
    cmkd_protobuf_head(&head, MODEL_GRAPH, e.out.size);
    good = !e.out.failed && !e.node.failed && !e.part.failed && !head.failed;
  }
  cmkd_status status;
  if (good)
    status = cmkd_file_write(path, (cmkd_piece[]){{head.data, head.size}, {e.out.data, e.out.size}}, 2, err);
  else
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory exporting `%s`", path, graph->arch);
  free(e.readers);
  free(e.producer);
  free(e.out.data);
  free(e.node.data);
  free(e.part.data);
  free(head.data);
  return status;
}
