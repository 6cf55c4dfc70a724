#include "tests/support.h"
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/program/environment.h"

/* $CMKD_ISA holds for tests as it does for programs. */
__attribute__((constructor)) static void lower_isa(void) { cmkd_environment_lower_isa(); }

/* Before main: every test program takes the names of its tests from the environment. */
__attribute__((constructor)) static void choose_tests(void) {
  const char *pattern = getenv("CMKD_TEST");
  if (pattern && *pattern) cmocka_set_test_filter(pattern);
}

static const char *shared_root(void) {
  const char *root = getenv("CMKD_SHARED");
  return root ? root : "../shared";
}

const char *shared_path(const char *name) {
  static char path[8][1024];
  static int next;
  char *out = path[next++ % 8];
  snprintf(out, 1024, "%s/%s", shared_root(), name);
  if (access(out, R_OK) == 0) return out;
  printf("SKIP: %s is not here (set CMKD_SHARED)\n", out);
  return NULL;
}

const char *shared_cifar(const char *name) {
  static char path[4][1024];
  static int next;
  char *out = path[next++ % 4], command[4096];
  const char *build = getenv("CMKD_BUILD");
  snprintf(command, sizeof command, "data/%s", name);
  const char *source = shared_path(command);
  if (!source) return NULL;
  snprintf(out, 1024, "%s/data/%s", build ? build : "build", name);
  snprintf(command, sizeof command, "mkdir -p '%s' && bench/gpu/cifar.py '%s' '%s' > /dev/null 2>&1", out, source, out);
  if (system(command) == 0) return out;
  printf("SKIP: %s needs djxl (libjxl-tools) and python3\n", source);
  return NULL;
}

const char *python_with(const char *modules) {
  static const char *const names[] = {"/usr/bin/python3", "python3"};
  for (int i = 0; i < 2; i++)
    if (run_command(NULL, "'%s' -c 'import sys%s%s'", names[i], *modules ? ", " : "", modules) == 0) return names[i];
  printf("SKIP: no python3%s%s here\n", *modules ? " with " : "", modules);
  return NULL;
}

int has_program(const char *name) {
  if (run_command(NULL, "command -v '%s'", name) == 0) return 1;
  printf("SKIP: no program %s here\n", name);
  return 0;
}

void use_best_isa(void) {
  unsetenv("CMKD_ISA");
  cmkd_cpu_lower_isa("");
}

int use_isa(cmkd_isa isa) {
  use_best_isa();
  const cmkd_isa best = cmkd_cpu_isa();
  if (best < isa) {
    printf("SKIP: this machine has no %s (its best is %s)\n", cmkd_isa_name(isa), cmkd_isa_name(best));
    return 0;
  }
  setenv("CMKD_ISA", cmkd_isa_name(isa), 1);
  cmkd_environment_lower_isa();
  assert_int_equal(cmkd_cpu_isa(), isa);
  return 1;
}

uint64_t test_seed(void) {
  static uint64_t seed;
  static int known;
  if (known) return seed;
  const char *given = getenv("CMKD_TEST_SEED");
  seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
  known = 1;
  printf("note: random numbers from CMKD_TEST_SEED=%llu\n", (unsigned long long)seed);
  return seed;
}

static char scratch[1024];
static void remove_scratch(void) {
  char command[1100];
  snprintf(command, sizeof command, "rm -rf '%s'", scratch);
  if (system(command) != 0) fprintf(stderr, "could not remove %s\n", scratch);
}

const char *scratch_dir(void) {
  const char *tmp = getenv("TMPDIR");
  if (!scratch[0]) {
    snprintf(scratch, sizeof scratch, "%s/cmkd-test-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(scratch)) {
      perror(scratch);
      abort();
    }
    atexit(remove_scratch);
  }
  static char dir[8][1100];
  static int next;
  char *out = dir[next % 8];
  snprintf(out, 1100, "%s/%d", scratch, next++);
  if (mkdir(out, 0777) != 0) {
    perror(out);
    abort();
  }
  return out;
}

int run_command(const char **output, const char *format, ...) {
  static char text[1 << 16];
  char command[8192];
  va_list args;
  va_start(args, format);
  size_t at = (size_t)snprintf(command, sizeof command, "( ");
  at += (size_t)vsnprintf(command + at, sizeof command - at, format, args);
  va_end(args);
  if (at >= sizeof command - 16) abort();
  strcat(command, " ) 2>&1");
  FILE *pipe = popen(command, "r");
  if (!pipe) abort();
  size_t size = fread(text, 1, sizeof text - 1, pipe);
  while (fgetc(pipe) != EOF) {
  }
  text[size] = 0;
  int status = pclose(pipe);
  if (output) *output = text;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
