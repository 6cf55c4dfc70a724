/* Runs of the CUDA backend that must give the same bytes: at once or in parts, captured or op by op, with data on the
 * device or streamed, cut and resumed, on one of two devices. */
#include <jansson.h>
#include "formats/cache/chunk.h"
#include "formats/cache/codec.h"
#include "tests/simt/backend.h"

/* A run of `steps` at one precision; the end's parameters and losses. */
typedef struct ran {
  cmkd_params end;
  cmkd_step_result result[20];
} ran;

static ran run_once(const cmkd_graph *graph, data *d, const char *precision, int at_once, int order) {
  ran r;
  cmkd_loss *loss = loss_of("cmkd");
  cmkd_params start = start_params(graph);
  side s = open_side(cuda, 0, precision, graph, d, loss, 4, 0);
  assert_ok(cmkd_params_create(graph, &r.end, &err));
  assert_ok(s.table->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  set_order(order, 7);
  cmkd_step steps[12];
  float logits[4 * CLASSES];
  int k = 12;
  for (int i = 0; i < 12; i++)
    steps[i] = step_of(d, i * 4, i == 11 ? 2 : 4, 0.02);
  for (int i = 0; i < 12; i += at_once) {
    assert_ok(
        s.table->run(s.model, CMKD_LIST_TRAIN, s.images, steps + i, i + at_once > 12 ? 12 - i : at_once, NULL, &err));
    if (at_once == 1 && i == 5)
      assert_ok(s.table->run(s.model, CMKD_LIST_INFER, s.images, steps, 1, (float *[CMKD_MAX_OUTPUTS]){logits}, &err));
  }
  assert_ok(s.table->read(s.model, r.result, &k, &err));
  assert_int_equal(k, 12);
  assert_ok(s.table->download(s.model, CMKD_SLOT_VALUE, r.end.value, &err));
  close_side(&s);
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  return r;
}

static void same_run(const cmkd_graph *graph, ran *a, ran *b) {
  for (int i = 0; i < graph->params; i++)
    assert_memory_equal(a->end.value[i], b->end.value[i], sizeof(float) * (size_t)graph->param[i].count);
  for (int i = 0; i < 12; i++)
    assert_true(a->result[i].loss.loss == b->result[i].loss.loss && a->result[i].top1 == b->result[i].top1);
  cmkd_params_free(&b->end);
}

/* The same run gives the same bytes: in one go or step by step, with inference in between, in any order of threads,
 * with images on the device or streamed, with and without captured graphs. */
static void runs_are_the_same_bytes(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  ran first = run_once(graph, &d, NULL, 12, 0), again = run_once(graph, &d, NULL, 1, 1);
  same_run(graph, &first, &again);
  setenv("CMKD_CUDA_RESIDENT", "0", 1);
  again = run_once(graph, &d, NULL, 5, 2);
  unsetenv("CMKD_CUDA_RESIDENT");
  same_run(graph, &first, &again);
  setenv("CMKD_CUDA_CHECK", "1", 1);
  again = run_once(graph, &d, NULL, 12, 0);
  unsetenv("CMKD_CUDA_CHECK");
  same_run(graph, &first, &again);
  char path[4096];
  snprintf(path, sizeof path, "%s/profile.json", scratch_dir());
  setenv("CMKD_CUDA_PROFILE", path, 1);
  again = run_once(graph, &d, NULL, 12, 0);
  unsetenv("CMKD_CUDA_PROFILE");
  same_run(graph, &first, &again);
  json_t *profile = json_load_file(path, 0, NULL);
  assert_int_equal(json_integer_value(json_object_get(profile, "steps")), 11);
  assert_true(json_integer_value(json_object_get(profile, "kernels_per_step")) > 40);
  assert_true(json_number_value(json_object_get(json_object_get(profile, "ms"), "conv backward weights")) > 0);
  json_decref(profile);
  cmkd_params_free(&first.end);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* A run that is cut after six steps and goes on in another model with what was saved ends in the same bytes, fp16's
 * loss scale included; a text that nobody wrote is refused. */
static void a_cut_run_goes_on(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce+kd");
  cmkd_params start = start_params(graph), value[2], momentum[2];
  cmkd_step steps[12];
  for (int i = 0; i < 12; i++)
    steps[i] = step_of(&d, i * 4, 4, 0.02);
  for (int cut = 0; cut < 2; cut++) {
    assert_ok(cmkd_params_create(graph, &value[cut], &err));
    assert_ok(cmkd_params_create(graph, &momentum[cut], &err));
    side s = open_side(cuda, 0, "fp16", graph, &d, loss, 4, 0);
    assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, cut ? 6 : 12, NULL, &err));
    if (cut) {
      char *text;
      int used = 0;
      assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, value[1].value, &err));
      assert_ok(cuda->download(s.model, CMKD_SLOT_MOMENTUM, momentum[1].value, &err));
      assert_ok(cuda->save(s.model, &text, &err));
      assert_null(strchr(text, '\n'));
      close_side(&s);
      s = open_side(cuda, 0, "fp16", graph, &d, loss, 4, 0);
      static const char *const bad[] = {"", "{}", "[1]", "{\"plans\": {}, \"scale\": 0.5, \"good\": 1}",
                                        "{\"plans\": 3, \"scale\": 2, \"good\": -1}"};
      for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(cuda->load(s.model, bad[i], &used, &err), CMKD_ERR_FORMAT);
      assert_ok(cuda->load(s.model, text, &used, &err));
      assert_int_equal(used, 1);
      assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)value[1].value, &err));
      assert_ok(cuda->upload(s.model, CMKD_SLOT_MOMENTUM, (const float *const *)momentum[1].value, &err));
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps + 6, 6, NULL, &err));
      free(text);
    }
    assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, value[cut].value, &err));
    assert_ok(cuda->download(s.model, CMKD_SLOT_MOMENTUM, momentum[cut].value, &err));
    close_side(&s);
  }
  for (int i = 0; i < graph->params; i++) {
    assert_memory_equal(value[0].value[i], value[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
    assert_memory_equal(momentum[0].value[i], momentum[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
  }
  for (int cut = 0; cut < 2; cut++)
    cmkd_params_free(&value[cut]), cmkd_params_free(&momentum[cut]);
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* Teacher rows that are resident in any codec, picked by index, train as the same rows given as floats, to the bit. */
static void resident_teacher_rows_are_the_same_bytes(void **state) {
  (void)state;
  NEED_GPU();
  enum { ROWS = 40 };
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("cmkd");
  cmkd_params start = start_params(graph), end[2];
  static const char *const codecs[] = {"f32", "f16", "u8sqrt"};
  for (size_t c = 0; c < sizeof codecs / sizeof *codecs; c++) {
    const cmkd_codec *codec;
    uint8_t stored[ROWS * CLASSES * 4], planes[sizeof stored];
    uint16_t top[ROWS], range[ROWS];
    float decoded[ROWS * CLASSES], rows[4 * 4 * CLASSES];
    uint32_t index[16];
    assert_ok(cmkd_codec_find(codecs[c], &codec, &err));
    codec->encode(d.teacher, ROWS, CLASSES, stored, top, range);
    cmkd_byte_shuffle(stored, planes, ROWS * CLASSES, codec->item);
    cmkd_chunk_view chunk = {planes, ROWS * CLASSES, CLASSES, top, range};
    codec->decode(&chunk, 0, ROWS, decoded);
    for (int i = 0; i < 16; i++) {
      index[i] = (uint32_t)(i * 7 + 3) % ROWS;
      memcpy(rows + i * CLASSES, decoded + index[i] * CLASSES, sizeof(float) * CLASSES);
    }
    for (int resident = 0; resident < 2; resident++) {
      side s = open_side(cuda, 0, NULL, graph, &d, loss, 4, 0);
      cmkd_be_rows *store = NULL;
      cmkd_step steps[4];
      cmkd_step_result result[4];
      int k = 4;
      if (resident) {
        assert_ok(cuda->rows_create(s.backend, codecs[c], ROWS, CLASSES, &store, &err));
        for (int first = 0; first < ROWS; first += 8)
          assert_ok(cuda->rows_write(store, (uint64_t)first, 8, stored + (size_t)first * CLASSES * (size_t)codec->item,
                                     top + first, range + first, &err));
      }
      assert_ok(cmkd_params_create(graph, &end[resident], &err));
      for (int i = 0; i < 4; i++) {
        steps[i] = step_of(&d, i * 4, 4, 0.02);
        steps[i].target[CMKD_TARGET_TEACHER].values = resident ? NULL : rows + i * 4 * CLASSES;
        if (resident)
          steps[i].target[CMKD_TARGET_TEACHER].resident = store,
          steps[i].target[CMKD_TARGET_TEACHER].index = index + i * 4;
      }
      assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, 4, NULL, &err));
      assert_ok(cuda->read(s.model, result, &k, &err));
      assert_int_equal(result[3].agreement.rows, 4);
      assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, end[resident].value, &err));
      index[5] = ROWS;
      if (resident)
        assert_int_equal(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps + 1, 1, NULL, &err), CMKD_ERR_VALUE);
      if (resident) assert_int_equal(cuda->rows_write(store, ROWS - 1, 2, stored, top, range, &err), CMKD_ERR_VALUE);
      index[5] = (5 * 7 + 3) % ROWS;
      if (resident) cuda->rows_free(store);
      close_side(&s);
    }
    for (int i = 0; i < graph->params; i++)
      assert_memory_equal(end[0].value[i], end[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
    for (int i = 0; i < 2; i++)
      cmkd_params_free(&end[i]);
  }
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* More steps than the queue has slots for, in one go or in several, with a teacher that comes along later: the same
 * bytes. */
static void long_runs_go_in_parts(void **state) {
  (void)state;
  NEED_GPU();
  enum { STEPS = 75 };
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_params start = start_params(graph), end[2];
  cmkd_step steps[STEPS];
  static cmkd_step_result result[2][STEPS];
  static float logits[2][STEPS * CLASSES];
  for (int i = 0; i < STEPS; i++) {
    steps[i] = step_of(&d, i % 40, 1, 0.001);
    if (i < 20) steps[i].target[CMKD_TARGET_TEACHER].values = NULL;
  }
  for (int parts = 0; parts < 2; parts++) {
    side s = open_side(cuda, 0, NULL, graph, &d, loss, 1, 0);
    int k = STEPS;
    assert_ok(cmkd_params_create(graph, &end[parts], &err));
    assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
    if (!parts) assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, STEPS, NULL, &err));
    for (int i = 0; parts && i < STEPS; i += 15)
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps + i, 15, NULL, &err));
    assert_ok(cuda->read(s.model, result[parts], &k, &err));
    assert_int_equal(k, STEPS);
    assert_ok(cuda->download(s.model, CMKD_SLOT_VALUE, end[parts].value, &err));
    if (!parts)
      assert_ok(
          cuda->run(s.model, CMKD_LIST_INFER, s.images, steps, STEPS, (float *[CMKD_MAX_OUTPUTS]){logits[0]}, &err));
    for (int i = 0; parts && i < STEPS; i += 15)
      assert_ok(cuda->run(s.model, CMKD_LIST_INFER, s.images, steps + i, 15,
                          (float *[CMKD_MAX_OUTPUTS]){logits[1] + i * CLASSES}, &err));
    close_side(&s);
  }
  for (int i = 0; i < STEPS; i++)
    assert_true(result[0][i].loss.loss == result[1][i].loss.loss && result[0][i].agreement.rows == (i >= 20) &&
                result[1][i].agreement.rows == (i >= 20));
  for (int i = 0; i < graph->params; i++)
    assert_memory_equal(end[0].value[i], end[1].value[i], sizeof(float) * (size_t)graph->param[i].count);
  assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
  for (int i = 0; i < 2; i++)
    cmkd_params_free(&end[i]);
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

