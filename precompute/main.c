/* cmkd-cache: runs the teacher once, writes, checks and reshapes caches. This file only finds the subcommand. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/program/interrupt.h"
#include "base/program/options.h"
#include "base/text.h"
#include "precompute/commands.h"

typedef struct command {
  const char *name, *summary;
  cmkd_status (*run)(int argc, char **argv, cmkd_error *err);
} command;
static const command commands[] = {
    {"build", "run a teacher over a data set and write its logits; run again to continue", cmkd_command_build},
    {"finish", "join the shards of --part builds into one cache", cmkd_command_finish},
    {"info", "what a cache holds", cmkd_command_info},
    {"verify", "check every hash; --deep every number; --teacher recomputes rows", cmkd_command_verify},
    {"export", "logits as .npy or safetensors", cmkd_command_export},
    {"import", "a cache of logits that another framework dumped", cmkd_command_import},
    {"repack", "another codec, and what it did to the rows", cmkd_command_repack},
    {"merge", "more samples, more views, or the mean of several teachers", cmkd_command_merge},
    {"subset", "some samples, views or classes", cmkd_command_subset},
    {"list", "the caches under a folder", cmkd_command_list},
    {"diff", "what two caches disagree on", cmkd_command_diff},
    {"plan", "bytes, time and break-even of a cache to be built", cmkd_command_plan},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void help(FILE *out) {
  fprintf(out, "cmkd-cache: a teacher's logits, paid for once\n\nusage: cmkd-cache COMMAND [options]\n\n");
  for (int i = 0; i < COMMANDS; i++)
    fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
  fprintf(
      out,
      "\ncmkd-cache COMMAND --help lists its options.\n\nexamples:\n"
      "  cmkd-cache build --teacher resnet56-cifar100.safetensors --data cifar100:DIR --views all --out teacher.h5\n"
      "  cmkd-cache verify --deep teacher.h5\n");
}

int main(int argc, char **argv) {
  cmkd_environment_start(argv);
  const char *word = argc > 1 ? argv[1] : "--help", *names[COMMANDS + 1];
  if (argc < 2) {
    help(stderr);
    return 2;
  }
  if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help")) {
    help(stdout);
    return 0;
  }
  if (!strcmp(word, "--version")) {
    printf("cmkd-cache %s\n", CMKD_VERSION);
    return 0;
  }
  cmkd_error err = {0};
  for (int i = 0; i < COMMANDS; i++) {
    names[i] = commands[i].name;
    if (strcmp(word, commands[i].name) != 0) continue;
    cmkd_interrupt_install();
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is a failed write, not a death */
    cmkd_status status = commands[i].run(argc - 1, argv + 1, &err);
    if (status == CMKD_OK && (fflush(stdout) != 0 || ferror(stdout)))
      status = cmkd_fail(&err, CMKD_ERR_IO, "standard output cannot be written; is the disk full?");
    return cmkd_exit_status("cmkd-cache", &err, status);
  }
  names[COMMANDS] = NULL;
  const char *near = cmkd_nearest(word, names);
  cmkd_status status =
      near ? cmkd_fail(&err, CMKD_ERR_USAGE, "no command is called '%.60s'; did you mean '%s'?", word, near)
           : cmkd_fail(&err, CMKD_ERR_USAGE, "no command is called '%.60s'; cmkd-cache --help lists them", word);
  return cmkd_exit_status("cmkd-cache", &err, status);
}
