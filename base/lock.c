/* flock, with the two races that unlinking a lock file brings. See lock.h. */
#include "base/lock.h"
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

static int open_file(const char *path) { return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666); }

static cmkd_status not_opened(const char *path, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be created (%s); is the folder writable?", path, strerror(errno));
}

static cmkd_status not_locked(const char *path, cmkd_error *err) {
  return cmkd_fail(err, CMKD_ERR_IO, "%s: cannot be locked (%s); use a file system with flock", path, strerror(errno));
}

static void close_keeping_errno(int fd) {
  const int reason = errno;
  close(fd);
  errno = reason;
}

cmkd_lock_result cmkd_lock_try(const char *path, int wait, cmkd_lock *lock) {
  *lock = (cmkd_lock)CMKD_LOCK_NONE;
  for (;;) {
    const int fd = open_file(path);
    if (fd < 0) return CMKD_LOCK_NOT_OPENED;
    if (take(fd, LOCK_EX | (wait ? 0 : LOCK_NB)) != 0) {
      close_keeping_errno(fd);
      return errno == EWOULDBLOCK ? CMKD_LOCK_BUSY : CMKD_LOCK_NOT_LOCKED;
    }
    if (!still_named(fd, path)) {
      close(fd);
      continue;
    }
    char *copy = strdup(path);
    if (!copy) {
      close(fd);
      return CMKD_LOCK_NO_MEMORY;
    }
    *lock = (cmkd_lock){fd, copy};
    return CMKD_LOCK_TAKEN;
  }
}

cmkd_status cmkd_lock_take(const char *path, int wait, cmkd_lock *lock, int *taken, cmkd_error *err) {
  const cmkd_lock_result result = cmkd_lock_try(path, wait, lock);
  *taken = result == CMKD_LOCK_TAKEN;
  switch (result) {
  case CMKD_LOCK_TAKEN:
  case CMKD_LOCK_BUSY: break;
  case CMKD_LOCK_NOT_OPENED: return not_opened(path, err);
  case CMKD_LOCK_NOT_LOCKED: return not_locked(path, err);
  case CMKD_LOCK_NO_MEMORY: return cmkd_fail(err, CMKD_ERR_MEMORY, "%s: no memory", path);
  }
  return CMKD_OK;
}

cmkd_status cmkd_lock_share(const char *path, const char *word, const char *refusal, cmkd_lock *lock, cmkd_error *err) {
  *lock = (cmkd_lock)CMKD_LOCK_NONE;
  for (;;) {
    const int fd = open_file(path);
    char found[65] = "";
    if (fd < 0) return not_opened(path, err);
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
    } else if (errno != EWOULDBLOCK) {
      close_keeping_errno(fd);
      return not_locked(path, err);
    }
    if (take(fd, LOCK_SH) != 0) {
      close_keeping_errno(fd);
      return not_locked(path, err);
    }
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
