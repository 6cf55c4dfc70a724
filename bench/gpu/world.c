/* See world.h. */
#include "bench/gpu/world.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/program/environment.h"
#include "base/file.h"
#include "base/rng.h"

enum { CELLS = 4 }; /* a pattern is CELLS x CELLS patches of one colour each */

static uint8_t pixel_of(double v) { return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v); }

cmkd_status bench_data_create(cmkd_net_shape shape, uint32_t n, uint64_t seed, bench_data *out, cmkd_error *err) {
  const int h = shape.height, w = shape.width, c = shape.channels;
  const size_t pattern_size = (size_t)(CELLS * CELLS * c), image = (size_t)(h * w * c);
  double *pattern = malloc((size_t)shape.classes * pattern_size * sizeof *pattern);
  *out = (bench_data){shape, n, malloc(n * image), malloc(n * sizeof(int32_t)),
                      malloc((size_t)n * (size_t)shape.classes * sizeof(float))};
  if (!pattern || !out->pixels || !out->labels || !out->teacher) {
    free(pattern);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for %u made-up images", n);
  }
  cmkd_rng rng = cmkd_rng_start(seed, CMKD_STREAM_TEST, 0);
  for (size_t i = 0; i < (size_t)shape.classes * pattern_size; i++)
    pattern[i] = 60 * cmkd_rng_normal(&rng);
  for (uint32_t i = 0; i < n; i++) {
    const int label = out->labels[i] = (int32_t)cmkd_rng_below(&rng, (uint32_t)shape.classes);
    for (int y = 0; y < h; y++)
      for (int x = 0; x < w; x++)
        for (int k = 0; k < c; k++)
          out->pixels[(size_t)i * image + (size_t)((y * w + x) * c + k)] = pixel_of(
              128 + pattern[(size_t)label * pattern_size + (size_t)((y * CELLS / h * CELLS + x * CELLS / w) * c + k)] +
              50 * (cmkd_rng_uniform(&rng) - 0.5));
    for (int k = 0; k < shape.classes; k++) {
      const int apart = abs(k - label) % shape.classes;
      out->teacher[(size_t)i * (size_t)shape.classes + (size_t)k] = (float)(cmkd_rng_normal(&rng) + (apart == 0   ? 8
                                                                                                     : apart <= 2 ? 3
                                                                                                                  : 0));
    }
  }
  free(pattern);
  return CMKD_OK;
}

void bench_data_free(bench_data *data) {
  free(data->pixels);
  free(data->labels);
  free(data->teacher);
}

cmkd_status bench_steps_create(int k, int batch, int classes, bench_steps *out, cmkd_error *err) {
  const size_t rows = (size_t)k * (size_t)batch;
  *out = (bench_steps){calloc((size_t)k, sizeof *out->step),
                       malloc(rows * sizeof *out->rows),
                       malloc(rows * sizeof *out->seeds),
                       malloc(rows * (size_t)classes * sizeof *out->teacher),
                       k,
                       batch};
  return out->step && out->rows && out->seeds && out->teacher
             ? CMKD_OK
             : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for %d steps of %d", k, batch);
}

void bench_steps_fill(bench_steps *s, const bench_data *data, int64_t first, int count, int with_teacher, double lr) {
  const size_t classes = (size_t)data->shape.classes;
  for (int i = 0; i < s->k; i++) {
    const size_t at = (size_t)i * (size_t)s->batch;
    for (int j = 0; j < count; j++) {
      const uint64_t place = ((uint64_t)first + (uint64_t)i) * (uint64_t)s->batch + (uint64_t)j;
      const uint32_t row = (uint32_t)(place * 7919 % data->n);
      s->rows[at + (size_t)j] = row;
      s->seeds[at + (size_t)j] = place * 977 + 31;
      if (with_teacher)
        memcpy(s->teacher + (at + (size_t)j) * classes, data->teacher + row * classes, classes * sizeof *s->teacher);
    }
    s->step[i] = (cmkd_step){.count = count,
                             .rows = s->rows + at,
                             .seeds = s->seeds + at,
                             .target[CMKD_TARGET_TEACHER].values = with_teacher ? s->teacher + at * classes : NULL,
                             .lr = lr,
                             .epoch = 30};
  }
}

