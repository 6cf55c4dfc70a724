/* The table of a run's options and what is done by it. See options.h. */
#include "train/options.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/limits.h"

/* ---- the table ---- */

#define MAX_EPOCHS 100000
#define MAX_STEPS 1e15     /* a double counts that far */
#define BELOW_ONE 0.999999 /* factors that must stay below 1 */
#define OF_SESSION(member) CMKD_FIELD_OF_SESSION, offsetof(cmkd_session_options, member)
#define OF_STUDENT(member) CMKD_FIELD_OF_STUDENT, offsetof(cmkd_student_options, member)

const cmkd_field cmkd_train_fields[] = {
    {OF_SESSION(data), CMKD_FIELD_STRING, "--data", "SPEC",
     "data set: NAME or NAME:DIR [the cache's, else " CMKD_DEFAULT_DATA "]", 0, 0},
    {OF_SESSION(cache), CMKD_FIELD_STRING, "--cache", "FILE", "learn from this teacher cache (cmkd-cache build)", 0, 0},
    {OF_SESSION(teacher), CMKD_FIELD_STRING, "--teacher", "FILE",
     "or run this teacher live, on the pixels a cache would hold", 0, 0},
    {OF_SESSION(cache_seed), CMKD_FIELD_UINT64, "--cache-seed", "S",
     "live: seed of the views, as cmkd-cache build --seed [0]", 0, 0},
    {OF_SESSION(views), CMKD_FIELD_STRING, "--views", "V|all", "live: views of each sample [all]", 0, 0},
    {OF_SESSION(clean_view), CMKD_FIELD_FLAG, "--clean-view", NULL, NULL, 0, 0},
    {OF_SESSION(teacher_batch), CMKD_FIELD_INT, "--teacher-batch", "N", NULL, 1, CMKD_MAX_BATCH},
    {OF_SESSION(teacher_arch), CMKD_FIELD_STRING, "--teacher-arch", "NAME", NULL, 0, 0},
    {OF_SESSION(teacher_mean), CMKD_FIELD_FLOATS3, "--teacher-mean", "R,G,B", NULL, 0, 0},
    {OF_SESSION(teacher_std), CMKD_FIELD_FLOATS3, "--teacher-std", "R,G,B", NULL, 0, 0},
    {OF_SESSION(test_cache), CMKD_FIELD_STRING, "--test-cache", "FILE",
     "teacher logits of the test split [CACHE.test.h5 if there]", 0, 0},
    {OF_STUDENT(arch), CMKD_FIELD_STRING, "--student", "NAME",
     "network, see cmkd-train nets [" CMKD_DEFAULT_STUDENT "; " CMKD_DEFAULT_STUDENT_MNIST " for MNIST-like]", 0, 0},
    {OF_STUDENT(arch), CMKD_FIELD_STRING, "--arch", "NAME", NULL, 0, 0},
    {OF_STUDENT(loss), CMKD_FIELD_STRING, "--loss", "EXPR",
     "ce, kd, cmkd, dkd+cmkd, 'cmkd:beta=4,T=4', ... [cmkd; ce without teacher]", 0, 0},
    {OF_STUDENT(epochs), CMKD_FIELD_INT, "--epochs", "N",
     "[" CMKD_EPOCHS_TEXT "; " CMKD_EPOCHS_MNIST_TEXT " for MNIST-like]", 1, MAX_EPOCHS},
    {OF_STUDENT(batch), CMKD_FIELD_INT, "--batch", "N", "[" CMKD_BATCH_TEXT "]", 1, CMKD_MAX_BATCH},
    {OF_STUDENT(lr), CMKD_FIELD_DOUBLE, "--lr", "X",
     "learning rate [" CMKD_LR_TEXT "; " CMKD_LR_LIGHT_TEXT " for ShuffleNet and MobileNet]", 0, 1e6},
    {OF_STUDENT(schedule), CMKD_FIELD_STRING, "--schedule", "NAME",
     "step, cosine, constant [" CMKD_DEFAULT_SCHEDULE "]", 0, 0},
    {OF_STUDENT(milestones), CMKD_FIELD_STRING, "--milestones", "E,E,..",
     "step: x0.1 after these epochs [5/8, 3/4, 7/8 of all]", 0, 0},
    {OF_STUDENT(warmup), CMKD_FIELD_DOUBLE, "--warmup", "EPOCHS", "linear warm-up [0]", 0, MAX_EPOCHS},
    {OF_STUDENT(momentum), CMKD_FIELD_DOUBLE, "--momentum", "X", NULL, 0, BELOW_ONE},
    {OF_STUDENT(nesterov), CMKD_FIELD_FLAG, "--nesterov", NULL, NULL, 0, 0},
    {OF_STUDENT(weight_decay), CMKD_FIELD_DOUBLE, "--weight-decay", "X", NULL, 0, 1},
    {OF_STUDENT(label_smoothing), CMKD_FIELD_DOUBLE, "--label-smoothing", "X", "of the cross-entropy [0]", 0,
     BELOW_ONE},
    {OF_SESSION(augment), CMKD_FIELD_STRING, "--augment", "POLICY",
     "none, flip, crop, crop+flip [the cache's; crop+flip; MNIST: crop]", 0, 0},
    {OF_STUDENT(mean), CMKD_FIELD_FLOATS3, "--mean", "R,G,B",
     "with --std R,G,B: the student's normalisation [the data set's]", 0, 0},
    {OF_STUDENT(std), CMKD_FIELD_FLOATS3, "--std", "R,G,B", NULL, 0, 0},
    {OF_STUDENT(samples), CMKD_FIELD_INT, "--samples", "N", "use the first N training samples [all]", 1,
     CMKD_MAX_SAMPLES},
    {OF_STUDENT(val), CMKD_FIELD_INT, "--val", "N", "hold out N of them; they choose the best epoch [0]", 0,
     CMKD_MAX_SAMPLES},
    {OF_STUDENT(shuffle_block), CMKD_FIELD_INT, "--shuffle-block", "B",
     "shuffle by blocks of B, for caches larger than memory [0]", 0, CMKD_MAX_SAMPLES},
    {OF_SESSION(stream_memory), CMKD_FIELD_INT, "--stream-memory", "MB", NULL, 1, 1 << 30},
    {OF_STUDENT(seed), CMKD_FIELD_UINT64, "--seed", "R", "weights, order of samples and views [1]", 0, 0},
    {OF_STUDENT(eval_every), CMKD_FIELD_INT, "--eval-every", "N", NULL, 1, MAX_EPOCHS},
    {OF_STUDENT(out), CMKD_FIELD_STRING, "--out", "DIR", "the run's folder [runs/STUDENT-LOSS-SEED]", 0, 0},
    {OF_STUDENT(resume), CMKD_FIELD_FLAG, "--resume", NULL, "go on where the run in --out stopped, bit-exactly", 0, 0},
    {OF_STUDENT(save_every), CMKD_FIELD_INT, "--save-every", "STEPS", "save the state this often, too [each epoch]", 1,
     MAX_STEPS},
    {OF_STUDENT(log_steps), CMKD_FIELD_FLAG, "--log-steps", NULL, NULL, 0, 0},
    {OF_SESSION(device), CMKD_FIELD_STRING, "--device", "NAME", "auto, cpu, cuda, cuda:N [auto]", 0, 0},
    {OF_SESSION(precision), CMKD_FIELD_STRING, "--precision", "NAME", "fp32; with cuda also tf32, bf16, fp16 [fp32]", 0,
     0},
    {OF_SESSION(threads), CMKD_FIELD_INT, "--threads", "N", "[all cores]", 1, CMKD_MAX_THREADS},
};
enum { FIELDS = sizeof cmkd_train_fields / sizeof *cmkd_train_fields };
const int cmkd_train_field_count = FIELDS;

