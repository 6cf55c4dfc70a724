/* Pools, additions, activations and rearranged channels, on the kernels of one instruction set. */
#include "kernels/cpu/ops.h"
#include <string.h>

/* In all functions: is, os are the shapes of input and output. */

static int64_t numbers(cmkd_shape s) { return (int64_t)s.h * s.w * s.c; }
static int at_least_0(int at) { return at < 0 ? 0 : at; }
static int at_most(int at, int side) { return at > side ? side : at; }

/* ---- pools ---- */

/* The part of output pixel (y, x)'s window that lies inside the image. *at: the floats before it. */
static cmkd_pool_window window_of(const cmkd_op *op, cmkd_shape is, int y, int x, const float *in, int64_t *at) {
  const int y0 = y * op->stride - op->pad, x0 = x * op->stride - op->pad;
  *at = ((int64_t)at_least_0(y0) * is.w + at_least_0(x0)) * is.c;
  return (cmkd_pool_window){.in = in ? in + *at : NULL,
                            .h = at_most(y0 + op->kernel_h, is.h) - at_least_0(y0),
                            .w = at_most(x0 + op->kernel_w, is.w) - at_least_0(x0),
                            .row = (int64_t)is.w * is.c,
                            .col = is.c};
}

static void maxpool(const cmkd_cpu_kernels *k, const cmkd_op *op, cmkd_shape is, cmkd_shape os, const float *in,
                    float *out) {
  int64_t at;
  for (int y = 0; y < os.h; y++)
    for (int x = 0; x < os.w; x++, out += os.c) {
      const cmkd_pool_window w = window_of(op, is, y, x, in, &at);
      k->max_window(&w, is.c, out);
    }
}

static void maxpool_backward(const cmkd_cpu_kernels *k, const cmkd_op *op, cmkd_shape is, cmkd_shape os,
                             const float *in, const float *out, const float *dout, float *din) {
  int64_t at;
  for (int y = 0; y < os.h; y++)
    for (int x = 0; x < os.w; x++, out += os.c, dout += os.c) {
      const cmkd_pool_window w = window_of(op, is, y, x, in, &at);
      k->max_window_backward(&w, is.c, out, dout, din + at);
    }
}

/* y = weight * x summed over windows. Padding counts as zeros (count_include_pad, PyTorch's default). */
static void avgpool(const cmkd_cpu_kernels *k, const cmkd_op *op, cmkd_shape is, cmkd_shape os, const float *in,
                    float *out) {
  const float weight = 1.0f / (float)(op->kernel_h * op->kernel_w);
  int64_t at;
  for (int y = 0; y < os.h; y++)
    for (int x = 0; x < os.w; x++, out += os.c) {
      const cmkd_pool_window w = window_of(op, is, y, x, in, &at);
      memset(out, 0, sizeof *out * (size_t)os.c);
      for (int v = 0; v < w.h; v++)
        for (int u = 0; u < w.w; u++)
          k->add_scaled(out, w.in + v * w.row + u * w.col, weight, is.c);
    }
}

static void avgpool_backward(const cmkd_cpu_kernels *k, const cmkd_op *op, cmkd_shape is, cmkd_shape os,
                             const float *dout, float *din) {
  const float weight = 1.0f / (float)(op->kernel_h * op->kernel_w);
  int64_t at;
  for (int y = 0; y < os.h; y++)
    for (int x = 0; x < os.w; x++, dout += os.c) {
      const cmkd_pool_window w = window_of(op, is, y, x, NULL, &at);
      for (int v = 0; v < w.h; v++)
        for (int u = 0; u < w.w; u++)
          k->add_scaled(din + at + v * w.row + u * w.col, dout, weight, is.c);
    }
}

static void globalpool_forward(cmkd_shape is, const float *in, float *out) {
  const int px = is.h * is.w;
  memset(out, 0, sizeof *out * (size_t)is.c);
  for (int i = 0; i < px; i++, in += is.c)
    for (int c = 0; c < is.c; c++)
      out[c] += in[c];
  for (int c = 0; c < is.c; c++)
    out[c] /= (float)px;
}

static void globalpool_backward(cmkd_shape is, const float *dout, int accumulate, float *din) {
  const int px = is.h * is.w;
  const float weight = 1.0f / (float)px;
  for (int i = 0; i < px; i++, din += is.c)
    for (int c = 0; c < is.c; c++)
      din[c] = dout[c] * weight + (accumulate ? din[c] : 0.0f);
}

/* ---- rearranged channels ---- */

static void padshortcut(const cmkd_op *op, cmkd_shape is, cmkd_shape os, const float *in, float *out) {
  for (int y = 0; y < os.h; y++)
    for (int x = 0; x < os.w; x++, out += os.c) {
      const float *from = in + ((int64_t)y * op->stride * is.w + (int64_t)x * op->stride) * is.c;
      memset(out, 0, sizeof *out * (size_t)os.c);
      memcpy(out + op->first, from, sizeof *out * (size_t)is.c);
    }
}

static void padshortcut_backward(const cmkd_op *op, cmkd_shape is, cmkd_shape os, const float *dout, float *din) {
  for (int y = 0; y < os.h; y++)
    for (int x = 0; x < os.w; x++, dout += os.c) {
      float *to = din + ((int64_t)y * op->stride * is.w + (int64_t)x * op->stride) * is.c;
      for (int c = 0; c < is.c; c++)
        to[c] += dout[op->first + c];
    }
}

