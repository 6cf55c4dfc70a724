/* Ranks from the command line or the environment. */
#include "base/program/part.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name, unsigned *out) {
  const char *text = getenv(name);
  char *end;
  if (!text || !*text) return 0;
  unsigned long x = strtoul(text, &end, 10);
  if (*end || x > UINT_MAX) return 0;
  *out = (unsigned)x;
  return 1;
}

/* A launch gives every process the same command line and a rank. With `least` 1 even one of a single task counts. */
static int launched(unsigned least, cmkd_part *out) {
  static const char *const pairs[][2] = {
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, {"PMI_RANK", "PMI_SIZE"}, {"SLURM_PROCID", "SLURM_NTASKS"}};
  for (int i = 0; i < 3; i++) {
    unsigned rank, size;
    if (!number(pairs[i][0], &rank) || !number(pairs[i][1], &size) || size < least || rank >= size) continue;
    *out = (cmkd_part){rank, size, pairs[i][0]};
    return 1;
  }
  return 0;
}

/* Not taken unasked: the tasks of an array are as often different experiments. */
static int in_array(cmkd_part *out) {
  unsigned id, count, min = 0, step = 1;
  if (!number("SLURM_ARRAY_TASK_ID", &id) || !number("SLURM_ARRAY_TASK_COUNT", &count) || !count) return 0;
  number("SLURM_ARRAY_TASK_MIN", &min);
  if (!number("SLURM_ARRAY_TASK_STEP", &step) || !step) step = 1;
  unsigned index = id >= min ? (id - min) / step : id;
  *out = (cmkd_part){index % count, count, "SLURM_ARRAY_TASK_ID"};
  return 1;
}

cmkd_status cmkd_part_find(const char *text, cmkd_part *out, cmkd_error *err) {
  unsigned index, count;
  char rest;
  *out = (cmkd_part){0, 1, NULL};
  if (!text) {
    launched(2, out);
    return CMKD_OK;
  }
  if (!strcmp(text, "auto")) {
    if (launched(2, out) || in_array(out) || launched(1, out)) return CMKD_OK;
    if (getenv("SLURM_ARRAY_TASK_ID"))
      return cmkd_fail(err, CMKD_ERR_USAGE,
                       "--part auto: SLURM_ARRAY_TASK_ID is set, SLURM_ARRAY_TASK_COUNT is not; give --part I/N");
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "--part auto: no rank in the environment (OMPI_COMM_WORLD_RANK, PMI_RANK, SLURM_PROCID, "
                     "SLURM_ARRAY_TASK_ID); give --part I/N");
  }
  if (text[0] >= '0' && text[0] <= '9' && sscanf(text, "%u/%u%c", &index, &count, &rest) == 2 && count >= 1 &&
      count <= 99999 && index <= count) {
    *out = (cmkd_part){index % count, count, "--part"};
    return CMKD_OK;
  }
  return cmkd_fail(err, CMKD_ERR_USAGE,
                   "--part %.40s: give I/N with I from 0 to N-1, such as 0/4 (N/N counts as 0/N, for arrays that begin "
                   "with 1), or auto",
                   text);
}
