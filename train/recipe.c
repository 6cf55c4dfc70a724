/* Recipes: where their files are, what is in them, and their table. See recipe.h. */
#include "train/recipe.h"
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "base/program/environment.h"
#include "base/text.h"

#define MAX_RECIPES 256
#define MAX_FILE (64 << 10)

/* ---- where recipes live ---- */

/* The first candidate folder that exists, fresh memory; NULL when none does. */
static char *recipe_dir(void) {
  const char *asked = cmkd_environment_recipes();
  char exe[4096];
  ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
  exe[length > 0 ? length : 0] = 0;
  char *beside = cmkd_path_dir(exe);
  char *candidates[] = {
      asked ? cmkd_format("%s", asked) : NULL,
      beside ? cmkd_format("%s/../recipes", beside) : NULL,
      beside ? cmkd_format("%s/../share/cmkd/recipes", beside) : NULL,
      cmkd_format("%s/../share/cmkd/recipes", CMKD_LIBDIR),
      cmkd_format("recipes"),
  };
  char *found = NULL;
  for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
    if (!found && candidates[i] && access(candidates[i], R_OK | X_OK) == 0)
      found = candidates[i];
    else
      free(candidates[i]);
  }
  free(beside);
  return found;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Names of all recipes in `dir`, sorted, NULL-terminated, fresh memory throughout. */
static char **list_names(const char *dir) {
  char **names = calloc(MAX_RECIPES + 1, sizeof *names);
  DIR *folder = names && dir ? opendir(dir) : NULL;
  int count = 0;
  for (struct dirent *entry; folder && count < MAX_RECIPES && (entry = readdir(folder));) {
    size_t length = strlen(entry->d_name);
    if (length > 5 && !strcmp(entry->d_name + length - 5, ".json") &&
        (names[count] = cmkd_format("%.*s", (int)length - 5, entry->d_name)))
      count++;
  }
  if (folder) closedir(folder);
  if (names) qsort(names, (size_t)count, sizeof *names, by_name);
  return names;
}

static void free_names(char **names) {
  for (int i = 0; names && names[i]; i++)
    free(names[i]);
  free(names);
}

/* ---- one file ---- */

static int copy_text(const json_t *object, const char *key, char *out, size_t capacity, int required) {
  const json_t *value = json_object_get(object, key);
  out[0] = 0;
  if (!value) return !required;
  const char *text = json_string_value(value);
  if (!text || strlen(text) >= capacity) return 0;
  strcpy(out, text);
  return 1;
}

static int copy_number(const json_t *object, const char *key, double low, double high, double fallback, double *out) {
  const json_t *value = json_object_get(object, key);
  *out = fallback;
  if (!value) return fallback >= low;
  *out = json_number_value(value);
  return json_is_number(value) && *out >= low && *out <= high;
}

static const char *parse_settings(const json_t *settings, cmkd_recipe *r) {
  double batch, epochs;
  if (!json_is_object(settings)) return "settings";
  if (!copy_number(settings, "batch", 1, 1 << 20, 0, &batch)) return "settings.batch";
  if (!copy_number(settings, "epochs", 1, 1e6, 0, &epochs)) return "settings.epochs";
  if (!copy_number(settings, "lr", 1e-12, 1e3, 0, &r->lr)) return "settings.lr";
  if (!copy_number(settings, "momentum", 0, 1, 0, &r->momentum)) return "settings.momentum";
  if (!copy_number(settings, "weight_decay", 0, 1e3, 0, &r->weight_decay)) return "settings.weight_decay";
  if (!copy_number(settings, "dkd_beta", 0, 1e6, 0, &r->dkd_beta)) return "settings.dkd_beta";
  if (!copy_text(settings, "schedule", r->schedule, sizeof r->schedule, 1)) return "settings.schedule";
  if (!copy_text(settings, "augment", r->augment, sizeof r->augment, 1)) return "settings.augment";
  if (!copy_text(settings, "loss", r->loss, sizeof r->loss, 0)) return "settings.loss";
  r->batch = (int)batch;
  r->epochs = (int)epochs;
  r->nesterov = json_is_true(json_object_get(settings, "nesterov"));
  const json_t *milestones = json_object_get(settings, "milestones");
  r->milestones = (int)json_array_size(milestones);
  if (r->milestones > CMKD_RECIPE_MILESTONES) return "settings.milestones";
  for (int i = 0; i < r->milestones; i++) {
    r->milestone[i] = (int)json_integer_value(json_array_get(milestones, (size_t)i));
    if (r->milestone[i] < 1 || r->milestone[i] >= r->epochs) return "settings.milestones";
  }
  return NULL;
}

