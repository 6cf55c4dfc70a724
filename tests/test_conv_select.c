/* Algorithm selection for convolutions, on a made-up device (tests/conv_double.h): the fastest plan whose numbers are
 * those of our kernels wins, is remembered, and comes back in a resumed run; without cuDNN nothing is timed; a file of
 * any bytes does no harm. */
#include "tests/support.h"
#include "tests/conv_double.h"
#include <sys/stat.h>
#include <unistd.h>

static const made_plan plans[] = {
    {"cudnn:eng1{k2=1}", CMKD_CONV_FORWARD, 3, GOOD, 300},
    {"cudnn:eng2{}", CMKD_CONV_FORWARD, 1, WRONG, 0},
    {"cudnn:eng3{}", CMKD_CONV_FORWARD, 1, UNWRITTEN, 0},
    {"cudnn:eng4{}", CMKD_CONV_FORWARD, 1, FAILING, 0},
    {"cudnn:eng5{}", CMKD_CONV_FORWARD, 1, CHANGING, 0},
    {"cudnn:eng6{k1=2,k3=4}", CMKD_CONV_FORWARD, 2, GOOD, 5000},
    {"cudnn:eng7{}", CMKD_CONV_FORWARD, 100, GOOD, 0},
    {"cudnn:eng8{}", CMKD_CONV_FORWARD_FUSED, 3, GOOD, 0},
    {"cudnn:eng9{}", CMKD_CONV_BACKWARD_DATA, 1, NO_ADDING, 0},
    {"cudnn:eng10{}", CMKD_CONV_BACKWARD_DATA, 2, GOOD, 0},
    {"cudnn:eng12{}", CMKD_CONV_BACKWARD_DATA, 0.5, WRONG_AT_END, 0},
    {"cudnn:eng13{}", CMKD_CONV_BACKWARD_WEIGHTS, 0.5, WAITING, 0},
    {"cudnn:eng11{}", CMKD_CONV_BACKWARD_WEIGHTS, 1, GOOD, 64},
};
static cmkd_cudnn with_plans = {91900, sizeof plans / sizeof *plans, 0, plans};
static cmkd_error err;
static char cache_file[1200];

static int fresh(void **state) {
  (void)state;
  with_plans.refuses = 0;
  made = (struct made_device){.own_ms = 10};
  snprintf(cache_file, sizeof cache_file, "%s/conv/choices.json", scratch_dir());
  return 0;
}
static int nothing_left(void **state) {
  (void)state;
  const int left = made.live + plans_live;
  plans_live = 0;
  return left != 0;
}

static cmkd_conv_request request_of(cmkd_conv_pass pass, cmkd_dtype dtype) {
  return (cmkd_conv_request){.shape = {.n = 3,
                                       .h = 6,
                                       .w = 6,
                                       .c = 13,
                                       .oh = 6,
                                       .ow = 6,
                                       .k = 19,
                                       .kh = 3,
                                       .kw = 3,
                                       .stride = 1,
                                       .pad = 1,
                                       .groups = 1,
                                       .y_stride = 24,
                                       .dtype = dtype,
                                       .y_dtype = dtype},
                             .pass = pass};
}
static cmkd_conv_selector *open_selector(cmkd_cudnn *cudnn, const char *name, const char *path) {
  cmkd_conv_selector *selector;
  assert_ok(cmkd_conv_selector_open(cudnn, name, path, on_stream, &selector, &err));
  return selector;
}
/* The name of the algorithm that is selected for a request; *timed: whether anything was. */
static const char *selected(cmkd_conv_selector *selector, cmkd_conv_request request, int *timed) {
  static char name[CONV_NAME_BYTES];
  cmkd_conv_algorithm *algorithm;
  const long before = made.timed;
  assert_ok(cmkd_conv_select(selector, &request, &algorithm, &err));
  snprintf(name, sizeof name, "%s", cmkd_conv_algorithm_name(algorithm));
  cmkd_conv_algorithm_free(algorithm);
  *timed = made.timed != before;
  return name;
}
static void assert_selected(cmkd_conv_selector *selector, cmkd_conv_request request, const char *name, int timed) {
  int was_timed;
  assert_string_equal(selected(selector, request, &was_timed), name);
  assert_int_equal(was_timed, timed);
}

