/* check_vectors [-v] DIR: every *.safetensors case of DIR (student, teacher, labels, loss, grad; hyper-parameters in
 * the metadata) through every implementation that is here. A case passes when all of them agree with it: ref to 1e-9,
 * the float implementations in the loss to 1e-4 (relative) and in the gradient to 1e-4 of its largest entry. Ends with
 * "N passed, N failed"; fails when there is no case. A metadata key or tensor that it does not know fails the case: an
 * unread hyper-parameter must not look like agreement. */
#include "tests/vectors.h"
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cmkd/weights.h"
#include "kernels/loss.h"

enum { REF, CPU, EMULATED, CUDA, IMPLEMENTATIONS };
static const char *const names[IMPLEMENTATIONS] = {"ref", "cpu", "emulated", "cuda"};
typedef struct worst {
  double loss, grad, rows;
  int cases, ready;
  const char *why;
} worst;

typedef struct test_case {
  cmkd_weights *file;
  cmkd_loss *loss;
  int64_t B, C;
  float *student;
  void *teacher;
  cmkd_dtype teacher_dtype;
  double *student_d, *teacher_d, *grad, *got, smoothing;
  float *grad_f;
  int32_t *labels;
  double value;
} test_case;

/* ---- metadata -> expression ---- */
/* Which key of which term a metadata key stands for. "" as term: of every term in the case that has it. "weight" is the
 * bare number. */
static const struct {
  const char *meta, *term, *key;
} keys[] = {
    {"ce", "ce", "weight"},        {"kd", "kd", "weight"},
    {"dkd", "dkd", "weight"},      {"nkd", "nkd", "weight"},
    {"dist", "dist", "weight"},    {"cmkd", "cmkd", "weight"},
    {"kd_T", "kd", "T"},           {"dkd_T", "dkd", "T"},
    {"nkd_T", "nkd", "T"},         {"dist_T", "dist", "T"},
    {"cmkd_T", "cmkd", "T"},       {"dkd_alpha", "dkd", "alpha"},
    {"dkd_beta", "dkd", "beta"},   {"nkd_gamma", "nkd", "gamma"},
    {"dist_beta", "dist", "beta"}, {"dist_gamma", "dist", "gamma"},
    {"beta", "cmkd", "beta"},      {"gamma", "cmkd", "gamma"},
    {"cmkd_beta", "cmkd", "beta"}, {"cmkd_gamma", "cmkd", "gamma"},
    {"kappa", "cmkd", "kappa"},    {"gate", "cmkd", "gate"},
    {"zscore", "cmkd", "zscore"},  {"cmkd_kappa", "cmkd", "kappa"},
    {"cmkd_gate", "cmkd", "gate"}, {"cmkd_zscore", "cmkd", "zscore"},
};
enum { KEYS = sizeof keys / sizeof keys[0] };
static const char *const others[] = {"loss", "case", "note", "T", "label_smoothing", "format", NULL};

static int in_list(const char *word, const char *const *list) {
  for (; *list; list++)
    if (!strcmp(*list, word)) return 1;
  return 0;
}

static const char *on_off(const char *value) {
  if (!strcmp(value, "True") || !strcmp(value, "true") || !strcmp(value, "1")) return "on";
  if (!strcmp(value, "False") || !strcmp(value, "false") || !strcmp(value, "0")) return "off";
  return value;
}

