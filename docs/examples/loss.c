/* A loss on buffers of one's own: value, parts and gradient of a batch, and how well student and teacher agree.
 *
 *     cc loss.c $(pkg-config --cflags --libs cmkd) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "cmkd/loss.h"

enum { B = 2, C = 4 };
static const float student[B][C] = {{1, 2, 3, 0}, {3, 2, 1, 0}};
static const float teacher[B][C] = {{0, 1, 5, -1}, {1, 4, 0, -1}};
static const int32_t labels[B] = {2, 1};

/* Scratch is 64-byte aligned; a size of 0 needs none. */
static void *scratch_of(size_t size) { return aligned_alloc(64, (size + 63) / 64 * 64 + 64); }

static cmkd_status evaluate(const cmkd_loss *loss, cmkd_error *err) {
  float grad[B][C];
  const cmkd_loss_batch batch = {.batch = B,
                                 .classes = C,
                                 .student = &student[0][0],
                                 .teacher = teacher,
                                 .teacher_dtype = CMKD_F32,
                                 .labels = labels,
                                 .grad = &grad[0][0],
                                 .epoch = 1,
                                 .entropy_mean = NAN};
  cmkd_loss_result result;
  void *scratch = scratch_of(cmkd_loss_scratch(loss, "cpu", B, C));
  if (!scratch) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  const cmkd_status status = cmkd_loss_eval(loss, "cpu", &batch, scratch, &result, err);
  free(scratch);
  if (status != CMKD_OK) return status;
  printf("%s\nloss %.6f\n", cmkd_loss_text(loss), result.loss);
  for (int i = 0; i < cmkd_loss_parts(loss); i++)
    printf("  %s %.6f\n", cmkd_loss_part_name(loss, i), result.part[i]);
  for (int r = 0; r < B; r++)
    printf("gradient of row %d: %.5f %.5f %.5f %.5f\n", r, grad[r][0], grad[r][1], grad[r][2], grad[r][3]);
  return CMKD_OK;
}

static cmkd_status agreement(cmkd_error *err) {
  const cmkd_agreement_batch batch = {
      .batch = B, .classes = C, .student = &student[0][0], .teacher = teacher, .teacher_dtype = CMKD_F32, .kappa = 2};
  cmkd_agreement sums = {0}; /* batches add up */
  void *scratch = scratch_of(cmkd_agreement_scratch(B, C));
  if (!scratch) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  const cmkd_status status = cmkd_agreement_add(&batch, scratch, &sums, err);
  free(scratch);
  if (status == CMKD_OK)
    printf("pearson %.4f, spearman %.4f\n", sums.pearson / (double)sums.rows, sums.spearman / (double)sums.rows);
  return status;
}

int main(int argc, char **argv) {
  cmkd_error err;
  cmkd_loss *loss;
  if (cmkd_loss_parse(argc > 1 ? argv[1] : "ce:1+kd:1,T=2", CMKD_LOSS_CIFAR, &loss, &err) != CMKD_OK) {
    fprintf(stderr, "%s\n", err.message);
    return 2;
  }
  cmkd_status status = evaluate(loss, &err);
  if (status == CMKD_OK) status = agreement(&err);
  if (status != CMKD_OK) fprintf(stderr, "%s\n", err.message);
  cmkd_loss_free(loss);
  return status == CMKD_OK ? 0 : 1;
}
