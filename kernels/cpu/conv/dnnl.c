/* Convolutions by oneDNN. Primitives are made once, for one image (weight gradients also for a few), with one thread,
 * and run from inside our own threads: each has its own memory objects, scratchpad and stream. The weight layout is the
 * library's choice and may differ between passes; additions and activations are ours. Will not do: layers that only
 * oneDNN's reference code covers, or vectors (linear layers): those stay with the direct kernels. */
#include "kernels/cpu/conv/dnnl.h"

#ifndef HAVE_ONEDNN
/* Nothing is ever created, so the functions that take one are never called. */
int cmkd_conv_dnnl_available(void) { return 0; }
const char *cmkd_conv_dnnl_version(char buffer[32]) {
  buffer[0] = 0;
  return buffer;
}
cmkd_status cmkd_conv_dnnl_create(const cmkd_conv_geometry *geometry, const cmkd_conv_options *options,
                                  cmkd_conv_dnnl **out, cmkd_conv_packed_sizes *sizes, cmkd_error *err) {
  (void)geometry, (void)options, (void)sizes, (void)err;
  *out = NULL;
  return CMKD_OK;
}
void cmkd_conv_dnnl_free(cmkd_conv_dnnl *dnnl) { (void)dnnl; }
void cmkd_conv_dnnl_pack(const cmkd_conv_dnnl *dnnl, const float *plain, float *forward, float *backward) {
  (void)dnnl, (void)plain, (void)forward, (void)backward;
}
void cmkd_conv_dnnl_unpack_grad(const cmkd_conv_dnnl *dnnl, const float *const *packed, int workers, float *plain) {
  (void)dnnl, (void)packed, (void)workers, (void)plain;
}
void cmkd_conv_dnnl_forward(const cmkd_conv_dnnl *dnnl, int thread, int n, const float *src, const float *weights,
                            const cmkd_epilogue *epilogue, float *dst) {
  (void)dnnl, (void)thread, (void)n, (void)src, (void)weights, (void)epilogue, (void)dst;
}
void cmkd_conv_dnnl_backward_data(const cmkd_conv_dnnl *dnnl, int thread, int n, const float *ddst,
                                  const float *weights, int accumulate, float *dsrc) {
  (void)dnnl, (void)thread, (void)n, (void)ddst, (void)weights, (void)accumulate, (void)dsrc;
}
void cmkd_conv_dnnl_backward_weights(const cmkd_conv_dnnl *dnnl, int thread, int n, const float *src, const float *ddst,
                                     float *grad) {
  (void)dnnl, (void)thread, (void)n, (void)src, (void)ddst, (void)grad;
}
#else
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cpu/conv/dnnl_shim.h"

/* WEIGHTS_MANY: weight gradients of MANY images at once. */
enum { FORWARD, DATA, WEIGHTS, WEIGHTS_MANY, PASSES };
enum { MANY = 4 };
enum { SRC, WEI, DST, BIAS, PAD, MEMORIES };

typedef struct dnnl_pass {
  dnnl_primitive_desc_t pd;
  dnnl_primitive_t primitive;
  size_t weights, pad; /* bytes of weights (or their gradient), of scratchpad */
} dnnl_pass;

/* What one thread needs to run the passes. */
typedef struct dnnl_worker {
  dnnl_stream_t stream;
  dnnl_memory_t memory[PASSES][MEMORIES];
  float *buffer; /* scratchpad (pad_floats), then a result that is to be added */
} dnnl_worker;

struct cmkd_conv_dnnl {
  cmkd_conv_geometry g;
  const cmkd_cpu_kernels *kernels;
  size_t in_floats, out_floats; /* of an image */
  size_t grad_floats;           /* of the packed weight gradient */
  dnnl_engine_t engine;
  dnnl_primitive_attr_t attr;
  dnnl_pass pass[PASSES];
  dnnl_worker *worker; /* (workers), one a thread */
  int workers;
  size_t pad_floats;
  float *zeros;                /* (oc), the bias where none is given */
  dnnl_primitive_t reorder[3]; /* plain -> forward, plain -> backward, gradient -> plain */
  dnnl_memory_t plain[3], packed[3];
};

