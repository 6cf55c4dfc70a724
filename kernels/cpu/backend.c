/* The CPU backend behind the table: any number of models on one fixed number of threads. */
#include "kernels/cpu/backend.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cpu.h"
#include "base/limits.h"
#include "kernels/cpu/conv/dnnl.h"
#include "kernels/cpu/model.h"

static int wants_dnnl(const char *conv) {
  if (!cmkd_conv_dnnl_available() || (conv && !strcmp(conv, "direct"))) return 0;
  if (conv && !strcmp(conv, "onednn")) return 1;
  /* With AVX2 and AVX-512 the direct kernels are faster (docs/results.md). */
  return cmkd_cpu_isa() == CMKD_ISA_BASELINE;
}

static cmkd_status open_backend(const cmkd_backend_options *options, cmkd_backend **out, cmkd_error *err) {
  *out = NULL;
  static const cmkd_backend_options defaults;
  if (!options) options = &defaults;
  if (options->precision && strcmp(options->precision, "fp32"))
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                     "--precision %.40s: the CPU computes in fp32; leave the option out, or take a GPU (--device cuda)",
                     options->precision);
  if (options->threads < 0 || options->threads > CMKD_MAX_THREADS)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--threads %d is out of range (0 for all cores, at most %d)",
                     options->threads, CMKD_MAX_THREADS);
  cmkd_backend *backend = calloc(1, sizeof *backend);
  if (!backend) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  char version[32];
  backend->threads = options->threads ? options->threads : cmkd_cpu_count();
  backend->dnnl = wants_dnnl(options->conv);
  backend->kernels = cmkd_cpu_kernels_get();
  snprintf(backend->text, sizeof backend->text, "cpu: %d thread%s, %s%s convolutions, %s", backend->threads,
           backend->threads == 1 ? "" : "s", backend->dnnl ? "oneDNN " : "direct",
           backend->dnnl ? cmkd_conv_dnnl_version(version) : "", cmkd_isa_name(cmkd_cpu_isa()));
  *out = backend;
  return CMKD_OK;
}

static void close_backend(cmkd_backend *backend) { free(backend); }
static const char *describe(const cmkd_backend *backend) { return backend->text; }

static cmkd_status images_create(cmkd_backend *backend, const cmkd_image_set *set, cmkd_be_images **out,
                                 cmkd_error *err) {
  (void)backend;
  *out = malloc(sizeof **out);
  if (!*out) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  (*out)->set = *set;
  return CMKD_OK;
}

static void images_free(cmkd_be_images *images) { free(images); }

static cmkd_status run_steps(cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps,
                             int k, float *const *outputs, cmkd_error *err) {
  const cmkd_graph *graph = m->graph;
  float *at[CMKD_MAX_OUTPUTS] = {NULL}; /* where the next step's rows go */
  for (int i = 0; outputs && i < graph->outputs; i++)
    at[i] = outputs[i];
  for (int i = 0; i < k; i++) {
    CMKD_TRY(cmkd_step_check(&m->config, list, &images->set, &steps[i], 0, err));
    if (list == CMKD_LIST_TRAIN) {
      CMKD_TRY(cmkd_cpu_train_step(m, images, &steps[i], err));
      continue;
    }
    CMKD_TRY(cmkd_cpu_infer_step(m, images, &steps[i], at, err));
    for (int j = 0; j < graph->outputs; j++)
      if (at[j]) at[j] += (size_t)steps[i].count * cmkd_graph_output_width(graph, j);
  }
  return CMKD_OK;
}

static cmkd_status read_results(cmkd_be_model *m, cmkd_step_result *results, int *k, cmkd_error *err) {
  (void)err;
  cmkd_results_take(&m->results, results, k);
  return CMKD_OK;
}

const cmkd_backend_table cmkd_backend_cpu = {.version = CMKD_BACKEND_VERSION,
                                             .name = "cpu",
                                             .open = open_backend,
                                             .close = close_backend,
                                             .describe = describe,
                                             .images_create = images_create,
                                             .images_free = images_free,
                                             .model_create = cmkd_cpu_model_create,
                                             .model_free = cmkd_cpu_model_free,
                                             .upload = cmkd_cpu_upload,
                                             .download = cmkd_cpu_download,
                                             .run = run_steps,
                                             .read = read_results,
                                             .gradients = cmkd_cpu_gradients};
