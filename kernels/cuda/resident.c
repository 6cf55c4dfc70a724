/* Data that stays in device memory for a whole run where it fits: images as bytes, and a target's rows (teacher logits)
 * as their cache stores them. What does not fit stays on the host and goes through the queue, step by step; the
 * backend's description then says so. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/backend.h"

#define BYTES_TO_LEAVE ((size_t)1 << 30) /* device memory for models, which come later */

static int fits(const cmkd_backend *b, size_t bytes) {
  size_t free_bytes = 0, total;
  return !b->streamed && cudaMemGetInfo(&free_bytes, &total) == cudaSuccess && free_bytes > BYTES_TO_LEAVE &&
         bytes <= free_bytes - BYTES_TO_LEAVE;
}

/* Once in the description. */
static void say(cmkd_backend *b, const char *what) {
  const size_t length = strlen(b->text);
  if (!strstr(b->text, what)) snprintf(b->text + length, sizeof b->text - length, ", %s", what);
}

cmkd_status cmkd_cuda_images_create(cmkd_backend *b, const cmkd_image_set *set, cmkd_be_images **out, cmkd_error *err) {
  const size_t bytes = (size_t)set->n * (size_t)set->h * (size_t)set->w * (size_t)set->c;
  *out = NULL;
  CMKD_TRY(cmkd_cuda_use(b, err));
  cmkd_be_images *images = *out = calloc(1, sizeof *images);
  if (!images) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  *images = (cmkd_be_images){.backend = b, .set = *set, .serial = ++b->serial};
  if (!fits(b, bytes)) {
    say(b, "images on the host");
    return CMKD_OK;
  }
  cmkd_status status = cmkd_cuda_status(cudaMalloc((void **)&images->resident, bytes), "images", err);
  if (status == CMKD_OK) status = cmkd_cuda_put(b, images->resident, set->pixels, bytes, "images", err);
  if (status == CMKD_OK) return CMKD_OK;
  cmkd_cuda_images_free(images);
  *out = NULL;
  return status;
}

void cmkd_cuda_images_free(cmkd_be_images *images) {
  if (!images) return;
  (void)cmkd_cuda_use(images->backend, NULL);
  (void)cudaFree(images->resident);
  free(images);
}

cmkd_status cmkd_cuda_rows_create(cmkd_backend *b, const char *codec, uint64_t n, int classes, cmkd_be_rows **out,
                                  cmkd_error *err) {
  static const struct {
    const char *codec;
    cmkd_dtype dtype;
  } known[] = {{"f32", CMKD_F32}, {"f16", CMKD_F16}, {"u8sqrt", CMKD_U8}};
  size_t kind = 0, bytes;
  *out = NULL;
  while (kind < 3 && strcmp(codec, known[kind].codec))
    kind++;
  if (kind == 3 || n > UINT32_MAX || classes < 1)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "codec %.20s, %llu rows: not kept on the device", codec,
                     (unsigned long long)n);
  CMKD_TRY(cmkd_cuda_use(b, err));
  bytes = (size_t)n * (size_t)classes * cmkd_dtype_size(known[kind].dtype);
  if (!fits(b, bytes + 4 * (size_t)n)) {
    say(b, "teacher rows on the host");
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%.0f MB of teacher rows do not fit on the device", 1e-6 * (double)bytes);
  }
  cmkd_be_rows *rows = *out = calloc(1, sizeof *rows);
  if (!rows) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  *rows = (cmkd_be_rows){.backend = b, .dtype = known[kind].dtype, .n = n, .width = classes, .serial = ++b->serial};
  cmkd_status status = cmkd_cuda_status(cudaMalloc((void **)&rows->data, bytes), "teacher rows", err);
  if (status == CMKD_OK && rows->dtype == CMKD_U8)
    status = cmkd_cuda_status(cudaMalloc((void **)&rows->row_max, (size_t)n * 2), "teacher rows", err);
  if (status == CMKD_OK && rows->dtype == CMKD_U8)
    status = cmkd_cuda_status(cudaMalloc((void **)&rows->row_range, (size_t)n * 2), "teacher rows", err);
  if (status == CMKD_OK) return CMKD_OK;
  cmkd_cuda_rows_free(rows);
  *out = NULL;
  return status;
}

cmkd_status cmkd_cuda_rows_write(cmkd_be_rows *r, uint64_t first, uint64_t count, const void *data,
                                 const uint16_t *row_max, const uint16_t *row_range, cmkd_error *err) {
  const size_t row = (size_t)r->width * cmkd_dtype_size(r->dtype);
  if (first > r->n || count > r->n - first || (r->dtype == CMKD_U8 && (!row_max || !row_range)))
    return cmkd_fail(err, CMKD_ERR_VALUE, "teacher rows %llu .. are out of range", (unsigned long long)first);
  CMKD_TRY(cmkd_cuda_use(r->backend, err));
  CMKD_TRY(cmkd_cuda_put(r->backend, r->data + (size_t)first * row, data, (size_t)count * row, "teacher rows", err));
  if (r->dtype != CMKD_U8) return CMKD_OK;
  CMKD_TRY(cmkd_cuda_put(r->backend, r->row_max + first, row_max, (size_t)count * 2, "teacher rows", err));
  return cmkd_cuda_put(r->backend, r->row_range + first, row_range, (size_t)count * 2, "teacher rows", err);
}

void cmkd_cuda_rows_free(cmkd_be_rows *rows) {
  if (!rows) return;
  (void)cmkd_cuda_use(rows->backend, NULL);
  (void)cudaFree(rows->data);
  (void)cudaFree(rows->row_max);
  (void)cudaFree(rows->row_range);
  free(rows);
}
