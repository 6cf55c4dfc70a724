/* The programs with --device cuda, on the emulated plugin (tests/simt): every feature that the CPU has, through the
 * same commands. What a GPU computes is tests/simt/test_cuda_*'s business; here it is that nothing above the backend
 * table knows which one it talks to. */
#include "tests/support_train.h"
#include <unistd.h>

static const char *train, *cache;
static char teacher[1300], dir[1200];
#define SMALL "--device cuda --student resnet8 --batch 8 --samples 20 --log-steps"

static int setup(void **state) {
  (void)state;
  const char *out, *build = getenv("CMKD_BUILD");
  char plugin[1300];
  train = program("cmkd-train"), cache = program("cmkd-cache");
  snprintf(plugin, sizeof plugin, "%s/simt/libcmkd-cuda.so", build ? build : "build");
  if (access(plugin, R_OK) != 0) {
    printf("SKIP: %s is not built\n", plugin);
    train = NULL;
  }
  if (!train || !cache) return 0;
  setenv("CMKD_CUDA_PLUGIN", plugin, 1);
  setenv("CMKD_CUDA_PLANS", "", 1);
  unsetenv("CMKD_CUDNN");                /* the emulation has none */
  setenv("CMKD_CUDA_SELFCHECK", "0", 1); /* slow in emulation; auto_and_eval leaves it on */
  snprintf(dir, sizeof dir, "%s", scratch_dir());
  snprintf(teacher, sizeof teacher, "%s/teacher/last.safetensors", dir);
  if (run_command(&out, "%s --device cpu --data %s --arch resnet8 --epochs 1 --batch 43 --seed 3 --out %s/teacher",
                  train, tiny_data(), dir) != 0) {
    printf("%s\n", out);
    return -1;
  }
  return 0;
}

static void must(const char *command) {
  const char *out;
  if (run_command(&out, "%s", command) != 0) fail_msg("%s\n%s", command, out);
}
#define RUN(...) \
  do { \
    char command_[8000]; \
    snprintf(command_, sizeof command_, __VA_ARGS__); \
    must(command_); \
  } while (0)

static void same_weights(const char *a, const char *b) {
  assert_int_equal(strlen(sha256_of("%s/%s/last.safetensors", dir, a)), 64);
  assert_string_equal(sha256_of("%s/%s/last.safetensors", dir, a), sha256_of("%s/%s/last.safetensors", dir, b));
  assert_true(strlen(text_of("%s/%s/steps.jsonl", dir, a)) > 100);
  assert_string_equal(text_of("%s/%s/steps.jsonl", dir, a),
                      text_of("%s/%s/steps.jsonl", dir, b)); /* every loss as a hex float */
}

/* dir/t.h5, filled by the device's teacher; two views of 20 samples. Made for the test that comes first. */
static void need_cache(void) {
  char path[1300];
  snprintf(path, sizeof path, "%s/t.h5", dir);
  if (access(path, F_OK) != 0)
    RUN("%s build --quiet --device cuda --teacher %s --data %s --seed 11 --views 2 --samples 20 --teacher-batch 10 "
        "--codec f32 --shard-rows 10 --out %s",
        cache, teacher, tiny_data(), path);
}

/* A cache that the device's teacher filled, and the same teacher live: the same steps to the last bit. */
static void offline_is_online(void **state) {
  (void)state;
  if (!train || !cache) skip();
  need_cache();
  RUN("%s verify --deep %s/t.h5", cache, dir);
  RUN("%s --cache %s/t.h5 --data %s " SMALL " --epochs 2 --loss cmkd --out %s/offline", train, dir, tiny_data(), dir);
  RUN("%s --teacher %s --data %s --cache-seed 11 --views 2 --teacher-batch 10 " SMALL
      " --epochs 2 --loss cmkd --out %s/online",
      train, teacher, tiny_data(), dir);
  same_weights("offline", "online");
  assert_non_null(strstr(text_of("%s/offline/config.json", dir), "cuda: emulated, fp32"));
}

/* Rows of an f16 cache, with images and rows on the device or on the host. */
static void resident_or_not(void **state) {
  (void)state;
  if (!train || !cache) skip();
  need_cache();
  RUN("%s repack %s/t.h5 %s/half.h5 --codec f16", cache, dir, dir);
  RUN("%s --cache %s/half.h5 --data %s " SMALL " --epochs 1 --loss kd --out %s/resident", train, dir, tiny_data(), dir);
  RUN("CMKD_CUDA_RESIDENT=0 %s --cache %s/half.h5 --data %s " SMALL " --epochs 1 --loss kd --out %s/streamed", train,
      dir, tiny_data(), dir);
  same_weights("resident", "streamed");
}

/* A teacher in 16 bits where the codec hides what that changes: measured, recorded, told by info, and forgiven by
 * verify. */
