/* Words of a training run. See report.h. */
#include "train/report.h"
#include <math.h>
#include <string.h>
#include "base/hash.h"
#include "base/text.h"
#include "train/recipe_apply.h"
#include "train/record.h"

const char *cmkd_shown(double value, const char *format, char buffer[24]) {
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

static void say_schedule(FILE *out, const cmkd_settings *s, const cmkd_train_options *o) {
  const cmkd_schedule *schedule = &s->schedule;
  fprintf(out, "schedule  %d epochs of %d steps of %d; learning rate %g", s->epochs, schedule->steps_per_epoch,
          s->batch, schedule->lr);
  if (schedule->kind == CMKD_SCHEDULE_COSINE) fprintf(out, ", cosine to 0");
  for (int i = 0; i < schedule->milestones; i++)
    fprintf(out, "%s%d", i ? ", " : schedule->milestones ? ", x0.1 after " : "", schedule->milestone[i]);
  if (schedule->warmup > 0) fprintf(out, ", warm-up %g epochs", schedule->warmup);
  fprintf(out, "; momentum %g%s, weight decay %g\n", s->momentum, s->nesterov ? " (Nesterov)" : "", s->weight_decay);
  if (o->recipe) fprintf(out, "          (recipe %s%s)\n", o->recipe, o->recipe_shortened ? ", shortened" : "");
  if (!o->epochs_seen && s->epochs == 240)
    fprintf(out, "          (the published settings; --epochs N shortens, the milestones keep their places)\n");
}

static void say_teacher(FILE *out, const cmkd_setup *setup, const cmkd_train_options *o) {
  const cmkd_settings *s = &setup->settings;
  char views[48];
  snprintf(views, sizeof views, s->all_variants ? "all %u views" : "%u view%s", s->views, s->views == 1 ? "" : "s");
  if (setup->cache) {
    const cmkd_cache_info *info = cmkd_cache_get_info(setup->cache);
    fprintf(out, "teacher   %s: %s (%.12s), %s of %llu samples, %s\n", o->cache, info->identity.teacher_arch,
            info->identity.teacher_sha256, views, (unsigned long long)info->samples, info->identity.codec);
  } else if (setup->teacher)
    fprintf(out, "teacher   %s, live: %s (%.12s), %s, cache seed %llu\n", o->teacher,
            cmkd_teacher_spec(setup->teacher)->arch, cmkd_teacher_sha256(setup->teacher), views,
            (unsigned long long)s->cache_seed);
}

void cmkd_report_start(FILE *out, const cmkd_setup *setup, const cmkd_train_options *o) {
  const cmkd_settings *s = &setup->settings;
  const cmkd_dataset *d = setup->train;
  fprintf(out, "data      %s: %u training", d->name, s->samples - s->val);
  if (s->val) fprintf(out, ", %u validation", s->val);
  fprintf(out, ", %u test images %dx%dx%d, %d classes; augment %s\n", setup->test->n, d->height, d->width, d->channels,
          d->classes, cmkd_policy_name(s->policy));
  fprintf(out, "student   %s: %.3g M parameters, %.3g MMACs an image\n", s->arch,
          1e-6 * (double)cmkd_graph_parameters(setup->graph), 1e-6 * (double)cmkd_graph_macs(setup->graph));
  say_teacher(out, setup, o);
  fprintf(out, "loss      %s", cmkd_loss_text(s->loss));
  if (s->label_smoothing > 0) fprintf(out, ", label smoothing %g", s->label_smoothing);
  fputc('\n', out);
  say_schedule(out, s, o);
  fprintf(out, "device    %s\n", setup->table->describe(setup->backend));
  fprintf(out, "run       %s, seed %llu", setup->folder.path, (unsigned long long)s->seed);
  if (setup->resumed)
    fprintf(out, "; goes on after epoch %lld and %lld steps", (long long)setup->state.epoch,
            (long long)setup->state.step);
  else if (o->resume)
    fprintf(out, "; nothing to resume, starts afresh");
  fputc('\n', out);
  if (setup->device_note[0]) fprintf(out, "note      %s\n", setup->device_note);
  fflush(out);
}

/* ---- while it runs ---- */

static void ticker_begins(void *self, int64_t epoch, int64_t images) {
  cmkd_ticker *t = self;
  const cmkd_settings *s = &t->setup->settings;
  snprintf(t->label, sizeof t->label, "epoch %lld/%d", (long long)epoch, s->epochs);
  if (t->running) return;
  cmkd_progress_start(&t->progress, t->label, "images", (uint64_t)s->epochs * (s->samples - s->val), (uint64_t)images,
                      t->quiet);
  t->running = 1;
}

static void ticker_steps(void *self, int64_t images, double loss) {
  cmkd_ticker *t = self;
  const cmkd_score *last = &t->setup->state.last;
  int at = snprintf(t->progress.note, sizeof t->progress.note, "loss %.4f", loss);
  if (last->epoch && !isnan(last->top1))
    snprintf(t->progress.note + at, sizeof t->progress.note - (size_t)at, "  top-1 %.2f", last->top1);
  cmkd_progress_update(&t->progress, (uint64_t)images);
}

static void ticker_ends(void *self, const cmkd_score *score, double rate, double images_per_s, double seconds) {
  cmkd_ticker *t = self;
  char a[24], b[24], c[24], d[24], e[24], time[24];
  if (t->progress.terminal && !t->quiet) fputs("\r\033[K", stderr), fflush(stderr);
  if (!t->lines++)
    fprintf(t->out, "%5s %9s %6s %6s %8s %8s %9s %8s %10s\n", "epoch", "loss", "top-1", "top-5", "r train", "r test",
            "lr", "images/s", "time");
  fprintf(t->out, "%5lld %9.4f %6s %6s %8s %8s %9s %8.0f %10s\n", (long long)score->epoch, score->loss,
          cmkd_shown(score->top1, "%.2f", a), cmkd_shown(score->top5, "%.2f", b),
          cmkd_shown(score->train_pearson, "%.4f", c), cmkd_shown(score->test_pearson, "%.4f", d),
          cmkd_shown(rate, "%.4g", e), images_per_s, cmkd_duration(seconds, time));
  fflush(t->out);
}

cmkd_watch cmkd_ticker_watch(cmkd_ticker *t, const cmkd_setup *setup, FILE *out, int quiet) {
  *t = (cmkd_ticker){.setup = setup, .out = out, .quiet = quiet};
  return (cmkd_watch){.self = t, .epoch_begins = ticker_begins, .steps_done = ticker_steps, .epoch_ends = ticker_ends};
}

void cmkd_ticker_end(cmkd_ticker *t) {
  if (t->running) cmkd_progress_end(&t->progress);
  t->running = 0;
}

/* ---- at the end ---- */

static void table_row(FILE *out, const char *name, const cmkd_score *s, int val) {
  char a[24], b[24], c[24], d[24], e[24];
  fprintf(out, "%-6s %7lld %7s %7s", name, (long long)s->epoch, cmkd_shown(s->top1, "%.2f", a),
          cmkd_shown(s->top5, "%.2f", b));
  if (val) fprintf(out, " %9s", cmkd_shown(s->val_top1, "%.2f", e));
  fprintf(out, " %9.4f %9s %9s\n", s->loss, cmkd_shown(s->test_pearson, "%.4f", c),
          cmkd_shown(s->test_spearman, "%.4f", d));
}

static void say_published(FILE *out, const cmkd_train_options *o) {
  const cmkd_recipe *r = &o->recipe_loaded;
  double reached = cmkd_recipe_published(r, o->recipe_asked), teacher = cmkd_recipe_published(r, "teacher"),
         student = cmkd_recipe_published(r, "ce");
  char a[24], b[24], c[24];
  fprintf(out, "published for %s (best epoch): %s %s, student alone %s, teacher %s\n", r->name, o->recipe_asked,
          cmkd_shown(reached, "%.2f", a), cmkd_shown(student, "%.2f", b), cmkd_shown(teacher, "%.2f", c));
}

void cmkd_report_end(FILE *out, const cmkd_setup *setup, const cmkd_train_options *o) {
  const cmkd_state *state = &setup->state;
  char time[24];
  int val = setup->settings.val > 0, done = state->epoch == setup->settings.epochs;
  if (state->last.epoch) {
    fprintf(out, "\n%-6s %7s %7s %7s", "", "epoch", "top-1", "top-5");
    if (val) fprintf(out, " %9s", "val top-1");
    fprintf(out, " %9s %9s %9s\n", "loss", "pearson", "spearman");
    table_row(out, "last", &state->last, val);
    if (state->best.epoch) table_row(out, "best", &state->best, val);
    fprintf(out, "best is chosen by %s top-1; pearson and spearman: with the teacher, on the test split\n",
            val ? "validation" : "test");
  }
  if (o->recipe) say_published(out, o);
  if (!done) fprintf(out, "stopped by --max-steps after %lld steps; --resume goes on\n", (long long)state->total_steps);
  fprintf(out, "%s in all; files: %s/%slog.jsonl, config.json, state.safetensors\n",
          cmkd_duration(state->elapsed, time), setup->folder.path,
          state->best.epoch   ? "{last,best}.safetensors, "
          : state->last.epoch ? "last.safetensors, "
                              : "");
}

json_t *cmkd_report_json(const cmkd_setup *setup) {
  const cmkd_state *state = &setup->state;
  json_t *o = json_object();
  char sha256[CMKD_SHA256_HEX];
  json_object_set_new(o, "out", json_string(setup->folder.path));
  json_object_set_new(o, "finished", json_boolean(state->epoch == setup->settings.epochs));
  json_object_set_new(o, "epochs", json_integer(state->epoch));
  json_object_set_new(o, "steps", json_integer(state->total_steps));
  json_object_set_new(o, "seconds", json_real(state->elapsed));
  json_object_set_new(o, "best_by", json_string(setup->settings.val ? "val" : "test"));
  json_object_set_new(o, "last", state->last.epoch ? cmkd_score_json(&state->last) : json_null());
  json_object_set_new(o, "best", state->best.epoch ? cmkd_score_json(&state->best) : json_null());
  if (state->last.epoch && cmkd_sha256_file(setup->folder.last, sha256, NULL) == CMKD_OK)
    json_object_set_new(o, "last_sha256", json_string(sha256));
  return o;
}
