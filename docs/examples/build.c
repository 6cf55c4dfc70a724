/* Builds a cache with a teacher that CMKD knows nothing of: here the nearest class mean, which needs no framework.
 * Press Ctrl-C and start it again: it goes on.
 *
 *     cc build.c $(pkg-config --cflags --libs cmkd)
 *     ./a.out fashion-mnist means.h5     # cmkd-train --cache means.h5 trains from it */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include "cmkd/build.h"

/* The mean image of each class (classes, size). */
typedef struct means {
  int classes, size;
  float *image;
} means;

static void learn(means *m, const cmkd_dataset *data) {
  for (int k = 0; k < m->classes; k++) {
    float *mean = m->image + (size_t)k * (size_t)m->size;
    uint32_t count = 0;
    for (uint32_t i = 0; i < data->n; i++) {
      if (data->labels[i] != k) continue;
      count++;
      for (int j = 0; j < m->size; j++)
        mean[j] += data->pixels[(size_t)i * (size_t)m->size + (size_t)j];
    }
    for (int j = 0; j < m->size && count; j++)
      mean[j] /= (float)count;
  }
}

/* Minus the mean squared distance to each class's mean image. */
static cmkd_status run(void *self, const uint8_t *pixels, int count, float *logits, cmkd_error *err) {
  const means *m = self;
  (void)err; /* nothing here can fail */
  for (int i = 0; i < count; i++)
    for (int k = 0; k < m->classes; k++) {
      const uint8_t *image = pixels + (size_t)i * (size_t)m->size;
      const float *mean = m->image + (size_t)k * (size_t)m->size;
      float sum = 0;
      for (int j = 0; j < m->size; j++)
        sum += ((float)image[j] - mean[j]) * ((float)image[j] - mean[j]);
      logits[(size_t)i * (size_t)m->classes + (size_t)k] = -sum / (float)m->size / 255;
    }
  return CMKD_OK;
}

/* ---- the program's own signals and output: the library has none ---- */

static volatile sig_atomic_t interrupted;
static void on_signal(int number) { interrupted = number; }
static int stop(void *self) {
  (void)self;
  return interrupted;
}
static void show(void *self, const cmkd_build_progress *p) {
  (void)self;
  fprintf(stderr, "\r%llu of %llu rows", (unsigned long long)p->done, (unsigned long long)p->total);
}

static cmkd_status build(const char *out, const cmkd_dataset *data, means *m, cmkd_error *err) {
  /* this teacher is a function of the data set, whose fingerprint therefore names it */
  const cmkd_teacher_callback callback = {.self = m, .run = run, .name = "class means", .sha256 = data->fingerprint};
  const cmkd_build_watch watch = {.stop = stop, .progress = show};
  const cmkd_build_options options = {.out = out, .views = 2, .clean_view = 1, .cache_seed = 1};
  cmkd_teacher *teacher;
  cmkd_build_result result;
  CMKD_TRY(cmkd_teacher_from_callback(&callback, data, CMKD_AUGMENT_CROP, &teacher, err));
  const cmkd_status status = cmkd_build_cache(&options, teacher, &watch, &result, err);
  cmkd_teacher_close(teacher);
  fputc('\n', stderr);
  if (status == CMKD_OK)
    printf("%s: %u samples x %u views, %llu rows computed, %llu found\n", out, result.samples, result.views,
           (unsigned long long)result.teacher_rows, (unsigned long long)result.writer.reused_rows);
  return status;
}

int main(int argc, char **argv) {
  cmkd_error err;
  cmkd_dataset *data;
  if (argc != 3) {
    fprintf(stderr, "usage: build NAME[:DIR] OUT.h5\n");
    return 2;
  }
  signal(SIGINT, on_signal);
  cmkd_status status = cmkd_dataset_open(argv[1], "train", NULL, &data, &err);
  if (status == CMKD_OK) {
    means m = {.classes = data->classes, .size = data->height * data->width * data->channels};
    m.image = calloc((size_t)m.classes * (size_t)m.size, sizeof *m.image);
    if (m.image) {
      learn(&m, data);
      status = build(argv[2], data, &m, &err);
    } else
      status = cmkd_fail(&err, CMKD_ERR_MEMORY, "out of memory");
    free(m.image);
    cmkd_dataset_close(data);
  }
  if (status != CMKD_OK) fprintf(stderr, "%s\n", err.message);
  return status == CMKD_OK ? 0 : 1;
}
