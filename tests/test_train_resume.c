/* A run cut anywhere, by any signal, ends as if it had not been: same weights, same steps, same log but for its clocks.
 */
#include "tests/support_train.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/rng.h"

static const char *train;
static char dir[1200];
static double whole_seconds; /* of the run that nobody cut */
#define SETTINGS \
  "--device cpu --epochs " RUN_LENGTH("6", "2") " --batch 16 --val 10 --seed 8 --loss ce --label-smoothing 0.1 " \
                                                "--nesterov --warmup 1 --schedule cosine --log-steps --save-every 3"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int whole_run(void **state) {
  (void)state;
  const char *out;
  train = program("cmkd-train");
  if (!train) return 0;
  snprintf(dir, sizeof dir, "%s", scratch_dir());
  double begin = now();
  if (run_command(&out, "%s --data %s %s --out %s/whole", train, tiny_data(), SETTINGS, dir) != 0) {
    printf("%s\n", out);
    return -1;
  }
  whole_seconds = now() - begin;
  return 0;
}

/* Starts the run in `name` with --resume; output goes to dir/name.txt. */
static pid_t start(const char *name) {
  char command[6000], out[1300];
  snprintf(out, sizeof out, "%s/%s.txt", dir, name);
  snprintf(command, sizeof command, "exec %s --data %s %s --resume --out %s/%s", train, tiny_data(), SETTINGS, dir,
           name);
  pid_t child = fork();
  if (child == 0) {
    int fd = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    signal(SIGINT, SIG_DFL);
    if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0) _exit(126);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
  }
  assert_true(child > 0);
  return child;
}

static int end_of(pid_t child) {
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  return status;
}

static void wait_for(double seconds) {
  struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  while (nanosleep(&pause, &pause) != 0 && errno == EINTR) {
  }
}

/* Starts a run, sends `number` after `seconds`, and gives the wait status. */
static int cut(const char *name, double seconds, int number) {
  pid_t child = start(name);
  wait_for(seconds);
  kill(child, number);
  return end_of(child);
}

/* The same once the run has saved its state (for the first time since this start), however slow the machine. */
static int cut_once_saved(const char *name, int number) {
  char path[1300];
  snprintf(path, sizeof path, "%s/%s/state.safetensors", dir, name);
  struct stat before = {0}, now_there;
  siginfo_t ended = {0};
  if (stat(path, &before) != 0) before.st_ino = 0;
  pid_t child = start(name);
  while (!ended.si_pid && (stat(path, &now_there) != 0 || now_there.st_ino == before.st_ino)) {
    wait_for(0.002);
    assert_int_equal(waitid(P_PID, (id_t)child, &ended, WEXITED | WNOHANG | WNOWAIT), 0);
  }
  kill(child, number);
  return end_of(child);
}

/* The log without the two figures that a clock gives. */
static void without_clocks(char *text) {
  static const char *const keys[] = {",\"seconds\":", ",\"images_per_s\":"};
  for (int i = 0; i < 2; i++)
    for (char *at; (at = strstr(text, keys[i]));) {
      char *end = at + 1 + strcspn(at + 1, ",}");
      memmove(at, end, strlen(end) + 1);
    }
}

static void same_as_whole(const char *name) {
  char *one = strdup(text_of("%s/whole/log.jsonl", dir)), *two = strdup(text_of("%s/%s/log.jsonl", dir, name));
  const char *out;
  without_clocks(one), without_clocks(two);
  assert_true(strlen(one) > 300);
  assert_string_equal(one, two);
  assert_string_equal(text_of("%s/whole/steps.jsonl", dir), text_of("%s/%s/steps.jsonl", dir, name));
  assert_int_equal(strlen(sha256_of("%s/whole/last.safetensors", dir)), 64);
  assert_string_equal(sha256_of("%s/whole/last.safetensors", dir), sha256_of("%s/%s/last.safetensors", dir, name));
  assert_string_equal(sha256_of("%s/whole/best.safetensors", dir), sha256_of("%s/%s/best.safetensors", dir, name));
  assert_int_equal(run_command(&out, "ls %s/%s | grep -E 'tmp|lock'", dir, name), 1); /* nothing left over */
  free(one), free(two);
}

static void killed_at_random(void **state) {
  (void)state;
  if (!train) skip();
  cmkd_rng rng = cmkd_rng_start(test_seed(), CMKD_STREAM_TEST, 0);
  int killed = 0;
  for (int i = 0; i < RUN_LENGTH(6, 2); i++) {
    int status = cut("killed", whole_seconds * (0.1 + 0.6 * cmkd_rng_uniform(&rng)), SIGKILL);
    killed += WIFSIGNALED(status);
  }
  if (!killed)
    killed = WIFSIGNALED(cut_once_saved("killed", SIGKILL)); /* all came before the first step, or after the last */
  int status = end_of(start("killed"));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail_msg("%s", text_of("%s/killed.txt", dir));
  assert_true(killed > 0);
  same_as_whole("killed");
}