static void the_teachers_precision(void **state) {
  (void)state;
  const char *out;
  if (!train || !cache) skip();
#define TEACHER "--quiet --device cuda --teacher %s --data %s --views 1 --samples 20 --teacher-batch 10"
  RUN("%s build " TEACHER " --codec u8sqrt --precision fp16 --out %s/sixteen.h5", cache, teacher, tiny_data(), dir);
  assert_int_equal(run_command(&out, "%s info --json %s/sixteen.h5", cache, dir), 0);
  const char *error = strstr(out, "\"precision_error\":");
  assert_non_null(strstr(out, "\"precision\":\"fp16\""));
  assert_non_null(error);
  double rms = atof(error + strlen("\"precision_error\":"));
  assert_true(rms > 1e-6 && rms < 1e-2);
  RUN("%s verify --device cpu --teacher %s --data %s --rows 20 %s/sixteen.h5", cache, teacher, tiny_data(), dir);
  RUN("%s build " TEACHER " --codec u8sqrt --out %s/chosen.h5", cache, teacher, tiny_data(),
      dir); /* rougher than 11 bits are */
  assert_int_equal(run_command(&out, "%s info %s/chosen.h5 | grep -c 'fp16, batch'", cache, dir), 0);
  RUN("%s build " TEACHER " --codec f32 --out %s/exact.h5", cache, teacher, tiny_data(), dir); /* hides nothing */
  assert_int_equal(run_command(&out, "%s info %s/exact.h5 | grep -c 'fp32, batch'", cache, dir), 0);
  assert_int_equal(
      run_command(&out, "%s build " TEACHER " --precision fp8 --out %s/none.h5", cache, teacher, tiny_data(), dir), 2);
  assert_int_equal(run_command(&out,
                               "%s build --quiet --device cpu --precision bf16 --teacher %s --data %s --views 1 "
                               "--samples 20 --out %s/none.h5",
                               cache, teacher, tiny_data(), dir),
                   1);
  assert_non_null(strstr(out, "bf16"));
}

/* Cut after four of six steps, gone on with: the same weights. In fp16 the loss scale goes on too. */
static void a_cut_run_goes_on(void **state) {
  (void)state;
  if (!train) skip();
  RUN("%s --data %s " SMALL " --precision fp16 --epochs 2 --out %s/whole", train, tiny_data(), dir);
  RUN("%s --data %s " SMALL " --precision fp16 --epochs 2 --out %s/cut --max-steps 4", train, tiny_data(), dir);
  RUN("%s --data %s " SMALL " --precision fp16 --epochs 2 --out %s/cut --resume", train, tiny_data(), dir);
  same_weights("whole", "cut");
}

/* `auto` finds the device; evaluation on it gives the CPU's accuracy; unknown precisions and devices are refused in one
 * line. */
static void auto_and_eval(void **state) {
  (void)state;
  const char *out;
  char cpu[64];
  if (!train) skip();
  const char *top1 = "grep -o '\"top1\":[0-9.]*'";
  assert_int_equal(
      run_command(&out, "%s eval --json --device cpu --weights %s --data %s | %s", train, teacher, tiny_data(), top1),
      0);
  snprintf(cpu, sizeof cpu, "%s", out);
  assert_int_equal(run_command(&out, "env -u CMKD_CUDA_SELFCHECK %s eval --json --weights %s --data %s | %s", train,
                               teacher, tiny_data(), top1),
                   0);
  assert_string_equal(out, cpu);
  assert_int_equal(
      run_command(&out, "%s eval --weights %s --data %s 2>&1 | grep -c emulated", train, teacher, tiny_data()), 0);
  assert_int_equal(run_command(&out, "%s eval --device cuda:4 --weights %s --data %s", train, teacher, tiny_data()), 1);
  assert_non_null(strstr(out, "there is no GPU 4"));
  assert_int_equal(
      run_command(&out, "%s eval --device cuda --precision fp8 --weights %s --data %s", train, teacher, tiny_data()),
      2);
  assert_non_null(strstr(out, "bf16"));
}

/* cuDNN that was named and cannot be opened is an error: a measurement must not fall back on our own kernels unseen.
 * Unset, empty or off: they compute. */
static void a_named_cudnn_is_required(void **state) {
  (void)state;
  const char *out, *const without[] = {"env -u CMKD_CUDNN", "CMKD_CUDNN=", "CMKD_CUDNN=off"};
  if (!train) skip();
#define EVAL "%s eval --device cuda --weights %s --data %s"
  for (size_t i = 0; i < sizeof without / sizeof *without; i++)
    RUN("%s " EVAL, without[i], train, teacher, tiny_data());
  assert_int_equal(run_command(&out, "CMKD_CUDNN=/nowhere/libcudnn.so.9 " EVAL, train, teacher, tiny_data()), 1);
  const char *line = strstr(out, "--device cuda: CMKD_CUDNN=/nowhere/libcudnn.so.9: ");
  assert_non_null(line);
  assert_non_null(strstr(line, "CMKD_CUDNN=off goes without"));
  assert_string_equal(strchr(line, '\n'), "\n"); /* one line, and nothing after it */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(offline_is_online),         cmocka_unit_test(resident_or_not),
      cmocka_unit_test(the_teachers_precision),    cmocka_unit_test(a_cut_run_goes_on),
      cmocka_unit_test(a_named_cudnn_is_required), cmocka_unit_test(auto_and_eval),
  };
  return cmocka_run_group_tests(tests, setup, NULL);
}
