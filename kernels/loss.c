/* One expression names a loss: parser, canonical text, registry of implementations, argument checks.
 * Will not do: arithmetic on logits (kernels/ref, kernels/cpu, kernels/cuda). */
#include "kernels/loss.h"
#include <ctype.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/text.h"

/* ---- the terms ----
 * A new one is a value of cmkd_term_kind, a row of `terms`, and its arithmetic in each implementation:
 * kernels/ref/loss_ref.c, kernels/cpu/loss/ (where loss.h counts the parts), kernels/cuda/loss/. docs/losses.md says
 * its formula. */
enum {
  KEY_WEIGHT = 1,
  KEY_T = 2,
  KEY_ALPHA = 4,
  KEY_BETA = 8,
  KEY_GAMMA = 16,
  KEY_KAPPA = 32,
  KEY_GATE = 64,
  KEY_ZSCORE = 128,
  KEY_WARMUP = 256
};

typedef struct term_info {
  const char *name, *part[2];
  int keys;                 /* what may be set, written out in this order of bits */
  int full_row;             /* ranks or row statistics: a top-k cache is not enough */
  cmkd_loss_term preset[2]; /* by cmkd_loss_family */
} term_info;

/* Published settings but for CMKD's kappa and the pair (beta, gamma), DKD's CIFAR beta (it differs by pair) and DIST's
 * T on CIFAR; see docs/losses.md. */
static const term_info terms[CMKD_TERM_KINDS] = {
    [CMKD_TERM_CE] = {"ce", {"ce"}, KEY_WEIGHT, 0, {{.weight = 1}, {.weight = 1}}},
    [CMKD_TERM_KD] = {"kd", {"kd"}, KEY_WEIGHT | KEY_T, 0, {{.weight = .9, .T = 4}, {.weight = .5, .T = 1}}},
    [CMKD_TERM_DKD] = {"dkd",
                       {"dkd_target", "dkd_nontarget"},
                       KEY_WEIGHT | KEY_T | KEY_ALPHA | KEY_BETA | KEY_WARMUP,
                       0,
                       {{.weight = 1, .T = 4, .alpha = 1, .beta = 8, .warmup = 20},
                        {.weight = 1, .T = 1, .alpha = 1, .beta = .5, .warmup = 1}}},
    [CMKD_TERM_NKD] = {"nkd",
                       {"nkd_target", "nkd_nontarget"},
                       KEY_WEIGHT | KEY_T | KEY_GAMMA,
                       0,
                       {{.weight = 1, .T = 3, .gamma = 3.5}, {.weight = 1, .T = 1, .gamma = 1.5}}},
    [CMKD_TERM_DIST] = {"dist",
                        {"dist_inter", "dist_intra"},
                        KEY_WEIGHT | KEY_T | KEY_BETA | KEY_GAMMA,
                        0,
                        {{.weight = 1, .T = 4, .beta = 2, .gamma = 2}, {.weight = 1, .T = 1, .beta = 2, .gamma = 2}}},
    [CMKD_TERM_CMKD] = {"cmkd",
                        {"pearson", "spearman"},
                        KEY_WEIGHT | KEY_T | KEY_ALPHA | KEY_BETA | KEY_GAMMA | KEY_KAPPA | KEY_GATE | KEY_ZSCORE,
                        1,
                        {{.weight = 1, .T = 4, .beta = 4, .gamma = 2, .kappa = 2, .zscore = 1},
                         {.weight = 1, .T = 1, .beta = 4, .gamma = 2, .kappa = 2, .zscore = 1}}},
};
static const double kd_ce[2] = {.1, .5}; /* the weight of CE where KD stands alone */

