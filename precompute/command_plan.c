/* cmkd-cache plan: what a cache will weigh, how long it takes, and after how many experiments it has paid for itself.
 * Arithmetic on what the user measured; the one number of ours is the size of a row. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/program/environment.h"
#include "base/program/options.h"
#include "base/text.h"
#include "cmkd/dataset.h"
#include "formats/cache/codec.h"
#include "precompute/commands.h"
#include "precompute/reshape.h"

/* Logits of a row, compressed: measured on real ResNet logits at C = 100 (docs/results.md). A wide C packs a little
 * better. */
static double bytes_a_row(const char *codec, double C) {
  uint32_t keep = cmkd_codec_keep(codec);
  if (keep) return fmin(4.4 * keep + 0.09 * C, 1.78 * C); /* kept values and where they stand */
  return (!strcmp(codec, "f32") ? 3.55 : !strcmp(codec, "u8sqrt") ? 0.93 : 1.78) * C;
}

typedef struct wish {
  const char *data, *codec, *views;
  int64_t samples, classes, epochs, experiments;
  double rate;
} wish;

static cmkd_status complete(wish *w, int64_t *views, cmkd_error *err) {
  cmkd_policy policy = CMKD_AUGMENT_CROP_FLIP;
  cmkd_dataset *set;
  char *end;
  if (w->data) {
    CMKD_TRY(cmkd_environment_dataset(w->data, "train", &set, err));
    if (!w->samples) w->samples = set->n;
    if (!w->classes) w->classes = set->classes;
    cmkd_dataset_close(set);
    CMKD_TRY(cmkd_dataset_policy(w->data, &policy, err));
  }
  if (!w->samples || !w->classes)
    return cmkd_fail(err, CMKD_ERR_USAGE, "plan needs --data SPEC, or --samples N and --classes C");
  if (!(w->rate > 0))
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "plan needs the teacher's speed: --teacher-rate IMAGES_PER_SECOND (cmkd-train eval prints it)");
  *views = strcmp(w->views, "all") ? strtoll(w->views, &end, 10) : cmkd_policy_variants(policy);
  if (strcmp(w->views, "all") && (*end || *views < 1 || *views > UINT16_MAX))
    return cmkd_fail(err, CMKD_ERR_USAGE, "--views %.40s: wants a number from 1 to %d, or all", w->views, UINT16_MAX);
  return CMKD_OK;
}

cmkd_status cmkd_command_plan(int argc, char **argv, cmkd_error *err) {
  wish w = {.codec = "f16", .views = "4", .epochs = 240, .experiments = 10};
  int help = 0, json = 0;
  const cmkd_option table[] = {
      {.name = "--data",
       .argument = "SPEC",
       .kind = CMKD_OPT_STRING,
       .target = &w.data,
       .help = "the data set; or give --samples and --classes"},
      {.name = "--samples",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &w.samples,
       .help = "images [the data set's]",
       .min = 1,
       .max = UINT32_MAX},
      {.name = "--classes",
       .argument = "C",
       .kind = CMKD_OPT_INT,
       .target = &w.classes,
       .help = "[the data set's]",
       .min = 2,
       .max = 1 << 20},
      {.name = "--views",
       .argument = "V|all",
       .kind = CMKD_OPT_STRING,
       .target = &w.views,
       .help = "views an image [4]"},
      {.name = "--codec",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &w.codec,
       .help = "f32, f16, u8sqrt or topk:K [f16]"},
      {.name = "--teacher-rate",
       .argument = "R",
       .kind = CMKD_OPT_DOUBLE,
       .target = &w.rate,
       .help = "images a second that the teacher makes",
       .min = 1e-6,
       .max = 1e12},
      {.name = "--epochs",
       .argument = "E",
       .kind = CMKD_OPT_INT,
       .target = &w.epochs,
       .help = "of one experiment [240]",
       .min = 1,
       .max = 1e9},
      {.name = "--experiments",
       .argument = "K",
       .kind = CMKD_OPT_INT,
       .target = &w.experiments,
       .help = "[10]",
       .min = 1,
       .max = 1e9},
      {.name = "--json", .kind = CMKD_OPT_FLAG, .target = &json, .help = "one JSON object"},
      {0},
  };
  const cmkd_command command = {
      .name = "cmkd-cache plan",
      .summary = "Bytes, build time and break-even of a cache against running the teacher live.",
      .usage = "--data SPEC --teacher-rate R [options]",
      .options = table,
      .examples = "  cmkd-cache plan --data cifar100:DIR --views all --teacher-rate 40000 --experiments 20\n"};
  const cmkd_codec *codec;
  int64_t views = 0;
  CMKD_TRY(cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, err));
  if (help) return CMKD_OK;
  CMKD_TRY(cmkd_codec_find(w.codec, &codec, err));
  CMKD_TRY(complete(&w, &views, err));
  double rows = (double)w.samples * (double)views, bytes = rows * (bytes_a_row(w.codec, (double)w.classes) + 8),
         build = rows / w.rate;
  double one = (double)w.samples * (double)w.epochs / w.rate, live = one * (double)w.experiments, even = build / one;
  if (json) {
    cmkd_print_json(json_pack("{s:f,s:f,s:f,s:f,s:f,s:f}", "rows", rows, "bytes", bytes, "build_seconds", build,
                              "live_seconds", live, "saved_seconds", live - build, "break_even_experiments", even));
    return CMKD_OK;
  }
  char a[24], b[24], c[24];
  printf("%" PRId64 " samples x %" PRId64 " views x %" PRId64 " classes, codec %s\n", w.samples, views, w.classes,
         w.codec);
  printf("  size on disk       about %s (%.0f bytes a row)\n",
         bytes < 1.8e19 ? cmkd_bytes((uint64_t)bytes, a) : "more than any disk", bytes / rows);
  printf("  build              %s of teacher, once\n", cmkd_duration(build, a));
  printf("  teacher live       %s an experiment of %" PRId64 " epochs, %s for %" PRId64 "\n", cmkd_duration(one, b),
         w.epochs, cmkd_duration(live, c), w.experiments);
  printf("  break-even         after %.2f experiments; %s\n", even,
         live > build ? "the cache saves the rest" : "for fewer, run the teacher live (cmkd-train --teacher)");
  if (live > build) printf("  saved              %s\n", cmkd_duration(live - build, a));
  return CMKD_OK;
}
