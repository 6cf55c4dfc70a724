/* A network's numbers on the host: allocation, initial values, weight files in and out. */
#ifndef CMKD_NETS_PARAMS_H
#define CMKD_NETS_PARAMS_H
#include <stdint.h>
#include "cmkd/status.h"
#include "cmkd/weights.h"
#include "kernels/graph.h"

/* One array a parameter, in graph order, each on 64 bytes, all in one allocation. */
typedef struct cmkd_params {
  int count;
  float **value; /* (count) arrays of graph->param[i].count numbers */
  float *storage;
} cmkd_params;
/* All numbers 0. Free with cmkd_params_free, after a failure too. */
cmkd_status cmkd_params_create(const cmkd_graph *graph, cmkd_params *out, cmkd_error *err);
void cmkd_params_free(cmkd_params *params);
/* Initial weights by each parameter's rule; a function of (graph, train_seed) alone: parameter i draws from a stream of
 * its own. */
void cmkd_params_init(const cmkd_graph *graph, uint64_t train_seed, cmkd_params *params);

/* Copies a weight file's tensors into params by name (num_batches_tracked is ignored, `module.` prefixes are dropped).
 * Missing, unexpected or wrongly shaped tensors, NaN and Inf are errors that list the first few and the count. */
cmkd_status cmkd_params_load(const cmkd_graph *graph, const cmkd_weights *weights, cmkd_params *params,
                             cmkd_error *err);
/* Writes params as safetensors that PyTorch loads with strict=True: with num_batches_tracked of every batch norm, I64
 * scalars of value `batches`. */
cmkd_status cmkd_params_save(const cmkd_graph *graph, const cmkd_params *params, int64_t batches, const char *path,
                             const char *const *meta_keys, const char *const *meta_values, int meta_count,
                             cmkd_error *err);
#endif
