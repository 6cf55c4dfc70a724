/* cmkd-train as a user meets it: files, tables and refusals of whole commands. */
#include "tests/support_train.h"
#include <jansson.h>
#include <math.h>
#include <unistd.h>
#include "cmkd/dataset.h"
#include "cmkd/weights.h"

static const char *train, *cache;
static char dir[1200];

#define EPOCHS RUN_LENGTH("6", "2") /* of 4 steps */

static int labels_run(void **state) {
  (void)state;
  const char *out;
  train = program("cmkd-train"), cache = program("cmkd-cache");
  if (!train || !cache) return 0;
  snprintf(dir, sizeof dir, "%s", scratch_dir());
  if (run_command(&out,
                  "%s --device cpu --data %s --augment none --epochs " EPOCHS
                  " --batch 20 --val 10 --lr 0.1 --out %s/run > %s/run.txt",
                  train, tiny_data(), dir, dir) != 0 ||
      run_command(&out,
                  "%s build --quiet --device cpu --teacher %s/run/last.safetensors --data %s --views 2 --augment crop "
                  "--seed 4 --out %s/t.h5",
                  cache, dir, tiny_data(), dir) != 0) {
    printf("%s\n", out);
    return -1;
  }
  return 0;
}

/* A refusal: exit status, one line on stderr, and the words that it must hold (up to 4). */
static void refused(int status, const char *const words[4], const char *format, ...) {
  char arguments[4000];
  const char *out;
  va_list args;
  va_start(args, format);
  vsnprintf(arguments, sizeof arguments, format, args);
  va_end(args);
  if (!train || !cache) skip();
  int got = run_command(&out, "cd %s && %s %s", dir, train, arguments);
  if (got != status) fail_msg("%s: exit status %d, not %d: %s", arguments, got, status, out);
  if (strchr(out, '\n') != out + strlen(out) - 1) fail_msg("%s: not one line: %s", arguments, out);
  for (int i = 0; i < 4 && words[i]; i++)
    if (!strstr(out, words[i])) fail_msg("%s: lacks `%s`: %s", arguments, words[i], out);
}
#define WORDS(...) \
  (const char *const[4]) { __VA_ARGS__ }

