/* The command line: words are separated by line feeds. A value that is accepted must be inside its range. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "base/program/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  enum { MOST = 16 };
  int flag = 0, count = 1, positionals, help;
  const char *text, *word[2];
  int64_t integer = 1;
  uint64_t number = 0;
  double real = 0;
  float mean[3] = {0};
  const cmkd_option table[] = {{"--json", NULL, CMKD_OPT_FLAG, &flag, "", 0, 0, NULL},
                               {"--out", "FILE", CMKD_OPT_STRING, &text, "", 0, 0, NULL},
                               {"--batch", "N", CMKD_OPT_INT, &integer, "", 1, 100, NULL},
                               {"--seed", "S", CMKD_OPT_UINT64, &number, "", 0, 0, NULL},
                               {"--lr", "X", CMKD_OPT_DOUBLE, &real, "", -1, 1, NULL},
                               {"--mean", "R,G,B", CMKD_OPT_FLOATS3, mean, "", 0, 0, NULL},
                               {NULL, NULL, CMKD_OPT_FLAG, NULL, NULL, 0, 0, NULL}};
  const cmkd_command command = {"fuzz", "", "", NULL, table, 0, 2};
  char *copy = malloc(size + 1), *argv[MOST + 1] = {"fuzz"};
  cmkd_error err = {0};
  if (!copy) return 0;
  memcpy(copy, data, size);
  copy[size] = 0;
  for (char *line = strtok(copy, "\n"); line && count < MOST; line = strtok(NULL, "\n"))
    if (strcmp(line, "--help") && strcmp(line, "-h")) argv[count++] = line; /* would print */
  if (cmkd_options_parse(&command, count, argv, word, &positionals, &help, &err) == CMKD_OK) {
    if (integer < 1 || integer > 100 || !(fabs(real) <= 1) || positionals > 2) abort();
    for (int i = 0; i < 3; i++)
      if (!isfinite(mean[i])) abort();
  } else if (!err.message[0] || strchr(err.message, '\n'))
    abort();
  free(copy);
  return 0;
}
