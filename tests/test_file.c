#include "tests/support.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include "base/file.h"

static cmkd_error err;
static char *in_scratch(const char *name) { return cmkd_path_join(scratch_dir(), name); }

static void put(const char *path, const void *data, size_t size) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, size, f), size);
  assert_int_equal(fclose(f), 0);
}

static void assert_content(const char *path, const char *text) {
  uint8_t *data;
  size_t size;
  assert_ok(cmkd_file_read(path, 1 << 20, &data, &size, &err));
  assert_int_equal(size, strlen(text));
  assert_memory_equal(data, text, size);
  free(data);
}

static void assert_no_tmp(const char *path) {
  char tmp[2048];
  snprintf(tmp, sizeof tmp, "%s.tmp", path);
  assert_false(cmkd_file_exists(tmp));
}

static void paths(void **state) {
  (void)state;
  static const struct {
    const char *dir, *name, *want;
  } joins[] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"a//", "/b", "a/b"},
               {"/", "b", "/b"},  {"", "b", "b"},     {NULL, "b", "b"}};
  static const struct {
    const char *path, *want;
  } dirs[] = {{"a", "."}, {"a/b", "a"}, {"/a", "/"}, {"a/b/", "a"}, {"a//b", "a"}, {"/", "/"}, {"", "."}, {"./x", "."}};
  for (size_t i = 0; i < sizeof joins / sizeof *joins; i++) {
    char *got = cmkd_path_join(joins[i].dir, joins[i].name);
    assert_string_equal(got, joins[i].want);
    free(got);
  }
  for (size_t i = 0; i < sizeof dirs / sizeof *dirs - 1; i++) {
    char *got = cmkd_path_dir(dirs[i].path);
    assert_string_equal(got, dirs[i].want);
    free(got);
  }
  char *text = cmkd_format("%d-%s", 3, "x");
  assert_string_equal(text, "3-x");
  free(text);
}

static void makes_folders(void **state) {
  (void)state;
  char *deep = in_scratch("a/b//c/"), *dir = cmkd_path_dir(deep), *file = cmkd_path_join(deep, "f"),
       *under = cmkd_path_join(file, "g");
  assert_ok(cmkd_make_dirs(deep, &err));
  assert_ok(cmkd_make_dirs(deep, &err));
  assert_true(cmkd_file_exists(deep));
  put(file, "x", 1);
  assert_int_equal(cmkd_make_dirs(file, &err), CMKD_ERR_IO);
  assert_non_null(strstr(err.message, "in the way"));
  assert_int_equal(cmkd_make_dirs(under, &err), CMKD_ERR_IO);
  free(deep);
  free(dir);
  free(file);
  free(under);
}

static void reads_within_the_limit(void **state) {
  (void)state;
  uint8_t *data;
  size_t size;
  char *path = in_scratch("f"), *fifo = in_scratch("fifo"), *huge = in_scratch("huge");
  put(path, "hello", 5);
  assert_ok(cmkd_file_read(path, 5, &data, &size, &err));
  assert_int_equal(size, 5);
  assert_memory_equal(data, "hello", 5);
  free(data);
  assert_int_equal(cmkd_file_read(path, 4, &data, &size, &err), CMKD_ERR_FORMAT);
  assert_null(data);
  assert_int_equal(cmkd_file_read_gz(path, 4, &data, &size, &err), CMKD_ERR_FORMAT);
  put(path, "", 0);
  assert_ok(cmkd_file_read(path, 0, &data, &size, &err));
  assert_int_equal(size, 0);
  free(data);
  assert_ok(cmkd_file_read_gz(path, 0, &data, &size, &err));
  assert_int_equal(size, 0);
  free(data);
  put(huge, "", 0);
  assert_int_equal(truncate(huge, (off_t)1 << 40), 0); /* sparse: would not fit into memory */
  assert_int_equal(cmkd_file_read(huge, 1 << 30, &data, &size, &err), CMKD_ERR_FORMAT);
  assert_non_null(strstr(err.message, huge));
  assert_int_equal(mkfifo(fifo, 0600), 0);
  assert_int_equal(cmkd_file_read(fifo, 100, &data, &size, &err), CMKD_ERR_IO);
  assert_int_equal(cmkd_file_read("/", 100, &data, &size, &err), CMKD_ERR_IO);
  assert_int_equal(cmkd_file_read("/dev/zero", 100, &data, &size, &err), CMKD_ERR_IO);
  assert_int_equal(cmkd_file_read("/no/such", 100, &data, &size, &err), CMKD_ERR_IO);
  assert_int_equal(cmkd_file_read_gz("/no/such", 100, &data, &size, NULL), CMKD_ERR_IO);
  free(path);
  free(fifo);
  free(huge);
}