static void without_cudnn_all_is_ours_and_nothing_timed(void **state) {
  (void)state;
  cmkd_conv_selector *selector = open_selector(NULL, "GPU", cache_file);
  for (int pass = 0; pass < 4; pass++) {
    cmkd_conv_request r = request_of((cmkd_conv_pass)pass, CMKD_BF16);
    cmkd_conv_algorithm *algorithm;
    float c[20000] = {0}, bias[24] = {0}, a[20000] = {0};
    assert_ok(cmkd_conv_select(selector, &r, &algorithm, &err));
    assert_string_equal(cmkd_conv_algorithm_name(algorithm), "own");
    assert_int_equal(cmkd_conv_algorithm_workspace(algorithm), 1000);
    assert_int_equal(cmkd_conv_algorithm_dw_dtype(algorithm), CMKD_F32);
    const long before = made.runs_own;
    assert_ok(cmkd_conv_run(algorithm, a, a, c,
                            pass == CMKD_CONV_FORWARD_FUSED ? &(cmkd_cuda_epilogue){bias, NULL, CMKD_ACT_NONE} : NULL,
                            NULL, NULL, &err));
    assert_int_equal(made.runs_own, before + 1);
    cmkd_conv_algorithm_free(algorithm);
  }
  assert_int_equal(made.timed, 0);
  assert_false(cmkd_file_exists(cache_file));
  cmkd_conv_selector_close(selector);
}

static void the_fastest_that_agrees_wins(void **state) {
  (void)state;
  for (int d = 0; d < 3; d++) {
    const cmkd_dtype dtype = d == 0 ? CMKD_F32 : d == 1 ? CMKD_F16 : CMKD_BF16;
    cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", NULL);
    cmkd_conv_request add = request_of(CMKD_CONV_BACKWARD_DATA, dtype);
    assert_selected(selector, request_of(CMKD_CONV_FORWARD, dtype), "cudnn:eng6{k1=2,k3=4}", 1);
    assert_selected(selector, request_of(CMKD_CONV_FORWARD, dtype), "cudnn:eng6{k1=2,k3=4}", 0); /* decided */
    assert_selected(selector, add, "cudnn:eng9{}", 1);
    add.accumulate = 1;
    assert_selected(selector, add, "cudnn:eng10{}", 1); /* the faster one forgets to add */
    assert_selected(selector, request_of(CMKD_CONV_BACKWARD_WEIGHTS, dtype), "cudnn:eng11{}", 1);
    cmkd_conv_selector_close(selector);
  }
  cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", NULL);
  cmkd_conv_request large = request_of(CMKD_CONV_BACKWARD_DATA, CMKD_F16); /* more than is looked at */
  large.shape.n = 40, large.shape.h = large.shape.w = large.shape.oh = large.shape.ow = 20;
  assert_true(count_x(&large.shape) > 2 * SAMPLE);
  assert_selected(selector, large, "cudnn:eng9{}", 1);
  made.own_ms = 0.5;
  assert_selected(selector, request_of(CMKD_CONV_FORWARD, CMKD_F32), "own", 1);
  cmkd_conv_selector_close(selector);
}

/* Where a row must not depend on its neighbours, a plan that treats the last image otherwise is out, however fast. */
static void who_leans_on_neighbours_is_out(void **state) {
  (void)state;
  static const made_plan two[] = {{"cudnn:eng1{}", CMKD_CONV_FORWARD, 1, LEANING, 0},
                                  {"cudnn:eng2{}", CMKD_CONV_FORWARD, 2, GOOD, 0},
                                  {"cudnn:eng1{}", CMKD_CONV_FORWARD_FUSED, 1, LEANING, 0},
                                  {"cudnn:eng2{}", CMKD_CONV_FORWARD_FUSED, 2, GOOD, 0}};
  cmkd_cudnn library = {91900, 4, 0, two};
  for (int fused = 0; fused < 2; fused++) {
    cmkd_conv_selector *selector = open_selector(&library, "GPU", NULL);
    cmkd_conv_request r = request_of(fused ? CMKD_CONV_FORWARD_FUSED : CMKD_CONV_FORWARD, CMKD_BF16);
    r.residual = fused;
    assert_selected(selector, r, "cudnn:eng1{}", 1);
    r.alone = 1;
    assert_selected(selector, r, "cudnn:eng2{}", 1);
    r.shape.n = 1; /* nobody to lean on */
    assert_selected(selector, r, "cudnn:eng1{}", 1);
    cmkd_conv_selector_close(selector);
  }
}

