/* cmkd-train: chooses the command. Training is the one without a name. */
#include <stdio.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/text.h"
#include "cmkd/api.h"
#include "train/commands.h"

static const struct {
  const char *name;
  int (*run)(int, char **);
} commands[] = {{"eval", cmkd_command_eval},
                {"nets", cmkd_command_nets},
                {"onnx", cmkd_command_onnx},
                {"recipes", cmkd_command_recipes}};
enum { COMMANDS = sizeof commands / sizeof *commands };

int main(int argc, char **argv) {
  cmkd_environment_start(argv);
  if (argc < 2 || argv[1][0] == '-' || !argv[1][0]) {
    if (argc == 2 && !strcmp(argv[1], "--version")) {
      puts("cmkd-train " CMKD_VERSION);
      return 0;
    }
    return cmkd_command_train(argc, argv);
  }
  const char *names[COMMANDS + 1] = {NULL};
  for (int i = 0; i < COMMANDS; i++) {
    if (!strcmp(argv[1], commands[i].name)) return commands[i].run(argc - 1, argv + 1);
    names[i] = commands[i].name;
  }
  const char *near = cmkd_nearest(argv[1], names);
  fprintf(stderr, "cmkd-train: unknown command %.60s%s%s%s; cmkd-train --help lists all\n", argv[1],
          near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
  return 2;
}
