/* Activations and their gradients on vectors and on single floats, for the files that are compiled once per instruction
 * set (see vector.h). */
#ifndef CMKD_KERNELS_CPU_ACTIVATION_H
#define CMKD_KERNELS_CPU_ACTIVATION_H
#include "kernels/cpu/vector.h"
#include "kernels/graph.h"

/* act(x). NaN passes through: the comparisons are false and keep x. */
INLINE vf activate(vf x, cmkd_act act) {
  if (act != CMKD_ACT_NONE) x = select_f(~(x < splat(0)), x);
  if (act == CMKD_ACT_RELU6) x = blend(x > splat(6), splat(6), x);
  return x;
}
INLINE float activate_float(float x, cmkd_act act) {
  if (act != CMKD_ACT_NONE && x < 0) x = 0;
  if (act == CMKD_ACT_RELU6 && x > 6.0f) x = 6.0f;
  return x;
}

/* dy where the activation passed its input on, else 0. y: the activation's input or its output, which are the same
 * where it passed. */
INLINE vf activate_backward(vf dy, vf y, cmkd_act act) {
  if (act == CMKD_ACT_NONE) return dy;
  dy = select_f(y > splat(0), dy);
  return act == CMKD_ACT_RELU6 ? select_f(y < splat(6), dy) : dy;
}
INLINE float activate_backward_float(float dy, float y, cmkd_act act) {
  if (act == CMKD_ACT_NONE) return dy;
  return y > 0 && (act != CMKD_ACT_RELU6 || y < 6.0f) ? dy : 0.0f;
}
#endif
