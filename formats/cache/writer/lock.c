/* flock, with the two races that unlinking a lock file brings. */
#include "formats/cache/writer/lock.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The file may be unlinked by its last holder between our open and our flock: then the name is somebody else's, and we
 * start over. */
static int still_named(int fd, const char *path) {
  struct stat mine, named;
  return fstat(fd, &mine) == 0 && stat(path, &named) == 0 && mine.st_ino == named.st_ino && mine.st_dev == named.st_dev;
}

static int take(int fd, int operation) {
  int result;
  do
    result = flock(fd, operation);
  while (result != 0 && errno == EINTR);
  return result;
}

static cmkd_status open_lock(const char *path, int *fd, cmkd_error *err) {
  *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (*fd < 0)
    return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be created (%s); is the folder writable?", path, strerror(errno));
  return CMKD_OK;
}

static cmkd_status refused(const char *path, int fd, cmkd_error *err) {
  int reason = errno;
  close(fd);
  return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be locked (%s); use a file system with flock", path, strerror(reason));
}

cmkd_status cmkd_lock_take(const char *path, int wait, cmkd_lock *lock, int *taken, cmkd_error *err) {
  *taken = 0;
  *lock = (cmkd_lock)CMKD_LOCK_NONE;
  for (;;) {
    int fd;
    CMKD_TRY(open_lock(path, &fd, err));
    if (take(fd, LOCK_EX | (wait ? 0 : LOCK_NB)) != 0) {
      if (errno != EWOULDBLOCK) return refused(path, fd, err);
      close(fd);
      return CMKD_OK;
    }
    if (!still_named(fd, path)) {
      close(fd);
      continue;
    }
    *lock = (cmkd_lock){fd, strdup(path)};
    *taken = 1;
    if (lock->path) return CMKD_OK;
    close(fd);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
  }
}

cmkd_status cmkd_lock_share(const char *path, const char *word, const char *refusal, cmkd_lock *lock, cmkd_error *err) {
  *lock = (cmkd_lock)CMKD_LOCK_NONE;
  for (;;) {
    int fd;
    char found[65] = "";
    CMKD_TRY(open_lock(path, &fd, err));
    if (take(fd, LOCK_EX | LOCK_NB) == 0) { /* alone: whatever a dead one wrote does not count */
      if (!still_named(fd, path)) {
        close(fd);
        continue;
      }
      if (ftruncate(fd, 0) != 0 || pwrite(fd, word, strlen(word), 0) != (ssize_t)strlen(word)) {
        int reason = errno;
        unlink(path);
        close(fd);
        return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be written (%s); is the disk full?", path, strerror(reason));
      }
    } else if (errno != EWOULDBLOCK)
      return refused(path, fd, err);
    if (take(fd, LOCK_SH) != 0) return refused(path, fd, err);
    if (!still_named(fd, path)) {
      close(fd);
      continue;
    }
    ssize_t got = pread(fd, found, 64, 0); /* turning exclusive into shared is not atomic, so look again */
    if (got < 0 || strcmp(found, word) != 0) {
      close(fd);
      return cmkd_fail(err, CMKD_ERR_MISMATCH, "%s", refusal);
    }
    *lock = (cmkd_lock){fd, strdup(path)};
    if (lock->path) return CMKD_OK;
    close(fd);
    return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
  }
}

void cmkd_lock_release(cmkd_lock *lock) {
  if (lock->fd < 0) return;
  if (take(lock->fd, LOCK_EX | LOCK_NB) == 0 && still_named(lock->fd, lock->path)) unlink(lock->path);
  close(lock->fd);
  free(lock->path);
  *lock = (cmkd_lock)CMKD_LOCK_NONE;
}
