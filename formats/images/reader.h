/* What the registry of data sets knows of a file format. A reader is a row of functions; idx.h and cifar.h have one
 * each. Internal to formats/. */
#ifndef CMKD_FORMATS_IMAGES_READER_H
#define CMKD_FORMATS_IMAGES_READER_H
#include "cmkd/dataset.h"

typedef struct cmkd_image_reader {
  /* Fills n, pixels and labels of `data`, whose shape and class count are set, from the files of one split in `dir`. On
   * failure pixels and labels may be left for the caller to free. test: 1 for the test split, 0 for training. */
  cmkd_status (*read)(const char *dir, int test, cmkd_dataset *data, cmkd_error *err);
  int (*holds)(const char *dir, int test); /* 1: the split's first file is there, under any of its names */
  const char *files;                       /* for messages: what a folder should hold */
} cmkd_image_reader;
#endif
