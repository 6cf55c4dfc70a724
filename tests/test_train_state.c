#include "tests/support_train.h"
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "train/folder.h"

static cmkd_graph *graph;

static int open_graph(void **state) {
  (void)state;
  cmkd_error err;
  return cmkd_net_build("resnet8", (cmkd_net_shape){28, 28, 1, 10}, &graph, &err) != CMKD_OK;
}
static int close_graph(void **state) {
  (void)state;
  cmkd_graph_free(graph);
  return 0;
}

static json_t *settings(double lr) {
  return json_pack("{s:s, s:f, s:i}", "student", "resnet8", "lr", lr, "epochs", 20);
}

/* A state with every field set to something of its own. */
static void fill(cmkd_state *s) {
  cmkd_error err;
  assert_ok(cmkd_state_create(graph, s, &err));
  cmkd_params_init(graph, 3, &s->value);
  for (int i = 0; i < graph->params; i++)
    if (CMKD_PARAM_TRAINED(graph->param[i].kind))
      for (int64_t j = 0; j < graph->param[i].count; j++)
        s->momentum.value[i][j] = (float)(j + 1) / 3;
  s->epoch = 2, s->step = 3, s->total_steps = 13, s->elapsed = 1.0 / 3;
  s->sums = (cmkd_epoch_sums){.images = 96,
                              .top1 = 7,
                              .top5 = 50,
                              .blocks_rows = 96,
                              .agreement_rows = 95,
                              .loss = 1e300 / 3,
                              .blocks = 0.1,
                              .pearson = -0.3,
                              .spearman = 0.7,
                              .agreement_blocks = 1e-300,
                              .seconds = 2};
  for (int i = 0; i < CMKD_LOSS_MAX_PARTS; i++)
    s->sums.part[i] = i + 0.1;
  s->last = (cmkd_score){.epoch = 2,
                         .top1 = 10.1,
                         .top5 = 50.2,
                         .test_loss = 2.3,
                         .test_pearson = NAN,
                         .test_spearman = 0.5,
                         .val_top1 = NAN,
                         .loss = 2.2,
                         .train_top1 = 11,
                         .train_pearson = 0.25,
                         .train_spearman = 0.125,
                         .blocks = 0.4};
  s->best = s->last;
  s->best.epoch = 1, s->best.top1 = 12.5, s->best.val_top1 = 9;
  assert_ok(cmkd_state_log(s, "{\"epoch\":1}", &err));
  assert_ok(cmkd_state_log(s, "{\"epoch\":2}", &err));
}

/* Bit patterns: a struct of doubles may differ in NaN payloads nowhere here, as all come from the same source. */
static void assert_same(const cmkd_state *a, const cmkd_state *b) {
  assert_true(a->epoch == b->epoch && a->step == b->step && a->total_steps == b->total_steps &&
              a->elapsed == b->elapsed);
  assert_memory_equal(&a->sums, &b->sums, sizeof a->sums);
  assert_memory_equal(&a->last, &b->last, sizeof a->last);
  assert_memory_equal(&a->best, &b->best, sizeof a->best);
  assert_string_equal(a->log, b->log);
  for (int i = 0; i < graph->params; i++) {
    size_t size = (size_t)graph->param[i].count * sizeof(float);
    assert_memory_equal(a->value.value[i], b->value.value[i], size);
    assert_memory_equal(a->momentum.value[i], b->momentum.value[i], size);
  }
}

static void saved_and_loaded(void **state) {
  (void)state;
  cmkd_state one, two;
  cmkd_error err;
  char path[1200];
  snprintf(path, sizeof path, "%s/state.safetensors", scratch_dir());
  fill(&one);
  json_t *set = settings(0.05), *read;
  assert_ok(cmkd_state_save(graph, &one, set, path, &err));
  char first[65];
  strcpy(first, sha256_of("%s", path));
  assert_ok(cmkd_state_save(graph, &one, set, path, &err));
  assert_string_equal(first, sha256_of("%s", path)); /* no times inside */
  cmkd_weights *file;
  assert_ok(cmkd_weights_read(path, &file, &err));
  assert_ok(cmkd_state_create(graph, &two, &err));
  assert_ok(cmkd_state_settings(file, &read, &err));
  assert_true(json_equal(read, set));
  assert_ok(cmkd_state_load(graph, file, &two, &err));
  assert_same(&one, &two);
  cmkd_weights_free(file);
  json_decref(read);
  json_decref(set);
  cmkd_state_free(&one);
  cmkd_state_free(&two);
}

static void sums_weigh_partial_batches(void **state) {
  (void)state;
  cmkd_epoch_sums sums = {0};
  cmkd_step_result a = {.count = 30,
                        .loss = {.loss = 2, .part = {1, 4}, .blocks = 0.5},
                        .top1 = 3,
                        .top5 = 10,
                        .agreement = {3, 6, 9, 30}};
  cmkd_step_result b = {
      .count = 10, .loss = {.loss = 6, .part = {5, 0}, .blocks = NAN}, .top1 = 1, .top5 = 2, .agreement = {0, 0, 0, 0}};
  cmkd_epoch_sums_add(&sums, &a, 2);
  cmkd_epoch_sums_add(&sums, &b, 2);
  assert_true(sums.images == 40 && sums.loss / 40 == 3 && sums.part[0] / 40 == 2 && sums.part[1] / 40 == 3);
  assert_true(sums.blocks_rows == 30 && sums.blocks == 15 && sums.agreement_rows == 30 && sums.top1 == 4 &&
              sums.top5 == 12);
}

