/* The reference backend as a whole: gradients of a small net by differences, two steps of SGD by hand, running
 * statistics, bad input. */
#include "tests/support.h"
#include <math.h>
#include "base/rng.h"
#include "kernels/backend.h"
#include "nets/builder.h"
#include "nets/params.h"

#define ROWS 6
#define SIDE 8
#define CLASSES 5
static cmkd_error err;
static const cmkd_backend_table *const be = &cmkd_backend_ref;

typedef struct world {
  cmkd_graph *graph;
  cmkd_params params;
  cmkd_loss *loss;
  cmkd_backend *backend;
  cmkd_be_images *images;
  cmkd_be_model *model;
  cmkd_model_config config;
  uint8_t pixels[ROWS * SIDE * SIDE * 3];
  int32_t labels[ROWS];
  uint32_t rows[ROWS];
  uint64_t seeds[ROWS];
  float teacher[ROWS * CLASSES];
} world;

/* One of every op kind that can appear between an image and logits. */
static cmkd_graph *every_op(void) {
  cmkd_net_builder b;
  cmkd_graph *graph = NULL;
  assert_ok(cmkd_net_start(&b, "every-op", (cmkd_net_shape){SIDE, SIDE, 3, CLASSES}, &err));
  int x = cmkd_net_norm(&b, "bn0", cmkd_net_conv_bias(&b, "conv0", 0, 8, 3, 1, 1), -1, CMKD_ACT_RELU6);
  int y = cmkd_net_maxpool(&b, x, 3, 2, 1);
  int a = cmkd_net_slice(&b, y, 0, 4), c = cmkd_net_slice(&b, y, 4, 4);
  c = cmkd_net_norm(&b, "bn1", cmkd_net_conv_groups(&b, "conv1", c, 4, 3, 1, 1, 4), a, CMKD_ACT_NONE);
  y = cmkd_net_shuffle(&b, cmkd_net_concat(&b, a, c), 2);
  int s = cmkd_net_padshortcut(&b, x, 12, 2);
  y = cmkd_net_norm(&b, "bn2", cmkd_net_conv_groups(&b, "conv2", y, 12, 1, 1, 0, 2), -1, CMKD_ACT_NONE);
  y = cmkd_net_act(&b, cmkd_net_add(&b, y, s, CMKD_ACT_NONE), CMKD_ACT_RELU);
  y = cmkd_net_avgpool(&b, y, 2, 2, 0);
  y = cmkd_net_linear(&b, "hidden", y, 7);
  cmkd_net_classifier(&b, "fc", cmkd_net_globalpool(&b, y));
  assert_ok(cmkd_net_finish(&b, &graph));
  return graph;
}

static void open_world(world *w, const char *loss, int nesterov) {
  memset(w, 0, sizeof *w);
  w->graph = every_op();
  assert_ok(cmkd_params_create(w->graph, &w->params, &err));
  cmkd_params_init(w->graph, 7, &w->params);
  cmkd_rng rng = cmkd_rng_start(1, CMKD_STREAM_TEST, 0);
  for (size_t i = 0; i < sizeof w->pixels; i++)
    w->pixels[i] = (uint8_t)cmkd_rng_below(&rng, 256);
  for (int i = 0; i < ROWS; i++)
    w->labels[i] = i % CLASSES, w->rows[i] = (uint32_t)(ROWS - 1 - i), w->seeds[i] = cmkd_rng_u64(&rng) >> 1;
  for (int i = 0; i < ROWS * CLASSES; i++)
    w->teacher[i] = (float)cmkd_rng_normal(&rng) * 3;
  assert_ok(cmkd_loss_parse(loss, CMKD_LOSS_CIFAR, &w->loss, &err));
  assert_ok(be->open(NULL, &w->backend, &err));
  assert_ok(
      be->images_create(w->backend, &(cmkd_image_set){w->pixels, w->labels, ROWS, SIDE, SIDE, 3}, &w->images, &err));
  w->config = (cmkd_model_config){.graph = w->graph,
                                  .batch = ROWS,
                                  .train = 1,
                                  .mean = {.5f, .4f, .3f},
                                  .std = {.2f, .3f, .25f},
                                  .policy = CMKD_AUGMENT_CROP_FLIP,
                                  .loss = w->loss,
                                  .momentum = .9f,
                                  .weight_decay = .01f,
                                  .nesterov = nesterov,
                                  .kappa = 2};
  assert_ok(be->model_create(w->backend, &w->config, &w->model, &err));
  assert_ok(be->upload(w->model, CMKD_SLOT_VALUE, (const float *const *)w->params.value, &err));
}

