/* A teacher that is one of our networks on a backend: a weight file bound to its graph, run by the inference list. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "nets/teacher_kind.h"

typedef struct network {
  const cmkd_backend_table *table;
  cmkd_graph *graph;
  cmkd_be_images *images;
  cmkd_be_model *model;
  cmkd_step *steps; /* grown to the most batches that a call brought */
  uint32_t capacity;
} network;

static void network_close(void *state) {
  network *n = state;
  if (n->model) n->table->model_free(n->model);
  if (n->images) n->table->images_free(n->images);
  cmkd_graph_free(n->graph);
  free(n->steps);
  free(n);
}

static cmkd_status network_run(cmkd_teacher *t, const uint32_t *rows, const uint64_t *seeds, uint32_t batches,
                               float *logits, float *features, cmkd_error *err) {
  network *n = t->state;
  if (batches > n->capacity) {
    cmkd_step *grown = realloc(n->steps, batches * sizeof *grown);
    if (!grown) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
    n->steps = grown;
    n->capacity = batches;
  }
  for (uint32_t i = 0; i < batches; i++) {
    const size_t first = (size_t)i * (size_t)t->batch;
    n->steps[i] = (cmkd_step){.count = t->batch, .rows = rows + first, .seeds = seeds ? seeds + first : NULL};
  }
  float *outputs[CMKD_MAX_OUTPUTS] = {[CMKD_OUTPUT_LOGITS] = logits, [CMKD_OUTPUT_FEATURES] = features};
  return n->table->run(n->model, CMKD_LIST_INFER, n->images, n->steps, (int)batches, outputs, err);
}

/* Network, numbers and model of a weight file. */
static cmkd_status load(cmkd_teacher *t, const cmkd_teacher_options *options, const cmkd_weights *weights,
                        cmkd_backend *backend, cmkd_error *err) {
  network *n = t->state;
  const cmkd_dataset *data = t->data;
  CMKD_TRY(cmkd_model_spec_read_as(weights, options->arch, options->mean, options->std,
                                   options->prefix ? options->prefix : "", &t->spec, err));
  CMKD_TRY(cmkd_teacher_check_data(options->weights, t->spec.classes, data, err));
  if (t->spec.channels != data->channels)
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s: a teacher for images of %d channels, but %s has %d; choose weights trained on %s",
                     options->weights, t->spec.channels, data->name, data->channels, data->name);
  CMKD_TRY(cmkd_net_build(t->spec.arch, (cmkd_net_shape){data->height, data->width, data->channels, data->classes},
                          &n->graph, err));
  cmkd_params params;
  CMKD_TRY(cmkd_params_create(n->graph, &params, err));
  cmkd_status status = cmkd_params_load(n->graph, weights, &params, err);
  cmkd_model_config config = {.graph = n->graph, .batch = t->batch, .policy = t->policy};
  memcpy(config.mean, t->spec.mean, sizeof t->spec.mean);
  memcpy(config.std, t->spec.std, sizeof t->spec.std);
  if (status == CMKD_OK) status = n->table->model_create(backend, &config, &n->model, err);
  if (status == CMKD_OK) status = n->table->upload(n->model, CMKD_SLOT_VALUE, (const float *const *)params.value, err);
  if (status == CMKD_OK)
    status = n->table->images_create(
        backend, &(cmkd_image_set){data->pixels, data->labels, data->n, data->height, data->width, data->channels},
        &n->images, err);
  cmkd_params_free(&params);
  t->classes = n->graph->classes;
  t->feature_count = n->graph->tensor[cmkd_graph_features(n->graph)].c;
  return status;
}

static cmkd_status fill(cmkd_teacher *t, const cmkd_teacher_options *options, cmkd_backend *backend, cmkd_error *err) {
  cmkd_weights *weights = NULL;
  CMKD_TRY(cmkd_weights_read(options->weights, &weights, err));
  memcpy(t->sha256, weights->sha256, sizeof t->sha256);
  cmkd_status status = load(t, options, weights, backend, err);
  cmkd_weights_free(weights);
  return status == CMKD_OK ? cmkd_teacher_allocate(t, err) : status;
}

cmkd_status cmkd_teacher_open(const cmkd_teacher_options *options, const cmkd_backend_table *table,
                              cmkd_backend *backend, const cmkd_dataset *data, cmkd_teacher **out, cmkd_error *err) {
  static const cmkd_teacher_kind kind = {network_run, network_close};
  *out = NULL;
  const int batch = cmkd_teacher_check_batch(options->batch, err);
  if (!batch) return CMKD_ERR_USAGE;
  cmkd_teacher *teacher = cmkd_teacher_new(&kind, options->weights);
  network *n = teacher ? calloc(1, sizeof *n) : NULL;
  if (!n) {
    cmkd_teacher_close(teacher);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", options->weights);
  }
  n->table = table;
  teacher->state = n;
  teacher->batch = batch;
  teacher->data = data;
  teacher->policy = options->policy;
  snprintf(teacher->precision, sizeof teacher->precision, "%s", options->precision ? options->precision : "fp32");
  teacher->precision_error = options->precision_error;
  const cmkd_status status = fill(teacher, options, backend, err);
  if (status == CMKD_OK)
    *out = teacher;
  else
    cmkd_teacher_close(teacher);
  return status;
}