/* Of students, but not an option of the command: recipes set it. */
static const cmkd_field dkd_beta = {OF_STUDENT(dkd_beta), CMKD_FIELD_DOUBLE, "dkd_beta", NULL, NULL, 0, 1e6};

/* ---- what is open ---- */

static size_t field_size(const cmkd_field *f) {
  switch (f->kind) {
  case CMKD_FIELD_FLAG: return sizeof(int);
  case CMKD_FIELD_STRING: return sizeof(const char *);
  case CMKD_FIELD_INT: return sizeof(int64_t);
  case CMKD_FIELD_UINT64: return sizeof(uint64_t);
  case CMKD_FIELD_DOUBLE: return sizeof(double);
  case CMKD_FIELD_FLOATS3: return 3 * sizeof(float);
  }
  return 0;
}

static int is_open(const cmkd_field *f, const void *options) {
  const void *value = (const char *)options + f->at;
  switch (f->kind) {
  case CMKD_FIELD_FLAG: return !*(const int *)value;
  case CMKD_FIELD_STRING: return !*(const char *const *)value;
  case CMKD_FIELD_INT: return !*(const int64_t *)value;
  case CMKD_FIELD_UINT64: return 0;
  case CMKD_FIELD_DOUBLE: return isnan(*(const double *)value);
  case CMKD_FIELD_FLOATS3: return isnan(*(const float *)value);
  }
  return 0;
}

