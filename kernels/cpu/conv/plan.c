/* Plans of the direct convolution: which source floats every destination pixel reads, and in what order the weights are
 * packed for that. Pixels that read the same taps form a region: taps on padding are left out, so nothing is padded and
 * no zeros are multiplied. The forward pass of a 3x3 convolution has nine regions (inside, four edges, four corners).
 * The backward-data pass of a stride-s convolution has s x s phases (by position modulo s), each with its own taps, its
 * own packed weights, and its own edges. */
#include "kernels/cpu/conv/plan.h"
#include <stdlib.h>

void cmkd_direct_plan_free(cmkd_direct_plan *plan) {
  free((void *)plan->pass.region);
  free((void *)plan->pass.run);
  free((void *)plan->pass.rect);
  free(plan->tap);
  free(plan->phase);
}

static int blocks_of(const cmkd_direct_plan *plan, int channels) { return (channels + plan->block - 1) / plan->block; }

static cmkd_direct_plan plan_start(const cmkd_conv_geometry *geometry, int block) {
  return (cmkd_direct_plan){.g = *geometry, .block = block, .depthwise = cmkd_conv_depthwise(geometry)};
}

/* ---- one axis of an image ---- */

/* Neighbouring destination positions [start, start + count) with the same taps [first, end) of the axis. */
typedef struct axis_range {
  int start, count, first, end;
} axis_range;

/* Destination positions 0 .. count - 1, of which position j reads source position j * step + at[t] through tap t, at
 * kernel position k[t], where 0 <= that < source. Taps are in the order of at[]. */
typedef struct axis {
  int count, step, source, taps, ranges;
  int *k, *at;       /* (taps) */
  axis_range *range; /* (ranges) */
} axis;

static void axis_free(axis *a) {
  free(a->k);
  free(a->at);
  free(a->range);
}

/* The destination positions at which tap t reads something: [*first, *end). */
static void tap_positions(const axis *a, int t, int *first, int *end) {
  *first = 0;
  *end = a->count;
  while (*first < *end && *first * a->step + a->at[t] < 0)
    ++*first;
  while (*end > *first && (*end - 1) * a->step + a->at[t] >= a->source)
    --*end;
}

