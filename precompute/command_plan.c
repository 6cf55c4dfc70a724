/* cmkd-cache plan: what a cache will weigh, how long it takes, and after how many experiments it has paid for itself.
 * Arithmetic on what the user measured; the one number of ours is the size of a row. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/json.h"
#include "base/program/print.h"
#include "base/limits.h"
#include "base/program/environment.h"
#include "base/program/options.h"
#include "base/text.h"
#include "cmkd/cache.h"
#include "cmkd/dataset.h"
#include "formats/cache/codec.h"
#include "precompute/commands.h"
#include "precompute/shared_options.h"

#define MAX_COUNT 1e9     /* of epochs or experiments */
#define DEFAULT_VIEWS "4" /* as cmkd-cache build */

/* Bytes of a row's logits, compressed: measured on real ResNet logits of 100 classes (docs/results.md). Wide
 * rows pack a little better. */
static double bytes_a_row(const char *codec, double classes) {
  const double f16 = 1.78 * classes;
  uint32_t keep = cmkd_codec_keep(codec);
  if (keep) return fmin(4.4 * keep + 0.09 * classes, f16); /* kept values and where they stand */
  if (!strcmp(codec, "f32")) return 3.55 * classes;
  if (!strcmp(codec, "u8sqrt")) return 0.93 * classes;
  return f16;
}

#define SEED_BYTES 8 /* of a row */

typedef struct options {
  const char *data, *codec, *views;
  int64_t samples, classes, epochs, experiments;
  double rate; /* images per second */
  int json;
} options;

/* What is to be paid: seconds of teacher. */
typedef struct estimate {
  uint32_t views;
  double rows, bytes;
  double build;            /* of the cache, once */
  double experiment, live; /* of one experiment, of all, without a cache */
  double break_even;       /* experiments */
} estimate;

/* Fills in what the data set says. */
static cmkd_status complete(options *o, uint32_t *views, cmkd_error *err) {
  cmkd_policy policy = CMKD_AUGMENT_CROP_FLIP;
  cmkd_dataset *set;
  if (o->data) {
    CMKD_TRY(cmkd_environment_dataset(o->data, "train", &set, err));
    if (!o->samples) o->samples = set->n;
    if (!o->classes) o->classes = set->classes;
    cmkd_dataset_close(set);
    CMKD_TRY(cmkd_dataset_policy(o->data, &policy, err));
  }
  if (!o->samples || !o->classes)
    return cmkd_fail(err, CMKD_ERR_USAGE, "plan needs --data SPEC, or --samples N and --classes C");
  if (!(o->rate > 0))
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "plan needs the teacher's speed: --teacher-rate IMAGES_PER_SECOND (cmkd-train eval prints it)");
  CMKD_TRY(cmkd_views_parse(o->views, views, err));
  if (!*views) *views = cmkd_policy_variants(policy);
  return CMKD_OK;
}

static estimate estimate_of(const options *o, uint32_t views) {
  estimate e = {.views = views};
  e.rows = (double)o->samples * views;
  e.bytes = e.rows * (bytes_a_row(o->codec, (double)o->classes) + SEED_BYTES);
  e.build = e.rows / o->rate;
  e.experiment = (double)o->samples * (double)o->epochs / o->rate;
  e.live = e.experiment * (double)o->experiments;
  e.break_even = e.build / e.experiment;
  return e;
}

static cmkd_status print_json(const estimate *e, cmkd_error *err) {
  return cmkd_json_print(json_pack("{s:f,s:f,s:f,s:f,s:f,s:f}", "rows", e->rows, "bytes", e->bytes, "build_seconds",
                                   e->build, "live_seconds", e->live, "saved_seconds", e->live - e->build,
                                   "break_even_experiments", e->break_even),
                         9, err);
}

static void print_text(const options *o, const estimate *e) {
  char a[24], b[24];
  printf("%" PRId64 " samples x %u views x %" PRId64 " classes, codec %s\n", o->samples, e->views, o->classes,
         o->codec);
  printf("  size on disk       about %s (%.0f bytes a row)\n",
         e->bytes < 1.8e19 ? cmkd_bytes((uint64_t)e->bytes, a) : "more than any disk", e->bytes / e->rows);
  printf("  build              %s of teacher, once\n", cmkd_duration(e->build, a));
  printf("  teacher live       %s an experiment of %" PRId64 " epochs, %s for %" PRId64 "\n",
         cmkd_duration(e->experiment, a), o->epochs, cmkd_duration(e->live, b), o->experiments);
  printf("  break-even         after %.2f experiments; %s\n", e->break_even,
         e->live > e->build ? "the cache saves the rest" : "for fewer, run the teacher live (cmkd-train --teacher)");
  if (e->live > e->build) printf("  saved              %s\n", cmkd_duration(e->live - e->build, a));
}

static cmkd_status parse(int argc, char **argv, options *o, int *help, cmkd_error *err) {
  const cmkd_option table[] = {
      {.name = "--data",
       .argument = "SPEC",
       .kind = CMKD_OPT_STRING,
       .target = &o->data,
       .help = "the data set; or give --samples and --classes"},
      {.name = "--samples",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &o->samples,
       .help = "images [the data set's]",
       .min = 1,
       .max = CMKD_MAX_SAMPLES},
      {.name = "--classes",
       .argument = "C",
       .kind = CMKD_OPT_INT,
       .target = &o->classes,
       .help = "[the data set's]",
       .min = 2,
       .max = CMKD_CACHE_MAX_CLASSES},
      {.name = "--views",
       .argument = "V|all",
       .kind = CMKD_OPT_STRING,
       .target = &o->views,
       .help = "views an image [4]"},
      cmkd_option_codec(&o->codec, "f32, f16, u8sqrt or topk:K [f16]"),
      {.name = "--teacher-rate",
       .argument = "R",
       .kind = CMKD_OPT_DOUBLE,
       .target = &o->rate,
       .help = "images a second that the teacher makes",
       .min = 1e-6,
       .max = 1e12},
      {.name = "--epochs",
       .argument = "E",
       .kind = CMKD_OPT_INT,
       .target = &o->epochs,
       .help = "of one experiment [240]",
       .min = 1,
       .max = MAX_COUNT},
      {.name = "--experiments",
       .argument = "K",
       .kind = CMKD_OPT_INT,
       .target = &o->experiments,
       .help = "[10]",
       .min = 1,
       .max = MAX_COUNT},
      cmkd_option_json(&o->json),
      {0},
  };
  const cmkd_command command = {
      .name = "cmkd-cache plan",
      .summary = "Bytes, build time and break-even of a cache against running the teacher live.",
      .usage = "--data SPEC --teacher-rate R [options]",
      .options = table,
      .examples = "  cmkd-cache plan --data cifar100:DIR --views all --teacher-rate 40000 --experiments 20\n"};
  return cmkd_options_parse(&command, argc, argv, NULL, NULL, help, err);
}

cmkd_status cmkd_command_plan(int argc, char **argv, cmkd_error *err) {
  options o = {.codec = "f16", .views = DEFAULT_VIEWS, .epochs = 240, .experiments = 10};
  const cmkd_codec *codec; /* only checked */
  uint32_t views = 0;
  int help = 0;
  CMKD_TRY(parse(argc, argv, &o, &help, err));
  if (help) return CMKD_OK;
  CMKD_TRY(cmkd_codec_find(o.codec, &codec, err));
  CMKD_TRY(complete(&o, &views, err));
  const estimate e = estimate_of(&o, views);
  if (o.json) return print_json(&e, err);
  print_text(&o, &e);
  return CMKD_OK;
}
