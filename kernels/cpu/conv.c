/* Plans of the direct convolution: which source floats every output pixel reads, in what order the weights are packed for that, and the
 * padded copies that spare the kernels every border case. The forward pass of a stride-s convolution has one class of output pixels; its
 * backward-data pass has s x s classes (by position modulo s), each with its own taps. */
#include "kernels/cpu/conv.h"
#include <stdlib.h>
#include <string.h>

void cmkd_conv_free(cmkd_conv *conv) {
  if (!conv) return;
  cmkd_conv_dnnl_free(conv->dnnl);
  if (conv->fwd.cls) free((void *)conv->fwd.cls[0].seg);
  if (conv->bwd.cls) free((void *)conv->bwd.cls[0].seg);
  free((void *)conv->fwd.cls);
  free((void *)conv->bwd.cls);
  free(conv->fwd_tap);
  free(conv->bwd_tap);
  free(conv);
}

double cmkd_conv_flops(const cmkd_conv *conv) {
  const cmkd_conv_geometry *g = &conv->g;
  return 2.0 * g->oh * g->ow * g->oc * (g->ic / g->groups) * g->kh * g->kw;
}

static int blocks_of(const cmkd_conv *conv, int outs) { return (outs + conv->kernels->block - 1) / conv->kernels->block; }

/* Adds one tap to a class; taps that read on where the last one ended share its segment. */
static void add_tap(cmkd_conv_class *cls, cmkd_seg *seg, int *taps, int *tap_count, int64_t offset, int length, int merge, int tap) {
  if (merge && cls->segs && seg[cls->segs - 1].offset + seg[cls->segs - 1].length == offset) seg[cls->segs - 1].length += length;
  else seg[cls->segs++] = (cmkd_seg){offset, length};
  cls->k += length;
  taps[(*tap_count)++] = tap;
}

static int plan_forward(cmkd_conv *conv) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, taps = g->kh * g->kw;
  cmkd_conv_class *cls = calloc(1, sizeof *cls);
  cmkd_seg *seg = calloc((size_t)taps, sizeof *seg);
  conv->fwd_tap = calloc((size_t)taps, sizeof *conv->fwd_tap);
  conv->fwd.cls = cls;
  if (!cls || !seg || !conv->fwd_tap) { free(seg); return 0; }
  cls->seg = seg;
  conv->fwd_ph = g->pad ? (g->oh - 1) * g->stride + g->kh : g->ih;
  conv->fwd_pw = g->pad ? (g->ow - 1) * g->stride + g->kw : g->iw;
  const int64_t row = (int64_t)conv->fwd_pw * g->ic;
  int count = 0;
  for (int y = 0; y < g->kh; y++)
    for (int x = 0; x < g->kw; x++) add_tap(cls, seg, conv->fwd_tap, &count, y * row + (int64_t)x * g->ic, gi, g->groups == 1, y * g->kw + x);
  cls->ny = g->oh, cls->nx = g->ow;
  conv->fwd.groups = g->groups, conv->fwd.outs = g->oc / g->groups, conv->fwd.classes = 1;
  conv->fwd.src_row = row * g->stride, conv->fwd.src_col = (int64_t)g->ic * g->stride, conv->fwd.src_group = gi;
  conv->fwd.dst_row = conv->fwd.dst_y = (int64_t)g->ow * g->oc, conv->fwd.dst_col = conv->fwd.dst_x = g->oc;
  conv->fwd.src_image = conv->fwd_ph * row, conv->fwd.dst_image = g->oh * conv->fwd.dst_row;
  conv->forward_floats = conv->depthwise ? (size_t)taps * (size_t)g->ic
                       : (size_t)g->groups * (size_t)blocks_of(conv, conv->fwd.outs) * (size_t)taps * (size_t)gi * (size_t)conv->kernels->block;
  return 1;
}

/* Output-gradient row that tap k of an input row at phase c reads, relative to the row's index in its phase; 1 when there is one. */
static int backward_tap(const cmkd_conv_geometry *g, int c, int k, int *at) {
  int d = c + g->pad - k;
  if (d % g->stride) return 0;
  *at = d / g->stride;
  return 1;
}

/* How far the taps of all phases reach: padding before, and the padded length. */
static void backward_reach(const cmkd_conv_geometry *g, int side, int kernel, int out_side, int *before, int *padded) {
  int low = 0, high = out_side - 1;
  for (int c = 0; c < g->stride && c < side; c++)
    for (int k = 0, at; k < kernel; k++) {
      if (!backward_tap(g, c, k, &at)) continue;
      int last = at + (side - c + g->stride - 1) / g->stride - 1;
      low = at < low ? at : low;
      high = last > high ? last : high;
    }
  *before = -low;
  *padded = high - low + 1;
}

