/* Advisory locks on files that die with their process (flock): a lock file that a dead process left is taken over. The
 * file goes with its last holder, and its name may be taken again between another's open and flock: whoever locks looks
 * whether the name is still that of what was locked. */
#ifndef CMKD_BASE_LOCK_H
#define CMKD_BASE_LOCK_H
#include "cmkd/status.h"

typedef struct cmkd_lock {
  int fd;
  char *path;
} cmkd_lock;
#define CMKD_LOCK_NONE \
  { -1, NULL }

typedef enum cmkd_lock_result {
  CMKD_LOCK_TAKEN,
  CMKD_LOCK_BUSY,       /* somebody else holds it */
  CMKD_LOCK_NOT_OPENED, /* the file; errno says why */
  CMKD_LOCK_NOT_LOCKED, /* likewise */
  CMKD_LOCK_NO_MEMORY
} cmkd_lock_result;
/* Takes PATH exclusively, for callers with messages of their own. wait 1: never CMKD_LOCK_BUSY. */
cmkd_lock_result cmkd_lock_try(const char *path, int wait, cmkd_lock *lock);
/* The same. wait 0: *taken is 0 when somebody else holds it. */
cmkd_status cmkd_lock_take(const char *path, int wait, cmkd_lock *lock, int *taken, cmkd_error *err);
/* Shares PATH with others of the same `word` (up to 64 characters, kept in the file); fails with CMKD_ERR_MISMATCH
 * while holders of another word live. */
cmkd_status cmkd_lock_share(const char *path, const char *word, const char *refusal, cmkd_lock *lock, cmkd_error *err);
/* Releases; the file goes with the last holder. Does nothing on CMKD_LOCK_NONE. */
void cmkd_lock_release(cmkd_lock *lock);
#endif
