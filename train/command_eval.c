/* `cmkd-train eval`: accuracy of weights on a split, and their logits and features as a file. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/json.h"
#include "base/program/print.h"
#include "base/limits.h"
#include "base/program/environment.h"
#include "base/program/interrupt.h"
#include "base/program/options.h"
#include "base/program/progress.h"
#include "nets/teacher.h"
#include "train/commands.h"
#include "train/evaluate.h"

typedef struct eval_options {
  const char *weights, *data, *split, *dump, *arch, *device, *precision;
  float mean[3], std[3]; /* NaN: not given */
  int json, quiet;
  int64_t samples, batch, threads;
} eval_options;

typedef struct eval_run {
  cmkd_dataset *data;
  const cmkd_backend_table *table;
  cmkd_backend *backend;
  cmkd_teacher *teacher;
  float *logits, *features; /* (n, classes), (n, d): one group at a time, or all of them for --dump */
  uint32_t *rows;
  cmkd_accuracy accuracy;
  double seconds;
} eval_run;

static cmkd_status open_all(eval_run *s, const eval_options *o, cmkd_error *err) {
  char from_file[64] = "";
  const char *spec = o->data;
  if (!spec) { /* weights of ours name their data set */
    cmkd_weights *weights;
    CMKD_TRY(cmkd_weights_read(o->weights, &weights, err));
    const char *name = cmkd_weights_meta(weights, "dataset");
    if (name) snprintf(from_file, sizeof from_file, "%s", name);
    cmkd_weights_free(weights);
    if (!from_file[0])
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s does not name a data set: give --data SPEC", o->weights);
    spec = from_file;
  }
  CMKD_TRY(cmkd_environment_dataset(spec, o->split, &s->data, err));
  cmkd_backend_options backend = {
      .threads = (int)o->threads, .device = cmkd_backend_index(o->device), .precision = o->precision};
  cmkd_environment_backend(&backend);
  CMKD_TRY(cmkd_backend_find(o->device, &backend, &s->table, err));
  CMKD_TRY(s->table->open(&backend, &s->backend, err));
  cmkd_teacher_options teacher = {.weights = o->weights,
                                  .arch = o->arch,
                                  .mean = isnan(o->mean[0]) ? NULL : o->mean,
                                  .std = isnan(o->std[0]) ? NULL : o->std,
                                  .batch = (int)o->batch,
                                  .policy = CMKD_AUGMENT_NONE};
  return cmkd_teacher_open(&teacher, s->table, s->backend, s->data, &s->teacher, err);
}

static void close_all(eval_run *s) {
  if (s->teacher) cmkd_teacher_close(s->teacher);
  if (s->backend) s->table->close(s->backend);
  if (s->data) cmkd_dataset_close(s->data);
  free(s->logits);
  free(s->features);
  free(s->rows);
}

static cmkd_status evaluate(eval_run *s, const eval_options *o, uint32_t n, cmkd_error *err) {
  size_t classes = (size_t)s->data->classes, wide = o->dump ? (size_t)cmkd_teacher_feature_size(s->teacher) : 0,
         kept = o->dump ? n : CMKD_TEACHER_GROUP;
  s->logits = calloc(kept * classes, sizeof *s->logits);
  s->features = calloc(kept * wide + 1, sizeof *s->features);
  s->rows = malloc(CMKD_TEACHER_GROUP * sizeof *s->rows);
  if (!s->logits || !s->features || !s->rows)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory for %u rows; give --samples N", n);
  cmkd_progress progress;
  cmkd_progress_start(&progress, "eval", "images", n, 0, o->quiet);
  double begin = cmkd_seconds();
  cmkd_status status = CMKD_OK;
  for (uint32_t first = 0; status == CMKD_OK && first < n; first += CMKD_TEACHER_GROUP) {
    uint32_t count = n - first < CMKD_TEACHER_GROUP ? n - first : CMKD_TEACHER_GROUP;
    size_t at = o->dump ? first : 0;
    float *logits = s->logits + at * classes;
    for (uint32_t i = 0; i < count; i++)
      s->rows[i] = first + i;
    status = cmkd_teacher_run(s->teacher, s->rows, NULL, count, logits, o->dump ? s->features + at * wide : NULL, err);
    for (uint32_t i = 0; status == CMKD_OK && i < count; i++)
      cmkd_accuracy_add(&s->accuracy, logits + i * classes, (int)classes, s->data->labels[first + i]);
    if (status == CMKD_OK && cmkd_interrupted()) status = cmkd_fail(err, CMKD_ERR_INTERRUPTED, "stopped");
    cmkd_progress_update(&progress, first + count);
  }
  s->seconds = cmkd_seconds() - begin;
  cmkd_progress_end(&progress);
  return status;
}

