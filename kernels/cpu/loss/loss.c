/* The losses on the CPU: scratch, threads over groups of rows, and sums in row order. The arithmetic is in rows_impl.h,
 * compiled once per instruction set. A row's numbers do not depend on the number of threads, nor do the sums. */
#include "kernels/cpu/loss/loss.h"
#include <math.h>
#include <omp.h>
#include <string.h>
#include <unistd.h>
#include "base/cpu.h"
#include "base/limits.h"

const cmkd_loss_kernels *cmkd_loss_kernels_best(void) {
  switch (cmkd_cpu_isa()) {
  case CMKD_ISA_AVX512: return &cmkd_loss_kernels_avx512;
  case CMKD_ISA_AVX2: return &cmkd_loss_kernels_avx2;
  default: return &cmkd_loss_kernels_base;
  }
}

/* Configured processors: a constant of the machine, remembered because asking reads files. */
static int processors(void) {
  static _Atomic int known;
  int n = known;
  if (n) return n;
  long configured = sysconf(_SC_NPROCESSORS_CONF);
  if (configured < 1) configured = 1;
  if (configured > CMKD_MAX_THREADS) configured = CMKD_MAX_THREADS;
  known = n = (int)configured;
  return n;
}

/* At most one thread per configured processor, and at most 256 MiB of scratch for all: a function of the shape and the
 * machine alone, so that eval never needs more than cmkd_loss_scratch() said. */
static int most_threads(const cmkd_loss_kernels *kernels, int64_t batch, int64_t classes) {
  int64_t group = kernels->group(classes), groups = (batch + group - 1) / group,
          fit = (256 << 20) / (int64_t)kernels->thread_scratch(classes), most = processors();
  if (most > groups) most = groups;
  if (most > fit) most = fit;
  return most > 1 ? (int)most : 1;
}

static int threads_for(const cmkd_loss_kernels *kernels, int64_t batch, int64_t classes) {
  if (batch * classes < 2048 || omp_in_parallel()) return 1; /* starting threads would cost more than the work */
  int most = most_threads(kernels, batch, classes), now = omp_get_max_threads();
  return now < most ? now : most;
}

/* Lays out the job in memory (aligned to 64; NULL to learn the size alone): arrays of all rows, then, at *threads, a
 * piece for every thread. Returns the bytes of it all. */
static size_t carve_job(const cmkd_loss *loss, const cmkd_loss_kernels *kernels, int64_t batch, int64_t classes,
                        void *memory, cmkd_loss_job *job, char **threads) {
  cmkd_carver c = {(uintptr_t)memory};
  size_t B = (size_t)batch, ld = (size_t)kernels->row_floats(classes);
  job->loss = loss;
  job->cmkd = cmkd_loss_find(loss, CMKD_TERM_CMKD);
  job->dist = cmkd_loss_find(loss, CMKD_TERM_DIST);
  job->ld = (int64_t)ld;
  job->teacher_stats = cmkd_carve(&c, B * sizeof(cmkd_row_stats));
  job->entropy = cmkd_carve(&c, B * sizeof(double));
  job->row_value = cmkd_carve(&c, B * CMKD_ROW_VALUES * sizeof(double));
  job->bad = cmkd_carve(&c, B);
  if (job->dist) {
    job->p = cmkd_carve(&c, B * ld * sizeof(double));
    job->q = cmkd_carve(&c, B * ld * sizeof(double));
    job->column = cmkd_carve(&c, 5 * ld * sizeof(double));
    job->column_value = cmkd_carve(&c, ld * sizeof(double));
  }
  *threads = cmkd_carve(&c, (size_t)most_threads(kernels, batch, classes) * kernels->thread_scratch(classes));
  return c.at - (uintptr_t)memory;
}

static size_t scratch_size(const cmkd_loss *loss, int64_t batch, int64_t classes) {
  cmkd_loss_job job;
  char *threads;
  return carve_job(loss, cmkd_loss_kernels_best(), batch, classes, NULL, &job, &threads);
}

static void sum_rows(const cmkd_loss_job *job, int64_t batch, int64_t classes, cmkd_loss_result *result) {
  const cmkd_loss *loss = job->loss;
  double sum[CMKD_ROW_VALUES] = {0};
  for (int64_t r = 0; r < batch; r++)
    for (int i = 0; i < CMKD_ROW_VALUES; i++)
      sum[i] += job->row_value[r * CMKD_ROW_VALUES + i];
  for (int i = 0; i < CMKD_ROW_VALUES; i++)
    sum[i] /= (double)batch;
  if (job->dist) {
    double columns = 0;
    for (int64_t i = 0; i < classes; i++)
      columns += job->column_value[i];
    sum[job->dist->part + 1] = columns / (double)classes;
  }
  result->loss = 0;
  for (int k = 0; k < loss->terms; k++) {
    const cmkd_loss_term *term = &loss->term[k];
    const double *part = &sum[term->part];
    double value = part[0];
    switch (term->kind) {
    case CMKD_TERM_DKD: value = term->alpha * part[0] + term->beta * part[1]; break;
    case CMKD_TERM_NKD: value = part[0] + term->gamma * part[1]; break;
    case CMKD_TERM_DIST: value = term->beta * part[0] + term->gamma * part[1]; break;
    case CMKD_TERM_CMKD:
      value = sum[CMKD_ROW_WEIGHTED];
      result->blocks = sum[CMKD_ROW_BLOCKS];
      break;
    }
    result->loss += cmkd_term_weight(term, job->batch->epoch) * value;
  }
  for (int i = 0; i < loss->parts; i++)
    result->part[i] = sum[i];
}

