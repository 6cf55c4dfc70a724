/* See inputs.h. */
#include "bench/gpu/inputs.h"
#include <stdio.h>
#include "base/hash.h"

static cmkd_status set_digest(json_t *o, const char *what, cmkd_hasher *h, cmkd_error *err) {
  char hex[CMKD_SHA256_HEX];
  cmkd_hasher_finish(h, hex);
  json_object_set_new(o, what, json_string(hex));
  return hex[0] ? CMKD_OK : cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
}

cmkd_status bench_digest_params(json_t *o, const char *what, const cmkd_graph *g, const cmkd_params *p,
                                cmkd_error *err) {
  cmkd_hasher *h = cmkd_hasher_start();
  for (int i = 0; i < g->params; i++)
    cmkd_hasher_update(h, p->value[i], (size_t)g->param[i].count * sizeof(float));
  return set_digest(o, what, h, err);
}

static cmkd_status set_data_digests(json_t *o, const bench_data *d, cmkd_error *err) {
  const struct {
    const char *what;
    const void *data;
    size_t size;
  } part[] = {{"images", d->pixels, (size_t)d->n * (size_t)(d->shape.height * d->shape.width * d->shape.channels)},
              {"labels", d->labels, (size_t)d->n * sizeof *d->labels},
              {"teacher rows", d->teacher, (size_t)d->n * (size_t)d->shape.classes * sizeof *d->teacher}};
  for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
    cmkd_hasher *h = cmkd_hasher_start();
    cmkd_hasher_update(h, part[i].data, part[i].size);
    CMKD_TRY(set_digest(o, part[i].what, h, err));
  }
  return CMKD_OK;
}

/* Which rows the steps take, moved by which seeds, in which epoch. */
static cmkd_status set_order_digest(json_t *o, const bench_data *data, int batch, int64_t steps, cmkd_error *err) {
  bench_steps block;
  cmkd_hasher *h = cmkd_hasher_start();
  const cmkd_status status = bench_steps_create(1, batch, data->shape.classes, &block, err);
  for (int64_t i = 0; status == CMKD_OK && i < steps; i++) {
    bench_steps_fill(&block, data, i, batch, 0, 0);
    cmkd_hasher_update(h, block.rows, (size_t)batch * sizeof *block.rows);
    cmkd_hasher_update(h, block.seeds, (size_t)batch * sizeof *block.seeds);
    cmkd_hasher_update(h, &block.step->epoch, sizeof block.step->epoch);
  }
  bench_steps_free(&block);
  CMKD_TRY(set_digest(o, "rows and seeds", h, err));
  return status;
}

/* Loss of the third step of a small network on the double reference: it changes with all that world.c gives a model
 * (momentum, weight decay, normalisation, augmentation), which no option shows. */
static cmkd_status set_probe(json_t *o, const cmkd_loss *given, cmkd_error *err) {
  const cmkd_net_shape shape = {8, 8, 3, 10};
  cmkd_graph *g = NULL;
  cmkd_params p = {0};
  bench_data data = {0};
  bench_steps block = {0};
  bench_side s = {0};
  double loss[3];
  char text[32];
  cmkd_status status = cmkd_net_build("resnet8", shape, &g, err);
  if (status == CMKD_OK) status = cmkd_params_create(g, &p, err);
  if (status == CMKD_OK) {
    cmkd_params_init(g, 1, &p);
    status = bench_data_create(shape, 16, 1, &data, err);
  }
  if (status == CMKD_OK)
    status = bench_side_open(&(bench_setup){.device = "ref",
                                            .precision = "fp32",
                                            .threads = 1,
                                            .batch = 4,
                                            .graph = g,
                                            .loss = given,
                                            .data = &data,
                                            .params = &p},
                             &s, err);
  if (status == CMKD_OK) status = bench_steps_create(3, 4, shape.classes, &block, err);
  if (status == CMKD_OK) {
    bench_steps_fill(&block, &data, 0, 4, cmkd_loss_needs_teacher(given), 0.05);
    status = bench_steps_train(&s, &block, 3, loss, err);
  }
  if (status == CMKD_OK) {
    snprintf(text, sizeof text, "%.8g", loss[2]);
    json_object_set_new(o, "three small steps' loss", json_string(text));
  }
  bench_steps_free(&block);
  bench_side_close(&s);
  bench_data_free(&data);
  cmkd_params_free(&p);
  cmkd_graph_free(g);
  return status;
}

cmkd_status bench_digest_inputs(json_t *o, const bench_data *data, const cmkd_loss *loss, int batch, int64_t steps,
                                cmkd_error *err) {
  CMKD_TRY(set_data_digests(o, data, err));
  CMKD_TRY(set_order_digest(o, data, batch, steps, err));
  return set_probe(o, loss, err);
}
