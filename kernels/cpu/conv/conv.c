/* Plans of the direct convolution: which source floats every output pixel reads, and in what order the weights are
 * packed for that. Pixels that read the same taps form a class: what would fall on padding is left out, so nothing is
 * padded and no zeros are multiplied. The forward pass of a 3x3 convolution has nine classes (inside, four edges, four
 * corners). The backward-data pass of a stride-s convolution has s x s phases (by position modulo s), each with its own
 * taps, its own block of packed weights, and its own edges. */
#include "kernels/cpu/conv/conv.h"
#include <stdlib.h>
#include <string.h>

static void pass_free(cmkd_direct_pass *pass, int *tap) {
  free((void *)pass->cls);
  free((void *)pass->seg);
  free((void *)pass->piece);
  free(tap);
}

void cmkd_conv_free(cmkd_conv *conv) {
  if (!conv) return;
  cmkd_conv_dnnl_free(conv->dnnl);
  pass_free(&conv->fwd, conv->fwd_tap);
  pass_free(&conv->bwd, conv->bwd_tap);
  free(conv->phase);
  free(conv);
}

double cmkd_conv_flops(const cmkd_conv *conv) {
  const cmkd_conv_geometry *g = &conv->g;
  return 2.0 * g->oh * g->ow * g->oc * (g->ic / g->groups) * g->kh * g->kw;
}

static int blocks_of(const cmkd_conv *conv, int outs) {
  return (outs + conv->kernels->block - 1) / conv->kernels->block;
}

/* One axis of a pass: positions 0 .. count - 1, of which position j reads source places j * step + at[t] through taps
 * k[t], where those exist. Neighbouring positions with the same taps form a range. */
typedef struct axis_range {
  int start, count, first, end;
} axis_range; /* taps [first, end) of the axis */
typedef struct axis {
  int count, step, places, taps, ranges;
  int *k, *at;
  axis_range *range;
} axis;

static void axis_free(axis *a) {
  free(a->k);
  free(a->at);
  free(a->range);
}

/* The places where tap t reads something: positions [*first, *end). */
static void tap_span(const axis *a, int t, int *first, int *end) {
  *first = 0, *end = a->count;
  while (*first < *end && *first * a->step + a->at[t] < 0)
    ++*first;
  while (*end > *first && (*end - 1) * a->step + a->at[t] >= a->places)
    --*end;
}

/* Taps in the order of their places; then the ranges. 1 on success. */
static int axis_make(axis *a, int kernel, int count, int step, int places) {
  *a = (axis){.count = count,
              .step = step,
              .places = places,
              .k = calloc((size_t)kernel, sizeof(int)),
              .at = calloc((size_t)kernel, sizeof(int)),
              .range = calloc((size_t)count, sizeof(axis_range))};
  return a->k && a->at && a->range;
}

static void axis_split(axis *a) {
  for (int j = 0; j < a->count; j++) {
    int first = 0, end = a->taps;
    while (first < end && j * a->step + a->at[first] < 0)
      first++;
    while (end > first && j * a->step + a->at[end - 1] >= a->places)
      end--;
    axis_range *last = a->ranges ? &a->range[a->ranges - 1] : NULL;
    if (last && last->first == first && last->end == end)
      last->count++;
    else
      a->range[a->ranges++] = (axis_range){j, 1, first, end};
  }
}

static int forward_axis(axis *a, int kernel, int stride, int pad, int in, int out) {
  if (!axis_make(a, kernel, out, stride, in)) return 0;
  for (int k = 0; k < kernel; k++)
    a->k[k] = k, a->at[k] = k - pad;
  a->taps = kernel;
  axis_split(a);
  return 1;
}

/* Positions phase, phase + stride, ... of the input, which read output places. */
static int backward_axis(axis *a, int kernel, int stride, int pad, int in, int out, int phase) {
  if (!axis_make(a, kernel, (in - phase + stride - 1) / stride, 1, out)) return 0;
  for (int k = kernel - 1; k >= 0; k--)
    if ((phase + pad - k) % stride == 0) a->k[a->taps] = k, a->at[a->taps++] = (phase + pad - k) / stride;
  axis_split(a);
  return 1;
}

/* Adds taps [first, end) of x at tap ty of y to a class of `pass`; neighbours share a segment where nothing lies
 * between them. */
