#include "tests/support.h"
#include "base/program/options.h"
#include "base/text.h"

static int json, seen, hidden;
static const char *out, *views;
static int64_t batch;
static uint64_t seed;
static double lr;
static float mean[3];
static const cmkd_option table[] = {
    {"--json", NULL, CMKD_OPT_FLAG, &json, "one object on stdout", 0, 0, NULL},
    {"--out", "FILE", CMKD_OPT_STRING, &out, "where to", 0, 0, NULL},
    {"--views", "N|all", CMKD_OPT_STRING, &views, "views a sample [1]", 0, 0, NULL},
    {"--batch", "N", CMKD_OPT_INT, &batch, "rows a step [64]", 1, 65536, &seen},
    {"--seed", "S", CMKD_OPT_UINT64, &seed, "training seed [1]", 0, 0, NULL},
    {"--lr", "X", CMKD_OPT_DOUBLE, &lr, "learning rate [0.05]", 0, 10, NULL},
    {"--mean", "R,G,B", CMKD_OPT_FLOATS3, mean, "of the pixels", 0, 0, NULL},
    {"--hidden", NULL, CMKD_OPT_FLAG, &hidden, NULL, 0, 0, NULL},
    {"--a-very-long-name-indeed", "WITH|ARGUMENTS", CMKD_OPT_FLAG, &hidden, "below its name", 0, 0, NULL},
    {"--terse", NULL, CMKD_OPT_FLAG, &hidden, "", 0, 0, NULL},
    {NULL, NULL, CMKD_OPT_FLAG, NULL, NULL, 0, 0, NULL},
};
static const cmkd_command command = {
    "tool build", "builds things", "[options] FILE", "tool build a.bin\n  tool build --json b.bin", table, 0, 2};
static const char *word[2];
static int words, help;
static cmkd_error err;

static cmkd_status parse(int argc, const char **argv) {
  return cmkd_options_parse(&command, argc, (char **)argv, word, &words, &help, &err);
}
#define PARSE(...) \
  parse((int)(sizeof((const char *[]){"x", __VA_ARGS__}) / sizeof(char *)), (const char *[]){"x", __VA_ARGS__})

static void every_kind(void **state) {
  (void)state;
  seen = json = 0;
  assert_ok(PARSE("--json", "--out", "o", "in", "--batch=7", "--seed", "18446744073709551615", "--lr", "1e-3", "--mean",
                  "0.1,0.2,0.3", "--", "--json"));
  assert_int_equal(json, 1);
  assert_string_equal(out, "o");
  assert_int_equal(batch, 7);
  assert_true(seen && seed == UINT64_MAX && lr == 1e-3 && mean[0] == 0.1f && mean[1] == 0.2f && mean[2] == 0.3f);
  assert_int_equal(words, 2);
  assert_string_equal(word[0], "in");
  assert_string_equal(word[1], "--json");
  assert_ok(PARSE("--seed", "0xff", "--mean=0.5", "--out=a=b", "-"));
  assert_true(seed == 255 && mean[0] == 0.5f && mean[2] == 0.5f);
  assert_string_equal(out, "a=b");
  assert_string_equal(word[0], "-");
  assert_ok(parse(1, (const char *[]){"x", NULL}));
  assert_int_equal(words, 0);
}

static void refuses(const char *expect, int argc, const char **argv) {
  err.message[0] = 0;
  assert_int_equal(parse(argc, argv), CMKD_ERR_USAGE);
  if (!strstr(err.message, expect)) fail_msg("'%s' does not say '%s'", err.message, expect);
}
#define REFUSES(expect, ...) \
  refuses(expect, (int)(sizeof((const char *[]){"x", __VA_ARGS__}) / sizeof(char *)), \
          (const char *[]){"x", __VA_ARGS__})

