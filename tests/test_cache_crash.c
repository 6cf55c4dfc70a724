/* What a build survives: kill -9 at any moment, power loss after any system call, a disk that fills at any byte, other
 * builders. Each time the same build is run again and must end in the same bytes, with no temporary and no lock left.
 * CMKD_KILLS=1000 kills more often. */
#include "tests/support.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/file.h"
#include "base/hash.h"
#include "base/rng.h"
#include "tests/support_cache.h"

static cmkd_error err;
static const synthetic small = {.samples = 230,
                                .views = 2,
                                .classes = 10,
                                .shard_samples = 50,
                                .chunk_samples = 20,
                                .codec = "f16",
                                .seed = 5,
                                .threads = 2};

/* ---- a log of what reaches the disk: these definitions stand before libc's ---- */
enum { OPS = 4096, FILES = 64 };
typedef struct op {
  enum { OP_CREATE, OP_WRITE, OP_SYNC, OP_RENAME, OP_UNLINK, OP_SYNC_DIR } kind;
  char path[256], to[256];
  void *data;
  size_t size;
} op;
static op log_ops[OPS];
static int logged, logging;
static char fd_path[1024][256];
static pthread_mutex_t log_mutex = PTHREAD_MUTEX_INITIALIZER;

static void note(int kind, const char *path, const char *to, const void *data, size_t size) {
  pthread_mutex_lock(&log_mutex);
  if (logged == OPS) abort();
  op *o = log_ops + logged++;
  memset(o, 0, sizeof *o);
  o->kind = kind;
  snprintf(o->path, sizeof o->path, "%s", path);
  if (to) snprintf(o->to, sizeof o->to, "%s", to);
  if (size) {
    o->data = malloc(size);
    memcpy(o->data, data, size);
    o->size = size;
  }
  pthread_mutex_unlock(&log_mutex);
}
int open(const char *path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  int mode = flags & O_CREAT ? va_arg(args, int) : 0, fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
  va_end(args);
  if (logging && fd >= 0 && fd < 1024) {
    snprintf(fd_path[fd], sizeof fd_path[fd], "%s", path);
    if (flags & O_EXCL) note(OP_CREATE, path, NULL, NULL, 0);
  }
  return fd;
}
ssize_t write(int fd, const void *data, size_t size) {
  ssize_t done = syscall(SYS_write, fd, data, size);
  if (logging && done > 0 && fd < 1024 && strstr(fd_path[fd], ".tmp"))
    note(OP_WRITE, fd_path[fd], NULL, data, (size_t)done);
  return done;
}
int fsync(int fd) {
  int result = (int)syscall(SYS_fsync, fd);
  if (logging && !result && fd < 1024)
    note(strstr(fd_path[fd], ".tmp") ? OP_SYNC : OP_SYNC_DIR, fd_path[fd], NULL, NULL, 0);
  return result;
}
int rename(const char *from, const char *to) {
  int result = (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
  if (logging && !result) note(OP_RENAME, from, to, NULL, 0);
  return result;
}
int unlink(const char *path) {
  int result = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
  if (logging && !result) note(OP_UNLINK, path, NULL, NULL, 0);
  return result;
}

/* ---- helpers ---- */
/* The files of a cache, sorted, as one hash over names and bytes; fails on a .tmp or .lock when `clean`. */
static void digest(const char *dir, int clean, char hex[CMKD_SHA256_HEX]) {
  const char *output;
  if (clean && run_command(&output, "find '%s' -name '*.tmp' -o -name '*.lock' | grep .", dir) == 0)
    fail_msg("left behind: %s", output);
  if (run_command(&output, "cd '%s' && find . -type f | sort | xargs sha256sum", dir) != 0) fail_msg("%s", output);
  cmkd_sha256(output, strlen(output), hex);
}
static void reference(char hex[CMKD_SHA256_HEX]) {
  const char *dir = scratch_dir();
  char *path = cmkd_format("%s/t.h5", dir);
  assert_ok(synthetic_build(&small, path, NULL, &err));
  digest(dir, 1, hex);
  free(path);
}
static void finish_and_compare(const char *dir, const char *expected, const char *when) {
  char *path = cmkd_format("%s/t.h5", dir), found[CMKD_SHA256_HEX];
  if (synthetic_build(&small, path, NULL, &err) != CMKD_OK) fail_msg("%s: %s", when, err.message);
  digest(dir, 1, found);
  if (strcmp(expected, found) != 0) fail_msg("%s: the resumed cache has other bytes", when);
  free(path);
}
static void empty(const char *dir) {
  const char *output;
  if (run_command(&output, "rm -rf '%s'/*", dir) != 0) fail_msg("%s", output);
}
/* Whatever stands there, a reader either refuses it or gives the right numbers. */
static void reads_right_or_refuses(const char *path) {
  cmkd_cache *cache;
  if (cmkd_cache_open(path, &cache, &err) != CMKD_OK) return;
  float rows[230 * 10], row[10], half[10];
  for (uint32_t v = 0; v < small.views; v++) {
    if (cmkd_cache_read(cache, v, 0, small.samples, rows, &err) != CMKD_OK) continue;
    for (uint32_t i = 0; i < small.samples; i++) {
      synthetic_row(&small, i, v, row);
      for (int c = 0; c < 10; c++)
        half[c] = (float)(_Float16)row[c];
      assert_memory_equal(half, rows + i * 10, sizeof half);
    }
  }
  cmkd_cache_close(cache);
}

/* ---- tests ---- */
static void killed_at_any_moment(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *asked = getenv("CMKD_KILLS");
  char *path = cmkd_format("%s/t.h5", dir), expected[CMKD_SHA256_HEX];
  int kills = asked ? atoi(asked) : 200, in_time = 0;
  reference(expected);
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  assert_ok(synthetic_build(&small, path, NULL, &err));
  clock_gettime(CLOCK_MONOTONIC, &to);
  uint32_t whole = (uint32_t)((to.tv_sec - from.tv_sec) * 1000000 + (to.tv_nsec - from.tv_nsec) / 1000) + 2000;
  cmkd_rng rng = cmkd_rng_start(3, CMKD_STREAM_TEST, 0);
  for (int i = 0; i < kills; i++) {
    if (i % 4 == 0) empty(dir); /* every fourth starts anew, the others continue what is there */
    pid_t child = fork();
    if (child == 0) _exit(synthetic_build(&small, path, NULL, &err) != CMKD_OK);
    struct timespec delay = {0, (long)cmkd_rng_below(&rng, whole < 900000 ? whole : 900000) * 1000};
    nanosleep(&delay, NULL);
    kill(child, SIGKILL);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    in_time += WIFSIGNALED(status);
    if (WIFEXITED(status)) assert_int_equal(WEXITSTATUS(status), 0);
    reads_right_or_refuses(path);
    if (i % 4 == 3) finish_and_compare(dir, expected, "after kills");
  }
  finish_and_compare(dir, expected, "after kills");
  print_message("killed %d of %d builds before their end\n", in_time, kills);
  assert_true(in_time > 0);
  free(path);
}

/* A file system as it may look after power failed behind op number `count`: per file what was written and what of it is
 * safe; per name the rename that may or may not have reached the disk. `reordered`: names are there, unsynced bytes are
 * not. */
typedef struct ghost {
  char path[256];
  uint8_t *data;
  size_t size, safe;
  int gone;
} ghost;
static void replay(int count, int reordered, const char *dir) {
  ghost files[FILES] = {0};
  int n = 0, synced_to = 0;
  for (int i = 0; i < count; i++)
    if (log_ops[i].kind == OP_SYNC_DIR) synced_to = i; /* names before this are safe */
  for (int i = 0; i < count; i++) {
    const op *o = log_ops + i;
    ghost *f = NULL;
    for (int k = 0; k < n; k++)
      if (!files[k].gone && !strcmp(files[k].path, o->path)) f = files + k;
    switch (o->kind) {
    case OP_CREATE:
      assert_true(n < FILES);
      memset(files + n, 0, sizeof *files);
      strcpy(files[n++].path, o->path);
      break;
    case OP_WRITE:
      assert_non_null(f);
      f->data = realloc(f->data, f->size + o->size);
      memcpy(f->data + f->size, o->data, o->size);
      f->size += o->size;
      break;
    case OP_SYNC:
      assert_non_null(f);
      f->safe = f->size;
      break;
    case OP_RENAME:
      if (!f || (!reordered && i > synced_to)) break; /* the name was lost, the file is still called .tmp */
      for (int k = 0; k < n; k++)
        if (!strcmp(files[k].path, o->to)) files[k].gone = 1;
      strcpy(f->path, o->to);
      break;
    case OP_UNLINK:
      if (f) f->gone = 1;
      break;
    case OP_SYNC_DIR: break;
    }
  }
  char *folder = cmkd_format("%s/t.shards", dir);
  assert_ok(cmkd_make_dirs(folder, &err));
  for (int k = 0; k < n; k++) {
    if (!files[k].gone) {
      int fd = open(files[k].path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
      assert_true(fd >= 0 && (files[k].safe == 0 || write(fd, files[k].data, files[k].safe) == (ssize_t)files[k].safe));
      close(fd);
    }
    free(files[k].data);
  }
  free(folder);
}
static void power_lost_after_any_call(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  char *path = cmkd_format("%s/t.h5", dir), expected[CMKD_SHA256_HEX], when[64];
  reference(expected);
  logged = 0;
  logging = 1;
  assert_ok(synthetic_build(&small, path, NULL, &err));
  logging = 0;
  assert_true(logged > 6 * 5);
  for (int count = 0; count <= logged; count++)
    for (int reordered = 0; reordered < 2; reordered++) {
      empty(dir);
      replay(count, reordered, dir);
      reads_right_or_refuses(path);
      snprintf(when, sizeof when, "power lost after call %d of %d (%s)", count, logged,
               reordered ? "names first" : "names lost");
      finish_and_compare(dir, expected, when);
    }
  for (int i = 0; i < logged; i++)
    free(log_ops[i].data);
  print_message("replayed %d prefixes, twice each\n", logged + 1);
  free(path);
}

static void disk_full_at_any_byte(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  char *path = cmkd_format("%s/t.h5", dir), expected[CMKD_SHA256_HEX];
  struct rlimit old, limit;
  struct stat st;
  reference(expected);
  getrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, SIG_IGN);
  int failures = 0;
  for (rlim_t bytes = 0; bytes < 16000; bytes += bytes < 100 ? 33 : 731) {
    empty(dir);
    limit = old;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
    cmkd_status status = synthetic_build(&small, path, NULL, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    if (status == CMKD_OK) continue;
    failures++;
    assert_int_equal(status, CMKD_ERR_IO);
    assert_true(stat(path, &st) != 0); /* nothing half-written under a final name */
    finish_and_compare(dir, expected, "after a full disk");
  }
  assert_true(failures > 10);
  free(path);
}

static void builders_share_the_work(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  char *path = cmkd_format("%s/t.h5", dir), expected[CMKD_SHA256_HEX], found[CMKD_SHA256_HEX];
  reference(expected);
  for (int round = 0; round < 5; round++) {
    empty(dir);
    int pipes[2];
    uint64_t rows = 0, mine;
    assert_int_equal(pipe(pipes), 0);
    for (int i = 0; i < 3; i++) {
      if (fork() != 0) continue;
      cmkd_cache_spec spec;
      cmkd_cache_writer *w;
      cmkd_cache_writer_stats stats = {0};
      synthetic_spec(&small, &spec);
      uint64_t ids[230], seeds[230 * 2];
      int32_t labels[230];
      float *logits = malloc(230 * 2 * 10 * sizeof *logits);
      for (uint32_t s = 0; s < 230; s++) {
        ids[s] = s;
        labels[s] = synthetic_label(&small, s);
        for (uint32_t v = 0; v < 2; v++) {
          seeds[s * 2 + v] = synthetic_seed(&small, s, v);
          synthetic_row(&small, s, v, logits + (s * 2 + v) * 10);
        }
      }
      int status = cmkd_cache_writer_open(path, &spec, &w, &err) != CMKD_OK;
      if (!status)
        status = cmkd_cache_writer_add(w, 230, ids, labels, seeds, logits, &err) != CMKD_OK ||
                 cmkd_cache_writer_finish(w, &err) != CMKD_OK;
      if (!status) cmkd_cache_writer_get_stats(w, &stats);
      if (!status) cmkd_cache_writer_close(w);
      if (status) fprintf(stderr, "builder: %s\n", err.message);
      if (syscall(SYS_write, pipes[1], &stats.rows, sizeof stats.rows) != sizeof stats.rows) status = 1;
      _exit(status);
    }
    for (int i = 0; i < 3; i++) {
      int status;
      assert_true(wait(&status) > 0);
      assert_int_equal(status, 0);
      assert_int_equal(read(pipes[0], &mine, sizeof mine), sizeof mine);
      rows += mine;
    }
    close(pipes[0]);
    close(pipes[1]);
    assert_int_equal(rows, 230 * 2); /* every row was written once, by one of them */
    digest(dir, 1, found);
    assert_string_equal(expected, found);
  }
  free(path);
}

static void other_builds_are_refused(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  char *path = cmkd_format("%s/t.h5", dir);
  synthetic other = small;
  cmkd_cache_spec spec;
  cmkd_cache_writer *w, *second;
  other.seed++;
  synthetic_spec(&small, &spec);
  assert_ok(cmkd_cache_writer_open(path, &spec, &w, &err));
  assert_int_equal(synthetic_build(&other, path, NULL, &err), CMKD_ERR_MISMATCH); /* one is running */
  cmkd_cache_shard_state state_of;
  assert_ok(cmkd_cache_writer_begin(w, 1, &state_of, &err));
  assert_ok(cmkd_cache_writer_open(path, &spec, &second, &err)); /* the same cache: shares */
  assert_ok(cmkd_cache_writer_begin(second, 1, &state_of, &err));
  assert_int_equal(state_of, CMKD_CACHE_SHARD_BUSY);
  assert_int_equal(cmkd_cache_writer_finish(second, &err), CMKD_ERR_FORMAT);
  assert_non_null(strstr(err.message, "5 of 5 shards are missing"));
  cmkd_cache_writer_close(second);
  cmkd_cache_writer_close(w);
  assert_ok(synthetic_build(&small, path, NULL, &err));
  assert_int_equal(synthetic_build(&other, path, NULL, &err), CMKD_ERR_MISMATCH); /* one is there */
  assert_non_null(strstr(err.message, "choose another name"));
  char *foreign = cmkd_format("%s/foreign.h5", dir);
  const cmkd_piece piece = {"not a cache", 11};
  assert_ok(cmkd_file_write(foreign, &piece, 1, &err));
  assert_int_equal(synthetic_build(&small, foreign, NULL, &err), CMKD_ERR_MISMATCH);
  char *sub = cmkd_format("%s/foreign.h5/t.h5", dir);
  assert_int_equal(synthetic_build(&small, sub, NULL, &err), CMKD_ERR_IO);
  free(sub);
  free(foreign);
  free(path);
}

static void bad_numbers_are_refused(void **state) {
  (void)state;
  char *path = cmkd_format("%s/t.h5", scratch_dir());
  cmkd_cache_spec spec;
  cmkd_cache_writer *w;
  cmkd_cache_shard_state state_of;
  uint64_t ids[50], seeds[100] = {0};
  int32_t labels[50] = {0};
  float row[10] = {0};
  for (int i = 0; i < 50; i++)
    ids[i] = 50 + (uint64_t)i;
  synthetic_spec(&small, &spec);
  assert_ok(cmkd_cache_writer_open(path, &spec, &w, &err));
  assert_ok(cmkd_cache_writer_begin(w, 1, &state_of, &err));
  labels[7] = 10;
  assert_int_equal(cmkd_cache_writer_samples(w, ids, labels, seeds, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "sample 57"));
  labels[7] = 0;
  assert_ok(cmkd_cache_writer_samples(w, ids, labels, seeds, &err));
  row[3] = 65505;
  assert_int_equal(cmkd_cache_writer_put(w, 0, 4, 1, row, 10, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "sample 54"));
  assert_non_null(strstr(err.message, "use codec f32"));
  row[3] = (float)NAN;
  assert_int_equal(cmkd_cache_writer_put(w, 1, 4, 1, row, 10, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "not finite"));
  row[3] = 65504;
  assert_ok(cmkd_cache_writer_put(w, 1, 4, 1, row, 10, &err));
  assert_int_equal(cmkd_cache_writer_put(w, 1, 45, 6, row, 10, &err), CMKD_ERR_USAGE);
  assert_int_equal(cmkd_cache_writer_end(w, &err), CMKD_ERR_USAGE);
  cmkd_cache_writer_close(w);
  assert_int_equal(cmkd_file_exists(path), 0);
  free(path);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(killed_at_any_moment),     cmocka_unit_test(power_lost_after_any_call),
      cmocka_unit_test(disk_full_at_any_byte),    cmocka_unit_test(builders_share_the_work),
      cmocka_unit_test(other_builds_are_refused), cmocka_unit_test(bad_numbers_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
