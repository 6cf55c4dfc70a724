#include "base/text.h"
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { LONGEST = 64 };

/* Edit distance with swaps of neighbours (optimal string alignment), letters compared without case. */
static int edit_distance(const char *a, const char *b) {
  int n = (int)strlen(a), m = (int)strlen(b), rows[3][LONGEST + 1];
  int *before = rows[0], *last = rows[1], *now = rows[2];
  for (int j = 0; j <= m; j++)
    last[j] = before[j] = j;
  for (int i = 1; i <= n; i++) {
    now[0] = i;
    for (int j = 1; j <= m; j++) {
      int ca = tolower((unsigned char)a[i - 1]), cb = tolower((unsigned char)b[j - 1]);
      int best = last[j - 1] + (ca != cb);
      if (last[j] + 1 < best) best = last[j] + 1;
      if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
      if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) && cb == tolower((unsigned char)a[i - 2]) &&
          before[j - 2] + 1 < best)
        best = before[j - 2] + 1;
      now[j] = best;
    }
    int *spare = before;
    before = last;
    last = now;
    now = spare;
  }
  return last[m];
}

const char *cmkd_nearest(const char *word, const char *const *names) {
  size_t length = strlen(word);
  const char *nearest = NULL;
  if (length == 0 || length > LONGEST) return NULL;
  int best = length <= 2 ? 1 : length <= 5 ? 2 : 3;
  if (length > 12) best = 4;
  best++;
  for (int i = 0; names[i]; i++) {
    size_t size = strlen(names[i]);
    if (size > LONGEST) continue;
    int distance = edit_distance(word, names[i]);
    if (distance < best) {
      best = distance;
      nearest = names[i];
    }
  }
  if (nearest) return nearest;
  for (int i = 0; length >= 2 && names[i]; i++) /* "sched" means "schedule" */
    if (!strncasecmp(names[i], word, length)) return names[i];
  return NULL;
}

char *cmkd_duration(double seconds, char *buffer) {
  if (!(seconds >= 0)) seconds = 0;
  if (seconds > 1e9)
    snprintf(buffer, 24, "for ever");
  else if (seconds < 59.95)
    snprintf(buffer, 24, "%.1f s", seconds);
  else if (seconds < 3599.5)
    snprintf(buffer, 24, "%d min %02d s", (int)(seconds + 0.5) / 60, (int)(seconds + 0.5) % 60);
  else {
    int minutes = (int)(seconds / 60 + 0.5);
    snprintf(buffer, 24, "%d h %02d min", minutes / 60, minutes % 60);
  }
  return buffer;
}

/* Three digits that matter, in powers of 1000. */
static char *scaled(double value, const char *const *units, char *buffer) {
  int unit = 0;
  while (value >= 999.5 && units[unit + 1]) {
    value /= 1000;
    unit++;
  }
  int digits = (unit == 0 && value == floor(value)) || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  snprintf(buffer, 24, "%.*f%s", digits, value, units[unit]);
  return buffer;
}

char *cmkd_bytes(uint64_t bytes, char *buffer) {
  static const char *const units[] = {" B", " kB", " MB", " GB", " TB", " PB", NULL};
  return scaled((double)bytes, units, buffer);
}

char *cmkd_number(double value, char *buffer) {
  static const char *const units[] = {"", "k", "M", "G", NULL};
  return scaled(value, units, buffer);
}
