/* Writes a weight file, reads it back as any program would (safetensors or PyTorch's .pth) and lists its tensors.
 *
 *     cc weights.c $(pkg-config --cflags --libs cmkd)
 *     ./a.out FILE.safetensors */
#include <inttypes.h>
#include <stdio.h>
#include "cmkd/dtype.h"
#include "cmkd/weights.h"

static cmkd_status write_some(const char *path, cmkd_error *err) {
  static const float weight[2][3] = {{1, 2, 3}, {4, 5, 6}};
  static const int64_t batches[1] = {240};
  const cmkd_tensor tensors[] = {
      {.name = "fc.weight", .dtype = CMKD_F32, .dims = 2, .shape = {2, 3}, .count = 6, .data = weight},
      {.name = "num_batches", .dtype = CMKD_I64, .dims = 0, .count = 1, .data = batches},
  };
  const char *keys[] = {"arch", "dataset"}, *values[] = {"linear", "made-up"};
  return cmkd_weights_write(path, tensors, 2, keys, values, 2, err);
}

static cmkd_status list(const char *path, cmkd_error *err) {
  cmkd_weights *weights;
  CMKD_TRY(cmkd_weights_read(path, &weights, err));
  const char *arch = cmkd_weights_meta(weights, "arch");
  printf("%d tensors, arch %s\n", weights->count, arch ? arch : "not said");
  for (int i = 0; i < weights->count; i++) {
    const cmkd_tensor *t = &weights->tensors[i];
    printf("%s: %s, shape (", t->name, cmkd_dtype_name(t->dtype));
    for (int d = 0; d < t->dims; d++)
      printf("%s%" PRId64, d ? ", " : "", t->shape[d]);
    printf("), %zu bytes\n", (size_t)t->count * cmkd_dtype_size(t->dtype));
  }
  const cmkd_tensor *fc = cmkd_weights_find(weights, "fc.weight");
  if (fc && fc->count == 6) {
    float numbers[6]; /* whatever the file's type is */
    cmkd_tensor_to_float(fc, numbers);
    printf("fc.weight[1][2] = %g\n", numbers[5]);
  }
  cmkd_weights_free(weights);
  return CMKD_OK;
}

int main(int argc, char **argv) {
  cmkd_error err;
  if (argc != 2) {
    fprintf(stderr, "usage: weights FILE.safetensors (it is written)\n");
    return 2;
  }
  if (write_some(argv[1], &err) != CMKD_OK || list(argv[1], &err) != CMKD_OK) {
    fprintf(stderr, "%s\n", err.message);
    return 1;
  }
  return 0;
}
