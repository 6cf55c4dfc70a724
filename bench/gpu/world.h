/* What the GPU benchmarks run on: a made-up data set that can be learned, teacher logits for it, and a network on a
 * backend. */
#ifndef CMKD_BENCH_GPU_WORLD_H
#define CMKD_BENCH_GPU_WORLD_H
#include "kernels/backend.h"
#include "nets/net.h"

/* Images of `classes` coarse patterns under noise; teacher logits that know the class and mix up neighbours. A function
 * of shape, n and seed. */
typedef struct bench_data {
  cmkd_net_shape shape;
  uint32_t n;
  uint8_t *pixels; /* (n, height, width, channels) */
  int32_t *labels; /* (n) */
  float *teacher;  /* (n, classes) */
} bench_data;
cmkd_status bench_data_create(cmkd_net_shape shape, uint32_t n, uint64_t seed, bench_data *out, cmkd_error *err);
void bench_data_free(bench_data *data);

/* k steps from step number `first` on: which rows, moved by which seeds. Every step takes the next `batch` of a stride
 * through the data. */
typedef struct bench_steps {
  cmkd_step *step;
  uint32_t *rows;
  uint64_t *seeds;
  float *teacher;
  int k, batch;
} bench_steps;
/* with_teacher 0: steps carry no logits. count: rows of each step, at most batch. */
cmkd_status bench_steps_create(int k, int batch, int classes, bench_steps *out, cmkd_error *err);
void bench_steps_fill(bench_steps *s, const bench_data *data, int64_t first, int count, int with_teacher, double lr);
void bench_steps_free(bench_steps *s);

/* cmkd_backend_find for a program in BUILD/bench/gpu, whose plugin lies in BUILD (the same in a kit). options->plugin
 * comes first. */
cmkd_status bench_backend_find(const char *device, const cmkd_backend_options *options, const cmkd_backend_table **out,
                               cmkd_error *err);

/* What is to run where. loss NULL: inference alone. */
typedef struct bench_setup {
  const char *device, *precision;
  int threads, batch;
  const cmkd_graph *graph;
  const cmkd_loss *loss;
  const bench_data *data;
  const cmkd_params *params;
} bench_setup;

/* A network on a backend. Close it whatever open gave back; borrows graph, loss and data. */
typedef struct bench_side {
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
} bench_side;
cmkd_status bench_side_open(const bench_setup *setup, bench_side *out, cmkd_error *err);
void bench_side_close(bench_side *side);

/* Trains the block's first n steps in one run(), as captured graphs of several where the device has them, and waits
 * for their losses: loss (n). */
cmkd_status bench_steps_train(const bench_side *side, const bench_steps *block, int n, double *loss, cmkd_error *err);
#endif