#define MAX_FACTOR 1e6 /* of a weight, a coefficient or a warm-up: any sane value is far below */
static const struct {
  const char *name;
  int key;
  size_t at;
  double min, max;
} keys[] = {
    {"weight", KEY_WEIGHT, offsetof(cmkd_loss_term, weight), 0, MAX_FACTOR},
    {"T", KEY_T, offsetof(cmkd_loss_term, T), .05, 100},
    {"alpha", KEY_ALPHA, offsetof(cmkd_loss_term, alpha), 0, MAX_FACTOR},
    {"beta", KEY_BETA, offsetof(cmkd_loss_term, beta), 0, MAX_FACTOR},
    {"gamma", KEY_GAMMA, offsetof(cmkd_loss_term, gamma), 0, MAX_FACTOR},
    {"kappa", KEY_KAPPA, offsetof(cmkd_loss_term, kappa), 1e-3, MAX_FACTOR},
    {"gate", KEY_GATE, 0, 0, 0},
    {"zscore", KEY_ZSCORE, 0, 0, 0},
    {"warmup", KEY_WARMUP, offsetof(cmkd_loss_term, warmup), 0, MAX_FACTOR},
};
enum { KEYS = sizeof keys / sizeof keys[0] }; /* keys[0] is the weight */
static const char *const gate_names[] = {"easy-spearman", "hard-spearman", "off", NULL};
static const char *const switch_names[] = {"off", "on", NULL};

/* ---- parser ---- */
typedef struct parser {
  const char *text, *at; /* the whole expression; what is left */
  char word[40];         /* the last word or number read */
  cmkd_error *err;
  int given[CMKD_TERM_KINDS]; /* bits of the keys that were written, KEY_WEIGHT among them */
  double cmkd_alpha;          /* CMKD's alpha is the weight of cross-entropy */
  const cmkd_loss_defaults *defaults;
  cmkd_loss *loss;
} parser;

static void skip_blanks(parser *p) {
  while (*p->at == ' ' || *p->at == '\t')
    p->at++;
}

/* Letters, digits, '_' and '-': names of terms, keys and choices. */
static void read_word(parser *p) {
  skip_blanks(p);
  size_t n = 0;
  for (; isalnum((unsigned char)*p->at) || *p->at == '_' || *p->at == '-'; p->at++)
    if (n + 1 < sizeof p->word) p->word[n++] = *p->at;
  p->word[n] = 0;
  skip_blanks(p);
}

/* p->word is none of `names`, which are what may stand there. */
static cmkd_status unknown(parser *p, const char *what, const char *const *names) {
  const char *near = cmkd_nearest(p->word, names);
  char known[200] = "";
  for (size_t used = 0; *names && used < sizeof known - 1; names++)
    used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", *names);
  if (near)
    return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': unknown %s '%s'; did you mean '%s'? known: %s", p->text,
                     what, p->word, near, known);
  return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': unknown %s '%s'; known: %s", p->text, what, p->word, known);
}

/* Where a plain decimal number (no hex, no inf, no nan) that begins at `s` may end. The '+' of an exponent belongs to
 * it, any other joins terms. */
static const char *number_end(const char *s) {
  if (*s == '-' || *s == '+') s++;
  while (isdigit((unsigned char)*s) || *s == '.')
    s++;
  if (*s != 'e' && *s != 'E') return s;
  const char *digits = s + 1;
  if (*digits == '-' || *digits == '+') digits++;
  if (!isdigit((unsigned char)*digits)) return s;
  while (isdigit((unsigned char)*digits))
    digits++;
  return digits;
}

/* A number within [min, max]. */
static cmkd_status read_number(parser *p, const char *key, double min, double max, double *out) {
  skip_blanks(p);
  const char *start = p->at, *s = number_end(start);
  char digits[64], *end = digits;
  size_t length = (size_t)(s - start);
  if (length < sizeof digits) {
    memcpy(digits, start, length);
    digits[length] = 0;
    *out = strtod(digits, &end);
  }
  if (length == 0 || length >= sizeof digits || *end || end == digits || isalnum((unsigned char)*s) || *s == '_') {
    length = strcspn(start, ",+ \t");
    return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': %s wants a number, not '%.*s'", p->text, key,
                     (int)(length < 40 ? length : 40), start);
  }
  if (!(*out >= min && *out <= max))
    return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': %s=%s is out of range; %g to %g is possible", p->text, key,
                     digits, min, max);
  p->at = s;
  skip_blanks(p);
  return CMKD_OK;
}

