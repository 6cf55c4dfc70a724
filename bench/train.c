/* Throughput of the CPU backend, one line of JSON: images per second (median and best over steps), FLOP rate, and what
 * the convolutions alone would allow. train [--arch resnet20] [--mode train|eval|convs|peak] [--batch 64] [--steps 20]
 * [--threads 2] [--loss ce] train: gather, forward, loss, backward, update. eval: inference at a padded batch with
 * batch norm folded. convs: every convolution of the network forwards, backwards to data and backwards to weights,
 * nothing else: the ceiling of `train`. peak: multiply-adds out of registers. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/program/environment.h"
#include "base/program/options.h"
#include "kernels/backend.h"
#include "kernels/cpu/conv/conv.h"
#include "kernels/plan.h"
#include "nets/net.h"

enum { IMAGES = 512, SIDE = 32, CHANNELS = 3 };

static const char *arch = "resnet20", *mode = "train", *loss_text = "ce";
static int64_t batch, steps = 20, threads = 2, classes = 100;

static int compare(const void *a, const void *b) {
  return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* Wall time; with --cpu-time the process's own, which other work on the machine disturbs less. */
static int cpu_time;
static double now(void) {
  struct timespec t;
  clock_gettime(cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void report(const char *who, double *seconds, int n, double images, double flop) {
  qsort(seconds, (size_t)n, sizeof *seconds, compare);
  double median = seconds[n / 2], best = seconds[0];
  printf("{\"arch\": \"%s\", \"mode\": \"%s\", \"backend\": \"%s\", \"batch\": %lld, \"threads\": %lld, \"img_per_s\": "
         "%.1f, \"best_img_per_s\": %.1f, \"gflops\": %.1f}\n",
         arch, mode, who, (long long)batch, (long long)threads, images / median, images / best, flop / median * 1e-9);
}

/* ---- the backend ---- */

static cmkd_status run_backend(const cmkd_graph *graph, int train, cmkd_error *err) {
  const cmkd_backend_table *t = &cmkd_backend_cpu;
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
  cmkd_loss *loss = NULL;
  cmkd_params params;
  uint8_t *pixels = malloc(IMAGES * SIDE * SIDE * CHANNELS);
  int32_t *labels = malloc(IMAGES * sizeof *labels);
  uint32_t *rows = malloc((size_t)batch * sizeof *rows);
  uint64_t *seeds = malloc((size_t)batch * sizeof *seeds);
  float *teacher = malloc((size_t)(batch * classes) * sizeof *teacher),
        *logits = malloc((size_t)(batch * classes) * sizeof *logits);
  double *seconds = malloc((size_t)steps * sizeof *seconds);
  if (!pixels || !labels || !rows || !seeds || !teacher || !logits || !seconds)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  uint32_t r = 1;
  for (int i = 0; i < IMAGES * SIDE * SIDE * CHANNELS; i++)
    pixels[i] = (uint8_t)((r = r * 1664525u + 1013904223u) >> 24);
  for (int i = 0; i < IMAGES; i++)
    labels[i] = (int32_t)((r = r * 1664525u + 1013904223u) >> 8) % (int32_t)classes;
  for (int64_t i = 0; i < batch * classes; i++)
    teacher[i] = (float)(int32_t)(r = r * 1664525u + 1013904223u) * 2e-9f;
  cmkd_backend_options options = {.threads = (int)threads};
  cmkd_environment_backend(&options);
  CMKD_TRY(t->open(&options, &backend, err));
  CMKD_TRY(t->images_create(backend, &(cmkd_image_set){pixels, labels, IMAGES, SIDE, SIDE, CHANNELS}, &images, err));
  CMKD_TRY(cmkd_loss_parse(loss_text, CMKD_LOSS_CIFAR, &loss, err));
  CMKD_TRY(cmkd_params_create(graph, &params, err));
  cmkd_params_init(graph, 1, &params);
  CMKD_TRY(t->model_create(backend,
                           &(cmkd_model_config){.graph = graph,
                                                .batch = (int)batch,
                                                .train = train,
                                                .mean = {.5f, .5f, .5f},
                                                .std = {.25f, .25f, .25f},
                                                .policy = CMKD_AUGMENT_CROP_FLIP,
                                                .loss = loss,
                                                .momentum = .9f,
                                                .weight_decay = 5e-4f,
                                                .kappa = 2},
                           &model, err));
  CMKD_TRY(t->upload(model, CMKD_SLOT_VALUE, (const float *const *)params.value, err));
  for (int64_t s = -4; s < steps; s++) {
    for (int64_t i = 0; i < batch; i++) {
      rows[i] = (uint32_t)((s + 4) * batch + i * 7) % IMAGES;
      seeds[i] = (uint64_t)(s + 4) * 977 + (uint64_t)i * 31;
    }
    cmkd_step step = {.count = (int)batch,
                      .rows = rows,
                      .seeds = seeds,
                      .target[CMKD_TARGET_TEACHER].values = cmkd_loss_needs_teacher(loss) ? teacher : NULL,
                      .lr = 0.01,
                      .epoch = 30};
    cmkd_step_result result;
    int k = 1;
    double start = now();
    CMKD_TRY(t->run(model, train ? CMKD_LIST_TRAIN : CMKD_LIST_INFER, images, &step, 1,
                    (float *[CMKD_MAX_OUTPUTS]){logits}, err));
    CMKD_TRY(t->read(model, &result, &k, err));
    if (s >= 0) seconds[s] = now() - start;
  }
  report(t->describe(backend), seconds, (int)steps, (double)batch,
         2.0 * (double)cmkd_graph_macs(graph) * (double)batch * (train ? 3 : 1));
  t->model_free(model);
  t->images_free(images);
  t->close(backend);
  cmkd_loss_free(loss);
  cmkd_params_free(&params);
  void *const owned[] = {pixels, labels, rows, seeds, teacher, logits, seconds};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    free(owned[i]);
  return CMKD_OK;
}

/* ---- convolutions alone ---- */

/* One convolution, and what each thread needs for it: made once, so that only arithmetic is timed. */
typedef struct share {
  float *src, *dst, *dsrc, *fw, *bw, *grad;
} share;
typedef struct layer {
  cmkd_conv *conv;
  int most, data;
  double pass[3];
  share *share;
} layer;

static float *floats(size_t count) {
  float *p = aligned_alloc(64, (count * sizeof *p + 64 * sizeof *p + 63) / 64 * 64);
  for (size_t i = 0; p && i < count + 64; i++)
    p[i] = (float)(i % 17) * 0.1f - 0.8f;
  return p;
}

static int make_share(const layer *l, share *s) {
  const cmkd_conv *c = l->conv;
  const size_t in = c->in_floats * (size_t)l->most, out = c->out_floats * (size_t)l->most;
  *s = (share){floats(in),
               floats(out),
               floats(in),
               floats(c->forward_floats),
               floats(c->backward_floats),
               floats(c->grad_floats)};
  return s->src && s->dst && s->dsrc && s->fw && s->bw && s->grad;
}

static void free_share(share *s) {
  void *const owned[] = {s->src, s->dst, s->dsrc, s->fw, s->bw, s->grad};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
    free(owned[i]);
}

/* One thread's share: every layer on its images, in chunks that stay in cache. */
static void convs_slice(layer *layers, int count, int images, int thread) {
  const cmkd_epilogue none = {0};
  for (int l = 0; l < count; l++) {
    const cmkd_conv *c = layers[l].conv;
    const share *s = &layers[l].share[thread];
    const int most = layers[l].most;
    double t[4] = {now()};
    for (int i = 0; i < images; i += most)
      cmkd_conv_forward(c, thread, images - i < most ? images - i : most, s->src, s->fw, &none, s->dst);
    t[1] = now();
    for (int i = 0; layers[l].data && i < images; i += most)
      cmkd_conv_backward_data(c, thread, images - i < most ? images - i : most, s->dst, s->bw, 0, s->dsrc);
    t[2] = now();
    for (int i = 0; i < images; i += most)
      cmkd_conv_backward_weights(c, thread, images - i < most ? images - i : most, s->src, s->dst, s->grad);
    t[3] = now();
    for (int p = 0; p < 3 && !thread; p++)
      layers[l].pass[p] = t[p + 1] - t[p];
  }
}

static cmkd_status run_convs(const cmkd_graph *graph, cmkd_error *err) {
  const char *way = getenv("CMKD_CONV");
  layer *layers = calloc((size_t)graph->ops, sizeof *layers);
  double *seconds = calloc((size_t)steps, sizeof *seconds);
  int count = 0;
  if (!layers || !seconds) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    cmkd_shape in = graph->tensor[op->in[0]], out = graph->tensor[op->out];
    if (op->kind != CMKD_OP_CONV) continue;
    cmkd_conv_geometry g = {in.h,         in.w,         in.c,       out.h,   out.w,      out.c,
                            op->kernel_h, op->kernel_w, op->stride, op->pad, op->groups, 1};
    layer *l = &layers[count++];
    *l = (layer){.data = op->in[0] != 0, .share = calloc((size_t)threads, sizeof *l->share)};
    CMKD_TRY(cmkd_conv_create(
        &g, &(cmkd_conv_options){cmkd_cpu_kernels_get(), 1, way && !strcmp(way, "onednn"), (int)threads}, &l->conv,
        err));
    const size_t chunk = 65536 / (l->conv->in_floats + l->conv->out_floats);
    l->most = chunk < 1 ? 1 : chunk > CMKD_CHUNK_MAX ? CMKD_CHUNK_MAX : (int)chunk;
    for (int t = 0; t < threads; t++)
      if (!l->share || !make_share(l, &l->share[t])) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  }
  for (int64_t s = -1; s < steps; s++) {
    double start = now();
#pragma omp parallel num_threads((int)threads)
    convs_slice(layers, count, (int)(batch / threads), omp_get_thread_num());
    if (s >= 0) seconds[s] = now() - start;
  }
  if (getenv("CMKD_BENCH_LAYERS"))
    for (int i = 0; i < count; i++) {
      const cmkd_conv_geometry *g = &layers[i].conv->g;
      double flop = cmkd_conv_flops(layers[i].conv) * (double)(batch / threads) * 1e-9;
      fprintf(stderr, "%3d->%3d @%2d k%d s%d: %6.1f %6.1f %6.1f GFLOP/s a core\n", g->ic, g->oc, g->ih, g->kh,
              g->stride, flop / layers[i].pass[0], layers[i].data ? flop / layers[i].pass[1] : 0,
              flop / layers[i].pass[2]);
    }
  report(way ? way : "direct", seconds, (int)steps, (double)(batch / threads * threads),
         6.0 * (double)cmkd_graph_macs(graph) * (double)batch);
  for (int i = 0; i < count; i++) {
    for (int t = 0; t < threads; t++)
      free_share(&layers[i].share[t]);
    free(layers[i].share);
    cmkd_conv_free(layers[i].conv);
  }
  free(layers);
  free(seconds);
  return CMKD_OK;
}

/* The convolution tile itself on a source of one float: as near to peak as this code gets. */
static void run_peak(void) {
  const cmkd_cpu_kernels *k = cmkd_cpu_kernels_get();
  enum { N = 48, K = 256 };
  double seconds[32];
  int n = steps < 32 ? (int)steps : 32;
  for (int s = 0; s < n; s++) {
    double start = now();
#pragma omp parallel num_threads((int)threads)
    {
      static const float source[K + 64], weights[K * 32 + 64];
      float out[N * 32];
      const cmkd_tap_run run = {.length = K};
      const cmkd_conv_region region = {.ny = 1, .nx = N, .k = K, .runs = 1, .run = &run};
      const cmkd_direct_pass pass = {
          .groups = 1, .outs = k->channel_block, .dst_col = k->channel_block, .regions = 1, .region = &region};
      for (int i = 0; i < 500; i++)
        k->conv_run(&pass, 1, source, weights, &(cmkd_epilogue){0}, out);
    }
    seconds[s] = now() - start;
  }
  report(k->name, seconds, n, 0, 500.0 * 2 * N * K * k->channel_block * (double)threads);
}

int main(int argc, char **argv) {
  cmkd_environment_lower_isa();
  const cmkd_option options[] = {
      {"--arch", "NAME", CMKD_OPT_STRING, &arch, "network [resnet20]", 0, 0, NULL},
      {"--mode", "train|eval|convs|peak", CMKD_OPT_STRING, &mode, "what to time [train]", 0, 0, NULL},
      {"--loss", "EXPR", CMKD_OPT_STRING, &loss_text, "loss of the training step [ce]", 0, 0, NULL},
      {"--batch", "N", CMKD_OPT_INT, &batch, "rows a step [64; eval 128]", 1, 4096, NULL},
      {"--steps", "N", CMKD_OPT_INT, &steps, "steps timed [20]", 1, 100000, NULL},
      {"--threads", "N", CMKD_OPT_INT, &threads, "threads [2]", 1, 256, NULL},
      {"--classes", "N", CMKD_OPT_INT, &classes, "classes [100]", 2, 100000, NULL},
      {"--cpu-time", NULL, CMKD_OPT_FLAG, &cpu_time,
       "count the process's own seconds, not the clock's (for --threads 1)", 0, 0, NULL},
      {0}};
  const cmkd_command command = {
      .name = "train", .summary = "throughput of the CPU backend", .usage = "[options]", .options = options};
  cmkd_error err = {0};
  int help = 0;
  cmkd_graph *graph = NULL;
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status == CMKD_OK && help) return 0;
  int eval = !strcmp(mode, "eval");
  if (!batch) batch = eval ? 128 : 64;
  if (status == CMKD_OK)
    status = cmkd_net_build(arch, (cmkd_net_shape){SIDE, SIDE, CHANNELS, (int)classes}, &graph, &err);
  if (status == CMKD_OK && !strcmp(mode, "peak"))
    run_peak();
  else if (status == CMKD_OK && !strcmp(mode, "convs"))
    status = run_convs(graph, &err);
  else if (status == CMKD_OK)
    status = run_backend(graph, !eval, &err);
  cmkd_graph_free(graph);
  return cmkd_exit_status("train", &err, status);
}