static void a_run_writes_what_scripts_read(void **state) {
  (void)state;
  if (!train || !cache) skip();
  const char *said = text_of("%s/run.txt", dir);
  static const char *const words[] = {
      "resnet8: 0.0778 M parameters",       "loss      ce:1",       "76 training, 10 validation, 70 test",
      "best is chosen by validation top-1", "last         " EPOCHS, "files: "};
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (!strstr(said, words[i])) fail_msg("`%s` is not in: %s", words[i], said);
  char *log = strdup(text_of("%s/run/log.jsonl", dir)), *rest = NULL;
  int epoch = 0;
  double first = 0, last = 0;
  for (char *line = strtok_r(log, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
    json_t *o = json_loads(line, 0, NULL);
    assert_true(json_is_object(o));
    assert_int_equal(json_integer_value(json_object_get(o, "epoch")), ++epoch);
    static const char *const numbers[] = {"top1", "top5", "loss", "lr", "seconds", "images_per_s", "val_top1"};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
      if (!json_is_number(json_object_get(o, numbers[i]))) fail_msg("no %s in %s", numbers[i], line);
    assert_true(json_is_null(json_object_get(o, "test_pearson"))); /* no teacher */
    last = json_number_value(json_object_get(json_object_get(o, "parts"), "ce"));
    if (epoch == 1) first = last;
    assert_true(fabs(last - json_number_value(json_object_get(o, "loss"))) < 1e-6);
    json_decref(o);
  }
  assert_int_equal(epoch, atoi(EPOCHS));
  assert_true(last < RUN_LENGTH(0.7, 1.0) * first); /* it learns */
  free(log);
}

static void weights_carry_their_story(void **state) {
  (void)state;
  if (!train || !cache) skip();
  cmkd_weights *w;
  cmkd_error err;
  char path[1300];
  snprintf(path, sizeof path, "%s/run/last.safetensors", dir);
  assert_ok(cmkd_weights_read(path, &w, &err));
  static const char *const meta[][2] = {{"arch", "resnet8"}, {"dataset", "mnist"}, {"classes", "10"},
                                        {"loss", "ce:1"},    {"epoch", EPOCHS},    {"mean", "0.1307"}};
  for (size_t i = 0; i < sizeof meta / sizeof *meta; i++) {
    const char *value = cmkd_weights_meta(w, meta[i][0]);
    if (!value || strncmp(value, meta[i][1], strlen(meta[i][1])))
      fail_msg("%s is %s, not %s", meta[i][0], value ? value : "missing", meta[i][1]);
  }
  assert_non_null(cmkd_weights_find(w, "layer3.0.downsample.0.weight"));
  const cmkd_tensor *batches = cmkd_weights_find(w, "bn1.num_batches_tracked");
  assert_non_null(batches);
  assert_true(*(const int64_t *)batches->data == atoi(EPOCHS) * 4);
  cmkd_weights_free(w);
}

/* eval finds the accuracy that the run wrote down, and dumps the logits that it comes from. */
static void eval_agrees_with_the_run(void **state) {
  (void)state;
  if (!train || !cache) skip();
  const char *out;
  cmkd_weights *w, *dump;
  cmkd_dataset *data;
  cmkd_error err;
  char path[1300];
  snprintf(path, sizeof path, "%s/run/last.safetensors", dir);
  if (run_command(&out, "%s eval --quiet --device cpu --weights %s --data %s --json --dump %s/dump.safetensors", train,
                  path, tiny_data(), dir))
    fail_msg("%s", out);
  json_t *o = json_loads(out, 0, NULL);
  double top1 = json_number_value(json_object_get(o, "top1")), top5 = json_number_value(json_object_get(o, "top5"));
  assert_ok(cmkd_weights_read(path, &w, &err));
  assert_true(fabs(top1 - strtod(cmkd_weights_meta(w, "top1"), NULL)) < 0.006);
  assert_true(fabs(top5 - strtod(cmkd_weights_meta(w, "top5"), NULL)) < 0.006);
  assert_true(top1 <= top5);
  snprintf(path, sizeof path, "%s/dump.safetensors", dir);
  assert_ok(cmkd_weights_read(path, &dump, &err));
  const cmkd_tensor *logits = cmkd_weights_find(dump, "logits"), *features = cmkd_weights_find(dump, "features"),
                    *labels = cmkd_weights_find(dump, "labels");
  assert_true(logits && features && labels);
  assert_true(logits->dims == 2 && logits->shape[0] == TINY_TEST && logits->shape[1] == 10 &&
              features->shape[0] == TINY_TEST && features->shape[1] == 64 && labels->count == TINY_TEST);
  assert_ok(cmkd_dataset_open(tiny_data(), "test", NULL, &data, &err));
  assert_memory_equal(labels->data, data->labels, TINY_TEST * sizeof(int32_t));
  const cmkd_tensor *fc = cmkd_weights_find(w, "fc.weight"), *bias = cmkd_weights_find(w, "fc.bias");
  int correct = 0;
  for (int i = 0; i < TINY_TEST; i++) {
    const float *row = (const float *)logits->data + i * 10, *x = (const float *)features->data + i * 64;
    int best = 0;
    for (int c = 0; c < 10; c++) {
      double sum = ((const float *)bias->data)[c]; /* features are what the classifier reads */
      for (int k = 0; k < 64; k++)
        sum += (double)x[k] * ((const float *)fc->data)[c * 64 + k];
      assert_true(fabs(sum - row[c]) < 1e-4 * (1 + fabs(sum)));
      if (row[c] > row[best]) best = c;
    }
    correct += best == data->labels[i];
  }
  assert_true(fabs(top1 - 100.0 * correct / TINY_TEST) < 1e-6);
  json_decref(o);
  cmkd_dataset_close(data);
  cmkd_weights_free(w);
  cmkd_weights_free(dump);
}

/* A cache alone is enough; correlations with the teacher are logged under every loss, those of the test split from the
 * companion cache. */
static void a_cache_alone(void **state) {
  (void)state;
  if (!train || !cache) skip();
  const char *out;
  if (run_command(&out,
                  "cd %s && %s --device cpu --cache t.h5 --data %s --epochs 1 --batch 50 --loss ce --json 2> ce.txt",
                  dir, train, tiny_data()))
    fail_msg("%s", text_of("%s/ce.txt", dir));
  json_t *o = json_loads(out, 0, NULL), *last = json_object_get(o, "last");
  assert_string_equal(json_string_value(json_object_get(o, "out")), "runs/resnet8-ce-1");
  assert_true(json_is_number(json_object_get(last, "train_pearson")) &&
              json_is_number(json_object_get(last, "train_spearman")));
  assert_true(json_is_number(json_object_get(last, "test_pearson")) && json_is_number(json_object_get(last, "blocks")));
  assert_true(json_is_true(json_object_get(o, "finished")));
  assert_string_equal(json_string_value(json_object_get(o, "last_sha256")),
                      sha256_of("%s/runs/resnet8-ce-1/last.safetensors", dir));
  json_decref(o);
  assert_non_null(strstr(text_of("%s/runs/resnet8-ce-1/config.json", dir), "\"cache_sha256\""));
  /* without its companion: a note, and null */
  if (run_command(&out,
                  "cd %s && mkdir -p alone && cp -r t.h5 t.shards alone/ && %s --device cpu --cache alone/t.h5 --data "
                  "%s --epochs 1 --batch 50 --out alone/run",
                  dir, train, tiny_data()))
    fail_msg("%s", out);
  assert_non_null(strstr(out, "no correlation with the teacher on the test split"));
  assert_non_null(strstr(text_of("%s/alone/run/log.jsonl", dir), "\"test_pearson\":null"));
  assert_non_null(strstr(text_of("%s/alone/run/log.jsonl", dir), "\"spearman\":"));
}

static void refuses_foreign_caches(void **state) {
  (void)state;
  const char *data = tiny_data(), *other = tiny_other_data();
  refused(1, WORDS("t.h5", "fingerprint"), "--cache t.h5 --data %s", other);
  refused(1, WORDS("t.h5", "mnist", "cifar10"), "--cache t.h5 --data cifar10");
  refused(1, WORDS("t.h5", "crop", "flip"), "--cache t.h5 --data %s --augment flip", data);
  refused(1, WORDS("t.h5", "86", "87"), "--cache t.h5 --data %s --samples 87", data);
  refused(1, WORDS("t.h5", "test"), "--cache t.test.h5 --data %s", data);
  refused(1, WORDS("t.h5"), "--cache t.h5 --data %s --test-cache t.h5", data);
  refused(1, WORDS("nowhere.h5"), "--cache nowhere.h5");
  refused(1, WORDS("run/log.jsonl"), "--cache run/log.jsonl");
  refused(1, WORDS("run/log.jsonl"), "--teacher run/log.jsonl --data %s", data);
  assert_int_not_equal(access("runs/resnet8-cmkd-1", F_OK), 0);
}

static void refuses_bad_words(void **state) {
  (void)state;
  refused(2, WORDS("resnet8"), "--student resnt8 --data %s", tiny_data());
  refused(2, WORDS("cmkd"), "--loss cmdk --cache t.h5 --data %s", tiny_data());
  refused(2, WORDS("fashion-mnist"), "--data fashon-mnist");
  refused(2, WORDS("--epochs"), "--epoch 3");
  refused(2, WORDS("eval"), "eva");
  refused(2, WORDS("--weights"), "eval");
  refused(2, WORDS("resnet8"), "eval --weights run/last.safetensors --arch resne8 --data %s", tiny_data());
  refused(2, WORDS("train", "test"), "eval --weights run/last.safetensors --split tset --data %s", tiny_data());
  refused(1, WORDS("71", "70"), "eval --weights run/last.safetensors --samples 71 --data %s", tiny_data());
  refused(1, WORDS("state.safetensors"),
          "eval --weights run/state.safetensors --arch resnet8 --mean 0 --std 1 --data %s", tiny_data());
}

static void unwritable_and_full(void **state) {
  (void)state;
  refused(1, WORDS("run.txt"), "--device cpu --data %s --out run.txt/x", tiny_data());
  if (!train || !cache) skip();
  const char *out; /* no file may grow past 100 kB: the state does not fit, which shows before the first step */
  int status = run_command(
      &out, "cd %s && trap '' XFSZ && ulimit -f 200 && %s --device cpu --data %s --out full --epochs 1 2> full.txt",
      dir, train, tiny_data());
  assert_int_equal(status, 1);
  assert_null(strstr(out, "images/s"));
  const char *said = text_of("%s/full.txt", dir);
  if (!strstr(said, "full/state.safetensors")) fail_msg("%s", said);
  assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1);
  assert_int_equal(run_command(&out, "ls %s/full 2> /dev/null | grep .", dir), 1); /* nothing left behind */
}