static cmkd_status read_keyword(parser *p, const char *key, const char *const *names, int *out) {
  read_word(p);
  for (int i = 0; names[i]; i++)
    if (!strcmp(names[i], p->word)) {
      *out = i;
      return CMKD_OK;
    }
  return unknown(p, key, names);
}

/* The word of a key that this term has; *k is its index in `keys`. */
static cmkd_status read_key(parser *p, const term_info *info, int *k) {
  const char *names[KEYS + 1];
  char what[40];
  int n = 0;
  read_word(p);
  for (int i = 0; i < KEYS; i++) {
    if (!(info->keys & keys[i].key)) continue;
    names[n++] = keys[i].name;
    if (strcmp(keys[i].name, p->word)) continue;
    *k = i;
    return CMKD_OK;
  }
  names[n] = NULL;
  snprintf(what, sizeof what, "key of %s", info->name);
  return unknown(p, what, names);
}

static cmkd_status read_value(parser *p, int kind, int k, cmkd_loss_term *term) {
  if (keys[k].key == KEY_GATE) return read_keyword(p, "gate", gate_names, &term->gate);
  if (keys[k].key == KEY_ZSCORE) return read_keyword(p, "zscore", switch_names, &term->zscore);
  double *number = (double *)((char *)term + keys[k].at);
  if (keys[k].key == KEY_ALPHA && kind == CMKD_TERM_CMKD) number = &p->cmkd_alpha;
  return read_number(p, keys[k].name, keys[k].min, keys[k].max, number);
}

/* key=value, or a bare number: the weight */
static cmkd_status read_argument(parser *p, int kind, cmkd_loss_term *term) {
  const term_info *info = &terms[kind];
  skip_blanks(p);
  int k = 0; /* the weight */
  if (!isalpha((unsigned char)*p->at) && *p->at != '_') {
    CMKD_TRY(read_number(p, info->name, keys[0].min, keys[0].max, &term->weight));
  } else {
    CMKD_TRY(read_key(p, info, &k));
    if (*p->at != '=') return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': write %s=VALUE", p->text, keys[k].name);
    p->at++;
    CMKD_TRY(read_value(p, kind, k, term));
  }
  if (p->given[kind] & keys[k].key)
    return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': %s of %s is given twice", p->text, keys[k].name,
                     info->name);
  p->given[kind] |= keys[k].key;
  return CMKD_OK;
}

/* What a term is before its arguments are read: its family's published setting, where the caller has no other. */
static cmkd_loss_term default_term(const parser *p, int kind) {
  cmkd_loss_term term = terms[kind].preset[p->loss->family];
  if (kind == CMKD_TERM_DKD && p->defaults->dkd_beta > 0) term.beta = p->defaults->dkd_beta;
  return term;
}

/* NAME [ ':' argument { ',' argument } ] */
static cmkd_status read_term(parser *p, int seen[CMKD_TERM_KINDS], cmkd_loss_term found[CMKD_TERM_KINDS]) {
  const char *names[CMKD_TERM_KINDS + 1] = {0};
  for (int i = 0; i < CMKD_TERM_KINDS; i++)
    names[i] = terms[i].name;
  read_word(p);
  int kind = 0;
  while (kind < CMKD_TERM_KINDS && strcmp(names[kind], p->word))
    kind++;
  if (!strcmp(p->word, "takd"))
    return cmkd_fail(p->err, CMKD_ERR_USAGE,
                     "loss '%.200s': TAKD is two runs with the loss kd, teacher to assistant and assistant to student; "
                     "see docs/losses.md",
                     p->text);
  if (kind == CMKD_TERM_KINDS && !p->word[0])
    return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': a term is missing at '%.20s'; write e.g. ce:1+cmkd:beta=4",
                     p->text, p->at);
  if (kind == CMKD_TERM_KINDS) return unknown(p, "term", names);
  if (seen[kind])
    return cmkd_fail(p->err, CMKD_ERR_USAGE,
                     "loss '%.200s': %s is named twice; give it once with the weight it shall have", p->text,
                     terms[kind].name);
  seen[kind] = 1;
  found[kind] = default_term(p, kind);
  if (*p->at != ':') return CMKD_OK;
  do {
    p->at++;
    CMKD_TRY(read_argument(p, kind, &found[kind]));
  } while (*p->at == ',');
  return CMKD_OK;
}

