/* IDX files (MNIST and its look-alikes), plain or gzipped. Not read: item types other than unsigned bytes, which no
 * such set uses. */
#include "formats/images/idx.h"
#include "base/bytes.h"
#include "base/file.h"
#include <stdlib.h>
#include <string.h>

#define MAX_FILE (256ull << 20) /* of inflated content: four times the largest MNIST */

cmkd_status cmkd_idx_parse(const uint8_t *bytes, size_t size, const char *name, int dims, cmkd_idx *out,
                           cmkd_error *err) {
  const char *what = dims == 3 ? "images" : "labels";
  if (size < 4 || bytes[0] || bytes[1])
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: not an IDX file (its first bytes should be 00 00 08 %02x)", name,
                     (unsigned)dims);
  if (bytes[2] != 8)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: IDX items of type 0x%02x; only unsigned bytes (0x08) are %s", name,
                     bytes[2], what);
  if (bytes[3] != dims)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: IDX with %u dimensions where %s have %d; is it the right file?", name,
                     bytes[3], what, dims);
  size_t header = 4 + 4 * (size_t)dims;
  if (size < header)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: truncated in its header (%zu bytes); fetch it again", name, size);
  uint64_t items = 1;
  for (int d = 0; d < dims; d++) {
    out->shape[d] = (uint32_t)cmkd_load_big(bytes + 4 + 4 * d, 4);
    if (out->shape[d] == 0) return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: empty (dimension %d is 0)", name, d);
    if (__builtin_mul_overflow(items, out->shape[d], &items))
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: absurd dimensions in the IDX header", name);
  }
  if (size - header < items)
    return cmkd_fail(err, CMKD_ERR_FORMAT,
                     "%s: truncated: its header promises %llu bytes, %zu are there; fetch it again", name,
                     (unsigned long long)items, size - header);
  if (size - header > items)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %llu bytes too many after the %u %s; fetch it again", name,
                     (unsigned long long)(size - header - items), out->shape[0], what);
  out->data = bytes + header;
  return CMKD_OK;
}

/* "train-images-idx3-ubyte" as distributed, "train-images.idx3-ubyte" as some unpackers write it; each plain or .gz. */
static char *find(const char *dir, int test, int dims) {
  static const char *const spelling[] = {"-", "."}, *const packing[] = {"", ".gz"};
  for (int i = 0; i < 4; i++) {
    char *name = cmkd_format("%s-%s%sidx%d-ubyte%s", test ? "t10k" : "train", dims == 3 ? "images" : "labels",
                             spelling[i / 2], dims, packing[i % 2]);
    char *path = name ? cmkd_path_join(dir, name) : NULL;
    free(name);
    if (path && cmkd_file_exists(path)) return path;
    free(path);
  }
  return NULL;
}

static int holds(const char *dir, int test) {
  char *path = find(dir, test, 3);
  free(path);
  return path != NULL;
}

static cmkd_status read_file(const char *dir, int test, int dims, char **path, uint8_t **bytes, cmkd_idx *idx,
                             cmkd_error *err) {
  *path = find(dir, test, dims);
  if (!*path)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: no %s-%s-idx%d-ubyte (or .gz) there; fetch the missing file", dir,
                     test ? "t10k" : "train", dims == 3 ? "images" : "labels", dims);
  size_t size;
  CMKD_TRY(cmkd_file_read_gz(*path, MAX_FILE, bytes, &size, err));
  return cmkd_idx_parse(*bytes, size, *path, dims, idx, err);
}

static cmkd_status fill(cmkd_dataset *data, const cmkd_idx *images, const cmkd_idx *labels, const char *image_path,
                        const char *label_path, cmkd_error *err) {
  if ((int64_t)images->shape[1] != data->height || (int64_t)images->shape[2] != data->width)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: images of %u x %u where %s has %d x %d; is it another data set?",
                     image_path, images->shape[1], images->shape[2], data->name, data->height, data->width);
  if (images->shape[0] != labels->shape[0])
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s has %u labels for the %u images of %s; they are not of one split",
                     label_path, labels->shape[0], images->shape[0], image_path);
  data->n = images->shape[0];
  size_t bytes = (size_t)data->n * (size_t)(data->height * data->width);
  data->pixels = malloc(bytes);
  data->labels = malloc((size_t)data->n * sizeof *data->labels);
  if (!data->pixels || !data->labels)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for %u images", image_path, data->n);
  memcpy(data->pixels, images->data, bytes);
  for (uint32_t i = 0; i < data->n; i++) {
    data->labels[i] = labels->data[i];
    if (data->labels[i] >= data->classes)
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "%s: label %d of sample %u is not in 0..%d; the file is damaged or of another data set",
                       label_path, data->labels[i], i, data->classes - 1);
  }
  return CMKD_OK;
}

static cmkd_status read_split(const char *dir, int test, cmkd_dataset *data, cmkd_error *err) {
  char *image_path = NULL, *label_path = NULL;
  uint8_t *image_bytes = NULL, *label_bytes = NULL;
  cmkd_idx images, labels;
  cmkd_status status = read_file(dir, test, 3, &image_path, &image_bytes, &images, err);
  if (status == CMKD_OK) status = read_file(dir, test, 1, &label_path, &label_bytes, &labels, err);
  if (status == CMKD_OK) status = fill(data, &images, &labels, image_path, label_path, err);
  free(image_path);
  free(label_path);
  free(image_bytes);
  free(label_bytes);
  return status;
}

const cmkd_image_reader cmkd_image_reader_idx = {
    read_split, holds,
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, plain or .gz"};