static void leave_open(const cmkd_field *f, void *options) {
  void *value = (char *)options + f->at;
  if (f->kind == CMKD_FIELD_DOUBLE)
    *(double *)value = NAN;
  else if (f->kind == CMKD_FIELD_FLOATS3)
    *(float *)value = NAN;
  else
    memset(value, 0, field_size(f));
}

static void leave_all_open(cmkd_field_owner who, void *options) {
  for (int i = 0; i < FIELDS; i++)
    if (cmkd_train_fields[i].owner == who) leave_open(&cmkd_train_fields[i], options);
}

void cmkd_session_options_default(cmkd_session_options *o) {
  memset(o, 0, sizeof *o);
  leave_all_open(CMKD_FIELD_OF_SESSION, o);
}

void cmkd_student_options_default(cmkd_student_options *o) {
  memset(o, 0, sizeof *o);
  leave_all_open(CMKD_FIELD_OF_STUDENT, o);
  leave_open(&dkd_beta, o);
  o->seed = 1;
}

static void fill(const cmkd_field *f, void *options, const void *defaults) {
  if (is_open(f, options)) memcpy((char *)options + f->at, (const char *)defaults + f->at, field_size(f));
}

void cmkd_student_options_fill(cmkd_student_options *options, const cmkd_student_options *defaults) {
  for (int i = 0; i < FIELDS; i++)
    if (cmkd_train_fields[i].owner == CMKD_FIELD_OF_STUDENT) fill(&cmkd_train_fields[i], options, defaults);
  fill(&dkd_beta, options, defaults);
}

/* ---- copies ---- */

/* The strings of a struct, each replaced by a copy or, with `release`, freed. */
static cmkd_status own_strings(cmkd_field_owner who, void *options, int release, cmkd_error *err) {
  int whole = 1;
  for (int i = 0; i < FIELDS; i++) {
    const cmkd_field *f = &cmkd_train_fields[i];
    if (f->owner != who || f->kind != CMKD_FIELD_STRING) continue;
    if (i && cmkd_train_fields[i - 1].owner == who && cmkd_train_fields[i - 1].at == f->at)
      continue; /* --arch is --student */
    char **slot = (char **)(void *)((char *)options + f->at);
    if (release)
      free(*slot);
    else if (*slot)
      whole &= (*slot = strdup(*slot)) != NULL;
  }
  return whole ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
}

cmkd_status cmkd_session_options_copy(const cmkd_session_options *from, cmkd_session_options *out, cmkd_error *err) {
  *out = *from;
  return own_strings(CMKD_FIELD_OF_SESSION, out, 0, err);
}
cmkd_status cmkd_student_options_copy(const cmkd_student_options *from, cmkd_student_options *out, cmkd_error *err) {
  *out = *from;
  return own_strings(CMKD_FIELD_OF_STUDENT, out, 0, err);
}
void cmkd_session_options_free(cmkd_session_options *options) { own_strings(CMKD_FIELD_OF_SESSION, options, 1, NULL); }
void cmkd_student_options_free(cmkd_student_options *options) { own_strings(CMKD_FIELD_OF_STUDENT, options, 1, NULL); }

/* ---- checks ---- */

/* What the parser of the command line checks, for programs that fill the struct themselves. */
static cmkd_status check_range(const cmkd_field *f, const void *options, cmkd_error *err) {
  const void *value = (const char *)options + f->at;
  double number = 0;
  if (is_open(f, options)) return CMKD_OK;
  if (f->kind == CMKD_FIELD_INT)
    number = (double)*(const int64_t *)value;
  else if (f->kind == CMKD_FIELD_DOUBLE)
    number = *(const double *)value;
  else if (f->kind == CMKD_FIELD_FLOATS3) {
    for (int c = 0; c < 3; c++)
      if (!isfinite(((const float *)value)[c]))
        return cmkd_fail(err, CMKD_ERR_USAGE, "%s: needs finite numbers", f->name);
    return CMKD_OK;
  } else
    return CMKD_OK;
  if (number >= f->min && number <= f->max) return CMKD_OK;
  return cmkd_fail(err, CMKD_ERR_USAGE, "%s %.12g: must be from %.12g to %.12g", f->name, number, f->min, f->max);
}