/* A network's layers of equal shape: one plan, made and tried once, gone with the last of them. */
static void equal_requests_share_an_algorithm(void **state) {
  (void)state;
  cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", NULL);
  cmkd_conv_request r = request_of(CMKD_CONV_FORWARD, CMKD_F32), other = r;
  cmkd_conv_algorithm *algorithm[3], *third;
  assert_ok(cmkd_conv_select(selector, &r, &algorithm[0], &err));
  const long runs = made.runs_own + made.runs_plan;
  assert_ok(cmkd_conv_select(selector, &r, &algorithm[1], &err));
  assert_ok(cmkd_conv_select(selector, &r, &algorithm[2], &err));
  assert_int_equal(made.runs_own + made.runs_plan, runs);
  assert_int_equal(plans_live, 1);
  other.shape.n = 5;
  assert_ok(cmkd_conv_select(selector, &other, &third, &err));
  assert_ptr_not_equal(third, algorithm[0]);
  cmkd_conv_algorithm_free(algorithm[1]);
  cmkd_conv_algorithm_free(algorithm[0]);
  assert_int_equal(plans_live, 2);
  assert_string_equal(cmkd_conv_algorithm_name(algorithm[2]), "cudnn:eng6{k1=2,k3=4}");
  cmkd_conv_algorithm_free(algorithm[2]);
  assert_int_equal(plans_live, 1);
  cmkd_conv_algorithm_free(third);
  cmkd_conv_selector_close(selector);
}

static void an_epilogue_may_come_after_a_faster_plan(void **state) {
  (void)state;
  cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", cache_file);
  for (int residual = 0; residual < 2; residual++)
    for (int act = 0; act < 3; act++) {
      cmkd_conv_request r = request_of(CMKD_CONV_FORWARD_FUSED, CMKD_F32);
      cmkd_conv_algorithm *algorithm;
      static float a[4000], b[8000], c[4000], expected[4000], other[4000], bias[24], workspace[1250];
      for (int i = 0; i < 4000; i++)
        a[i] = other[i] = (float)(i % 17) - 8, b[i] = (float)(i % 5);
      r.residual = residual, r.act = (cmkd_act)act;
      assert_selected(selector, r, "cudnn:eng6{k1=2,k3=4}+epilogue", 1);
      cmkd_conv_selector *later = open_selector(&with_plans, "GPU", cache_file);
      assert_selected(later, r, "cudnn:eng6{k1=2,k3=4}+epilogue", 0);
      assert_ok(cmkd_conv_select(later, &r, &algorithm, &err));
      const cmkd_cuda_epilogue epilogue = {bias, residual ? other : NULL, r.act};
      const long before = made.epilogues;
      assert_ok(cmkd_conv_run(algorithm, a, b, c, &epilogue, workspace, on_stream, &err));
      assert_int_equal(made.epilogues, before + 1);
      made_conv(&r.shape, CMKD_CONV_FORWARD, a, b, expected, 0, CMKD_F32, 0);
      made_epilogue(&r.shape, &epilogue, expected);
      assert_memory_equal(c, expected, count_y(&r.shape) * sizeof(float));
      /* not what was asked for */
      assert_int_equal(cmkd_conv_run(algorithm, a, b, c, NULL, workspace, on_stream, &err), CMKD_ERR_VALUE);
      assert_int_equal(cmkd_conv_run(algorithm, a, b, c, &(cmkd_cuda_epilogue){NULL, epilogue.residual, r.act},
                                     workspace, on_stream, &err),
                       CMKD_ERR_VALUE);
      assert_int_equal(cmkd_conv_run(algorithm, a, b, c, &(cmkd_cuda_epilogue){bias, residual ? NULL : other, r.act},
                                     workspace, on_stream, &err),
                       CMKD_ERR_VALUE);
      assert_int_equal(cmkd_conv_run(algorithm, a, b, c, &epilogue, workspace, NULL, &err),
                       CMKD_ERR_VALUE); /* another stream */
      cmkd_conv_algorithm_free(algorithm);
      cmkd_conv_selector_close(later);
    }
  cmkd_conv_selector_close(selector);
}

