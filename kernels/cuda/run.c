/* Training steps run and their results read. Each step is a captured graph that takes its input from the queue and
 * leaves its result in a ring on the device, so that between the steps of a run the host only launches again. */
#include <string.h>
#include "kernels/cuda/backend.h"

enum { STEPS_A_GRAPH = 8 };

cuda_step_kind cmkd_cuda_kind_of(const cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images,
                                 const cmkd_step *step) {
  cuda_step_kind kind = {.list = list, .count = step->count, .images = images, .images_serial = images->serial};
  for (int t = 0; t < m->targets && list == CMKD_LIST_TRAIN; t++) {
    const cmkd_be_rows *rows = step->target[t].resident;
    kind.rows[t] = rows;
    kind.rows_serial[t] = rows ? rows->serial : 0;
    if (step->target[t].values && !rows) kind.values |= 1u << t;
  }
  return kind;
}

int cmkd_cuda_same_kind(const cuda_step_kind *a, const cuda_step_kind *b) {
  return a->list == b->list && a->count == b->count && a->images_serial == b->images_serial && a->values == b->values &&
         !memcmp(a->rows_serial, b->rows_serial, sizeof a->rows_serial);
}

/* Steps of one kind in a row: as many graphs of several steps as fit, the rest one by one. */
static cmkd_status launch_train(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                                cmkd_error *err) {
  for (int i = 0; i < k;) {
    const cuda_step_kind kind = cmkd_cuda_kind_of(m, CMKD_LIST_TRAIN, images, &steps[i]);
    int same = 1;
    while (i + same < k) {
      const cuda_step_kind next = cmkd_cuda_kind_of(m, CMKD_LIST_TRAIN, images, &steps[i + same]);
      if (!cmkd_cuda_same_kind(&kind, &next)) break;
      same++;
    }
    const int together = same >= STEPS_A_GRAPH ? STEPS_A_GRAPH : 1;
    CMKD_TRY(cmkd_cuda_launch(m, &kind, together, err));
    i += together;
  }
  return CMKD_OK;
}

/* All results that the device has; waits for it. */
static cmkd_status fetch(cmkd_be_model *m, cmkd_error *err) {
  const int pending = m->pending;
  if (!pending) return CMKD_OK;
  CMKD_TRY(cmkd_results_reserve(&m->fetched, pending, err));
  m->pending = 0;
  CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(m->backend->stream), "training steps", err));
  cmkd_step_result *next = m->fetched.result + m->fetched.count;
  CMKD_TRY(cmkd_cuda_get(m->backend, next, m->results, (size_t)pending * sizeof *next, "results", err));
  for (int i = 0; i < pending && next[i].count >= 0; i++) /* what came after a halt did not happen */
    m->fetched.count++;
  return CMKD_OK;
}

static cmkd_status run_train(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                             cmkd_error *err) {
  for (int i = 0; i < k; i++)
    CMKD_TRY(cmkd_cuda_prepare(m, CMKD_LIST_TRAIN, steps[i].count, err));
  for (int i = 0; i < k;) {
    /* few steps at first: the device waits for them */
    const int most = i || k < 2 * STEPS_A_GRAPH || m->slots < STEPS_A_GRAPH ? m->slots : STEPS_A_GRAPH,
              n = k - i < most ? k - i : most;
    if (m->pending + n > CUDA_RESULTS) CMKD_TRY(fetch(m, err));
    CMKD_TRY(cmkd_cuda_queue_send(m, images, steps + i, n, err));
    m->pending += n;
    m->fold_stale = 1;
    m->trained_count = steps[i + n - 1].count;
    const cmkd_status status = launch_train(m, images, steps + i, n, err);
    if (status != CMKD_OK) { /* results that may never come are given up, and the buffer is free again */
      (void)cudaStreamSynchronize(m->backend->stream);
      m->pending -= n;
      return status;
    }
    CMKD_TRY(cmkd_cuda_queue_taken(m, err));
    i += n;
  }
  return CMKD_OK;
}

/* Resident rows that a step names. */
static cmkd_status check_rows(const cmkd_be_model *m, const cmkd_step *step, cmkd_error *err) {
  for (int t = 0; t < CMKD_MAX_TARGETS; t++) {
    const cmkd_target *target = &step->target[t];
    if (!target->resident) continue;
    if (t >= m->targets || target->resident->width != m->width[t])
      return cmkd_fail(err, CMKD_ERR_VALUE, "resident rows of %d numbers for target %d", target->resident->width, t);
    for (int i = 0; i < step->count; i++)
      if (target->index[i] >= target->resident->n)
        return cmkd_fail(err, CMKD_ERR_VALUE, "teacher row %u of %llu resident ones", target->index[i],
                         (unsigned long long)target->resident->n);
  }
  return CMKD_OK;
}

cmkd_status cmkd_cuda_run(cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps, int k,
                          float *const *outputs, cmkd_error *err) {
  unsigned carries = images->resident ? 0 : CUDA_CARRIES_PIXELS;
  for (int i = 0; i < k; i++) {
    CMKD_TRY(cmkd_step_check(&m->config, list, &images->set, &steps[i], 1, err));
    if (list == CMKD_LIST_TRAIN) CMKD_TRY(check_rows(m, &steps[i], err));
    for (int t = 0; t < m->targets && list == CMKD_LIST_TRAIN; t++)
      if (steps[i].target[t].values && !steps[i].target[t].resident) carries |= CUDA_CARRIES_TARGET(t);
  }
  CMKD_TRY(cmkd_cuda_use(m->backend, err));
  CMKD_TRY(cmkd_cuda_queue_make(m, carries, err));
  return list == CMKD_LIST_TRAIN ? run_train(m, images, steps, k, err)
                                 : cmkd_cuda_run_infer(m, images, steps, k, outputs, err);
}

/* The host has seen the bad step: the device may go on. */
static cmkd_status release_halt(cmkd_be_model *m, cmkd_error *err) {
  const int none = 0;
  return cmkd_cuda_put(m->backend, &m->state->halted, &none, sizeof none, "state", err);
}

cmkd_status cmkd_cuda_read(cmkd_be_model *m, cmkd_step_result *results, int *k, cmkd_error *err) {
  const int capacity = *k;
  *k = 0;
  CMKD_TRY(cmkd_cuda_use(m->backend, err));
  CMKD_TRY(fetch(m, err));
  *k = capacity;
  cmkd_results_take(&m->fetched, results, k);
  for (int i = 0; i < *k; i++)
    if (results[i].loss.bad_row >= 0) {
      CMKD_TRY(release_halt(m, err));
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "row %lld of a batch: its logits are NaN or Inf, or its label is out of range",
                       (long long)results[i].loss.bad_row);
    }
  return CMKD_OK;
}
