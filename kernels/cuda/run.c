/* Training steps run and their results read. Each step is a captured graph that takes its input from the queue and
 * leaves its result in a ring on the device, so that between the steps of a run the host only launches again. */
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/backend.h"

enum { STEPS_A_GRAPH = 8 };

static cuda_step_kind kind_of(const cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *step) {
  cuda_step_kind kind = {.list = CMKD_LIST_TRAIN, .count = step->count, .images = images};
  for (int t = 0; t < m->targets; t++) {
    kind.rows[t] = step->target[t].rows;
    if (step->target[t].values && !kind.rows[t]) kind.values |= 1u << t;
  }
  return kind;
}

static int same_kind(const cuda_step_kind *a, const cuda_step_kind *b) {
  return a->count == b->count && a->values == b->values && !memcmp(a->rows, b->rows, sizeof a->rows);
}

/* Steps of one kind in a row: as many graphs of several steps as fit, the rest one by one. */
static cmkd_status launch_train(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                                cmkd_error *err) {
  for (int i = 0; i < k;) {
    const cuda_step_kind kind = kind_of(m, images, &steps[i]);
    int same = 1;
    while (i + same < k) {
      const cuda_step_kind next = kind_of(m, images, &steps[i + same]);
      if (!same_kind(&kind, &next)) break;
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
  if (!m->pending) return CMKD_OK;
  if (m->results_count + m->pending > m->results_capacity) {
    int capacity = 2 * (m->results_count + m->pending);
    cmkd_step_result *bigger = realloc(m->result, (size_t)capacity * sizeof *bigger);
    if (!bigger) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory keeping step results");
    m->result = bigger;
    m->results_capacity = capacity;
  }
  const int pending = m->pending;
  m->pending = 0;
  CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(m->backend->stream), "training steps", err));
  CMKD_TRY(cmkd_cuda_get(m->backend, m->result + m->results_count, m->results, (size_t)pending * sizeof *m->result,
                         "results", err));
  for (int i = 0; i < pending; i++) /* what came after a halt did not happen */
    if (m->result[m->results_count].count >= 0)
      m->results_count++;
    else
      return CMKD_OK;
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
    if (status != CMKD_OK) { /* results that may never come are given up, and the half is free again */
      (void)cudaStreamSynchronize(m->backend->stream);
      m->pending -= n;
      return status;
    }
    CMKD_TRY(cmkd_cuda_queue_taken(m, err));
    i += n;
  }
  return CMKD_OK;
}

static cmkd_status check_targets(const cmkd_be_model *m, const cmkd_step *step, cmkd_error *err) {
  for (int t = 0; t < m->targets; t++) {
    const cmkd_target *target = &step->target[t];
    for (int i = 0; target->rows && i < step->count; i++)
      if (target->rows->width != m->width[t] || target->index[i] >= target->rows->n)
        return cmkd_fail(err, CMKD_ERR_VALUE, "teacher row %u of %llu resident ones", target->index[i],
                         (unsigned long long)target->rows->n);
  }
  const cmkd_target *teacher = &step->target[CMKD_TARGET_TEACHER];
  if (!teacher->values && !teacher->rows && cmkd_loss_needs_teacher(m->config.loss))
    return cmkd_fail(err, CMKD_ERR_VALUE, "the loss `%s` needs teacher logits", cmkd_loss_text(m->config.loss));
  for (int i = 0; i < m->config.objectives; i++) {
    const cmkd_target *target = &step->target[m->objective[i].target];
    if (!target->values && !target->rows)
      return cmkd_fail(err, CMKD_ERR_VALUE, "the objective on `%s` needs target `%s`", m->config.objective[i].output,
                       m->config.objective[i].target);
  }
  return CMKD_OK;
}

static cmkd_status check_step(const cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images,
                              const cmkd_step *step, cmkd_error *err) {
  const cmkd_shape in = m->graph->tensor[0];
  if (images->h != in.h || images->w != in.w || images->c != in.c)
    return cmkd_fail(err, CMKD_ERR_MISMATCH, "images are %dx%dx%d, `%s` was made for %dx%dx%d", images->h, images->w,
                     images->c, m->graph->arch, in.h, in.w, in.c);
  if (step->count < 1 || step->count > m->config.batch)
    return cmkd_fail(err, CMKD_ERR_VALUE, "a step of %d rows; the model takes 1 to %d", step->count, m->config.batch);
  for (int i = 0; i < step->count; i++)
    if (step->rows[i] >= images->n)
      return cmkd_fail(err, CMKD_ERR_VALUE, "row %u of %u images", step->rows[i], images->n);
  if (list == CMKD_LIST_INFER) return CMKD_OK;
  if (!m->config.train) return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "`%s` was made for inference", m->graph->arch);
  CMKD_TRY(check_targets(m, step, err));
  if (!(step->epoch >= 1)) return cmkd_fail(err, CMKD_ERR_VALUE, "epoch %g is below 1", step->epoch);
  return CMKD_OK;
}

cmkd_status cmkd_cuda_run(cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps, int k,
                          float *const *outputs, cmkd_error *err) {
  unsigned carries = images->resident ? 0 : CUDA_CARRIES_PIXELS;
  for (int i = 0; i < k; i++) {
    CMKD_TRY(check_step(m, list, images, &steps[i], err));
    for (int t = 0; t < m->targets && list == CMKD_LIST_TRAIN; t++)
      if (steps[i].target[t].values && !steps[i].target[t].rows) carries |= CUDA_CARRIES_TARGET(t);
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
  const int count = m->results_count < capacity ? m->results_count : capacity;
  if (count) memcpy(results, m->result, (size_t)count * sizeof *results);
  if (count) memmove(m->result, m->result + count, (size_t)(m->results_count - count) * sizeof *results);
  m->results_count -= count;
  *k = count;
  for (int i = 0; i < count; i++)
    if (results[i].loss.bad_row >= 0) {
      CMKD_TRY(release_halt(m, err));
      return cmkd_fail(err, CMKD_ERR_VALUE,
                       "row %lld of a batch: its logits are NaN or Inf, or its label is out of range",
                       (long long)results[i].loss.bad_row);
    }
  return CMKD_OK;
}