/* Without taps and ranges yet. 1 on success. */
static int axis_make(axis *a, int kernel, int count, int step, int source) {
  *a = (axis){.count = count,
              .step = step,
              .source = source,
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
    while (end > first && j * a->step + a->at[end - 1] >= a->source)
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
  for (int k = 0; k < kernel; k++) {
    a->k[k] = k;
    a->at[k] = k - pad;
  }
  a->taps = kernel;
  axis_split(a);
  return 1;
}

/* Input positions phase, phase + stride, ..., which read output positions. */
static int backward_axis(axis *a, int kernel, int stride, int pad, int in, int out, int phase) {
  if (!axis_make(a, kernel, (in - phase + stride - 1) / stride, 1, out)) return 0;
  for (int k = kernel - 1; k >= 0; k--) {
    if ((phase + pad - k) % stride != 0) continue;
    a->k[a->taps] = k;
    a->at[a->taps++] = (phase + pad - k) / stride;
  }
  axis_split(a);
  return 1;
}

/* ---- regions ---- */

/* The images that a pass reads. */
typedef struct source_layout {
  int64_t row;  /* floats of a row of pixels */
  int channels; /* of a pixel */
  int inner;    /* channels that one destination channel reads at a tap */
} source_layout;

/* Destination pixels (y0 + i * stride, x0 + j * stride), their taps by axis, and where their packed weights begin. */
typedef struct phase_layout {
  const axis *y, *x;
  int y0, x0, stride;
  int64_t weights;
} phase_layout;

/* The runs of taps [first, end) of x at tap ty of y, into `run`; neighbours share one where nothing lies between them.
 * Returns how many. */
static int make_runs(const source_layout *source, const phase_layout *phase, int merge, int ty, int first, int end,
                     cmkd_tap_run *run) {
  const axis *y = phase->y, *x = phase->x;
  int count = 0;
  for (int t = first; t < end; t++) {
    const int64_t offset = y->at[ty] * source->row + (int64_t)x->at[t] * source->channels;
    if (merge && count && run[count - 1].offset + run[count - 1].length == offset)
      run[count - 1].length += source->inner;
    else
      run[count++] = (cmkd_tap_run){offset, source->inner, (ty * x->taps + t) * source->inner};
  }
  return count;
}

/* The regions of one phase, appended to region[], and their runs, written to `run`. Returns how many runs. */
static int add_regions(cmkd_direct_pass *pass, cmkd_conv_region *region, cmkd_tap_run *run, const source_layout *source,
                       const phase_layout *phase) {
  const axis *y = phase->y, *x = phase->x;
  int runs = 0;
  for (int i = 0; i < y->ranges; i++)
    for (int j = 0; j < x->ranges; j++) {
      const axis_range *ry = &y->range[i], *rx = &x->range[j];
      cmkd_conv_region *r = &region[pass->regions++];
      *r = (cmkd_conv_region){.ny = ry->count,
                              .nx = rx->count,
                              .y0 = phase->y0 + ry->start * phase->stride,
                              .x0 = phase->x0 + rx->start * phase->stride,
                              .k = y->taps * x->taps * source->inner,
                              .base =
                                  ry->start * y->step * source->row + (int64_t)rx->start * x->step * source->channels,
                              .weights = phase->weights,
                              .run = run + runs};
      for (int t = ry->first; t < ry->end; t++)
        r->runs += make_runs(source, phase, pass->groups == 1, t, rx->first, rx->end, run + runs + r->runs);
      runs += r->runs;
    }
  return runs;
}

/* The rectangles of weight gradients. Few channels are taken several taps at a time, with the pixels at the edges
 * apart; many channels, one tap at a time. */
static void add_rects(cmkd_direct_pass *pass, cmkd_wgrad_rect *rect, const source_layout *source, const axis *y,
                      const axis *x) {
  const int together = pass->groups == 1 && source->inner < 16;
  for (int ty = 0; ty < y->taps; ty++) {
    int y0, y1;
    tap_positions(y, ty, &y0, &y1);
    for (int i = 0; i < (together ? x->ranges : x->taps); i++) {
      int x0 = 0, x1 = 0, tap = i, taps = 1;
      if (together) {
        x0 = x->range[i].start;
        x1 = x0 + x->range[i].count;
        tap = x->range[i].first;
        taps = x->range[i].end - tap;
      } else
        tap_positions(x, i, &x0, &x1);
      if (y0 >= y1 || x0 >= x1 || !taps) continue;
      rect[pass->rects++] =
          (cmkd_wgrad_rect){.y = y0,
                            .ny = y1 - y0,
                            .nx = x1 - x0,
                            .length = taps * source->inner,
                            .weights = (ty * x->taps + tap) * source->inner,
                            .src = y->at[ty] * source->row + ((int64_t)x0 * x->step + x->at[tap]) * source->channels,
                            .ddst = (int64_t)x0 * pass->dst_col};
    }
  }
}

/* ---- whole passes ---- */

int cmkd_direct_plan_forward(const cmkd_conv_geometry *g, int block, cmkd_direct_plan *plan) {
  *plan = plan_start(g, block);
  const int inner = g->ic / g->groups, taps = g->kh * g->kw;
  const source_layout source = {.row = (int64_t)g->iw * g->ic, .channels = g->ic, .inner = inner};
  axis y = {0}, x = {0};
  int good = forward_axis(&y, g->kh, g->stride, g->pad, g->ih, g->oh);
  good &= forward_axis(&x, g->kw, g->stride, g->pad, g->iw, g->ow);
  const size_t regions = (size_t)y.ranges * (size_t)x.ranges;
  cmkd_conv_region *region = calloc(regions + 1, sizeof *region);
  cmkd_tap_run *run = calloc(regions * (size_t)taps + 1, sizeof *run);
  cmkd_wgrad_rect *rect = calloc((size_t)g->kh * (size_t)(x.ranges > x.taps ? x.ranges : x.taps) + 1, sizeof *rect);
  plan->tap = calloc((size_t)taps, sizeof *plan->tap);
  plan->pass = (cmkd_direct_pass){.groups = g->groups,
                                  .outs = g->oc / g->groups,
                                  .src_row = source.row * g->stride,
                                  .src_col = (int64_t)g->ic * g->stride,
                                  .src_group = inner,
                                  .src_image = g->ih * source.row,
                                  .dst_row = (int64_t)g->ow * g->oc,
                                  .dst_col = g->oc,
                                  .dst_y = (int64_t)g->ow * g->oc,
                                  .dst_x = g->oc,
                                  .dst_image = (int64_t)g->oh * g->ow * g->oc,
                                  .region = region,
                                  .run = run,
                                  .rect = rect};
  good = good && region && run && rect && plan->tap;
  if (good) {
    for (int t = 0; t < taps; t++)
      plan->tap[t] = t;
    add_regions(&plan->pass, region, run, &source, &(phase_layout){.y = &y, .x = &x, .stride = 1});
    add_rects(&plan->pass, rect, &source, &y, &x);
  }
  axis_free(&y);
  axis_free(&x);
  if (plan->depthwise)
    plan->floats = (size_t)taps * (size_t)g->ic;
  else
    plan->floats =
        (size_t)g->groups * (size_t)blocks_of(plan, plan->pass.outs) * (size_t)taps * (size_t)inner * (size_t)block;
  return good;
}

/* The phases of a backward-data pass; axes y (sy), x (sx). Fills region[], run[] and the plan's taps and phases. */
static void add_phases(cmkd_direct_plan *plan, cmkd_conv_region *region, cmkd_tap_run *run, const axis *y, int sy,
                       const axis *x, int sx) {
  const cmkd_conv_geometry *g = &plan->g;
  const int inner = g->oc / g->groups;
  const source_layout source = {.row = (int64_t)g->ow * g->oc, .channels = g->oc, .inner = inner};
  const int64_t per_tap =
      plan->depthwise ? g->ic : (int64_t)g->groups * blocks_of(plan, g->ic / g->groups) * plan->block * inner;
  int taps = 0, runs = 0;
  for (int i = 0; i < sy * sx; i++) {
    const phase_layout phase = {
        .y = &y[i / sx], .x = &x[i % sx], .y0 = i / sx, .x0 = i % sx, .stride = g->stride, .weights = taps * per_tap};
    plan->phase[plan->phases++] = (cmkd_stride_phase){phase.y->taps * phase.x->taps, phase.weights};
    runs += add_regions(&plan->pass, region, run + runs, &source, &phase);
    for (int ty = 0; ty < phase.y->taps; ty++)
      for (int tx = 0; tx < phase.x->taps; tx++)
        plan->tap[taps++] = phase.y->k[ty] * g->kw + phase.x->k[tx];
  }
  plan->floats = (size_t)taps * (size_t)per_tap;
}

int cmkd_direct_plan_backward(const cmkd_conv_geometry *g, int block, cmkd_direct_plan *plan) {
  *plan = plan_start(g, block);
  const int taps = g->kh * g->kw, sy = g->stride < g->ih ? g->stride : g->ih,
            sx = g->stride < g->iw ? g->stride : g->iw;
  axis *axes = calloc((size_t)(sy + sx), sizeof *axes), *y = axes, *x = axes + sy;
  size_t ny = 0, nx = 0;
  int good = axes != NULL;
  for (int i = 0; i < sy && good; i++) {
    good = backward_axis(&y[i], g->kh, g->stride, g->pad, g->ih, g->oh, i);
    ny += (size_t)y[i].ranges;
  }
  for (int i = 0; i < sx && good; i++) {
    good = backward_axis(&x[i], g->kw, g->stride, g->pad, g->iw, g->ow, i);
    nx += (size_t)x[i].ranges;
  }
  cmkd_conv_region *region = calloc(ny * nx + 1, sizeof *region);
  cmkd_tap_run *run = calloc(ny * nx * (size_t)taps + 1, sizeof *run);
  plan->tap = calloc((size_t)taps + 1, sizeof *plan->tap);
  plan->phase = calloc((size_t)(sy * sx), sizeof *plan->phase);
  plan->pass = (cmkd_direct_pass){.groups = g->groups,
                                  .outs = g->ic / g->groups,
                                  .src_row = (int64_t)g->ow * g->oc,
                                  .src_col = g->oc,
                                  .src_group = g->oc / g->groups,
                                  .src_image = (int64_t)g->oh * g->ow * g->oc,
                                  .dst_row = (int64_t)g->iw * g->ic * g->stride,
                                  .dst_col = (int64_t)g->ic * g->stride,
                                  .dst_y = (int64_t)g->iw * g->ic,
                                  .dst_x = g->ic,
                                  .dst_image = (int64_t)g->ih * g->iw * g->ic,
                                  .region = region,
                                  .run = run};
  good = good && region && run && plan->tap && plan->phase;
  if (good) add_phases(plan, region, run, y, sy, x, sx);
  for (int i = 0; axes && i < sy + sx; i++)
    axis_free(&axes[i]);
  free(axes);
  return good;
}

/* ---- weights ---- */

/* Where input channel i of a group lies in a plain row of weights, in taps. */
static int64_t plain_input(const cmkd_conv_geometry *g, int i) {
  if (g->plane <= 1) return i;
  const int planes = g->ic / g->groups / g->plane; /* (h, w, c) here, (c, h, w) there */
  return (int64_t)(i % planes) * g->plane + i / planes;
}

/* Where the forward weights of output channels first .. first + count - 1 (at most CMKD_CONV_SLICE) begin; the inputs
 * of a tap are a block apart. */
static void forward_offsets(const cmkd_direct_plan *plan, int first, int count, int64_t offset[CMKD_CONV_SLICE]) {
  const cmkd_conv_geometry *g = &plan->g;
  const int inner = g->ic / g->groups, outs = g->oc / g->groups, B = plan->block, blocks = blocks_of(plan, outs);
  for (int j = 0; j < count; j++) {
    const int o = first + j, in_group = o % outs;
    if (plan->depthwise)
      offset[j] = o;
    else
      offset[j] = ((int64_t)(o / outs) * blocks + in_group / B) * g->kh * g->kw * inner * B + in_group % B;
  }
}

static int at_most_channels(int left) { return left < CMKD_CONV_SLICE ? left : CMKD_CONV_SLICE; }

static void pack_depthwise(const cmkd_direct_plan *plan, int first, int count, const float *plain, float *packed) {
  const int channels = plan->g.ic, taps = plan->g.kh * plan->g.kw;
  for (int t = 0; t < taps; t++) /* backward: the phases one after the other, together all taps once */
    for (int c = first; c < first + count; c++)
      packed[(int64_t)t * channels + c] = plain[(int64_t)c * taps + plan->tap[t]];
}

/* Up to CMKD_CONV_SLICE output channels: inputs outermost, so that neighbouring channels fill a cache line one after
 * the other. */
static void pack_channels(const cmkd_direct_plan *plan, int first, int count, const float *plain, float *packed) {
  const cmkd_conv_geometry *g = &plan->g;
  const int inner = g->ic / g->groups, taps = g->kh * g->kw, B = plan->block;
  const int64_t each = (int64_t)inner * taps, tap_stride = (int64_t)inner * B;
  int64_t offset[CMKD_CONV_SLICE];
  forward_offsets(plan, first, count, offset);
  for (int i = 0; i < inner; i++, packed += B) {
    const float *from = plain + first * each + plain_input(g, i) * taps;
    for (int o = 0; o < count; o++, from += each)
      for (int t = 0; t < taps; t++)
        packed[offset[o] + t * tap_stride] = from[plan->tap[t]];
  }
}

void cmkd_direct_pack_forward(const cmkd_direct_plan *plan, int first, int count, const float *plain, float *packed) {
  if (plan->depthwise)
    pack_depthwise(plan, first, count, plain, packed);
  else
    for (int o = first; o < first + count; o += CMKD_CONV_SLICE)
      pack_channels(plan, o, at_most_channels(first + count - o), plain, packed);
}

void cmkd_direct_pack_backward(const cmkd_direct_plan *plan, int first, int count, const float *plain, float *packed) {
  if (plan->depthwise) {
    pack_depthwise(plan, first, count, plain, packed);
    return;
  }
  const cmkd_conv_geometry *g = &plan->g;
  const int ins = g->ic / g->groups, outs = g->oc / g->groups, taps = g->kh * g->kw, B = plan->block,
            blocks = blocks_of(plan, ins);
  for (int o = first; o < first + count; o++) {
    const int *tap = plan->tap;
    for (int n = 0; n < plan->phases; n++) {
      const int own = plan->phase[n].taps;
      for (int b = 0, i = 0; b < blocks; b++) {
        float *to = packed + plan->phase[n].weights + (((int64_t)(o / outs) * blocks + b) * own * outs + o % outs) * B;
        for (int l = 0; l < B && i < ins; l++, i++) {
          const float *from = plain + ((int64_t)o * ins + plain_input(g, i)) * taps;
          for (int t = 0; t < own; t++)
            to[(int64_t)t * outs * B + l] = from[tap[t]];
        }
      }
      tap += own;
    }
  }
}

/* Up to CMKD_CONV_SLICE output channels, in the order of pack_channels. */
static void unpack_channels(const cmkd_direct_plan *plan, const float *const *packed, int workers, int first, int count,
                            float *plain) {
  const cmkd_conv_geometry *g = &plan->g;
  const int inner = g->ic / g->groups, taps = g->kh * g->kw, B = plan->depthwise ? g->ic : plan->block;
  const int64_t each = (int64_t)inner * taps, tap_stride = (int64_t)inner * B;
  int64_t offset[CMKD_CONV_SLICE];
  forward_offsets(plan, first, count, offset);
  for (int i = 0; i < inner; i++) {
    float *to = plain + first * each + plain_input(g, i) * taps;
    for (int o = 0; o < count; o++, to += each)
      for (int t = 0; t < taps; t++) {
        const int64_t from = offset[o] + (int64_t)i * B + t * tap_stride;
        float sum = packed[0][from];
        for (int worker = 1; worker < workers; worker++)
          sum += packed[worker][from];
        to[plan->tap[t]] = sum;
      }
  }
}

void cmkd_direct_unpack_grad(const cmkd_direct_plan *plan, const float *const *packed, int workers, int first,
                             int count, float *plain) {
  for (int o = first; o < first + count; o += CMKD_CONV_SLICE)
    unpack_channels(plan, packed, workers, o, at_most_channels(first + count - o), plain);
}