int cmkd_conv_dnnl_available(void) { return 1; }
const char *cmkd_conv_dnnl_version(char buffer[32]) {
  const dnnl_version_t *v = dnnl_version();
  snprintf(buffer, 32, "%d.%d.%d", v->major, v->minor, v->patch);
  return buffer;
}

void cmkd_conv_dnnl_free(cmkd_conv_dnnl *d) {
  if (!d) return;
  for (int p = 0; p < PASSES; p++) {
    for (int t = 0; d->worker && t < d->workers; t++)
      for (int m = 0; m < MEMORIES; m++)
        if (d->worker[t].memory[p][m]) dnnl_memory_destroy(d->worker[t].memory[p][m]);
    if (d->pass[p].primitive) dnnl_primitive_destroy(d->pass[p].primitive);
    if (d->pass[p].pd) dnnl_primitive_desc_destroy(d->pass[p].pd);
  }
  for (int i = 0; i < 3; i++) {
    if (d->reorder[i]) dnnl_primitive_destroy(d->reorder[i]);
    if (d->plain[i]) dnnl_memory_destroy(d->plain[i]);
    if (d->packed[i]) dnnl_memory_destroy(d->packed[i]);
  }
  for (int t = 0; d->worker && t < d->workers; t++) {
    if (d->worker[t].stream) dnnl_stream_destroy(d->worker[t].stream);
    free(d->worker[t].buffer);
  }
  if (d->attr) dnnl_primitive_attr_destroy(d->attr);
  if (d->engine) dnnl_engine_destroy(d->engine);
  free(d->worker);
  free(d->zeros);
  free(d);
}

static int describe(const cmkd_conv_geometry *g, int n, shim_conv *c) {
  const int gi = g->ic / g->groups, go = g->oc / g->groups, grouped = g->groups > 1;
  const dnnl_dims_t src = {n, g->ic, g->ih, g->iw}, dst = {n, g->oc, g->oh, g->ow}, bias = {g->oc},
                    plain = {g->oc, gi, g->kh, g->kw}, groups = {g->groups, go, gi, g->kh, g->kw};
  memset(c, 0, sizeof *c);
  c->strides[0] = c->strides[1] = g->stride;
  c->padding[0] = c->padding[1] = g->pad;
  c->padding_end[0] =
      (g->oh - 1) * g->stride + g->kh - g->ih - g->pad; /* may be negative where the last rows are not read */
  c->padding_end[1] = (g->ow - 1) * g->stride + g->kw - g->iw - g->pad;
  return shim_md_tag(&c->src, 4, src, dnnl_nhwc) && shim_md_tag(&c->dst, 4, dst, dnnl_nhwc) &&
         shim_md_tag(&c->bias, 1, bias, dnnl_a) &&
         shim_md_tag(&c->weights, grouped ? 5 : 4, grouped ? groups : plain, dnnl_format_tag_any);
}

static void describe_free(shim_conv *c) {
  shim_md_free(&c->src);
  shim_md_free(&c->dst);
  shim_md_free(&c->bias);
  shim_md_free(&c->weights);
}

static int make_pass(cmkd_conv_dnnl *d, int which, const shim_conv *c) {
  dnnl_pass *p = &d->pass[which];
  static const shim_pass kinds[PASSES] = {SHIM_FORWARD, SHIM_BACKWARD_DATA, SHIM_BACKWARD_WEIGHTS,
                                          SHIM_BACKWARD_WEIGHTS};
  if (!shim_conv_create(&p->pd, kinds[which], c, d->engine, d->attr, which == FORWARD ? NULL : d->pass[FORWARD].pd))
    return 0;
  if (strstr(shim_implementation(p->pd), "ref")) return 0;
  p->weights = shim_bytes(shim_query(p->pd, which >= WEIGHTS ? dnnl_query_diff_weights_md : dnnl_query_weights_md));
  p->pad = shim_bytes(shim_query(p->pd, dnnl_query_scratchpad_md));
  return dnnl_primitive_create(&p->primitive, p->pd) == dnnl_success;
}

