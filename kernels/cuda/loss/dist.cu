/* DIST's column part, which couples the batch: for each class the correlation over the rows of the softened
 * probabilities. Two launches after the rows' own: columns (their loss and the coefficients of their gradient), then
 * rows (through the softmax, added to grad). Probabilities are computed again from the logits and each row's
 * log-sum-exp rather than stored. */
#include "kernels/cuda/loss/finish.h"
#include "kernels/cuda/loss/row.h"

#define COLUMNS 32 /* of a block, beside */
#define SLICES 8   /* of the rows, added in order */

typedef struct dist_args {
  const void *student, *teacher;
  int student_dtype, teacher_dtype, C, part;
  int64_t B;
  const double *lse; /* (B, 2) */
  double inverse_T;
  double scale;   /* of the gradient of 1 - rho */
  double weight;  /* of the mean of 1 - rho in the loss */
  double square;  /* T^2 */
  double *column; /* (C, 4): mean p, mean q, factor of p - mean, factor of q - mean */
  double *loss;   /* (C) 1 - rho */
  float *grad;
  loss_state *state;
  cmkd_loss_result *result;
} dist_args;

static __device__ __forceinline__ double soft(const void *logits, int dtype, int64_t at, double inverse_T, double lse) {
  return exp_of(load_float(logits, dtype, at) * inverse_T - lse);
}

/* Sum over the slices of a column's K values, the same in all of them. part: (SLICES, COLUMNS) shared. */
template <int K> static __device__ void add_slices(double (&v)[K], double *part) {
#pragma unroll
  for (int k = 0; k < K; k++) {
    __syncthreads();
    part[threadIdx.y * COLUMNS + threadIdx.x] = v[k];
    __syncthreads();
    v[k] = 0;
    for (int i = 0; i < SLICES; i++)
      v[k] += part[i * COLUMNS + threadIdx.x];
  }
}

__global__ void __launch_bounds__(COLUMNS *SLICES) dist_columns(const __grid_constant__ dist_args a) {
  CMKD_SHARED(double, part, SLICES *COLUMNS);
  CMKD_SHARED(double, shared, TEAM_SHARED);
  const int c = (int)(blockIdx.x * COLUMNS + threadIdx.x);
  const bool inside = c < a.C;
  double sum[2] = {0, 0}, m[3] = {0, 0, 0}, p_max = 0, q_max = 0;
  for (int64_t r = threadIdx.y; inside && r < a.B; r += SLICES) {
    const double p = soft(a.student, a.student_dtype, r * a.C + c, a.inverse_T, a.lse[2 * r]);
    const double q = soft(a.teacher, a.teacher_dtype, r * a.C + c, a.inverse_T, a.lse[2 * r + 1]);
    sum[0] += p;
    sum[1] += q;
    p_max = fmax(p_max, p);
    q_max = fmax(q_max, q);
  }
  add_slices(sum, part);
  const double mp = sum[0] / (double)a.B, mq = sum[1] / (double)a.B;
  for (int64_t r = threadIdx.y; inside && r < a.B; r += SLICES) {
    const double p = soft(a.student, a.student_dtype, r * a.C + c, a.inverse_T, a.lse[2 * r]) - mp;
    const double q = soft(a.teacher, a.teacher_dtype, r * a.C + c, a.inverse_T, a.lse[2 * r + 1]) - mq;
    m[0] += p * p;
    m[1] += q * q;
    m[2] += p * q;
  }
  add_slices(m, part);
  double top[2] = {p_max, q_max};
#pragma unroll
  for (int k = 0; k < 2; k++) {
    __syncthreads();
    part[threadIdx.y * COLUMNS + threadIdx.x] = top[k];
    __syncthreads();
    for (int i = 0; i < SLICES; i++)
      top[k] = fmax(top[k], part[i * COLUMNS + threadIdx.x]);
  }
  if (inside && threadIdx.y == 0) {
    const double np = sqrt(m[0]), nq = sqrt(m[1]), root = sqrt((double)a.B);
    const bool flat =
        np <= CMKD_DEGENERATE * root * top[0] || nq <= CMKD_DEGENERATE * root * top[1] || !(np > 0 && nq > 0);
    const double rho = flat ? 1 : m[2] / (np * nq);
    a.column[4 * c] = mp;
    a.column[4 * c + 1] = mq;
    a.column[4 * c + 2] = flat ? 0 : rho / m[0];
    a.column[4 * c + 3] = flat ? 0 : 1 / (np * nq);
    a.loss[c] = 1 - rho;
  }
  if (!last_block(&a.state->done_columns, gridDim.x)) return;
  /* a block of (32, 8) threads: numbered by hand, the team's own rank is x alone */
  team<false> tm;
  tm.start(shared);
  tm.rank = (int)(threadIdx.y * COLUMNS + threadIdx.x);
  tm.size = COLUMNS * SLICES;
  tm.warp = (int)threadIdx.y;
  tm.warps = SLICES;
  const volatile double *loss = a.loss;
  double mean = 0;
  for (int i = tm.rank; i < a.C; i += tm.size)
    mean += loss[i];
  mean = a.square * tm.sum(mean) / a.C;
  if (tm.rank == 0) {
    if (a.result->bad_row >= 0) mean = 0;
    a.result->part[a.part] = mean;
    a.result->loss += a.weight * mean;
  }
}

