/* Text for people: numbers with units, and the word that somebody probably meant. */
#ifndef CMKD_BASE_TEXT_H
#define CMKD_BASE_TEXT_H
#include <stdint.h>

/* The nearest of `names` (NULL-terminated) by edit distance, without regard to case; NULL when none is near. */
const char *cmkd_nearest(const char *word, const char *const *names);

/* Each writes into `buffer`, at least 24 bytes, and returns it. */
char *cmkd_duration(double seconds, char *buffer); /* "1 h 02 min", "3 min 20 s", "12.3 s" */
char *cmkd_bytes(uint64_t bytes, char *buffer);    /* "1.24 GB", in powers of 1000 */
char *cmkd_number(double value, char *buffer);     /* "42", "1.24k", "12.4M" */
#endif
