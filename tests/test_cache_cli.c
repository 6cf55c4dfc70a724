/* cmkd-cache as a user meets it: whole commands on a made-up data set with an untrained teacher. */
#include "tests/support.h"
#include <jansson.h>
#include <unistd.h>
#include "base/file.h"
#include "cmkd/weights.h"
#include "formats/npy.h"
#include "nets/net.h"
#include "tests/support_cache.h"
#include "tests/support_train.h"

static cmkd_error err;
static const char *cache_program, *output;
static char teacher[1200];

static int setup(void **state) {
  (void)state;
  cache_program = program("cmkd-cache");
  cmkd_graph *graph;
  cmkd_params params;
  assert_ok(cmkd_net_build("resnet8", (cmkd_net_shape){28, 28, 1, 10}, &graph, &err));
  assert_ok(cmkd_params_create(graph, &params, &err));
  cmkd_params_init(graph, 3, &params);
  snprintf(teacher, sizeof teacher, "%s/teacher.safetensors", scratch_dir());
  const char *keys[] = {"arch", "dataset", "mean", "std"}, *values[] = {"resnet8", "mnist", "0.3", "0.4"};
  assert_ok(cmkd_params_save(graph, &params, 0, teacher, keys, values, 4, &err));
  cmkd_params_free(&params);
  cmkd_graph_free(graph);
  return 0;
}

#define RUN(expected, ...) \
  do { \
    int status_ = run_command(&output, __VA_ARGS__); \
    if (status_ != (expected)) fail_msg("exit %d, not %d: %s", status_, (expected), output); \
  } while (0)
#define SAYS(text) \
  do { \
    if (!strstr(output, (text))) fail_msg("\"%s\" is not in: %s", (text), output); \
  } while (0)
#define BUILD "'%s' build --teacher '%s' --data '%s' --device cpu --threads 1 "

#define QUARTER ((TINY_TRAIN + 3) / 4) /* samples: four shards */
static char said[256];
__attribute__((format(printf, 1, 0))) static const char *say(const char *format, int a, int b) {
  snprintf(said, sizeof said, format, a, b);
  return said;
}

static void info_in_json(const char *dir) {
  RUN(0, "'%s' info --json '%s/t.h5'", cache_program, dir);
  json_t *info = json_loads(output, 0, NULL);
  if (!info) fail_msg("not JSON: %s", output);
  const char *seed, *arch, *split;
  json_int_t samples, views;
  if (json_unpack(info, "{s:I, s:I, s:s, s:{s:s}, s:{s:s}}", "samples", &samples, "views", &views, "cache_seed", &seed,
                  "teacher", "arch", &arch, "data", "split", &split) != 0)
    fail_msg("a key is missing or of another type: %s", output);
  assert_int_equal(samples, TINY_TRAIN);
  assert_int_equal(views, 4);
  assert_string_equal(seed, "7");
  assert_string_equal(arch, "resnet8");
  assert_string_equal(split, "train");
  json_decref(info);
}

static void build_info_verify_export(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *data = tiny_data();
  RUN(0, BUILD "--views 3 --clean-view --seed 7 --shard-rows %d --out '%s/t.h5'", cache_program, teacher, data, QUARTER,
      dir);
  SAYS(say("%d samples x 4 views x 10 classes, %d shards", TINY_TRAIN, 4));
  SAYS("bytes a row");
  SAYS(say("t.test.h5: %d samples x %d views", TINY_TEST, 1)); /* the companion that the trainer tests with */
  RUN(1, "find '%s' -name '*.tmp' -o -name '*.lock' | grep .", dir);
  RUN(0, "'%s' info '%s/t.h5'", cache_program, dir);
  SAYS("crop, the last one clean, seed 7");
  info_in_json(dir);
  RUN(0, "'%s' verify --deep '%s/t.h5'", cache_program, dir);
  SAYS(say("%d rows decoded", TINY_TRAIN * 4, 0));
  RUN(0, "'%s' verify --device cpu --teacher '%s' --data '%s' --rows 50 '%s/t.h5'", cache_program, teacher, data, dir);
  SAYS("50 rows recomputed; largest difference");
  RUN(0, "'%s' export --out '%s/t.npy' '%s/t.h5'", cache_program, dir, dir);
  cmkd_npy *array;
  cmkd_cache *cache;
  char *npy = cmkd_format("%s/t.npy", dir), *path = cmkd_format("%s/t.h5", dir);
  assert_ok(cmkd_npy_read(npy, 1 << 24, &array, &err));
  assert_ok(cmkd_cache_open(path, &cache, &err));
  assert_true(array->dims == 3 && array->shape[0] == TINY_TRAIN && array->shape[1] == 4 && array->shape[2] == 10 &&
              array->dtype == CMKD_F32);
  float *view = malloc(TINY_TRAIN * 10 * sizeof *view);
  for (uint32_t v = 0; v < 4; v++) {
    assert_ok(cmkd_cache_read(cache, v, 0, TINY_TRAIN, view, &err));
    for (int i = 0; i < TINY_TRAIN; i++)
      assert_memory_equal(view + i * 10, (float *)array->data + (i * 4 + (int)v) * 10, 10 * sizeof *view);
  }
  free(view);
  cmkd_cache_close(cache);
  cmkd_npy_free(array);
  free(npy);
  free(path);
}

