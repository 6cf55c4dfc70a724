/* cmkd-cache verify: hashes, or every number, or some rows run through the teacher once more. */
#include <inttypes.h>
#include <stdio.h>
#include "base/json.h"
#include "base/program/print.h"
#include "base/program/options.h"
#include "base/program/progress.h"
#include "base/text.h"
#include "cmkd/cache.h"
#include "formats/cache/reader/verify.h"
#include "precompute/commands.h"
#include "precompute/recompute.h"
#include "precompute/shared_options.h"

#define MAX_ROWS 10000000 /* to recompute */

typedef struct options {
  const char *cache, *teacher, *data, *device, *arch;
  int64_t rows, threads;
  uint64_t seed;
  float mean[3], std[3];
  int deep, json, quiet, mean_seen, std_seen;
} options;

typedef struct listener {
  cmkd_progress progress;
  uint64_t done;
} listener;

/* Hears of every shard, the good ones too. */
static void shard_done(void *context, uint32_t shard, const cmkd_error *err) {
  (void)shard;
  listener *l = context;
  if (err) {
    cmkd_progress_end(&l->progress);
    fprintf(stderr, "cmkd-cache: %s\n", err->message);
  }
  cmkd_progress_update(&l->progress, ++l->done);
}

static json_t *recomputed_json(const cmkd_recomputed *again) {
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "rows", json_integer((json_int_t)again->rows));
  cmkd_json_set(&o, "largest_difference", cmkd_json_number(again->largest));
  cmkd_json_set(&o, "allowed", cmkd_json_number(again->allowed));
  cmkd_json_set(&o, "mean_difference", cmkd_json_number(again->mean));
  cmkd_json_set(&o, "sample", json_integer((json_int_t)again->sample));
  cmkd_json_set(&o, "view", json_integer(again->view));
  return cmkd_json_end(&o);
}

static cmkd_status print_json(const options *o, const cmkd_verify_report *r, const cmkd_recomputed *again,
                              cmkd_error *err) {
  cmkd_json out = cmkd_json_object();
  cmkd_json_set(&out, "cache", cmkd_json_string(o->cache));
  cmkd_json_set(&out, "ok", json_boolean(r->problems == 0 && cmkd_recomputed_good(again)));
  cmkd_json_set(&out, "shards", json_integer((json_int_t)r->shards));
  cmkd_json_set(&out, "bytes", json_integer((json_int_t)r->bytes));
  cmkd_json_set(&out, "chunks", json_integer((json_int_t)r->chunks));
  cmkd_json_set(&out, "rows", json_integer((json_int_t)r->rows));
  cmkd_json_set(&out, "problems", json_integer(r->problems));
  if (again->rows) cmkd_json_set(&out, "teacher", recomputed_json(again));
  return cmkd_json_print(cmkd_json_end(&out), 9, err);
}

static void print_text(const options *o, const cmkd_verify_report *r, const cmkd_recomputed *again) {
  char bytes[24];
  if (r->problems)
    printf("%s: %u of %" PRIu64 " shards are damaged\n", o->cache, r->problems, r->shards);
  else if (o->deep)
    printf("%s: good: %" PRIu64 " shards, %s, %" PRIu64 " chunks and %" PRIu64 " rows decoded, all finite\n", o->cache,
           r->shards, cmkd_bytes(r->bytes, bytes), r->chunks, r->rows);
  else
    printf("%s: good: the hashes of %" PRIu64 " shards, %s (--deep decodes every number)\n", o->cache, r->shards,
           cmkd_bytes(r->bytes, bytes));
  if (again->rows)
    printf("  teacher: %" PRIu64 " rows recomputed; largest difference %.3g (sample %" PRIu64
           ", view %u; allowed %.3g), mean %.3g\n",
           again->rows, again->largest, again->sample, again->view, again->allowed, again->mean);
}