/* Copies or adds `c` channels a pixel between arrays of different widths. */
static void rearrange_channels(int64_t px, int c, const float *from, int from_c, float *to, int to_c, int accumulate) {
  for (int64_t i = 0; i < px; i++, from += from_c, to += to_c)
    if (!accumulate)
      memcpy(to, from, sizeof *to * (size_t)c);
    else
      for (int k = 0; k < c; k++)
        to[k] += from[k];
}

/* Channel (g, j) of `groups` x per goes to (j, g). The way back is the same with as many groups as there were channels
 * in one. */
static inline void shuffle_groups(int64_t px, int channels, const int groups, const float *from, float *to,
                                  int accumulate) {
  const int per = channels / groups;
  for (int64_t i = 0; i < px; i++, from += channels, to += channels)
    for (int j = 0; j < per; j++)
      for (int g = 0; g < groups; g++)
        to[j * groups + g] = from[g * per + j] + (accumulate ? to[j * groups + g] : 0.0f);
}
static void shuffle(int64_t px, int channels, int groups, const float *from, float *to, int accumulate) {
  if (groups == 2 && !accumulate)
    shuffle_groups(px, channels, 2, from, to, 0);
  else if (groups == 3 && !accumulate)
    shuffle_groups(px, channels, 3, from, to, 0);
  else
    shuffle_groups(px, channels, groups, from, to, accumulate);
}

/* ---- one operation ---- */

void cmkd_cpu_op_forward(const cmkd_cpu_op_call *call, float *out) {
  const cmkd_cpu_kernels *k = call->kernels;
  const cmkd_graph *graph = call->graph;
  const cmkd_op *op = call->op;
  const float *const *in = call->in;
  const int n = call->n;
  const cmkd_shape is = graph->tensor[op->in[0]], os = graph->tensor[op->out];
  const int64_t in_size = numbers(is), out_size = numbers(os), px = (int64_t)n * os.h * os.w;
  switch (op->kind) {
  case CMKD_OP_ADD:
  case CMKD_OP_ACT: k->add_act(in[0], op->kind == CMKD_OP_ADD ? in[1] : NULL, op->act, out, n * out_size); return;
  case CMKD_OP_CONCAT:
    rearrange_channels(px, is.c, in[0], is.c, out, os.c, 0);
    rearrange_channels(px, os.c - is.c, in[1], os.c - is.c, out + is.c, os.c, 0);
    return;
  case CMKD_OP_SLICE: rearrange_channels(px, os.c, in[0] + op->first, is.c, out, os.c, 0); return;
  case CMKD_OP_SHUFFLE: shuffle(px, os.c, op->groups, in[0], out, 0); return;
  default: break;
  }
  for (int i = 0; i < n; i++) {
    const float *from = in[0] + i * in_size;
    float *to = out + i * out_size;
    switch (op->kind) {
    case CMKD_OP_MAXPOOL: maxpool(k, op, is, os, from, to); break;
    case CMKD_OP_AVGPOOL: avgpool(k, op, is, os, from, to); break;
    case CMKD_OP_GLOBALPOOL: globalpool_forward(is, from, to); break;
    case CMKD_OP_PADSHORTCUT: padshortcut(op, is, os, from, to); break;
    default: break;
    }
  }
}

void cmkd_cpu_op_backward(const cmkd_cpu_op_call *call, const float *out, const float *dout, float *const din[2],
                          const int accumulate[2]) {
  const cmkd_cpu_kernels *k = call->kernels;
  const cmkd_graph *graph = call->graph;
  const cmkd_op *op = call->op;
  const float *const *in = call->in;
  const int n = call->n;
  const cmkd_shape is = graph->tensor[op->in[0]], os = graph->tensor[op->out];
  const int64_t in_size = numbers(is), out_size = numbers(os), px = (int64_t)n * os.h * os.w;
  const int scatters = op->kind == CMKD_OP_MAXPOOL || op->kind == CMKD_OP_AVGPOOL || op->kind == CMKD_OP_PADSHORTCUT ||
                       op->kind == CMKD_OP_SLICE;
  if (scatters && din[0] && !accumulate[0]) memset(din[0], 0, sizeof(float) * (size_t)(n * in_size));
  switch (op->kind) {
  case CMKD_OP_ADD:
  case CMKD_OP_ACT:
    for (int i = 0; i < 2; i++)
      if (din[i]) k->act_backward(dout, out, op->act, accumulate[i], din[i], n * out_size);
    return;
  case CMKD_OP_CONCAT:
    if (din[0]) rearrange_channels(px, is.c, dout, os.c, din[0], is.c, accumulate[0]);
    if (din[1]) rearrange_channels(px, os.c - is.c, dout + is.c, os.c, din[1], os.c - is.c, accumulate[1]);
    return;
  case CMKD_OP_SLICE:
    if (din[0]) rearrange_channels(px, os.c, dout, os.c, din[0] + op->first, is.c, 1);
    return;
  case CMKD_OP_SHUFFLE:
    if (din[0]) shuffle(px, os.c, os.c / op->groups, dout, din[0], accumulate[0]);
    return;
  default: break;
  }
  if (!din[0]) return;
  for (int i = 0; i < n; i++) {
    const float *d = dout + i * out_size;
    float *to = din[0] + i * in_size;
    switch (op->kind) {
    case CMKD_OP_MAXPOOL: maxpool_backward(k, op, is, os, in[0] + i * in_size, out + i * out_size, d, to); break;
    case CMKD_OP_AVGPOOL: avgpool_backward(k, op, is, os, d, to); break;
    case CMKD_OP_GLOBALPOOL: globalpool_backward(is, d, accumulate[0], to); break;
    case CMKD_OP_PADSHORTCUT: padshortcut_backward(op, is, os, d, to); break;
    default: break;
    }
  }
}
