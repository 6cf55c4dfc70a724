/* y = act(batchnorm(x) [+ residual]). Training normalises by the batch's mean and biased variance, inference by the
 * running ones. */
#include "kernels/ref/ops.h"
#include <math.h>

static size_t rows_of(const cmkd_ref_call *call) { return (size_t)call->n * call->out.h * call->out.w; }

static void batch_statistics(const cmkd_ref_call *call) {
  size_t rows = rows_of(call);
  int c = call->out.c;
  double *mean = call->saved, *var = call->saved + c;
  for (int j = 0; j < c; j++) {
    double sum = 0, squares = 0;
    for (size_t r = 0; r < rows; r++)
      sum += call->x[0][r * c + j];
    mean[j] = sum / (double)rows;
    for (size_t r = 0; r < rows; r++) {
      double d = call->x[0][r * c + j] - mean[j];
      squares += d * d;
    }
    var[j] = squares / (double)rows;
  }
}

void cmkd_ref_norm(const cmkd_ref_call *call) {
  size_t rows = rows_of(call);
  int c = call->out.c;
  if (call->train) batch_statistics(call);
  const double *mean = call->train ? call->saved : call->param[CMKD_NORM_MEAN],
               *var = call->train ? call->saved + c : call->param[CMKD_NORM_VAR];
  for (int j = 0; j < c; j++) {
    double scale = call->param[CMKD_NORM_GAMMA][j] / sqrt(var[j] + (double)call->op->eps);
    for (size_t r = 0; r < rows; r++) {
      double v = (call->x[0][r * c + j] - mean[j]) * scale + call->param[CMKD_NORM_BETA][j];
      call->y[r * c + j] = cmkd_ref_activate(call->op->act, call->x[1] ? v + call->x[1][r * c + j] : v);
    }
  }
}

/* With g = dy through the activation, xh = (x - mean) / sigma: dx = scale / sigma (g - mean(g) - xh mean(g xh)). */
void cmkd_ref_norm_backward(const cmkd_ref_call *call) {
  size_t rows = rows_of(call);
  int c = call->out.c;
  for (int j = 0; j < c; j++) {
    double mean = call->saved[j], inverse = 1 / sqrt(call->saved[c + j] + (double)call->op->eps), sum = 0, product = 0;
    for (size_t r = 0; r < rows; r++) {
      size_t at = r * c + j;
      call->dy[at] *= cmkd_ref_act_derivative(call->op->act, call->y[at]);
      if (call->dx[1]) call->dx[1][at] += call->dy[at];
      sum += call->dy[at];
      product += call->dy[at] * (call->x[0][at] - mean) * inverse;
    }
    if (call->grad[CMKD_NORM_GAMMA]) call->grad[CMKD_NORM_GAMMA][j] += product;
    if (call->grad[CMKD_NORM_BETA]) call->grad[CMKD_NORM_BETA][j] += sum;
    for (size_t r = 0; r < rows && call->dx[0]; r++) {
      size_t at = r * c + j;
      double xh = (call->x[0][at] - mean) * inverse;
      call->dx[0][at] +=
          call->param[CMKD_NORM_GAMMA][j] * inverse * (call->dy[at] - sum / (double)rows - xh * product / (double)rows);
    }
  }
}

void cmkd_ref_norm_update(const cmkd_op *op, int64_t rows, int channels, const double *saved, double *mean,
                          double *var) {
  double unbiased = rows > 1 ? (double)rows / (double)(rows - 1) : 1, momentum = (double)op->momentum;
  for (int j = 0; j < channels; j++) {
    mean[j] += momentum * (saved[j] - mean[j]);
    var[j] += momentum * (saved[channels + j] * unbiased - var[j]);
  }
}
