/* The teacher runner: every row goes through one inference list at one batch size, short batches padded with their last
 * row, so that a row's bits are the same whoever asks. Will not do: cache, encode or compare logits. */
#include "nets/teacher.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STEPS 8 /* full batches handed to the backend at once */

struct cmkd_teacher {
  const cmkd_backend_table *table;
  char *path;
  char sha256[65];
  cmkd_model_spec spec;
  cmkd_graph *graph;
  cmkd_be_images *images;
  cmkd_be_model *model;
  int batch, classes, features;
  uint32_t n;              /* images there are */
  uint32_t *rows;          /* (batch): a short batch and its padding */
  uint64_t *seeds;         /* (batch) */
  float *logits, *feature; /* (batch, classes), (batch, features) of a short batch */
};

void cmkd_teacher_close(cmkd_teacher *teacher) {
  if (!teacher) return;
  if (teacher->model) teacher->table->model_free(teacher->model);
  if (teacher->images) teacher->table->images_free(teacher->images);
  cmkd_graph_free(teacher->graph);
  free(teacher->path), free(teacher->rows), free(teacher->seeds), free(teacher->logits), free(teacher->feature);
  free(teacher);
}

static cmkd_status check_data(const char *path, const cmkd_model_spec *spec, const cmkd_dataset *data,
                              cmkd_error *err) {
  if (!data->pixels)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "%s: is not resident in memory; teachers need a resident data set",
                     data->name);
  if (spec->classes != data->classes)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s: a teacher of %d classes, but %s has %d; choose weights trained on %s",
                     path, spec->classes, data->name, data->classes, data->name);
  if (spec->channels != data->channels)
    return cmkd_fail(err, CMKD_ERR_MISMATCH,
                     "%s: a teacher for images of %d channels, but %s has %d; choose weights trained on %s", path,
                     spec->channels, data->name, data->channels, data->name);
  return CMKD_OK;
}

/* Network, numbers and model of a weight file. */
static cmkd_status load(cmkd_teacher *t, const cmkd_teacher_options *options, const cmkd_weights *weights,
                        cmkd_backend *backend, const cmkd_dataset *data, cmkd_error *err) {
  CMKD_TRY(cmkd_model_spec_read_as(weights, options->arch, options->mean, options->std,
                                   options->prefix ? options->prefix : "", &t->spec, err));
  CMKD_TRY(check_data(options->weights, &t->spec, data, err));
  CMKD_TRY(cmkd_net_build(t->spec.arch, (cmkd_net_shape){data->height, data->width, data->channels, data->classes},
                          &t->graph, err));
  cmkd_params params;
  CMKD_TRY(cmkd_params_create(t->graph, &params, err));
  cmkd_status status = cmkd_params_load(t->graph, weights, &params, err);
  cmkd_model_config config = {.graph = t->graph, .batch = t->batch, .policy = options->policy};
  memcpy(config.mean, t->spec.mean, sizeof t->spec.mean);
  memcpy(config.std, t->spec.std, sizeof t->spec.std);
  if (status == CMKD_OK) status = t->table->model_create(backend, &config, &t->model, err);
  if (status == CMKD_OK) status = t->table->upload(t->model, CMKD_SLOT_VALUE, (const float *const *)params.value, err);
  if (status == CMKD_OK)
    status = t->table->images_create(
        backend, &(cmkd_image_set){data->pixels, data->labels, data->n, data->height, data->width, data->channels},
        &t->images, err);
  cmkd_params_free(&params);
  return status;
}

static cmkd_status fill(cmkd_teacher *t, const cmkd_teacher_options *options, cmkd_backend *backend,
                        const cmkd_dataset *data, cmkd_error *err) {
  cmkd_weights *weights = NULL;
  CMKD_TRY(cmkd_weights_read(options->weights, &weights, err));
  memcpy(t->sha256, weights->sha256, sizeof t->sha256);
  cmkd_status status = load(t, options, weights, backend, data, err);
  cmkd_weights_free(weights);
  if (status != CMKD_OK) return status;
  size_t batch = (size_t)t->batch;
  t->n = data->n, t->classes = t->graph->classes, t->features = t->graph->tensor[cmkd_graph_features(t->graph)].c;
  t->path = strdup(options->weights);
  t->rows = malloc(batch * sizeof *t->rows);
  t->seeds = malloc(batch * sizeof *t->seeds);
  t->logits = malloc(batch * (size_t)t->classes * sizeof *t->logits);
  t->feature = malloc(batch * (size_t)t->features * sizeof *t->feature);
  return t->path && t->rows && t->seeds && t->logits && t->feature
             ? CMKD_OK
             : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", options->weights);
}

