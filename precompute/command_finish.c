/* cmkd-cache finish: joins the shards of --part builds into one cache, and those of its companion. */
#include <stdio.h>
#include <stdlib.h>
#include "base/file.h"
#include "base/program/options.h"
#include "cmkd/cache_writer.h"
#include "formats/cache/paths.h"
#include "precompute/commands.h"

static cmkd_status join(const char *path, int quiet, cmkd_error *err) {
  cmkd_cache_writer *writer;
  CMKD_TRY(cmkd_cache_writer_join(path, &writer, err));
  cmkd_status status = cmkd_cache_writer_finish(writer, err);
  if (status == CMKD_OK && !quiet) printf("%s: %u shards joined\n", path, cmkd_cache_writer_shards(writer));
  cmkd_cache_writer_close(writer);
  return status;
}

cmkd_status cmkd_command_finish(int argc, char **argv, cmkd_error *err) {
  const char *out = NULL, *positional[1] = {0};
  int help = 0, positionals = 0, quiet = 0;
  const cmkd_option table[] = {
      {.name = "--out",
       .argument = "FILE.h5",
       .kind = CMKD_OPT_STRING,
       .target = &out,
       .help = "the cache, as given to the parts"},
      {.name = "--quiet", .kind = CMKD_OPT_FLAG, .target = &quiet, .help = "say nothing"},
      {0},
  };
  const cmkd_command command = {
      .name = "cmkd-cache finish",
      .summary =
          "Joins the shards that --part builds left: checks every hash, writes the master (and that of OUT.test.h5).",
      .usage = "--out FILE.h5",
      .options = table,
      .max_positional = 1,
      .examples = "  cmkd-cache finish --out teacher.h5\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, positional, &positionals, &help, err));
  if (help) return CMKD_OK;
  if (!out) out = positional[0];
  if (!out) return cmkd_fail(err, CMKD_ERR_USAGE, "which cache? give --out FILE.h5");
  char *test = cmkd_cache_companion(out), *folder = test ? cmkd_cache_folder(test) : NULL;
  cmkd_status status = folder ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "no memory for a file name");
  if (status == CMKD_OK) status = join(out, quiet, err);
  if (status == CMKD_OK && cmkd_file_exists(folder)) status = join(test, quiet, err);
  free(test);
  free(folder);
  return status;
}
