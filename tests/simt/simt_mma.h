/* Tensor cores as nvcuda::wmma spells them: 16 x 16 x 16, half or bfloat16 in, float out. The elements of a fragment
 * lie differently than on a device, as the programming guide allows. A lane computes half a row of the result from what
 * its own fragments hold; what is checked is that all lanes come to mma_sync, and that pointers and leading dimensions
 * are aligned as a device wants them. */
#ifndef CMKD_TESTS_SIMT_SIMT_MMA_H
#define CMKD_TESTS_SIMT_SIMT_MMA_H

namespace nvcuda {
namespace wmma {
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major {
  static size_t at(size_t row, size_t column, size_t ld) { return row * ld + column; }
};
struct col_major {
  static size_t at(size_t row, size_t column, size_t ld) { return column * ld + row; }
};
enum layout_t { mem_row_major, mem_col_major };

template <class USE, int M, int N, int K, class T, class LAYOUT = void> struct fragment;
template <class T, class LAYOUT> struct fragment<matrix_a, 16, 16, 16, T, LAYOUT> { float x[16]; }; /* row lane / 2 */
template <class T, class LAYOUT> struct fragment<matrix_b, 16, 16, 16, T, LAYOUT> {
  float x[16][8];
};                                                                           /* columns lane % 2 * 8 .. + 7 */
template <> struct fragment<accumulator, 16, 16, 16, float> { float x[8]; }; /* both */
using accumulator_16 = fragment<accumulator, 16, 16, 16, float>;

static inline float as_float(__half v) { return __half2float(v); }
static inline float as_float(__nv_bfloat16 v) { return __bfloat162float(v); }
static inline unsigned lane() { return threadIdx.x % 32; }
static inline void aligned(const void *p, size_t element, unsigned ld) {
  simt::require((uintptr_t)p % 32 == 0, "a matrix in memory must start at a multiple of 32 bytes");
  simt::require(ld * element % 16 == 0, "a matrix's leading dimension must be a multiple of 16 bytes");
}

template <class T, class LAYOUT>
void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, LAYOUT> &f, const T *p, unsigned ld) {
  aligned(p, sizeof(T), ld);
  for (unsigned k = 0; k < 16; k++)
    f.x[k] = as_float(p[LAYOUT::at(lane() / 2, k, ld)]);
}
template <class T, class LAYOUT>
void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, LAYOUT> &f, const T *p, unsigned ld) {
  aligned(p, sizeof(T), ld);
  for (unsigned k = 0; k < 16; k++)
    for (unsigned j = 0; j < 8; j++)
      f.x[k][j] = as_float(p[LAYOUT::at(k, lane() % 2 * 8 + j, ld)]);
}
static inline void fill_fragment(accumulator_16 &f, float v) {
  for (float &x : f.x)
    x = v;
}
template <class T, class LA, class LB> void mma_sync(accumulator_16 &d, const fragment<matrix_a, 16, 16, 16, T, LA> &a,
                                                     const fragment<matrix_b, 16, 16, 16, T, LB> &b,
                                                     const accumulator_16 &c) {
  __syncwarp();
  for (unsigned j = 0; j < 8; j++)
    d.x[j] = c.x[j];
  for (unsigned k = 0; k < 16; k++)
    for (unsigned j = 0; j < 8; j++)
      d.x[j] += a.x[k] * b.x[k][j];
}
static inline void store_matrix_sync(float *p, const accumulator_16 &f, unsigned ld, layout_t layout) {
  aligned(p, 4, ld);
  for (unsigned j = 0; j < 8; j++) {
    const unsigned row = lane() / 2, column = lane() % 2 * 8 + j;
    p[layout == mem_row_major ? row_major::at(row, column, ld) : col_major::at(row, column, ld)] = f.x[j];
  }
}
} // namespace wmma
} // namespace nvcuda
#endif
