/* The contract of architecture.md: a student of an f32 cache and a student of the live teacher take the same steps to
 * the last bit. */
#include "tests/support_train.h"
#include <sys/stat.h>
#include <unistd.h>

static const char *train, *cache;
static char teacher[1300], dir[1200];

/* A barely trained teacher is a teacher: what counts is that its logits differ from row to row. */
static int make_teacher(void **state) {
  (void)state;
  const char *out;
  train = program("cmkd-train"), cache = program("cmkd-cache");
  if (!train || !cache) return 0;
  snprintf(dir, sizeof dir, "%s", scratch_dir());
  snprintf(teacher, sizeof teacher, "%s/teacher/last.safetensors", dir);
  if (run_command(&out,
                  "%s --device cpu --data %s --arch " RUN_LENGTH(
                      "resnet14", "resnet8") " --epochs 1 --batch 43 --seed 3 --out %s/teacher",
                  train, tiny_data(), dir) != 0) {
    printf("%s\n", out);
    return -1;
  }
  return 0;
}

static void same_run(const char *build_options, const char *live_options, const char *common) {
  static int number;
  const char *out;
  if (!train || !cache) skip();
  number++;
  if (run_command(&out,
                  "%s build --quiet --device cpu --teacher %s --data %s --seed 11 --codec f32 --shard-rows 32 --out "
                  "%s/t%d.h5 %s",
                  cache, teacher, tiny_data(), dir, number, build_options))
    fail_msg("%s", out);
  if (run_command(&out,
                  "%s --device cpu --cache %s/t%d.h5 --data %s %s --seed 5 --batch 32 --log-steps --out %s/offline%d",
                  train, dir, number, tiny_data(), common, dir, number))
    fail_msg("%s", out);
  if (run_command(&out,
                  "%s --device cpu --teacher %s --cache-seed 11 --data %s %s %s --seed 5 --batch 32 --log-steps --out "
                  "%s/online%d",
                  train, teacher, tiny_data(), live_options, common, dir, number))
    fail_msg("%s", out);
  const char *offline = text_of("%s/offline%d/steps.jsonl", dir, number),
             *online = text_of("%s/online%d/steps.jsonl", dir, number);
  assert_true(strlen(offline) > 100);
  assert_non_null(strstr(offline, "\"loss\":\"0x1."));
  assert_string_equal(offline, online); /* every step's loss, as hex floats */
  assert_true(strlen(sha256_of("%s/offline%d/last.safetensors", dir, number)) == 64);
  assert_string_equal(sha256_of("%s/offline%d/last.safetensors", dir, number),
                      sha256_of("%s/online%d/last.safetensors", dir, number));
  assert_string_equal(sha256_of("%s/offline%d/best.safetensors", dir, number),
                      sha256_of("%s/online%d/best.safetensors", dir, number));
}

/* A few epochs over three views and a clean one; the last batch has 22 of 32 rows. */
static void views_and_a_clean_one(void **state) {
  (void)state;
  same_run("--views 3 --clean-view --augment crop+flip", "--views 3 --clean-view --augment crop+flip",
           "--epochs " RUN_LENGTH("5", "2"));
}

/* --views all; a student of other normalisation, held-out samples, block shuffling, another teacher batch and fewer
 * samples than the cache has. */
static void all_views_and_other_orders(void **state) {
  (void)state;
  same_run(
      "--views all --augment flip --teacher-batch 48 --samples 80", "--views all --augment flip --teacher-batch 48",
      "--epochs " RUN_LENGTH("3", "1") " --val 13 --shuffle-block 16 --samples 75 --mean 0.5 --std 0.25 --loss kd");
}

/* The training seed does not change what a cache means: another one takes other steps from it. */
static void another_training_seed_is_another_run(void **state) {
  (void)state;
  const char *out;
  if (!train || !cache) skip();
  if (run_command(&out, "%s build --quiet --device cpu --teacher %s --data %s --views 3 --out %s/seeds.h5", cache,
                  teacher, tiny_data(), dir))
    fail_msg("%s", out);
  for (int seed = 5; seed <= 6; seed++)
    if (run_command(&out,
                    "%s --device cpu --cache %s/seeds.h5 --data %s --epochs 1 --seed %d --batch 32 --log-steps --out "
                    "%s/seed%d",
                    train, dir, tiny_data(), seed, dir, seed))
      fail_msg("%s", out);
  const char *five = text_of("%s/seed5/steps.jsonl", dir), *six = text_of("%s/seed6/steps.jsonl", dir);
  assert_true(strlen(five) > 60 && strlen(six) > 60);
  assert_int_not_equal(strncmp(five, six, 60), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(views_and_a_clean_one),
                                     cmocka_unit_test(all_views_and_other_orders),
                                     cmocka_unit_test(another_training_seed_is_another_run)};
  return cmocka_run_group_tests(tests, make_teacher, NULL);
}
