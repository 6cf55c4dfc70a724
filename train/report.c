/* Words of a training run. See report.h. */
#include "train/report.h"
#include <math.h>
#include <string.h>
#include "base/hash.h"
#include "base/text.h"
#include "base/json.h"
#include "train/record.h"

/* "70.21", or "-" for NaN, in `buffer`. */
static const char *shown(double value, const char *format, char buffer[24]) {
  if (isnan(value))
    strcpy(buffer, "-");
  else {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(buffer, 24, format, value);
#pragma GCC diagnostic pop
  }
  return buffer;
}

static void say_schedule(const cmkd_report *report) {
  FILE *out = report->out;
  const cmkd_settings *s = &report->student->settings;
  const cmkd_schedule *schedule = &s->schedule;
  fprintf(out, "schedule  %d epochs of %d steps of %d; learning rate %g", s->epochs, schedule->steps_per_epoch,
          s->batch, schedule->lr);
  if (schedule->kind == CMKD_SCHEDULE_COSINE) fprintf(out, ", cosine to 0");
  if (schedule->milestones) fprintf(out, ", x%g after ", CMKD_MILESTONE_FACTOR);
  for (int i = 0; i < schedule->milestones; i++)
    fprintf(out, "%s%d", i ? ", " : "", schedule->milestone[i]);
  if (schedule->warmup > 0) fprintf(out, ", warm-up %g epochs", schedule->warmup);
  fprintf(out, "; momentum %g%s, weight decay %g\n", s->momentum, s->nesterov ? " (Nesterov)" : "", s->weight_decay);
  if (report->recipe)
    fprintf(out, "          (recipe %s%s)\n", report->recipe->asked, report->recipe->shortened ? ", shortened" : "");
  if (!report->options->student.epochs && s->epochs == CMKD_DEFAULT_EPOCHS)
    fprintf(out, "          (the published settings; --epochs N shortens, the milestones keep their places)\n");
}

static void say_teacher(FILE *out, const cmkd_session *session) {
  const cmkd_session_settings *s = &session->settings;
  char views[48];
  snprintf(views, sizeof views, s->all_variants ? "all %u views" : "%u view%s", s->views, s->views == 1 ? "" : "s");
  if (session->cache) {
    const cmkd_cache_info *info = cmkd_cache_get_info(session->cache);
    fprintf(out, "teacher   %s: %s (%.12s), %s of %llu samples, %s\n", session->options.cache,
            info->identity.teacher_arch, info->identity.teacher_sha256, views, (unsigned long long)info->samples,
            info->identity.codec);
  } else if (session->teacher)
    fprintf(out, "teacher   %s, live: %s (%.12s), %s, cache seed %llu\n", cmkd_teacher_name(session->teacher),
            cmkd_session_teacher_arch(session), cmkd_session_teacher_sha256(session), views,
            (unsigned long long)s->cache_seed);
}

void cmkd_report_start(const cmkd_report *report) {
  FILE *out = report->out;
  const cmkd_student *student = report->student;
  const cmkd_session *session = student->session;
  const cmkd_settings *s = &student->settings;
  const cmkd_dataset *d = session->train;
  fprintf(out, "data      %s: %u training", d->name, s->samples - s->val);
  if (s->val) fprintf(out, ", %u validation", s->val);
  fprintf(out, ", %u test images %dx%dx%d, %d classes; augment %s\n", session->test->n, d->height, d->width,
          d->channels, d->classes, cmkd_policy_name(s->session.policy));
  fprintf(out, "student   %s: %.3g M parameters, %.3g MMACs an image\n", s->arch,
          1e-6 * (double)cmkd_graph_parameters(student->graph), 1e-6 * (double)cmkd_graph_macs(student->graph));
  say_teacher(out, session);
  fprintf(out, "loss      %s", cmkd_loss_text(s->loss));
  if (s->label_smoothing > 0) fprintf(out, ", label smoothing %g", s->label_smoothing);
  fputc('\n', out);
  say_schedule(report);
  fprintf(out, "device    %s\n", cmkd_session_device(session));
  fprintf(out, "run       %s, seed %llu", student->folder.path, (unsigned long long)s->seed);
  if (student->resumed)
    fprintf(out, "; goes on after epoch %lld and %lld steps", (long long)student->state.epoch,
            (long long)student->state.step);
  else if (student->options.resume)
    fprintf(out, "; nothing to resume, starts afresh");
  fputc('\n', out);
  if (student->device_note[0]) fprintf(out, "note      %s\n", student->device_note);
  fflush(out);
}

/* ---- while it runs ---- */

static void ticker_begins(void *self, const cmkd_student_progress *p) {
  cmkd_ticker *t = self;
  snprintf(t->label, sizeof t->label, "epoch %lld/%lld", (long long)p->epoch + 1, (long long)p->epochs);
  if (t->running) return;
  cmkd_progress_start(&t->progress, t->label, "images", (uint64_t)(p->epochs * p->images_per_epoch),
                      (uint64_t)p->total_images, t->quiet);
  t->running = 1;
}

static void ticker_steps(void *self, const cmkd_student_progress *p) {
  cmkd_ticker *t = self;
  const cmkd_score *last = cmkd_student_last(t->student);
  int at = snprintf(t->progress.note, sizeof t->progress.note, "loss %.4f", p->loss);
  if (last->epoch && !isnan(last->top1))
    snprintf(t->progress.note + at, sizeof t->progress.note - (size_t)at, "  top-1 %.2f", last->top1);
  cmkd_progress_update(&t->progress, (uint64_t)p->total_images);
}

