/* Long work shows one line: a bar with rate and time left on a terminal, a plain line every so often otherwise.
 * Writes to stderr only. Thread-compatible: one caller at a time. */
#ifndef CMKD_BASE_PROGRAM_PROGRESS_H
#define CMKD_BASE_PROGRAM_PROGRESS_H
#include <stdint.h>

typedef struct cmkd_progress {
  const char *label, *unit;   /* "epoch 3/20", "images" */
  uint64_t total, done, base; /* base: done at start (resume), left out of the rate */
  double started, shown;      /* seconds, monotonic */
  int terminal, quiet;
  char note[96]; /* shown behind the bar: loss, accuracy */
} cmkd_progress;

void cmkd_progress_start(cmkd_progress *p, const char *label, const char *unit, uint64_t total, uint64_t done,
                         int quiet);
void cmkd_progress_update(cmkd_progress *p,
                          uint64_t done); /* cheap: draws at most 10 times a second (plain: every 10 s) */
void cmkd_progress_end(cmkd_progress *p); /* clears the bar; leaves the cursor on a fresh line */
#endif