/* The name of the first field that is missing or wrong, or NULL. */
static const char *parse(json_t *root, cmkd_recipe *r) {
  memset(r, 0, sizeof *r);
  if (!copy_text(root, "name", r->name, sizeof r->name, 1)) return "name";
  if (!copy_text(root, "dataset", r->dataset, sizeof r->dataset, 1)) return "dataset";
  if (!copy_text(root, "title", r->title, sizeof r->title, 1)) return "title";
  if (!copy_text(root, "note", r->note, sizeof r->note, 0)) return "note";
  const json_t *runs = json_object_get(root, "runs");
  r->runs = (int)json_array_size(runs);
  if (r->runs < 1 || r->runs > 2) return "runs";
  for (int i = 0; i < r->runs; i++) {
    const json_t *run = json_array_get(runs, (size_t)i);
    if (!copy_text(run, "teacher", r->run[i].teacher, sizeof r->run[i].teacher, 1)) return "runs.teacher";
    if (!copy_text(run, "student", r->run[i].student, sizeof r->run[i].student, 1)) return "runs.student";
  }
  const char *wrong = parse_settings(json_object_get(root, "settings"), r), *key;
  if (wrong) return wrong;
  json_t *value;
  json_object_foreach(json_object_get(root, "published"), key, value) {
    if (!json_is_number(value)) continue; /* "metric" */
    if (r->published == CMKD_RECIPE_PUBLISHED || strlen(key) >= sizeof r->result[0].what) return "published";
    strcpy(r->result[r->published].what, key);
    r->result[r->published++].top1 = json_number_value(value);
  }
  return NULL;
}

static cmkd_status read_recipe(const char *path, cmkd_recipe *out, cmkd_error *err) {
  uint8_t *bytes = NULL;
  size_t size = 0;
  CMKD_TRY(cmkd_file_read(path, MAX_FILE, &bytes, &size, err));
  json_error_t where;
  json_t *root = json_loadb((const char *)bytes, size, JSON_REJECT_DUPLICATES, &where);
  free(bytes);
  if (!root) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: line %d: %s", path, where.line, where.text);
  const char *wrong = parse(root, out);
  json_decref(root);
  if (wrong)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: '%s' is missing or out of range; compare with a shipped recipe", path,
                     wrong);
  return CMKD_OK;
}

cmkd_status cmkd_recipe_load(const char *name, cmkd_recipe *out, int *run, cmkd_error *err) {
  const char *colon = strrchr(name, ':');
  int which = colon && colon[1] >= '1' && colon[1] <= '9' && !colon[2] ? colon[1] - '0' : 0;
  char *stem = which ? cmkd_format("%.*s", (int)(colon - name), name) : cmkd_format("%s", name);
  if (!stem) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  size_t length = strlen(stem);
  int is_path = strchr(stem, '/') || (length > 5 && !strcmp(stem + length - 5, ".json"));
  char *dir = is_path ? NULL : recipe_dir();
  char *path = is_path ? cmkd_format("%s", stem) : dir ? cmkd_format("%s/%s.json", dir, stem) : NULL;
  cmkd_status status;
  if (path && (is_path || cmkd_file_exists(path)))
    status = read_recipe(path, out, err);
  else if (!dir && !is_path)
    status = cmkd_fail(err, CMKD_ERR_IO, "no recipes are installed here; set CMKD_RECIPES to their folder");
  else {
    char **names = list_names(dir);
    const char *near = names ? cmkd_nearest(stem, (const char *const *)names) : NULL;
    status = cmkd_fail(err, CMKD_ERR_USAGE, "no recipe is called '%.60s'%s%s%s; `cmkd-train recipes` lists them", stem,
                       near ? "; did you mean '" : "", near ? near : "", near ? "'" : "");
    free_names(names);
  }
  if (status == CMKD_OK && which > out->runs)
    status = cmkd_fail(err, CMKD_ERR_USAGE, "recipe %s has %d run%s, not %d", out->name, out->runs,
                       out->runs == 1 ? "" : "s", which);
  if (status == CMKD_OK) *run = which ? which - 1 : 0;
  free(path);
  free(dir);
  free(stem);
  return status;
}