static cmkd_status eval(const cmkd_loss *loss, const cmkd_loss_batch *b, void *scratch, cmkd_loss_result *result,
                        cmkd_error *err) {
  const cmkd_loss_kernels *kernels = cmkd_loss_kernels_best();
  cmkd_loss_job job = {.batch = b};
  char *memory;
  carve_job(loss, kernels, b->batch, b->classes, scratch, &job, &memory);
  memset(job.bad, 0, (size_t)b->batch);
  int threads = threads_for(kernels, b->batch, b->classes);
  int64_t group = kernels->group(b->classes), groups = (b->batch + group - 1) / group,
          column_blocks = (b->classes + 15) / 16;
  size_t piece = kernels->thread_scratch(b->classes);
  job.entropy_mean = b->entropy_mean;
  int gated = job.cmkd && job.cmkd->gate != CMKD_GATE_OFF;

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    char *mine = memory + (size_t)omp_get_thread_num() * piece;
    if (loss->needs_teacher) {
#pragma omp for schedule(static)
      for (int64_t g = 0; g < groups; g++) {
        int64_t first = g * group, left = b->batch - first;
        kernels->teacher_pass(&job, first, (int)(left < group ? left : group), mine);
      }
    }
    if (gated && isnan(b->entropy_mean)) {
#pragma omp single
      {
        double sum = 0;
        for (int64_t r = 0; r < b->batch; r++)
          sum += job.entropy[r];
        job.entropy_mean = sum / (double)b->batch;
      }
    }
    if (job.dist) {
#pragma omp for schedule(static)
      for (int64_t c = 0; c < column_blocks; c++)
        kernels->column_pass(&job, c * 16, c * 16 + 16);
    }
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
      int64_t first = g * group, left = b->batch - first;
      kernels->row_pass(&job, first, (int)(left < group ? left : group), mine);
    }
  }
  for (int64_t r = 0; r < b->batch; r++)
    if (job.bad[r]) {
      result->bad_row = r;
      return cmkd_loss_bad_row(b, r, err);
    }
  sum_rows(&job, b->batch, b->classes, result);
  return CMKD_OK;
}

const cmkd_loss_implementation cmkd_loss_cpu = {"cpu", scratch_size, eval};

/* ---- agreement ---- */

/* As carve_job. */
static size_t carve_agreement(const cmkd_loss_kernels *kernels, int64_t batch, int64_t classes, void *memory,
                              cmkd_agreement_job *job, char **threads) {
  cmkd_carver c = {(uintptr_t)memory};
  job->row_value = cmkd_carve(&c, (size_t)batch * 3 * sizeof(double));
  job->bad = cmkd_carve(&c, (size_t)batch);
  *threads = cmkd_carve(&c, (size_t)most_threads(kernels, batch, classes) * kernels->thread_scratch(classes));
  return c.at - (uintptr_t)memory;
}

static int agreement_fits(int64_t batch, int64_t classes) {
  return batch >= 1 && batch <= INT32_MAX && classes >= CMKD_LOSS_MIN_CLASSES && classes <= CMKD_LOSS_MAX_CLASSES;
}

size_t cmkd_agreement_scratch(int64_t batch, int64_t classes) {
  cmkd_agreement_job job;
  char *threads;
  if (!agreement_fits(batch, classes)) return 0;
  return carve_agreement(cmkd_loss_kernels_best(), batch, classes, NULL, &job, &threads);
}

cmkd_status cmkd_agreement_add(const cmkd_agreement_batch *b, void *scratch, cmkd_agreement *sums, cmkd_error *err) {
  const int64_t batch = b->batch, classes = b->classes;
  if (!agreement_fits(batch, classes) || !b->student || !b->teacher || !scratch || !(b->kappa > 0) || isinf(b->kappa))
    return cmkd_fail(err, CMKD_ERR_VALUE,
                     "agreement: needs logits of both sides, at least one row, %d to %d classes and kappa > 0",
                     CMKD_LOSS_MIN_CLASSES, CMKD_LOSS_MAX_CLASSES);
  if (b->teacher_dtype != CMKD_F32 && b->teacher_dtype != CMKD_F16 && b->teacher_dtype != CMKD_BF16)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "agreement: teacher logits may be F32, F16 or BF16, not dtype %d",
                     (int)b->teacher_dtype);
  const cmkd_loss_kernels *kernels = cmkd_loss_kernels_best();
  cmkd_agreement_job job = {.student = b->student,
                            .teacher = b->teacher,
                            .teacher_dtype = b->teacher_dtype,
                            .batch = batch,
                            .classes = classes,
                            .kappa = b->kappa};
  char *memory;
  carve_agreement(kernels, batch, classes, scratch, &job, &memory);
  memset(job.bad, 0, (size_t)batch);
  size_t piece = kernels->thread_scratch(classes);
  int64_t group = kernels->group(classes), groups = (batch + group - 1) / group;
  int threads = threads_for(kernels, batch, classes);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t g = 0; g < groups; g++) {
    int64_t first = g * group, left = batch - first;
    kernels->agreement_pass(&job, first, (int)(left < group ? left : group),
                            memory + (size_t)omp_get_thread_num() * piece);
  }
  for (int64_t r = 0; r < batch; r++)
    if (job.bad[r]) return cmkd_fail(err, CMKD_ERR_VALUE, "row %lld of the batch: a logit is NaN or Inf", (long long)r);
  for (int64_t r = 0; r < batch; r++) {
    sums->pearson += job.row_value[r * 3];
    sums->spearman += job.row_value[r * 3 + 1];
    sums->blocks += job.row_value[r * 3 + 2];
  }
  sums->rows += batch;
  return CMKD_OK;
}