static int plan_backward(cmkd_conv *conv) {
  const cmkd_conv_geometry *g = &conv->g;
  const int go = g->oc / g->groups, taps = g->kh * g->kw, sy = g->stride < g->ih ? g->stride : g->ih, sx = g->stride < g->iw ? g->stride : g->iw;
  cmkd_conv_class *cls = calloc((size_t)sy * (size_t)sx, sizeof *cls);
  cmkd_seg *seg = calloc((size_t)taps + 1, sizeof *seg); /* every tap belongs to one class */
  conv->bwd_tap = calloc((size_t)taps + 1, sizeof *conv->bwd_tap);
  conv->bwd.cls = cls;
  if (!cls || !seg || !conv->bwd_tap) { free(seg); return 0; }
  backward_reach(g, g->ih, g->kh, g->oh, &conv->bwd_top, &conv->bwd_ph);
  backward_reach(g, g->iw, g->kw, g->ow, &conv->bwd_left, &conv->bwd_pw);
  const int64_t row = (int64_t)conv->bwd_pw * g->oc;
  conv->bwd.groups = g->groups, conv->bwd.outs = g->ic / g->groups, conv->bwd.classes = sy * sx;
  conv->bwd.src_row = row, conv->bwd.src_col = g->oc, conv->bwd.src_group = go;
  conv->bwd.dst_y = (int64_t)g->iw * g->ic, conv->bwd.dst_x = g->ic;
  conv->bwd.dst_row = conv->bwd.dst_y * g->stride, conv->bwd.dst_col = conv->bwd.dst_x * g->stride;
  conv->bwd.src_image = conv->bwd_ph * row, conv->bwd.dst_image = g->ih * conv->bwd.dst_y;
  const int64_t per_k = conv->depthwise ? g->ic : (int64_t)g->groups * blocks_of(conv, conv->bwd.outs) * conv->kernels->block;
  int count = 0, segs = 0;
  int64_t weights = 0;
  for (int n = 0; n < sy * sx; n++) {
    cmkd_conv_class *c = &cls[n];
    c->y0 = n / sx, c->x0 = n % sx;
    c->ny = (g->ih - c->y0 + g->stride - 1) / g->stride, c->nx = (g->iw - c->x0 + g->stride - 1) / g->stride;
    c->base = conv->bwd_top * row + (int64_t)conv->bwd_left * g->oc;
    c->seg = seg + segs;
    c->weights = weights;
    for (int ky = g->kh - 1, ay; ky >= 0; ky--) {
      if (!backward_tap(g, c->y0, ky, &ay)) continue;
      for (int kx = g->kw - 1, ax; kx >= 0; kx--)
        if (backward_tap(g, c->x0, kx, &ax)) add_tap(c, seg + segs, conv->bwd_tap, &count, ay * row + (int64_t)ax * g->oc, go, g->groups == 1, ky * g->kw + kx);
    }
    segs += c->segs;
    weights += conv->depthwise ? c->segs * per_k : c->k * per_k;
  }
  conv->backward_floats = (size_t)weights;
  return 1;
}

#define SCRATCH_FLOATS (256 << 10) /* padded images that are convolved at once: a megabyte */

cmkd_status cmkd_conv_create(const cmkd_conv_geometry *geometry, const cmkd_conv_options *options, cmkd_conv **out, cmkd_error *err) {
  cmkd_conv *conv = calloc(1, sizeof *conv);
  if (!conv) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning a convolution");
  const cmkd_conv_geometry *g = geometry;
  conv->g = *g;
  conv->kernels = options->kernels;
  conv->in_floats = (size_t)g->ih * (size_t)g->iw * (size_t)g->ic, conv->out_floats = (size_t)g->oh * (size_t)g->ow * (size_t)g->oc;
  conv->depthwise = g->groups > 1 && g->groups == g->ic && g->groups == g->oc;
  if (!plan_forward(conv) || (options->train && !plan_backward(conv))) {
    cmkd_conv_free(conv);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning a %dx%d convolution of %d channels", g->kh, g->kw, g->ic);
  }
  conv->grad_floats = conv->forward_floats;
  size_t source = (size_t)conv->fwd_ph * (size_t)conv->fwd_pw * (size_t)g->ic, gradient = (size_t)conv->bwd_ph * (size_t)conv->bwd_pw * (size_t)g->oc;
  size_t larger = source > gradient ? source : gradient, images = larger ? SCRATCH_FLOATS / larger : 1;
  conv->images = images < 1 ? 1 : images > 64 ? 64 : (int)images;
  conv->scratch_floats = (size_t)conv->images * larger + 64;
  if (options->dnnl) {
    cmkd_status status = cmkd_conv_dnnl_create(conv, options, &conv->dnnl, err);
    if (status != CMKD_OK) { cmkd_conv_free(conv); return status; }
  }
  *out = conv;
  return CMKD_OK;
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

/* Where input channel i of a group lies in a plain row of weights, in taps. */
static int64_t plain_input(const cmkd_conv_geometry *g, int i) {
  if (g->plane <= 1) return i;
  const int planes = g->ic / g->groups / g->plane; /* (h, w, c) here, (c, h, w) there */
  return (int64_t)(i % planes) * g->plane + i / planes;
}

/* Where output channel o's weights of (tap t, input 0) lie in the forward order, a multiple of the block apart from input to input. */
static int64_t forward_place(const cmkd_conv *conv, int o, int t) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, go = g->oc / g->groups, B = conv->kernels->block;
  return ((((int64_t)(o / go) * blocks_of(conv, go) + o % go / B) * g->kh * g->kw + t) * gi) * B + o % go % B;
}

