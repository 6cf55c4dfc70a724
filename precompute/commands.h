/* The subcommands of cmkd-cache, one file each. main.c holds the table; a new one is a file and a line there. Each
 * parses its own options (argv[0] is the subcommand), prints its results to stdout and leaves errors to the caller. */
#ifndef CMKD_PRECOMPUTE_COMMANDS_H
#define CMKD_PRECOMPUTE_COMMANDS_H
#include "cmkd/status.h"

cmkd_status cmkd_command_build(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_finish(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_info(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_verify(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_export(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_import(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_repack(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_merge(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_subset(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_list(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_diff(int argc, char **argv, cmkd_error *err);
cmkd_status cmkd_command_plan(int argc, char **argv, cmkd_error *err);
#endif
