/* One function per file format of data sets: bytes in, pixels (n, h, w, c) and labels out. Internal to formats/; the
 * registry in formats/images/dataset.c chooses among them. Names in messages are the caller's. */
#ifndef CMKD_FORMATS_IMAGES_READERS_H
#define CMKD_FORMATS_IMAGES_READERS_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/dataset.h"

/* A reader fills n, pixels and labels of `data` (whose shape and class count are set) from the files of one split in
 * `dir`; on failure it may leave pixels and labels allocated for the caller to free. `holds` says whether the split's
 * first file is there under any name. */
typedef struct cmkd_reader {
  cmkd_status (*read)(const char *dir, int test, cmkd_dataset *data, cmkd_error *err);
  int (*holds)(const char *dir, int test);
  const char *files; /* for messages: what a folder should hold */
} cmkd_reader;
extern const cmkd_reader cmkd_reader_idx, cmkd_reader_cifar10, cmkd_reader_cifar100;

/* IDX: 0 0 type dims, then dims big-endian sizes, then the items. Only unsigned bytes, exactly `dims` dimensions, exact
 * size. */
#define CMKD_IDX_MAX_DIMS 3
typedef struct cmkd_idx {
  uint32_t shape[CMKD_IDX_MAX_DIMS];
  const uint8_t *data; /* points into bytes */
} cmkd_idx;
cmkd_status cmkd_idx_parse(const uint8_t *bytes, size_t size, const char *name, int dims, cmkd_idx *out,
                           cmkd_error *err);

/* CIFAR records: one label byte (CIFAR-100: coarse, then fine), then 3 planes of 32 x 32. `coarse_classes` 0: one label
 * byte. Writes pixels (count, 32, 32, 3) and labels (count); `first` is the number of the first record, for messages.
 */
#define CMKD_CIFAR_PIXELS 3072
cmkd_status cmkd_cifar_decode(const uint8_t *records, uint32_t count, uint64_t first, const char *name,
                              int coarse_classes, int classes, uint8_t *pixels, int32_t *labels, cmkd_error *err);
#endif