static void numbers_that_run_away(void **state) {
  (void)state;
  if (!train || !cache) skip();
  const char *out;
  int status = run_command(
      &out, "%s --device cpu --data %s --lr 1e6 --epochs 40 --batch 8 --eval-every 40 --out %s/wild --quiet", train,
      tiny_data(), dir);
  assert_int_equal(status, 1);
  if (!strstr(out, "sample") && !strstr(out, "finite")) fail_msg("%s", out);
  status = run_command(
      &out, "%s --device cpu --data %s --lr 1e6 --epochs 40 --batch 8 --eval-every 40 --out %s/wild --quiet --resume",
      train, tiny_data(), dir); /* the state is a good one */
  assert_int_equal(status, 1);
  if (!strstr(out, "sample") && !strstr(out, "finite")) fail_msg("%s", out);
}

static void help_and_nets(void **state) {
  (void)state;
  if (!train || !cache) skip();
  const char *out;
  assert_int_equal(run_command(&out, "%s --help", train), 0);
  assert_non_null(strstr(out, "--cache FILE"));
  assert_null(strstr(out, "(null)"));
  int lines = 0;
  for (const char *at = out; (at = strchr(at, '\n')); at++)
    lines++;
  assert_in_range(lines, 20, 48);
  assert_int_equal(run_command(&out, "%s eval --help", train), 0);
  assert_non_null(strstr(out, "--dump FILE"));
  assert_int_equal(run_command(&out, "%s nets", train), 0);
  assert_non_null(strstr(out, "resnet20                   278324      40.8"));
  assert_int_equal(run_command(&out, "%s --version", train), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_run_writes_what_scripts_read),
                                     cmocka_unit_test(weights_carry_their_story),
                                     cmocka_unit_test(eval_agrees_with_the_run),
                                     cmocka_unit_test(a_cache_alone),
                                     cmocka_unit_test(refuses_foreign_caches),
                                     cmocka_unit_test(refuses_bad_words),
                                     cmocka_unit_test(unwritable_and_full),
                                     cmocka_unit_test(numbers_that_run_away),
                                     cmocka_unit_test(help_and_nets)};
  return cmocka_run_group_tests(tests, labels_run, NULL);
}
