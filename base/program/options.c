#include "base/program/options.h"
#include "base/text.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ---- */

static cmkd_status in_range(const cmkd_option *o, double value, const char *text, cmkd_error *err) {
  if ((o->min == 0 && o->max == 0) || (value >= o->min && value <= o->max)) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_USAGE, "%s %s: must be from %.12g to %.12g", o->name, text, o->min, o->max);
}

static cmkd_status parse_double(const cmkd_option *o, const char *text, size_t length, double *value, cmkd_error *err) {
  char copy[64], *end;
  if (length == 0 || length >= sizeof copy || isspace((unsigned char)text[0]))
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.80s: needs a number", o->name, text);
  memcpy(copy, text, length);
  copy[length] = 0;
  *value = strtod(copy, &end);
  if (*end || !isfinite(*value))
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.80s: needs a finite number", o->name, text);
  return in_range(o, *value, copy, err);
}

static cmkd_status parse_integer(const cmkd_option *o, const char *text, cmkd_error *err) {
  char *end;
  const char *digits = text + (o->kind == CMKD_OPT_INT && text[0] == '-');
  int hex = digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X');
  if (!isdigit((unsigned char)digits[0]))
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.80s: needs a %s", o->name, text,
                     o->kind == CMKD_OPT_INT ? "whole number" : "whole number from 0");
  errno = 0;
  if (o->kind == CMKD_OPT_INT) {
    long long value = strtoll(text, &end, hex ? 16 : 10);
    if (*end || errno)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.80s: %s", o->name, text,
                       errno ? "is too large" : "needs a whole number");
    CMKD_TRY(in_range(o, (double)value, text, err));
    *(int64_t *)o->target = value;
  } else {
    unsigned long long value = strtoull(text, &end, hex ? 16 : 10);
    if (*end || errno)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.80s: %s", o->name, text,
                       errno ? "is too large" : "needs a whole number from 0");
    CMKD_TRY(in_range(o, (double)value, text, err));
    *(uint64_t *)o->target = value;
  }
  return CMKD_OK;
}

/* "0.5,0.4,0.3", or one number for all three. */
static cmkd_status parse_floats3(const cmkd_option *o, const char *text, cmkd_error *err) {
  float out[3];
  double value;
  int count = 0;
  const char *at = text;
  for (;;) {
    size_t length = strcspn(at, ",");
    if (count == 3)
      return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.80s: needs three numbers, as in %s", o->name, text, o->argument);
    CMKD_TRY(parse_double(o, at, length, &value, err));
    if (fabs(value) > 3.4e38) return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.80s: is too large", o->name, text);
    out[count++] = (float)value;
    if (!at[length]) break;
    at += length + 1;
  }
  if (count == 2)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.80s: needs three numbers, as in %s", o->name, text, o->argument);
  if (count == 1) out[1] = out[2] = out[0];
  memcpy(o->target, out, sizeof out);
  return CMKD_OK;
}

static cmkd_status set_value(const cmkd_option *o, const char *text, cmkd_error *err) {
  switch (o->kind) {
  case CMKD_OPT_FLAG: *(int *)o->target = 1; break;
  case CMKD_OPT_STRING:
    if (!*text) return cmkd_fail(err, CMKD_ERR_USAGE, "%s: needs a value: %s %s", o->name, o->name, o->argument);
    *(const char **)o->target = text;
    break;
  case CMKD_OPT_INT:
  case CMKD_OPT_UINT64: CMKD_TRY(parse_integer(o, text, err)); break;
  case CMKD_OPT_DOUBLE: CMKD_TRY(parse_double(o, text, strlen(text), o->target, err)); break;
  case CMKD_OPT_FLOATS3: CMKD_TRY(parse_floats3(o, text, err)); break;
  }
  if (o->seen) *o->seen = 1;
  return CMKD_OK;
}

/* ---- the command line ---- */

static cmkd_status unknown_option(const cmkd_command *command, const char *word, size_t length, cmkd_error *err) {
  enum { MOST = 128, LONGEST = 64 };
  const char *names[MOST + 2], *nearest = NULL;
  char copy[LONGEST + 1];
  int count = 0;
  while (count < MOST && command->options[count].name) {
    names[count] = command->options[count].name;
    count++;
  }
  names[count++] = "--help";
  names[count] = NULL;
  if (length <= LONGEST) {
    memcpy(copy, word, length);
    copy[length] = 0;
    nearest = cmkd_nearest(copy, names);
  }
  if (nearest)
    return cmkd_fail(err, CMKD_ERR_USAGE, "unknown option %.*s; did you mean %s?", (int)(length < 200 ? length : 200),
                     word, nearest);
  return cmkd_fail(err, CMKD_ERR_USAGE, "unknown option %.*s; %s --help lists all", (int)(length < 200 ? length : 200),
                   word, command->name);
}

