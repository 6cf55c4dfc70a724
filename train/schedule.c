/* Learning-rate schedules. See schedule.h. */
#include "train/schedule.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/text.h"

static const char *const schedule_names[] = {"step", "cosine", "constant", NULL};

const char *cmkd_schedule_name(cmkd_schedule_kind kind) { return schedule_names[kind]; }

cmkd_status cmkd_schedule_parse(const char *name, cmkd_schedule_kind *out, cmkd_error *err) {
  for (int i = 0; schedule_names[i]; i++)
    if (!strcmp(name, schedule_names[i])) {
      *out = (cmkd_schedule_kind)i;
      return CMKD_OK;
    }
  const char *near = cmkd_nearest(name, schedule_names);
  return cmkd_fail(err, CMKD_ERR_USAGE, "--schedule %s is not known%s%s%s; there are step, cosine, constant", name,
                   near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

cmkd_status cmkd_schedule_milestones(cmkd_schedule *schedule, const char *text, cmkd_error *err) {
  schedule->milestones = 0;
  if (!text) {
    static const double published[] = {150 / 240.0, 180 / 240.0, 210 / 240.0};
    for (int i = 0; i < 3; i++) {
      int after = (int)floor(published[i] * schedule->epochs + 0.5);
      int before = schedule->milestones ? schedule->milestone[schedule->milestones - 1] : 0;
      if (after > before && after < schedule->epochs)
        schedule->milestone[schedule->milestones++] = after; /* short runs have fewer */
    }
    return CMKD_OK;
  }
  int before = 0;
  for (const char *at = text; *at;) {
    char *end;
    errno = 0;
    long value = strtol(at, &end, 10);
    if (end == at || errno || (*end && *end != ',') || (*end == ',' && !end[1]))
      return cmkd_fail(err, CMKD_ERR_USAGE,
                       "--milestones %s: expected epochs with commas between them, like 150,180,210", text);
    if (value <= before || value > 1000000)
      return cmkd_fail(err, CMKD_ERR_USAGE, "--milestones %s: epochs must be at least 1 and rise from left to right",
                       text);
    if (schedule->milestones == CMKD_MAX_MILESTONES)
      return cmkd_fail(err, CMKD_ERR_USAGE, "--milestones %s: at most %d epochs", text, CMKD_MAX_MILESTONES);
    schedule->milestone[schedule->milestones++] = before = (int)value;
    at = *end ? end + 1 : end;
  }
  return CMKD_OK;
}

double cmkd_schedule_rate(const cmkd_schedule *s, int epoch, int step) {
  double now = (double)epoch * s->steps_per_epoch + step, ramp = floor(s->warmup * s->steps_per_epoch + 0.5);
  if (now < ramp) return s->lr * ((now + 1) / ramp);
  double rate = s->lr;
  if (s->kind == CMKD_SCHEDULE_STEP) {
    for (int i = 0; i < s->milestones; i++)
      if (epoch >= s->milestone[i]) rate *= CMKD_MILESTONE_FACTOR;
  } else if (s->kind == CMKD_SCHEDULE_COSINE) {
    double rest = (double)s->epochs * s->steps_per_epoch - ramp;
    rate = rest > 0 ? s->lr * 0.5 * (1 + cos(3.14159265358979323846 * (now - ramp) / rest)) : s->lr;
  }
  return rate;
}
