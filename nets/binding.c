/* Weight files bound to architectures by tensor name; the architecture, classes and normalisation that a file stands
 * for. Names differ between toolkits in a few known ways; both sides are brought to one spelling before they are
 * compared. */
#include "nets/binding.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TENSORS 100000

/* One spelling of a tensor name: no wrapper prefixes, `downsample` for `shortcut`, `fc` for a classifier called
 * `linear`. */
static void canonical(const char *name, char out[160]) {
  static const char *const wrappers[] = {"module.", "_orig_mod."};
  for (int again = 1; again;) {
    again = 0;
    for (int i = 0; i < 2; i++)
      if (!strncmp(name, wrappers[i], strlen(wrappers[i]))) name += strlen(wrappers[i]), again = 1;
  }
  const char *shortcut = strstr(name, ".shortcut.");
  if (!strncmp(name, "linear.", 7))
    snprintf(out, 160, "fc.%s", name + 7);
  else if (shortcut)
    snprintf(out, 160, "%.*s.downsample.%s", (int)(shortcut - name), name, shortcut + 10);
  else
    snprintf(out, 160, "%s", name);
}

typedef struct named {
  char name[160];
  const cmkd_tensor *tensor;
  int used;
} named;
static int by_name(const void *a, const void *b) { return strcmp(((const named *)a)->name, ((const named *)b)->name); }
static int is_counter(const char *name) {
  const char *dot = strrchr(name, '.');
  return !strcmp(dot ? dot + 1 : name, "num_batches_tracked");
}

cmkd_status cmkd_net_bind(const cmkd_graph *graph, const cmkd_weights *weights, net_binding *out, cmkd_error *err) {
  *out = (net_binding){0};
  if (weights->count > MAX_TENSORS)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: %d tensors; no network here has that many", weights->path,
                     weights->count);
  named *file = calloc((size_t)weights->count + 1, sizeof *file);
  out->tensor = calloc((size_t)graph->params, sizeof *out->tensor);
  out->unexpected = calloc((size_t)weights->count + 1, sizeof *out->unexpected);
  if (!file || !out->tensor || !out->unexpected) {
    free(file);
    cmkd_net_unbind(out);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", weights->path);
  }
  int count = 0;
  for (int i = 0; i < weights->count; i++) {
    if (is_counter(weights->tensors[i].name)) continue;
    canonical(weights->tensors[i].name, file[count].name);
    file[count++].tensor = &weights->tensors[i];
  }
  qsort(file, (size_t)count, sizeof *file, by_name);
  for (int i = 0; i < graph->params; i++) {
    named wanted;
    canonical(graph->param[i].name, wanted.name);
    named *found = bsearch(&wanted, file, (size_t)count, sizeof *file, by_name);
    if (found) out->tensor[i] = found->tensor, found->used = 1;
  }
  for (int i = 0; i < count; i++) /* twins after renaming are unexpected too: only one of them was used */
    if (!file[i].used) out->unexpected[out->unexpected_count++] = file[i].tensor;
  free(file);
  return CMKD_OK;
}

void cmkd_net_unbind(net_binding *bound) {
  free(bound->tensor);
  free(bound->unexpected);
  *bound = (net_binding){0};
}

/* Classes and input channels as the file's classifier and first convolution have them, taking the file for an `arch`. 0
 * when it has none. */
static int read_shape(const cmkd_graph *graph, const cmkd_weights *weights, cmkd_net_shape *shape) {
  net_binding bound;
  if (cmkd_net_bind(graph, weights, &bound, NULL) != CMKD_OK) return 0;
  const cmkd_tensor *first = NULL, *last = NULL;
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    if (op->kind == CMKD_OP_CONV && op->in[0] == 0) first = bound.tensor[op->param[0]];
    if (op->out == cmkd_graph_logits(graph)) last = bound.tensor[op->param[0]];
  }
  int good = first && last && first->dims == 4 && last->dims == 2 && last->shape[0] >= 2 && last->shape[0] <= 131072 &&
             (first->shape[1] == 1 || first->shape[1] == 3);
  if (good) shape->channels = (int)first->shape[1], shape->classes = (int)last->shape[0];
  cmkd_net_unbind(&bound);
  return good;
}

static int fits_exactly(const cmkd_graph *graph, const cmkd_weights *weights) {
  net_binding bound;
  if (cmkd_net_bind(graph, weights, &bound, NULL) != CMKD_OK) return 0;
  int good = bound.unexpected_count == 0;
  for (int i = 0; i < graph->params && good; i++) {
    const cmkd_tensor *t = bound.tensor[i];
    good = t && t->dims == graph->param[i].dims &&
           !memcmp(t->shape, graph->param[i].shape, (size_t)t->dims * sizeof(int64_t));
  }
  cmkd_net_unbind(&bound);
  return good;
}