static int add_segments(const cmkd_direct_pass *pass, cmkd_seg *seg, int64_t row, int channels, int inner, int merge,
                        const axis *y, const axis *x, int ty, int first, int end) {
  (void)pass;
  int count = 0;
  for (int t = first; t < end; t++) {
    const int64_t offset = y->at[ty] * row + (int64_t)x->at[t] * channels;
    if (merge && count && seg[count - 1].offset + seg[count - 1].length == offset)
      seg[count - 1].length += inner;
    else
      seg[count++] = (cmkd_seg){offset, inner, (ty * x->taps + t) * inner};
  }
  return count;
}

/* The classes of one phase. inner: source channels a group; channels: source channels of a pixel; row: source floats of
 * a row. */
static void add_classes(cmkd_direct_pass *pass, cmkd_conv_class *cls, cmkd_seg *seg, int *segs, const axis *y,
                        const axis *x, int64_t row, int channels, int inner, int phase_y, int phase_x, int stride,
                        int64_t weights) {
  for (int i = 0; i < y->ranges; i++)
    for (int j = 0; j < x->ranges; j++) {
      const axis_range *ry = &y->range[i], *rx = &x->range[j];
      cmkd_conv_class *c = &cls[pass->classes++];
      *c = (cmkd_conv_class){.ny = ry->count,
                             .nx = rx->count,
                             .y0 = phase_y + ry->start * stride,
                             .x0 = phase_x + rx->start * stride,
                             .k = y->taps * x->taps * inner,
                             .base = ry->start * y->step * row + (int64_t)rx->start * x->step * channels,
                             .weights = weights,
                             .seg = seg + *segs};
      for (int t = ry->first; t < ry->end; t++) {
        int added =
            add_segments(pass, seg + *segs, row, channels, inner, pass->groups == 1, y, x, t, rx->first, rx->end);
        c->segs += added;
        *segs += added;
      }
    }
}

/* Weight gradients, piece by piece: a rectangle of output pixels that all read one run of source floats. Few channels
 * are taken several taps at a time, with the pixels at the edges apart; many, one tap at a time. */
static void add_pieces(cmkd_direct_pass *pass, cmkd_wgrad_piece *piece, const axis *y, const axis *x, int64_t row,
                       int channels, int inner) {
  const int together = pass->groups == 1 && inner < 16;
  for (int ty = 0; ty < y->taps; ty++) {
    int y0, y1;
    tap_span(y, ty, &y0, &y1);
    for (int n = 0; n < (together ? x->ranges : x->taps); n++) {
      int x0 = 0, x1 = 0, t = n, many = 1;
      if (together)
        x0 = x->range[n].start, x1 = x0 + x->range[n].count, t = x->range[n].first, many = x->range[n].end - t;
      else
        tap_span(x, n, &x0, &x1);
      if (y0 >= y1 || x0 >= x1 || !many) continue;
      piece[pass->pieces++] = (cmkd_wgrad_piece){.y = y0,
                                                 .ny = y1 - y0,
                                                 .nx = x1 - x0,
                                                 .length = many * inner,
                                                 .weights = (ty * x->taps + t) * inner,
                                                 .src = y->at[ty] * row + ((int64_t)x0 * x->step + x->at[t]) * channels,
                                                 .dst = (int64_t)x0 * pass->dst_col};
    }
  }
}