static void pread_is_exact(void **state) {
  (void)state;
  char *path = in_scratch("f"), buffer[8];
  put(path, "0123456789", 10);
  int fd = open(path, O_RDONLY);
  assert_ok(cmkd_pread_full(fd, buffer, 4, 6, path, &err));
  assert_memory_equal(buffer, "6789", 4);
  assert_int_equal(cmkd_pread_full(fd, buffer, 5, 6, path, &err), CMKD_ERR_FORMAT);
  assert_non_null(strstr(err.message, "truncated"));
  assert_int_equal(cmkd_pread_full(fd, buffer, 1, UINT64_MAX, path, &err), CMKD_ERR_FORMAT);
  close(fd);
  assert_int_equal(cmkd_pread_full(fd, buffer, 1, 0, path, &err), CMKD_ERR_IO);
  free(path);
}

static size_t gzip(const void *data, size_t size, uint8_t *out, size_t capacity) {
  z_stream z = {.next_in = (Bytef *)data, .avail_in = (uInt)size, .next_out = out, .avail_out = (uInt)capacity};
  assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY), Z_OK);
  assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
  deflateEnd(&z);
  return z.total_out;
}

static void gunzips_all_members_and_nothing_else(void **state) {
  (void)state;
  uint8_t *data, packed[8192], *zeros = calloc(1, 1 << 20);
  size_t size;
  char *path = in_scratch("not-named-gz"), *plain = calloc(1, 300000);
  for (size_t i = 0; i < 300000; i++)
    plain[i] = (char)(i * i / 9000);
  size_t bomb_size = gzip(zeros, 1 << 20, packed, sizeof packed);
  free(zeros);
  put(path, packed, bomb_size);
  assert_int_equal(cmkd_file_read_gz(path, (1 << 20) - 1, &data, &size, &err), CMKD_ERR_FORMAT);
  assert_null(data);
  assert_ok(cmkd_file_read_gz(path, 1 << 20, &data, &size, &err));
  assert_int_equal(size, 1 << 20);
  free(data);

  uint8_t *two = malloc(700000);
  size_t first = gzip(plain, 300000, two, 350000), both = first + gzip("tail", 4, two + first, 1000);
  put(path, two, both);
  assert_ok(cmkd_file_read_gz(path, 300004, &data, &size, &err));
  assert_int_equal(size, 300004);
  assert_memory_equal(data, plain, 300000);
  assert_memory_equal(data + 300000, "tail", 4);
  free(data);
  assert_int_equal(cmkd_file_read_gz(path, 300003, &data, &size, &err), CMKD_ERR_FORMAT);
  for (size_t cut = 2; cut < both; cut += cut < 40 || both - cut < 40 ? 1 : 997) {
    if (cut == first) continue; /* a whole file by itself */
    put(path, two, cut);
    assert_int_equal(cmkd_file_read_gz(path, 1 << 20, &data, &size, &err), CMKD_ERR_FORMAT);
    assert_null(data);
  }
  put(path, two, first);
  assert_ok(cmkd_file_read_gz(path, 1 << 20, &data, &size, &err));
  free(data);
  memcpy(two + both, "junk", 4);
  put(path, two, both + 4);
  assert_int_equal(cmkd_file_read_gz(path, 1 << 20, &data, &size, &err), CMKD_ERR_FORMAT);
  two[first / 2] ^= 4; /* the CRC at the latest */
  put(path, two, both);
  assert_int_equal(cmkd_file_read_gz(path, 1 << 20, &data, &size, &err), CMKD_ERR_FORMAT);
  free(two);
  free(plain);
  free(path);
}

