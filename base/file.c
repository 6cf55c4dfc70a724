#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

/* ---- paths ---- */

char *cmkd_format(const char *format, ...) {
  va_list args;
  va_start(args, format);
  char *text = NULL;
  if (vasprintf(&text, format, args) < 0) text = NULL;
  va_end(args);
  return text;
}

char *cmkd_path_join(const char *dir, const char *name) {
  if (!dir || !*dir) return strdup(name);
  size_t length = strlen(dir);
  while (length > 1 && dir[length - 1] == '/')
    length--;
  while (*name == '/')
    name++;
  return cmkd_format("%.*s%s%s", (int)length, dir, dir[length - 1] == '/' ? "" : "/", name);
}

char *cmkd_path_dir(const char *path) {
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/')
    length--; /* "a/b/" is "a/b" */
  while (length && path[length - 1] != '/')
    length--;
  if (!length) return strdup(".");
  while (length > 1 && path[length - 1] == '/')
    length--;
  return strndup(path, length);
}

int cmkd_file_exists(const char *path) { return access(path, F_OK) == 0; }

cmkd_status cmkd_make_dirs(const char *path, cmkd_error *err) {
  struct stat info;
  char *copy = strdup(path);
  if (!copy) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  cmkd_status status = CMKD_OK;
  size_t length = strlen(copy);
  for (size_t i = 1; i <= length && status == CMKD_OK; i++) {
    if (copy[i] != '/' && copy[i] != 0) continue;
    char kept = copy[i];
    copy[i] = 0;
    if (mkdir(copy, 0777) != 0 && !(errno == EEXIST && stat(copy, &info) == 0 && S_ISDIR(info.st_mode)))
      status = cmkd_fail(err, CMKD_ERR_IO, "%s: cannot make the folder: %s", copy,
                         errno == EEXIST ? "a file of that name is in the way" : strerror(errno));
    copy[i] = kept;
  }
  free(copy);
  return status;
}

/* ---- reading ---- */

static cmkd_status open_regular(const char *path, int *fd, uint64_t *size, cmkd_error *err) {
  struct stat info = {0};
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
  if (*fd < 0) return cmkd_fail(err, CMKD_ERR_IO, "%s: %s", path, strerror(errno));
  if (fstat(*fd, &info) == 0 && S_ISREG(info.st_mode)) {
    *size = (uint64_t)info.st_size;
    return CMKD_OK;
  }
  close(*fd);
  return cmkd_fail(err, CMKD_ERR_IO, "%s: %s; a file is needed", path,
                   S_ISDIR(info.st_mode) ? "is a folder" : "is not a regular file");
}

cmkd_status cmkd_pread_full(int fd, void *data, size_t size, uint64_t offset, const char *path, cmkd_error *err) {
  uint8_t *at = data;
  if (offset > INT64_MAX || size > INT64_MAX - offset)
    return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: offset out of range; the file is corrupt", path);
  while (size) {
    ssize_t got = pread(fd, at, size, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return cmkd_fail(err, CMKD_ERR_IO, "%s: reading failed: %s", path, strerror(errno));
    if (got == 0)
      return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: ends %zu bytes too early; the file is truncated, get it again", path,
                       size);
    at += got;
    offset += (uint64_t)got;
    size -= (size_t)got;
  }
  return CMKD_OK;
}

static cmkd_status read_open(int fd, uint64_t size, const char *path, uint8_t **data, cmkd_error *err) {
  *data = size < SIZE_MAX ? malloc((size_t)size + 1) : NULL;
  if (!*data)
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for %llu bytes", path, (unsigned long long)size);
  cmkd_status status = cmkd_pread_full(fd, *data, (size_t)size, 0, path, err);
  if (status != CMKD_OK) {
    free(*data);
    *data = NULL;
    return status;
  }
  (*data)[size] = 0; /* text files may be used as strings */
  return CMKD_OK;
}

static cmkd_status too_large(const char *path, uint64_t limit, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_FORMAT, "%s: larger than the %llu bytes such a file may have; is it the right file?",
                   path, (unsigned long long)limit);
}

cmkd_status cmkd_file_read(const char *path, uint64_t limit, uint8_t **data, size_t *size, cmkd_error *err) {
  int fd;
  uint64_t length;
  *data = NULL;
  *size = 0;
  CMKD_TRY(open_regular(path, &fd, &length, err));
  cmkd_status status = length > limit ? too_large(path, limit, err) : read_open(fd, length, path, data, err);
  close(fd);
  if (status == CMKD_OK) *size = (size_t)length;
  return status;
}