static cmkd_status make_expression(const cmkd_weights *w, char *out, size_t capacity, cmkd_error *err) {
  const char *loss = cmkd_weights_meta(w, "loss"), *T = cmkd_weights_meta(w, "T");
  if (!loss) return cmkd_fail(err, CMKD_ERR_FORMAT, "no metadata key 'loss'");
  char used[64] = {0}; /* by meta index */
  int t_used = 0;
  size_t at = 0;
  char list[200], *save = NULL;
  snprintf(list, sizeof list, strstr(loss, "ce+") == loss || !strcmp(loss, "ce") ? "%s" : "ce+%s", loss);
  for (char *term = strtok_r(list, "+", &save); term; term = strtok_r(NULL, "+", &save)) {
    int has_t = 0;
    at += (size_t)snprintf(out + at, capacity - at, "%s%s", at ? "+" : "", term);
    char sign = ':';
    for (int i = 0; i < KEYS; i++) {
      const char *value = cmkd_weights_meta(w, keys[i].meta);
      if (!value || strcmp(keys[i].term, term)) continue;
      for (int m = 0; m < w->meta_count && m < (int)sizeof used; m++)
        if (!strcmp(w->meta_keys[m], keys[i].meta)) used[m] = 1;
      has_t |= !strcmp(keys[i].key, "T");
      at += (size_t)snprintf(out + at, capacity - at, "%c%s=%s", sign, keys[i].key,
                             !strcmp(keys[i].key, "zscore") ? on_off(value) : value);
      sign = ',';
      if (at >= capacity) return cmkd_fail(err, CMKD_ERR_FORMAT, "metadata too long");
    }
    if (T && !has_t && strcmp(term, "ce")) {
      at += (size_t)snprintf(out + at, capacity - at, "%cT=%s", sign, T);
      t_used = 1;
    }
    if (at >= capacity) return cmkd_fail(err, CMKD_ERR_FORMAT, "metadata too long");
  }
  if (!cmkd_weights_meta(w, "ce"))
    return cmkd_fail(err, CMKD_ERR_FORMAT, "no metadata key 'ce', the weight of cross-entropy");
  for (int m = 0; m < w->meta_count; m++) {
    if (m >= (int)sizeof used) return cmkd_fail(err, CMKD_ERR_FORMAT, "too many metadata keys");
    if (!used[m] && !in_list(w->meta_keys[m], others))
      return cmkd_fail(err, CMKD_ERR_FORMAT, "metadata key '%s' = '%s' is not understood for loss '%s'",
                       w->meta_keys[m], w->meta_values[m], loss);
  }
  if (T && !t_used) return cmkd_fail(err, CMKD_ERR_FORMAT, "metadata key 'T' is used by no term of '%s'", loss);
  return CMKD_OK;
}

/* ---- a case ---- */
static cmkd_status want(const cmkd_weights *w, const char *name, int dims, const cmkd_tensor **out, cmkd_error *err) {
  *out = cmkd_weights_find(w, name);
  if (!*out) return cmkd_fail(err, CMKD_ERR_FORMAT, "no tensor '%s'", name);
  if (dims && (*out)->dims != dims)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "tensor '%s' has %d dimensions, not %d", name, (*out)->dims, dims);
  return CMKD_OK;
}

static cmkd_status load_case(const char *path, test_case *c, cmkd_error *err) {
  static const char *const tensors[] = {"student", "teacher",      "labels",        "loss",           "grad",
                                        "entropy", "loss_pearson", "loss_spearman", "weight_pearson", "weight_spearman",
                                        NULL};
  const cmkd_tensor *s, *t, *y, *l, *g;
  CMKD_TRY(cmkd_weights_read(path, &c->file, err));
  const cmkd_weights *w = c->file;
  for (int i = 0; i < w->count; i++)
    if (!in_list(w->tensors[i].name, tensors))
      return cmkd_fail(err, CMKD_ERR_FORMAT, "tensor '%s' is not understood", w->tensors[i].name);
  CMKD_TRY(want(w, "student", 2, &s, err));
  CMKD_TRY(want(w, "teacher", 2, &t, err));
  CMKD_TRY(want(w, "labels", 1, &y, err));
  CMKD_TRY(want(w, "loss", 0, &l, err));
  CMKD_TRY(want(w, "grad", 2, &g, err));
  c->B = s->shape[0];
  c->C = s->shape[1];
  if (c->B < 1 || c->C < 2 || t->count != s->count || g->count != s->count || t->shape[0] != c->B ||
      g->shape[0] != c->B || y->count != c->B || l->count != 1)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "shapes of student, teacher, labels, loss and grad do not fit each other");
  char expression[900];
  CMKD_TRY(make_expression(w, expression, sizeof expression, err));
  CMKD_TRY(cmkd_loss_parse(expression, CMKD_LOSS_CIFAR, &c->loss, err));
  const char *smoothing = cmkd_weights_meta(w, "label_smoothing");
  c->smoothing = smoothing ? strtod(smoothing, NULL) : 0;
  size_t n = (size_t)s->count;
  c->student = malloc(n * 4);
  c->grad_f = malloc(n * 4);
  c->labels = malloc((size_t)c->B * 4);
  c->student_d = malloc(n * 8);
  c->teacher_d = malloc(n * 8);
  c->grad = malloc(n * 8);
  c->got = malloc(n * 8);
  int as_is = t->dtype == CMKD_F16 || t->dtype == CMKD_BF16;
  c->teacher_dtype = as_is ? t->dtype : CMKD_F32;
  c->teacher = malloc(n * 4);
  if (!c->student || !c->grad_f || !c->labels || !c->student_d || !c->teacher_d || !c->grad || !c->got || !c->teacher)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_tensor_to_float(s, c->student);
  cmkd_tensor_to_double(s, c->student_d);
  cmkd_tensor_to_double(t, c->teacher_d);
  cmkd_tensor_to_double(g, c->grad);
  cmkd_tensor_to_double(l, &c->value);
  if (as_is)
    memcpy(c->teacher, t->data, n * 2);
  else
    cmkd_tensor_to_float(t, c->teacher);
  cmkd_tensor_to_double(y, c->got); /* B <= n */
  for (int64_t i = 0; i < c->B; i++)
    c->labels[i] = c->got[i] >= 0 && c->got[i] < (double)c->C ? (int32_t)c->got[i] : -1;
  return CMKD_OK;
}

