/* Epoch lines, step lines, weight files. See record.h. */
#include "train/record.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"

json_t *cmkd_number_json(double value) { return isfinite(value) ? json_real(value) : json_null(); }

void cmkd_score_from_sums(const cmkd_epoch_sums *sums, cmkd_score *score) {
  double images = (double)sums->images, rows = (double)sums->agreement_rows;
  score->loss = sums->loss / images;
  score->train_top1 = 100.0 * (double)sums->top1 / images;
  score->train_pearson = sums->agreement_rows ? sums->pearson / rows : NAN;
  score->train_spearman = sums->agreement_rows ? sums->spearman / rows : NAN;
  score->blocks = sums->blocks_rows      ? sums->blocks / (double)sums->blocks_rows
                  : sums->agreement_rows ? sums->agreement_blocks / rows
                                         : NAN;
}

json_t *cmkd_score_json(const cmkd_score *s) {
  json_t *o = json_object();
  json_object_set_new(o, "epoch", json_integer(s->epoch));
  json_object_set_new(o, "top1", cmkd_number_json(s->top1));
  json_object_set_new(o, "top5", cmkd_number_json(s->top5));
  if (!isnan(s->val_top1)) json_object_set_new(o, "val_top1", json_real(s->val_top1));
  json_object_set_new(o, "loss", cmkd_number_json(s->loss));
  json_object_set_new(o, "test_loss", cmkd_number_json(s->test_loss));
  json_object_set_new(o, "train_top1", cmkd_number_json(s->train_top1));
  json_object_set_new(o, "train_pearson", cmkd_number_json(s->train_pearson));
  json_object_set_new(o, "train_spearman", cmkd_number_json(s->train_spearman));
  json_object_set_new(o, "test_pearson", cmkd_number_json(s->test_pearson));
  json_object_set_new(o, "test_spearman", cmkd_number_json(s->test_spearman));
  json_object_set_new(o, "blocks", cmkd_number_json(s->blocks));
  return o;
}

char *cmkd_epoch_line(const cmkd_settings *settings, const cmkd_score *score, const cmkd_epoch_sums *sums,
                      const cmkd_epoch_figures *figures) {
  json_t *o = cmkd_score_json(score), *parts = json_object();
  for (int i = 0; i < cmkd_loss_parts(settings->loss); i++)
    json_object_set_new(parts, cmkd_loss_part_name(settings->loss, i),
                        cmkd_number_json(sums->part[i] / (double)sums->images));
  json_object_set_new(o, "parts", parts);
  json_object_set_new(o, "lr", json_real(figures->lr));
  if (settings->views) json_object_set_new(o, "view", json_integer(figures->view));
  json_object_set_new(o, "seconds", json_real(figures->seconds));
  json_object_set_new(o, "images_per_s", cmkd_number_json(figures->images_per_s));
  char *line = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(10));
  json_decref(o);
  return line;
}

static void list_numbers(const float *values, int count, char *out, size_t size) {
  size_t at = 0;
  out[0] = 0;
  for (int i = 0; i < count && at < size; i++)
    at += (size_t)snprintf(out + at, size - at, "%s%.9g", i ? "," : "", (double)values[i]);
}

cmkd_status cmkd_weights_record(const cmkd_trainer *t, const cmkd_score *score, const char *path, cmkd_error *err) {
  const cmkd_settings *s = t->settings;
  const char *keys[16], *values[16];
  char classes[16], mean[64], std[64], epoch[24], seed[24], top1[32], top5[32], val[32];
  int n = 0;
  snprintf(classes, sizeof classes, "%d", s->classes);
  list_numbers(s->mean, s->channels, mean, sizeof mean);
  list_numbers(s->std, s->channels, std, sizeof std);
  snprintf(epoch, sizeof epoch, "%lld", (long long)score->epoch);
  snprintf(seed, sizeof seed, "%llu", (unsigned long long)s->seed);
  snprintf(top1, sizeof top1, "%.2f", score->top1);
  snprintf(top5, sizeof top5, "%.2f", score->top5);
  snprintf(val, sizeof val, "%.2f", score->val_top1);
#define META(key, value) (keys[n] = (key), values[n++] = (value))
  META("format", "pt"); /* what the safetensors package of Python expects to find */
  META("arch", s->arch);
  META("dataset", t->train->name);
  META("classes", classes);
  META("mean", mean);
  META("std", std);
  if (!isnan(score->top1)) META("top1", top1), META("top5", top5);
  if (!isnan(score->val_top1)) META("val_top1", val);
  META("epoch", epoch);
  META("seed", seed);
  META("loss", cmkd_loss_text(s->loss));
  if (t->teacher_sha256) META("teacher_sha256", t->teacher_sha256);
#undef META
  return cmkd_params_save(t->graph, &t->state->value, t->state->total_steps, path, keys, values, n, err);
}

cmkd_status cmkd_steps_open(const char *path, int64_t total_steps, FILE **out, cmkd_error *err) {
  FILE *file = fopen(path, "a+e");
  if (!file) return cmkd_fail(err, CMKD_ERR_IO, "%s: %s", path, strerror(errno));
  char *line = NULL;
  size_t capacity = 0;
  off_t keep = 0;
  long long step;
  rewind(file);
  for (ssize_t size; (size = getline(&line, &capacity, file)) > 0; keep += size)
    if (line[size - 1] != '\n' || sscanf(line, "{\"step\":%lld", &step) != 1 || step > total_steps) break;
  free(line);
  if (ftruncate(fileno(file), keep) != 0 || fseeko(file, 0, SEEK_END) != 0) {
    int why = errno;
    fclose(file);
    return cmkd_fail(err, CMKD_ERR_IO, "%s: %s", path, strerror(why));
  }
  *out = file;
  return CMKD_OK;
}

cmkd_status cmkd_steps_add(FILE *steps, const char *path, int64_t step, int64_t epoch, double lr, double loss,
                           cmkd_error *err) {
  if (fprintf(steps, "{\"step\":%lld,\"epoch\":%lld,\"loss\":\"%a\",\"lr\":%.10g}\n", (long long)step, (long long)epoch,
              loss, lr) < 0)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: %s", path, strerror(errno));
  return CMKD_OK;
}
