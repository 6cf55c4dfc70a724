/* A network's numbers on the host. See params.h. Not here: parsing containers (formats/), or running anything. */
#include "nets/params.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "nets/binding.h"
#include "nets/fits.h"

/* Floats from one array's start to the next's: each starts on 64 bytes. */
static size_t padded(const cmkd_param *param) { return ((size_t)param->count + 15) & ~(size_t)15; }

cmkd_status cmkd_params_create(const cmkd_graph *graph, cmkd_params *out, cmkd_error *err) {
  size_t total = 0;
  *out = (cmkd_params){0};
  for (int i = 0; i < graph->params; i++)
    total += padded(&graph->param[i]);
  out->value = calloc((size_t)(unsigned)graph->params, sizeof *out->value);
  out->storage = total > SIZE_MAX / sizeof(float) ? NULL : aligned_alloc(64, total * sizeof(float));
  if (!out->value || !out->storage) {
    cmkd_params_free(out);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for the %zu numbers of `%s`", total, graph->arch);
  }
  memset(out->storage, 0, total * sizeof(float));
  float *next = out->storage;
  for (int i = 0; i < graph->params; i++) {
    out->value[i] = next;
    next += padded(&graph->param[i]);
  }
  out->count = graph->params;
  return CMKD_OK;
}

void cmkd_params_free(cmkd_params *params) {
  free(params->value);
  free(params->storage);
  *params = (cmkd_params){0};
}

/* Standard deviation of normal numbers, bound of uniform ones; 0: a constant. */
static double init_scale(const cmkd_param *p) {
  switch (p->init) {
  case CMKD_INIT_KAIMING_FAN_OUT:
    return sqrt(2.0 / (double)(p->shape[0] * (p->dims == 4 ? p->shape[2] * p->shape[3] : 1)));
  case CMKD_INIT_NORMAL_001: return 0.01;
  case CMKD_INIT_UNIFORM_FAN_IN: return 1.0 / sqrt((double)p->fan_in);
  case CMKD_INIT_ZERO:
  case CMKD_INIT_ONE: break;
  }
  return 0;
}

void cmkd_params_init(const cmkd_graph *graph, uint64_t train_seed, cmkd_params *params) {
  for (int i = 0; i < graph->params; i++) {
    const cmkd_param *p = &graph->param[i];
    float *value = params->value[i];
    cmkd_rng rng = cmkd_rng_start(train_seed, CMKD_STREAM_INIT, (uint64_t)i);
    double scale = init_scale(p);
    for (int64_t j = 0; j < p->count; j++) {
      if (p->init == CMKD_INIT_UNIFORM_FAN_IN)
        value[j] = (float)((2 * cmkd_rng_uniform(&rng) - 1) * scale);
      else if (scale > 0)
        value[j] = (float)(cmkd_rng_normal(&rng) * scale);
      else
        value[j] = p->init == CMKD_INIT_ONE;
    }
  }
}

/* A list in a message: the first few names, then how many there are. */
typedef struct list {
  char text[240];
  int count; /* of all, named or not */
} list;
static void list_add(list *l, const char *format, ...) CMKD_PRINTF(2, 3);
static void list_add(list *l, const char *format, ...) {
  if (l->count++ >= 3) return;
  size_t used = strlen(l->text);
  va_list args;
  if (l->count > 1) used += (size_t)snprintf(l->text + used, sizeof l->text - used, ", ");
  if (used >= sizeof l->text) return;
  va_start(args, format);
  vsnprintf(l->text + used, sizeof l->text - used, format, args);
  va_end(args);
}

static void shape_text(int dims, const int64_t *shape, char text[64]) {
  size_t used = (size_t)snprintf(text, 64, "(");
  for (int d = 0; d < dims && used < 60; d++)
    used += (size_t)snprintf(text + used, 64 - used, "%s%lld", d ? ", " : "", (long long)shape[d]);
  if (used < 63) snprintf(text + used, 64 - used, ")");
}

static void add_section(char *text, size_t capacity, const char *label, const list *l) {
  size_t used = strlen(text);
  if (l->count)
    snprintf(text + used, capacity - used, "%s%d %s (%s%s)", used ? "; " : "", l->count, label, l->text,
             l->count > 3 ? ", ..." : "");
}

