/* The parameter-free shortcut: every stride-th pixel, channels moved up by `first`, zeros around them. */
#include "kernels/ref/ops.h"

/* Position in x that output pixel p of an image reads. */
static size_t source(const cmkd_ref_call *call, size_t p) {
  size_t ox = p % call->out.w, oy = p / call->out.w % call->out.h, image = p / call->out.w / call->out.h;
  return ((image * call->in[0].h + oy * call->op->stride) * call->in[0].w + ox * call->op->stride) * call->in[0].c;
}

void cmkd_ref_padshortcut(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  int out_c = call->out.c, in_c = call->in[0].c, first = call->op->first;
  for (size_t p = 0; p < pixels; p++) {
    size_t from = source(call, p);
    for (int c = 0; c < out_c; c++)
      call->y[p * out_c + c] = c >= first && c < first + in_c ? call->x[0][from + c - first] : 0;
  }
}

void cmkd_ref_padshortcut_backward(const cmkd_ref_call *call) {
  size_t pixels = (size_t)call->n * call->out.h * call->out.w;
  for (size_t p = 0; p < pixels && call->dx[0]; p++)
    for (int c = 0; c < call->in[0].c; c++)
      call->dx[0][source(call, p) + c] += call->dy[p * call->out.c + call->op->first + c];
}
