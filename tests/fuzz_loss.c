/* Arbitrary bytes as a loss expression, and arbitrary bit patterns as logits and labels: nothing crashes or reads out
 * of bounds, the full text means the same loss, cpu and ref agree about which row is bad. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/loss.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void evaluate(const cmkd_loss *loss, const uint8_t *data, size_t size) {
  if (size < 3) return;
  int64_t C = 2 + data[0] % 40, B = 1 + data[1] % 5, n = B * C;
  static const cmkd_dtype dtypes[] = {CMKD_F32, CMKD_F16, CMKD_BF16};
  cmkd_dtype dtype = dtypes[data[2] % 3];
  size_t width = dtype == CMKD_F32 ? 4 : 2, need[3] = {(size_t)n * 4, (size_t)n * width, (size_t)B * 4}, at = 3;
  void *part[3]; /* student, teacher, labels; exact sizes, zeros where the input ends */
  for (int i = 0; i < 3; i++) {
    part[i] = calloc(1, need[i]);
    if (!part[i]) abort();
    size_t take = size - at < need[i] ? size - at : need[i];
    memcpy(part[i], data + at, take);
    at += take;
  }
  float *grad = malloc((size_t)n * 4);
  size_t scratch_size = cmkd_loss_scratch(loss, "cpu", B, C);
  void *scratch = NULL;
  if (!grad || posix_memalign(&scratch, 64, scratch_size) != 0) abort();
  cmkd_loss_batch b = {.batch = B,
                       .classes = C,
                       .student = part[0],
                       .teacher = part[1],
                       .teacher_dtype = dtype,
                       .labels = part[2],
                       .grad = grad,
                       .epoch = 3,
                       .entropy_mean = NAN};
  cmkd_loss_result cpu, ref;
  cmkd_error err;
  cmkd_status a = cmkd_loss_eval(loss, "cpu", &b, scratch, &cpu, &err),
              c = cmkd_loss_eval(loss, "ref", &b, NULL, &ref, &err);
  if (a != c || cpu.bad_row != ref.bad_row) abort();
  cmkd_agreement sums = {0};
  free(scratch);
  if (posix_memalign(&scratch, 64, cmkd_agreement_scratch(B, C)) != 0) abort();
  cmkd_agreement_add(&(cmkd_agreement_batch){B, C, part[0], part[1], dtype, 2}, scratch, &sums, &err);
  free(scratch);
  free(grad);
  for (int i = 0; i < 3; i++)
    free(part[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 1) return 0;
  size_t length = data[0] < size - 1 ? data[0] : size - 1;
  char *text = malloc(length + 1);
  if (!text) abort();
  memcpy(text, data + 1, length);
  text[length] = 0;
  cmkd_loss *loss, *again;
  if (cmkd_loss_parse(text, (cmkd_loss_family)(size & 1), &loss, NULL) == CMKD_OK) {
    if (cmkd_loss_parse(cmkd_loss_text(loss), CMKD_LOSS_CIFAR, &again, NULL) != CMKD_OK ||
        strcmp(cmkd_loss_text(loss), cmkd_loss_text(again)))
      abort();
    cmkd_loss_free(again);
    cmkd_loss_free(loss);
  }
  free(text);
  if (cmkd_loss_parse("ce:.5+kd:.3+dkd:.2+nkd:.1+dist:.4+cmkd:.7", CMKD_LOSS_CIFAR, &loss, NULL) != CMKD_OK) abort();
  evaluate(loss, data + 1 + length, size - 1 - length);
  cmkd_loss_free(loss);
  return 0;
}