/* ---- the table ---- */

double cmkd_recipe_result(const cmkd_recipe *r, const char *what) {
  for (int i = 0; i < r->published; i++)
    if (!strcmp(r->result[i].what, what)) return r->result[i].top1;
  return NAN;
}

static const char *const columns[] = {"teacher", "student", "kd", "dkd", "dist", "nkd", "cmkd", "dkd+cmkd", "takd"};
#define COLUMNS (int)(sizeof columns / sizeof *columns)

static void print_row(FILE *out, const cmkd_recipe *r) {
  fprintf(out, "%-28s %-9s %5.3g %6d", r->name, r->dataset, r->lr, r->epochs);
  for (int c = 0; c < COLUMNS; c++) {
    double top1 = cmkd_recipe_result(r, columns[c]);
    if (isnan(top1))
      fprintf(out, " %8s", "-");
    else
      fprintf(out, " %8.2f", top1);
  }
  fprintf(out, "   %s\n", r->title);
}

static json_t *runs_json(const cmkd_recipe *r) {
  cmkd_json runs = cmkd_json_array();
  for (int i = 0; i < r->runs; i++) {
    cmkd_json run = cmkd_json_object();
    cmkd_json_set(&run, "teacher", json_string(r->run[i].teacher));
    cmkd_json_set(&run, "student", json_string(r->run[i].student));
    cmkd_json_append(&runs, cmkd_json_end(&run));
  }
  return cmkd_json_end(&runs);
}

static json_t *results_json(const cmkd_recipe *r) {
  cmkd_json results = cmkd_json_object();
  for (int i = 0; i < r->published; i++)
    cmkd_json_set(&results, r->result[i].what, cmkd_json_number(r->result[i].top1));
  return cmkd_json_end(&results);
}

static json_t *recipe_json(const cmkd_recipe *r) {
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "name", json_string(r->name));
  cmkd_json_set(&o, "dataset", json_string(r->dataset));
  cmkd_json_set(&o, "batch", json_integer(r->batch));
  cmkd_json_set(&o, "epochs", json_integer(r->epochs));
  cmkd_json_set(&o, "lr", cmkd_json_number(r->lr));
  cmkd_json_set(&o, "weight_decay", cmkd_json_number(r->weight_decay));
  cmkd_json_set(&o, "dkd_beta", cmkd_json_number(r->dkd_beta));
  cmkd_json_set(&o, "runs", runs_json(r));
  cmkd_json_set(&o, "published", results_json(r));
  return cmkd_json_end(&o);
}

static cmkd_status print_table(FILE *out, char **recipes, cmkd_error *err) {
  fprintf(out, "%-28s %-9s %5s %6s", "recipe", "data", "lr", "epochs");
  for (int c = 0; c < COLUMNS; c++)
    fprintf(out, " %8s", columns[c]);
  fputs("   (published top-1, %)\n", out);
  for (int i = 0; recipes[i]; i++) {
    cmkd_recipe r;
    int run;
    CMKD_TRY(cmkd_recipe_load(recipes[i], &r, &run, err));
    print_row(out, &r);
  }
  return CMKD_OK;
}

static cmkd_status print_json(FILE *out, char **recipes, cmkd_error *err) {
  cmkd_json all = cmkd_json_array();
  cmkd_status status = CMKD_OK;
  for (int i = 0; recipes[i] && status == CMKD_OK; i++) {
    cmkd_recipe r;
    int run;
    status = cmkd_recipe_load(recipes[i], &r, &run, err);
    if (status == CMKD_OK) cmkd_json_append(&all, recipe_json(&r));
  }
  json_t *list = cmkd_json_end(&all);
  char *text = list && status == CMKD_OK ? json_dumps(list, JSON_INDENT(1)) : NULL;
  json_decref(list);
  if (text) fprintf(out, "%s\n", text);
  if (!text && status == CMKD_OK) status = cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  free(text);
  return status;
}

cmkd_status cmkd_recipe_print(FILE *out, int json, cmkd_error *err) {
  char *dir = recipe_dir(), **recipes = list_names(dir);
  cmkd_status status;
  if (!recipes || !recipes[0])
    status = cmkd_fail(err, CMKD_ERR_IO, "no recipes are installed here; set CMKD_RECIPES to their folder");
  else
    status = json ? print_json(out, recipes, err) : print_table(out, recipes, err);
  free_names(recipes);
  free(dir);
  return status;
}
