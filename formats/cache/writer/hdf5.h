/* HDF5 images in memory: everything h5py needs to read a cache. The only place of the library that calls libhdf5; our
 * own readers never come here. libhdf5 keeps state of the whole process and is not thread-safe, so one lock of the
 * process (hdf5.c) serialises all calls. */
#ifndef CMKD_FORMATS_CACHE_HDF5_H
#define CMKD_FORMATS_CACHE_HDF5_H
#include "formats/cache/meta.h"

/* Content of a shard, borrowed. */
typedef struct cmkd_shard_data {
  const uint8_t *const *chunks; /* stored bytes of each chunk: layout after layout, each (views, chunks_per_view) */
  const size_t *sizes;          /* of the chunks */
  const int32_t *labels;        /* (n) */
  const uint64_t *ids;          /* (n) */
  const uint64_t *seeds;        /* (views, n): a column of /seeds after the other */
  const uint16_t *row_max, *row_range; /* (views, n) float16, or NULL */
} cmkd_shard_data;

/* An image: `size` bytes. The memory is kept from one image to the next; start with zeros, end with
 * cmkd_file_image_free. */
typedef struct cmkd_file_image {
  uint8_t *bytes;
  size_t size, capacity;
} cmkd_file_image;
void cmkd_file_image_free(cmkd_file_image *image);

/* Builds the image and fills meta's extents (offset, size, hash). Same input, same bytes. */
cmkd_status cmkd_hdf5_shard(const cmkd_cache_config *config, cmkd_shard_meta *meta, const cmkd_shard_data *data,
                            cmkd_file_image *image, cmkd_error *err);
/* The master's: attributes and one external link a shard, /shard-00000 -> FOLDER/shard-00000-of-00064.h5 : / */
cmkd_status cmkd_hdf5_master(const cmkd_master_meta *meta, cmkd_file_image *image, cmkd_error *err);
#endif