void bench_steps_free(bench_steps *s) {
  free(s->step);
  free(s->rows);
  free(s->seeds);
  free(s->teacher);
}

/* Here and not in kernels/backend.c: an installed program has no business in the folder above its own. */
cmkd_status bench_backend_find(const char *device, const cmkd_backend_options *options, const cmkd_backend_table **out,
                               cmkd_error *err) {
  cmkd_backend_options ours = *options;
  char exe[PATH_MAX], *dir = NULL, *path = NULL;
  const ssize_t length = ours.plugin && *ours.plugin ? 0 : readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (length > 0) {
    exe[length] = 0;
    dir = cmkd_path_dir(exe);
    path = dir ? cmkd_path_join(dir, "../../libcmkd-cuda.so") : NULL;
  }
  const int there = path && cmkd_file_exists(path);
  if (there) ours.plugin = path;
  cmkd_status status = cmkd_backend_find(device, &ours, out, err);
  if (status == CMKD_ERR_UNSUPPORTED && path && !there && err && strstr(err->message, "is not here"))
    cmkd_fail(err, status,
              "--device cuda: there is no %s; build it with the CUDA toolkit (make), set CMKD_CUDA_PLUGIN, or "
              "use --device cpu",
              path);
  free(dir);
  free(path);
  return status;
}

cmkd_status bench_side_open(const bench_setup *setup, bench_side *out, cmkd_error *err) {
  const cmkd_net_shape s = setup->data->shape;
  memset(out, 0, sizeof *out);
  cmkd_backend_options options = {.threads = setup->threads, .precision = setup->precision};
  cmkd_environment_backend(&options);
  CMKD_TRY(bench_backend_find(setup->device, &options, &out->table, err));
  CMKD_TRY(out->table->open(&options, &out->backend, err));
  const cmkd_image_set set = {setup->data->pixels, setup->data->labels, setup->data->n, s.height, s.width, s.channels};
  CMKD_TRY(out->table->images_create(out->backend, &set, &out->images, err));
  CMKD_TRY(out->table->model_create(out->backend,
                                    &(cmkd_model_config){.graph = setup->graph,
                                                         .batch = setup->batch,
                                                         .train = setup->loss != NULL,
                                                         .mean = {.5f, .5f, .5f},
                                                         .std = {.25f, .25f, .25f},
                                                         .policy = CMKD_AUGMENT_CROP_FLIP,
                                                         .loss = setup->loss,
                                                         .momentum = .9f,
                                                         .weight_decay = 5e-4f,
                                                         .kappa = 2},
                                    &out->model, err));
  return out->table->upload(out->model, CMKD_SLOT_VALUE, (const float *const *)setup->params->value, err);
}

void bench_side_close(bench_side *side) {
  if (side->model) side->table->model_free(side->model);
  if (side->images) side->table->images_free(side->images);
  if (side->backend) side->table->close(side->backend);
  memset(side, 0, sizeof *side);
}

cmkd_status bench_steps_train(const bench_side *s, const bench_steps *block, int n, double *loss, cmkd_error *err) {
  cmkd_step_result result[64];
  enum { CAPACITY = sizeof result / sizeof *result };
  CMKD_TRY(s->table->run(s->model, CMKD_LIST_TRAIN, s->images, block->step, n, NULL, err));
  for (int got = 0, k; got < n; got += k) {
    k = n - got < CAPACITY ? n - got : CAPACITY;
    CMKD_TRY(s->table->read(s->model, result, &k, err));
    if (k <= 0) return cmkd_fail(err, CMKD_ERR_DEVICE, "%s gave back %d of %d steps", s->table->name, got, n);
    for (int i = 0; i < k; i++)
      loss[got + i] = result[i].loss.loss;
  }
  return CMKD_OK;
}