/* Cross-entropy counts once: as written, else CMKD's alpha, else KD's share where KD stands alone, else 1. */
static cmkd_status settle_ce(parser *p, int seen[CMKD_TERM_KINDS], cmkd_loss_term found[CMKD_TERM_KINDS]) {
  int others = 0, alpha = p->given[CMKD_TERM_CMKD] & KEY_ALPHA;
  double *weight = &found[CMKD_TERM_CE].weight;
  for (int i = CMKD_TERM_DKD; i < CMKD_TERM_KINDS; i++)
    others += seen[i];
  if (seen[CMKD_TERM_CE]) {
    if (alpha && p->cmkd_alpha != *weight)
      return cmkd_fail(p->err, CMKD_ERR_USAGE,
                       "loss '%.200s': alpha of cmkd is the weight of ce, which is given as %g; leave one of them out",
                       p->text, *weight);
    return CMKD_OK;
  }
  seen[CMKD_TERM_CE] = 1;
  if (alpha)
    *weight = p->cmkd_alpha;
  else if (seen[CMKD_TERM_KD] && !others)
    *weight = kd_ce[p->loss->family];
  else
    *weight = 1;
  return CMKD_OK;
}

static void add_term(cmkd_loss *loss, int kind, const cmkd_loss_term *found) {
  cmkd_loss_term *term = &loss->term[loss->terms++];
  *term = *found;
  term->kind = kind;
  term->part = loss->parts;
  for (int i = 0; i < 2 && terms[kind].part[i]; i++)
    loss->part_name[loss->parts++] = terms[kind].part[i];
  loss->needs_teacher |= kind != CMKD_TERM_CE;
  loss->needs_full_row |= terms[kind].full_row;
}

static cmkd_status read_expression(parser *p) {
  int seen[CMKD_TERM_KINDS] = {0};
  cmkd_loss_term found[CMKD_TERM_KINDS] = {{0}};
  double sum = 0;
  for (;; p->at++) {
    CMKD_TRY(read_term(p, seen, found));
    if (*p->at != '+') break;
  }
  if (*p->at)
    return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': expected '+', ',' or the end at '%.20s'", p->text, p->at);
  CMKD_TRY(settle_ce(p, seen, found));
  for (int kind = 0; kind < CMKD_TERM_KINDS; kind++) {
    if (!seen[kind]) continue;
    add_term(p->loss, kind, &found[kind]);
    sum += found[kind].weight;
  }
  if (!(sum > 0))
    return cmkd_fail(p->err, CMKD_ERR_USAGE, "loss '%.200s': every weight is 0, there is nothing to learn from",
                     p->text);
  return CMKD_OK;
}

/* ---- canonical text ---- */
/* The shortest decimal that reads back as the same double, without an exponent where it is readable so. */
static int print_number(char *out, size_t capacity, double x) {
  char s[40];
  for (int digits = 1; digits <= 17; digits++) {
    snprintf(s, sizeof s, "%.*g", digits, x);
    if (strtod(s, NULL) == x && (x < 1e-4 || x > 1e9 || !strchr(s, 'e'))) break;
  }
  return snprintf(out, capacity, "%s", s);
}