/* Inflates every member of the gzip file `in`. Memory grows with what came out, never with what a header claims. */
static cmkd_status gunzip(const char *path, const uint8_t *in, size_t in_size, uint64_t limit, uint8_t **data,
                          size_t *size, cmkd_error *err) {
  z_stream z = {0};
  size_t capacity = 1 << 16, used = 0,
         most = limit < SIZE_MAX - 1 ? (size_t)limit + 1 : SIZE_MAX; /* one more tells "too large" from "full" */
  uint8_t *out = NULL;
  cmkd_status status = CMKD_OK;
  int code = Z_OK;
  if (inflateInit2(&z, 15 + 16) != Z_OK) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  z.next_in = (Bytef *)in;
  for (size_t left = in_size;;) {
    if (!out || used == capacity) {
      size_t bigger = !out ? capacity : capacity > most / 2 ? most : capacity * 2;
      if (bigger > most) bigger = most;
      uint8_t *grown = realloc(out, bigger + 1);
      if (!grown) {
        status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory for %zu bytes", path, bigger);
        break;
      }
      out = grown;
      capacity = bigger;
    }
    uInt give = left > 1u << 30 ? 1u << 30 : (uInt)left,
         space = capacity - used > 1u << 30 ? 1u << 30 : (uInt)(capacity - used);
    z.avail_in = give;
    z.avail_out = space;
    z.next_out = out + used;
    code = inflate(&z, Z_NO_FLUSH);
    used += space - z.avail_out;
    left -= give - z.avail_in;
    if (used > limit) {
      status = too_large(path, limit, err);
      break;
    }
    if (code == Z_STREAM_END) {
      if (!left) break;
      const uint8_t *rest = in + (in_size - left);
      if (left < 2 || rest[0] != 0x1f || rest[1] != 0x8b || inflateReset(&z) != Z_OK) {
        status = cmkd_fail(err, CMKD_ERR_FORMAT,
                           "%s: %zu bytes of something else follow the gzip data; get the file again", path, left);
        break;
      }
    } else if (code == Z_MEM_ERROR) {
      status = cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
      break;
    } else if (code != Z_OK && code != Z_BUF_ERROR) {
      status = cmkd_fail(err, CMKD_ERR_FORMAT, "%s: corrupt gzip data (%s); get the file again", path,
                         z.msg ? z.msg : "bad stream");
      break;
    } else if (!left && z.avail_out) {
      status = cmkd_fail(err, CMKD_ERR_FORMAT, "%s: truncated gzip data; get the file again", path);
      break;
    }
  }
  inflateEnd(&z);
  if (status != CMKD_OK) {
    free(out);
    return status;
  }
  out[used] = 0;
  *data = out;
  *size = used;
  return CMKD_OK;
}

cmkd_status cmkd_file_read_gz(const char *path, uint64_t limit, uint8_t **data, size_t *size, cmkd_error *err) {
  int fd;
  uint64_t length;
  uint8_t magic[2] = {0}, *packed = NULL;
  *data = NULL;
  *size = 0;
  CMKD_TRY(open_regular(path, &fd, &length, err));
  cmkd_status status = length >= 2 ? cmkd_pread_full(fd, magic, 2, 0, path, err) : CMKD_OK;
  int gzip = magic[0] == 0x1f && magic[1] == 0x8b;
  /* stored blocks and member headers make a gzip file slightly larger than its content at worst */
  uint64_t most = gzip && limit < UINT64_MAX / 2 ? limit + limit / 64 + 65536 : limit;
  if (status == CMKD_OK)
    status = length > most ? too_large(path, limit, err) : read_open(fd, length, path, &packed, err);
  close(fd);
  if (status != CMKD_OK) return status;
  if (!gzip) {
    *data = packed;
    *size = (size_t)length;
    return CMKD_OK;
  }
  status = gunzip(path, packed, (size_t)length, limit, data, size, err);
  free(packed);
  return status;
}

/* ---- writing ---- */

static cmkd_status write_failed(const char *path, const char *what, int code, cmkd_error *err) {
  const char *remedy = "";
  if (code == ENOSPC || code == EDQUOT) remedy = "; make room or choose another folder";
  if (code == EFBIG) remedy = "; raise the file size limit (ulimit -f)";
  if (code == EACCES || code == EPERM || code == EROFS) remedy = "; choose a folder that can be written to";
  if (code == ENOENT || code == ENOTDIR) remedy = "; is its folder there?";
  return cmkd_fail(err, CMKD_ERR_IO, "%s: %s: %s%s", path, what, strerror(code), remedy);
}

static int write_pieces(int fd, const cmkd_piece *pieces, int count) {
  for (int i = 0; i < count; i++) {
    const uint8_t *at = pieces[i].data;
    size_t left = pieces[i].size;
    while (left) {
      ssize_t done = write(fd, at, left < 1u << 30 ? left : 1u << 30);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return done < 0 ? errno : EIO;
      at += done;
      left -= (size_t)done;
    }
  }
  return 0;
}

