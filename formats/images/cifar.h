/* CIFAR's binary records: one label byte (CIFAR-100: coarse, then fine), then 3 planes of 32 x 32. */
#ifndef CMKD_FORMATS_IMAGES_CIFAR_H
#define CMKD_FORMATS_IMAGES_CIFAR_H
#include <stdint.h>
#include "formats/images/reader.h"

extern const cmkd_image_reader cmkd_image_reader_cifar10, cmkd_image_reader_cifar100;

#define CMKD_CIFAR_PIXELS 3072 /* bytes of an image */
typedef struct cmkd_cifar_records {
  const uint8_t *bytes; /* (count) records */
  uint32_t count;
  uint64_t first;     /* number of the first one in its file, for messages */
  const char *name;   /* of the file, for messages */
  int coarse_classes; /* 0: one label byte a record */
  int classes;
} cmkd_cifar_records;
/* Writes pixels (count, 32, 32, 3) and labels (count). A label out of range is CMKD_ERR_VALUE. */
cmkd_status cmkd_cifar_decode(const cmkd_cifar_records *records, uint8_t *pixels, int32_t *labels, cmkd_error *err);
#endif
