/* Rows of more classes than shared memory holds. Tiles of LOSS_SHORT keys are sorted in shared memory, merged pairwise
 * in device memory (merge path: every thread of a launch merges the same number of keys), and then one block takes a
 * row, keeping its arrays in device memory (in L2, at the sizes that occur). 2 + log2(C / 8192) launches. Batches run
 * in waves, so that scratch stays bounded. */
#define ROW_FUNCTION CMKD_NOINLINE __device__
#include "kernels/cuda/loss/finish.h"
#include "kernels/cuda/loss/row.h"

#define TILE_THREADS 1024
#define TILE_KEYS (LOSS_SHORT / TILE_THREADS)
#define MERGE_THREADS 256
#define MERGE_KEYS 8
#define MERGE_TILE (MERGE_THREADS * MERGE_KEYS)
#define LONG_THREADS 1024
#define LONG_SCRATCH ((int64_t)512 << 20) /* a wave's scratch is about this, but at least one row's */

/* grid (tiles, rows, 2): the student's, then the teacher's tiles */
__global__ void __launch_bounds__(TILE_THREADS)
    tile_sort_kernel(const __grid_constant__ loss_args a, const __grid_constant__ long_rows w) {
  CMKD_DYNAMIC_SHARED(memory);
  team<false> tm;
  tm.start(nullptr);
  const bool teacher = blockIdx.z == 1;
  const void *logits = teacher ? a.teacher : a.student;
  const int dtype = teacher ? a.teacher_dtype : a.student_dtype, first = (int)blockIdx.x * LOSS_SHORT;
  const int64_t r = w.first + blockIdx.y;
  uint64_t key[TILE_KEYS], *out = (teacher ? w.teacher[0] : w.student[0]) + (int64_t)blockIdx.y * (a.C + 1);
#pragma unroll
  for (int k = 0; k < TILE_KEYS; k++) {
    const int c = first + k * TILE_THREADS + tm.rank;
    key[k] = c < a.C ? sort_key(load_float(logits, dtype, r * a.C + c), c) : SORT_PADDING;
  }
  uint64_t *buffer = (uint64_t *)memory;
  sort_keys<TILE_KEYS>(tm, key, buffer);
  tm.sync();
#pragma unroll
  for (int k = 0; k < TILE_KEYS; k++)
    buffer[tm.rank * TILE_KEYS + k] = key[k];
  tm.sync();
#pragma unroll
  for (int k = 0; k < TILE_KEYS; k++) {
    const int c = first + k * TILE_THREADS + tm.rank;
    if (c < a.C) out[c] = buffer[k * TILE_THREADS + tm.rank];
  }
}

/* How many of the first `diagonal` keys of the merge of A (n) and B (m) come from A. */
static __device__ __forceinline__ int merge_split(const uint64_t *A, int n, const uint64_t *B, int m, int diagonal) {
  int low = max(0, diagonal - m), high = min(diagonal, n);
  while (low < high) {
    const int i = (low + high) >> 1;
    if (A[i] < B[diagonal - 1 - i])
      low = i + 1;
    else
      high = i;
  }
  return low;
}

/* grid (parts, rows, 2): runs of `run` keys from side `from`, two by two, to the other side */
__global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(const __grid_constant__ long_rows w, int C, int run, int from) {
  CMKD_SHARED(uint64_t, keys, MERGE_TILE);
  CMKD_SHARED(int, split, 2);
  const int64_t offset = (int64_t)blockIdx.y * (C + 1);
  const uint64_t *in = (blockIdx.z ? w.teacher[from] : w.student[from]) + offset;
  uint64_t *out = (blockIdx.z ? w.teacher[from ^ 1] : w.student[from ^ 1]) + offset;
  const int start = (int)blockIdx.x * MERGE_TILE; /* of this block's output; run is a multiple of MERGE_TILE */
  const int pair = start / (2 * run) * (2 * run), n = min(run, C - pair), m = min(run, C - pair - n);
  const uint64_t *A = in + pair, *B = A + n;
  const int begin = start - pair, stop = min(begin + MERGE_TILE, n + m), total = stop - begin, t = (int)threadIdx.x;
  if (t < 2) split[t] = merge_split(A, n, B, m, t ? stop : begin);
  __syncthreads();
  const int a0 = split[0], a_count = split[1] - a0, b0 = begin - a0, b_count = total - a_count;
  for (int i = t; i < total; i += MERGE_THREADS)
    keys[i] = i < a_count ? A[a0 + i] : B[b0 + i - a_count];
  __syncthreads();
  const int diagonal = min(t * MERGE_KEYS, total);
  int i = merge_split(keys, a_count, keys + a_count, b_count, diagonal), j = diagonal - i;
  uint64_t mine[MERGE_KEYS];
#pragma unroll
  for (int k = 0; k < MERGE_KEYS; k++) {
    const bool from_a = j >= b_count || (i < a_count && keys[i] < keys[a_count + j]);
    const int at = from_a ? i++ : a_count + j++;
    mine[k] = diagonal + k < total ? keys[min(at, total - 1)] : SORT_PADDING;
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < MERGE_KEYS; k++)
    if (diagonal + k < total) keys[diagonal + k] = mine[k];
  __syncthreads();
  for (int k = t; k < total; k += MERGE_THREADS)
    out[start + k] = keys[k];
}

