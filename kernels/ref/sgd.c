/* Stochastic gradient descent with momentum, as torch.optim.SGD does it (dampening 0). */
#include "kernels/ref/ops.h"

void cmkd_ref_sgd(double *w, double *m, const double *grad, int64_t count, double lr, double momentum, double decay,
                  int nesterov) {
  for (int64_t i = 0; i < count; i++) {
    double g = grad[i] + decay * w[i];
    m[i] = momentum * m[i] + g;
    w[i] -= lr * (nesterov ? g + momentum * m[i] : m[i]);
  }
}