static void close_world(world *w) {
  be->model_free(w->model);
  be->images_free(w->images);
  be->close(w->backend);
  cmkd_loss_free(w->loss);
  cmkd_params_free(&w->params);
  cmkd_graph_free(w->graph);
}

static cmkd_step_result step(world *w, int count, double lr) {
  cmkd_step_result result;
  int k = 1;
  cmkd_step s = {.count = count,
                 .rows = w->rows,
                 .seeds = w->seeds,
                 .target[CMKD_TARGET_TEACHER].values = w->teacher,
                 .lr = lr,
                 .epoch = CMKD_LOSS_NO_WARMUP};
  assert_ok(be->run(w->model, CMKD_LIST_TRAIN, w->images, &s, 1, NULL, &err));
  assert_ok(be->read(w->model, &result, &k, &err));
  assert_int_equal(k, 1);
  return result;
}

static void gradients_of_a_net(void **state) {
  (void)state;
  world w;
  open_world(&w, "kd", 0);
  cmkd_params grad;
  assert_ok(cmkd_params_create(w.graph, &grad, &err));
  step(&w, ROWS, 0);
  assert_ok(be->gradients(w.model, grad.value, &err));
  int checked = 0;
  for (int i = 0; i < w.graph->params; i++) {
    const cmkd_param *p = &w.graph->param[i];
    if (!CMKD_PARAM_TRAINED(p->kind)) continue;
    for (int64_t j = 0; j < p->count; j += 1 + p->count / 5, checked++) {
      float old = w.params.value[i][j], up = old + 5e-4f, down = old - 5e-4f;
      double loss[2];
      for (int side = 0; side < 2; side++) {
        w.params.value[i][j] = side ? down : up;
        assert_ok(be->upload(w.model, CMKD_SLOT_VALUE, (const float *const *)w.params.value, &err));
        loss[side] = step(&w, ROWS, 0).loss.loss;
      }
      w.params.value[i][j] = old;
      double expected = (loss[0] - loss[1]) / ((double)up - (double)down), got = (double)grad.value[i][j];
      if (fabs(expected - got) > 2e-5 + 2e-3 * fabs(expected))
        fail_msg("%s[%d]: gradient %.9g, differences %.9g", p->name, (int)j, got, expected);
    }
  }
  assert_true(checked > 45);
  cmkd_params_free(&grad);
  close_world(&w);
}

/* w and m follow the rule from the reported gradients, decay on every trained parameter; two steps show the momentum.
 */
static void updates(void **state) {
  (void)state;
  for (int nesterov = 0; nesterov < 2; nesterov++) {
    world w;
    open_world(&w, "ce", nesterov);
    cmkd_params grad, value, momentum;
    assert_ok(cmkd_params_create(w.graph, &grad, &err));
    assert_ok(cmkd_params_create(w.graph, &value, &err));
    assert_ok(cmkd_params_create(w.graph, &momentum, &err));
    for (int t = 0; t < 2; t++) {
      step(&w, ROWS - t, .1);
      assert_ok(be->gradients(w.model, grad.value, &err));
      assert_ok(be->download(w.model, CMKD_SLOT_VALUE, value.value, &err));
      for (int i = 0; i < w.graph->params; i++)
        for (int64_t j = 0; j < w.graph->param[i].count && CMKD_PARAM_TRAINED(w.graph->param[i].kind); j++) {
          double before = (double)w.params.value[i][j], m = (double)momentum.value[i][j],
                 g = (double)grad.value[i][j] + (double).01f * before;
          m = (double).9f * m + g;
          assert_true(fabs((double)value.value[i][j] - (before - .1 * (nesterov ? g + (double).9f * m : m))) < 3e-7);
        }
      assert_ok(be->download(w.model, CMKD_SLOT_MOMENTUM, momentum.value, &err));
      for (int i = 0; i < w.graph->params; i++)
        memcpy(w.params.value[i], value.value[i], (size_t)w.graph->param[i].count * sizeof(float));
    }
    cmkd_params_free(&grad), cmkd_params_free(&value), cmkd_params_free(&momentum);
    close_world(&w);
  }
}

