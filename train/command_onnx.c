/* `cmkd-train onnx`: weights of any network as an ONNX file. */
#include <stdio.h>
#include <string.h>
#include "base/program/options.h"
#include "nets/onnx.h"
#include "train/commands.h"

typedef struct onnx_options {
  const char *weights, *out, *arch;
  int64_t size;
  int keep_norms, features;
} onnx_options;

/* The images of MNIST and its like are smaller than what the networks are published for. */
static int side_of(const cmkd_weights *weights, const char *arch, int64_t asked) {
  const char *data = cmkd_weights_meta(weights, "dataset");
  if (asked) return (int)asked;
  return data && strstr(data, "mnist") ? 28 : cmkd_net_side(arch);
}

static cmkd_status export_weights(const onnx_options *o, const cmkd_weights *weights, cmkd_error *err) {
  static const float zero[3] = {0, 0, 0}, one[3] = {1, 1, 1};
  int has_norm = cmkd_weights_meta(weights, "mean") && cmkd_weights_meta(weights, "std");
  cmkd_model_spec spec;
  /* the network gets pixels that are normalised already: weights that say nothing about it are fine here */
  CMKD_TRY(cmkd_model_spec_read(weights, o->arch, has_norm ? NULL : zero, has_norm ? NULL : one, &spec, err));
  int side = side_of(weights, spec.arch, o->size);
  cmkd_graph *graph;
  CMKD_TRY(cmkd_net_build(spec.arch, (cmkd_net_shape){side, side, spec.channels, spec.classes}, &graph, err));
  cmkd_params params;
  cmkd_status status = cmkd_params_create(graph, &params, err);
  if (status == CMKD_OK) status = cmkd_params_load(graph, weights, &params, err);
  static const char *const kept[] = {"dataset", "classes", "mean", "std", "top1", "top5"};
  enum { KEPT = sizeof kept / sizeof *kept };
  const char *keys[2 + KEPT] = {"arch", "weights_sha256"}, *values[2 + KEPT] = {graph->arch, weights->sha256};
  int n = 2;
  for (int i = 0; i < KEPT; i++) {
    const char *value = cmkd_weights_meta(weights, kept[i]);
    if (!value) continue;
    keys[n] = kept[i];
    values[n++] = value;
  }
  const cmkd_onnx_options options = {
      .fold = !o->keep_norms, .features = o->features, .meta_keys = keys, .meta_values = values, .meta_count = n};
  if (status == CMKD_OK) status = cmkd_onnx_write(graph, &params, &options, o->out, err);
  if (status == CMKD_OK)
    printf("%s: %s, input (batch, %d, %d, %d) normalised, logits (batch, %d)\n", o->out, graph->arch, spec.channels,
           side, side, spec.classes);
  cmkd_params_free(&params);
  cmkd_graph_free(graph);
  return status;
}

int cmkd_command_onnx(int argc, char **argv) {
  onnx_options o = {0};
  int help;
  cmkd_error err = {CMKD_OK, ""};
  const cmkd_option options[] = {
      {"--weights", "FILE", CMKD_OPT_STRING, &o.weights, "safetensors, .pth, .pt or .th", 0, 0, NULL},
      {"--out", "FILE", CMKD_OPT_STRING, &o.out, "the ONNX file (opset 13)", 0, 0, NULL},
      {"--arch", "NAME", CMKD_OPT_STRING, &o.arch, "for weights without metadata; auto: the one that fits", 0, 0, NULL},
      {"--size", "N", CMKD_OPT_INT, &o.size, "side of the image [the data set's, or what the network is published for]",
       1, 4096, NULL},
      {"--keep-norms", NULL, CMKD_OPT_FLAG, &o.keep_norms, "leave batch norms as they are [folded into convolutions]",
       0, 0, NULL},
      {"--features", NULL, CMKD_OPT_FLAG, &o.features, "penultimate features as a second output", 0, 0, NULL},
      {NULL, NULL, CMKD_OPT_FLAG, NULL, NULL, 0, 0, NULL}};
  const cmkd_command command = {"cmkd-train onnx",
                                "writes trained weights as an ONNX network",
                                "--weights FILE --out FILE [options]",
                                "cmkd-train onnx --weights runs/student/best.safetensors --out student.onnx",
                                options,
                                0,
                                0};
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status == CMKD_OK && !help) {
    cmkd_weights *weights = NULL;
    if (!o.weights || !o.out)
      status = cmkd_fail(&err, CMKD_ERR_USAGE, "%s is required; see cmkd-train onnx --help",
                         o.weights ? "--out" : "--weights");
    else
      status = cmkd_weights_read(o.weights, &weights, &err);
    if (status == CMKD_OK) status = export_weights(&o, weights, &err);
    cmkd_weights_free(weights);
  }
  return cmkd_exit_status("cmkd-train onnx", &err, status);
}
