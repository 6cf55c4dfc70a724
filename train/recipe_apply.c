/* From a recipe to options. See recipe_apply.h. */
#include "train/recipe_apply.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

int cmkd_recipe_loss(const char *expression, double beta, char *out, size_t size) {
  size_t at = 0;
  for (const char *term = expression;;) {
    size_t length = strcspn(term, "+"), blanks = strspn(term, " \t");
    const char *name = term + blanks;
    int is_dkd = length >= blanks + 3 && !strncmp(name, "dkd", 3) && (length == blanks + 3 || strchr(": \t", name[3]));
    int written = snprintf(out + at, size - at, "%.*s", (int)length, term);
    if (written < 0 || (size_t)written >= size - at) return 0;
    int bare = is_dkd && !strchr(out + at, ':'), open = is_dkd && !strstr(out + at, "beta");
    at += (size_t)written;
    if (open) {
      while (at && (out[at - 1] == ' ' || out[at - 1] == '\t'))
        at--;
      written = snprintf(out + at, size - at, "%sbeta=%.10g", bare ? ":" : ",", beta);
      if (written < 0 || (size_t)written >= size - at) return 0;
      at += (size_t)written;
    }
    term += length;
    if (!*term) return 1;
    if (at + 1 >= size) return 0;
    out[at++] = *term++;
    out[at] = 0;
  }
}

double cmkd_recipe_published(const cmkd_recipe *recipe, const char *expression) {
  const char *what = !strcmp(expression, "ce")                            ? "student"
                     : recipe->runs == 2 && strcmp(expression, "teacher") ? "takd"
                                                                          : expression;
  for (int i = 0; i < recipe->published; i++)
    if (!strcmp(recipe->result[i].what, what)) return recipe->result[i].top1;
  return NAN;
}

static cmkd_status apply(cmkd_train_options *o, const cmkd_recipe *r, cmkd_error *err) {
  size_t at = 0;
  if (!o->arch) o->arch = r->run[o->recipe_run].student;
  if (!o->epochs_seen)
    o->epochs = r->epochs, o->epochs_seen = 1;
  else
    o->recipe_shortened = o->epochs != r->epochs;
  if (!o->batch_seen) o->batch = r->batch;
  if (!o->lr_seen) o->lr = r->lr, o->lr_seen = 1;
  if (!o->momentum_seen) o->momentum = r->momentum;
  if (!o->weight_decay_seen) o->weight_decay = r->weight_decay;
  if (!o->nesterov) o->nesterov = r->nesterov;
  if (!o->schedule) o->schedule = r->schedule;
  if (!o->augment) o->augment = r->augment;
  if (!o->milestones && !strcmp(o->schedule, "step") && r->milestones &&
      !o->recipe_shortened) { /* a shorter run keeps the fractions */
    for (int i = 0; i < r->milestones && at < sizeof o->recipe_milestones; i++)
      at += (size_t)snprintf(o->recipe_milestones + at, sizeof o->recipe_milestones - at, "%s%d", i ? "," : "",
                             r->milestone[i]);
    o->milestones = o->recipe_milestones;
  }
  int teacher = o->cache || o->teacher;
  const char *loss = o->loss ? o->loss : !teacher ? "ce" : r->loss[0] ? r->loss : "cmkd";
  if (r->dkd_beta > 0) {
    if (!cmkd_recipe_loss(loss, r->dkd_beta, o->recipe_expression, sizeof o->recipe_expression))
      return cmkd_fail(err, CMKD_ERR_USAGE, "--loss %.60s...: too long", loss);
    loss = o->recipe_expression;
  }
  o->recipe_asked = o->loss ? o->loss : !teacher ? "ce" : r->loss[0] ? r->loss : "cmkd";
  o->loss = loss;
  if (!o->data && !o->cache) o->data = r->dataset;
  return CMKD_OK;
}

cmkd_status cmkd_recipe_apply(cmkd_train_options *o, cmkd_error *err) {
  const char *const *known = cmkd_dataset_names();
  cmkd_recipe *r = &o->recipe_loaded;
  CMKD_TRY(cmkd_recipe_load(o->recipe, r, &o->recipe_run, err));
  while (*known && strcmp(*known, r->dataset))
    known++;
  if (!*known)
    return cmkd_fail(
        err, CMKD_ERR_UNSUPPORTED,
        "--recipe %s is for %s, a data set that this version does not read; `cmkd-train recipes` lists the others",
        o->recipe, r->dataset);
  return apply(o, r, err);
}

cmkd_status cmkd_recipe_check(const cmkd_train_options *o, const cmkd_dataset *data, const char *teacher_arch,
                              cmkd_error *err) {
  const cmkd_recipe *r = &o->recipe_loaded;
  if (!o->recipe) return CMKD_OK;
  if (strcmp(data->name, r->dataset))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "--recipe %s is for %s, the data at hand is %s", o->recipe, r->dataset,
                     data->name);
  const char *teacher = r->run[o->recipe_run].teacher;
  if (teacher_arch && strcmp(teacher_arch, teacher))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "--recipe %s wants a %s for its teacher, %s holds a %s", o->recipe,
                     teacher, o->cache ? o->cache : o->teacher, teacher_arch);
  return CMKD_OK;
}
