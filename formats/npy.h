/* NumPy's .npy: one array in and out. The writer streams, so an array of any size needs no memory; the file appears
 * under its name only when it is whole. Not read: Fortran order, big-endian, structured or object arrays (objects
 * are pickles), .npz. */
#ifndef CMKD_FORMATS_NPY_H
#define CMKD_FORMATS_NPY_H
#include "cmkd/weights.h" /* dtypes, CMKD_MAX_DIMS */

typedef struct cmkd_npy {
  cmkd_dtype dtype; /* never BF16, which NumPy does not have */
  int dims;
  int64_t shape[CMKD_MAX_DIMS], count; /* count: product of shape, 1 for a scalar */
  void *data;                          /* count items, little endian, row-major */
} cmkd_npy;

/* Reads a whole file; refuses files over `limit` bytes. Free with cmkd_npy_free. */
cmkd_status cmkd_npy_read(const char *path, uint64_t limit, cmkd_npy **out, cmkd_error *err);
/* The same from memory; `name` is for messages. */
cmkd_status cmkd_npy_parse(const uint8_t *bytes, size_t size, const char *name, cmkd_npy **out, cmkd_error *err);
void cmkd_npy_free(cmkd_npy *array);

/* begin writes the header to PATH.tmp; append adds items, in row-major order, any number of times; end checks that
 * exactly `shape` came, flushes and renames. After a failed append only abort may follow; end and abort free the
 * writer. abort removes the temporary. */
typedef struct cmkd_npy_writer cmkd_npy_writer;
cmkd_status cmkd_npy_begin(const char *path, cmkd_dtype dtype, int dims, const int64_t *shape, cmkd_npy_writer **out,
                           cmkd_error *err);
cmkd_status cmkd_npy_append(cmkd_npy_writer *writer, const void *items, uint64_t count, cmkd_error *err);
cmkd_status cmkd_npy_end(cmkd_npy_writer *writer, cmkd_error *err);
void cmkd_npy_abort(cmkd_npy_writer *writer);
#endif
