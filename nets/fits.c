/* Which architecture a weight file is of. See fits.h. */
#include "nets/fits.h"
#include "kernels/loss.h"
#include "nets/binding.h"
#include "nets/registry.h"

int cmkd_net_read_shape(const cmkd_graph *graph, const cmkd_weights *weights, cmkd_net_shape *shape) {
  cmkd_net_binding bound;
  if (cmkd_net_bind(graph, weights, &bound, NULL) != CMKD_OK) return 0;
  const cmkd_tensor *first = NULL, *last = NULL;
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    if (op->param[0] < 0) continue;
    if (op->in[0] == 0) first = bound.tensor[op->param[0]];
    if (op->out == cmkd_graph_logits(graph)) last = bound.tensor[op->param[0]];
  }
  int good = first && last && first->dims == 4 && last->dims == 2;
  good = good && last->shape[0] >= CMKD_LOSS_MIN_CLASSES && last->shape[0] <= CMKD_LOSS_MAX_CLASSES;
  good = good && (first->shape[1] == 1 || first->shape[1] == 3);
  if (good) {
    shape->channels = (int)first->shape[1];
    shape->classes = (int)last->shape[0];
  }
  cmkd_net_unbind(&bound);
  return good;
}

static int fits_exactly(const cmkd_graph *graph, const cmkd_weights *weights) {
  cmkd_net_binding bound;
  if (cmkd_net_bind(graph, weights, &bound, NULL) != CMKD_OK) return 0;
  int good = bound.unexpected_count == 0;
  for (int i = 0; i < graph->params && good; i++)
    good = bound.tensor[i] && cmkd_net_same_shape(&graph->param[i], bound.tensor[i]);
  cmkd_net_unbind(&bound);
  return good;
}

int cmkd_net_fits(const cmkd_weights *weights, const char *fits[CMKD_NET_FITS + 1]) {
  int count = 0;
  for (const char *const *name = cmkd_net_names(); *name && count < CMKD_NET_FITS; name++) {
    cmkd_net_shape shape = {cmkd_net_side(*name), cmkd_net_side(*name), 3, 10};
    cmkd_graph *graph = NULL;
    /* built twice: for any classes, to find the classifier, and for the file's */
    if (cmkd_net_build(*name, shape, &graph, NULL) != CMKD_OK) continue;
    int good = cmkd_net_read_shape(graph, weights, &shape);
    cmkd_graph_free(graph);
    if (!good || cmkd_net_build(*name, shape, &graph, NULL) != CMKD_OK) continue;
    if (fits_exactly(graph, weights)) fits[count++] = *name;
    cmkd_graph_free(graph);
  }
  fits[count] = NULL;
  return count;
}