static void same_bytes_whatever_the_shards_threads_and_order(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *data = tiny_data();
  RUN(0, BUILD "--no-test --views 2 --shard-rows %d --out '%s/a/t.h5'", cache_program, teacher, data, QUARTER, dir);
  RUN(0,
      "cp -r '%s/a' '%s/b' && rm '%s/b/t.h5' '%s/b/t.shards/shard-00001-of-00004.h5' && truncate -s 3000 "
      "'%s/b/t.shards/shard-00002-of-00004.h5'",
      dir, dir, dir, dir, dir);
  RUN(0, BUILD "--no-test --views 2 --shard-rows %d --out '%s/b/t.h5'", cache_program, teacher, data, QUARTER, dir);
  SAYS(say("found    %d rows already done", 2 * (TINY_TRAIN - 2 * QUARTER),
           0)); /* the first and the last shard, 2 views */
  RUN(0, "diff -r '%s/a' '%s/b'", dir, dir);
  RUN(0, BUILD "--no-test --views 2 --shard-rows %d --out '%s/b/t.h5'", cache_program, teacher, data, QUARTER, dir);
  SAYS("nothing to do");
  RUN(0, "mkdir '%s/c' && " BUILD "--with-test --views 2 --shard-rows %d --part 1/3 --out '%s/c/t.h5'", dir,
      cache_program, teacher, data, QUARTER, dir);
  SAYS("part 1 of 3");
  SAYS("cmkd-cache finish --out");
  RUN(1, "'%s' finish --out '%s/c/t.h5'", cache_program, dir);
  SAYS("3 of 4 shards are missing");
  RUN(0, "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=3 " BUILD "--no-test --views 2 --shard-rows %d --out '%s/c/t.h5'",
      cache_program, teacher, data, QUARTER, dir);
  SAYS("part 2 of 3");
  RUN(0,
      "SLURM_ARRAY_TASK_ID=4 SLURM_ARRAY_TASK_MIN=4 SLURM_ARRAY_TASK_COUNT=3 " BUILD
      "--with-test --part auto --views 2 --shard-rows %d --out '%s/c/t.h5'",
      cache_program, teacher, data, QUARTER, dir);
  SAYS("part 0 of 3");
  RUN(0, "'%s' finish --out '%s/c/t.h5'", cache_program, dir);
  SAYS("4 shards joined");
  RUN(0, "rm -rf '%s'/c/t.test.* && diff -r '%s/a' '%s/c'", dir, dir, dir);
  /* other shards and another teacher batch: other files, the same numbers */
  RUN(0, BUILD "--no-test --views 2 --shard-rows 5000 --codec f32 --out '%s/d/t.h5'", cache_program, teacher, data,
      dir);
  RUN(0, BUILD "--no-test --views 2 --shard-rows 7 --codec f32 --out '%s/e/t.h5'", cache_program, teacher, data, dir);
  RUN(0,
      "'%s' export --quiet --out '%s/d.npy' '%s/d/t.h5' && '%s' export --quiet --out '%s/e.npy' '%s/e/t.h5' && cmp "
      "'%s/d.npy' '%s/e.npy'",
      cache_program, dir, dir, cache_program, dir, dir, dir, dir);
}

static void all_views_and_plain_test_split(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *data = tiny_data();
  RUN(0, BUILD "--views all --augment flip --samples 20 --out '%s/t.h5' --json", cache_program, teacher, data, dir);
  SAYS("\"views\":2");
  RUN(0, "'%s' info --json '%s/t.h5'", cache_program, dir);
  SAYS("\"all_variants\":true");
  RUN(1, "test -e '%s/t.test.h5'", dir); /* a sample of the data has no companion unless asked */
  RUN(0, BUILD "--split test --codec u8sqrt --out '%s/u.h5'", cache_program, teacher, data, dir);
  SAYS(say("%d samples x %d views", TINY_TEST, 1));
  RUN(0, "'%s' verify --deep --device cpu --teacher '%s' --data '%s' '%s/u.h5'", cache_program, teacher, data, dir);
}

