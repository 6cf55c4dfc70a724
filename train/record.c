/* Epoch lines, step lines, weight files. See record.h. */
#include "train/record.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/json.h"

void cmkd_score_from_sums(const cmkd_epoch_sums *sums, cmkd_score *score) {
  double images = (double)sums->images, rows = (double)sums->agreement_rows;
  score->loss = sums->loss / images;
  score->train_top1 = 100.0 * (double)sums->top1 / images;
  score->train_pearson = sums->agreement_rows ? sums->pearson / rows : NAN;
  score->train_spearman = sums->agreement_rows ? sums->spearman / rows : NAN;
  score->blocks = sums->agreement_rows ? sums->agreement_blocks / rows : NAN;
  if (sums->blocks_rows) score->blocks = sums->blocks / (double)sums->blocks_rows;
}

json_t *cmkd_score_json(const cmkd_score *s) {
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "epoch", json_integer(s->epoch));
  cmkd_json_set(&o, "top1", cmkd_json_number(s->top1));
  cmkd_json_set(&o, "top5", cmkd_json_number(s->top5));
  if (!isnan(s->val_top1)) cmkd_json_set(&o, "val_top1", cmkd_json_number(s->val_top1));
  cmkd_json_set(&o, "loss", cmkd_json_number(s->loss));
  cmkd_json_set(&o, "test_loss", cmkd_json_number(s->test_loss));
  cmkd_json_set(&o, "train_top1", cmkd_json_number(s->train_top1));
  cmkd_json_set(&o, "train_pearson", cmkd_json_number(s->train_pearson));
  cmkd_json_set(&o, "train_spearman", cmkd_json_number(s->train_spearman));
  cmkd_json_set(&o, "test_pearson", cmkd_json_number(s->test_pearson));
  cmkd_json_set(&o, "test_spearman", cmkd_json_number(s->test_spearman));
  cmkd_json_set(&o, "blocks", cmkd_json_number(s->blocks));
  return cmkd_json_end(&o);
}

static json_t *parts_json(const cmkd_loss *loss, const cmkd_epoch_sums *sums) {
  cmkd_json parts = cmkd_json_object();
  for (int i = 0; i < cmkd_loss_parts(loss); i++)
    cmkd_json_set(&parts, cmkd_loss_part_name(loss, i), cmkd_json_number(sums->part[i] / (double)sums->images));
  return cmkd_json_end(&parts);
}

char *cmkd_epoch_line(const cmkd_settings *settings, const cmkd_epoch_sums *sums, const cmkd_epoch_report *report) {
  json_t *score = cmkd_score_json(&report->score);
  cmkd_json o = {.value = score, .failed = !score};
  cmkd_json_set(&o, "parts", parts_json(settings->loss, sums));
  cmkd_json_set(&o, "lr", cmkd_json_number(report->lr));
  if (settings->session.views) cmkd_json_set(&o, "view", json_integer(report->view));
  cmkd_json_set(&o, "seconds", cmkd_json_number(report->seconds));
  cmkd_json_set(&o, "images_per_s", cmkd_json_number(report->images_per_s));
  json_t *line = cmkd_json_end(&o);
  char *text = line ? json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
  json_decref(line);
  return text;
}

static void list_numbers(const float *values, int count, char *out, size_t size) {
  size_t at = 0;
  out[0] = 0;
  for (int i = 0; i < count && at < size; i++)
    at += (size_t)snprintf(out + at, size - at, "%s%.9g", i ? "," : "", (double)values[i]);
}

cmkd_status cmkd_student_write_weights(const cmkd_student *student, const cmkd_score *score, const char *path,
                                       cmkd_error *err) {
  const cmkd_settings *s = &student->settings;
  const char *teacher_sha256 = cmkd_session_teacher_sha256(student->session);
  const char *keys[16], *values[16];
  char classes[16], mean[64], std[64], epoch[24], seed[24], top1[32], top5[32], val[32];
  int n = 0;
  snprintf(classes, sizeof classes, "%d", s->session.classes);
  list_numbers(s->mean, s->session.channels, mean, sizeof mean);
  list_numbers(s->std, s->session.channels, std, sizeof std);
  snprintf(epoch, sizeof epoch, "%lld", (long long)score->epoch);
  snprintf(seed, sizeof seed, "%llu", (unsigned long long)s->seed);
  snprintf(top1, sizeof top1, "%.2f", score->top1);
  snprintf(top5, sizeof top5, "%.2f", score->top5);
  snprintf(val, sizeof val, "%.2f", score->val_top1);
  const struct {
    const char *key, *value; /* NULL: left out */
  } meta[] = {
      {"format", "pt"}, /* what the safetensors package of Python expects to find */
      {"arch", s->arch},
      {"dataset", student->session->train->name},
      {"classes", classes},
      {"mean", mean},
      {"std", std},
      {"top1", isnan(score->top1) ? NULL : top1},
      {"top5", isnan(score->top1) ? NULL : top5},
      {"val_top1", isnan(score->val_top1) ? NULL : val},
      {"epoch", epoch},
      {"seed", seed},
      {"loss", cmkd_loss_text(s->loss)},
      {"teacher_sha256", teacher_sha256},
  };
  for (size_t i = 0; i < sizeof meta / sizeof *meta; i++) {
    if (!meta[i].value) continue;
    keys[n] = meta[i].key;
    values[n++] = meta[i].value;
  }
  return cmkd_params_save(student->graph, &student->state.value, student->state.total_steps, path, keys, values, n,
                          err);
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

cmkd_status cmkd_steps_add(FILE *steps, const char *path, const cmkd_step_line *line, cmkd_error *err) {
  if (fprintf(steps, "{\"step\":%lld,\"epoch\":%lld,\"loss\":\"%a\",\"lr\":%.10g}\n", (long long)line->step,
              (long long)line->epoch, line->loss, line->lr) < 0)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: %s", path, strerror(errno));
  return CMKD_OK;
}