#ifndef ON_DEVICE
/* Launches of a step of two rows with a teacher and our own convolutions: nodes of its graph, from a profile. */
static int launches_of(const cmkd_graph *graph, const char *precision) {
  char path[4096];
  snprintf(path, sizeof path, "%s/launches.json", scratch_dir());
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("cmkd");
  cmkd_params start = start_params(graph);
  setenv("CMKD_CUDA_PROFILE", path, 1);
  side s = open_side(cuda, 0, precision, graph, &d, loss, 4, 0);
  unsetenv("CMKD_CUDA_PROFILE");
  const cmkd_step steps[2] = {step_of(&d, 0, 2, 0.02), step_of(&d, 2, 2, 0.02)};
  assert_ok(cuda->upload(s.model, CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, steps, 2, NULL, &err));
  close_side(&s);
  json_t *profile = json_load_file(path, 0, NULL);
  const int launches = (int)json_integer_value(json_object_get(profile, "kernels_per_step"));
  json_decref(profile);
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  return launches;
}

/* What is optional (a hook, further terms of the objective) adds nothing to a step without it: whoever adds a launch to
 * every step changes these numbers. fp16 has two more, the loss scale and the check of the gradients. */
static void a_step_launches_so_many_kernels(void **state) {
  (void)state;
  NEED_GPU();
  static const struct {
    network *make;
    const char *precision;
    int launches;
  } cases[] = {{net_preact, "fp32", 60},    {net_preact, "bf16", 60},    {net_preact, "fp16", 62},
               {net_resnet8x4, "fp32", 89}, {net_resnet8x4, "bf16", 89}, {net_resnet8x4, "fp16", 91}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cmkd_graph *graph = cases[i].make();
    const int launches = launches_of(graph, cases[i].precision);
    if (launches != cases[i].launches)
      fail_msg("%s, %s: %d launches a step, not %d", graph->arch, cases[i].precision, launches, cases[i].launches);
    cmkd_graph_free(graph);
  }
}