static cmkd_status check_ranges(cmkd_field_owner who, const void *options, cmkd_error *err) {
  for (int i = 0; i < FIELDS; i++)
    if (cmkd_train_fields[i].owner == who) CMKD_TRY(check_range(&cmkd_train_fields[i], options, err));
  return CMKD_OK;
}

/* The first option that only makes sense with a teacher, or NULL. */
static const char *option_of_teachers(const cmkd_session_options *o) {
  if (o->views) return "--views";
  if (o->cache_seed_given) return "--cache-seed";
  if (o->clean_view) return "--clean-view";
  if (o->teacher_batch) return "--teacher-batch";
  if (o->test_cache) return "--test-cache";
  return NULL;
}

static const char *option_of_live_teachers(const cmkd_session_options *o) {
  if (o->teacher_arch) return "--teacher-arch";
  if (!isnan(o->teacher_mean[0])) return "--teacher-mean";
  if (!isnan(o->teacher_std[0])) return "--teacher-std";
  return NULL;
}

cmkd_status cmkd_session_options_check(const cmkd_session_options *o, cmkd_error *err) {
  const char *of_teachers = option_of_teachers(o), *of_live = option_of_live_teachers(o);
  CMKD_TRY(check_ranges(CMKD_FIELD_OF_SESSION, o, err));
  if (o->cache && o->teacher)
    return cmkd_fail(err, CMKD_ERR_USAGE,
                     "--cache %s and --teacher %s exclude each other: the cache already holds its teacher's logits",
                     o->cache, o->teacher);
  if (o->callback && (o->cache || o->teacher))
    return cmkd_fail(err, CMKD_ERR_USAGE, "a callback and %s %s exclude each other: a session has one teacher",
                     o->cache ? "--cache" : "--teacher", o->cache ? o->cache : o->teacher);
  if (o->callback && o->teacher_batch)
    return cmkd_fail(err, CMKD_ERR_USAGE, "--teacher-batch is for --teacher FILE; a callback has a batch of its own");
  if (!cmkd_session_has_teacher(o) && of_teachers)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s needs a teacher: give --cache FILE or --teacher FILE", of_teachers);
  if (o->stream_memory && !o->cache) return cmkd_fail(err, CMKD_ERR_USAGE, "--stream-memory needs --cache FILE");
  if (o->test_cache && cmkd_session_is_live(o))
    return cmkd_fail(err, CMKD_ERR_USAGE, "--test-cache is for --cache; a live teacher sees the test split itself");
  if (of_live && !o->teacher) return cmkd_fail(err, CMKD_ERR_USAGE, "%s is for --teacher FILE", of_live);
  if (isnan(o->teacher_mean[0]) != isnan(o->teacher_std[0]))
    return cmkd_fail(err, CMKD_ERR_USAGE, "--teacher-mean and --teacher-std go together");
  return CMKD_OK;
}

cmkd_status cmkd_student_options_check(const cmkd_student_options *o, cmkd_error *err) {
  int has_mean = !isnan(o->mean[0]), has_std = !isnan(o->std[0]);
  CMKD_TRY(check_ranges(CMKD_FIELD_OF_STUDENT, o, err));
  CMKD_TRY(check_range(&dkd_beta, o, err));
  if (has_std != has_mean)
    return cmkd_fail(err, CMKD_ERR_USAGE, "%s needs %s beside it", has_mean ? "--mean" : "--std",
                     has_mean ? "--std" : "--mean");
  for (int c = 0; has_std && c < 3; c++)
    if (!(o->std[c] > 0)) return cmkd_fail(err, CMKD_ERR_USAGE, "--std: %g is not above 0", (double)o->std[c]);
  if (o->lr <= 0) return cmkd_fail(err, CMKD_ERR_USAGE, "--lr %g is not above 0", o->lr);
  return CMKD_OK;
}
