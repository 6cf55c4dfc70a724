/* A recipe fills the options that the user left open; what was given stays. */
#ifndef CMKD_TRAIN_RECIPE_APPLY_H
#define CMKD_TRAIN_RECIPE_APPLY_H
#include "train/config.h"
#include "train/recipe.h"

/* Loads options->recipe into options->recipe_loaded and applies it. Refuses data sets that this build does not know. */
cmkd_status cmkd_recipe_apply(cmkd_train_options *options, cmkd_error *err);
/* The recipe's data set against the one at hand, and its teacher against the cache's or the live one's (arch may be
 * NULL). */
cmkd_status cmkd_recipe_check(const cmkd_train_options *options, const cmkd_dataset *data, const char *teacher_arch,
                              cmkd_error *err);
/* Writes `expression` with ",beta=B" added to a dkd term that names no beta; 0 when it does not fit in `size`. */
int cmkd_recipe_loss(const char *expression, double beta, char *out, size_t size);
/* What the literature reached with this loss expression (percent), or NaN. "ce" stands for the student alone. */
double cmkd_recipe_published(const cmkd_recipe *recipe, const char *expression);
#endif
