/* Mean over height and width. */
#include "kernels/ref/ops.h"

void cmkd_ref_globalpool(const cmkd_ref_call *call) {
  int area = call->in[0].h * call->in[0].w, c = call->out.c;
  for (int image = 0; image < call->n; image++)
    for (int j = 0; j < c; j++) {
      double sum = 0;
      for (int p = 0; p < area; p++)
        sum += call->x[0][((size_t)image * area + p) * c + j];
      call->y[(size_t)image * c + j] = sum / area;
    }
}

void cmkd_ref_globalpool_backward(const cmkd_ref_call *call) {
  int area = call->in[0].h * call->in[0].w, c = call->out.c;
  for (int image = 0; image < call->n && call->dx[0]; image++)
    for (int p = 0; p < area; p++)
      for (int j = 0; j < c; j++)
        call->dx[0][((size_t)image * area + p) * c + j] += call->dy[(size_t)image * c + j] / area;
}