static cmkd_status reopen(const char *dir, double lr, int resume, cmkd_error *err) {
  cmkd_state s;
  cmkd_folder f;
  int resumed;
  json_t *set = settings(lr);
  const cmkd_folder_options options = {.path = dir, .settings = set, .graph = graph, .resume = resume};
  assert_int_equal(cmkd_state_create(graph, &s, err), CMKD_OK);
  cmkd_status status = cmkd_folder_open(&options, &s, &resumed, &f, err);
  if (status == CMKD_OK) assert_int_equal(resumed, resume);
  cmkd_folder_close(&f);
  cmkd_state_free(&s);
  json_decref(set);
  return status;
}

static void put(const char *path, const void *data, size_t size) {
  cmkd_error err;
  cmkd_piece piece = {data, size};
  assert_ok(cmkd_file_write(path, &piece, 1, &err));
}

static void folder_starts_resumes_and_refuses(void **state) {
  (void)state;
  cmkd_state s;
  cmkd_folder f, second;
  cmkd_error err;
  int resumed;
  char dir[1200], path[1300];
  snprintf(dir, sizeof dir, "%s/a/b", scratch_dir());
  json_t *set = settings(0.05);
  fill(&s);
  const cmkd_folder_options options = {.path = dir, .settings = set, .graph = graph, .resume = 1};
  assert_ok(cmkd_folder_open(&options, &s, &resumed, &f, &err)); /* nothing there: afresh */
  assert_false(resumed);
  assert_int_equal(cmkd_folder_open(&options, &s, &resumed, &second, &err), CMKD_ERR_IO);
  assert_non_null(strstr(err.message, "another cmkd-train"));
  cmkd_folder_close(&second);
  assert_ok(cmkd_state_save(graph, &s, set, f.state, &err));
  assert_ok(cmkd_folder_config(&f, set, NULL, &err));
  cmkd_folder_close(&f);
  snprintf(path, sizeof path, "%s/run.lock", dir);
  assert_int_not_equal(access(path, F_OK), 0);

  assert_int_equal(reopen(dir, 0.05, 0, &err), CMKD_ERR_MISMATCH);
  assert_non_null(strstr(err.message, "--resume"));
  assert_int_equal(reopen(dir, 0.1, 1, &err), CMKD_ERR_MISMATCH);
  assert_non_null(strstr(err.message, "lr is 0.05 there and 0.1 here"));
  assert_ok(reopen(dir, 0.05, 1, &err));

  s.epoch = 20; /* finished */
  snprintf(path, sizeof path, "%s/state.safetensors", dir);
  assert_ok(cmkd_state_save(graph, &s, set, path, &err));
  assert_int_equal(reopen(dir, 0.05, 0, &err), CMKD_ERR_MISMATCH);
  assert_non_null(strstr(err.message, "finished"));
  assert_int_equal(unlink(path), 0); /* the configuration alone still says whose folder it is */
  assert_int_equal(reopen(dir, 0.1, 1, &err), CMKD_ERR_MISMATCH);
  json_decref(set);
  cmkd_state_free(&s);
}

static void folder_keeps_off_foreign_files(void **state) {
  (void)state;
  cmkd_error err;
  char path[1300];
  const char *dir = scratch_dir();
  snprintf(path, sizeof path, "%s/last.safetensors", dir);
  put(path, "x", 1);
  assert_int_equal(reopen(dir, 0.05, 0, &err), CMKD_ERR_MISMATCH);
  assert_non_null(strstr(err.message, "last.safetensors"));
  dir = scratch_dir();
  snprintf(path, sizeof path, "%s/config.json", dir);
  const char *const bad[] = {"", "{", "[]", "{\"settings\":3}", "\xff\xfe"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    put(path, bad[i], strlen(bad[i]));
    assert_int_equal(reopen(dir, 0.05, 1, &err), CMKD_ERR_FORMAT);
  }
}

/* Cut anywhere, or with a changed byte in its header: refused, never a crash. */
static void damaged_states_are_refused(void **state) {
  (void)state;
  cmkd_state s;
  cmkd_error err;
  char path[1300];
  uint8_t *data;
  size_t size;
  const char *dir = scratch_dir();
  snprintf(path, sizeof path, "%s/state.safetensors", dir);
  fill(&s);
  json_t *set = settings(0.05);
  assert_ok(cmkd_state_save(graph, &s, set, path, &err));
  assert_ok(reopen(dir, 0.05, 1, &err));
  assert_ok(cmkd_file_read(path, 1 << 24, &data, &size, &err));
  for (size_t cut = 0; cut < size; cut += cut < 64 ? 7 : size / 23) {
    put(path, data, cut);
    if (reopen(dir, 0.05, 1, &err) == CMKD_OK) fail_msg("a state of %zu of %zu bytes was taken", cut, size);
  }
  s.epoch = -1;
  assert_ok(cmkd_state_save(graph, &s, set, path, &err));
  assert_int_equal(reopen(dir, 0.05, 1, &err), CMKD_ERR_FORMAT);
  s.epoch = 21;
  assert_ok(cmkd_state_save(graph, &s, set, path, &err));
  assert_int_equal(reopen(dir, 0.05, 1, &err), CMKD_ERR_FORMAT);
  s.epoch = 2;
  s.value.value[0][0] = NAN;
  assert_false(cmkd_state_finite(graph, &s));
  assert_ok(cmkd_state_save(graph, &s, set, path, &err));
  assert_int_equal(reopen(dir, 0.05, 1, &err), CMKD_ERR_VALUE);
  free(data);
  json_decref(set);
  cmkd_state_free(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(saved_and_loaded), cmocka_unit_test(sums_weigh_partial_batches),
                                     cmocka_unit_test(folder_starts_resumes_and_refuses),
                                     cmocka_unit_test(folder_keeps_off_foreign_files),
                                     cmocka_unit_test(damaged_states_are_refused)};
  return cmocka_run_group_tests(tests, open_graph, close_graph);
}
