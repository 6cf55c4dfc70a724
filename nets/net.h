/* Architectures by name, their initial weights, and weight files bound to them. One file a family; nets/registry.c
 * lists them. */
#ifndef CMKD_NETS_NET_H
#define CMKD_NETS_NET_H
#include <stdint.h>
#include "cmkd/status.h"
#include "cmkd/weights.h"
#include "kernels/graph.h"

typedef struct cmkd_net_shape {
  int height, width, channels, classes;
} cmkd_net_shape;

/* Builds the operation list of `arch`. Unknown names suggest the nearest. Free with cmkd_graph_free. */
cmkd_status cmkd_net_build(const char *arch, cmkd_net_shape shape, cmkd_graph **out, cmkd_error *err);
/* All names, NULL-terminated, in the order of the literature. */
const char *const *cmkd_net_names(void);
/* Side of the square images that `arch` is published for (32, 224); 0: unknown name. */
int cmkd_net_side(const char *arch);

/* A network's numbers on the host: one array a parameter, in graph order, in one allocation. */
typedef struct cmkd_params {
  int count;
  float **value;
  float *storage;
} cmkd_params;
cmkd_status cmkd_params_create(const cmkd_graph *graph, cmkd_params *out, cmkd_error *err);
void cmkd_params_free(cmkd_params *params);
/* Initial weights by each parameter's rule; a function of (graph, train seed) alone: parameter i draws from counter i.
 */
void cmkd_params_init(const cmkd_graph *graph, uint64_t train_seed, cmkd_params *params);

/* Copies a weight file's tensors into params by name (num_batches_tracked is ignored, `module.` prefixes are dropped).
 * Missing, unexpected or wrongly shaped tensors, NaN and Inf are errors that list the first few and the count. */
cmkd_status cmkd_params_load(const cmkd_graph *graph, const cmkd_weights *weights, cmkd_params *params,
                             cmkd_error *err);
/* Writes params as safetensors that PyTorch loads with strict=True (num_batches_tracked included, I64 scalars, =
 * batches). */
cmkd_status cmkd_params_save(const cmkd_graph *graph, const cmkd_params *params, int64_t batches, const char *path,
                             const char *const *meta_keys, const char *const *meta_values, int meta_count,
                             cmkd_error *err);

/* The architectures that a weight file fits exactly (names and shapes), NULL-terminated, at most CMKD_NET_FITS; returns
 * how many. */
#define CMKD_NET_FITS 8
int cmkd_net_fits(const cmkd_weights *weights, const char *fits[CMKD_NET_FITS + 1]);

/* Metadata of a weight file, overridden by what the user said: arch NULL (or "auto": the one that fits), mean/std NULL:
 * from the file; a thing that neither gives fails and names the option. Classes come from the classifier's shape. */
typedef struct cmkd_model_spec {
  char arch[64];
  int classes;
  float mean[3], std[3];
  int channels;
} cmkd_model_spec;
cmkd_status cmkd_model_spec_read(const cmkd_weights *weights, const char *arch, const float *mean, const float *std,
                                 cmkd_model_spec *out, cmkd_error *err);
/* The same; `prefix` stands before the options that messages name: "teacher-" makes --teacher-arch of --arch. */
cmkd_status cmkd_model_spec_read_as(const cmkd_weights *weights, const char *arch, const float *mean, const float *std,
                                    const char *prefix, cmkd_model_spec *out, cmkd_error *err);
#endif
