/* Progress and interrupts: both talk to the world outside, so a child process shows what a user would see. */
#include "tests/support.h"
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
#include "base/program/interrupt.h"
#include "base/program/progress.h"
#include "base/text.h"

static void durations(void **state) {
  (void)state;
  char b[24];
  assert_string_equal(cmkd_duration(0, b), "0.0 s");
  assert_string_equal(cmkd_duration(12.34, b), "12.3 s");
  assert_string_equal(cmkd_duration(59.96, b), "1 min 00 s");
  assert_string_equal(cmkd_duration(200, b), "3 min 20 s");
  assert_string_equal(cmkd_duration(3599.6, b), "1 h 00 min");
  assert_string_equal(cmkd_duration(3720, b), "1 h 02 min");
  assert_string_equal(cmkd_duration(100 * 3600.0, b), "100 h 00 min");
  assert_string_equal(cmkd_duration(-1, b), "0.0 s");
  assert_string_equal(cmkd_duration(0.0 / 0.0, b), "0.0 s");
  assert_string_equal(cmkd_duration(1e300, b), "for ever");
}

static void sizes(void **state) {
  (void)state;
  char b[24];
  assert_string_equal(cmkd_bytes(0, b), "0 B");
  assert_string_equal(cmkd_bytes(999, b), "999 B");
  assert_string_equal(cmkd_bytes(1000, b), "1.00 kB");
  assert_string_equal(cmkd_bytes(999999, b), "1.00 MB");
  assert_string_equal(cmkd_bytes(1240000000, b), "1.24 GB");
  assert_string_equal(cmkd_bytes(12400000, b), "12.4 MB");
  assert_string_equal(cmkd_bytes(UINT64_MAX, b), "18447 PB");
}

/* Runs a short job in a child whose stderr is `fd`; it is old enough to be drawn at once. */
static void job(int fd, int quiet) {
  pid_t child = fork();
  if (child == 0) {
    dup2(fd, STDERR_FILENO);
    setenv("TERM", "xterm", 1);
    cmkd_progress p;
    cmkd_progress_start(&p, "epoch 3/20", "images", 1000, 100, quiet);
    p.started -= 10;
    p.shown -= 60;
    snprintf(p.note, sizeof p.note, "loss 2.31");
    cmkd_progress_update(&p, 600);
    cmkd_progress_update(&p, 700); /* too soon: not drawn */
    cmkd_progress_end(&p);
    cmkd_progress_update(&p, 800);
    _exit(0);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
}

static void plain_lines_in_a_pipe(void **state) {
  (void)state;
  int ends[2];
  char text[4096];
  assert_int_equal(pipe(ends), 0);
  job(ends[1], 0);
  job(ends[1], 1);
  close(ends[1]);
  ssize_t size = read(ends[0], text, sizeof text - 1);
  assert_true(size > 0);
  text[size] = 0;
  close(ends[0]);
  assert_string_equal(text, "epoch 3/20: 60%  50.0 images/s  8.0 s left  loss 2.31\n");
}

static void bar_on_a_terminal(void **state) {
  (void)state;
  int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || grantpt(master) || unlockpt(master)) {
    printf("SKIP: bar_on_a_terminal needs a pseudo terminal\n");
    skip();
  }
  for (int width = 20; width <= 100; width += 40) {
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    struct winsize size = {.ws_col = (unsigned short)width, .ws_row = 24};
    char text[4096];
    assert_true(slave >= 0);
    assert_int_equal(ioctl(slave, TIOCSWINSZ, &size), 0);
    job(slave, 0);
    ssize_t got = read(master, text, sizeof text - 1);
    assert_true(got > 0);
    text[got] = 0;
    assert_null(strchr(text, '\n'));
    assert_true(got >= 4 && !strcmp(text + got - 4, "\r\033[K")); /* cleared at the end */
    if (width == 100) {
      assert_non_null(strstr(text, "[==================>           ]"));
      assert_non_null(strstr(text, " 60%  50.0 images/s  8.0 s left  loss 2.31"));
    }
    for (char *line = strtok(text, "\r"); line; line = strtok(NULL, "\r"))
      assert_true((int)strcspn(line, "\033") < width);
    close(slave);
  }
  close(master);
}

static void first_signal_asks_second_kills(void **state) {
  (void)state;
  pid_t child = fork();
  if (child == 0) {
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    cmkd_interrupt_install();
    if (cmkd_interrupted()) _exit(1);
    raise(SIGINT);
    if (cmkd_interrupted() != SIGINT) _exit(2);
    raise(SIGTERM);
    _exit(3);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

static void ignored_signals_stay_ignored(void **state) {
  (void)state;
  pid_t child = fork();
  if (child == 0) {
    signal(SIGINT, SIG_IGN);
    cmkd_interrupt_install();
    raise(SIGINT);
    _exit(cmkd_interrupted());
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(durations),
                                     cmocka_unit_test(sizes),
                                     cmocka_unit_test(plain_lines_in_a_pipe),
                                     cmocka_unit_test(bar_on_a_terminal),
                                     cmocka_unit_test(first_signal_asks_second_kills),
                                     cmocka_unit_test(ignored_signals_stay_ignored)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
