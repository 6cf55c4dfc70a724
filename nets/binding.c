/* Weight files bound to operation lists by tensor name. See binding.h. */
#include "nets/binding.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TENSORS 100000

/* Names differ between toolkits in a few known ways; both sides are brought to one spelling before they are compared:
 * no wrapper prefixes, `downsample` for `shortcut`, `fc` for a classifier called `linear`. */
static void canonical(const char *name, char out[160]) {
  static const char *const wrappers[] = {"module.", "_orig_mod."};
  for (int again = 1; again;) {
    again = 0;
    for (int i = 0; i < 2; i++)
      if (!strncmp(name, wrappers[i], strlen(wrappers[i]))) {
        name += strlen(wrappers[i]);
        again = 1;
      }
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

cmkd_status cmkd_net_bind(const cmkd_graph *graph, const cmkd_weights *weights, cmkd_net_binding *out,
                          cmkd_error *err) {
  *out = (cmkd_net_binding){0};
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
    if (!found) continue;
    out->tensor[i] = found->tensor;
    found->used = 1;
  }
  /* Two names may have one canonical spelling: only one of them is bound, the other counts as unexpected. */
  for (int i = 0; i < count; i++)
    if (!file[i].used) out->unexpected[out->unexpected_count++] = file[i].tensor;
  free(file);
  return CMKD_OK;
}

void cmkd_net_unbind(cmkd_net_binding *bound) {
  free(bound->tensor);
  free(bound->unexpected);
  *bound = (cmkd_net_binding){0};
}

int cmkd_net_same_shape(const cmkd_param *p, const cmkd_tensor *t) {
  if (p->dims != t->dims) return 0;
  for (int d = 0; d < p->dims; d++)
    if (p->shape[d] != t->shape[d]) return 0;
  return 1;
}
