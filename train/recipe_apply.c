/* From a recipe to options. See recipe_apply.h. */
#include "train/recipe_apply.h"
#include <stdio.h>
#include <string.h>
#include "train/options.h"

double cmkd_recipe_published(const cmkd_recipe *recipe, const char *expression) {
  if (!strcmp(expression, "ce")) return cmkd_recipe_result(recipe, "student");
  return cmkd_recipe_result(recipe, recipe->runs == 2 ? "takd" : expression);
}

/* The recipe's as the option spells them; NULL where it has none. */
static const char *milestones_text(cmkd_recipe_use *use) {
  const cmkd_recipe *r = &use->recipe;
  size_t at = 0;
  for (int i = 0; i < r->milestones && at < sizeof use->milestones; i++)
    at += (size_t)snprintf(use->milestones + at, sizeof use->milestones - at, "%s%d", i ? "," : "", r->milestone[i]);
  return r->milestones ? use->milestones : NULL;
}

static const char *loss_of(const cmkd_recipe *r, int has_teacher) {
  if (!has_teacher) return "ce";
  return r->loss[0] ? r->loss : "cmkd";
}

static void apply(cmkd_recipe_use *use, cmkd_session_options *session, cmkd_student_options *student) {
  const cmkd_recipe *r = &use->recipe;
  cmkd_student_options defaults;
  cmkd_student_options_default(&defaults);
  use->shortened = student->epochs && student->epochs != r->epochs;
  defaults.arch = r->run[use->run].student;
  defaults.loss = loss_of(r, cmkd_session_has_teacher(session));
  defaults.dkd_beta = r->dkd_beta;
  defaults.epochs = r->epochs;
  defaults.batch = r->batch;
  defaults.lr = r->lr;
  defaults.schedule = r->schedule;
  defaults.momentum = r->momentum;
  defaults.nesterov = r->nesterov;
  defaults.weight_decay = r->weight_decay;
  const char *schedule = student->schedule ? student->schedule : r->schedule;
  if (!strcmp(schedule, "step") && !use->shortened) /* a shorter run keeps the fractions instead */
    defaults.milestones = milestones_text(use);
  cmkd_student_options_fill(student, &defaults);
  if (!session->augment) session->augment = r->augment;
  if (!session->data && !session->cache) session->data = r->dataset;
}

cmkd_status cmkd_recipe_apply(cmkd_recipe_use *use, cmkd_train_options *o, cmkd_error *err) {
  const char *const *known = cmkd_dataset_names();
  *use = (cmkd_recipe_use){.asked = o->recipe};
  CMKD_TRY(cmkd_recipe_load(o->recipe, &use->recipe, &use->run, err));
  while (*known && strcmp(*known, use->recipe.dataset))
    known++;
  if (!*known)
    return cmkd_fail(
        err, CMKD_ERR_UNSUPPORTED,
        "--recipe %s is for %s, a data set that this version does not read; `cmkd-train recipes` lists the others",
        o->recipe, use->recipe.dataset);
  apply(use, &o->session, &o->student);
  return CMKD_OK;
}

cmkd_status cmkd_recipe_check(const cmkd_recipe_use *use, const cmkd_dataset *data, const char *teacher_arch,
                              const char *where, cmkd_error *err) {
  const cmkd_recipe *r = &use->recipe;
  const char *teacher = r->run[use->run].teacher;
  if (strcmp(data->name, r->dataset))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "--recipe %s is for %s, the data at hand is %s", use->asked, r->dataset,
                     data->name);
  if (teacher_arch && strcmp(teacher_arch, teacher))
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "--recipe %s wants a %s for its teacher, %s holds a %s", use->asked,
                     teacher, where, teacher_arch);
  return CMKD_OK;
}