static void write_text(cmkd_loss *loss) {
  char *out = loss->text, *end = out + sizeof loss->text;
  for (int i = 0; i < loss->terms; i++) {
    const cmkd_loss_term *term = &loss->term[i];
    const term_info *info = &terms[term->kind];
    out += snprintf(out, (size_t)(end - out), "%s%s:", i ? "+" : "", info->name);
    for (int k = 0; k < KEYS; k++) {
      if (!(info->keys & keys[k].key) || (term->kind == CMKD_TERM_CMKD && keys[k].key == KEY_ALPHA))
        continue; /* ce:WEIGHT says alpha */
      if (k) out += snprintf(out, (size_t)(end - out), ",%s=", keys[k].name);
      if (keys[k].key == KEY_GATE)
        out += snprintf(out, (size_t)(end - out), "%s", gate_names[term->gate]);
      else if (keys[k].key == KEY_ZSCORE)
        out += snprintf(out, (size_t)(end - out), "%s", switch_names[term->zscore]);
      else
        out += print_number(out, (size_t)(end - out), *(const double *)((const char *)term + keys[k].at));
    }
  }
}

/* ---- public ---- */
cmkd_status cmkd_loss_parse(const char *expression, cmkd_loss_family family, cmkd_loss **out, cmkd_error *err) {
  return cmkd_loss_parse_with(expression, family, &(cmkd_loss_defaults){0}, out, err);
}

cmkd_status cmkd_loss_parse_with(const char *expression, cmkd_loss_family family, const cmkd_loss_defaults *defaults,
                                 cmkd_loss **out, cmkd_error *err) {
  *out = NULL;
  if (!expression) return cmkd_fail(err, CMKD_ERR_USAGE, "no loss given; try ce, kd, cmkd or dkd+cmkd");
  if (strlen(expression) > 1000) return cmkd_fail(err, CMKD_ERR_USAGE, "loss '%.60s...': too long", expression);
  if (family != CMKD_LOSS_CIFAR && family != CMKD_LOSS_IMAGENET)
    return cmkd_fail(err, CMKD_ERR_USAGE, "loss '%.200s': family %d is neither CMKD_LOSS_CIFAR nor CMKD_LOSS_IMAGENET",
                     expression, (int)family);
  if (!(defaults->dkd_beta >= 0 && defaults->dkd_beta <= MAX_FACTOR))
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss '%.200s': %g cannot be the default of dkd's beta; 0 to %g is possible",
                     expression, defaults->dkd_beta, MAX_FACTOR);
  cmkd_loss *loss = calloc(1, sizeof *loss);
  locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* numbers have a point whatever the caller's locale */
  if (!loss || !plain) {
    free(loss);
    if (plain) freelocale(plain);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "loss '%.200s': out of memory", expression);
  }
  locale_t before = uselocale(plain);
  loss->family = family;
  parser p = {.text = expression, .at = expression, .err = err, .defaults = defaults, .loss = loss};
  cmkd_status status = read_expression(&p);
  if (status == CMKD_OK) write_text(loss);
  uselocale(before);
  freelocale(plain);
  if (status != CMKD_OK) {
    free(loss);
    return status;
  }
  *out = loss;
  return CMKD_OK;
}

void cmkd_loss_free(cmkd_loss *loss) { free(loss); }
const char *cmkd_loss_text(const cmkd_loss *loss) { return loss->text; }
int cmkd_loss_needs_teacher(const cmkd_loss *loss) { return loss->needs_teacher; }
int cmkd_loss_needs_full_row(const cmkd_loss *loss) { return loss->needs_full_row; }
int cmkd_loss_parts(const cmkd_loss *loss) { return loss->parts; }
const char *cmkd_loss_part_name(const cmkd_loss *loss, int part) {
  return part >= 0 && part < loss->parts ? loss->part_name[part] : NULL;
}

static const cmkd_loss_implementation *const implementations[] = {&cmkd_loss_cpu, &cmkd_loss_ref};

static const cmkd_loss_implementation *find_implementation(const char *name) {
  for (size_t i = 0; name && i < sizeof implementations / sizeof implementations[0]; i++)
    if (!strcmp(implementations[i]->name, name)) return implementations[i];
  return NULL;
}

