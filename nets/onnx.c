/* ONNX export: an operation list as protocol buffers, written by hand (the dozen fields of onnx.proto that a network
 * needs). Will not do: read ONNX, quantise, or include normalisation of pixels. */
#include "nets/onnx.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"

#define IR_VERSION 7
#define OPSET 13
#define LARGEST 0x7FFFFFFFu /* a protocol buffer ends at 2 GB */

/* ---- protocol buffers ---- */
typedef struct buffer {
  uint8_t *data;
  size_t size, capacity;
  int failed;
} buffer;

static void put(buffer *b, const void *data, size_t size) {
  if (b->failed || size > LARGEST || b->size + size > LARGEST) {
    b->failed = 1;
    return;
  }
  if (b->size + size > b->capacity) {
    size_t capacity = b->capacity ? b->capacity : 256;
    while (capacity < b->size + size)
      capacity *= 2;
    uint8_t *bigger = realloc(b->data, capacity);
    if (!bigger) {
      b->failed = 1;
      return;
    }
    b->data = bigger, b->capacity = capacity;
  }
  if (size) memcpy(b->data + b->size, data, size);
  b->size += size;
}

static void put_varint(buffer *b, uint64_t v) {
  uint8_t byte[10];
  size_t n = 0;
  do
    byte[n++] = (uint8_t)(v & 127) | (v > 127 ? 128 : 0);
  while (v >>= 7);
  put(b, byte, n);
}

static void put_int(buffer *b, int field, int64_t v) {
  put_varint(b, (uint64_t)field << 3), put_varint(b, (uint64_t)v);
}
static void put_float(buffer *b, int field, float v) { put_varint(b, (uint64_t)field << 3 | 5), put(b, &v, 4); }
static void put_head(buffer *b, int field, size_t size) {
  put_varint(b, (uint64_t)field << 3 | 2), put_varint(b, size);
}
static void put_text(buffer *b, int field, const char *text) {
  put_head(b, field, strlen(text)), put(b, text, strlen(text));
}
/* Moves a finished message into its parent. */
static void put_message(buffer *b, int field, buffer *message) {
  put_head(b, field, message->size), put(b, message->data, message->size);
  b->failed |= message->failed;
  message->size = 0;
}

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
  int *readers, *producer; /* (tensors): how many ops read it; the op that writes it, -1: none */
  buffer out, node, part;  /* the graph; the node being written; an attribute or tensor of it */
  int clip_bounds;         /* the constants of ReLU6 exist */
} exporter;

typedef struct name {
  char text[48];
} name;
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

static void start(exporter *e, const char *type) { e->node.size = 0, put_text(&e->node, NODE_TYPE, type); }
static void in(exporter *e, const char *text) { put_text(&e->node, NODE_INPUT, text); }
static void finish(exporter *e, const char *out) {
  put_text(&e->node, NODE_OUTPUT, out), put_message(&e->out, GRAPH_NODE, &e->node);
}

static void attribute_int(exporter *e, const char *key, int64_t v) {
  put_text(&e->part, ATTR_NAME, key), put_int(&e->part, ATTR_INT, v), put_int(&e->part, ATTR_TYPE, KIND_INT);
  put_message(&e->node, NODE_ATTRIBUTE, &e->part);
}
static void attribute_float(exporter *e, const char *key, float v) {
  put_text(&e->part, ATTR_NAME, key), put_float(&e->part, ATTR_FLOAT, v), put_int(&e->part, ATTR_TYPE, KIND_FLOAT);
  put_message(&e->node, NODE_ATTRIBUTE, &e->part);
}
static void attribute_ints(exporter *e, const char *key, int count, const int64_t *v) {
  put_text(&e->part, ATTR_NAME, key);
  for (int i = 0; i < count; i++)
    put_int(&e->part, ATTR_INTS, v[i]);
  put_int(&e->part, ATTR_TYPE, KIND_INTS);
  put_message(&e->node, NODE_ATTRIBUTE, &e->part);
}

static void initializer(exporter *e, const char *text, int elem, int dims, const int64_t *shape, const void *data,
                        size_t bytes) {
  buffer *p = &e->part;
  p->size = 0;
  for (int d = 0; d < dims; d++)
    put_int(p, TENSOR_DIMS, shape[d]);
  put_int(p, TENSOR_TYPE, elem), put_text(p, TENSOR_NAME, text), put_head(p, TENSOR_RAW, bytes);
  put_head(&e->out, GRAPH_INITIALIZER, p->size + bytes); /* the data goes straight to its place */
  put(&e->out, p->data, p->size), put(&e->out, data, bytes);
  p->size = 0;
}
static void constants(exporter *e, const char *text, int count, const int64_t *v) {
  initializer(e, text, ELEM_INT64, 1, (int64_t[]){count}, v, (size_t)count * sizeof *v);
}