static void interrupted_and_continued(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *data = tiny_data();
  RUN(0, BUILD "--no-test --views 40 --shard-rows 10 --out '%s/a/t.h5'", cache_program, teacher, data, dir);
  /* Told to stop once it has begun to write: earlier, a loaded machine may not have come to its handlers. If it is done
   * all the same before the signal comes, once more. */
  int attempt = 0;
  do {
    if (attempt++ == 20) fail_msg("in 20 builds no signal came before the end");
    RUN(0,
        "rm -rf '%s/b'; " BUILD "--no-test --views 40 --shard-rows 10 --out '%s/b/t.h5' & p=$!; "
        "while kill -0 $p && ! find '%s/b' -type f | grep -q .; do sleep 0.01; done 2> /dev/null; "
        "kill -TERM $p; wait $p; s=$?; echo status $s; [ $s = 0 ] || [ ! -e '%s/b/t.h5' ]",
        dir, cache_program, teacher, data, dir, dir, dir);
  } while (strstr(output, "status 0"));
  SAYS("status 1");
  SAYS("running the same command again continues");
  RUN(1, "find '%s' -name '*.tmp' -o -name '*.lock' | grep .", dir);
  RUN(0, BUILD "--no-test --views 40 --shard-rows 10 --out '%s/b/t.h5'", cache_program, teacher, data, dir);
  RUN(0, "diff -r '%s/a' '%s/b'", dir, dir);
}

static void refusals_in_one_line(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *data = tiny_data();
  RUN(2, "'%s'", cache_program);
  RUN(2, "'%s' biuld", cache_program);
  SAYS("did you mean 'build'");
  RUN(0, "'%s' --help", cache_program);
  RUN(0, "'%s' build --help", cache_program);
  SAYS("--clean-view");
  RUN(2, "'%s' build --teacher '%s'", cache_program, teacher);
  RUN(2, BUILD "--views 0 --out '%s/t.h5'", cache_program, teacher, data, dir);
  RUN(2, BUILD "--views 5 --augment none --out '%s/t.h5'", cache_program, teacher, data, dir);
  RUN(2, BUILD "--augment crop+flop --out '%s/t.h5'", cache_program, teacher, data, dir);
  SAYS("did you mean 'crop+flip'");
  RUN(2, BUILD "--codec f61 --out '%s/t.h5'", cache_program, teacher, data, dir);
  RUN(2, "SLURM_ARRAY_TASK_ID=1 " BUILD "--part auto --out '%s/t.h5'", cache_program, teacher, data, dir);
  SAYS("SLURM_ARRAY_TASK_COUNT is not");
  RUN(2, BUILD "--part 4/3 --out '%s/t.h5'", cache_program, teacher, data, dir);
  RUN(2, BUILD "--samples %d --out '%s/t.h5'", cache_program, teacher, data, TINY_TRAIN + 1, dir);
  SAYS(say("%d in its train split", TINY_TRAIN, 0));
  RUN(1, "'%s' build --teacher '%s/none.safetensors' --data '%s' --out '%s/t.h5'", cache_program, dir, data, dir);
  RUN(1, "'%s' info '%s/none.h5'", cache_program, dir);
  SAYS("no such file");
  RUN(1, "ls '%s' | grep .", dir); /* nothing was left by any of them */
  RUN(0, BUILD "--no-test --views 2 --out '%s/t.h5'", cache_program, teacher, data, dir);
  RUN(1, BUILD "--no-test --views 3 --out '%s/t.h5'", cache_program, teacher, data, dir);
  SAYS("holds another cache");
  RUN(1, "'%s' verify --device cpu --teacher '%s' --data '%s' '%s/t.h5'", cache_program, teacher, tiny_other_data(),
      dir);
  SAYS("was made from mnist train");
  RUN(0, "printf x | dd of='%s/t.shards/shard-00000-of-00001.h5' bs=1 seek=9000 conv=notrunc 2> /dev/null", dir);
  RUN(1, "'%s' verify '%s/t.h5'", cache_program, dir);
  SAYS("corrupt");
  RUN(0, BUILD "--no-test --views 2 --out '%s/t.h5' && '%s' verify '%s/t.h5'", cache_program, teacher, data, dir,
      cache_program, dir); /* the remedy works */
}

static void a_full_disk_leaves_nothing(void **state) {
  (void)state;
  const char *dir = scratch_dir(), *data = tiny_data();
  RUN(1, "ulimit -f 4; " BUILD "--no-test --views 4 --out '%s/t.h5'", cache_program, teacher, data, dir);
  RUN(1, "find '%s' -type f | grep .", dir);
  RUN(1, BUILD "--no-test --out /proc/nowhere/t.h5", cache_program, teacher, data);
  RUN(1, BUILD "--no-test --out '%s/teacher/t.h5'", cache_program, teacher, data, teacher);
}

int main(void) {
  if (!program("cmkd-cache")) return 77;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(build_info_verify_export),
      cmocka_unit_test(same_bytes_whatever_the_shards_threads_and_order),
      cmocka_unit_test(all_views_and_plain_test_split),
      cmocka_unit_test(interrupted_and_continued),
      cmocka_unit_test(refusals_in_one_line),
      cmocka_unit_test(a_full_disk_leaves_nothing),
  };
  return cmocka_run_group_tests(tests, setup, NULL);
}
