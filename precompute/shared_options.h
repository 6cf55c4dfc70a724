/* Options that several commands of cmkd-cache have: the same name, words and limits in each, written once. */
#ifndef CMKD_PRECOMPUTE_SHARED_OPTIONS_H
#define CMKD_PRECOMPUTE_SHARED_OPTIONS_H
#include <stdint.h>
#include "base/program/options.h"

/* Each is a row of a command's table; `target` is as in cmkd_option. */
cmkd_option cmkd_option_json(int *target); /* "one JSON object" */
cmkd_option cmkd_option_quiet(int *target);
cmkd_option cmkd_option_split(const char **target); /* train or test */
cmkd_option cmkd_option_augment(const char **target, const char *help);
/* help: names the default, "[f16]". Where topk:K may be meant, cmkd_option_allow_top_k stands beside it. */
cmkd_option cmkd_option_codec(const char **target, const char *help);
cmkd_option cmkd_option_full_codec(const char **target, const char *help); /* without topk:K */
cmkd_option cmkd_option_allow_top_k(int *target);
cmkd_option cmkd_option_shard_rows(int64_t *target);
cmkd_option cmkd_option_threads(int64_t *target);
cmkd_option cmkd_option_device(const char **target);
#endif