/* A block a row: grad += p (u - <u, p>) / T */
#define DIST_THREADS 256
__global__ void __launch_bounds__(DIST_THREADS) dist_rows(const __grid_constant__ dist_args a) {
  CMKD_SHARED(double, shared, TEAM_SHARED);
  const int64_t r = blockIdx.x;
  team<false> tm;
  tm.start(shared);
  if (a.result->bad_row >= 0) return; /* the batch is refused */
  double dot = 0;
  for (int c = tm.rank; c < a.C; c += tm.size) {
    const double p = soft(a.student, a.student_dtype, r * a.C + c, a.inverse_T, a.lse[2 * r]),
                 q = soft(a.teacher, a.teacher_dtype, r * a.C + c, a.inverse_T, a.lse[2 * r + 1]);
    dot += p * (a.column[4 * c + 2] * (p - a.column[4 * c]) - a.column[4 * c + 3] * (q - a.column[4 * c + 1]));
  }
  dot = tm.sum(dot);
  for (int c = tm.rank; c < a.C; c += tm.size) {
    const double p = soft(a.student, a.student_dtype, r * a.C + c, a.inverse_T, a.lse[2 * r]),
                 q = soft(a.teacher, a.teacher_dtype, r * a.C + c, a.inverse_T, a.lse[2 * r + 1]);
    const double u = a.column[4 * c + 2] * (p - a.column[4 * c]) - a.column[4 * c + 3] * (q - a.column[4 * c + 1]);
    a.grad[r * a.C + c] += (float)(a.scale * p * (u - dot));
  }
}

size_t dist_bytes(int64_t C) { return (size_t)C * 5 * sizeof(double); }

cmkd_status dist_launch(const loss_args *args, const cmkd_loss_term *term, double weight, double *columns,
                        void *stream_pointer, cmkd_error *err) {
  cudaStream_t stream = (cudaStream_t)stream_pointer;
  dist_args d;
  memset(&d, 0, sizeof d);
  d.student = args->student;
  d.student_dtype = args->student_dtype;
  d.teacher = args->teacher;
  d.teacher_dtype = args->teacher_dtype;
  d.C = args->C;
  d.B = args->B;
  d.part = term->part + 1;
  d.lse = args->lse;
  d.inverse_T = 1 / term->T;
  d.square = term->T * term->T;
  d.weight = weight * term->gamma;
  d.scale = d.weight * d.square / (double)args->C * d.inverse_T;
  d.column = columns;
  d.loss = columns + 4 * (int64_t)args->C;
  d.grad = args->grad;
  d.state = args->state;
  d.result = args->result;
  CMKD_LAUNCH(dist_columns, dim3((unsigned)((d.C + COLUMNS - 1) / COLUMNS)), dim3(COLUMNS, SLICES), 0, stream, d);
  CMKD_TRY(launch_status("loss, DIST's columns", err));
  if (d.grad && d.scale != 0) CMKD_LAUNCH(dist_rows, dim3((unsigned)d.B), dim3(DIST_THREADS), 0, stream, d);
  return launch_status("loss, DIST's rows", err);
}
