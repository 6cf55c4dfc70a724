/* `cmkd-train nets`: the architectures and their size. */
#include <jansson.h>
#include <stdio.h>
#include "base/program/options.h"
#include "nets/net.h"
#include "train/commands.h"

static cmkd_status list_nets(const cmkd_net_shape *given, int size, int json, cmkd_error *err) {
  (void)err;
  json_t *list = json_array();
  if (!json) printf("%-22s %10s %10s\n", "name", "parameters", "MMACs");
  for (const char *const *name = cmkd_net_names(); *name; name++) {
    cmkd_net_shape shape = *given;
    shape.height = shape.width = size ? size : cmkd_net_side(*name);
    if (!shape.classes) shape.classes = cmkd_net_side(*name) >= 224 ? 1000 : 100; /* ImageNet, CIFAR-100 */
    cmkd_graph *graph;
    cmkd_error why = {CMKD_OK, ""};
    cmkd_status status = cmkd_net_build(*name, shape, &graph, &why);
    if (status != CMKD_OK) {
      if (!json) printf("%-22s %s\n", *name, why.message); /* too deep for so small an image */
      continue;
    }
    double macs = 1e-6 * (double)cmkd_graph_macs(graph);
    if (json)
      json_array_append_new(list, json_pack("{s:s, s:I, s:f}", "name", *name, "parameters",
                                            (json_int_t)cmkd_graph_parameters(graph), "mmacs", macs));
    else
      printf("%-22s %10lld %10.2f\n", *name, (long long)cmkd_graph_parameters(graph), macs);
    cmkd_graph_free(graph);
  }
  if (json) {
    json_dumpf(list, stdout, JSON_COMPACT | JSON_REAL_PRECISION(10));
    putchar('\n');
  }
  json_decref(list);
  return CMKD_OK;
}

int cmkd_command_nets(int argc, char **argv) {
  int64_t classes = 0, channels = 3, size = 0;
  int json = 0, help;
  cmkd_error err = {CMKD_OK, ""};
  const cmkd_option options[] = {
      {"--classes", "N", CMKD_OPT_INT, &classes,
       "of the classifier [what the network is published for: 100, 1000 at 224 pixels]", 2, 131072, NULL},
      {"--channels", "N", CMKD_OPT_INT, &channels, "of the image, 1 or 3 [3]", 1, 3, NULL},
      {"--size", "N", CMKD_OPT_INT, &size, "side of the image [what the network is published for]", 1, 4096, NULL},
      {"--json", NULL, CMKD_OPT_FLAG, &json, "one JSON array", 0, 0, NULL},
      {NULL, NULL, CMKD_OPT_FLAG, NULL, NULL, 0, 0, NULL}};
  const cmkd_command command = {"cmkd-train nets",
                                "lists the networks: parameters, multiply-accumulates an image",
                                "[options]",
                                "cmkd-train nets --classes 10 --channels 1 --size 28",
                                options,
                                0,
                                0};
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status == CMKD_OK && !help) {
    cmkd_net_shape shape = {0, 0, (int)channels, (int)classes};
    status = list_nets(&shape, (int)size, json, &err);
  }
  return cmkd_exit_status("cmkd-train nets", &err, status);
}