/* Logits have no channels for padding; the gradient of their weights has, and it is 0. */
static void gradients_of_padding_are_zero(void **state) {
  (void)state;
  cmkd_conv_request r = {.shape = {.n = 2,
                                   .h = 1,
                                   .w = 1,
                                   .c = 8,
                                   .oh = 1,
                                   .ow = 1,
                                   .k = 10,
                                   .kh = 1,
                                   .kw = 1,
                                   .stride = 1,
                                   .groups = 1,
                                   .y_stride = 10},
                         .pass = CMKD_CONV_BACKWARD_WEIGHTS};
  cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", NULL);
  cmkd_conv_algorithm *algorithm;
  float x[16], dy[20], dw[16 * 8], workspace[16];
  for (int i = 0; i < 16; i++)
    x[i] = 1;
  for (int i = 0; i < 20; i++)
    dy[i] = 1;
  memset(dw, 0xFF, sizeof dw);
  assert_ok(cmkd_conv_select(selector, &r, &algorithm, &err));
  assert_string_equal(cmkd_conv_algorithm_name(algorithm), "cudnn:eng11{}");
  assert_ok(cmkd_conv_run(algorithm, x, dy, dw, NULL, workspace, on_stream, &err));
  for (int i = 0; i < 16 * 8; i++)
    assert_true(dw[i] == (i < 80 ? 2 : 0));
  cmkd_conv_algorithm_free(algorithm);
  cmkd_conv_selector_close(selector);
}

static void algorithms_are_remembered_by_device(void **state) {
  (void)state;
  const cmkd_conv_request r = request_of(CMKD_CONV_FORWARD, CMKD_F32);
  cmkd_cudnn other = with_plans;
  other.version = 91800;
  for (int round = 0; round < 2; round++) { /* timed once, then remembered, the one beside the other */
    cmkd_conv_selector *a = open_selector(&with_plans, "GPU A", cache_file),
                       *b = open_selector(&with_plans, "GPU \"B\"", cache_file),
                       *c = open_selector(&other, "GPU A", cache_file);
    assert_selected(a, r, "cudnn:eng6{k1=2,k3=4}", !round);
    assert_selected(b, r, "cudnn:eng6{k1=2,k3=4}", !round);
    assert_selected(c, r, "cudnn:eng6{k1=2,k3=4}", !round);
    cmkd_conv_selector_close(a);
    cmkd_conv_selector_close(b);
    cmkd_conv_selector_close(c);
  }
  /* what differs in a way that matters is another request */
  cmkd_conv_selector *a = open_selector(&with_plans, "GPU A", cache_file);
  cmkd_conv_request tf32 = r, big = r;
  tf32.tf32 = 1, big.shape.n = 4;
  assert_selected(a, tf32, "cudnn:eng6{k1=2,k3=4}", 1);
  assert_selected(a, big, "cudnn:eng6{k1=2,k3=4}", 1);
  cmkd_conv_selector_close(a);
}

static void what_no_longer_works_is_measured_again(void **state) {
  (void)state;
  const made_plan now[] = {{"cudnn:eng6{k1=2,k3=4}", CMKD_CONV_FORWARD, 2, FAILING, 0},
                           {"cudnn:eng1{k2=1}", CMKD_CONV_FORWARD, 3, GOOD, 0}};
  cmkd_cudnn changed = {91900, 2, 0, now}, gone = {91900, 0, 0, NULL}, refusing = {91900, 2, 1, now};
  const cmkd_conv_request r = request_of(CMKD_CONV_FORWARD, CMKD_F32);
  cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", cache_file);
  assert_selected(selector, r, "cudnn:eng6{k1=2,k3=4}", 1);
  cmkd_conv_selector_close(selector);
  selector = open_selector(&changed, "GPU", cache_file);
  assert_selected(selector, r, "cudnn:eng1{k2=1}", 1);
  cmkd_conv_selector_close(selector);
  selector = open_selector(&gone, "GPU", cache_file);
  assert_selected(selector, r, "own", 0);
  cmkd_conv_selector_close(selector);
  selector = open_selector(&refusing, "other", cache_file);
  assert_selected(selector, r, "own", 0);
  cmkd_conv_selector_close(selector);
}

