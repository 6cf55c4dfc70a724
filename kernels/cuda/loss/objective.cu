/* Terms of the objective beside the loss on logits: a weighted mean squared difference between an output of the network
 * and a target, value and gradient in one launch. A block takes a row; the last block adds the rows up in order. */
#include <math.h>
#include "kernels/cuda/loss/finish.h"
#include "kernels/cuda/step.h"
#include "kernels/cuda/vector.h"

#define OBJECTIVE_THREADS 256

/* Scratch: | blocks that have finished, 0 between calls | each row's mean square (rows) | */
#define ROWS_AT 256
size_t cmkd_cuda_objective_scratch(int rows) { return ROWS_AT + ((size_t)rows * sizeof(double) + 255) / 256 * 256; }

template <class T> __global__ void __launch_bounds__(OBJECTIVE_THREADS)
    objective_kernel(const __grid_constant__ cmkd_cuda_objective o, unsigned *done, double *rows, double *value,
                     cmkd_cuda_state *state) {
  CMKD_SHARED(double, shared, TEAM_SHARED);
  const int64_t r = blockIdx.x, width = o.pixels * o.c;
  const float step = (float)(2 * o.weight * (double)state->scale / ((double)o.rows * (double)width));
  const T *y = (const T *)o.output + r * o.pixels * o.stride;
  const float *t = o.target + r * width;
  T *grad = (T *)o.grad + r * o.pixels * o.stride;
  team<false> tm;
  tm.start(shared);
  double sum = 0;
  for (int64_t i = tm.rank; i < o.pixels * o.stride; i += tm.size) {
    const int64_t pixel = i / o.stride;
    const int c = (int)(i - pixel * o.stride);
    float g = 0;
    if (c < o.c) {
      const float d = to_float(y[i]) - t[pixel * o.c + c];
      sum += (double)d * (double)d;
      g = d * step;
      if (o.accumulate) g += to_float(grad[i]);
    }
    from_float(grad + i, g);
  }
  sum = tm.sum(sum);
  if (tm.rank == 0) rows[r] = sum / (double)width;
  if (!last_block(done, gridDim.x)) return;
  const volatile double *every = rows;
  double mean = 0, first[1] = {-HUGE_VAL}; /* first: minus the number of the first bad row */
  for (int64_t i = tm.rank; i < o.rows; i += tm.size) {
    const double square = every[i];
    mean += square;
    if (!(square - square == 0) && first[0] < (double)-i) first[0] = (double)-i;
  }
  tm.maximum(first);
  mean = tm.sum(mean);
  if (tm.rank) return;
  *value = mean / (double)o.rows;
  if (first[0] > -HUGE_VAL && state->loss.bad_row < 0) state->loss.bad_row = (int64_t)-first[0];
}

cmkd_status cmkd_cuda_objective_add(const cmkd_cuda_objective *o, void *scratch, double *value, cmkd_cuda_state *state,
                                    void *stream, cmkd_error *err) {
  if (!o->output || !o->target || !o->grad || !scratch || !value || !state || !float_dtype(o->dtype) || o->rows < 1 ||
      o->pixels < 1 || o->c < 1 || o->stride < o->c)
    return cmkd_fail(err, CMKD_ERR_VALUE, "objective: %d rows of %lld x %d numbers, or a pointer, is out of range",
                     o->rows, (long long)o->pixels, o->c);
  by_dtype(o->dtype, [&](auto *of) {
    using T = std::remove_pointer_t<decltype(of)>;
    CMKD_LAUNCH(objective_kernel<T>, dim3((unsigned)o->rows), dim3(OBJECTIVE_THREADS), 0, (cudaStream_t)stream, *o,
                (unsigned *)scratch, (double *)((char *)scratch + ROWS_AT), value, state);
  });
  return launch_status("objective", err);
}