static void pack_forward(const cmkd_conv *conv, int first, int count, const float *plain, float *packed) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, taps = g->kh * g->kw, B = conv->kernels->block;
  const int64_t each = (int64_t)gi * taps, step = (int64_t)gi * B;
  for (int i = 0; i < gi; i++) /* outermost, so that neighbouring output channels fill a cache line one after the other */
    for (int o = first; o < first + count; o++) {
      const float *from = plain + o * each + plain_input(g, i) * taps;
      float *to = packed + forward_place(conv, o, 0) + (int64_t)i * B;
      for (int t = 0; t < taps; t++) to[t * step] = from[conv->fwd_tap[t]];
    }
}

static void pack_backward(const cmkd_conv *conv, int first, int count, const float *plain, float *packed) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, go = g->oc / g->groups, taps = g->kh * g->kw, B = conv->kernels->block, blocks = blocks_of(conv, gi);
  for (int o = first; o < first + count; o++) {
    const int *tap = conv->bwd_tap;
    for (int n = 0; n < conv->bwd.classes; n++) {
      const cmkd_conv_class *cls = &conv->bwd.cls[n];
      const int own = cls->k / go;
      for (int i = 0; i < gi; i++) {
        const float *from = plain + ((int64_t)o * gi + plain_input(g, i)) * taps;
        float *to = packed + cls->weights + (((int64_t)(o / go) * blocks + i / B) * own * go + o % go) * B + i % B;
        for (int t = 0; t < own; t++) to[(int64_t)t * go * B] = from[tap[t]];
      }
      tap += own;
    }
  }
}

static void pack_depthwise(const cmkd_conv *conv, const cmkd_conv_pass *pass, const int *tap, int first, int count, const float *plain, float *packed) {
  const int channels = conv->g.ic, taps = conv->g.kh * conv->g.kw;
  for (int n = 0; n < pass->classes; n++)
    for (int s = 0; s < pass->cls[n].segs; s++, tap++)
      for (int c = first; c < first + count; c++) packed[pass->cls[n].weights + (int64_t)s * channels + c] = plain[(int64_t)c * taps + *tap];
}

void cmkd_conv_pack(const cmkd_conv *conv, int first, int count, const float *plain, float *forward, float *backward) {
  if (conv->dnnl) { cmkd_conv_dnnl_pack(conv, plain, forward, backward); return; }
  if (forward && conv->depthwise) pack_depthwise(conv, &conv->fwd, conv->fwd_tap, first, count, plain, forward);
  else if (forward) pack_forward(conv, first, count, plain, forward);
  if (backward && conv->depthwise) pack_depthwise(conv, &conv->bwd, conv->bwd_tap, first, count, plain, backward);
  else if (backward) pack_backward(conv, first, count, plain, backward);
}

void cmkd_conv_unpack_grad(const cmkd_conv *conv, const float *const *packed, int lanes, int first, int count, float *plain) {
  if (conv->dnnl) { cmkd_conv_dnnl_unpack_grad(conv, packed, lanes, plain); return; }
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, taps = g->kh * g->kw, B = conv->depthwise ? g->ic : conv->kernels->block;
  const int64_t step = (int64_t)gi * B;
  for (int i = 0; i < gi; i++)
    for (int o = first; o < first + count; o++) {
      const int64_t from = conv->depthwise ? o : forward_place(conv, o, 0) + (int64_t)i * B;
      float *to = plain + ((int64_t)o * gi + plain_input(g, i)) * taps;
      for (int t = 0; t < taps; t++) {
        float sum = packed[0][from + t * step];
        for (int lane = 1; lane < lanes; lane++) sum += packed[lane][from + t * step];
        to[conv->fwd_tap[t]] = sum;
      }
    }
}