int cmkd_net_fits(const cmkd_weights *weights, const char *fits[CMKD_NET_FITS + 1]) {
  int count = 0;
  for (const char *const *name = cmkd_net_names(); *name && count < CMKD_NET_FITS; name++) {
    cmkd_net_shape shape = {cmkd_net_side(*name), cmkd_net_side(*name), 3, 10};
    cmkd_graph *graph = NULL;
    if (cmkd_net_build(*name, shape, &graph, NULL) != CMKD_OK) continue;
    int good = read_shape(graph, weights, &shape);
    cmkd_graph_free(graph);
    if (!good || cmkd_net_build(*name, shape, &graph, NULL) != CMKD_OK) continue;
    if (fits_exactly(graph, weights)) fits[count++] = *name;
    cmkd_graph_free(graph);
  }
  fits[count] = NULL;
  return count;
}

static cmkd_status read_arch(const cmkd_weights *weights, const char *arch, const char *prefix, cmkd_model_spec *out,
                             cmkd_error *err) {
  int automatic = arch && !strcmp(arch, "auto");
  if (!arch) arch = cmkd_weights_meta(weights, "arch");
  if (!arch || automatic) {
    const char *fits[CMKD_NET_FITS + 1];
    int count = cmkd_net_fits(weights, fits);
    if (automatic && count == 1)
      arch = fits[0];
    else if (automatic && count > 1)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: fits `%s` and `%s` alike; say which with --%sarch", weights->path,
                       fits[0], fits[1], prefix);
    else if (automatic)
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: fits no known architecture; `cmkd-train nets` lists them",
                       weights->path);
    else if (count == 1)
      return cmkd_fail(err, CMKD_ERR_MISMATCH,
                       "%s: does not say its architecture; its tensors fit `%s`: use --%sarch %s", weights->path,
                       fits[0], prefix, fits[0]);
    else
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: does not say its architecture; name it with --%sarch",
                       weights->path, prefix);
  }
  snprintf(out->arch, sizeof out->arch, "%s", arch);
  return CMKD_OK;
}

/* "0.5,0.4,0.3" -> count numbers. */
static int parse_numbers(const char *text, int count, float *out) {
  for (int i = 0; i < count; i++) {
    char *end;
    float value = strtof(text, &end);
    if (end == text || !isfinite(value) || *end != (i + 1 < count ? ',' : 0)) return 0;
    out[i] = value, text = end + 1;
  }
  return 1;
}

static cmkd_status read_numbers(const cmkd_weights *weights, const char *key, const float *given, int channels,
                                const char *prefix, float out[3], cmkd_error *err) {
  const char *text = cmkd_weights_meta(weights, key);
  const char *values = channels == 1 ? "GREY" : "R,G,B";
  if (given)
    memcpy(out, given, (size_t)channels * sizeof *out);
  else if (!text)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: does not say its normalisation; give --%smean %s and --%sstd %s",
                     weights->path, prefix, values, prefix, values);
  else if (!parse_numbers(text, channels, out))
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: metadata `%s` is `%.60s`, not %d numbers with commas; give --%s%s %s",
                     weights->path, key, text, channels, prefix, key, values);
  return CMKD_OK;
}

cmkd_status cmkd_model_spec_read_as(const cmkd_weights *weights, const char *arch, const float *mean, const float *std,
                                    const char *prefix, cmkd_model_spec *out, cmkd_error *err) {
  *out = (cmkd_model_spec){0};
  CMKD_TRY(read_arch(weights, arch, prefix, out, err));
  cmkd_graph *graph = NULL;
  int side = cmkd_net_side(out->arch) ? cmkd_net_side(out->arch) : 32;
  cmkd_net_shape shape = {side, side, 3, 10};
  CMKD_TRY(cmkd_net_build(out->arch, shape, &graph, err));
  int good = read_shape(graph, weights, &shape);
  cmkd_status status = CMKD_OK;
  if (!good) { /* the list of what is missing is worth more than "no classifier" */
    cmkd_params params;
    status = cmkd_params_create(graph, &params, err);
    if (status == CMKD_OK) status = cmkd_params_load(graph, weights, &params, err);
    cmkd_params_free(&params);
    if (status == CMKD_OK)
      status = cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: has no classifier for `%s`", weights->path, out->arch);
  }
  cmkd_graph_free(graph);
  if (status != CMKD_OK) return status;
  out->classes = shape.classes, out->channels = shape.channels;
  CMKD_TRY(read_numbers(weights, "mean", mean, out->channels, prefix, out->mean, err));
  CMKD_TRY(read_numbers(weights, "std", std, out->channels, prefix, out->std, err));
  for (int c = 0; c < out->channels; c++)
    if (!isfinite(out->mean[c]) || !(out->std[c] > 0) || !isfinite(out->std[c]))
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "%s: normalisation by mean %g, std %g is not possible; give --mean and --std", weights->path,
                       out->mean[c], out->std[c]);
  return CMKD_OK;
}

cmkd_status cmkd_model_spec_read(const cmkd_weights *weights, const char *arch, const float *mean, const float *std,
                                 cmkd_model_spec *out, cmkd_error *err) {
  return cmkd_model_spec_read_as(weights, arch, mean, std, "", out, err);
}