static void figures_of_a_step(void **state) {
  (void)state;
  world w;
  open_world(&w, "kd", 0);
  cmkd_step_result r = step(&w, 4, 0);
  assert_int_equal(r.count, 4);
  assert_int_equal(r.top5, 4); /* of five classes */
  assert_true(r.top1 >= 0 && r.top1 <= 4 && r.loss.bad_row == -1 && r.agreement.rows == 4 &&
              fabs(r.agreement.pearson) <= 4);
  float logits[ROWS * CLASSES], features[ROWS * 7];
  cmkd_step s[2] = {{.count = 4, .rows = w.rows}, {.count = 2, .rows = w.rows + 4}},
            one = {.count = 1, .rows = w.rows + 5};
  assert_ok(be->run(w.model, CMKD_LIST_INFER, w.images, s, 2, (float *[CMKD_MAX_OUTPUTS]){logits, features}, &err));
  float alone[CLASSES];
  assert_ok(be->run(w.model, CMKD_LIST_INFER, w.images, &one, 1, (float *[CMKD_MAX_OUTPUTS]){alone}, &err));
  assert_memory_equal(alone, logits + 5 * CLASSES, sizeof alone);
  close_world(&w);
}

static void bad_input_is_named(void **state) {
  (void)state;
  world w;
  open_world(&w, "kd", 0);
  cmkd_params before, after;
  assert_ok(cmkd_params_create(w.graph, &before, &err));
  assert_ok(cmkd_params_create(w.graph, &after, &err));
  assert_ok(be->download(w.model, CMKD_SLOT_VALUE, before.value, &err));
  w.labels[2] = CLASSES;
  cmkd_step s = {.count = ROWS,
                 .rows = w.rows,
                 .seeds = w.seeds,
                 .target[CMKD_TARGET_TEACHER].values = w.teacher,
                 .lr = .1,
                 .epoch = 1};
  assert_int_equal(be->run(w.model, CMKD_LIST_TRAIN, w.images, &s, 1, NULL, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "image 2: label 5"));
  cmkd_step_result results[4];
  int k = 4;
  assert_ok(be->read(w.model, results, &k, &err));
  assert_true(k == 1 && results[0].loss.bad_row == 3); /* row 3 of the step is image 2 */
  w.labels[2] = 0;
  float nan = NAN, *value = w.params.value[0];
  value[0] = nan;
  assert_ok(be->upload(w.model, CMKD_SLOT_VALUE, (const float *const *)w.params.value, &err));
  assert_int_equal(be->run(w.model, CMKD_LIST_TRAIN, w.images, &s, 1, NULL, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "not finite"));
  assert_ok(be->download(w.model, CMKD_SLOT_VALUE, after.value, &err));
  for (int i = 1; i < w.graph->params; i++)
    assert_memory_equal(before.value[i], after.value[i], (size_t)w.graph->param[i].count * sizeof(float));
  uint32_t row = ROWS;
  s = (cmkd_step){.count = 1, .rows = &row};
  assert_int_equal(be->run(w.model, CMKD_LIST_INFER, w.images, &s, 1, NULL, &err), CMKD_ERR_VALUE);
  s.count = ROWS + 1;
  assert_int_equal(be->run(w.model, CMKD_LIST_INFER, w.images, &s, 1, NULL, &err), CMKD_ERR_VALUE);
  s = (cmkd_step){.count = ROWS, .rows = w.rows, .lr = .1, .epoch = 1};
  assert_int_equal(be->run(w.model, CMKD_LIST_TRAIN, w.images, &s, 1, NULL, &err), CMKD_ERR_VALUE);
  assert_non_null(strstr(err.message, "teacher"));
  cmkd_params_free(&before), cmkd_params_free(&after);
  close_world(&w);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(gradients_of_a_net), cmocka_unit_test(updates),
                                     cmocka_unit_test(figures_of_a_step), cmocka_unit_test(bad_input_is_named)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