static void writes_pieces_in_place(void **state) {
  (void)state;
  char *path = in_scratch("f"), *tmp = cmkd_format("%s.tmp", path);
  const cmkd_piece pieces[] = {{"ab", 2}, {NULL, 0}, {"cde", 3}};
  assert_ok(cmkd_file_write(path, pieces, 3, &err));
  assert_content(path, "abcde");
  put(tmp, "left by a dead writer", 21);
  assert_ok(cmkd_file_write(path, pieces, 1, &err));
  assert_content(path, "ab");
  assert_no_tmp(path);
  assert_ok(cmkd_file_write(path, NULL, 0, &err));
  assert_content(path, "");
  free(path);
  free(tmp);
}

static void failure_leaves_the_old_file(void **state) {
  (void)state;
  char *path = in_scratch("f"), *under = cmkd_path_join(path, "g"), *dir = in_scratch("d"), *fifo = in_scratch("fifo"),
       *blocked = in_scratch("blocked");
  char *big = calloc(1, 1 << 16);
  put(path, "old", 3);
  assert_int_equal(cmkd_file_write(under, &(cmkd_piece){"x", 1}, 1, &err),
                   CMKD_ERR_IO); /* through a regular file: fails for root too */
  assert_non_null(strstr(err.message, under));
  assert_int_equal(cmkd_file_write("/no/such/folder/f", &(cmkd_piece){"x", 1}, 1, &err), CMKD_ERR_IO);

  /* a file size limit: an error, not SIGXFSZ */
  struct rlimit old, low;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
  low = old;
  low.rlim_cur = 1000;
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
  cmkd_status status = cmkd_file_write(path, &(cmkd_piece){big, 1 << 16}, 1, &err);
  setrlimit(RLIMIT_FSIZE, &old);
  assert_int_equal(status, CMKD_ERR_IO);
  assert_non_null(strstr(err.message, "ulimit"));
  assert_content(path, "old");
  assert_no_tmp(path);

  assert_int_equal(mkdir(dir, 0777), 0);
  assert_int_equal(cmkd_file_write(dir, &(cmkd_piece){"x", 1}, 1, &err), CMKD_ERR_IO);
  assert_no_tmp(dir);
  assert_int_equal(mkfifo(fifo, 0600), 0);
  assert_int_equal(cmkd_file_write(fifo, &(cmkd_piece){"x", 1}, 1, &err), CMKD_ERR_IO);
  char *blocked_tmp = cmkd_format("%s.tmp", blocked); /* a folder where the temporary would go */
  assert_int_equal(mkdir(blocked_tmp, 0777), 0);
  assert_int_equal(cmkd_file_write(blocked, &(cmkd_piece){"x", 1}, 1, &err), CMKD_ERR_IO);
  free(path);
  free(under);
  free(dir);
  free(fifo);
  free(blocked);
  free(blocked_tmp);
  free(big);
}

/* /dev/full says ENOSPC to every write; the temporary cannot be it, so a tiny tmpfs is the real test where mounting is
 * allowed. */
static void full_disk(void **state) {
  (void)state;
  const char *dir = scratch_dir();
  if (run_command(NULL, "mount -t tmpfs -o size=64k none '%s'", dir) != 0) {
    printf("SKIP: full_disk needs the right to mount a tmpfs\n");
    skip();
  }
  char *path = cmkd_path_join(dir, "f"), *temporary = cmkd_format("%s.tmp", path), *big = calloc(1, 1 << 20);
  cmkd_status first = cmkd_file_write(path, &(cmkd_piece){"old", 3}, 1, &err);
  cmkd_status second = cmkd_file_write(path, &(cmkd_piece){big, 1 << 20}, 1, &err);
  int tmp = access(temporary, F_OK);
  uint8_t *data = NULL;
  size_t size = 0;
  cmkd_status third = cmkd_file_read(path, 10, &data, &size, &err);
  run_command(NULL, "umount '%s'", dir);
  assert_int_equal(first, CMKD_OK);
  assert_int_equal(second, CMKD_ERR_IO);
  assert_int_equal(tmp, -1);
  assert_int_equal(third, CMKD_OK);
  assert_int_equal(size, 3);
  free(data);
  free(big);
  free(temporary);
  free(path);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(paths),
                                     cmocka_unit_test(makes_folders),
                                     cmocka_unit_test(reads_within_the_limit),
                                     cmocka_unit_test(pread_is_exact),
                                     cmocka_unit_test(gunzips_all_members_and_nothing_else),
                                     cmocka_unit_test(writes_pieces_in_place),
                                     cmocka_unit_test(failure_leaves_the_old_file),
                                     cmocka_unit_test(full_disk)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