static int make_worker(cmkd_conv_dnnl *d, dnnl_worker *worker, const shim_conv *one, const shim_conv *many,
                       size_t extra, int passes) {
  size_t bytes = ((d->pad_floats + extra) * sizeof(float) + 127) / 64 * 64;
  if (dnnl_stream_create(&worker->stream, d->engine, dnnl_stream_default_flags) != dnnl_success ||
      !(worker->buffer = aligned_alloc(64, bytes)))
    return 0;
  for (int p = 0; p < passes; p++) {
    const shim_conv *c = p == WEIGHTS_MANY ? many : one;
    const shim_md_in md[MEMORIES] = {
        [SRC] = SHIM_IN(c->src),
        [WEI] = shim_query(d->pass[p].pd, p >= WEIGHTS ? dnnl_query_diff_weights_md : dnnl_query_weights_md),
        [DST] = SHIM_IN(c->dst),
        [BIAS] = SHIM_IN(c->bias),
        [PAD] = shim_query(d->pass[p].pd, dnnl_query_scratchpad_md)};
    void *const at[MEMORIES] = {[SRC] = DNNL_MEMORY_NONE,
                                [WEI] = DNNL_MEMORY_NONE,
                                [DST] = DNNL_MEMORY_NONE,
                                [BIAS] = d->zeros,
                                [PAD] = worker->buffer};
    for (int m = 0; m < MEMORIES; m++)
      if (dnnl_memory_create(&worker->memory[p][m], md[m], d->engine, at[m]) != dnnl_success) return 0;
  }
  return 1;
}

/* Between state dicts' (oc, ic / groups, kh, kw) and the layout of a pass: 0 forward, 1 backward data, 2 gradient (the
 * other way). */
static int make_reorder(cmkd_conv_dnnl *d, const cmkd_conv_geometry *g, int which) {
  const dnnl_dims_t plain = {g->oc, g->ic / g->groups, g->kh, g->kw},
                    groups = {g->groups, g->oc / g->groups, g->ic / g->groups, g->kh, g->kw};
  const shim_md_in packed =
      shim_query(d->pass[which].pd, which == WEIGHTS ? dnnl_query_diff_weights_md : dnnl_query_weights_md);
  dnnl_primitive_desc_t pd = NULL;
  shim_md md;
  if (!shim_md_tag(&md, g->groups > 1 ? 5 : 4, g->groups > 1 ? groups : plain, g->groups > 1 ? dnnl_abcde : dnnl_abcd))
    return 0;
  int good =
      dnnl_memory_create(&d->plain[which], SHIM_IN(md), d->engine, DNNL_MEMORY_NONE) == dnnl_success &&
      dnnl_memory_create(&d->packed[which], packed, d->engine, DNNL_MEMORY_NONE) == dnnl_success &&
      dnnl_reorder_primitive_desc_create(&pd, which == WEIGHTS ? packed : SHIM_IN(md), d->engine,
                                         which == WEIGHTS ? SHIM_IN(md) : packed, d->engine, NULL) == dnnl_success &&
      dnnl_primitive_create(&d->reorder[which], pd) == dnnl_success;
  if (pd) dnnl_primitive_desc_destroy(pd);
  shim_md_free(&md);
  return good;
}

