/* Whole files in and out. Writing is atomic: PATH.tmp (O_EXCL), fsync, rename, fsync of the folder; on any failure the
 * temporary is removed and the old file stands. */
#ifndef CMKD_BASE_FILE_H
#define CMKD_BASE_FILE_H
#include <stddef.h>
#include <stdint.h>
#include "cmkd/status.h"

/* Reads all of `path` into fresh memory (caller frees). Refuses files over `limit` bytes before allocating. */
cmkd_status cmkd_file_read(const char *path, uint64_t limit, uint8_t **data, size_t *size, cmkd_error *err);
/* The same, gunzipped where the content is gzip (by magic, not by name). `limit` bounds the *inflated* size. */
cmkd_status cmkd_file_read_gz(const char *path, uint64_t limit, uint8_t **data, size_t *size, cmkd_error *err);
/* pread that fails on a short read: exactly `size` bytes at `offset`. `path` is for the message. */
cmkd_status cmkd_pread_full(int fd, void *data, size_t size, uint64_t offset, const char *path, cmkd_error *err);

/* Pieces are written one after the other. A stale PATH.tmp of a dead writer is replaced. */
typedef struct cmkd_piece {
  const void *data;
  size_t size;
} cmkd_piece;
cmkd_status cmkd_file_write(const char *path, const cmkd_piece *pieces, int count, cmkd_error *err);

/* The same for a file that comes bit by bit. begin makes PATH.tmp; append adds pieces, any number of times; end flushes
 * and renames. After a failed append only abort may follow, which removes PATH.tmp (NULL: does nothing). end and abort
 * free the writer; after a failure of end nothing is left to abort. */
typedef struct cmkd_file_writer cmkd_file_writer;
cmkd_status cmkd_file_begin(const char *path, cmkd_file_writer **out, cmkd_error *err);
cmkd_status cmkd_file_append(cmkd_file_writer *writer, const cmkd_piece *pieces, int count, cmkd_error *err);
cmkd_status cmkd_file_end(cmkd_file_writer *writer, cmkd_error *err);
void cmkd_file_abort(cmkd_file_writer *writer);

cmkd_status cmkd_make_dirs(const char *path, cmkd_error *err); /* mkdir -p */
int cmkd_file_exists(const char *path);
/* "dir/name" with a single slash into fresh memory; a NULL or empty dir gives a copy of name. NULL: out of memory. */
char *cmkd_path_join(const char *dir, const char *name);
char *cmkd_path_dir(const char *path); /* "." where there is no slash; fresh memory */
/* printf into fresh memory. NULL when out of memory. */
char *cmkd_format(const char *format, ...) CMKD_PRINTF(1, 2);
#endif