static int plan_forward(cmkd_conv *conv) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, taps = g->kh * g->kw, inner = conv->depthwise ? 1 : gi;
  const int64_t row = (int64_t)g->iw * g->ic;
  axis y = {0}, x = {0};
  int good = forward_axis(&y, g->kh, g->stride, g->pad, g->ih, g->oh) &
             forward_axis(&x, g->kw, g->stride, g->pad, g->iw, g->ow);
  const size_t classes = (size_t)y.ranges * (size_t)x.ranges;
  cmkd_conv_class *cls = calloc(classes + 1, sizeof *cls);
  cmkd_seg *seg = calloc(classes * (size_t)taps + 1, sizeof *seg);
  cmkd_wgrad_piece *piece = calloc((size_t)g->kh * (size_t)(x.ranges > x.taps ? x.ranges : x.taps) + 1, sizeof *piece);
  conv->fwd_tap = calloc((size_t)taps, sizeof *conv->fwd_tap);
  conv->fwd = (cmkd_direct_pass){.groups = g->groups,
                                 .outs = g->oc / g->groups,
                                 .cls = cls,
                                 .seg = seg,
                                 .piece = piece,
                                 .src_row = row * g->stride,
                                 .src_col = (int64_t)g->ic * g->stride,
                                 .src_group = gi,
                                 .dst_row = (int64_t)g->ow * g->oc,
                                 .dst_y = (int64_t)g->ow * g->oc,
                                 .dst_col = g->oc,
                                 .dst_x = g->oc,
                                 .src_image = g->ih * row,
                                 .dst_image = (int64_t)g->oh * g->ow * g->oc};
  good = good && cls && seg && piece && conv->fwd_tap;
  if (good) {
    int segs = 0;
    for (int t = 0; t < taps; t++)
      conv->fwd_tap[t] = t;
    add_classes(&conv->fwd, cls, seg, &segs, &y, &x, row, g->ic, inner, 0, 0, 1, 0);
    add_pieces(&conv->fwd, piece, &y, &x, row, g->ic, inner);
  }
  axis_free(&y);
  axis_free(&x);
  conv->forward_floats = conv->depthwise ? (size_t)taps * (size_t)g->ic
                                         : (size_t)g->groups * (size_t)blocks_of(conv, conv->fwd.outs) * (size_t)taps *
                                               (size_t)gi * (size_t)conv->kernels->block;
  return good;
}

static int plan_backward(cmkd_conv *conv) {
  const cmkd_conv_geometry *g = &conv->g;
  const int go = g->oc / g->groups, taps = g->kh * g->kw, sy = g->stride < g->ih ? g->stride : g->ih,
            sx = g->stride < g->iw ? g->stride : g->iw;
  const int64_t row = (int64_t)g->ow * g->oc,
                per_tap = conv->depthwise
                              ? g->ic
                              : (int64_t)g->groups * blocks_of(conv, g->ic / g->groups) * conv->kernels->block * go;
  axis *axes = calloc((size_t)(sy + sx), sizeof *axes), *y = axes, *x = axes + sy;
  size_t ny = 0, nx = 0;
  int good = axes != NULL, segs = 0, count = 0;
  for (int i = 0; i < sy && good; i++)
    good = backward_axis(&y[i], g->kh, g->stride, g->pad, g->ih, g->oh, i), ny += (size_t)y[i].ranges;
  for (int i = 0; i < sx && good; i++)
    good = backward_axis(&x[i], g->kw, g->stride, g->pad, g->iw, g->ow, i), nx += (size_t)x[i].ranges;
  cmkd_conv_class *cls = calloc(ny * nx + 1, sizeof *cls);
  cmkd_seg *seg = calloc(ny * nx * (size_t)taps + 1, sizeof *seg);
  conv->bwd_tap = calloc((size_t)taps + 1, sizeof *conv->bwd_tap);
  conv->phase = calloc((size_t)(sy * sx), sizeof *conv->phase);
  conv->bwd = (cmkd_direct_pass){.groups = g->groups,
                                 .outs = g->ic / g->groups,
                                 .cls = cls,
                                 .seg = seg,
                                 .src_row = row,
                                 .src_col = g->oc,
                                 .src_group = go,
                                 .dst_y = (int64_t)g->iw * g->ic,
                                 .dst_x = g->ic,
                                 .dst_row = (int64_t)g->iw * g->ic * g->stride,
                                 .dst_col = (int64_t)g->ic * g->stride,
                                 .src_image = g->oh * row,
                                 .dst_image = (int64_t)g->ih * g->iw * g->ic};
  good = good && cls && seg && conv->bwd_tap && conv->phase;
  for (int n = 0; n < sy * sx && good; n++) {
    const axis *ay = &y[n / sx], *ax = &x[n % sx];
    conv->phase[conv->phases++] = (cmkd_conv_phase){ay->taps * ax->taps, (int64_t)count * per_tap};
    add_classes(&conv->bwd, cls, seg, &segs, ay, ax, row, g->oc, conv->depthwise ? 1 : go, n / sx, n % sx, g->stride,
                (int64_t)count * per_tap);
    for (int i = 0; i < ay->taps; i++)
      for (int j = 0; j < ax->taps; j++)
        conv->bwd_tap[count++] = ay->k[i] * g->kw + ax->k[j];
  }
  conv->backward_floats = (size_t)count * (size_t)per_tap;
  for (int i = 0; axes && i < sy + sx; i++)
    axis_free(&axes[i]);
  free(axes);
  return good;
}