static cmkd_status report_mismatch(const cmkd_graph *graph, const cmkd_weights *weights, const list *missing,
                                   const list *unexpected, const list *wrong, cmkd_error *err) {
  char text[880] = "", hint[160] = "";
  const char *fits[CMKD_NET_FITS + 1];
  add_section(text, sizeof text, "missing", missing);
  add_section(text, sizeof text, "unexpected", unexpected);
  add_section(text, sizeof text, "of another shape", wrong);
  if (cmkd_net_fits(weights, fits)) {
    if (strcmp(fits[0], graph->arch))
      snprintf(hint, sizeof hint, ". They are those of `%s`: use --arch %s", fits[0], fits[0]);
    else
      snprintf(hint, sizeof hint, ". They are those of `%s` for other images or classes", fits[0]);
  }
  return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: tensors do not fit `%s` with %d classes: %s%s", weights->path,
                   graph->arch, graph->classes, text, hint);
}

static cmkd_status copy_values(const cmkd_param *p, const cmkd_tensor *t, const char *path, float *value,
                               cmkd_error *err) {
  cmkd_tensor_to_float(t, value);
  for (int64_t j = 0; j < p->count; j++) {
    if (!isfinite(value[j]))
      return cmkd_fail(err, CMKD_ERR_VALUE, "%s: `%s` holds %s at position %lld; the weights are damaged", path,
                       t->name, isnan(value[j]) ? "NaN" : "Inf", (long long)j);
    if (p->kind == CMKD_PARAM_VAR && value[j] < 0)
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "%s: `%s` holds a negative variance at position %lld; the weights are damaged", path, t->name,
                       (long long)j);
  }
  return CMKD_OK;
}

cmkd_status cmkd_params_load(const cmkd_graph *graph, const cmkd_weights *weights, cmkd_params *params,
                             cmkd_error *err) {
  list missing = {.count = 0}, unexpected = {.count = 0}, wrong = {.count = 0};
  cmkd_net_binding bound;
  CMKD_TRY(cmkd_net_bind(graph, weights, &bound, err));
  for (int i = 0; i < graph->params; i++) {
    const cmkd_param *p = &graph->param[i];
    const cmkd_tensor *t = bound.tensor[i];
    if (!t)
      list_add(&missing, "%s", p->name);
    else if (!cmkd_net_same_shape(p, t)) {
      char has[64], wants[64];
      shape_text(t->dims, t->shape, has);
      shape_text(p->dims, p->shape, wants);
      list_add(&wrong, "%s is %s, not %s", p->name, has, wants);
    }
  }
  for (int i = 0; i < bound.unexpected_count; i++)
    list_add(&unexpected, "%.80s", bound.unexpected[i]->name);
  cmkd_status status = CMKD_OK;
  if (missing.count || unexpected.count || wrong.count)
    status = report_mismatch(graph, weights, &missing, &unexpected, &wrong, err);
  for (int i = 0; i < graph->params && status == CMKD_OK; i++)
    status = copy_values(&graph->param[i], bound.tensor[i], weights->path, params->value[i], err);
  cmkd_net_unbind(&bound);
  return status;
}

cmkd_status cmkd_params_save(const cmkd_graph *graph, const cmkd_params *params, int64_t batches, const char *path,
                             const char *const *meta_keys, const char *const *meta_values, int meta_count,
                             cmkd_error *err) {
  int count = 0;
  cmkd_tensor *tensors = calloc((size_t)graph->params * 2, sizeof *tensors);
  char(*tracked)[128] = calloc((size_t)graph->params, sizeof *tracked);
  cmkd_status status = CMKD_OK;
  if (!tensors || !tracked) status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  for (int i = 0; i < graph->params && status == CMKD_OK; i++) {
    const cmkd_param *p = &graph->param[i];
    cmkd_tensor *t = &tensors[count++];
    *t = (cmkd_tensor){
        .name = (char *)p->name, .dtype = CMKD_F32, .dims = p->dims, .count = p->count, .data = params->value[i]};
    memcpy(t->shape, p->shape, sizeof p->shape);
    if (p->kind != CMKD_PARAM_VAR) continue;
    int stem = (int)(strrchr(p->name, '.') - p->name);
    snprintf(tracked[i], sizeof *tracked, "%.*s.num_batches_tracked", stem, p->name);
    tensors[count++] = (cmkd_tensor){.name = tracked[i], .dtype = CMKD_I64, .dims = 0, .count = 1, .data = &batches};
  }
  if (status == CMKD_OK) status = cmkd_weights_write(path, tensors, count, meta_keys, meta_values, meta_count, err);
  free(tensors);
  free(tracked);
  return status;
}
