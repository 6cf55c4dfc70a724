/* cmkd-cache list: the caches under a folder, one line each; what claims to be one and can't be read is listed with its
 * reason. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "base/json.h"
#include "base/program/print.h"
#include "base/program/options.h"
#include "base/text.h"
#include "cmkd/cache.h"
#include "precompute/commands.h"

#define MAX_DEPTH 16

typedef struct listing {
  int json; /* 0: print a table as caches are found */
  cmkd_json array;
  int found, bad;
} listing;

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

/* Masters begin with our magic; shards live in folders of their own that are not entered. */
static int looks_like_master(const char *path) {
  unsigned char start[8] = {0};
  FILE *file = fopen(path, "rb");
  size_t got = file ? fread(start, 1, sizeof start, file) : 0;
  if (file) fclose(file);
  return got == sizeof start && !memcmp(start, "CMKD\r\n\x1a\n", 8);
}

static void show_unreadable(listing *l, const char *path, const char *why) {
  l->bad++;
  if (!l->json) {
    printf("%-32s unreadable: %s\n", path, why);
    return;
  }
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "cache", cmkd_json_string(path));
  cmkd_json_set(&o, "error", cmkd_json_string(why));
  cmkd_json_append(&l->array, cmkd_json_end(&o));
}

static json_t *describe(const char *path, const cmkd_cache_info *info) {
  const cmkd_cache_identity *id = &info->identity;
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "cache", cmkd_json_string(path));
  cmkd_json_set(&o, "teacher", json_string(id->teacher_name));
  cmkd_json_set(&o, "teacher_sha256", json_string(id->teacher_sha256));
  cmkd_json_set(&o, "dataset", json_string(id->dataset));
  cmkd_json_set(&o, "split", json_string(id->split));
  cmkd_json_set(&o, "samples", json_integer((json_int_t)info->samples));
  cmkd_json_set(&o, "views", json_integer(info->views));
  cmkd_json_set(&o, "classes", json_integer(info->classes));
  cmkd_json_set(&o, "codec", json_string(id->codec));
  cmkd_json_set(&o, "bytes", json_integer((json_int_t)info->bytes));
  return cmkd_json_end(&o);
}

static void show(listing *l, const char *path) {
  cmkd_cache *cache;
  cmkd_error err;
  char size[24];
  if (cmkd_cache_open(path, &cache, &err) != CMKD_OK) {
    show_unreadable(l, path, err.message);
    return;
  }
  const cmkd_cache_info *info = cmkd_cache_get_info(cache);
  const cmkd_cache_identity *id = &info->identity;
  l->found++;
  if (l->json)
    cmkd_json_append(&l->array, describe(path, info));
  else
    printf("%-32s %-28.28s %s/%-6s %9" PRIu64 " x %-4u %5u %-7s %s\n", path, id->teacher_name, id->dataset, id->split,
           info->samples, info->views, info->classes, id->codec, cmkd_bytes(info->bytes, size));
  cmkd_cache_close(cache);
}

static cmkd_status walk(listing *l, const char *dir, int depth, cmkd_error *err) {
  struct dirent **entries;
  int n = scandir(dir, &entries, NULL, by_name);
  if (n < 0) return depth ? CMKD_OK : cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be read as a folder", dir);
  for (int i = 0; i < n; i++) {
    const char *name = entries[i]->d_name;
    size_t length = strlen(name);
    char *path = name[0] == '.' ? NULL : cmkd_path_join(dir, name);
    struct stat about;
    if (path && lstat(path, &about) == 0) {
      int shards = length > 7 && !strcmp(name + length - 7, ".shards");
      if (S_ISDIR(about.st_mode) && !shards && depth < MAX_DEPTH)
        walk(l, path, depth + 1, NULL);
      else if (S_ISREG(about.st_mode) && looks_like_master(path))
        show(l, path);
    }
    free(path);
    free(entries[i]);
  }
  free(entries);
  return CMKD_OK;
}

cmkd_status cmkd_command_list(int argc, char **argv, cmkd_error *err) {
  const char *dir[1] = {"."};
  int help = 0, positionals = 0, json = 0;
  const cmkd_option table[] = {{.name = "--json", .kind = CMKD_OPT_FLAG, .target = &json, .help = "one JSON array"},
                               {0}};
  const cmkd_command command = {.name = "cmkd-cache list",
                                .summary =
                                    "Caches under a folder: teacher, data, samples x views, classes, codec, size.",
                                .usage = "[DIR]",
                                .options = table,
                                .max_positional = 1,
                                .examples = "  cmkd-cache list /data/caches\n"};
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, dir, &positionals, &help, err));
  if (help) return CMKD_OK;
  listing l = {.json = json};
  if (json) l.array = cmkd_json_array();
  cmkd_status status = walk(&l, dir[0], 0, err);
  json_t *list = json ? cmkd_json_end(&l.array) : NULL;
  if (json && status == CMKD_OK)
    status = cmkd_json_print(list, 9, err);
  else
    json_decref(list);
  if (!json && status == CMKD_OK && !l.found && !l.bad) printf("no caches under %s\n", dir[0]);
  return status;
}
