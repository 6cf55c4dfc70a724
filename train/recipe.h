/* Published settings by name: recipes/NAME.json says which pair, how it was trained and what the literature reached. A
 * recipe fills only what the user left open. Will not do: download teachers or run several runs by itself. */
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
  int batch, epochs, nesterov, milestones,
      milestone[CMKD_RECIPE_MILESTONES];       /* epochs before which the rate drops, from 1: "after 150" */
  double lr, momentum, weight_decay, dkd_beta; /* dkd_beta 0: none is published */
  char schedule[16], augment[32], loss[64];    /* loss "": whatever the user asks for */
  int published;
  struct {
    char what[24];
    double top1;
  } result[CMKD_RECIPE_PUBLISHED]; /* percent, in the file's order: teacher, student, kd, ... */
} cmkd_recipe;

/* `name`: one of the shipped recipes, or a path that ends in .json. NAME:2 is the second run of a recipe of two (*run 0
 * or 1). Shipped recipes are looked for in $CMKD_RECIPES, beside the program (../recipes), in the install prefix and in
 * ./recipes. */
cmkd_status cmkd_recipe_load(const char *name, cmkd_recipe *out, int *run, cmkd_error *err);
/* The table of `cmkd-train recipes`: all that are found, their settings and published accuracies. */
cmkd_status cmkd_recipe_print(FILE *out, int json, cmkd_error *err);
#endif
