/* The losses on the CPU: threads over rows. */
#include <math.h>
#include <stdlib.h>
#include "base/half.h"
#include "kernels/loss.h"

static size_t scratch_size(const cmkd_loss *loss, int64_t batch, int64_t classes) { return 0; }
static cmkd_status eval(const cmkd_loss *loss, const cmkd_loss_batch *b, void *scratch, cmkd_loss_result *result, cmkd_error *err) {
  return cmkd_loss_ref.eval(loss, b, scratch, result, err);
}
const cmkd_loss_implementation cmkd_loss_cpu = {"cpu", scratch_size, eval};

size_t cmkd_agreement_scratch(int64_t batch, int64_t classes) { return 2 * (size_t)classes * sizeof(double); }

cmkd_status cmkd_agreement_add(const float *student, const void *teacher, cmkd_dtype teacher_dtype, int64_t batch, int64_t classes, double kappa, void *scratch, cmkd_agreement *sums, cmkd_error *err) {
  double *s = scratch, *t = s + classes;
  for (int64_t r = 0; r < batch; r++) {
    double pearson, spearman, blocks;
    for (int64_t i = 0; i < classes; i++) {
      int64_t at = r * classes + i;
      s[i] = student[at];
      t[i] = teacher_dtype == CMKD_F16 ? cmkd_half_to_float(((const uint16_t *)teacher)[at]) : teacher_dtype == CMKD_BF16 ? cmkd_bf16_to_float(((const uint16_t *)teacher)[at]) : ((const float *)teacher)[at];
      if (!isfinite(s[i]) || !isfinite(t[i])) return cmkd_fail(err, CMKD_ERR_VALUE, "row %lld of the batch: a logit is NaN or Inf", (long long)r);
    }
    CMKD_TRY(cmkd_agreement_ref(classes, s, t, kappa, &pearson, &spearman, &blocks, err));
    sums->pearson += pearson;
    sums->spearman += spearman;
    sums->blocks += blocks;
    sums->rows++;
  }
  return CMKD_OK;
}