cmkd_status cmkd_teacher_open(const cmkd_teacher_options *options, const cmkd_backend_table *table,
                              cmkd_backend *backend, const cmkd_dataset *data, cmkd_teacher **out, cmkd_error *err) {
  *out = NULL;
  int batch = options->batch ? options->batch : CMKD_TEACHER_BATCH;
  if (batch < 1 || batch > 65536)
    return cmkd_fail(err, CMKD_ERR_USAGE, "a teacher batch of %d; --teacher-batch takes 1 to 65536", batch);
  cmkd_teacher *teacher = calloc(1, sizeof *teacher);
  if (!teacher) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", options->weights);
  teacher->table = table, teacher->batch = batch;
  cmkd_status status = fill(teacher, options, backend, data, err);
  if (status == CMKD_OK)
    *out = teacher;
  else
    cmkd_teacher_close(teacher);
  return status;
}

const cmkd_model_spec *cmkd_teacher_spec(const cmkd_teacher *teacher) { return &teacher->spec; }
const char *cmkd_teacher_sha256(const cmkd_teacher *teacher) { return teacher->sha256; }
int cmkd_teacher_batch(const cmkd_teacher *teacher) { return teacher->batch; }
int cmkd_teacher_feature_size(const cmkd_teacher *teacher) { return teacher->features; }

/* Up to STEPS full batches, straight into the caller's arrays. */
static cmkd_status run_full(cmkd_teacher *t, const uint32_t *rows, const uint64_t *seeds, uint32_t batches,
                            float *logits, float *features, cmkd_error *err) {
  cmkd_step steps[STEPS];
  for (uint32_t i = 0; i < batches; i++)
    steps[i] = (cmkd_step){
        .count = t->batch, .rows = rows + (size_t)i * t->batch, .seeds = seeds ? seeds + (size_t)i * t->batch : NULL};
  return t->table->run(t->model, CMKD_LIST_INFER, t->images, steps, (int)batches,
                       (float *[CMKD_MAX_OUTPUTS]){logits, features}, err);
}

static cmkd_status run_short(cmkd_teacher *t, const uint32_t *rows, const uint64_t *seeds, uint32_t count,
                             float *logits, float *features, cmkd_error *err) {
  for (uint32_t i = 0; i < (uint32_t)t->batch; i++) {
    uint32_t from = i < count ? i : count - 1;
    t->rows[i] = rows[from];
    if (seeds) t->seeds[i] = seeds[from];
  }
  cmkd_step step = {.count = t->batch, .rows = t->rows, .seeds = seeds ? t->seeds : NULL};
  CMKD_TRY(t->table->run(t->model, CMKD_LIST_INFER, t->images, &step, 1,
                         (float *[CMKD_MAX_OUTPUTS]){t->logits, t->feature}, err));
  if (logits) memcpy(logits, t->logits, (size_t)count * t->classes * sizeof *logits);
  if (features) memcpy(features, t->feature, (size_t)count * t->features * sizeof *features);
  return CMKD_OK;
}

cmkd_status cmkd_teacher_run(cmkd_teacher *t, const uint32_t *rows, const uint64_t *seeds, uint32_t count,
                             float *logits, float *features, cmkd_error *err) {
  for (uint32_t i = 0; i < count; i++)
    if (rows[i] >= t->n) return cmkd_fail(err, CMKD_ERR_VALUE, "sample %u: the data set has %u", rows[i], t->n);
  for (uint32_t at = 0; at < count;) {
    uint32_t full = (count - at) / (uint32_t)t->batch, batches = full < STEPS ? full : STEPS,
             take = batches ? batches * (uint32_t)t->batch : count - at;
    float *l = logits ? logits + (size_t)at * t->classes : NULL,
          *f = features ? features + (size_t)at * t->features : NULL;
    const uint64_t *s = seeds ? seeds + at : NULL;
    cmkd_error why = {0};
    cmkd_status status =
        batches ? run_full(t, rows + at, s, batches, l, f, &why) : run_short(t, rows + at, s, take, l, f, &why);
    if (status != CMKD_OK) return cmkd_fail(err, status, "teacher %s: %s", t->path, why.message);
    for (size_t i = 0; l && i < (size_t)take * t->classes;
         i++) /* whatever the backend thinks of them, none gets into a cache */
      if (!isfinite(l[i]))
        return cmkd_fail(err, CMKD_ERR_VALUE,
                         "teacher %s: logits of sample %u are not finite; the weights do not fit these images", t->path,
                         rows[at + i / t->classes]);
    at += take;
  }
  return CMKD_OK;
}
