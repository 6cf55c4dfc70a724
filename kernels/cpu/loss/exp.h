/* exp of vectors of floats and of doubles. The same operations for every instruction set, but that some have fused
 * multiply-adds. */
#ifndef CMKD_KERNELS_CPU_LOSS_EXP_H
#define CMKD_KERNELS_CPU_LOSS_EXP_H
#include "kernels/cpu/vector.h"

/* exp(x) for x <= 0 (up to 88 is right), within 1 ulp where the result is normal (measured by the test); 0 below -87 */
static inline vf exp_f(vf x) {
  vi dead = x < -87.f;
  x = max_f(x, splat(-87.f));
  vf n = x * 1.44269504f + 12582912.f; /* the integer sits in the low bits */
  vi k = (vi)n;
  n -= 12582912.f;
  vf r = x - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f; /* Cephes' expf */
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  vf e = p * (vf)((k << 23) + 0x3F800000);
  return (vf)((vi)e & ~dead);
}
/* exp(x) for x <= 0, to about 2 ulp; 0 below -700 */
static inline vd exp_d(vd x) {
  vl dead = x < -700.;
  x = (vd)((vl)x & ~dead);
  vd n = x * 1.4426950408889634 + 6755399441055744.; /* the integer sits in the low bits */
  vl k = (vl)n;
  n -= 6755399441055744.;
  vd r = x - n * 0x1.62e42fee00000p-1;
  r -= n * 0x1.a39ef35793c76p-33;
  static const double c[] = {
      1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040,
      1. / 720,        1. / 120,       1. / 24,       1. / 6,       .5,          1,          1};
  vd p = splat_d(c[0]);
  UNROLL
  for (int i = 1; i < 14; i++)
    p = p * r + c[i];
  vd e = p * (vd)((k << 52) + 0x3FF0000000000000);
  return (vd)((vl)e & ~dead);
}
#endif
