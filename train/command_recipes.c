/* `cmkd-train recipes`: the published pairs, their settings and accuracies. */
#include <stdio.h>
#include "base/program/options.h"
#include "train/commands.h"
#include "train/recipe.h"

int cmkd_command_recipes(int argc, char **argv) {
  int json = 0, help;
  cmkd_error err = {CMKD_OK, ""};
  const cmkd_option options[] = {{"--json", NULL, CMKD_OPT_FLAG, &json, "one JSON array", 0, 0, NULL},
                                 {NULL, NULL, CMKD_OPT_FLAG, NULL, NULL, 0, 0, NULL}};
  const cmkd_command command = {"cmkd-train recipes",
                                "lists the published pairs: settings, accuracies",
                                "[options]",
                                "cmkd-train --recipe resnet32x4-resnet8x4 --cache teacher.h5 --loss dkd+cmkd",
                                options,
                                0,
                                0};
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status == CMKD_OK && !help) status = cmkd_recipe_print(stdout, json, &err);
  return cmkd_exit_status("cmkd-train recipes", &err, status);
}
