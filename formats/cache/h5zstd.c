/* libh5zstd.so: zstd as HDF5 filter 32015, so that h5py reads /logits of a cache. Found through HDF5_PLUGIN_PATH or
 * h5py.h5pl.prepend. It references no symbol of libhdf5, so that any build of it can load this; memory comes from
 * malloc, as in libhdf5 itself. */
#include <H5PLextern.h>
#include <stdlib.h>
#include <zstd.h>

#define MOST (1u << 30) /* HDF5 chunks end at 4 GiB; anything near is not a chunk of ours */

static size_t replace(void **buffer, size_t *buffer_size, void *fresh, size_t capacity, size_t size) {
  free(*buffer);
  *buffer = fresh;
  *buffer_size = capacity;
  return size;
}

static size_t filter(unsigned flags, size_t values, const unsigned value[], size_t size, size_t *buffer_size,
                     void **buffer) {
  if (flags & H5Z_FLAG_REVERSE) {
    unsigned long long content = ZSTD_getFrameContentSize(*buffer, size);
    if (content == ZSTD_CONTENTSIZE_ERROR || content == ZSTD_CONTENTSIZE_UNKNOWN || content == 0 || content > MOST)
      return 0;
    void *out = malloc((size_t)content);
    if (!out) return 0;
    size_t got = ZSTD_decompress(out, (size_t)content, *buffer, size); /* checks the frame checksum too */
    if (ZSTD_isError(got) || got != content) {
      free(out);
      return 0;
    }
    return replace(buffer, buffer_size, out, (size_t)content, got);
  }
  int level = values > 0 ? (int)value[0] : 3;
  if (level > ZSTD_maxCLevel()) level = ZSTD_maxCLevel();
  size_t capacity = ZSTD_compressBound(size);
  void *out = malloc(capacity);
  ZSTD_CCtx *context = ZSTD_createCCtx();
  size_t got = 0;
  if (out && context) {
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    got = ZSTD_compress2(context, out, capacity, *buffer, size);
    if (ZSTD_isError(got)) got = 0;
  }
  ZSTD_freeCCtx(context);
  if (!got) {
    free(out);
    return 0;
  }
  return replace(buffer, buffer_size, out, capacity, got);
}

static const H5Z_class2_t zstd_class = {
    H5Z_CLASS_T_VERS,  (H5Z_filter_t)32015, 1, 1, "Zstandard compression: http://www.zstd.net", NULL, NULL,
    (H5Z_func_t)filter};

H5PL_type_t H5PLget_plugin_type(void) { return H5PL_TYPE_FILTER; }
const void *H5PLget_plugin_info(void) { return &zstd_class; }