/* A parameter as it is; a node may name it afterwards. */
static void parameter(exporter *e, int index) {
  const cmkd_param *p = &e->graph->param[index];
  initializer(e, p->name, ELEM_FLOAT, p->dims, p->shape, e->params->value[index], (size_t)p->count * sizeof(float));
}

/* ---- operations ---- */
/* From a raw value to the op's output tensor. Ops without activation write the tensor at once and never come here. */
static void activate(exporter *e, cmkd_act act, const char *raw, int tensor) {
  if (act == CMKD_ACT_RELU6 && !e->clip_bounds++) {
    initializer(e, "clip.min", ELEM_FLOAT, 0, NULL, &(float){0}, 4);
    initializer(e, "clip.max", ELEM_FLOAT, 0, NULL, &(float){6}, 4);
  }
  start(e, act == CMKD_ACT_RELU6 ? "Clip" : "Relu"), in(e, raw);
  if (act == CMKD_ACT_RELU6) in(e, "clip.min"), in(e, "clip.max");
  finish(e, value(e, tensor, "").text);
}

static void windows(exporter *e, const cmkd_op *op) {
  attribute_ints(e, "kernel_shape", 2, (int64_t[]){op->kernel_h, op->kernel_w});
  attribute_ints(e, "strides", 2, (int64_t[]){op->stride, op->stride});
  attribute_ints(e, "pads", 4, (int64_t[]){op->pad, op->pad, op->pad, op->pad});
}

static void conv_node(exporter *e, const cmkd_op *op, const char *weight, const char *bias, const char *out) {
  start(e, "Conv"), in(e, value(e, op->in[0], "").text), in(e, weight);
  if (bias) in(e, bias);
  windows(e, op), attribute_int(e, "group", op->groups);
  finish(e, out);
}

/* The convolution that a norm swallows, or NULL. */
static const cmkd_op *folded_conv(const exporter *e, const cmkd_op *norm) {
  int from = norm->in[0], op = e->producer[from];
  return e->fold && op >= 0 && e->graph->op[op].kind == CMKD_OP_CONV && e->readers[from] == 1 ? &e->graph->op[op]
                                                                                              : NULL;
}

