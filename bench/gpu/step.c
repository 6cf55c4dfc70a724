/* Throughput of one network on a backend, one line of JSON: images/s (median over blocks, and best), the seconds of a
 * step, and what a step costs in multiply-adds and bytes. step --arch resnet20 --batch 64 --precision bf16 [--list
 * train|infer] [--loss kd] [--steps 64] [--blocks 21] A block is one run() of `steps` steps and, when training, one
 * read() of their results: nothing waits in between, as in cmkd-train. The images are resident, rows, seeds and the
 * teacher's rows come from the host with every block. INFER calls bring their logits back. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/clock.h"
#include "base/program/options.h"
#include "bench/gpu/world.h"

enum { WARM_BLOCKS = 3 };

static const char *arch = "resnet20", *device = "cuda", *precision = "fp32", *list = "train", *loss_text = "kd";
static int64_t batch = 64, steps = 64, blocks = 21, threads, classes = 100, side = 32, images = 8192;

static int compare(const void *a, const void *b) {
  return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* Numbers of activation that a step moves per image when every operation reads its inputs and writes its output once a
 * pass, and whatever can go along with a neighbour does (statistics and batch norm's sums with the convolution, the
 * activation with the norm). Convolution: forward reads in, writes out; to data reads d out, writes d in; to weights
 * reads in and d out. Norm: forward reads its inputs, writes out; backward reads d out and in, writes d in. Others: the
 * same once each way. INFER: forward alone, norms folded. */
static double activations_moved(const cmkd_graph *graph, int train) {
  double sum = 0;
  for (int i = 0; i < graph->ops; i++) {
    const cmkd_op *op = &graph->op[i];
    double size[3] = {0};
    for (int k = 0; k < 3; k++) {
      const int t = k < 2 ? op->in[k] : op->out;
      if (t >= 0) size[k] = (double)graph->tensor[t].h * graph->tensor[t].w * graph->tensor[t].c;
    }
    const double in = size[0] + size[1], out = size[2];
    if (op->kind == CMKD_OP_NORM)
      sum += train ? in + out + out + size[0] + in : size[1];
    else if (op->kind == CMKD_OP_CONV)
      sum += train ? 2 * in + 3 * out + (op->in[0] ? in : 0) : in + out;
    else
      sum += (in + out) * (train ? 2 : 1);
  }
  return sum;
}

/* One timing a block into `seconds`. */
static cmkd_status time_blocks(bench_side *s, const bench_data *data, int train, int with_teacher, double *seconds,
                               double *loss, cmkd_error *err) {
  bench_steps block;
  double *losses = malloc((size_t)steps * sizeof *losses);
  float *logits = malloc((size_t)(steps * batch * classes) * sizeof *logits);
  cmkd_status status = bench_steps_create((int)steps, (int)batch, (int)classes, &block, err);
  if (status == CMKD_OK && (!losses || !logits)) status = cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int64_t b = -WARM_BLOCKS; status == CMKD_OK && b < blocks; b++) {
    bench_steps_fill(&block, data, (b + WARM_BLOCKS) * steps, (int)batch, with_teacher, 0.01);
    double start = cmkd_seconds();
    if (train)
      status = bench_steps_train(s, &block, (int)steps, losses, err);
    else
      status = s->table->run(s->model, CMKD_LIST_INFER, s->images, block.step, (int)steps,
                             (float *[CMKD_MAX_OUTPUTS]){logits}, err);
    if (b >= 0) seconds[b] = cmkd_seconds() - start;
    if (status == CMKD_OK && train) *loss = losses[steps - 1];
  }
  bench_steps_free(&block);
  free(losses);
  free(logits);
  return status;
}

static void report(const cmkd_graph *graph, const bench_side *s, int train, double *seconds, double loss) {
  const int narrow = !strcmp(precision, "bf16") || !strcmp(precision, "fp16");
  const double rows = (double)(batch * steps), macs = (double)cmkd_graph_macs(graph);
  qsort(seconds, (size_t)blocks, sizeof *seconds, compare);
  const double median = seconds[blocks / 2];
  json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I}", "arch", arch, "list", list, "backend",
                        s->table->describe(s->backend), "precision", precision, "batch", (json_int_t)batch,
                        "steps_per_run", (json_int_t)steps, "blocks", (json_int_t)blocks);
  json_object_set_new(o, "img_per_s", json_real(rows / median));
  json_object_set_new(o, "best_img_per_s", json_real(rows / seconds[0]));
  json_object_set_new(o, "worst_img_per_s", json_real(rows / seconds[blocks - 1]));
  json_object_set_new(o, "step_us", json_real(1e6 * median / (double)steps));
  json_object_set_new(o, "flop_per_image", json_real(2 * macs * (train ? 3 : 1)));
  json_object_set_new(o, "tflops", json_real(2e-12 * macs * (train ? 3 : 1) * rows / median));
  json_object_set_new(o, "bytes_per_image", json_real(activations_moved(graph, train) * (narrow ? 2 : 4)));
  if (train)
    json_object_set_new(o, "loss", json_string(loss_text)), json_object_set_new(o, "last_loss", json_real(loss));
  json_dumpf(o, stdout, JSON_REAL_PRECISION(6));
  putchar('\n');
  json_decref(o);
}