static cmkd_status dump(const eval_run *s, const eval_options *o, uint32_t n, cmkd_error *err) {
  int64_t classes = s->data->classes, wide = cmkd_teacher_feature_size(s->teacher);
  const cmkd_tensor tensors[] = {
      {.name = "logits", .dtype = CMKD_F32, .dims = 2, .shape = {n, classes}, .count = n * classes, .data = s->logits},
      {.name = "features", .dtype = CMKD_F32, .dims = 2, .shape = {n, wide}, .count = n * wide, .data = s->features},
      {.name = "labels", .dtype = CMKD_I32, .dims = 1, .shape = {n}, .count = n, .data = s->data->labels}};
  const char *keys[] = {"format", "arch", "weights_sha256", "dataset", "split", "fingerprint"};
  const char *values[] = {"pt",
                          cmkd_teacher_spec(s->teacher)->arch,
                          cmkd_teacher_sha256(s->teacher),
                          s->data->name,
                          s->data->split,
                          s->data->fingerprint};
  return cmkd_weights_write(o->dump, tensors, 3, keys, values, 6, err);
}

static cmkd_status report(const eval_run *s, const eval_options *o, cmkd_error *err) {
  const cmkd_accuracy *a = &s->accuracy;
  const char *arch = cmkd_teacher_spec(s->teacher)->arch;
  const double rows = (double)a->rows, top1 = 100.0 * (double)a->top1 / rows, top5 = 100.0 * (double)a->top5 / rows;
  const double loss = a->loss / rows, images_per_s = rows / s->seconds;
  if (o->json) {
    cmkd_json object = cmkd_json_object();
    cmkd_json_set(&object, "top1", cmkd_json_number(top1));
    cmkd_json_set(&object, "top5", cmkd_json_number(top5));
    cmkd_json_set(&object, "loss", cmkd_json_number(loss));
    cmkd_json_set(&object, "samples", json_integer(a->rows));
    cmkd_json_set(&object, "arch", json_string(arch));
    cmkd_json_set(&object, "dataset", json_string(s->data->name));
    cmkd_json_set(&object, "split", json_string(s->data->split));
    cmkd_json_set(&object, "weights_sha256", json_string(cmkd_teacher_sha256(s->teacher)));
    cmkd_json_set(&object, "seconds", cmkd_json_number(s->seconds));
    cmkd_json_set(&object, "images_per_s", cmkd_json_number(images_per_s));
    return cmkd_json_print(cmkd_json_end(&object), 10, err);
  }
  printf("%s on %s %s, %lld images: top-1 %.2f%%, top-5 %.2f%%, cross-entropy %.4f (%.0f images/s, %s)\n", arch,
         s->data->name, s->data->split, (long long)a->rows, top1, top5, loss, images_per_s,
         s->table->describe(s->backend));
  if (o->dump) printf("%s: logits, features, labels\n", o->dump);
  return CMKD_OK;
}

