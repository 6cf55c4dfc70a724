/* Options that several commands of cmkd-cache have. See shared_options.h. */
#include "precompute/shared_options.h"
#include "base/limits.h"

cmkd_option cmkd_option_json(int *target) {
  return (cmkd_option){.name = "--json", .kind = CMKD_OPT_FLAG, .target = target, .help = "one JSON object"};
}

cmkd_option cmkd_option_quiet(int *target) {
  return (cmkd_option){.name = "--quiet", .kind = CMKD_OPT_FLAG, .target = target, .help = "no progress"};
}

cmkd_option cmkd_option_split(const char **target) {
  return (cmkd_option){.name = "--split",
                       .argument = "train|test",
                       .kind = CMKD_OPT_STRING,
                       .target = target,
                       .help = "which images [train]"};
}

cmkd_option cmkd_option_augment(const char **target, const char *help) {
  return (cmkd_option){
      .name = "--augment", .argument = "POLICY", .kind = CMKD_OPT_STRING, .target = target, .help = help};
}

cmkd_option cmkd_option_codec(const char **target, const char *help) {
  return (cmkd_option){.name = "--codec", .argument = "NAME", .kind = CMKD_OPT_STRING, .target = target, .help = help};
}

cmkd_option cmkd_option_full_codec(const char **target, const char *help) {
  return (cmkd_option){
      .name = "--codec", .argument = "f32|f16|u8sqrt", .kind = CMKD_OPT_STRING, .target = target, .help = help};
}

cmkd_option cmkd_option_allow_top_k(int *target) {
  return (cmkd_option){.name = "--allow-top-k",
                       .kind = CMKD_OPT_FLAG,
                       .target = target,
                       .help = "topk:K is meant: all but K logits of a row become one tie, no rank-based losses"};
}

cmkd_option cmkd_option_shard_rows(int64_t *target) {
  return (cmkd_option){.name = "--shard-rows",
                       .argument = "N",
                       .kind = CMKD_OPT_INT,
                       .target = target,
                       .help = "samples a shard [about 4 MB of raw logits]",
                       .min = 1,
                       .max = CMKD_MAX_SHARD_ROWS};
}

cmkd_option cmkd_option_threads(int64_t *target) {
  return (cmkd_option){.name = "--threads",
                       .argument = "N",
                       .kind = CMKD_OPT_INT,
                       .target = target,
                       .help = "[all cores]",
                       .min = 1,
                       .max = CMKD_MAX_THREADS};
}

cmkd_option cmkd_option_device(const char **target) {
  return (cmkd_option){.name = "--device",
                       .argument = "NAME",
                       .kind = CMKD_OPT_STRING,
                       .target = target,
                       .help = "auto, cpu, cuda or cuda:N [auto]"};
}