/* A run may be done before the signal comes: then once more. */
static void interrupted(void **state) {
  (void)state;
  if (!train) skip();
  int stopped = 0;
  const char *said, *out;
  for (int attempt = 0; attempt < 20 && !stopped; attempt++) {
    assert_int_equal(run_command(&out, "rm -rf '%s/interrupted'", dir), 0);
    for (int i = 0; i < 3; i++) {
      int status = cut_once_saved("interrupted", i == 1 ? SIGTERM : SIGINT);
      said = text_of("%s/interrupted.txt", dir);
      if (!WIFEXITED(status)) fail_msg("it does not listen: wait status %d, %s", status, said);
      if (WEXITSTATUS(status) == 0) break;
      assert_int_equal(WEXITSTATUS(status), 1);
      assert_non_null(strstr(said, "the state is saved"));
      assert_non_null(strstr(said, "go on with\n  cmkd-train "));
      stopped++;
    }
  }
  if (!stopped) fail_msg("in 20 runs no signal came before the end");
  int status = end_of(start("interrupted"));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail_msg("%s", text_of("%s/interrupted.txt", dir));
  same_as_whole("interrupted");
}

/* Every place where a run can stop: inside an epoch, at its last step, after it. */
static void stopped_by_max_steps(void **state) {
  (void)state;
  const char *out;
  if (!train) skip();
  for (int i = 0; i < RUN_LENGTH(16, 6); i++) { /* epochs of 5 steps, in pieces of 1, 2, 3, 1, 2, 3, ... */
    if (run_command(&out, "%s --data %s %s --resume --max-steps %d --out %s/pieces", train, tiny_data(), SETTINGS,
                    1 + i % 3, dir))
      fail_msg("%s", out);
    if (i == 2) assert_non_null(strstr(out, "stopped by --max-steps after 6 steps"));
  }
  same_as_whole("pieces");
}

static void other_settings_are_refused(void **state) {
  (void)state;
  const char *out;
  if (!train) skip();
  static const char *const others[][2] = {{"--seed 9", "seed is 8 there and 9 here"},
                                          {"--lr 0.01", "lr is 0.05 there and 0.01 here"},
                                          {"--epochs 5", "epochs is " RUN_LENGTH("6", "2") " there and 5 here"},
                                          {"--student resnet14", "student is resnet8 there and resnet14 here"},
                                          {"--augment none", "augment is crop there and none here"}};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    assert_int_equal(run_command(&out, "%s --data %s %s %s --resume --out %s/whole", train, tiny_data(), SETTINGS,
                                 others[i][0], dir),
                     1);
    if (!strstr(out, others[i][1])) fail_msg("%s: %s", others[i][0], out);
  }
  assert_int_equal(
      run_command(&out, "%s --data %s %s --resume --out %s/whole", train, tiny_other_data(), SETTINGS, dir), 1);
  assert_non_null(strstr(out, "fingerprint is"));
  assert_int_equal(run_command(&out, "%s --data %s %s --out %s/whole", train, tiny_data(), SETTINGS, dir), 1);
  assert_non_null(strstr(out, "finished"));
  assert_int_equal(run_command(&out, "%s --data %s %s --resume --out %s/whole", train, tiny_data(), SETTINGS, dir),
                   0); /* finished: its table again */
  assert_non_null(strstr(out, "best"));
}

/* A run whose state is gone or damaged is not overwritten; the line says what to do. */
static void without_its_state_nothing_is_touched(void **state) {
  (void)state;
  const char *out;
  char before[65];
  if (!train) skip();
  assert_int_equal(
      run_command(&out, "cp -r %s/whole %s/lost && truncate -s 3000 %s/lost/state.safetensors", dir, dir, dir), 0);
  snprintf(before, sizeof before, "%s", sha256_of("%s/lost/last.safetensors", dir));
  assert_int_equal(run_command(&out, "%s --data %s %s --resume --out %s/lost", train, tiny_data(), SETTINGS, dir), 1);
  assert_non_null(strstr(out, "state.safetensors is damaged; remove the run's folder"));
  assert_int_equal(run_command(&out, "rm %s/lost/state.safetensors", dir), 0);
  assert_int_equal(run_command(&out, "%s --data %s %s --resume --out %s/lost", train, tiny_data(), SETTINGS, dir), 1);
  assert_non_null(strstr(out, "not the state of the run"));
  assert_string_equal(sha256_of("%s/lost/last.safetensors", dir), before);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(killed_at_random), cmocka_unit_test(interrupted), cmocka_unit_test(stopped_by_max_steps),
      cmocka_unit_test(other_settings_are_refused), cmocka_unit_test(without_its_state_nothing_is_touched)};
  return cmocka_run_group_tests(tests, whole_run, NULL);
}
