/* The operation list: what a network is to a backend. nets/ builds it, backends run it; it holds shapes and names, no
 * numbers. Ops are stored in execution order (topological). Training backends walk it forwards, then backwards: the
 * gradient rule is a property of the op kind, and gradients of a tensor that several ops read are summed in reverse
 * list order: the last reader writes, the others add. Activations are (batch, h, w, c), NHWC; channels here are
 * logical, a backend may pad them physically. Parameters are given to and taken from backends as float32 in the layout
 * of PyTorch state dicts: convolution (out, in/groups, kh, kw), linear (out, in). */
#ifndef CMKD_KERNELS_GRAPH_H
#define CMKD_KERNELS_GRAPH_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/status.h"
#ifdef __cplusplus
extern "C" {
#endif

/* A new kind takes: its line here, its traits and shape rule in graph.c, a function in nets/builder.c and a node in
 * nets/onnx.c; a rule in double (a file in kernels/ref, its declaration in ref/ops.h, a line in the table of
 * ref/backend.c); a case forwards and one backwards in kernels/cpu/ops.c and in kernels/cuda/pointwise.cu or pool.cu.
 * tests/test_ref_ops.c then checks the rule's gradient by differences, and cpu and cuda are compared with ref where a
 * network of tests/support_backend.c has the kind. Kinds with parameters of their own also concern the layouts in
 * kernels/cpu/model.c and kernels/cuda/model.c. */
typedef enum cmkd_op_kind {
  CMKD_OP_CONV, /* in0 -> out; params: weight, bias or -1 */
  /* Batch norm: out = act(batchnorm(in0) [+ in1]); params: CMKD_NORM_GAMMA to VAR. Folded into a conv at inference */
  CMKD_OP_NORM,
  CMKD_OP_ADD,         /* out = act(in0 + in1) */
  CMKD_OP_ACT,         /* out = act(in0) */
  CMKD_OP_MAXPOOL,     /* kernel, stride, pad; padding never wins */
  CMKD_OP_AVGPOOL,     /* kernel, stride, pad; count_include_pad as in PyTorch's default */
  CMKD_OP_GLOBALPOOL,  /* mean over h, w: out is (1, 1, c) */
  CMKD_OP_LINEAR,      /* in0 flattened in NCHW order as PyTorch does; params: weight, bias */
  CMKD_OP_PADSHORTCUT, /* in0[::stride, ::stride], channels zero-padded to out.c, pad_before of them first */
  CMKD_OP_CONCAT,      /* channels of in0, then of in1 */
  CMKD_OP_SLICE,       /* channels first .. first + out.c - 1 of in0 */
  CMKD_OP_SHUFFLE      /* channel shuffle with `groups`: (groups, c/groups) transposed */
} cmkd_op_kind;

/* cmkd_op.param of a NORM. State dicts call gamma "weight" and beta "bias"; cmkd_param_kind SCALE and SHIFT. */
enum { CMKD_NORM_GAMMA, CMKD_NORM_BETA, CMKD_NORM_MEAN, CMKD_NORM_VAR, CMKD_NORM_PARAMS };

typedef enum cmkd_act { CMKD_ACT_NONE, CMKD_ACT_RELU, CMKD_ACT_RELU6 } cmkd_act;

/* Of one image. */
typedef struct cmkd_shape {
  int h, w, c;
} cmkd_shape;

typedef struct cmkd_op {
  cmkd_op_kind kind;
  cmkd_act act;
  int in[2]; /* tensor indices; -1: none */
  int out;
  int param[4]; /* parameter indices; -1: none */
  int kernel_h, kernel_w, stride, pad, groups;
  int first;      /* SLICE: first channel; PADSHORTCUT: pad_before */
  float eps;      /* NORM; 1e-5 */
  float momentum; /* NORM: weight of the new batch in the running statistics, 0.1; their variance is the unbiased one */
} cmkd_op;

typedef enum cmkd_param_kind {
  CMKD_PARAM_WEIGHT,
  CMKD_PARAM_BIAS,
  CMKD_PARAM_SCALE,
  CMKD_PARAM_SHIFT,
  CMKD_PARAM_MEAN,
  CMKD_PARAM_VAR
} cmkd_param_kind;
/* MEAN and VAR are buffers: not trained, no momentum, no weight decay. */
#define CMKD_PARAM_TRAINED(kind) ((kind) < CMKD_PARAM_MEAN)
typedef enum cmkd_init {
  CMKD_INIT_ZERO,
  CMKD_INIT_ONE,
  CMKD_INIT_KAIMING_FAN_OUT, /* N(0, sqrt(2 / (k*k*out))) */
  CMKD_INIT_UNIFORM_FAN_IN,  /* U(-b, b), b = 1/sqrt(fan_in): PyTorch's for weight and bias of conv and linear */
  CMKD_INIT_NORMAL_001       /* N(0, 0.01) */
} cmkd_init;

typedef struct cmkd_param {
  char name[96]; /* as in circulation: "layer1.0.conv1.weight" */
  cmkd_param_kind kind;
  cmkd_init init;
  int dims;
  int64_t shape[4], count;
  int64_t fan_in; /* of the layer that it belongs to: a bias needs it for its init */
} cmkd_param;

/* A tensor that a backend hands out by name, and on which a loss may act. */
#define CMKD_MAX_OUTPUTS 8
typedef struct cmkd_graph_output {
  char name[32];
  int tensor;
} cmkd_graph_output;
/* Every network has these two, first. */
enum {
  CMKD_OUTPUT_LOGITS = 0,  /* "logits": (1, 1, classes) */
  CMKD_OUTPUT_FEATURES = 1 /* "features": what the classifier reads, (1, 1, d) */
};

typedef struct cmkd_graph {
  char arch[64];
  int classes;
  int tensors, ops, params;
  cmkd_shape *tensor; /* (tensors); tensor 0 is the normalised input image */
  cmkd_op *op;        /* (ops) */
  cmkd_param *param;  /* (params), in state-dict order */
  int outputs;
  cmkd_graph_output output[CMKD_MAX_OUTPUTS]; /* (outputs) "logits", "features", then any others */
} cmkd_graph;

/* What everybody asks about a kind. */
typedef struct cmkd_op_traits {
  const char *name;    /* "conv" */
  int inputs_needed;   /* 1 or 2 */
  int inputs_possible; /* likewise */
  int params;          /* slots of cmkd_op.param in use */
  int trained;         /* how many of them, the first ones, are trained */
  int weighted;        /* multiplies by a weight matrix: param[0] is the weight, param[1] the bias or -1 */
} cmkd_op_traits;
const cmkd_op_traits *cmkd_op_traits_of(cmkd_op_kind kind); /* NULL: no such kind */
const char *cmkd_op_name(cmkd_op_kind kind);                /* "unknown" for no such kind */
/* Shape rule of an op kind: the output for inputs in0, in1 (ADD, CONCAT). out_c: output channels where the inputs do
 * not fix them (CONV, LINEAR, PADSHORTCUT, SLICE). Fails where a window does not fit, groups do not divide, or a
 * product would leave the range. */
cmkd_status cmkd_op_shape(cmkd_op_kind kind, const cmkd_op *op, cmkd_shape in0, cmkd_shape in1, int out_c,
                          cmkd_shape *out, cmkd_error *err);
void cmkd_graph_free(cmkd_graph *graph);
/* Index of the output of that name, or -1. */
int cmkd_graph_output_find(const cmkd_graph *graph, const char *name);
/* Says which tensor an output is; one that is not there yet is added after the others. Returns its index, or -1 where
 * there are CMKD_MAX_OUTPUTS already or the name is empty or too long. */
int cmkd_graph_output_set(cmkd_graph *graph, const char *name, int tensor);
/* The tensors of the two outputs that every network has. */
static inline int cmkd_graph_logits(const cmkd_graph *graph) { return graph->output[CMKD_OUTPUT_LOGITS].tensor; }
static inline int cmkd_graph_features(const cmkd_graph *graph) { return graph->output[CMKD_OUTPUT_FEATURES].tensor; }
/* Numbers of one image in an output: h * w * c of its tensor. */
static inline size_t cmkd_graph_output_width(const cmkd_graph *graph, int output) {
  const cmkd_shape shape = graph->tensor[graph->output[output].tensor];
  return (size_t)shape.h * (size_t)shape.w * (size_t)shape.c;
}
int64_t cmkd_graph_parameters(const cmkd_graph *graph); /* trained numbers */
/* Multiply-accumulates of convolutions and linear layers, for one image. */
int64_t cmkd_graph_macs(const cmkd_graph *graph);
/* Every index in range, shapes consistent with the op's rule, every tensor written once before it is read. */
cmkd_status cmkd_graph_check(const cmkd_graph *graph, cmkd_error *err);
#ifdef __cplusplus
}
#endif
#endif
