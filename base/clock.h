/* Time that only goes forward. */
#ifndef CMKD_BASE_CLOCK_H
#define CMKD_BASE_CLOCK_H
double cmkd_seconds(void); /* since some fixed moment: only differences mean anything */
#endif