/* ---- runs ---------------------------------------------------------------------------------------------------------------- */

/* src (h, w, c) into the middle of zeros (ph, pw, c); what does not fit is left out. */
static void pad_image(const float *src, int h, int w, int c, int top, int left, int ph, int pw, float *dst) {
  const size_t row = (size_t)pw * (size_t)c;
  const int columns = left + w > pw ? pw - left : w;
  for (int y = 0; y < ph; y++, dst += row) {
    if (y < top || y >= top + h || columns <= 0) { memset(dst, 0, row * sizeof *dst); continue; }
    const size_t before = (size_t)left * (size_t)c, inside = (size_t)columns * (size_t)c;
    memset(dst, 0, before * sizeof *dst);
    memcpy(dst + before, src + (size_t)(y - top) * (size_t)w * (size_t)c, inside * sizeof *dst);
    memset(dst + before + inside, 0, (row - before - inside) * sizeof *dst);
  }
}

static const float *padded_source(const cmkd_conv *conv, int n, const float *src, float *scratch) {
  const cmkd_conv_geometry *g = &conv->g;
  if (!g->pad) return src;
  for (int i = 0; i < n; i++) pad_image(src + (size_t)i * conv->in_floats, g->ih, g->iw, g->ic, g->pad, g->pad, conv->fwd_ph, conv->fwd_pw, scratch + (size_t)i * (size_t)conv->fwd.src_image);
  return scratch;
}

static const float *padded_gradient(const cmkd_conv *conv, int n, const float *ddst, float *scratch) {
  const cmkd_conv_geometry *g = &conv->g;
  if (!conv->bwd_top && !conv->bwd_left && conv->bwd_ph == g->oh && conv->bwd_pw == g->ow) return ddst;
  for (int i = 0; i < n; i++) pad_image(ddst + (size_t)i * conv->out_floats, g->oh, g->ow, g->oc, conv->bwd_top, conv->bwd_left, conv->bwd_ph, conv->bwd_pw, scratch + (size_t)i * (size_t)conv->bwd.src_image);
  return scratch;
}

void cmkd_conv_forward(const cmkd_conv *conv, int thread, int n, const float *src, const float *weights, const cmkd_epilogue *epilogue, float *dst, float *scratch) {
  const cmkd_cpu_kernels *k = conv->kernels;
  if (conv->dnnl) { cmkd_conv_dnnl_forward(conv, thread, n, src, weights, epilogue, dst); return; }
  cmkd_epilogue e = *epilogue;
  for (int i = 0, many; i < n; i += many, src += (size_t)many * conv->in_floats, dst += (size_t)many * conv->out_floats) {
    many = n - i < conv->images ? n - i : conv->images;
    (conv->depthwise ? k->depth_run : k->conv_run)(&conv->fwd, many, padded_source(conv, many, src, scratch), weights, &e, dst);
    if (e.add) e.add += (size_t)many * conv->out_floats;
  }
}

void cmkd_conv_backward_data(const cmkd_conv *conv, int thread, int n, const float *ddst, const float *weights, int accumulate, float *dsrc, float *scratch) {
  const cmkd_cpu_kernels *k = conv->kernels;
  if (conv->dnnl) { cmkd_conv_dnnl_backward_data(conv, thread, n, ddst, weights, accumulate, dsrc); return; }
  for (int i = 0, many; i < n; i += many, ddst += (size_t)many * conv->out_floats, dsrc += (size_t)many * conv->in_floats) {
    many = n - i < conv->images ? n - i : conv->images;
    (conv->depthwise ? k->depth_run : k->conv_run)(&conv->bwd, many, padded_gradient(conv, many, ddst, scratch), weights, &(cmkd_epilogue){NULL, accumulate ? dsrc : NULL, CMKD_ACT_NONE}, dsrc);
  }
}

void cmkd_conv_backward_weights(const cmkd_conv *conv, int thread, int n, const float *src, const float *ddst, float *grad, float *scratch) {
  const cmkd_cpu_kernels *k = conv->kernels;
  if (conv->dnnl) { cmkd_conv_dnnl_backward_weights(conv, thread, n, src, ddst, grad); return; }
  for (int i = 0, many; i < n; i += many, src += (size_t)many * conv->in_floats, ddst += (size_t)many * conv->out_floats) {
    many = n - i < conv->images ? n - i : conv->images;
    (conv->depthwise ? k->depth_wgrad : k->conv_wgrad)(&conv->fwd, many, padded_source(conv, many, src, scratch), ddst, grad);
  }
}