static cmkd_status parse(int argc, char **argv, options *o, int *help, cmkd_error *err) {
  int positionals = 0;
  const cmkd_option table[] = {
      {.name = "--deep",
       .kind = CMKD_OPT_FLAG,
       .target = &o->deep,
       .help = "decode every chunk: finite, labels in range, every checksum"},
      {.name = "--teacher",
       .argument = "FILE",
       .kind = CMKD_OPT_STRING,
       .target = &o->teacher,
       .help = "recompute rows with these weights"},
      {.name = "--data",
       .argument = "SPEC",
       .kind = CMKD_OPT_STRING,
       .target = &o->data,
       .help = "where the images are [the cache's data set, in the usual places]"},
      {.name = "--rows",
       .argument = "N",
       .kind = CMKD_OPT_INT,
       .target = &o->rows,
       .help = "how many rows, drawn at random [256]",
       .min = 1,
       .max = MAX_ROWS},
      {.name = "--seed", .argument = "N", .kind = CMKD_OPT_UINT64, .target = &o->seed, .help = "of that draw [1]"},
      cmkd_option_device(&o->device),
      cmkd_option_threads(&o->threads),
      {.name = "--arch",
       .argument = "NAME",
       .kind = CMKD_OPT_STRING,
       .target = &o->arch,
       .help = "of the teacher [the cache's]"},
      {.name = "--mean",
       .argument = "R,G,B",
       .kind = CMKD_OPT_FLOATS3,
       .target = o->mean,
       .help = "of the teacher [the cache's]",
       .seen = &o->mean_seen},
      {.name = "--std",
       .argument = "R,G,B",
       .kind = CMKD_OPT_FLOATS3,
       .target = o->std,
       .help = "of the teacher [the cache's]",
       .seen = &o->std_seen},
      cmkd_option_quiet(&o->quiet),
      cmkd_option_json(&o->json),
      {0},
  };
  const cmkd_command command = {.name = "cmkd-cache verify",
                                .summary = "Checks a cache: all hashes and shapes; with --deep every number; with "
                                           "--teacher some rows against the teacher.",
                                .usage = "[options] CACHE.h5",
                                .options = table,
                                .min_positional = 1,
                                .max_positional = 1,
                                .examples =
                                    "  cmkd-cache verify teacher.h5\n  cmkd-cache verify --teacher "
                                    "resnet56-cifar100.safetensors --data cifar100:DIR --rows 1000 teacher.h5\n"};
  return cmkd_options_parse(&command, argc, argv, &o->cache, &positionals, help, err);
}

static cmkd_status recompute(cmkd_cache *cache, const options *o, cmkd_recomputed *out, cmkd_error *err) {
  const cmkd_recompute_options wanted = {.cache = o->cache,
                                         .teacher = o->teacher,
                                         .data = o->data,
                                         .device = o->device,
                                         .arch = o->arch,
                                         .mean = o->mean_seen ? o->mean : NULL,
                                         .std = o->std_seen ? o->std : NULL,
                                         .threads = (int)o->threads,
                                         .rows = (uint32_t)o->rows,
                                         .seed = o->seed};
  return cmkd_recompute(cache, &wanted, out, err);
}

/* What was found, as the exit status says it. */
static cmkd_status verdict(const options *o, const cmkd_verify_report *r, const cmkd_recomputed *again,
                           cmkd_error *err) {
  if (r->problems)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %u shards are damaged; delete those files and run the same build again",
                     o->cache, r->problems);
  if (!cmkd_recomputed_good(again))
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "%s: differs from its teacher by %.3g where %.3g is allowed (sample %" PRIu64
                     ", view %u); build it again",
                     o->cache, again->largest, again->allowed, again->sample, again->view);
  return CMKD_OK;
}

cmkd_status cmkd_command_verify(int argc, char **argv, cmkd_error *err) {
  int help = 0;
  options o = {.device = "auto", .rows = 256, .seed = 1};
  cmkd_cache *cache;
  cmkd_verify_report report;
  cmkd_recomputed again = {0};
  listener l = {0};
  CMKD_TRY(parse(argc, argv, &o, &help, err));
  if (help) return CMKD_OK;
  CMKD_TRY(cmkd_cache_open(o.cache, &cache, err));
  cmkd_progress_start(&l.progress, o.deep ? "verify, deep" : "verify", "shards", cmkd_cache_get_info(cache)->shards, 0,
                      o.quiet);
  cmkd_cache_verify(cache, o.deep, (int)o.threads, shard_done, &l, &report);
  cmkd_progress_end(&l.progress);
  cmkd_status status = CMKD_OK;
  if (!report.problems && o.teacher) status = recompute(cache, &o, &again, err);
  if (status == CMKD_OK && o.json)
    status = print_json(&o, &report, &again, err);
  else if (status == CMKD_OK)
    print_text(&o, &report, &again);
  cmkd_cache_close(cache);
  return status == CMKD_OK ? verdict(&o, &report, &again, err) : status;
}