static void a_resumed_run_keeps_its_algorithms(void **state) {
  (void)state;
  const cmkd_conv_request r = request_of(CMKD_CONV_FORWARD, CMKD_F32),
                          d = request_of(CMKD_CONV_BACKWARD_DATA, CMKD_F32);
  const made_plan slow[] = {{"cudnn:eng1{k2=1}", CMKD_CONV_FORWARD, 3, GOOD, 0}};
  cmkd_cudnn earlier = {91900, 1, 0, slow};
  char *text, *again;
  int used;
  cmkd_conv_selector *selector = open_selector(&earlier, "GPU", NULL);
  assert_selected(selector, r, "cudnn:eng1{k2=1}", 1);
  assert_ok(cmkd_conv_selector_save(selector, &text, &err));
  cmkd_conv_selector_close(selector);

  selector = open_selector(&with_plans, "GPU", cache_file); /* has measured something faster */
  assert_selected(selector, r, "cudnn:eng6{k1=2,k3=4}", 1);
  cmkd_conv_selector_close(selector);
  selector = open_selector(&with_plans, "GPU", cache_file);
  assert_ok(cmkd_conv_selector_load(selector, text, &used, &err));
  assert_int_equal(used, 1);
  assert_selected(selector, r, "cudnn:eng1{k2=1}", 0);
  assert_selected(selector, d, "cudnn:eng9{}", 1); /* what it did not bring */
  assert_ok(cmkd_conv_selector_save(selector, &again, &err));
  assert_non_null(strstr(again, "cudnn:eng1{k2=1}"));
  assert_non_null(strstr(again, "cudnn:eng9{}"));
  assert_null(strchr(again, '\n'));
  cmkd_conv_selector_close(selector);

  selector = open_selector(&with_plans, "another GPU", NULL);
  assert_ok(cmkd_conv_selector_load(selector, again, &used, &err));
  assert_int_equal(used, 0);
  assert_selected(selector, r, "cudnn:eng6{k1=2,k3=4}", 1);
  cmkd_conv_selector_close(selector);
  selector = open_selector(NULL, "GPU", NULL);
  assert_ok(cmkd_conv_selector_load(selector, again, &used, &err));
  assert_int_equal(used, 0);
  assert_selected(selector, r, "own", 0);
  cmkd_conv_selector_close(selector);
  free(text);
  free(again);
}

static void failures_name_the_remedy(void **state) {
  (void)state;
  const made_plan breaking[] = {{"cudnn:eng666{}", CMKD_CONV_FORWARD, 1, BREAKING, 0}};
  cmkd_cudnn cudnn = {91900, 1, 0, breaking};
  cmkd_conv_request r = request_of(CMKD_CONV_FORWARD, CMKD_F32);
  cmkd_conv_algorithm *algorithm;
  cmkd_conv_selector *selector = open_selector(&cudnn, "GPU", cache_file);
  made.full = 1;
  assert_int_equal(cmkd_conv_select(selector, &r, &algorithm, &err), CMKD_ERR_MEMORY);
  assert_null(algorithm);
  assert_non_null(strstr(err.message, "256 MB"));
  made.full = 0;
  assert_int_equal(cmkd_conv_select(selector, &r, &algorithm, &err), CMKD_ERR_DEVICE);
  assert_null(algorithm);
  assert_non_null(strstr(err.message, "cudnn:eng666{}"));
  assert_non_null(strstr(err.message, "CMKD_CUDNN=off"));
  assert_false(cmkd_file_exists(cache_file)); /* nothing is remembered of that */
  cmkd_conv_selector_close(selector);
}

static void write_text(const void *text, size_t size) {
  char *folder = cmkd_path_dir(cache_file);
  assert_ok(cmkd_make_dirs(folder, &err));
  assert_ok(cmkd_file_write(cache_file, &(cmkd_piece){text, size}, 1, &err));
  free(folder);
}

static void a_foreign_cache_file_is_ignored_and_rewritten(void **state) {
  (void)state;
  static char deep[100000];
  memset(deep, '[', sizeof deep - 1);
  const char *const texts[] = {
      "",
      "{",
      "null",
      "[]",
      "7",
      "\"cmkd\"",
      "\xff\xfe\x00",
      deep,
      "{\"cmkd_conv_choices\":1}",
      "{\"cmkd_conv_choices\":2,\"devices\":{}}",
      "{\"cmkd_conv_choices\":1,\"devices\":[]}",
      "{\"cmkd_conv_choices\":1,\"devices\":{\"GPU, cuDNN 91900\":7}}",
      "{\"cmkd_conv_choices\":1,\"devices\":{\"GPU, cuDNN 91900\":{\"forward n3\":[1]}}}",
  };
  const cmkd_conv_request r = request_of(CMKD_CONV_FORWARD, CMKD_F32);
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    write_text(texts[i], strlen(texts[i]));
    for (int round = 0; round < 2; round++) {
      cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", cache_file);
      assert_selected(selector, r, "cudnn:eng6{k1=2,k3=4}", !round);
      cmkd_conv_selector_close(selector);
    }
  }
  /* values of our own request that are no plan of ours */
  char key[CONV_KEY_BYTES];
  cmkd_conv_request_key(&r, key);
  const char *const names[] = {
      "",    "own ", "cudnn:eng999{}", "+epilogue", "cudnn:eng6{k1=2,k3=4}+epilogue", "cudnn:eng2{}", "cudnn:eng3{}",
      "%s%n"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    json_t *root =
        json_pack("{s:i, s:{s:{s:s}}}", FILE_KIND, FILE_VERSION, "devices", "GPU, cuDNN 91900", key, names[i]);
    char *text = json_dumps(root, 0);
    write_text(text, strlen(text));
    cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", cache_file);
    assert_selected(selector, r, "cudnn:eng6{k1=2,k3=4}", 1);
    cmkd_conv_selector_close(selector);
    free(text);
    json_decref(root);
  }
  /* a folder in its place, and a file where its folder should be: not remembered, not fatal */
  assert_int_equal(unlink(cache_file), 0);
  assert_int_equal(mkdir(cache_file, 0777), 0);
  cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", cache_file);
  assert_selected(selector, r, "cudnn:eng6{k1=2,k3=4}", 1);
  cmkd_conv_selector_close(selector);
  assert_int_equal(rmdir(cache_file), 0);
  write_text("x", 1);
  char below[1300];
  snprintf(below, sizeof below, "%s/choices.json", cache_file);
  selector = open_selector(&with_plans, "GPU", below);
  assert_selected(selector, r, "cudnn:eng6{k1=2,k3=4}", 1);
  cmkd_conv_selector_close(selector);
}

