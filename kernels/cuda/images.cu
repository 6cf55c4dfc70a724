/* Images on the device: gather, crop, flip, normalise. A thread makes one output pixel. A seed picks crop and flip as
 * in base/views.c; tests compare every variant byte by byte. Not here: changing the size of an image. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/vector.h"

#define IMAGE_THREADS 256

/* Places of a crop in each direction (base/views.c). */
enum { CROP_SHIFTS = 2 * CMKD_CROP_PAD + 1 };

typedef struct image_args {
  const uint8_t *pixels;
  const uint32_t *rows;
  const uint64_t *seeds;
  const float *table;
  int64_t total; /* output pixels */
  int policy, variants, h, w, c, stride_c;
} image_args;

/* Where output pixel `at` comes from, or -1 for outside; in pixels from the start of the data set. */
static __device__ __forceinline__ int64_t source_of(const image_args &a, int64_t at) {
  const int pixels = a.h * a.w, pixel = (int)(at % pixels), y = pixel / a.w;
  const int64_t i = at / pixels;
  int x = pixel % a.w, dy = CMKD_CROP_PAD, dx = CMKD_CROP_PAD;
  if (a.seeds) { /* none: every row is clean, the identity */
    uint32_t variant = (uint32_t)(a.seeds[i] % (uint32_t)a.variants);
    if (a.policy & CMKD_AUGMENT_FLIP) {
      if (variant % 2) x = a.w - 1 - x;
      variant /= 2;
    }
    if (a.policy & CMKD_AUGMENT_CROP) {
      dx = (int)(variant % CROP_SHIFTS);
      dy = (int)(variant / CROP_SHIFTS);
    }
  }
  const int sy = y + dy - CMKD_CROP_PAD, sx = x + dx - CMKD_CROP_PAD;
  if (sy < 0 || sy >= a.h || sx < 0 || sx >= a.w) return -1;
  return (int64_t)a.rows[i] * pixels + sy * a.w + sx;
}

__global__ void __launch_bounds__(IMAGE_THREADS)
    augment_bytes_kernel(const __grid_constant__ image_args a, uint8_t *target) {
  const int64_t at = (int64_t)blockIdx.x * IMAGE_THREADS + threadIdx.x;
  if (at >= a.total) return;
  const int64_t from = source_of(a, at);
  for (int k = 0; k < a.c; k++)
    target[at * a.c + k] = from < 0 ? (uint8_t)0 : a.pixels[from * a.c + k];
}

template <class T> __global__ void __launch_bounds__(IMAGE_THREADS)
    augment_kernel(const __grid_constant__ image_args a, T *target) {
  const int64_t at = (int64_t)blockIdx.x * IMAGE_THREADS + threadIdx.x;
  if (at >= a.total) return;
  const int64_t from = source_of(a, at);
  T *out = target + at * a.stride_c;
  for (int first = 0; first < a.stride_c; first += 8) {
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; j++)
      v[j] = first + j < a.c
                 ? __ldg(a.table + (first + j) * 256 + (from < 0 ? 0 : (int)a.pixels[from * a.c + first + j]))
                 : 0;
    if (a.stride_c % 8 == 0)
      store8(out + first, v);
    else
      for (int j = 0; j < 8 && first + j < a.stride_c; j++)
        from_float(out + first + j, v[j]);
  }
}

static cmkd_status prepare(image_args *a, const cmkd_gather *g, int stride_c, unsigned *blocks, cmkd_error *err) {
  const int64_t total = (int64_t)g->count * g->h * g->w;
  if (!g->pixels || !g->rows || g->count < 1 || g->h < 1 || g->w < 1 || g->c < 1 || g->h > 4096 || g->w > 4096 ||
      stride_c < g->c || stride_c > 1024 || total > (int64_t)IMAGE_THREADS * 2147483647)
    return cmkd_fail(err, CMKD_ERR_VALUE, "augment: %d images of %d x %d x %d into %d channels are out of range",
                     g->count, g->h, g->w, g->c, stride_c);
  memset(a, 0, sizeof *a);
  a->pixels = g->pixels;
  a->rows = g->rows;
  a->seeds = g->seeds;
  a->total = total;
  a->policy = (int)g->policy;
  a->variants = (int)cmkd_policy_variants(g->policy);
  a->h = g->h;
  a->w = g->w;
  a->c = g->c;
  a->stride_c = stride_c;
  *blocks = (unsigned)((total + IMAGE_THREADS - 1) / IMAGE_THREADS);
  return CMKD_OK;
}

cmkd_status cmkd_cuda_augment_bytes(const cmkd_gather *gather, uint8_t *target, void *stream, cmkd_error *err) {
  image_args a;
  unsigned blocks = 0;
  CMKD_TRY(prepare(&a, gather, gather->c, &blocks, err));
  CMKD_LAUNCH(augment_bytes_kernel, dim3(blocks), dim3(IMAGE_THREADS), 0, (cudaStream_t)stream, a, target);
  return launch_status("augment", err);
}

cmkd_status cmkd_cuda_augment(const cmkd_gather *gather, const float *table, int stride_c, cmkd_dtype dtype,
                              void *target, void *stream, cmkd_error *err) {
  image_args a;
  unsigned blocks = 0;
  if (!float_dtype(dtype)) return cmkd_fail(err, CMKD_ERR_VALUE, "augment: dtype %d is no float", (int)dtype);
  CMKD_TRY(prepare(&a, gather, stride_c, &blocks, err));
  a.table = table;
  by_dtype(dtype, [&](auto *t) {
    auto kernel = augment_kernel<std::remove_pointer_t<decltype(t)>>;
    CMKD_LAUNCH(kernel, dim3(blocks), dim3(IMAGE_THREADS), 0, (cudaStream_t)stream, a, (decltype(t))target);
  });
  return launch_status("augment", err);
}