static void bad_words(void **state) {
  (void)state;
  REFUSES("did you mean --views?", "--vews", "3");
  REFUSES("did you mean --batch?", "--bacth=3");
  REFUSES("--help lists all", "--quite-another-thing");
  REFUSES("unknown option -q", "-q");
  REFUSES("needs a value: --out FILE", "--out");
  REFUSES("needs a value: --out FILE", "--out", "--seed", "3");
  REFUSES("needs a value: --out FILE", "--out=");
  REFUSES("takes no value", "--json=yes");
  REFUSES("from 1 to 65536", "--batch", "0");
  REFUSES("from 1 to 65536", "--batch", "-3");
  REFUSES("whole number", "--batch", "3.5");
  REFUSES("whole number", "--batch", "");
  REFUSES("whole number", "--batch", " 3");
  REFUSES("too large", "--batch", "99999999999999999999");
  REFUSES("whole number", "--seed", "-1");
  REFUSES("too large", "--seed", "18446744073709551616");
  REFUSES("finite", "--lr", "nan");
  REFUSES("finite", "--lr", "inf");
  REFUSES("finite", "--lr", "1e999");
  REFUSES("finite", "--lr", "0.1x");
  REFUSES("number", "--lr", "");
  REFUSES("from 0 to 10", "--lr", "-0.1");
  REFUSES("R,G,B", "--mean", "1,2");
  REFUSES("R,G,B", "--mean", "1,2,3,4");
  REFUSES("number", "--mean", "1,,3");
  REFUSES("number", "--mean", "1,2,");
  REFUSES("unexpected word c", "a", "b", "c");
}

static void values_may_look_odd(void **state) {
  (void)state;
  assert_ok(PARSE("--out", "-", "--views", "--7"));
  assert_string_equal(out, "-");
  assert_string_equal(views, "--7");
}

static void help_names_every_option(void **state) {
  (void)state;
  char *text = NULL;
  size_t size;
  FILE *f = open_memstream(&text, &size);
  cmkd_options_help(&command, f);
  fclose(f);
  for (const cmkd_option *o = table; o->name; o++) {
    if (!o->help) {
      assert_null(strstr(text, o->name));
      continue;
    }
    assert_non_null(strstr(text, o->name));
    assert_non_null(strstr(text, o->help));
  }
  assert_non_null(strstr(text, "--views N|all"));
  assert_non_null(strstr(text, "usage: tool build [options] FILE"));
  assert_non_null(strstr(text, "  tool build --json b.bin\n"));
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
    assert_false(line[0] && line[strlen(line) - 1] == ' ');
  free(text);
  assert_ok(PARSE("--nonsense", "--help"));
  assert_int_equal(help, 1);
}

static void nearest_names(void **state) {
  (void)state;
  static const char *const names[] = {"resnet8", "resnet20", "resnet8x4", "crop+flip", "cpu", "cuda", "schedule", NULL};
  assert_string_equal(cmkd_nearest("resnet-20", names), "resnet20");
  assert_string_equal(cmkd_nearest("ResNet8x4", names), "resnet8x4");
  assert_string_equal(cmkd_nearest("crop-flip", names), "crop+flip");
  assert_string_equal(cmkd_nearest("cdua", names), "cuda");
  assert_string_equal(cmkd_nearest("sched", names), "schedule");
  assert_null(cmkd_nearest("vit", names));
  assert_null(cmkd_nearest("", names));
  char big[5000];
  memset(big, 'r', sizeof big - 1);
  big[sizeof big - 1] = 0;
  assert_null(cmkd_nearest(big, names));
}

static void exit_statuses(void **state) {
  (void)state;
  cmkd_error quiet = {CMKD_ERR_IO, "a message that belongs to the test"};
  assert_int_equal(cmkd_exit_status("test", &quiet, CMKD_OK), 0);
  assert_int_equal(cmkd_exit_status("test", &quiet, CMKD_ERR_USAGE), 2);
  assert_int_equal(cmkd_exit_status("test", &quiet, CMKD_ERR_INTERRUPTED), 1);
  assert_int_equal(cmkd_exit_status("test", NULL, CMKD_ERR_IO), 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_kind),          cmocka_unit_test(bad_words),
                                     cmocka_unit_test(values_may_look_odd), cmocka_unit_test(help_names_every_option),
                                     cmocka_unit_test(nearest_names),       cmocka_unit_test(exit_statuses)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
