/* `cmkd-train nets`: the architectures and their size. */
#include <stdio.h>
#include "base/json.h"
#include "base/program/print.h"
#include "base/program/options.h"
#include "nets/net.h"
#include "train/commands.h"

/* `why` says what kept a network from being built. */
static cmkd_status build(const char *name, const cmkd_net_shape *given, int size, cmkd_graph **out, cmkd_error *why) {
  cmkd_net_shape shape = *given;
  shape.height = shape.width = size ? size : cmkd_net_side(name);
  if (!shape.classes) shape.classes = cmkd_net_side(name) >= 224 ? 1000 : 100; /* ImageNet, CIFAR-100 */
  return cmkd_net_build(name, shape, out, why);
}

static double mmacs(const cmkd_graph *graph) { return 1e-6 * (double)cmkd_graph_macs(graph); }

static void print_nets(const cmkd_net_shape *given, int size) {
  printf("%-22s %10s %10s\n", "name", "parameters", "MMACs");
  for (const char *const *name = cmkd_net_names(); *name; name++) {
    cmkd_graph *graph;
    cmkd_error why = {CMKD_OK, ""};
    if (build(*name, given, size, &graph, &why) != CMKD_OK) {
      printf("%-22s %s\n", *name, why.message); /* too deep for so small an image */
      continue;
    }
    printf("%-22s %10lld %10.2f\n", *name, (long long)cmkd_graph_parameters(graph), mmacs(graph));
    cmkd_graph_free(graph);
  }
}

/* Networks that cannot be built for the shape are left out. */
static json_t *nets_json(const cmkd_net_shape *given, int size) {
  cmkd_json list = cmkd_json_array();
  for (const char *const *name = cmkd_net_names(); *name; name++) {
    cmkd_graph *graph;
    if (build(*name, given, size, &graph, NULL) != CMKD_OK) continue;
    cmkd_json net = cmkd_json_object();
    cmkd_json_set(&net, "name", json_string(*name));
    cmkd_json_set(&net, "parameters", json_integer(cmkd_graph_parameters(graph)));
    cmkd_json_set(&net, "mmacs", cmkd_json_number(mmacs(graph)));
    cmkd_json_append(&list, cmkd_json_end(&net));
    cmkd_graph_free(graph);
  }
  return cmkd_json_end(&list);
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
    if (json)
      status = cmkd_json_print(nets_json(&shape, (int)size), 10, &err);
    else
      print_nets(&shape, (int)size);
  }
  return cmkd_exit_status("cmkd-train nets", &err, status);
}
