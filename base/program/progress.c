#include "base/program/progress.h"
#include "base/clock.h"
#include "base/text.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int terminal_width(void) {
  struct winsize size;
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  const char *columns = getenv("COLUMNS");
  int width = columns ? atoi(columns) : 0;
  return width > 0 ? width : 80;
}

/* "  42%  1.24k images/s  1 min 02 s left" */
static void figures(const cmkd_progress *p, double now, char *buffer, size_t size) {
  char rate_text[24] = "", left_text[24], count[24];
  double passed = now - p->started, rate = passed > 0 && p->done > p->base ? (double)(p->done - p->base) / passed : 0;
  size_t at = 0;
  if (p->total)
    at += (size_t)snprintf(buffer, size, "%3d%%", (int)(100.0 * (double)p->done / (double)p->total));
  else {
    at += (size_t)snprintf(buffer, size, "%s %s", cmkd_number((double)p->done, count), p->unit);
  }
  if (rate > 0 && at < size) {
    at += (size_t)snprintf(buffer + at, size - at, "  %s %s/s", cmkd_number(rate, rate_text), p->unit);
    if (p->total && p->done < p->total && at < size)
      snprintf(buffer + at, size - at, "  %s left", cmkd_duration((double)(p->total - p->done) / rate, left_text));
  }
}

static void draw_bar(const cmkd_progress *p, double now) {
  enum { MOST = 512 };
  char text[128], line[MOST], bar[48] = "";
  figures(p, now, text, sizeof text);
  int width = terminal_width() - 1; /* the last column makes some terminals wrap */
  if (width > MOST - 1) width = MOST - 1;
  int others = (int)strlen(p->label) + 2 + (int)strlen(text) + (p->note[0] ? 2 + (int)strlen(p->note) : 0);
  int cells = width - others - 4; /* brackets and two blanks */
  if (cells > 30) cells = 30;
  if (p->total && cells >= 6) {
    int full = (int)((double)cells * (double)p->done / (double)p->total);
    bar[0] = '[';
    memset(bar + 1, '=', (size_t)full);
    if (full < cells) bar[1 + full] = '>';
    if (full + 1 < cells) memset(bar + 2 + full, ' ', (size_t)(cells - full - 1));
    memcpy(bar + 1 + cells, "]  ", 4);
  }
  snprintf(line, sizeof line, "%s  %s%s%s%s", p->label, bar, text, p->note[0] ? "  " : "", p->note);
  fprintf(stderr, "\r%.*s\033[K", width, line);
  fflush(stderr);
}

static void draw_plain(const cmkd_progress *p, double now) {
  char text[128];
  figures(p, now, text, sizeof text);
  fprintf(stderr, "%s: %s%s%s\n", p->label, text + strspn(text, " "), p->note[0] ? "  " : "", p->note);
}

void cmkd_progress_start(cmkd_progress *p, const char *label, const char *unit, uint64_t total, uint64_t done,
                         int quiet) {
  const char *term = getenv("TERM");
  *p = (cmkd_progress){.label = label ? label : "",
                       .unit = unit ? unit : "",
                       .total = total,
                       .done = done,
                       .base = done,
                       .quiet = quiet};
  p->terminal = isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"));
  p->started = cmkd_seconds();
  p->shown = p->terminal ? p->started - 1 : p->started; /* a bar at once; plain lines only for work that lasts */
  cmkd_progress_update(p, done);
}

void cmkd_progress_update(cmkd_progress *p, uint64_t done) {
  p->done = p->total && done > p->total ? p->total : done;
  if (p->quiet) return;
  double now = cmkd_seconds();
  if (now - p->shown < (p->terminal ? 0.1 : 10.0)) return;
  p->shown = now;
  if (p->terminal)
    draw_bar(p, now);
  else
    draw_plain(p, now);
}

void cmkd_progress_end(cmkd_progress *p) {
  if (!p->quiet && p->terminal) {
    fputs("\r\033[K", stderr);
    fflush(stderr);
  }
  p->quiet = 1; /* a late update must not draw again */
}