static void free_case(test_case *c) {
  cmkd_weights_free(c->file);
  cmkd_loss_free(c->loss);
  free(c->student);
  free(c->teacher);
  free(c->student_d);
  free(c->teacher_d);
  free(c->grad);
  free(c->got);
  free(c->grad_f);
  free(c->labels);
}

static double difference(const double *a, const double *b, int64_t n) {
  double d = 0;
  for (int64_t i = 0; i < n; i++) {
    double e = fabs(a[i] - b[i]);
    if (!(e <= d)) d = e;
  } /* NaN wins */
  return d;
}

/* The row-by-row tensors of a CMKD case against ref. */
static double row_error(const test_case *c, const cmkd_loss_ref_rows *rows) {
  const struct {
    const char *name;
    const double *got;
  } all[] = {{"entropy", rows->entropy},
             {"loss_pearson", rows->loss_pearson},
             {"loss_spearman", rows->loss_spearman},
             {"weight_pearson", rows->weight_pearson},
             {"weight_spearman", rows->weight_spearman}};
  double worst_row = 0, *expected = malloc((size_t)c->B * 8);
  for (size_t i = 0; expected && i < sizeof all / sizeof all[0]; i++) {
    const cmkd_tensor *t = cmkd_weights_find(c->file, all[i].name);
    if (!t) continue;
    if (t->count != c->B) {
      worst_row = INFINITY;
      continue;
    }
    cmkd_tensor_to_double(t, expected);
    double d = difference(all[i].got, expected, c->B);
    if (!(d <= worst_row)) worst_row = d;
  }
  free(expected);
  return worst_row;
}

static cmkd_status run(test_case *c, int which, cmkd_loss_result *result, double *rows_error, cmkd_error *err) {
  cmkd_loss_batch batch = {.batch = c->B,
                           .classes = c->C,
                           .student = c->student,
                           .teacher = c->teacher,
                           .teacher_dtype = c->teacher_dtype,
                           .labels = c->labels,
                           .grad = c->grad_f,
                           .epoch = CMKD_LOSS_NO_WARMUP,
                           .label_smoothing = c->smoothing,
                           .entropy_mean = NAN};
  *result = (cmkd_loss_result){.bad_row = -1};
  for (int64_t i = 0; i < c->B * c->C; i++) {
    c->grad_f[i] = NAN;
    c->got[i] = NAN;
  }
  if (which == REF) {
    for (int64_t i = 0; i < c->B; i++)
      if (c->labels[i] < 0) return cmkd_fail(err, CMKD_ERR_VALUE, "a label is outside [0, C)");
    double *m = malloc((size_t)c->B * 5 * 8);
    if (!m) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
    cmkd_loss_ref_rows rows = {.entropy = m,
                               .loss_pearson = m + c->B,
                               .loss_spearman = m + 2 * c->B,
                               .weight_pearson = m + 3 * c->B,
                               .weight_spearman = m + 4 * c->B};
    const cmkd_loss_ref_batch b = {.batch = c->B,
                                   .classes = c->C,
                                   .student = c->student_d,
                                   .teacher = c->teacher_d,
                                   .labels = c->labels,
                                   .grad = c->got,
                                   .epoch = CMKD_LOSS_NO_WARMUP,
                                   .label_smoothing = c->smoothing,
                                   .entropy_mean = NAN};
    cmkd_status status = cmkd_loss_ref_double(c->loss, &b, result, &rows, err);
    if (status == CMKD_OK && cmkd_loss_find(c->loss, CMKD_TERM_CMKD)) *rows_error = row_error(c, &rows);
    free(m);
    return status;
  }
  cmkd_status status;
  if (which == CPU) {
    size_t size = cmkd_loss_scratch(c->loss, "cpu", c->B, c->C);
    void *scratch = aligned_alloc(64, (size + 63) / 64 * 64 + 64);
    if (!scratch) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
    memset(scratch, 0xFF, size); /* NaN everywhere: what is read must have been written */
    status = cmkd_loss_eval(c->loss, "cpu", &batch, scratch, result, err);
    free(scratch);
  } else {
    status = (which == EMULATED ? &cmkd_vectors_emulated : &cmkd_vectors_cuda)->eval(c->loss, &batch, result, err);
  }
  for (int64_t i = 0; i < c->B * c->C; i++)
    c->got[i] = c->grad_f[i];
  return status;
}