static int create(const cmkd_conv_options *options, cmkd_conv_dnnl *d) {
  const cmkd_conv_geometry *g = &d->g;
  shim_conv one, many;
  const int passes = options->train ? PASSES : 1;
  int good = describe(g, 1, &one) & describe(g, MANY, &many);
  d->zeros = calloc((size_t)g->oc, sizeof(float));
  d->worker = calloc((size_t)options->threads, sizeof *d->worker);
  d->workers = options->threads;
  good = good && d->zeros && d->worker && dnnl_engine_create(&d->engine, dnnl_cpu, 0) == dnnl_success &&
         dnnl_primitive_attr_create(&d->attr) == dnnl_success &&
         dnnl_primitive_attr_set_scratchpad_mode(d->attr, dnnl_scratchpad_mode_user) == dnnl_success;
  for (int p = 0; p < passes && good; p++) {
    good = make_pass(d, p, p == WEIGHTS_MANY ? &many : &one) &&
           (p != WEIGHTS_MANY || dnnl_memory_desc_equal(shim_query(d->pass[p].pd, dnnl_query_diff_weights_md),
                                                        shim_query(d->pass[WEIGHTS].pd, dnnl_query_diff_weights_md)));
    size_t pad = d->pass[p].pad / sizeof(float) + 16;
    d->pad_floats = pad > d->pad_floats ? pad / 16 * 16 + 16 : d->pad_floats;
  }
  d->grad_floats = options->train ? d->pass[WEIGHTS].weights / sizeof(float) : 0;
  size_t result = 0; /* an image's gradient or the weights', to be added to what is there */
  if (options->train) result = d->in_floats > d->grad_floats ? d->in_floats : d->grad_floats;
  for (int t = 0; t < d->workers && good; t++)
    good = make_worker(d, &d->worker[t], &one, &many, result, passes);
  for (int i = 0; i < (options->train ? 3 : 1) && good; i++)
    good = make_reorder(d, g, i);
  describe_free(&one);
  describe_free(&many);
  return good;
}

cmkd_status cmkd_conv_dnnl_create(const cmkd_conv_geometry *geometry, const cmkd_conv_options *options,
                                  cmkd_conv_dnnl **out, cmkd_conv_packed_sizes *sizes, cmkd_error *err) {
  *out = NULL;
  if (geometry->ih * geometry->iw == 1 || geometry->plane > 1) return CMKD_OK;
  cmkd_conv_dnnl *d = calloc(1, sizeof *d);
  if (!d) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory planning a convolution");
  d->g = *geometry;
  d->kernels = options->kernels;
  d->in_floats = cmkd_conv_in_floats(geometry);
  d->out_floats = cmkd_conv_out_floats(geometry);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1); /* primitives remember how many threads they were made for */
  const int good = create(options, d);
  omp_set_num_threads(threads);
  if (!good) {
    cmkd_conv_dnnl_free(d);
    return CMKD_OK;
  }
  sizes->forward = d->pass[FORWARD].weights / sizeof(float);
  sizes->backward = options->train ? d->pass[DATA].weights / sizeof(float) : 0;
  sizes->grad = d->grad_floats;
  *out = d;
  return CMKD_OK;
}

/* ---- runs ---- */

static void point(dnnl_memory_t memory, const void *at) {
  void *now = NULL;
  if (dnnl_memory_get_data_handle(memory, &now) != dnnl_success || now != at)
    dnnl_memory_set_data_handle(memory, (void *)at);
}

/* Operands of one primitive. src, dst: activations or their gradients; one of src, weights, dst is the result. */
typedef struct dnnl_operands {
  const float *src, *weights, *dst;
  const float *bias; /* FORWARD only */
  float *result;
  size_t floats; /* of the result */
} dnnl_operands;

/* One primitive on one thread. A failure poisons the result, so that the step is refused. */
static void execute(const cmkd_conv_dnnl *d, int which, int thread, const dnnl_operands *o) {
  const dnnl_worker *worker = &d->worker[thread];
  const dnnl_memory_t *m = worker->memory[which];
  point(m[SRC], o->src);
  point(m[WEI], o->weights);
  point(m[DST], o->dst);
  if (which == FORWARD) point(m[BIAS], o->bias);
  const dnnl_exec_arg_t args[] = {{which == DATA ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, m[SRC]},
                                  {which >= WEIGHTS ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, m[WEI]},
                                  {which == FORWARD ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, m[DST]},
                                  {DNNL_ARG_SCRATCHPAD, m[PAD]},
                                  {DNNL_ARG_BIAS, m[BIAS]}};
  if (dnnl_primitive_execute(d->pass[which].primitive, worker->stream, which == FORWARD ? 5 : 4, args) ==
          dnnl_success &&
      dnnl_stream_wait(worker->stream) == dnnl_success)
    return;
  for (size_t i = 0; i < o->floats; i++)
    o->result[i] = NAN;
}