size_t cmkd_loss_scratch(const cmkd_loss *loss, const char *implementation, int64_t batch, int64_t classes) {
  const cmkd_loss_implementation *impl = find_implementation(implementation);
  if (!impl || batch < 1 || classes < CMKD_LOSS_MIN_CLASSES || classes > CMKD_LOSS_MAX_CLASSES || batch > INT32_MAX)
    return 0;
  return impl->scratch(loss, batch, classes);
}

cmkd_status cmkd_loss_check(const cmkd_loss *loss, const cmkd_loss_batch *b, cmkd_error *err) {
  if (b->classes < CMKD_LOSS_MIN_CLASSES || b->classes > CMKD_LOSS_MAX_CLASSES)
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss: %lld classes; %d to %d are possible", (long long)b->classes,
                     CMKD_LOSS_MIN_CLASSES, CMKD_LOSS_MAX_CLASSES);
  if (b->batch < 1 || b->batch > INT32_MAX)
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss: a batch of %lld rows; it must have at least one", (long long)b->batch);
  if (!b->student || !b->labels) return cmkd_fail(err, CMKD_ERR_VALUE, "loss: student logits and labels must be given");
  if (loss->needs_teacher && !b->teacher)
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss '%s' needs teacher logits; give a cache or a teacher", loss->text);
  if (loss->needs_teacher && b->teacher_dtype != CMKD_F32 && b->teacher_dtype != CMKD_F16 &&
      b->teacher_dtype != CMKD_BF16)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "loss: teacher logits may be F32, F16 or BF16, not dtype %d",
                     (int)b->teacher_dtype);
  if (!(b->label_smoothing >= 0 && b->label_smoothing < 1))
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss: label smoothing %g is outside [0, 1)", b->label_smoothing);
  if (!(b->epoch >= 0)) return cmkd_fail(err, CMKD_ERR_VALUE, "loss: epoch %g; epochs count from 1", b->epoch);
  if (isinf(b->entropy_mean)) return cmkd_fail(err, CMKD_ERR_VALUE, "loss: the mean entropy is infinite");
  return CMKD_OK;
}

cmkd_status cmkd_loss_bad_row(const cmkd_loss_batch *b, int64_t row, cmkd_error *err) {
  if (b->labels[row] < 0 || b->labels[row] >= b->classes)
    return cmkd_fail(err, CMKD_ERR_VALUE, "row %lld of the batch: label %d is outside [0, %lld)", (long long)row,
                     (int)b->labels[row], (long long)b->classes);
  const float *s = b->student + row * b->classes;
  for (int64_t i = 0; i < b->classes; i++)
    if (!isfinite(s[i]))
      return cmkd_fail(err, CMKD_ERR_VALUE, "row %lld of the batch: the student's logit of class %lld is %g",
                       (long long)row, (long long)i, s[i]);
  return cmkd_fail(err, CMKD_ERR_VALUE, "row %lld of the batch: a teacher's logit is NaN or Inf", (long long)row);
}

cmkd_status cmkd_loss_eval(const cmkd_loss *loss, const char *implementation, const cmkd_loss_batch *batch,
                           void *scratch, cmkd_loss_result *result, cmkd_error *err) {
  *result = (cmkd_loss_result){.loss = NAN, .blocks = NAN, .bad_row = -1};
  const cmkd_loss_implementation *impl = find_implementation(implementation);
  if (!impl)
    return cmkd_fail(err, CMKD_ERR_USAGE, "loss: unknown implementation '%s'; known: cpu, ref",
                     implementation ? implementation : "");
  CMKD_TRY(cmkd_loss_check(loss, batch, err));
  if (!scratch && impl->scratch(loss, batch->batch, batch->classes))
    return cmkd_fail(err, CMKD_ERR_VALUE, "loss: scratch of cmkd_loss_scratch() bytes is needed");
  return impl->eval(loss, batch, scratch, result, err);
}
