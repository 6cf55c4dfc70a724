/* CIFAR-10 and CIFAR-100 in their official binary form, exact sizes only: a file cut at a record boundary would
 * otherwise pass for a smaller data set. Not read: the Python (pickle) form. */
#include "formats/images/cifar.h"
#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PLANE 1024
#define AT_ONCE 512 /* records read at a time */

/* The files of a split, `records` records each. */
typedef struct layout {
  const char *const *train, *const *test;
  uint32_t train_records, test_records;
  int coarse_classes;
} layout;
static const char *const train10[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                      "data_batch_4.bin", "data_batch_5.bin", NULL};
static const char *const test10[] = {"test_batch.bin", NULL}, *const train100[] = {"train.bin", NULL},
                         *const test100[] = {"test.bin", NULL};
static const layout cifar10 = {train10, test10, 10000, 10000, 0}, cifar100 = {train100, test100, 50000, 10000, 20};

/* Label bytes before an image; the last one is the label that counts. */
static size_t label_bytes(int coarse_classes) { return coarse_classes ? 2 : 1; }

cmkd_status cmkd_cifar_decode(const cmkd_cifar_records *r, uint8_t *pixels, int32_t *labels, cmkd_error *err) {
  size_t head = label_bytes(r->coarse_classes), record = head + CMKD_CIFAR_PIXELS;
  for (uint32_t i = 0; i < r->count; i++) {
    const uint8_t *in = r->bytes + i * record, *planes = in + head;
    if (r->coarse_classes && in[0] >= r->coarse_classes)
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "%s: coarse label %u of record %llu is not in 0..%d; the file is damaged, fetch it again",
                       r->name, in[0], (unsigned long long)(r->first + i), r->coarse_classes - 1);
    if (in[head - 1] >= r->classes)
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "%s: label %u of record %llu is not in 0..%d; the file is damaged, fetch it again", r->name,
                       in[head - 1], (unsigned long long)(r->first + i), r->classes - 1);
    labels[i] = in[head - 1];
    uint8_t *out = pixels + (size_t)i * CMKD_CIFAR_PIXELS;
    for (int p = 0; p < PLANE; p++) {
      out[3 * p] = planes[p];
      out[3 * p + 1] = planes[PLANE + p];
      out[3 * p + 2] = planes[2 * PLANE + p];
    }
  }
  return CMKD_OK;
}

static cmkd_status check_size(int fd, const char *path, uint64_t want, cmkd_error *err) {
  struct stat st;
  if (fstat(fd, &st) != 0) return cmkd_fail(err, CMKD_ERR_IO, "%s: %s", path, strerror(errno));
  if (!S_ISREG(st.st_mode)) return cmkd_fail(err, CMKD_ERR_IO, "%s: not a file", path);
  if ((uint64_t)st.st_size != want)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: %s: %lld bytes where the official file has %llu; fetch it again", path,
                     (uint64_t)st.st_size < want ? "truncated" : "oversized", (long long)st.st_size,
                     (unsigned long long)want);
  return CMKD_OK;
}

/* Decodes one file of `count` records, AT_ONCE at a time: memory never holds all of it twice. */
static cmkd_status read_records(const char *path, const layout *l, uint32_t count, int classes, uint8_t *pixels,
                                int32_t *labels, cmkd_error *err) {
  size_t record = label_bytes(l->coarse_classes) + CMKD_CIFAR_PIXELS;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return cmkd_fail(err, CMKD_ERR_IO, "%s: %s", path, strerror(errno));
  uint8_t *buffer = NULL;
  cmkd_status status = check_size(fd, path, (uint64_t)count * record, err);
  if (status == CMKD_OK && !(buffer = malloc(AT_ONCE * record)))
    status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  for (uint32_t at = 0; status == CMKD_OK && at < count; at += AT_ONCE) {
    uint32_t some = count - at < AT_ONCE ? count - at : AT_ONCE;
    status = cmkd_pread_full(fd, buffer, some * record, (uint64_t)at * record, path, err);
    if (status == CMKD_OK)
      status = cmkd_cifar_decode(&(cmkd_cifar_records){buffer, some, at, path, l->coarse_classes, classes},
                                 pixels + (size_t)at * CMKD_CIFAR_PIXELS, labels + at, err);
  }
  free(buffer);
  close(fd);
  return status;
}

static cmkd_status read_split(const layout *l, const char *dir, int test, cmkd_dataset *data, cmkd_error *err) {
  const char *const *files = test ? l->test : l->train;
  uint32_t each = test ? l->test_records : l->train_records, count = 0;
  while (files[count])
    count++;
  data->n = each * count;
  data->pixels = malloc((size_t)data->n * CMKD_CIFAR_PIXELS);
  data->labels = malloc((size_t)data->n * sizeof *data->labels);
  if (!data->pixels || !data->labels)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for %u images", dir, data->n);
  for (uint32_t i = 0; i < count; i++) {
    char *path = cmkd_path_join(dir, files[i]);
    if (!path) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", dir);
    cmkd_status status = read_records(path, l, each, data->classes, data->pixels + (size_t)i * each * CMKD_CIFAR_PIXELS,
                                      data->labels + (size_t)i * each, err);
    free(path);
    if (status != CMKD_OK) return status;
  }
  return CMKD_OK;
}

static int holds(const layout *l, const char *dir, int test) {
  char *path = cmkd_path_join(dir, test ? l->test[0] : l->train[0]);
  int yes = path && cmkd_file_exists(path);
  free(path);
  return yes;
}

static cmkd_status read10(const char *dir, int test, cmkd_dataset *data, cmkd_error *err) {
  return read_split(&cifar10, dir, test, data, err);
}
static cmkd_status read100(const char *dir, int test, cmkd_dataset *data, cmkd_error *err) {
  return read_split(&cifar100, dir, test, data, err);
}
static int holds10(const char *dir, int test) { return holds(&cifar10, dir, test); }
static int holds100(const char *dir, int test) { return holds(&cifar100, dir, test); }
const cmkd_image_reader cmkd_image_reader_cifar10 = {
    read10, holds10, "data_batch_1.bin to data_batch_5.bin and test_batch.bin (of cifar-10-binary.tar.gz)"};
const cmkd_image_reader cmkd_image_reader_cifar100 = {read100, holds100,
                                                      "train.bin and test.bin (of cifar-100-binary.tar.gz)"};