cmkd_status cmkd_conv_create(const cmkd_conv_geometry *geometry, const cmkd_conv_options *options, cmkd_conv **out,
                             cmkd_error *err) {
  cmkd_conv *conv = calloc(1, sizeof *conv);
  if (!conv) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning a convolution");
  const cmkd_conv_geometry *g = geometry;
  conv->g = *g;
  conv->kernels = options->kernels;
  conv->in_floats = (size_t)g->ih * (size_t)g->iw * (size_t)g->ic,
  conv->out_floats = (size_t)g->oh * (size_t)g->ow * (size_t)g->oc;
  conv->depthwise = g->groups > 1 && g->groups == g->ic && g->groups == g->oc;
  if (!plan_forward(conv) || (options->train && !plan_backward(conv))) {
    cmkd_conv_free(conv);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning a %dx%d convolution of %d channels", g->kh, g->kw,
                     g->ic);
  }
  conv->grad_floats = conv->forward_floats;
  if (options->dnnl) {
    cmkd_status status = cmkd_conv_dnnl_create(conv, options, &conv->dnnl, err);
    if (status != CMKD_OK) {
      cmkd_conv_free(conv);
      return status;
    }
  }
  *out = conv;
  return CMKD_OK;
}

/* ---- weights ---- */

/* Where input channel i of a group lies in a plain row of weights, in taps. */
static int64_t plain_input(const cmkd_conv_geometry *g, int i) {
  if (g->plane <= 1) return i;
  const int planes = g->ic / g->groups / g->plane; /* (h, w, c) here, (c, h, w) there */
  return (int64_t)(i % planes) * g->plane + i / planes;
}

/* Where the weights of output channels first .. first + count - 1 (at most PLACES) begin in the forward order; the
 * inputs of a tap are a block apart. */
#define PLACES 16
static void forward_places(const cmkd_conv *conv, int first, int count, int64_t place[PLACES]) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, go = g->oc / g->groups, B = conv->kernels->block;
  for (int j = 0, o = first; j < count; j++, o++)
    place[j] = conv->depthwise
                   ? o
                   : ((int64_t)(o / go) * blocks_of(conv, go) + o % go / B) * g->kh * g->kw * gi * B + o % go % B;
}

/* Up to PLACES output channels: inputs outermost, so that neighbouring channels fill a cache line one after the other.
 */
static void pack_forward(const cmkd_conv *conv, int first, int count, const float *plain, float *packed) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, taps = g->kh * g->kw, B = conv->kernels->block;
  const int64_t each = (int64_t)gi * taps, step = (int64_t)gi * B;
  int64_t place[PLACES];
  forward_places(conv, first, count, place);
  for (int i = 0; i < gi; i++, packed += B) {
    const float *from = plain + first * each + plain_input(g, i) * taps;
    for (int o = 0; o < count; o++, from += each)
      for (int t = 0; t < taps; t++)
        packed[place[o] + t * step] = from[conv->fwd_tap[t]];
  }
}

static void pack_backward(const cmkd_conv *conv, int first, int count, const float *plain, float *packed) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, go = g->oc / g->groups, taps = g->kh * g->kw, B = conv->kernels->block,
            blocks = blocks_of(conv, gi);
  for (int o = first; o < first + count; o++) {
    const int *tap = conv->bwd_tap;
    for (int n = 0; n < conv->phases; n++) {
      const int own = conv->phase[n].taps;
      for (int b = 0, i = 0; b < blocks; b++) {
        float *to = packed + conv->phase[n].weights + (((int64_t)(o / go) * blocks + b) * own * go + o % go) * B;
        for (int l = 0; l < B && i < gi; l++, i++) {
          const float *from = plain + ((int64_t)o * gi + plain_input(g, i)) * taps;
          for (int t = 0; t < own; t++)
            to[(int64_t)t * go * B + l] = from[tap[t]];
        }
      }
      tap += own;
    }
  }
}