static void ticker_ends(void *self, const cmkd_epoch_report *report) {
  cmkd_ticker *t = self;
  const cmkd_score *score = &report->score;
  char a[24], b[24], c[24], d[24], e[24], time[24];
  if (t->progress.terminal && !t->quiet) {
    fputs("\r\033[K", stderr);
    fflush(stderr);
  }
  if (!t->lines++)
    fprintf(t->out, "%5s %9s %6s %6s %8s %8s %9s %8s %10s\n", "epoch", "loss", "top-1", "top-5", "r train", "r test",
            "lr", "images/s", "time");
  fprintf(t->out, "%5lld %9.4f %6s %6s %8s %8s %9s %8.0f %10s\n", (long long)score->epoch, score->loss,
          shown(score->top1, "%.2f", a), shown(score->top5, "%.2f", b), shown(score->train_pearson, "%.4f", c),
          shown(score->test_pearson, "%.4f", d), shown(report->lr, "%.4g", e), report->images_per_s,
          cmkd_duration(report->seconds, time));
  fflush(t->out);
}

void cmkd_ticker_start(cmkd_ticker *t, const cmkd_student *student, FILE *out, int quiet, cmkd_trainer *trainer) {
  *t = (cmkd_ticker){.out = out, .student = student, .quiet = quiet};
  trainer->self = t;
  trainer->epoch_begins = ticker_begins;
  trainer->steps_done = ticker_steps;
  trainer->epoch_ends = ticker_ends;
}

void cmkd_ticker_end(cmkd_ticker *t) {
  if (t->running) cmkd_progress_end(&t->progress);
  t->running = 0;
}

/* ---- at the end ---- */

static void table_row(FILE *out, const char *name, const cmkd_score *s, int val) {
  char a[24], b[24], c[24], d[24], e[24];
  fprintf(out, "%-6s %7lld %7s %7s", name, (long long)s->epoch, shown(s->top1, "%.2f", a), shown(s->top5, "%.2f", b));
  if (val) fprintf(out, " %9s", shown(s->val_top1, "%.2f", e));
  fprintf(out, " %9.4f %9s %9s\n", s->loss, shown(s->test_pearson, "%.4f", c), shown(s->test_spearman, "%.4f", d));
}

static void say_published(const cmkd_report *report) {
  const cmkd_recipe *r = &report->recipe->recipe;
  const char *loss = report->options->student.loss;
  double reached = cmkd_recipe_published(r, loss), teacher = cmkd_recipe_result(r, "teacher"),
         student = cmkd_recipe_result(r, "student");
  char a[24], b[24], c[24];
  fprintf(report->out, "published for %s (best epoch): %s %s, student alone %s, teacher %s\n", r->name, loss,
          shown(reached, "%.2f", a), shown(student, "%.2f", b), shown(teacher, "%.2f", c));
}

void cmkd_report_end(const cmkd_report *report) {
  FILE *out = report->out;
  const cmkd_student *student = report->student;
  const cmkd_state *state = &student->state;
  const int val = student->settings.val > 0;
  const char *weights = "";
  char time[24];
  if (state->last.epoch) {
    weights = "last.safetensors, ";
    fprintf(out, "\n%-6s %7s %7s %7s", "", "epoch", "top-1", "top-5");
    if (val) fprintf(out, " %9s", "val top-1");
    fprintf(out, " %9s %9s %9s\n", "loss", "pearson", "spearman");
    table_row(out, "last", &state->last, val);
    if (state->best.epoch) table_row(out, "best", &state->best, val);
    fprintf(out, "best is chosen by %s top-1; pearson and spearman: with the teacher, on the test split\n",
            val ? "validation" : "test");
  }
  if (state->best.epoch) weights = "{last,best}.safetensors, ";
  if (report->recipe) say_published(report);
  if (state->epoch < student->settings.epochs)
    fprintf(out, "stopped by --max-steps after %lld steps; --resume goes on\n", (long long)state->total_steps);
  fprintf(out, "%s in all; files: %s/%slog.jsonl, config.json, state.safetensors\n",
          cmkd_duration(state->elapsed, time), student->folder.path, weights);
}

json_t *cmkd_report_json(const cmkd_student *student) {
  const cmkd_state *state = &student->state;
  char sha256[CMKD_SHA256_HEX];
  cmkd_json o = cmkd_json_object();
  cmkd_json_set(&o, "out", cmkd_json_string(student->folder.path));
  cmkd_json_set(&o, "finished", json_boolean(state->epoch == student->settings.epochs));
  cmkd_json_set(&o, "epochs", json_integer(state->epoch));
  cmkd_json_set(&o, "steps", json_integer(state->total_steps));
  cmkd_json_set(&o, "seconds", cmkd_json_number(state->elapsed));
  cmkd_json_set(&o, "best_by", json_string(student->settings.val ? "val" : "test"));
  cmkd_json_set(&o, "last", state->last.epoch ? cmkd_score_json(&state->last) : json_null());
  cmkd_json_set(&o, "best", state->best.epoch ? cmkd_score_json(&state->best) : json_null());
  if (state->last.epoch && cmkd_sha256_file(student->folder.last, sha256, NULL) == CMKD_OK)
    cmkd_json_set(&o, "last_sha256", json_string(sha256));
  return cmkd_json_end(&o);
}
