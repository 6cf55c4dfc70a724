/* Data sets as users meet them: found or not, whole or damaged, and their fingerprints. Small IDX sets are made here;
 * CIFAR files are sparse (exact size, all zeros); the real ones are used where they are. */
#include "tests/support.h"
#include "cmkd/dataset.h"
#include "base/file.h"
#include "base/hash.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static void put(const char *dir, const char *name, const void *bytes, size_t size) {
  cmkd_error err = {0};
  char *path = cmkd_path_join(dir, name);
  assert_ok(cmkd_file_write(path, &(cmkd_piece){bytes, size}, 1, &err));
  free(path);
}

static void big(uint8_t *p, uint32_t v) {
  for (int i = 0; i < 4; i++)
    p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* An IDX pair of n images of 28 x 28, label i % 10. */
static void put_idx(const char *dir, const char *split, uint32_t n) {
  size_t size = 16 + (size_t)n * 784;
  uint8_t *images = malloc(size), *labels = malloc(8 + n);
  char name[64];
  big(images, 0x803);
  big(images + 4, n);
  big(images + 8, 28);
  big(images + 12, 28);
  for (size_t i = 16; i < size; i++)
    images[i] = (uint8_t)(i * 7 + i / 784);
  big(labels, 0x801);
  big(labels + 4, n);
  for (uint32_t i = 0; i < n; i++)
    labels[8 + i] = (uint8_t)(i % 10);
  snprintf(name, sizeof name, "%s-images-idx3-ubyte", split);
  put(dir, name, images, size);
  snprintf(name, sizeof name, "%s-labels-idx1-ubyte", split);
  put(dir, name, labels, 8 + n);
  free(images);
  free(labels);
}

static cmkd_status open_in(const char *name, const char *dir, const char *split, cmkd_dataset **out, cmkd_error *err) {
  char spec[2048];
  snprintf(spec, sizeof spec, "%s:%s", name, dir);
  err->message[0] = 0;
  return cmkd_dataset_open(spec, split, NULL, out, err);
}

#define assert_says(text) \
  do { \
    if (!strstr(err.message, text)) fail_msg("'%s' does not say '%s'", err.message, text); \
  } while (0)

static void names(void **state) {
  (void)state;
  cmkd_error err = {0};
  char name[32];
  assert_ok(cmkd_dataset_name("CIFAR-100:/some/where", name, &err));
  assert_string_equal(name, "cifar100");
  assert_ok(cmkd_dataset_name("fashion_mnist", name, &err));
  assert_string_equal(name, "fashion-mnist");
  assert_int_equal(cmkd_dataset_name("cifar1000", name, &err), CMKD_ERR_USAGE);
  assert_says("did you mean 'cifar100'");
  assert_int_equal(cmkd_dataset_name("cifar", name, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_dataset_name("", name, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_dataset_name(":", name, &err), CMKD_ERR_USAGE);
  cmkd_dataset *data;
  assert_int_equal(cmkd_dataset_open("mnist", "validation", NULL, &data, &err), CMKD_ERR_USAGE);
  assert_says("train and test");
  for (const char *const *n = cmkd_dataset_names(); *n; n++) {
    assert_ok(cmkd_dataset_name(*n, name, &err));
    assert_string_equal(name, *n);
  }
}

static void reads_idx(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_dataset *data;
  const char *dir = scratch_dir();
  put_idx(dir, "train", 37);
  put_idx(dir, "t10k", 5);
  assert_ok(open_in("mnist", dir, "train", &data, &err));
  assert_string_equal(data->name, "mnist");
  assert_string_equal(data->split, "train");
  assert_string_equal(data->path, dir);
  assert_int_equal(data->n, 37);
  assert_true(data->height == 28 && data->width == 28 && data->channels == 1 && data->classes == 10);
  assert_int_equal(data->pixels[784 + 3], (uint8_t)((16 + 784 + 3) * 7 + 1));
  assert_int_equal(data->labels[13], 3);
  /* the fingerprint, from its definition */
  uint8_t *bytes = malloc(14 + 16 + 37 * 784 + 37 * 4);
  memcpy(bytes, "cmkd-dataset-1", 14);
  memcpy(bytes + 14, (uint8_t[]){37, 0, 0, 0, 28, 0, 0, 0, 28, 0, 0, 0, 1, 0, 0, 0}, 16);
  memcpy(bytes + 30, data->pixels, 37 * 784);
  memset(bytes + 30 + 37 * 784, 0, 37 * 4);
  for (int i = 0; i < 37; i++)
    bytes[30 + 37 * 784 + 4 * i] = (uint8_t)(i % 10);
  char hex[65], kept[65];
  cmkd_sha256(bytes, 30 + 37 * 784 + 37 * 4, hex);
  assert_string_equal(data->fingerprint, hex);
  memcpy(kept, hex, 65);
  free(bytes);
  cmkd_dataset_close(data);

  /* slashes at the end, a link and ~ name the same folder */
  char spec[1200];
  snprintf(spec, sizeof spec, "%s///", dir);
  assert_ok(open_in("MNIST", spec, "train", &data, &err));
  assert_string_equal(data->path, dir);
  cmkd_dataset_close(data);
  const cmkd_dataset_options home = {.home = dir};
  assert_ok(cmkd_dataset_open("mnist:~", "train", &home, &data, &err));
  cmkd_dataset_close(data);
  assert_ok(cmkd_dataset_open("mnist:~/", "test", &home, &data, &err));
  assert_int_equal(data->n, 5);
  cmkd_dataset_close(data);

  /* gzipped, in another spelling, below the folder: the same data set */
  const char *other = scratch_dir();
  assert_int_equal(run_command(NULL,
                               "mkdir -p %s/MNIST/raw && cp %s/train-* %s/MNIST/raw && cd %s/MNIST/raw && gzip "
                               "train-images-idx3-ubyte && mv train-labels-idx1-ubyte train-labels.idx1-ubyte",
                               other, dir, other, other),
                   0);
  assert_ok(open_in("mnist", other, "train", &data, &err));
  assert_string_equal(data->fingerprint, kept);
  cmkd_dataset_close(data);

  const cmkd_dataset_options search = {.search = other};
  assert_ok(cmkd_dataset_open("mnist", "train", &search, &data, &err));
  assert_string_equal(data->fingerprint, kept);
  cmkd_dataset_close(data);
}

static void says_where_it_looked(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_dataset *data;
  const char *dir = scratch_dir();
  const cmkd_dataset_options search = {.search = dir};
  assert_int_equal(cmkd_dataset_open("mnist", "train", &search, &data, &err), CMKD_ERR_IO);
  assert_null(data);
  assert_says(dir);
  assert_says("data/mnist");
  assert_says("give the data set as mnist:DIR");
  assert_int_equal(open_in("fashion-mnist", "/nonexistent/x", "train", &data, &err), CMKD_ERR_IO);
  assert_says("/nonexistent/x: no such folder");
  assert_int_equal(open_in("fashion-mnist", "/dev/null", "train", &data, &err), CMKD_ERR_IO);
  assert_says("not a folder");
  assert_int_equal(open_in("fashion-mnist", "", "train", &data, &err), CMKD_ERR_USAGE);
  assert_int_equal(open_in("cifar100", dir, "test", &data, &err), CMKD_ERR_IO);
  assert_says("test.bin");
}

static void refuses_damaged_idx(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_dataset *data;
  static const struct {
    const char *command, *says;
  } cases[] = {
      {"head -c 1000 train-images-idx3-ubyte > x && mv x train-images-idx3-ubyte", "truncated"},
      {"head -c 10 train-images-idx3-ubyte > x && mv x train-images-idx3-ubyte", "header"},
      {": > train-images-idx3-ubyte", "not an IDX file"},
      {": > train-labels-idx1-ubyte", "not an IDX file"},
      {"echo >> train-images-idx3-ubyte", "1 bytes too many"},
      {"echo >> train-labels-idx1-ubyte", "1 bytes too many"},
      {"rm train-labels-idx1-ubyte", "train-labels-idx1-ubyte"},
      {"rm train-labels-idx1-ubyte && mkdir train-labels-idx1-ubyte", "folder"},
      {"cp t10k-labels-idx1-ubyte train-labels-idx1-ubyte", "5 labels for the 37 images"},
      {"cp train-images-idx3-ubyte train-labels-idx1-ubyte", "dimensions"},
      {"printf '\\013' | dd of=train-labels-idx1-ubyte bs=1 seek=20 conv=notrunc", "label 11 of sample 12"},
      {"printf '\\020' | dd of=train-images-idx3-ubyte bs=1 seek=11 conv=notrunc", "too many"},
      {"printf '\\015' | dd of=train-images-idx3-ubyte bs=1 seek=2 conv=notrunc", "type 0x0d"},
      {"printf '\\377\\377\\377\\377\\377\\377\\377\\377\\377\\377\\377\\377' | dd of=train-images-idx3-ubyte bs=1 "
       "seek=4 conv=notrunc",
       "absurd"},
      {"printf '\\000\\000\\000\\000' | dd of=train-images-idx3-ubyte bs=1 seek=4 conv=notrunc", "empty"},
      {"gzip train-images-idx3-ubyte && head -c 300 train-images-idx3-ubyte.gz > x && mv x train-images-idx3-ubyte.gz",
       "train-images-idx3-ubyte.gz"},
      {"gzip train-images-idx3-ubyte && printf 'XXXX' | dd of=train-images-idx3-ubyte.gz bs=1 seek=100 conv=notrunc",
       "train-images-idx3-ubyte.gz"},
      {"printf '\\000\\000\\000\\060\\000\\000\\000\\020\\000\\000\\000\\020' | dd of=train-images-idx3-ubyte bs=1 "
       "seek=4 conv=notrunc && head -c 12304 train-images-idx3-ubyte > x && mv x train-images-idx3-ubyte",
       "16 x 16"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *dir = scratch_dir();
    put_idx(dir, "train", 37);
    put_idx(dir, "t10k", 5);
    assert_int_equal(run_command(NULL, "cd '%s' && %s", dir, cases[i].command), 0);
    cmkd_status status = open_in("mnist", dir, "train", &data, &err);
    if (status == CMKD_OK || data || !strstr(err.message, cases[i].says) || !strstr(err.message, dir))
      fail_msg("%s: status %d '%s'", cases[i].command, status, err.message);
  }
}

static void sparse(const char *dir, const char *name, off_t size) {
  char *path = cmkd_path_join(dir, name);
  int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0666);
  assert_true(fd >= 0 && ftruncate(fd, size) == 0);
  close(fd);
  free(path);
}

static void poke(const char *dir, const char *name, off_t at, uint8_t byte) {
  char *path = cmkd_path_join(dir, name);
  int fd = open(path, O_WRONLY);
  assert_true(fd >= 0 && pwrite(fd, &byte, 1, at) == 1);
  close(fd);
  free(path);
}

static void cifar_binaries(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_dataset *data;
  const char *dir = scratch_dir();
  char *inner = cmkd_path_join(dir, "cifar-100-binary");
  assert_int_equal(mkdir(inner, 0777), 0);
  sparse(inner, "test.bin", 30740000);
  poke(inner, "test.bin", 3074 * 5 + 1, 99);            /* fine label of record 5 */
  poke(inner, "test.bin", 3074 * 5 + 2 + 1024 + 33, 7); /* green of (1, 1) */
  assert_ok(open_in("cifar100", dir, "test", &data, &err));
  assert_true(data->n == 10000 && data->channels == 3 && data->classes == 100);
  assert_int_equal(data->labels[5], 99);
  assert_string_equal(data->class_names[99], "worm");
  assert_int_equal(data->pixels[5 * 3072 + 33 * 3 + 1], 7);
  assert_string_equal(data->path, inner);
  cmkd_dataset_close(data);
  poke(inner, "test.bin", 3074 * 5 + 1, 100);
  assert_int_equal(open_in("cifar100", dir, "test", &data, &err), CMKD_ERR_VALUE);
  assert_says("label 100 of record 5");
  poke(inner, "test.bin", 3074 * 5 + 1, 0);
  poke(inner, "test.bin", 3074 * 6, 20);
  assert_int_equal(open_in("cifar100", dir, "test", &data, &err), CMKD_ERR_VALUE);
  assert_says("coarse label 20 of record 6");
  sparse(inner, "test.bin", 30740000 - 3074); /* cut at a record's end */
  assert_int_equal(open_in("cifar100", dir, "test", &data, &err), CMKD_ERR_FORMAT);
  assert_says("truncated");
  sparse(inner, "test.bin", 30740001);
  assert_int_equal(open_in("cifar100", dir, "test", &data, &err), CMKD_ERR_FORMAT);
  assert_says("oversized");
  assert_int_equal(open_in("cifar100", dir, "train", &data, &err), CMKD_ERR_IO);
  assert_says("found no train split");
  assert_int_equal(open_in("cifar10", dir, "test", &data, &err), CMKD_ERR_IO);
  assert_says("test_batch.bin");

  const char *ten = scratch_dir();
  for (int i = 1; i < 5; i++) {
    char name[32];
    snprintf(name, sizeof name, "data_batch_%d.bin", i);
    sparse(ten, name, 30730000);
  }
  assert_int_equal(open_in("cifar10", ten, "train", &data, &err), CMKD_ERR_IO);
  assert_says("data_batch_5.bin");
  sparse(ten, "test_batch.bin", 30730000);
  poke(ten, "test_batch.bin", 3073 * 9999, 9);
  assert_ok(open_in("cifar10", ten, "test", &data, &err));
  assert_int_equal(data->labels[9999], 9);
  cmkd_dataset_close(data);
  poke(ten, "test_batch.bin", 0, 10);
  assert_int_equal(open_in("cifar10", ten, "test", &data, &err), CMKD_ERR_VALUE);
  free(inner);
}

static void real_fashion_mnist(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_dataset *data;
  if (access("/usr/share/datasets/fashion-mnist", R_OK) != 0) {
    printf("SKIP: Debian's dataset-fashion-mnist is not installed\n");
    skip();
  }
  assert_ok(cmkd_dataset_open("fashion-mnist", "test", NULL, &data, &err)); /* found without being told */
  assert_int_equal(data->n, 10000);
  int count[10] = {0};
  double sum = 0;
  for (uint32_t i = 0; i < data->n; i++)
    count[data->labels[i]]++;
  for (int i = 0; i < 10; i++)
    assert_int_equal(count[i], 1000);
  for (size_t i = 0; i < (size_t)data->n * 784; i++)
    sum += data->pixels[i];
  assert_true(sum / (10000.0 * 784 * 255) > 0.28 && sum / (10000.0 * 784 * 255) < 0.295);
  assert_string_equal(data->class_names[9], "Ankle boot");
  cmkd_dataset_close(data);
}

static void real_cifar100(void **state) {
  (void)state;
  cmkd_error err = {0};
  cmkd_dataset *data;
  const char *dir = shared_cifar("cifar-100");
  if (!dir) skip();
  assert_ok(open_in("cifar100", dir, "test", &data, &err));
  int count[100] = {0};
  double sum[3] = {0};
  for (uint32_t i = 0; i < data->n; i++)
    count[data->labels[i]]++;
  for (int i = 0; i < 100; i++)
    assert_int_equal(count[i], 100);
  for (size_t i = 0; i < (size_t)data->n * 1024; i++)
    for (int k = 0; k < 3; k++)
      sum[k] += data->pixels[3 * i + k];
  for (int k = 0; k < 3; k++) {
    double mean = sum[k] / (10000.0 * 1024 * 255);
    assert_true(mean > data->mean[k] - .01 && mean < data->mean[k] + .01);
  }
  cmkd_dataset_close(data);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(names),
                                     cmocka_unit_test(reads_idx),
                                     cmocka_unit_test(says_where_it_looked),
                                     cmocka_unit_test(refuses_damaged_idx),
                                     cmocka_unit_test(cifar_binaries),
                                     cmocka_unit_test(real_fashion_mnist),
                                     cmocka_unit_test(real_cifar100)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