static cmkd_status measure(cmkd_error *err) {
  const int train = !strcmp(list, "train");
  cmkd_graph *graph = NULL;
  cmkd_loss *loss = NULL;
  cmkd_params params = {0};
  bench_data data = {0};
  bench_side s = {0};
  double *seconds = calloc((size_t)blocks, sizeof *seconds), last_loss = 0;
  cmkd_status status = seconds
                           ? cmkd_net_build(arch, (cmkd_net_shape){(int)side, (int)side, 3, (int)classes}, &graph, err)
                           : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  if (status == CMKD_OK && train) status = cmkd_loss_parse(loss_text, CMKD_LOSS_CIFAR, &loss, err);
  if (status == CMKD_OK) status = cmkd_params_create(graph, &params, err);
  if (status == CMKD_OK) cmkd_params_init(graph, 1, &params);
  if (status == CMKD_OK)
    status =
        bench_data_create((cmkd_net_shape){(int)side, (int)side, 3, (int)classes}, (uint32_t)images, 1, &data, err);
  if (status == CMKD_OK)
    status = bench_side_open(&(bench_setup){.device = device,
                                            .precision = precision,
                                            .threads = (int)threads,
                                            .batch = (int)batch,
                                            .graph = graph,
                                            .loss = loss,
                                            .data = &data,
                                            .params = &params},
                             &s, err);
  if (status == CMKD_OK)
    status = time_blocks(&s, &data, train, train && cmkd_loss_needs_teacher(loss), seconds, &last_loss, err);
  if (status == CMKD_OK) report(graph, &s, train, seconds, last_loss);
  bench_side_close(&s);
  bench_data_free(&data);
  cmkd_params_free(&params);
  cmkd_loss_free(loss);
  cmkd_graph_free(graph);
  free(seconds);
  return status;
}

int main(int argc, char **argv) {
  cmkd_environment_lower_isa();
  const cmkd_option options[] = {
      {"--arch", "NAME", CMKD_OPT_STRING, &arch, "network [resnet20]", 0, 0, NULL},
      {"--list", "train|infer", CMKD_OPT_STRING, &list, "what a step does [train]", 0, 0, NULL},
      {"--device", "NAME", CMKD_OPT_STRING, &device, "cpu, cuda, ref [cuda]", 0, 0, NULL},
      {"--precision", "NAME", CMKD_OPT_STRING, &precision, "fp32, tf32, bf16, fp16 [fp32]", 0, 0, NULL},
      {"--loss", "EXPR", CMKD_OPT_STRING, &loss_text, "loss of the training step [kd]", 0, 0, NULL},
      {"--batch", "N", CMKD_OPT_INT, &batch, "rows a step [64]", 1, 65536, NULL},
      {"--steps", "N", CMKD_OPT_INT, &steps, "steps a run() call [64]", 1, 65536, NULL},
      {"--blocks", "N", CMKD_OPT_INT, &blocks, "calls timed; 3 more come before [21]", 1, 100000, NULL},
      {"--images", "N", CMKD_OPT_INT, &images, "images resident [8192]", 1, 10000000, NULL},
      {"--classes", "N", CMKD_OPT_INT, &classes, "classes [100]", 2, 100000, NULL},
      {"--side", "N", CMKD_OPT_INT, &side, "height and width of an image [32]", 8, 512, NULL},
      {"--threads", "N", CMKD_OPT_INT, &threads, "of the CPU [all cores]", 1, 4096, NULL},
      {0}};
  const cmkd_command command = {
      .name = "step", .summary = "throughput of a network on a backend", .usage = "[options]", .options = options};
  cmkd_error err = {0};
  int help = 0;
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status == CMKD_OK && help) return 0;
  if (status == CMKD_OK && strcmp(list, "train") && strcmp(list, "infer"))
    status = cmkd_fail(&err, CMKD_ERR_USAGE, "--list %.40s: there are train and infer", list);
  if (status == CMKD_OK) status = measure(&err);
  return cmkd_exit_status("step", &err, status);
}
