/* What users may ask for at most, the same in every program, command and backend. */
#ifndef CMKD_BASE_LIMITS_H
#define CMKD_BASE_LIMITS_H
#include <stdint.h>

#define CMKD_MAX_THREADS 4096
#define CMKD_MAX_BATCH 65536      /* images of one pass of a teacher, a student or an evaluation */
#define CMKD_MAX_CUDA_BATCH 65535 /* likewise, on cuda: the second dimension of a grid ends there */
#define CMKD_MAX_SAMPLES UINT32_MAX
#define CMKD_MAX_SHARD_ROWS INT32_MAX
#endif
