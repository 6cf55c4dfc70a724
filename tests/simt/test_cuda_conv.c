/* Our own convolution kernels against the double reference: forward with its fused epilogue, all three gradients, the
 * separate epilogue, on inputs rounded to the element type first. Every output starts full of NaN, padding channels
 * must end as 0, thread orders must not matter. */
#include "tests/simt/gpu.h"
#include <math.h>
#include "base/half.h"
#include "base/rng.h"
#include "kernels/cuda/ops.h"
#include "kernels/ref/ops.h"

static cmkd_rng rng;

/* ---- element types ---- */
static size_t size_of(cmkd_dtype dtype) { return dtype == CMKD_F32 ? 4 : 2; }
static void encode(double v, cmkd_dtype dtype, void *to, size_t i) {
  const float f = (float)v;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if (dtype == CMKD_F32)
    ((float *)to)[i] = f;
  else
    ((uint16_t *)to)[i] =
        dtype == CMKD_F16 ? cmkd_float_to_half(f) : (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}
static double decode(const void *from, cmkd_dtype dtype, size_t i) {
  if (dtype == CMKD_F32) return ((const float *)from)[i];
  const uint16_t half = ((const uint16_t *)from)[i];
  return dtype == CMKD_F16 ? cmkd_half_to_float(half) : cmkd_bf16_to_float(half);
}
/* The largest relative error of rounding to dtype. */
static double rounding(cmkd_dtype dtype) { return dtype == CMKD_F32 ? 0x1p-24 : dtype == CMKD_F16 ? 0x1p-11 : 0x1p-8; }

/* ---- packed tensors: (rows, stride) on the device, (rows, c) double on the host ---- */
typedef struct packed {
  size_t rows;
  int c, stride;
  cmkd_dtype dtype;
  double *value;
  void *bytes;
} packed;
static size_t bytes_of(const packed *p) { return p->rows * (size_t)p->stride * size_of(p->dtype); }
static packed packed_new(size_t rows, int c, int stride, cmkd_dtype dtype, double scale) {
  packed p = {rows, c, stride, dtype, calloc(rows * (size_t)c, 8), calloc(rows * (size_t)stride, size_of(dtype))};
  for (size_t r = 0; r < rows && scale > 0; r++)
    for (int i = 0; i < c; i++) {
      const size_t at = r * (size_t)stride + (size_t)i;
      encode((cmkd_rng_uniform(&rng) - 0.5) * 3.4 * scale, dtype, p.bytes, at);
      p.value[r * (size_t)c + (size_t)i] = decode(p.bytes, dtype, at);
    }
  return p;
}
static void packed_free(packed *p) {
  free(p->value);
  free(p->bytes);
}

static char label[200];
static void close_to(const char *what, double got, double want, double largest, double rounding, size_t at) {
  if (!(fabs(got - want) <= 1e-5 * largest + rounding * fabs(want) * 1.001))
    fail_msg("%s: %s[%zu] is %.9g, reference %.9g (largest %.3g)", label, what, at, got, want, largest);
}
static double largest_of(const double *v, size_t n) {
  double most = 1e-30;
  for (size_t i = 0; i < n; i++)
    if (fabs(v[i]) > most) most = fabs(v[i]);
  return most;
}
/* p's bytes hold what the device wrote, want (rows, c). */
static void packed_check(const char *what, const packed *p, const double *want, double largest) {
  for (size_t r = 0; r < p->rows; r++)
    for (int i = 0; i < p->stride; i++) {
      const size_t at = r * (size_t)p->stride + (size_t)i;
      const double got = decode(p->bytes, p->dtype, at);
      if (i < p->c)
        close_to(what, got, want[r * (size_t)p->c + (size_t)i], largest, rounding(p->dtype), at);
      else if (got != 0)
        fail_msg("%s: %s[%zu] is padding and %.9g", label, what, at, got);
    }
}

/* ---- one shape ---- */
typedef struct spec {
  int n, h, w, c, k, kh, kw, stride, pad, groups, linear, logits;
} spec;

/* Element of the device's weights and of the reference's for output o, input i of its group, tap (y, x). */
static size_t device_weight(const cmkd_cuda_conv_shape *s, int o, int i, int y, int x) {
  const int width = s->groups > 1 ? s->c / s->groups : cmkd_cuda_stride(s->c);
  return (((size_t)o * s->kh + y) * s->kw + x) * width + i;
}
static size_t reference_weight(const cmkd_cuda_conv_shape *s, int linear, int o, int i, int y, int x) {
  if (linear) return ((size_t)o * s->c + i) * s->kh * s->kw + (size_t)y * s->kw + x;
  return (((size_t)y * s->kw + x) * (s->c / s->groups) + i) * s->k + o;
}
#define EACH_WEIGHT(s, o, i, y, x) \
  for (int o = 0; o < (s)->k; o++) \
    for (int i = 0; i < (s)->c / (s)->groups; i++) \
      for (int y = 0; y < (s)->kh; y++) \
        for (int x = 0; x < (s)->kw; x++)

typedef struct problem {
  cmkd_cuda_conv_shape s;
  int linear;
  packed x, y, dy, dx, residual;
  double *w, *bias, *dw, *db, *dx_new; /* the reference's */
  void *w_bytes;
  float *bias_bytes;
  size_t weights;
} problem;

static problem problem_new(const spec *q, cmkd_dtype dtype, int tile) {
  problem p = {.linear = q->linear};
  const int oh = (q->h + 2 * q->pad - q->kh) / q->stride + 1, ow = (q->w + 2 * q->pad - q->kw) / q->stride + 1;
  const cmkd_dtype y_dtype = q->logits ? CMKD_F32 : dtype;
  p.s = (cmkd_cuda_conv_shape){q->n,
                               q->h,
                               q->w,
                               q->c,
                               oh,
                               ow,
                               q->k,
                               q->kh,
                               q->kw,
                               q->stride,
                               q->pad,
                               q->groups,
                               q->logits ? q->k : cmkd_cuda_stride(q->k),
                               dtype,
                               y_dtype,
                               tile};
  snprintf(label, sizeof label,
           "dtype %d, %d x (%d, %d, %d) -> (%d, %d, %d), window %d x %d, stride %d, pad %d, groups %d, tile %d%s%s",
           (int)dtype, q->n, q->h, q->w, q->c, oh, ow, q->k, q->kh, q->kw, q->stride, q->pad, q->groups, tile,
           q->linear ? ", linear" : "", q->logits ? ", logits" : "");
  const size_t in = (size_t)q->n * q->h * q->w, out = (size_t)q->n * oh * ow,
               inner = (size_t)q->kh * q->kw * (q->c / q->groups), count = inner * (size_t)q->k;
  p.x = packed_new(in, q->c, cmkd_cuda_stride(q->c), dtype, 1);
  p.dx = packed_new(in, q->c, cmkd_cuda_stride(q->c), dtype, 1); /* what is there before accumulating */
  p.y = packed_new(out, q->k, p.s.y_stride, y_dtype, 0);
  p.dy = packed_new(out, q->k, p.s.y_stride, y_dtype, 1);
  p.residual = packed_new(out, q->k, p.s.y_stride, y_dtype, 3);
  p.weights = (size_t)cmkd_cuda_conv_weights(&p.s);
  p.w_bytes = calloc(p.weights, size_of(dtype));
  p.w = calloc(count, 8);
  p.dw = calloc(count, 8);
  p.dx_new = calloc(in * (size_t)q->c, 8);
  p.bias = calloc((size_t)q->k, 8);
  p.db = calloc((size_t)q->k, 8);
  p.bias_bytes = malloc((size_t)cmkd_cuda_stride(q->k) * 4);
  EACH_WEIGHT(&p.s, o, i, y, x) {
    const size_t at = device_weight(&p.s, o, i, y, x);
    encode((cmkd_rng_uniform(&rng) - 0.5) * 8 / sqrt((double)inner), dtype, p.w_bytes, at);
    p.w[reference_weight(&p.s, q->linear, o, i, y, x)] = decode(p.w_bytes, dtype, at);
  }
  for (int i = 0; i < cmkd_cuda_stride(q->k); i++) { /* a bias in the padding must not come out */
    p.bias_bytes[i] = (float)cmkd_rng_normal(&rng) * 2;
    if (i < q->k) p.bias[i] = p.bias_bytes[i];
  }
  return p;
}
static void problem_free(problem *p) {
  packed_free(&p->x);
  packed_free(&p->y);
  packed_free(&p->dy);
  packed_free(&p->dx);
  packed_free(&p->residual);
  free(p->w);
  free(p->bias);
  free(p->dw);
  free(p->db);
  free(p->dx_new);
  free(p->w_bytes);
  free(p->bias_bytes);
}

static cmkd_ref_call reference_call(problem *p, cmkd_op *op) {
  const cmkd_cuda_conv_shape *s = &p->s;
  *op = (cmkd_op){.kind = p->linear ? CMKD_OP_LINEAR : CMKD_OP_CONV,
                  .kernel_h = s->kh,
                  .kernel_w = s->kw,
                  .stride = s->stride,
                  .pad = s->pad,
                  .groups = s->groups};
  return (cmkd_ref_call){.op = op,
                         .n = s->n,
                         .in = {{s->h, s->w, s->c}},
                         .out = {s->oh, s->ow, s->k},
                         .x = {p->x.value},
                         .y = p->y.value,
                         .dy = p->dy.value,
                         .dx = {p->dx_new},
                         .param = {p->w, p->bias},
                         .grad = {p->dw, p->db}};
}

/* Runs what writes `bytes` of device memory at `out` again in another order and wants the same bytes. */
static void *first_bytes;
static void same_bytes(const char *what, const void *out, size_t bytes, int order) {
  void *now = malloc(bytes);
  gpu_get(now, out, bytes);
  if (order == 0) {
    free(first_bytes);
    first_bytes = now;
    return;
  }
  if (memcmp(now, first_bytes, bytes)) fail_msg("%s: %s differs in thread order %d", label, what, order);
  free(now);
}

static void forward_is_the_reference(problem *p, unsigned variant, int runs) {
  const cmkd_cuda_conv_shape *s = &p->s;
  cmkd_error err;
  cmkd_op op;
  cmkd_ref_call call = reference_call(p, &op);
  const int bias = variant & 1, residual = variant >> 1 & 1;
  const cmkd_act act = (cmkd_act)(variant / 4 % 3);
  const size_t values = p->y.rows * (size_t)s->k;
  if (!bias) call.param[1] = NULL;
  cmkd_ref_rules[op.kind].forward(&call);
  const double largest = largest_of(p->y.value, values);
  for (size_t i = 0; i < values; i++)
    p->y.value[i] = cmkd_ref_activate(act, p->y.value[i] + (residual ? p->residual.value[i] : 0));
  for (int order = 0; order < runs; order++) {
    set_order((order + (int)variant) % ORDERS, 7 + variant);
    void *x = gpu_put(p->x.bytes, bytes_of(&p->x)), *w = gpu_put(p->w_bytes, p->weights * size_of(s->dtype)),
         *y = gpu_buffer(bytes_of(&p->y)), *scratch = gpu_buffer(GPU(cmkd_cuda_conv_scratch)(s));
    const cmkd_cuda_epilogue epilogue = {bias ? gpu_put(p->bias_bytes, (size_t)cmkd_cuda_stride(s->k) * 4) : NULL,
                                         residual ? gpu_put(p->residual.bytes, bytes_of(&p->y)) : NULL, act};
    assert_ok(GPU(cmkd_cuda_conv_forward)(s, x, w, bias || residual || act ? &epilogue : NULL, y, scratch, NULL, &err));
    same_bytes("y", y, bytes_of(&p->y), order);
    gpu_get(p->y.bytes, y, bytes_of(&p->y));
    gpu_clear();
  }
  packed_check("y", &p->y, p->y.value, largest);
}

static void input_gradient_is_the_reference(problem *p, int runs) {
  const cmkd_cuda_conv_shape *s = &p->s;
  cmkd_error err;
  const size_t values = p->dx.rows * (size_t)s->c;
  const double largest = largest_of(p->dx_new, values);
  packed got = packed_new(p->dx.rows, s->c, p->dx.stride, s->dtype, 0);
  for (int accumulate = 0; accumulate < 2; accumulate++) {
    for (int order = 0; order < runs; order++) {
      set_order((order + accumulate) % ORDERS, 11);
      void *dy = gpu_put(p->dy.bytes, bytes_of(&p->dy)), *w = gpu_put(p->w_bytes, p->weights * size_of(s->dtype)),
           *scratch = gpu_buffer(GPU(cmkd_cuda_conv_scratch)(s));
      void *dx = accumulate ? gpu_put(p->dx.bytes, bytes_of(&p->dx)) : gpu_buffer(bytes_of(&p->dx));
      assert_ok(GPU(cmkd_cuda_conv_backward_data)(s, dy, w, dx, accumulate, scratch, NULL, &err));
      same_bytes("dx", dx, bytes_of(&p->dx), order);
      gpu_get(got.bytes, dx, bytes_of(&got));
      gpu_clear();
    }
    for (size_t i = 0; i < values; i++)
      got.value[i] = p->dx_new[i] + (accumulate ? p->dx.value[i] : 0);
    packed_check(accumulate ? "dx accumulated" : "dx", &got, got.value, largest);
  }
  packed_free(&got);
}

static void weight_gradients_are_the_reference(problem *p, int runs) {
  const cmkd_cuda_conv_shape *s = &p->s;
  cmkd_error err;
  const size_t count = (size_t)s->k * (s->c / s->groups) * s->kh * s->kw;
  const double largest = largest_of(p->dw, count), largest_bias = largest_of(p->db, (size_t)s->k);
  float *dw = malloc(p->weights * 4), *db = malloc((size_t)cmkd_cuda_stride(s->k) * 4);
  for (int order = 0; order < runs; order++) {
    set_order(order % ORDERS, 13);
    void *x = gpu_put(p->x.bytes, bytes_of(&p->x)), *dy = gpu_put(p->dy.bytes, bytes_of(&p->dy)),
         *out = gpu_buffer(p->weights * 4), *scratch = gpu_buffer(GPU(cmkd_cuda_conv_scratch)(s));
    assert_ok(GPU(cmkd_cuda_conv_backward_weights)(s, x, dy, out, scratch, NULL, &err));
    same_bytes("dw", out, p->weights * 4, order);
    gpu_get(dw, out, p->weights * 4);
    gpu_clear();
  }
  for (int order = 0; order < runs; order++) {
    set_order(order % ORDERS, 17);
    void *dy = gpu_put(p->dy.bytes, bytes_of(&p->dy)), *out = gpu_buffer((size_t)cmkd_cuda_stride(s->k) * 4),
         *scratch = gpu_buffer(GPU(cmkd_cuda_conv_scratch)(s));
    assert_ok(GPU(cmkd_cuda_conv_backward_bias)(s, dy, out, scratch, NULL, &err));
    same_bytes("db", out, (size_t)cmkd_cuda_stride(s->k) * 4, order);
    gpu_get(db, out, (size_t)cmkd_cuda_stride(s->k) * 4);
    gpu_clear();
  }
  EACH_WEIGHT(s, o, i, y, x) {
    const size_t at = device_weight(s, o, i, y, x);
    close_to("dw", dw[at], p->dw[reference_weight(s, p->linear, o, i, y, x)], largest, 0, at);
    dw[at] = 0;
  }
  for (size_t i = 0; i < p->weights; i++) /* what is left is padding */
    if (!(dw[i] == 0)) fail_msg("%s: dw[%zu] is padding and %.9g", label, i, dw[i]);
  for (int i = 0; i < cmkd_cuda_stride(s->k); i++)
    if (i < s->k)
      close_to("db", db[i], p->db[i], largest_bias, 0, (size_t)i);
    else
      assert_true(db[i] == 0);
  free(dw);
  free(db);
}

/* p->y.bytes hold the forward's result: that is the input here. */
static void epilogue_is_the_reference(problem *p, unsigned variant) {
  const cmkd_cuda_conv_shape *s = &p->s;
  cmkd_error err;
  const int bias = variant & 1, residual = variant >> 1 & 1;
  const cmkd_act act = (cmkd_act)(variant / 4 % 3);
  packed got = packed_new(p->y.rows, s->k, s->y_stride, s->y_dtype, 0);
  for (size_t r = 0; r < got.rows; r++)
    for (int i = 0; i < s->k; i++) {
      const size_t at = r * (size_t)s->k + (size_t)i;
      got.value[at] = cmkd_ref_activate(act, decode(p->y.bytes, s->y_dtype, r * (size_t)s->y_stride + (size_t)i) +
                                                 (bias ? p->bias[i] : 0) + (residual ? p->residual.value[at] : 0));
    }
  const cmkd_cuda_epilogue epilogue = {bias ? gpu_put(p->bias_bytes, (size_t)cmkd_cuda_stride(s->k) * 4) : NULL,
                                       residual ? gpu_put(p->residual.bytes, bytes_of(&p->y)) : NULL, act};
  void *y = gpu_put(p->y.bytes, bytes_of(&p->y));
  assert_ok(GPU(cmkd_cuda_conv_epilogue)(s, &epilogue, y, NULL, &err));
  gpu_get(got.bytes, y, bytes_of(&got));
  gpu_clear();
  packed_check("epilogue", &got, got.value, 1);
  packed_free(&got);
}

/* runs: thread orders to compare */
static void all_passes_by(int tile, const spec *q, cmkd_dtype dtype, unsigned variant, int runs) {
  rng = cmkd_rng_start((uint64_t)(q->n * 31 + q->h * 37 + q->c * 41 + q->k * 43 + q->kh * 47 + q->groups),
                       CMKD_STREAM_TEST, variant);
  problem p = problem_new(q, dtype, tile);
  cmkd_op op;
  cmkd_ref_call call = reference_call(&p, &op);
  cmkd_ref_rules[op.kind].backward(&call);
  forward_is_the_reference(&p, variant, runs);
  epilogue_is_the_reference(&p, variant + 5);
  input_gradient_is_the_reference(&p, runs);
  weight_gradients_are_the_reference(&p, runs);
  problem_free(&p);
}

static void all_passes(const spec *q, cmkd_dtype dtype, unsigned variant, int runs) {
  all_passes_by(0, q, dtype, variant, runs);
}

static const cmkd_dtype dtypes[] = {CMKD_F32, CMKD_F16, CMKD_BF16};
#define EACH(list) for (size_t i = 0; i < sizeof list / sizeof *list; i++)

/* What CIFAR and ImageNet networks have, small. */
static void network_shapes(void **state) {
  (void)state;
  NEED_GPU();
  static const spec list[] = {
      {2, 8, 8, 3, 16, 3, 3, 1, 1, 1, 0, 0},  /* first layer, c padded */
      {1, 9, 7, 16, 24, 3, 3, 1, 1, 1, 0, 0}, /* odd sizes, one image */
      {2, 8, 8, 16, 32, 3, 3, 2, 1, 1, 0, 0}, /* a stage's first block */
      {2, 9, 9, 16, 32, 1, 1, 2, 0, 1, 0, 0}, /* its shortcut: most input pixels get no gradient */
      {3, 5, 5, 40, 20, 1, 1, 1, 0, 1, 0, 0},
      {1, 15, 13, 3, 8, 7, 7, 2, 3, 1, 0, 0},
      {1, 6, 6, 12, 10, 5, 5, 1, 2, 1, 0, 0},
      {1, 7, 7, 9, 17, 3, 2, 3, 1, 1, 0, 0}, /* stride beyond the window's half, uneven window */
      {1, 9, 9, 4, 4, 2, 2, 4, 0, 1, 0, 0},  /* stride beyond the window */
      {2, 4, 4, 70, 130, 3, 3, 1, 1, 1, 0, 0},
  };
  EACH(list) all_passes(&list[i], dtypes[i % 3], (unsigned)i, ORDERS);
}

static void grouped_shapes(void **state) {
  (void)state;
  NEED_GPU();
  static const spec list[] = {
      {2, 6, 6, 16, 32, 3, 3, 1, 1, 2, 0, 0}, /* aligned groups */
      {1, 7, 5, 12, 24, 3, 3, 2, 1, 4, 0, 0}, /* groups of 3 and 6: nothing aligned */
      {2, 5, 5, 20, 12, 1, 1, 1, 0, 2, 0, 0}, /* ShuffleNet: 10 and 6, padding after the last group */
      {1, 6, 6, 24, 40, 1, 1, 1, 0, 1, 0, 0},   {2, 4, 4, 48, 24, 1, 1, 2, 0, 3, 0, 0},
      {1, 11, 12, 2, 2, 12, 11, 1, 5, 2, 0, 0}, /* depthwise with a window beyond its own kernels */
  };
  EACH(list)
  for (int d = 0; d < 2; d++)
    all_passes(&list[i], dtypes[(i + (size_t)d) % 3], (unsigned)(i + 3), ORDERS);
}

static void depthwise_shapes(void **state) {
  (void)state;
  NEED_GPU();
  static const spec list[] = {
      {2, 8, 8, 16, 16, 3, 3, 1, 1, 16, 0, 0},    {2, 8, 7, 24, 24, 3, 3, 2, 1, 24, 0, 0},
      {1, 9, 9, 58, 58, 3, 3, 2, 1, 58, 0, 0}, /* padded, eight slices and none left over */
      {1, 6, 6, 72, 72, 5, 5, 1, 2, 72, 0, 0}, /* two tiles of channels, window rows of more than three taps */
      {2, 5, 5, 6, 18, 3, 3, 1, 1, 6, 0, 0},   /* multiplier 3 */
      {1, 8, 8, 5, 10, 3, 3, 2, 1, 5, 0, 0},      {2, 4, 4, 32, 32, 4, 4, 1, 0, 32, 0, 0}, /* the window is the image */
      {4, 16, 16, 64, 64, 3, 3, 1, 1, 64, 0, 0}, /* enough for runs of pixels, weights in parts */
      {17, 34, 14, 16, 16, 3, 3, 2, 1, 16, 0, 0}, {3, 33, 35, 64, 64, 3, 3, 2, 0, 64, 0, 0},
  };
  EACH(list) all_passes(&list[i], dtypes[i % 3], (unsigned)(i + 1), i < 7 ? ORDERS : 2);
}

static void linear_layers(void **state) {
  (void)state;
  NEED_GPU();
  static const spec list[] = {
      {5, 1, 1, 64, 10, 1, 1, 1, 0, 1, 1, 1},   {64, 1, 1, 64, 100, 1, 1, 1, 0, 1, 1, 1},
      {3, 2, 3, 20, 10, 2, 3, 1, 0, 1, 1, 1}, /* flattened in the framework's order, padded channels inside */
      {2, 4, 4, 12, 24, 4, 4, 1, 0, 1, 1, 0}, /* hidden layer */
      {70, 1, 1, 33, 7, 1, 1, 1, 0, 1, 1, 1},   {1, 1, 1, 8, 1, 1, 1, 1, 0, 1, 1, 1},
      {600, 1, 1, 16, 10, 1, 1, 1, 0, 1, 1, 1}, /* gradients in parts */
  };
  EACH(list)
  for (int d = 0; d < 3; d++)
    all_passes(&list[i], dtypes[d], (unsigned)(i * 3 + (size_t)d), i < 5 ? ORDERS : 2);
  static const spec odd = {2, 5, 5, 6, 13, 3, 3, 2, 1, 1, 0, 1},
                    grouped = {2, 5, 5, 6, 9, 3, 3, 1, 1, 3, 0, 1}; /* unaligned float y beside a window */
  for (int d = 0; d < 3; d++) {
    all_passes(&odd, dtypes[d], 7, 2);
    all_passes(&grouped, dtypes[d], 3, 2);
  }
}

static void every_tile(void **state) {
  (void)state;
  NEED_GPU();
  static const spec list[] = {
      {2, 9, 8, 20, 37, 3, 3, 2, 1, 1, 0, 0},  /* more than one block of the small tiles, less than one of the large */
      {1, 7, 6, 12, 24, 3, 3, 1, 1, 4, 0, 0},  /* groups, nothing aligned */
      {2, 9, 10, 40, 72, 1, 1, 1, 0, 1, 0, 0}, /* several blocks of each, gradients in parts */
      {9, 2, 2, 11, 130, 2, 2, 1, 0, 1, 1, 1}, /* logits */
  };
  EACH(list)
  for (int tile = 1; tile <= CMKD_CUDA_CONV_TILES; tile++)
    for (int half = 0; half < 2; half++)
      all_passes_by(tile, &list[i], dtypes[half ? 1 + (tile + (int)i) % 2 : 0], (unsigned)(i + (size_t)half), 2);
}

/* Sizes at which larger tiles are chosen, and sums are cut into parts. */
static void large_shapes(void **state) {
  (void)state;
  NEED_GPU();
  static const spec list[] = {
      {4, 64, 64, 8, 64, 1, 1, 1, 0, 1, 0, 0},
      {2, 64, 64, 60, 8, 1, 1, 1, 0, 1, 0, 0},
      {4, 32, 32, 16, 16, 3, 3, 1, 1, 1, 0, 0},
      {4, 16, 16, 32, 32, 3, 3, 1, 1, 1, 0, 0},
  };
  EACH(list) all_passes(&list[i], dtypes[i % 3], (unsigned)(i + 2), 1);
}

static void random_shapes(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_rng r = cmkd_rng_start(20, CMKD_STREAM_TEST, 9);
  for (unsigned i = 0; i < 60; i++) {
    spec q = {.n = 1 + (int)cmkd_rng_below(&r, 3), .stride = 1 + (int)cmkd_rng_below(&r, 3), .groups = 1};
    q.kh = 1 + (int)cmkd_rng_below(&r, 5);
    q.kw = 1 + (int)cmkd_rng_below(&r, 5);
    q.pad = (int)cmkd_rng_below(&r, 3);
    q.h = q.kh + (int)cmkd_rng_below(&r, 7);
    q.w = q.kw + (int)cmkd_rng_below(&r, 7);
    q.groups = i % 3 == 0 ? 1 + (int)cmkd_rng_below(&r, 5) : 1;
    q.c = q.groups * (1 + (int)cmkd_rng_below(&r, i % 3 == 0 ? 12 : 30));
    q.k = q.groups * (1 + (int)cmkd_rng_below(&r, i % 3 == 0 ? 12 : 30));
    if (i % 6 == 1) {
      q.groups = q.c;
      q.k = q.c * (1 + (int)cmkd_rng_below(&r, 2));
    }
    q.logits = i % 7 == 2;
    all_passes(&q, dtypes[i % 3], i, 2);
  }
}

static void mistakes_are_refused(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_error err;
  const cmkd_cuda_conv_shape good = {2, 4, 4, 8, 4, 4, 8, 3, 3, 1, 1, 1, 8, CMKD_F32, CMKD_F32, 0};
  cmkd_cuda_conv_shape bad[7] = {good, good, good, good, good, good, good};
  bad[0].oh = 3;
  bad[1].groups = 3;
  bad[2].y_stride = 16;
  bad[3].y_dtype = CMKD_F16;
  bad[4].n = 0;
  bad[5].dtype = CMKD_U8;
  bad[6].tile = 6;
  void *a = gpu_buffer(4096 * 4), *b = gpu_buffer(4096 * 4), *c = gpu_buffer(4096 * 4);
  for (int i = 0; i < 7; i++) {
    assert_int_equal(GPU(cmkd_cuda_conv_forward)(&bad[i], a, b, NULL, c, NULL, NULL, &err), CMKD_ERR_VALUE);
    assert_non_null(strstr(err.message, "convolution"));
    assert_int_equal(GPU(cmkd_cuda_conv_scratch)(&bad[i]), 0);
  }
  assert_int_equal(GPU(cmkd_cuda_conv_forward)(&good, NULL, b, NULL, c, NULL, NULL, &err), CMKD_ERR_VALUE);
  cmkd_cuda_conv_shape split = good;
  split.n = 100;
  assert_true(GPU(cmkd_cuda_conv_scratch)(&split) > 0);
  assert_int_equal(GPU(cmkd_cuda_conv_backward_weights)(&split, a, b, c, NULL, NULL, &err), CMKD_ERR_VALUE);
  assert_int_equal(GPU(cmkd_cuda_conv_backward_bias)(&split, a, b, NULL, NULL, &err), CMKD_ERR_VALUE);
  gpu_clear();
}

int main(void) {
  struct CMUnitTest tests[] = {
      cmocka_unit_test(network_shapes), cmocka_unit_test(grouped_shapes),       cmocka_unit_test(depthwise_shapes),
      cmocka_unit_test(linear_layers),  cmocka_unit_test(every_tile),           cmocka_unit_test(large_shapes),
      cmocka_unit_test(random_shapes),  cmocka_unit_test(mistakes_are_refused),
  };
  return RUN_TESTS(tests);
}
