/* IDX files: 0 0 type dims, then dims big-endian sizes, then the items. */
#ifndef CMKD_FORMATS_IMAGES_IDX_H
#define CMKD_FORMATS_IMAGES_IDX_H
#include <stddef.h>
#include <stdint.h>
#include "formats/images/reader.h"

extern const cmkd_image_reader cmkd_image_reader_idx; /* MNIST and its look-alikes, plain or gzipped */

#define CMKD_IDX_MAX_DIMS 3
typedef struct cmkd_idx {
  uint32_t shape[CMKD_IDX_MAX_DIMS]; /* (dims) */
  const uint8_t *data;               /* product of shape, points into the file's bytes */
} cmkd_idx;
/* Reads a whole file in memory: unsigned bytes, `dims` dimensions, the exact size; anything else is CMKD_ERR_FORMAT.
 * `name` is for messages. */
cmkd_status cmkd_idx_parse(const uint8_t *bytes, size_t size, const char *name, int dims, cmkd_idx *out,
                           cmkd_error *err);
#endif
