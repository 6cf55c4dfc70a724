/* A recipe is a set of defaults that is laid under what the user said. */
#ifndef CMKD_TRAIN_RECIPE_APPLY_H
#define CMKD_TRAIN_RECIPE_APPLY_H
#include "cmkd/dataset.h"
#include "train/command_options.h"
#include "train/recipe.h"

/* A recipe in use. Options that it filled point into it. */
typedef struct cmkd_recipe_use {
  cmkd_recipe recipe;
  const char *asked; /* the name it was asked for by: "resnet56-resnet20:2" */
  int run;           /* of recipe.run */
  int shortened;     /* the user asked for another number of epochs */
  char milestones[128];
} cmkd_recipe_use;

/* Loads options->recipe into `use` and fills what the options leave open. Refuses data sets that this build does not
 * know. */
cmkd_status cmkd_recipe_apply(cmkd_recipe_use *use, cmkd_train_options *options, cmkd_error *err);
/* The recipe's data set against the one at hand, and its teacher against that of `where`, the cache or weight file
 * (teacher_arch may be NULL: no teacher, or not known yet). */
cmkd_status cmkd_recipe_check(const cmkd_recipe_use *use, const cmkd_dataset *data, const char *teacher_arch,
                              const char *where, cmkd_error *err);
/* What the literature reached with this loss expression (percent), or NaN. "ce" stands for the student alone. */
double cmkd_recipe_published(const cmkd_recipe *recipe, const char *expression);
#endif