static int check(const char *path, const char *name, worst all[IMPLEMENTATIONS], int verbose) {
  test_case c = {0};
  cmkd_error err = {0};
  int good = 1;
  if (load_case(path, &c, &err) != CMKD_OK) {
    printf("FAIL %s: %s\n", name, err.message);
    free_case(&c);
    return 0;
  }
  double largest = 0;
  for (int64_t i = 0; i < c.B * c.C; i++)
    largest = fmax(largest, fabs(c.grad[i]));
  if (verbose) printf("%s  B %lld C %lld  %s\n", name, (long long)c.B, (long long)c.C, cmkd_loss_text(c.loss));
  for (int i = 0; i < IMPLEMENTATIONS; i++) {
    if (!all[i].ready) continue;
    cmkd_loss_result result;
    double rows = 0;
    if (run(&c, i, &result, &rows, &err) != CMKD_OK) {
      printf("FAIL %s: %s: %s\n", name, names[i], err.message);
      good = 0;
      continue;
    }
    double loss = fabs(result.loss - c.value) / fmax(i == REF ? 1 : 1e-2, fabs(c.value)),
           grad = difference(c.got, c.grad, c.B * c.C);
    double loss_limit = i == REF ? 1e-9 : 1e-4, grad_limit = i == REF      ? 1e-9 * fmax(1, largest)
                                                             : largest > 0 ? 1e-4 * largest
                                                                           : 1e-6;
    if (!(loss <= loss_limit && grad <= grad_limit && rows <= 1e-9)) {
      printf("FAIL %s: %s: loss %.10g, expected %.10g; gradient off by %.3g, largest entry %.3g; rows off by %.3g\n",
             name, names[i], result.loss, c.value, grad, largest, rows);
      good = 0;
    }
    double relative = largest > 0 ? grad / largest : grad;
    if (!(loss <= all[i].loss)) all[i].loss = loss;
    if (!(relative <= all[i].grad)) all[i].grad = relative;
    if (!(rows <= all[i].rows)) all[i].rows = rows;
    all[i].cases++;
    if (verbose) printf("  %-9s loss %.2e  gradient %.2e\n", names[i], loss, relative);
  }
  free_case(&c);
  return good;
}

static int is_case(const struct dirent *entry) {
  size_t n = strlen(entry->d_name);
  return n > 12 && !strcmp(entry->d_name + n - 12, ".safetensors");
}

int main(int argc, char **argv) {
  int verbose = argc > 1 && !strcmp(argv[1], "-v");
  if (argc != 2 + verbose || !argv[1 + verbose][0]) {
    fprintf(stderr, "usage: check_vectors [-v] DIR   (make check-vectors VECTORS=DIR)\n");
    return 2;
  }
  const char *dir = argv[1 + verbose];
  worst all[IMPLEMENTATIONS] = {{.ready = 1}, {.ready = 1}, {.why = "not built here"}, {.why = "not built here"}};
  if (&cmkd_vectors_emulated) all[EMULATED].ready = cmkd_vectors_emulated.ready(&all[EMULATED].why);
  if (&cmkd_vectors_cuda) all[CUDA].ready = cmkd_vectors_cuda.ready(&all[CUDA].why);
  struct dirent **entries;
  int count = scandir(dir, &entries, is_case, alphasort), passed = 0, failed = 0;
  if (count < 0) {
    perror(dir);
    return 1;
  }
  for (int i = 0; i < count; i++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, entries[i]->d_name);
    if (check(path, entries[i]->d_name, all, verbose))
      passed++;
    else
      failed++;
    free(entries[i]);
  }
  free(entries);
  for (int i = 0; i < IMPLEMENTATIONS; i++) {
    if (all[i].ready)
      printf("%-9s %d cases, worst error: loss %.2e relative, gradient %.2e of its largest entry\n", names[i],
             all[i].cases, all[i].loss, all[i].grad);
    else
      printf("%-9s left out: %s\n", names[i], all[i].why);
  }
  if (!count) printf("no *.safetensors in %s\n", dir);
  printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed;
}