/* w' = w g / sqrt(var + eps), b' = beta + (b - mean) g / sqrt(var + eps) */
static int fold_numbers(exporter *e, const cmkd_op *conv, const cmkd_op *norm) {
  const cmkd_param *w = &e->graph->param[conv->param[0]];
  float *const *v = e->params->value, *weight = malloc((size_t)w->count * sizeof *weight),
               *bias = malloc((size_t)w->shape[0] * sizeof *bias);
  int64_t each = w->count / w->shape[0];
  for (int64_t o = 0; weight && bias && o < w->shape[0]; o++) {
    double scale = (double)v[norm->param[0]][o] / sqrt((double)v[norm->param[3]][o] + (double)norm->eps),
           old = conv->param[1] < 0 ? 0 : (double)v[conv->param[1]][o];
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
  free(weight), free(bias);
  return good;
}

static void norm(exporter *e, const cmkd_op *op) {
  const cmkd_op *conv = folded_conv(e, op);
  name out = value(e, op->out, ""), raw = op->in[1] >= 0 || op->act ? value(e, op->out, "_norm") : out,
       sum = op->act ? value(e, op->out, "_sum") : out;
  if (conv) {
    char weight[112], bias[112];
    if (!fold_numbers(e, conv, op)) e->out.failed = 1;
    snprintf(weight, sizeof weight, "%s.folded", e->graph->param[conv->param[0]].name);
    snprintf(bias, sizeof bias, "%s.folded", e->graph->param[op->param[1]].name);
    conv_node(e, conv, weight, bias, raw.text);
  } else {
    for (int i = 0; i < 4; i++)
      parameter(e, op->param[i]);
    start(e, "BatchNormalization"), in(e, value(e, op->in[0], "").text);
    for (int i = 0; i < 4; i++)
      in(e, e->graph->param[op->param[i]].name);
    attribute_float(e, "epsilon", op->eps);
    finish(e, raw.text);
  }
  if (op->in[1] >= 0) {
    start(e, "Add"), in(e, raw.text), in(e, value(e, op->in[1], "").text), finish(e, sum.text);
    raw = sum;
  }
  if (op->act) activate(e, op->act, raw.text, op->out);
}

static void linear(exporter *e, const cmkd_op *op) {
  name flat = value(e, op->out, "_flat");
  start(e, "Flatten"), in(e, value(e, op->in[0], "").text), attribute_int(e, "axis", 1), finish(e, flat.text);
  parameter(e, op->param[0]);
  if (op->param[1] >= 0) parameter(e, op->param[1]);
  start(e, "Gemm"), in(e, flat.text), in(e, e->graph->param[op->param[0]].name);
  if (op->param[1] >= 0) in(e, e->graph->param[op->param[1]].name);
  attribute_int(e, "transB", 1);
  finish(e, value(e, op->out, "").text);
}

/* Channels or pixels first, first + step, ... below `end` on `count` axes. */
static void slice(exporter *e, const cmkd_op *op, int count, const int64_t *axes, int64_t first, int64_t end,
                  int64_t step, const char *out) {
  int64_t all[4][2] = {{first, first}, {end, end}, {axes[0], axes[count - 1]}, {step, step}};
  static const char *const what[4] = {"_starts", "_ends", "_axes", "_steps"};
  for (int i = 0; i < 4; i++)
    constants(e, value(e, op->out, what[i]).text, count, all[i]);
  start(e, "Slice"), in(e, value(e, op->in[0], "").text);
  for (int i = 0; i < 4; i++)
    in(e, value(e, op->out, what[i]).text);
  finish(e, out);
}

static void pad_shortcut(exporter *e, const cmkd_op *op) {
  int before = op->first, after = e->graph->tensor[op->out].c - e->graph->tensor[op->in[0]].c - before;
  name strided = value(e, op->out, "_strided"), pads = value(e, op->out, "_pads");
  slice(e, op, 2, (int64_t[]){2, 3}, 0, INT32_MAX, op->stride, strided.text);
  constants(e, pads.text, 8, (int64_t[]){0, before, 0, 0, 0, after, 0, 0});
  start(e, "Pad"), in(e, strided.text), in(e, pads.text), finish(e, value(e, op->out, "").text);
}

static void shuffle(exporter *e, const cmkd_op *op) {
  cmkd_shape s = e->graph->tensor[op->out];
  name split = value(e, op->out, "_split"), turned = value(e, op->out, "_turned"), five = value(e, op->out, "_five"),
       four = value(e, op->out, "_four");
  constants(e, five.text, 5, (int64_t[]){-1, op->groups, s.c / op->groups, s.h, s.w});
  constants(e, four.text, 4, (int64_t[]){-1, s.c, s.h, s.w});
  start(e, "Reshape"), in(e, value(e, op->in[0], "").text), in(e, five.text), finish(e, split.text);
  start(e, "Transpose"), in(e, split.text), attribute_ints(e, "perm", 5, (int64_t[]){0, 2, 1, 3, 4}),
      finish(e, turned.text);
  start(e, "Reshape"), in(e, turned.text), in(e, four.text), finish(e, value(e, op->out, "").text);
}

static void add(exporter *e, const cmkd_op *op) {
  name raw = op->act ? value(e, op->out, "_sum") : value(e, op->out, "");
  start(e, "Add"), in(e, value(e, op->in[0], "").text), in(e, value(e, op->in[1], "").text), finish(e, raw.text);
  if (op->act) activate(e, op->act, raw.text, op->out);
}

static void write_op(exporter *e, int index) {
  const cmkd_op *op = &e->graph->op[index];
  name from = value(e, op->in[0], ""), out = value(e, op->out, "");
  switch (op->kind) {
  case CMKD_OP_CONV:
    for (int i = 0; i < e->graph->ops; i++) /* its norm writes it */
      if (e->graph->op[i].kind == CMKD_OP_NORM && e->graph->op[i].in[0] == op->out && folded_conv(e, &e->graph->op[i]))
        return;
    parameter(e, op->param[0]);
    if (op->param[1] >= 0) parameter(e, op->param[1]);
    conv_node(e, op, e->graph->param[op->param[0]].name, op->param[1] >= 0 ? e->graph->param[op->param[1]].name : NULL,
              out.text);
    break;
  case CMKD_OP_NORM: norm(e, op); break;
  case CMKD_OP_ADD: add(e, op); break;
  case CMKD_OP_ACT:
    if (op->act)
      activate(e, op->act, from.text, op->out);
    else
      start(e, "Identity"), in(e, from.text), finish(e, out.text);
    break;
  case CMKD_OP_MAXPOOL: start(e, "MaxPool"), in(e, from.text), windows(e, op), finish(e, out.text); break;
  case CMKD_OP_AVGPOOL:
    start(e, "AveragePool"), in(e, from.text), windows(e, op), attribute_int(e, "count_include_pad", 1),
        finish(e, out.text);
    break;
  case CMKD_OP_GLOBALPOOL: start(e, "GlobalAveragePool"), in(e, from.text), finish(e, out.text); break;
  case CMKD_OP_LINEAR: linear(e, op); break;
  case CMKD_OP_PADSHORTCUT: pad_shortcut(e, op); break;
  case CMKD_OP_CONCAT:
    start(e, "Concat"), in(e, from.text), in(e, value(e, op->in[1], "").text), attribute_int(e, "axis", 1),
        finish(e, out.text);
    break;
  case CMKD_OP_SLICE:
    slice(e, op, 1, (int64_t[]){1}, op->first, op->first + e->graph->tensor[op->out].c, 1, out.text);
    break;
  case CMKD_OP_SHUFFLE: shuffle(e, op); break;
  }
}

/* ---- the model ---- */
static void describe(exporter *e, int field, const char *text, int dims, const int64_t *shape) {
  buffer dim = {0}, list = {0}, tensor = {0}, type = {0}, info = {0};
  put_text(&dim, DIM_PARAM, "batch"), put_message(&list, SHAPE_DIM, &dim);
  for (int d = 0; d < dims; d++)
    put_int(&dim, DIM_VALUE, shape[d]), put_message(&list, SHAPE_DIM, &dim);
  put_int(&tensor, TENSOR_TYPE_ELEM, ELEM_FLOAT), put_message(&tensor, TENSOR_TYPE_SHAPE, &list);
  put_message(&type, TYPE_TENSOR, &tensor);
  put_text(&info, VALUE_NAME, text), put_message(&info, VALUE_TYPE, &type);
  put_message(&e->out, field, &info);
  free(dim.data), free(list.data), free(tensor.data), free(type.data), free(info.data);
}

static void write_graph(exporter *e) {
  const cmkd_graph *g = e->graph;
  cmkd_shape image = g->tensor[0];
  put_text(&e->out, GRAPH_NAME, g->arch);
  for (int i = 0; i < g->ops; i++)
    write_op(e, i);
  describe(e, GRAPH_INPUT, "input", 3, (int64_t[]){image.c, image.h, image.w});
  describe(e, GRAPH_OUTPUT, "logits", 1, (int64_t[]){g->classes});
  if (e->features) {
    start(e, "Flatten"), in(e, value(e, cmkd_graph_features(g), "").text), attribute_int(e, "axis", 1),
        finish(e, "features");
    describe(e, GRAPH_OUTPUT, "features", 1, (int64_t[]){g->tensor[cmkd_graph_features(g)].c});
  }
}

static void write_model(const cmkd_onnx_options *options, buffer *head) {
  buffer part = {0};
  put_int(head, MODEL_IR, IR_VERSION), put_text(head, MODEL_PRODUCER, "cmkd"),
      put_text(head, MODEL_PRODUCER_VERSION, CMKD_VERSION);
  put_int(&part, OPSET_VERSION, OPSET), put_message(head, MODEL_OPSET, &part);
  for (int i = 0; i < options->meta_count; i++) {
    put_text(&part, META_KEY, options->meta_keys[i]), put_text(&part, META_VALUE, options->meta_values[i]);
    put_message(head, MODEL_META, &part);
  }
  free(part.data);
}

cmkd_status cmkd_onnx_write(const cmkd_graph *graph, const cmkd_params *params, const cmkd_onnx_options *options,
                            const char *path, cmkd_error *err) {
  exporter e = {.graph = graph, .params = params, .fold = options->fold, .features = options->features};
  buffer head = {0};
  if ((uint64_t)cmkd_graph_parameters(graph) > LARGEST / sizeof(float))
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: `%s` is larger than the 2 GB of an ONNX file", path, graph->arch);
  e.readers = calloc((size_t)graph->tensors, sizeof *e.readers),
  e.producer = malloc((size_t)graph->tensors * sizeof *e.producer);
  for (int i = 0; e.producer && i < graph->tensors; i++)
    e.producer[i] = -1;
  for (int i = 0; e.readers && e.producer && i < graph->ops; i++) {
    e.producer[graph->op[i].out] = i;
    for (int k = 0; k < 2; k++)
      if (graph->op[i].in[k] >= 0) e.readers[graph->op[i].in[k]]++;
  }
  if (e.readers && e.producer) {
    write_graph(&e), write_model(options, &head);
    put_head(&head, MODEL_GRAPH, e.out.size);
  } else
    e.out.failed = 1;
  cmkd_status status;
  if (e.out.failed || e.node.failed || e.part.failed || head.failed)
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory exporting `%s`", path, graph->arch);
  else
    status = cmkd_file_write(path, (cmkd_piece[]){{head.data, head.size}, {e.out.data, e.out.size}}, 2, err);
  free(e.readers), free(e.producer), free(e.out.data), free(e.node.data), free(e.part.data), free(head.data);
  return status;
}