/* A graph holds no kernel that has not been launched before, whatever kind of teacher comes along when: loading may not
 * be possible in a capture. */
static void kernels_are_loaded_before_they_are_captured(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  static const char *const codecs[] = {"f32", "f16", "u8sqrt"};
  uint32_t index[4] = {0, 1, 0, 1};
  uint16_t planes[2] = {0x3C00, 0x3C00};
  float rows[2 * CLASSES] = {0}, logits[4 * CLASSES];
  cmkd_step step = step_of(&d, 0, 4, 0.02);
  side s = open_side(cuda, 0, "fp16", graph, &d, loss, 4, 0);
  cmkd_be_rows *store[3];
  cmkd_simt_unload();
  for (int kind = 0; kind < 5; kind++) {
    step.target[CMKD_TARGET_TEACHER].values = kind == 1 ? d.teacher : NULL;
    if (kind >= 2) {
      assert_ok(cuda->rows_create(s.backend, codecs[kind - 2], 2, CLASSES, &store[kind - 2], &err));
      assert_ok(cuda->rows_write(store[kind - 2], 0, 2, rows, planes, planes, &err));
      step.target[CMKD_TARGET_TEACHER].resident = store[kind - 2], step.target[CMKD_TARGET_TEACHER].index = index;
    }
    for (int i = 0; i < 3; i++)
      assert_ok(cuda->run(s.model, CMKD_LIST_TRAIN, s.images, &step, 1, NULL, &err));
  }
  for (int i = 0; i < 3; i++)
    assert_ok(cuda->run(s.model, CMKD_LIST_INFER, s.images, &step, 1, (float *[CMKD_MAX_OUTPUTS]){logits}, &err));
  assert_string_equal(cmkd_simt_unloaded(), "");
  for (int i = 0; i < 3; i++)
    cuda->rows_free(store[i]);
  close_side(&s);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

/* Backends on two devices take turns in one thread, and a device's is freed while the other is the current one. */
static void two_devices_take_turns(void **state) {
  (void)state;
  NEED_GPU();
  cmkd_graph *graph = net_preact();
  data d = make_data(8, 8, 3);
  cmkd_loss *loss = loss_of("ce");
  cmkd_params start = start_params(graph);
  cmkd_model_config config = {.graph = graph,
                              .batch = 4,
                              .train = 1,
                              .mean = {.5f, .5f, .5f},
                              .std = {.25f, .25f, .25f},
                              .policy = CMKD_AUGMENT_CROP_FLIP,
                              .loss = loss,
                              .kappa = 2};
  cmkd_backend *backend[2];
  cmkd_be_images *images[2];
  cmkd_be_model *model[2];
  cmkd_step step = step_of(&d, 0, 4, 0.1);
  cmkd_step_result result[2][3];
  cmkd_backend_options options = options_of(0, "bf16");
  const cmkd_image_set set = set_of(&d);
  for (options.device = 0; options.device < 2; options.device++)
    assert_ok(cuda->open(&options, &backend[options.device], &err));
  for (int i = 0; i < 2; i++)
    assert_ok(cuda->images_create(backend[i], &set, &images[i], &err));
  for (int i = 0; i < 2; i++)
    assert_ok(cuda->model_create(backend[i], &config, &model[i], &err));
  for (int i = 0; i < 2; i++)
    assert_ok(cuda->upload(model[i], CMKD_SLOT_VALUE, (const float *const *)start.value, &err));
  for (int round = 0; round < 3; round++)
    for (int i = 0; i < 2; i++)
      assert_ok(cuda->run(model[i], CMKD_LIST_TRAIN, images[i], &step, 1, NULL, &err));
  for (int i = 0, k = 3; i < 2; i++)
    assert_ok(cuda->read(model[i], result[i], &k, &err));
  for (int i = 0; i < 3; i++)
    assert_true(result[0][i].loss.loss == result[1][i].loss.loss);
  for (int i = 0; i < 2; i++)
    cuda->model_free(model[i]), cuda->images_free(images[i]);
  for (int i = 0; i < 2; i++)
    cuda->close(backend[i]);
  (void)GPU(cmkd_cuda_functions_table)()->device((char[256]){0}, &err); /* back to device 0 */
  cmkd_params_free(&start);
  cmkd_loss_free(loss);
  free_data(&d);
  cmkd_graph_free(graph);
}

#endif

int main(void) {
  struct CMUnitTest tests[] = {
      TEST(runs_are_the_same_bytes),
      TEST(a_cut_run_goes_on),
      TEST(resident_teacher_rows_are_the_same_bytes),
      TEST(long_runs_go_in_parts),
#ifndef ON_DEVICE
      TEST(a_step_launches_so_many_kernels),
      TEST(kernels_are_loaded_before_they_are_captured),
      TEST(two_devices_take_turns),
#endif
  };
  return RUN_TESTS(tests);
}
