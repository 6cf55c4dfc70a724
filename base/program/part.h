/* Which share of the shards this process builds: --part I/N, --part auto, or the rank of an srun or mpirun launch. */
#ifndef CMKD_BASE_PROGRAM_PART_H
#define CMKD_BASE_PROGRAM_PART_H
#include "cmkd/status.h"

typedef struct cmkd_part {
  unsigned index, count; /* this process builds the shards k with k % count == index */
  const char *from;      /* the option or the launcher that said so */
} cmkd_part;

/* text NULL: the launch's rank where there is one of several, else the whole. "auto": that, or the Slurm array task.
 * "I/N": 0/N .. (N-1)/N; N/N means 0/N, so counting from 1 works too. */
cmkd_status cmkd_part_find(const char *text, cmkd_part *out, cmkd_error *err);
#endif