struct long_row {
  typedef uint32_t index_t;
  typedef double prefix_t;
  team<false> tm;
  const void *student, *teacher; /* of this row */
  int C, share, student_dtype, teacher_dtype;
  float *gradient, *xs, *spread;
  const uint64_t *student_keys, *teacher_keys;
  double *Y, *P; /* (C + 1): the other side of the merges, free by now */
  int32_t *rank;
  index_t *list;
  int *count;

  __device__ __forceinline__ int items() const { return share; }
  __device__ __forceinline__ int per() const { return share; }
  __device__ __forceinline__ int at(int k) const { return k * tm.size + tm.rank; }
  __device__ __forceinline__ int position(int k) const { return tm.rank * share + k; }
  __device__ __forceinline__ float s(int k) const { return load_float(student, student_dtype, at(k)); }
  __device__ __forceinline__ float t(int k) const { return teacher ? load_float(teacher, teacher_dtype, at(k)) : 0; }
  __device__ __forceinline__ float &g(int k) { return gradient[at(k)]; }
  __device__ __forceinline__ float &x(int k) { return xs[at(k)]; }
  __device__ __forceinline__ uint64_t student_key(int k) const { return student_keys[position(k)]; }
  __device__ __forceinline__ int twice(int k) const { return rank[key_index(student_keys[position(k)])]; }
  __device__ __forceinline__ void put(int k, float v) { spread[key_index(student_keys[position(k)])] = v; }
  __device__ void rank_teacher() {
    for (int k = 0; k < share; k++)
      if (at(k) < C) rank[key_index(teacher_keys[at(k)])] = twice_rank(teacher_keys, C, at(k));
    tm.sync();
  }
  __device__ void sort_student() {}
  __device__ void rank_student() {}
  __device__ __forceinline__ int own(int k) const { return twice_rank(student_keys, C, position(k)); }
  __device__ void keep_ranks() {}
  __device__ void spread_all() {
    tm.sync();
    for (int k = 0; k < share; k++)
      if (at(k) < C) xs[at(k)] += spread[at(k)];
    tm.sync();
  }
};

static __device__ void long_start(long_row &row, const loss_args &a, const long_rows &w, int64_t slot, double *shared,
                                  int *count) {
  const int64_t r = w.first + slot, keys = slot * (a.C + 1), places = slot * a.C;
  row.tm.start(shared);
  row.C = a.C;
  row.share = (a.C + LONG_THREADS - 1) / LONG_THREADS;
  row.student_dtype = a.student_dtype;
  row.teacher_dtype = a.teacher_dtype;
  row.student = (const char *)a.student + r * a.C * (a.student_dtype == CMKD_F32 ? 4 : 2);
  row.teacher = a.teacher ? (const char *)a.teacher + r * a.C * (a.teacher_dtype == CMKD_F32 ? 4 : 2) : nullptr;
  row.gradient = a.grad ? a.grad + r * a.C : w.grad + places;
  row.xs = w.x + places;
  row.spread = w.spread + places;
  row.student_keys = w.student[w.sorted] + keys;
  row.teacher_keys = w.teacher[w.sorted] + keys;
  row.Y = (double *)(w.student[w.sorted ^ 1] + keys);
  row.P = (double *)(w.teacher[w.sorted ^ 1] + keys);
  row.rank = w.rank + places;
  row.list = w.list + places;
  row.count = count;
}

