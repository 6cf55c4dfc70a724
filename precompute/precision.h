/* In which arithmetic a teacher fills a cache. Sixteen bits are taken where what they change stays inside what the
 * codec changes anyway: both are measured, as the root mean square over the logits of a few hundred views, and the
 * former is recorded in the cache. */
#ifndef CMKD_PRECOMPUTE_PRECISION_H
#define CMKD_PRECOMPUTE_PRECISION_H
#include "formats/cache/codec.h"
#include "nets/teacher.h"

typedef struct cmkd_precision_wish {
  const char *asked; /* "fp32", "tf32", "bf16", "fp16"; NULL: the fastest that the codec hides, fp32 on devices that
                        offer no choice */
  const cmkd_backend_table *table;
  cmkd_backend_options device; /* precision is not looked at */
  const cmkd_teacher_options *teacher;
  const cmkd_dataset *data;
  const cmkd_codec *codec;
  uint64_t cache_seed;
  int all_variants;
} cmkd_precision_wish;

typedef struct cmkd_precision {
  const char *name;
  double error, codec_error; /* 0 where nothing had to be measured */
} cmkd_precision;
cmkd_status cmkd_precision_choose(const cmkd_precision_wish *wish, cmkd_precision *out, cmkd_error *err);
#endif