void cmkd_conv_dnnl_forward(const cmkd_conv_dnnl *d, int thread, int n, const float *src, const float *weights,
                            const cmkd_epilogue *epilogue, float *dst) {
  const float *add = epilogue->add;
  for (int i = 0; i < n; i++, src += d->in_floats, dst += d->out_floats) {
    execute(d, FORWARD, thread,
            &(dnnl_operands){.src = src,
                             .weights = weights,
                             .bias = epilogue->bias ? epilogue->bias : d->zeros,
                             .dst = dst,
                             .result = dst,
                             .floats = d->out_floats});
    if (add || epilogue->act != CMKD_ACT_NONE)
      d->kernels->add_act(dst, add, epilogue->act, dst, (int64_t)d->out_floats);
    if (add) add += d->out_floats;
  }
}

void cmkd_conv_dnnl_backward_data(const cmkd_conv_dnnl *d, int thread, int n, const float *ddst, const float *weights,
                                  int accumulate, float *dsrc) {
  float *buffer = d->worker[thread].buffer + d->pad_floats;
  for (int i = 0; i < n; i++, ddst += d->out_floats, dsrc += d->in_floats) {
    float *to = accumulate ? buffer : dsrc;
    execute(d, DATA, thread,
            &(dnnl_operands){.src = to, .weights = weights, .dst = ddst, .result = to, .floats = d->in_floats});
    if (accumulate) d->kernels->add(dsrc, buffer, (int64_t)d->in_floats);
  }
}

void cmkd_conv_dnnl_backward_weights(const cmkd_conv_dnnl *d, int thread, int n, const float *src, const float *ddst,
                                     float *grad) {
  float *buffer = d->worker[thread].buffer + d->pad_floats;
  for (int i = 0, images; i < n; i += images) {
    images = n - i >= MANY ? MANY : 1;
    execute(d, images == MANY ? WEIGHTS_MANY : WEIGHTS, thread,
            &(dnnl_operands){.src = src + (size_t)i * d->in_floats,
                             .weights = buffer,
                             .dst = ddst + (size_t)i * d->out_floats,
                             .result = buffer,
                             .floats = d->grad_floats});
    d->kernels->add(grad, buffer, (int64_t)d->grad_floats);
  }
}

/* ---- weights ---- */

static int reorder(const cmkd_conv_dnnl *d, int which, const float *plain, const float *packed) {
  dnnl_stream_t stream = NULL;
  const dnnl_exec_arg_t args[] = {{which == WEIGHTS ? DNNL_ARG_TO : DNNL_ARG_FROM, d->plain[which]},
                                  {which == WEIGHTS ? DNNL_ARG_FROM : DNNL_ARG_TO, d->packed[which]}};
  point(d->plain[which], plain);
  point(d->packed[which], packed);
  int good = dnnl_stream_create(&stream, d->engine, dnnl_stream_default_flags) == dnnl_success &&
             dnnl_primitive_execute(d->reorder[which], stream, 2, args) == dnnl_success &&
             dnnl_stream_wait(stream) == dnnl_success;
  if (stream) dnnl_stream_destroy(stream);
  return good;
}

void cmkd_conv_dnnl_pack(const cmkd_conv_dnnl *d, const float *plain, float *forward, float *backward) {
  if (forward && !reorder(d, FORWARD, plain, forward)) forward[0] = NAN;
  if (backward && !reorder(d, DATA, plain, backward)) backward[0] = NAN;
}

void cmkd_conv_dnnl_unpack_grad(const cmkd_conv_dnnl *d, const float *const *packed, int workers, float *plain) {
  float *sum = d->worker[0].buffer + d->pad_floats; /* between steps no pass uses it */
  memcpy(sum, packed[0], d->grad_floats * sizeof *sum);
  for (int t = 1; t < workers; t++)
    d->kernels->add(sum, packed[t], (int64_t)d->grad_floats);
  if (!reorder(d, WEIGHTS, plain, sum)) plain[0] = NAN;
}
#endif