/* The same with SIGXFSZ held back, so that a file size limit is an error and not the process's death. */
static int write_guarded(int fd, const cmkd_piece *pieces, int count) {
  sigset_t set, old, pending;
  sigemptyset(&set);
  sigaddset(&set, SIGXFSZ);
  int guarded = pthread_sigmask(SIG_BLOCK, &set, &old) == 0;
  int code = write_pieces(fd, pieces, count);
  if (guarded) {
    if (code == EFBIG && !sigismember(&old, SIGXFSZ) && sigpending(&pending) == 0 && sigismember(&pending, SIGXFSZ))
      sigtimedwait(&set, NULL, &(struct timespec){0});
    pthread_sigmask(SIG_SETMASK, &old, NULL);
  }
  return code;
}

static int sync_folder(const char *path) {
  char *dir = cmkd_path_dir(path);
  int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1, code = 0;
  if (fd >= 0) {
    if (fsync(fd) != 0 && errno == EIO) code = EIO; /* some file systems cannot sync folders: no reason to fail */
    close(fd);
  }
  free(dir);
  return code;
}

struct cmkd_file_writer {
  char *path, *temporary;
  int fd; /* of the temporary; -1: there is none */
};

void cmkd_file_abort(cmkd_file_writer *w) {
  if (!w) return;
  if (w->fd >= 0) {
    close(w->fd);
    unlink(w->temporary);
  }
  free(w->path);
  free(w->temporary);
  free(w);
}

static cmkd_status open_temporary(cmkd_file_writer *w, cmkd_error *err) {
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  struct stat info;
  /* renaming over a device or a FIFO would destroy it */
  if (stat(w->path, &info) == 0 && !S_ISREG(info.st_mode))
    return cmkd_fail(err, CMKD_ERR_IO, "%s: %s; choose another name", w->path,
                     S_ISDIR(info.st_mode) ? "is a folder" : "is not a regular file");
  w->fd = open(w->temporary, flags, 0666);
  if (w->fd < 0 && errno == EEXIST && unlink(w->temporary) == 0)
    w->fd = open(w->temporary, flags, 0666); /* a dead writer's */
  return w->fd < 0 ? write_failed(w->temporary, "cannot be written", errno, err) : CMKD_OK;
}

cmkd_status cmkd_file_begin(const char *path, cmkd_file_writer **out, cmkd_error *err) {
  cmkd_file_writer *w = calloc(1, sizeof *w);
  *out = NULL;
  if (!w) return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  *w = (cmkd_file_writer){strdup(path), cmkd_format("%s.tmp", path), -1};
  cmkd_status status =
      w->path && w->temporary ? open_temporary(w, err) : cmkd_fail(err, CMKD_ERR_MEMORY, "%s: out of memory", path);
  if (status != CMKD_OK) {
    cmkd_file_abort(w);
    return status;
  }
  *out = w;
  return CMKD_OK;
}

cmkd_status cmkd_file_append(cmkd_file_writer *w, const cmkd_piece *pieces, int count, cmkd_error *err) {
  int code = write_guarded(w->fd, pieces, count);
  return code ? write_failed(w->path, "writing failed", code, err) : CMKD_OK;
}

/* The temporary, closed, gets the file's name; gone after a failure. */
static cmkd_status put_in_place(const cmkd_file_writer *w, cmkd_error *err) {
  if (rename(w->temporary, w->path) != 0) {
    cmkd_status status = write_failed(w->path, "cannot be put in place", errno, err);
    unlink(w->temporary);
    return status;
  }
  int code = sync_folder(w->path);
  return code ? write_failed(w->path, "its folder could not be flushed", code, err) : CMKD_OK;
}

cmkd_status cmkd_file_end(cmkd_file_writer *w, cmkd_error *err) {
  int code = 0;
  if (fsync(w->fd) != 0 && errno != EINVAL && errno != ENOTSUP) code = errno;
  if (close(w->fd) != 0 && !code && errno != EINTR) code = errno;
  w->fd = -1;
  cmkd_status status = CMKD_OK;
  if (code) {
    status = write_failed(w->path, "writing failed", code, err);
    unlink(w->temporary);
  } else
    status = put_in_place(w, err);
  cmkd_file_abort(w);
  return status;
}

cmkd_status cmkd_file_write(const char *path, const cmkd_piece *pieces, int count, cmkd_error *err) {
  cmkd_file_writer *w;
  CMKD_TRY(cmkd_file_begin(path, &w, err));
  cmkd_status status = cmkd_file_append(w, pieces, count, err);
  if (status == CMKD_OK) return cmkd_file_end(w, err);
  cmkd_file_abort(w);
  return status;
}