static cmkd_status run(eval_run *s, const eval_options *o, cmkd_error *err) {
  if (!o->weights) return cmkd_fail(err, CMKD_ERR_USAGE, "eval needs --weights FILE");
  if (isnan(o->mean[0]) != isnan(o->std[0])) return cmkd_fail(err, CMKD_ERR_USAGE, "--mean and --std go together");
  CMKD_TRY(open_all(s, o, err));
  if (o->samples > (int64_t)s->data->n)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "--samples %lld: the %s split of %s has %u", (long long)o->samples,
                     s->data->split, s->data->name, s->data->n);
  uint32_t n = o->samples ? (uint32_t)o->samples : s->data->n;
  CMKD_TRY(evaluate(s, o, n, err));
  if (o->dump) CMKD_TRY(dump(s, o, n, err));
  return report(s, o, err);
}

int cmkd_command_eval(int argc, char **argv) {
  eval_options o = {.split = "test", .device = "auto", .precision = "fp32", .mean = {NAN}, .std = {NAN}};
  eval_run eval = {0};
  cmkd_error err = {CMKD_OK, ""};
  int help;
  const cmkd_option table[] = {
      {"--weights", "FILE", CMKD_OPT_STRING, &o.weights, "the network's weights", 0, 0, NULL},
      {"--data", "SPEC", CMKD_OPT_STRING, &o.data, "data set: NAME or NAME:DIR [what the weights were trained on]", 0,
       0, NULL},
      {"--split", "train|test", CMKD_OPT_STRING, &o.split, "[test]", 0, 0, NULL},
      {"--samples", "N", CMKD_OPT_INT, &o.samples, "the first N of the split [all]", 1, CMKD_MAX_SAMPLES, NULL},
      {"--dump", "FILE", CMKD_OPT_STRING, &o.dump, "write logits, penultimate features and labels as safetensors", 0, 0,
       NULL},
      {"--arch", "NAME", CMKD_OPT_STRING, &o.arch, "for weights without metadata; see cmkd-train nets", 0, 0, NULL},
      {"--mean", "R,G,B", CMKD_OPT_FLOATS3, o.mean, "for weights without metadata", 0, 0, NULL},
      {"--std", "R,G,B", CMKD_OPT_FLOATS3, o.std, "for weights without metadata", 0, 0, NULL},
      {"--batch", "N", CMKD_OPT_INT, &o.batch, "rows of one pass [128]", 1, CMKD_MAX_BATCH, NULL},
      {"--device", "NAME", CMKD_OPT_STRING, &o.device, "auto, cpu, cuda, cuda:N [auto]", 0, 0, NULL},
      {"--precision", "NAME", CMKD_OPT_STRING, &o.precision, "fp32; with cuda also tf32, bf16, fp16 [fp32]", 0, 0,
       NULL},
      {"--threads", "N", CMKD_OPT_INT, &o.threads, "[all cores]", 1, CMKD_MAX_THREADS, NULL},
      {"--json", NULL, CMKD_OPT_FLAG, &o.json, "print one JSON object: top1 and top5 in percent, ...", 0, 0, NULL},
      {"--quiet", NULL, CMKD_OPT_FLAG, &o.quiet, "no progress", 0, 0, NULL},
      {NULL, NULL, CMKD_OPT_FLAG, NULL, NULL, 0, 0, NULL}};
  const cmkd_command command = {
      "cmkd-train eval",
      "measures the accuracy of weights on a data set",
      "--weights FILE --data SPEC [options]",
      "cmkd-train eval --weights resnet56-cifar100.safetensors --data cifar100:DIR\n"
      "cmkd-train eval --weights best.safetensors --data fashion-mnist --dump logits.safetensors --json",
      table,
      0,
      0};
  cmkd_status status = cmkd_options_parse(&command, argc, argv, NULL, NULL, &help, &err);
  if (status == CMKD_OK && !help) {
    cmkd_interrupt_install();
    status = run(&eval, &o, &err);
    close_all(&eval);
  }
  return cmkd_exit_status("cmkd-train eval", &err, status);
}
