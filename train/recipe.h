/* Published settings by name: recipes/NAME.json says which pair, how it was trained and what the literature reached. A
 * recipe fills only what the user left open. Not here: downloading teachers, or several runs in a row. */
#ifndef CMKD_TRAIN_RECIPE_H
#define CMKD_TRAIN_RECIPE_H
#include <stdio.h>
#include "cmkd/status.h"

#define CMKD_RECIPE_MILESTONES 8
#define CMKD_RECIPE_PUBLISHED 12

typedef struct cmkd_recipe {
  char name[64], dataset[32], title[96], note[256];
  int runs; /* 1; 2 for a teacher assistant */
  struct {
    char teacher[64], student[64];
  } run[2];
  int batch, epochs, nesterov;
  int milestones, milestone[CMKD_RECIPE_MILESTONES]; /* the rate falls after this many epochs */
  double lr, momentum, weight_decay;
  double dkd_beta; /* 0: none is published */
  char schedule[16], augment[32];
  char loss[64]; /* "": whatever the user asks for */
  int published;
  struct {
    char what[24]; /* teacher, student, kd, ..., in the order of the file */
    double top1;   /* percent */
  } result[CMKD_RECIPE_PUBLISHED];
} cmkd_recipe;

/* `name`: one of the shipped recipes, or a path that ends in .json. NAME:2 is the second run of a recipe of two (*run 0
 * or 1). Shipped recipes are looked for in $CMKD_RECIPES, beside the program (../recipes), in the install prefix and in
 * ./recipes. */
cmkd_status cmkd_recipe_load(const char *name, cmkd_recipe *out, int *run, cmkd_error *err);
/* The published accuracy of `what` ("teacher", "student", "kd", ...) in percent; NaN where there is none. */
double cmkd_recipe_result(const cmkd_recipe *recipe, const char *what);
/* The table of `cmkd-train recipes`: all that are found, their settings and published accuracies. */
cmkd_status cmkd_recipe_print(FILE *out, int json, cmkd_error *err);
#endif