static void pack_depthwise(const cmkd_conv *conv, const int *tap, int first, int count, const float *plain,
                           float *packed) {
  const int channels = conv->g.ic, taps = conv->g.kh * conv->g.kw;
  for (int t = 0; t < taps; t++) /* backward: the phases one after the other, together all taps once */
    for (int c = first; c < first + count; c++)
      packed[(int64_t)t * channels + c] = plain[(int64_t)c * taps + tap[t]];
}

void cmkd_conv_pack(const cmkd_conv *conv, int first, int count, const float *plain, float *forward, float *backward) {
  if (conv->dnnl) {
    cmkd_conv_dnnl_pack(conv, plain, forward, backward);
    return;
  }
  if (forward && conv->depthwise)
    pack_depthwise(conv, conv->fwd_tap, first, count, plain, forward);
  else if (forward)
    for (int o = first; o < first + count; o += PLACES)
      pack_forward(conv, o, first + count - o < PLACES ? first + count - o : PLACES, plain, forward);
  if (backward && conv->depthwise)
    pack_depthwise(conv, conv->bwd_tap, first, count, plain, backward);
  else if (backward)
    pack_backward(conv, first, count, plain, backward);
}

static void unpack_grad(const cmkd_conv *conv, const float *const *packed, int lanes, int first, int count,
                        float *plain) {
  const cmkd_conv_geometry *g = &conv->g;
  const int gi = g->ic / g->groups, taps = g->kh * g->kw, B = conv->depthwise ? g->ic : conv->kernels->block;
  const int64_t each = (int64_t)gi * taps, step = (int64_t)gi * B;
  int64_t place[PLACES];
  forward_places(conv, first, count, place);
  for (int i = 0; i < gi; i++) {
    float *to = plain + first * each + plain_input(g, i) * taps;
    for (int o = 0; o < count; o++, to += each)
      for (int t = 0; t < taps; t++) {
        const int64_t from = place[o] + (int64_t)i * B + t * step;
        float sum = packed[0][from];
        for (int lane = 1; lane < lanes; lane++)
          sum += packed[lane][from];
        to[conv->fwd_tap[t]] = sum;
      }
  }
}

void cmkd_conv_unpack_grad(const cmkd_conv *conv, const float *const *packed, int lanes, int first, int count,
                           float *plain) {
  if (conv->dnnl) {
    cmkd_conv_dnnl_unpack_grad(conv, packed, lanes, plain);
    return;
  }
  for (int o = first; o < first + count; o += PLACES)
    unpack_grad(conv, packed, lanes, o, first + count - o < PLACES ? first + count - o : PLACES, plain);
}

/* ---- runs ---- */

void cmkd_conv_forward(const cmkd_conv *conv, int thread, int n, const float *src, const float *weights,
                       const cmkd_epilogue *epilogue, float *dst) {
  if (conv->dnnl)
    cmkd_conv_dnnl_forward(conv, thread, n, src, weights, epilogue, dst);
  else
    (conv->depthwise ? conv->kernels->depth_run : conv->kernels->conv_run)(&conv->fwd, n, src, weights, epilogue, dst);
}

void cmkd_conv_backward_data(const cmkd_conv *conv, int thread, int n, const float *ddst, const float *weights,
                             int accumulate, float *dsrc) {
  const cmkd_epilogue epilogue = {NULL, accumulate ? dsrc : NULL, CMKD_ACT_NONE};
  if (conv->dnnl)
    cmkd_conv_dnnl_backward_data(conv, thread, n, ddst, weights, accumulate, dsrc);
  else
    (conv->depthwise ? conv->kernels->depth_run : conv->kernels->conv_run)(&conv->bwd, n, ddst, weights, &epilogue,
                                                                           dsrc);
}

void cmkd_conv_backward_weights(const cmkd_conv *conv, int thread, int n, const float *src, const float *ddst,
                                float *grad) {
  if (conv->dnnl)
    cmkd_conv_dnnl_backward_weights(conv, thread, n, src, ddst, grad);
  else
    (conv->depthwise ? conv->kernels->depth_wgrad : conv->kernels->conv_wgrad)(&conv->fwd, n, src, ddst, grad);
}
