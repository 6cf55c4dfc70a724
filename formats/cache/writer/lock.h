/* Advisory locks on files that die with their process (flock). A lock file that a dead process left is taken over. */
#ifndef CMKD_FORMATS_CACHE_LOCK_H
#define CMKD_FORMATS_CACHE_LOCK_H
#include "cmkd/status.h"

typedef struct cmkd_lock {
  int fd;
  char *path;
} cmkd_lock;
#define CMKD_LOCK_NONE \
  { -1, NULL }

/* Takes PATH exclusively. wait 0: *taken 0 when somebody else holds it. */
cmkd_status cmkd_lock_take(const char *path, int wait, cmkd_lock *lock, int *taken, cmkd_error *err);
/* Shares PATH with others of the same `word` (up to 64 characters, kept in the file); fails with CMKD_ERR_MISMATCH
 * while holders of another word live. */
cmkd_status cmkd_lock_share(const char *path, const char *word, const char *refusal, cmkd_lock *lock, cmkd_error *err);
/* Releases; the file goes with the last holder. */
void cmkd_lock_release(cmkd_lock *lock);
#endif