static const cmkd_option *find_option(const cmkd_command *command, const char *word, size_t length) {
  for (const cmkd_option *o = command->options; o->name; o++)
    if (strlen(o->name) == length && !memcmp(o->name, word, length)) return o;
  return NULL;
}

cmkd_status cmkd_options_parse(const cmkd_command *command, int argc, char **argv, const char **positional,
                               int *positionals, int *help, cmkd_error *err) {
  int count = 0, only_positional = 0;
  if (help) *help = 0;
  if (positionals) *positionals = 0;
  for (int i = 1; i < argc && argv[i] && strcmp(argv[i], "--"); i++) /* --help wins over a mistake elsewhere */
    if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
      cmkd_options_help(command, stdout);
      if (help) *help = 1;
      return CMKD_OK;
    }
  for (int i = 1; i < argc && argv[i]; i++) {
    const char *word = argv[i];
    if (only_positional || word[0] != '-' || !word[1]) {
      if (count >= command->max_positional)
        return cmkd_fail(err, CMKD_ERR_USAGE, "unexpected word %.200s; usage: %s %s", word, command->name,
                         command->usage);
      if (positional) positional[count] = word;
      count++;
      continue;
    }
    if (!strcmp(word, "--")) {
      only_positional = 1;
      continue;
    }
    size_t length = strcspn(word, "=");
    const cmkd_option *o = find_option(command, word, length);
    if (!o) return unknown_option(command, word, length, err);
    const char *value = word[length] == '=' ? word + length + 1 : NULL;
    if (o->kind == CMKD_OPT_FLAG) {
      if (value) return cmkd_fail(err, CMKD_ERR_USAGE, "%s takes no value", o->name);
    } else if (!value) {
      value = i + 1 < argc ? argv[i + 1] : NULL;
      /* "--out --seed 1" forgot a name; a lone dash or a negative number is a value */
      if (!value || (!strncmp(value, "--", 2) && find_option(command, value, strcspn(value, "="))))
        return cmkd_fail(err, CMKD_ERR_USAGE, "%s needs a value: %s %s", o->name, o->name, o->argument);
      i++;
    }
    CMKD_TRY(set_value(o, value, err));
  }
  if (count < command->min_positional)
    return cmkd_fail(err, CMKD_ERR_USAGE, "too few words; usage: %s %s", command->name, command->usage);
  if (positionals) *positionals = count;
  return CMKD_OK;
}

void cmkd_options_help(const cmkd_command *command, FILE *out) {
  int width = 6;
  for (const cmkd_option *o = command->options; o->name; o++) {
    int length = (int)strlen(o->name) + (o->argument ? 1 + (int)strlen(o->argument) : 0);
    if (o->help && length > width && length <= 30) width = length;
  }
  fprintf(out, "%s: %s\n\nusage: %s %s\n\noptions:\n", command->name, command->summary, command->name, command->usage);
  for (const cmkd_option *o = command->options; o->name; o++) {
    if (!o->help) continue; /* named in another line */
    int length = fprintf(out, "  %s%s%s", o->name, o->argument ? " " : "", o->argument ? o->argument : "") - 2;
    if (!*o->help)
      fputc('\n', out);
    else if (length > width)
      fprintf(out, "\n%*s  %s\n", width + 2, "", o->help);
    else
      fprintf(out, "%*s  %s\n", width - length, "", o->help);
  }
  fprintf(out, "  %-*s  this text\n", width, "--help");
  if (command->examples) {
    fprintf(out, "\nexamples:\n");
    for (const char *at = command->examples; *at;) {
      at += strspn(at, " ");
      size_t length = strcspn(at, "\n");
      fprintf(out, "  %.*s\n", (int)length, at);
      at += length + (at[length] == '\n');
    }
  }
}

int cmkd_exit_status(const char *program, const cmkd_error *err, cmkd_status status) {
  if (status == CMKD_OK) return 0;
  fprintf(stderr, "%s: %s\n", program, err && err->message[0] ? err->message : "failed");
  return status == CMKD_ERR_USAGE ? 2 : 1;
}
