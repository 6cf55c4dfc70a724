/* Layouts of parameters: PyTorch's (out, in/groups, kh, kw) on the host's side of the table, (out, kh, kw, in) with
 * channels padded on the device; and batch norm folded into convolutions for inference. All on the host, in double
 * where it rounds. */
#include <math.h>
#include "kernels/cuda/backend.h"

/* The op that a parameter belongs to: it is param[index] of op. */
typedef struct owner {
  int op, index;
} owner;
static owner owner_of(const cmkd_graph *graph, int param) {
  for (int i = 0; i < graph->ops; i++)
    for (int s = 0; s < 4; s++)
      if (graph->op[i].param[s] == param) return (owner){i, s};
  return (owner){-1, 0};
}

typedef void visit(float *device, float *host);
static void put(float *device, float *host) { *device = *host; }
static void take(float *device, float *host) { *host = *device; }

/* Calls f for every weight of a convolution or linear layer, in PyTorch's order, with its place in the device's layout.
 * A linear layer's inputs are (channel, y, x) there. */
static void each_weight(const cmkd_cuda_conv_shape *s, float *device, float *host, visit *f) {
  const int in = s->c / s->groups, stride = s->groups > 1 ? in : cmkd_cuda_stride(s->c);
  for (int o = 0; o < s->k; o++)
    for (int i = 0; i < in; i++)
      for (int y = 0; y < s->kh; y++)
        for (int x = 0; x < s->kw; x++)
          f(device + (((int64_t)o * s->kh + y) * s->kw + x) * stride + i, host++);
}

static void each_number(const cmkd_be_model *m, int param, float *wide, float *host, visit *f) {
  const owner own = owner_of(m->graph, param);
  if (own.op < 0) return;
  const cmkd_op *op = &m->graph->op[own.op];
  const cuda_op *o = &m->op[own.op];
  const int64_t count = m->graph->param[param].count;
  if (cuda_is_conv(op) && own.index == 0) {
    const cmkd_cuda_conv_shape shape = cmkd_cuda_shape_of(m, own.op, 1);
    each_weight(&shape, wide + o->weight, host, f);
    return;
  }
  const int64_t at = cuda_is_conv(op) ? o->bias
                     : own.index == 0 ? o->gamma
                     : own.index == 1 ? o->beta
                                      : (int64_t)o->channel;
  for (int64_t i = 0; i < count; i++)
    f(wide + at + i, host + i);
}

void cmkd_cuda_param_store(const cmkd_be_model *m, int param, const float *from, float *wide) {
  each_number(m, param, wide, (float *)from, put);
}
void cmkd_cuda_param_load(const cmkd_be_model *m, int param, const float *wide, float *to) {
  each_number(m, param, (float *)wide, to, take);
}

void cmkd_cuda_fold(const cmkd_be_model *m, const float *value, const float *mean, const float *var, float *weight,
                    float *bias) {
  const cmkd_graph *graph = m->graph;
  for (int i = 0; i < graph->ops; i++) {
    if (!cuda_is_conv(&graph->op[i])) continue;
    const cuda_op *o = &m->op[i];
    const cmkd_cuda_conv_shape s = cmkd_cuda_shape_of(m, i, 1);
    const int64_t rows = s.groups > 1 ? s.k : cmkd_cuda_stride(s.k), each = cmkd_cuda_conv_weights(&s) / rows;
    const int norm = m->folded[i];
    for (int64_t k = 0; k < rows; k++) {
      double scale = 1, shift = k < s.k && o->bias >= 0 ? (double)value[o->bias + k] : 0;
      if (norm >= 0 && k < s.k) {
        const cuda_op *n = &m->op[norm];
        scale = (double)value[n->gamma + k] / sqrt((double)var[n->channel + (size_t)k] + (double)graph->op[norm].eps);
        shift = (double)value[n->beta + k] + (shift - (double)mean[n->channel + (size_t)k]) * scale;
      }
      bias[o->channel + (size_t)k] = (float)shift;
      for (int64_t j = 0; j < each; j++)
        weight[o->weight + k * each + j] = (float)((double)value[o->weight + k * each + j] * scale);
    }
  }
}
