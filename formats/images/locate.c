/* Where the files of a data set are. See locate.h. */
#include "formats/images/locate.h"
#include "base/file.h"
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* '~' and '~/' at the beginning are the home folder; slashes at the end are dropped. */
static char *expand(const char *dir, const char *home) {
  char *out;
  if (dir[0] == '~' && (dir[1] == '/' || !dir[1])) {
    char buffer[4096];
    struct passwd pw, *found = NULL;
    if (!home && getpwuid_r(getuid(), &pw, buffer, sizeof buffer, &found) == 0 && found) home = found->pw_dir;
    out = cmkd_format("%s%s", home ? home : "", dir + 1);
  } else {
    out = cmkd_format("%s", dir);
  }
  for (size_t n = out ? strlen(out) : 0; n > 1 && out[n - 1] == '/'; n--)
    out[n - 1] = 0;
  return out;
}

/* base, or a subfolder of it, where the split's files are; NULL: there are none. */
static char *look_in(const cmkd_places *p, const char *base, int test) {
  for (int i = 0; p->subfolders[i]; i++) {
    char *dir = p->subfolders[i][0] ? cmkd_path_join(base, p->subfolders[i]) : cmkd_format("%s", base);
    if (dir && p->reader->holds(dir, test)) return dir;
    free(dir);
  }
  return NULL;
}

static cmkd_status look_in_given(const cmkd_places *p, const char *base, int test, char **out, cmkd_error *err) {
  struct stat st;
  if (!base[0])
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "data set %s: no folder behind the colon; give %s:DIR, or %s alone to search the usual places",
                     p->name, p->name, p->name);
  if (stat(base, &st) != 0)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: no such folder; %s needs one that holds %s", base, p->name,
                     p->reader->files);
  if (!S_ISDIR(st.st_mode))
    return cmkd_fail(err, CMKD_ERR_IO, "%s: not a folder; unpack it and give the folder that holds %s", base,
                     p->reader->files);
  *out = look_in(p, base, test);
  if (!*out)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: found no %s split of %s there; the folder should hold %s", base,
                     test ? "test" : "train", p->name, p->reader->files);
  return CMKD_OK;
}

static cmkd_status locate_given(const cmkd_places *p, const cmkd_dataset_options *options, const char *given, int test,
                                char **out, cmkd_error *err) {
  char *base = expand(given, options->home);
  cmkd_status status = base ? look_in_given(p, base, test, out, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  free(base);
  return status;
}

static cmkd_status locate_usual(const cmkd_places *p, const cmkd_dataset_options *options, int test, char **out,
                                cmkd_error *err) {
  const char *roots[] = {options->search, "data", "/usr/share/datasets"};
  char looked[640] = "";
  size_t at = 0;
  for (int r = 0; r < 3; r++)
    for (int f = 0; p->folders[f]; f++) {
      if (!roots[r] || !roots[r][0]) continue;
      char *root = expand(roots[r], options->home), *base = root ? cmkd_path_join(root, p->folders[f]) : NULL;
      free(root);
      if (!base) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
      *out = look_in(p, base, test);
      if (at < sizeof looked) at += (size_t)snprintf(looked + at, sizeof looked - at, "%s%s", at ? ", " : "", base);
      free(base);
      if (*out) return CMKD_OK;
    }
  return cmkd_fail(err, CMKD_ERR_IO, "%s: found nothing in %s; give the data set as %s:DIR %s", p->name, looked,
                   p->name, p->remedy);
}

cmkd_status cmkd_dataset_locate(const cmkd_places *places, const cmkd_dataset_options *options, const char *given,
                                int test, char **out, cmkd_error *err) {
  *out = NULL;
  if (given) return locate_given(places, options, given, test, out, err);
  return locate_usual(places, options, test, out, err);
}