__global__ void __launch_bounds__(LONG_THREADS)
    long_row_kernel(const __grid_constant__ loss_args a, const __grid_constant__ long_rows w) {
  CMKD_SHARED(double, shared, TEAM_SHARED);
  CMKD_SHARED(int, count, LONG_THREADS);
  long_row row;
  long_start(row, a, w, blockIdx.x, shared, count);
  row_loss(row, a, w.first + blockIdx.x);
  if (last_block(&a.state->done, (unsigned)w.count) && w.first + w.count == a.B) loss_result_write(a, shared);
}

__global__ void __launch_bounds__(LONG_THREADS)
    long_agreement_kernel(const __grid_constant__ loss_args a, const __grid_constant__ long_rows w, double kappa,
                          cmkd_agreement *sums) {
  CMKD_SHARED(double, shared, TEAM_SHARED);
  CMKD_SHARED(int, count, LONG_THREADS);
  long_row row;
  long_start(row, a, w, blockIdx.x, shared, count);
  row_agreement(row, a, w.first + blockIdx.x, kappa);
  if (last_block(&a.state->done, (unsigned)w.count) && w.first + w.count == a.B) agreement_add(a, sums, shared);
}

/* ---- host ---- */
static size_t row_bytes(int64_t C, int sorts) {
  return sorts ? (size_t)(C + 1) * 8 * 4 + (size_t)C * 4 * 5 : (size_t)C * 4;
}

int64_t long_wave(int64_t B, int64_t C) {
  int64_t wave = LONG_SCRATCH / (int64_t)row_bytes(C, 1);
  wave = wave < 1 ? 1 : wave > 65535 ? 65535 : wave;
  return wave < B ? wave : B;
}
size_t long_bytes(int64_t B, int64_t C, int sorts) { return (size_t)long_wave(B, C) * row_bytes(C, sorts); }

cmkd_status long_launch(const loss_args *args, void *scratch, int sorts, double kappa, cmkd_agreement *sums,
                        void *stream_pointer, cmkd_error *err) {
  cudaStream_t stream = (cudaStream_t)stream_pointer;
  const loss_args a = *args;
  const size_t shared = LOSS_SHORT * sizeof(uint64_t);
  long_rows w;
  memset(&w, 0, sizeof w);
  w.wave = long_wave(a.B, a.C);
  w.tiles = (a.C + LOSS_SHORT - 1) / LOSS_SHORT;
  const int64_t keys = w.wave * (a.C + 1), places = w.wave * a.C;
  char *p = (char *)scratch;
  if (sorts) {
    for (int i = 0; i < 2; i++) {
      w.student[i] = (uint64_t *)p;
      p += keys * 8;
      w.teacher[i] = (uint64_t *)p;
      p += keys * 8;
    }
    w.list = (uint32_t *)p;
    p += places * 4;
    w.rank = (int32_t *)p;
    p += places * 4;
    w.x = (float *)p;
    p += places * 4;
    w.spread = (float *)p;
    p += places * 4;
  }
  w.grad = (float *)p;
  if (sorts && CMKD_SHARED_LIMIT(tile_sort_kernel, shared) != cudaSuccess) {
    (void)cudaGetLastError();
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED,
                     "loss: %d classes need %zu bytes of shared memory, more than this device gives a block", a.C,
                     shared);
  }
  for (w.first = 0; w.first < a.B; w.first += w.wave) {
    w.count = a.B - w.first < w.wave ? a.B - w.first : w.wave;
    w.sorted = 0;
    if (sorts) {
      CMKD_LAUNCH(tile_sort_kernel, dim3((unsigned)w.tiles, (unsigned)w.count, 2), dim3(TILE_THREADS), shared, stream,
                  a, w);
      CMKD_TRY(launch_status("loss, sorting tiles", err));
      for (int run = LOSS_SHORT; run < a.C; run *= 2, w.sorted ^= 1) {
        CMKD_LAUNCH(merge_kernel, dim3((unsigned)((a.C + MERGE_TILE - 1) / MERGE_TILE), (unsigned)w.count, 2),
                    dim3(MERGE_THREADS), 0, stream, w, a.C, run, w.sorted);
        CMKD_TRY(launch_status("loss, merging", err));
      }
    }
    if (sums)
      CMKD_LAUNCH(long_agreement_kernel, dim3((unsigned)w.count), dim3(LONG_THREADS), 0, stream, a, w, kappa, sums);
    else
      CMKD_LAUNCH(long_row_kernel, dim3((unsigned)w.count), dim3(LONG_THREADS), 0, stream, a, w);
    CMKD_TRY(launch_status("loss, rows", err));
  }
  return CMKD_OK;
}