/* Flipped, cut and repeated bytes of a good file: an algorithm is selected all the same, and a state's text is used,
 * ignored or refused. */
static void corrupt_texts_do_no_harm(void **state) {
  (void)state;
  const cmkd_conv_request requests[2] = {request_of(CMKD_CONV_FORWARD, CMKD_F32),
                                         request_of(CMKD_CONV_BACKWARD_DATA, CMKD_BF16)};
  cmkd_rng rng = cmkd_rng_start(17, CMKD_STREAM_TEST, 0);
  char *text, *bad;
  int used, timed, refused = 0, ignored = 0, taken = 0;
  cmkd_conv_selector *selector = open_selector(&with_plans, "GPU", NULL);
  for (int i = 0; i < 2; i++)
    selected(selector, requests[i], &timed);
  assert_ok(cmkd_conv_selector_save(selector, &text, &err));
  cmkd_conv_selector_close(selector);
  const size_t length = strlen(text);
  bad = malloc(2 * length + 1);
  for (int i = 0; i < 4000; i++) {
    size_t size = length;
    memcpy(bad, text, length + 1);
    for (uint32_t n = cmkd_rng_below(&rng, 3); n < 3; n++)
      bad[cmkd_rng_below(&rng, (uint32_t)length)] =
          n == 2 ? (char)cmkd_rng_u32(&rng) : "{}[]\",:0"[cmkd_rng_below(&rng, 8)];
    if (i % 7 == 0) size = cmkd_rng_below(&rng, (uint32_t)length);
    if (i % 7 == 1) memcpy(bad + length, text, length), size = 2 * length;
    bad[size] = 0;
    if (i % 400 == 0) write_text(bad, size);
    selector = open_selector(&with_plans, "GPU", i % 400 ? NULL : cache_file);
    cmkd_status status = cmkd_conv_selector_load(selector, bad, &used, &err);
    assert_true(status == CMKD_OK || (status == CMKD_ERR_FORMAT && !used));
    refused += status != CMKD_OK, ignored += status == CMKD_OK && !used, taken += used;
    if (i % 50 == 0) {
      const char *name = selected(selector, requests[0], &timed);
      assert_true(!strncmp(name, "cudnn:eng", 9) || !strcmp(name, "own"));
    }
    cmkd_conv_selector_close(selector);
  }
  assert_true(refused && ignored && taken); /* all three ways were taken */
  free(bad);
  free(text);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fresh, nothing_left)
int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(without_cudnn_all_is_ours_and_nothing_timed),
      TEST(the_fastest_that_agrees_wins),
      TEST(who_leans_on_neighbours_is_out),
      TEST(equal_requests_share_an_algorithm),
      TEST(an_epilogue_may_come_after_a_faster_plan),
      TEST(gradients_of_padding_are_zero),
      TEST(algorithms_are_remembered_by_device),
      TEST(what_no_longer_works_is_measured_again),
      TEST(a_resumed_run_keeps_its_algorithms),
      TEST(failures_name_the_remedy),
      TEST(a_foreign_cache_file_is_ignored_and_rewritten),
      TEST(corrupt_texts_do_no_harm),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
