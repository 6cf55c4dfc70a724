/* Steps. Their input goes through pinned memory into a queue on the device, half of which is filled while the device
 * works through the other half; each step is a captured graph that takes its input from the queue and leaves its result
 * in a ring, so that nothing is said to the device between the steps of a run but "again". */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/half.h"
#include "kernels/cuda/backend.h"

enum { MOST_SLOTS = 64, STEPS_A_GRAPH = 8 };
#define HALF_BYTES ((size_t)16 << 20)
#define OUT_BYTES ((size_t)16 << 20)

/* ---- the queue ---- */

/* In the first slot of a half: where the state's cursors are to stand (cmkd_cuda_state begins with the same two). */
typedef struct half_head {
  int input, output;
} half_head;

static size_t part(size_t *at, size_t bytes) {
  size_t from = *at;
  *at += (bytes + 255) / 256 * 256;
  return from;
}

static void free_queue(cmkd_be_model *m) {
  if (m->queue) (void)cudaFree(m->queue);
  if (m->staging) (void)cudaFreeHost(m->staging);
  m->queue = m->staging = NULL;
}

/* Slots have room for what steps so far brought along; what is resident takes none. */
static cmkd_status make_queue(cmkd_be_model *m, unsigned carries, cmkd_error *err) {
  const size_t batch = (size_t)m->config.batch, classes = (size_t)m->graph->classes;
  const size_t image = (size_t)m->graph->tensor[0].h * (size_t)m->graph->tensor[0].w * (size_t)m->graph->tensor[0].c;
  if (m->staging && !(carries & ~m->carries)) return CMKD_OK;
  CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(m->backend->stream), "queue", err));
  cmkd_cuda_forget_graphs(m);
  free_queue(m);
  carries |= m->carries;
  cmkd_cuda_queue *q = &m->layout;
  size_t stride = 0;
  memset(q, 0, sizeof *q);
  part(&stride, sizeof(cmkd_cuda_slot));
  q->seeds = part(&stride, batch * sizeof(uint64_t));
  q->rows = part(&stride, batch * sizeof(uint32_t));
  q->labels = part(&stride, batch * sizeof(int32_t));
  if (m->config.train) q->index = part(&stride, batch * sizeof(uint32_t));
  if (carries & CUDA_TEACHER) q->teacher = part(&stride, batch * classes * sizeof(float));
  if (carries & CUDA_PIXELS) q->pixels = part(&stride, batch * image);
  q->stride = stride;
  m->carries = carries;
  m->slots = HALF_BYTES / stride < 1 ? 1 : HALF_BYTES / stride > MOST_SLOTS ? MOST_SLOTS : (int)(HALF_BYTES / stride);
  const size_t half = (size_t)(m->slots + 1) * stride;
  CMKD_TRY(cmkd_cuda_status(cudaMalloc((void **)&m->queue, CUDA_HALVES * half), "queue of steps", err));
  CMKD_TRY(cmkd_cuda_status(cudaHostAlloc((void **)&m->staging, CUDA_HALVES * half, cudaHostAllocDefault),
                            "pinned memory", err));
  memset(m->staging, 0, CUDA_HALVES * half);
  q->slots = m->queue;
  return cmkd_cuda_status(cudaMemsetAsync(m->queue, 0, CUDA_HALVES * half, m->backend->stream), "queue of steps", err);
}

static void fill_slot(const cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *step, char *slot) {
  const cmkd_cuda_queue *q = &m->layout;
  const size_t image = (size_t)images->h * (size_t)images->w * (size_t)images->c;
  uint64_t *seeds = (uint64_t *)(slot + q->seeds), clean = cmkd_clean_seed(m->config.policy);
  int32_t *labels = (int32_t *)(slot + q->labels);
  *(cmkd_cuda_slot *)slot = (cmkd_cuda_slot){(float)step->lr, step->epoch};
  memcpy(slot + q->rows, step->rows, (size_t)step->count * sizeof *step->rows);
  for (int i = 0; i < step->count; i++) {
    seeds[i] = step->seeds ? step->seeds[i] : clean;
    labels[i] = images->labels ? images->labels[step->rows[i]] : 0;
    if (!images->resident)
      memcpy(slot + q->pixels + (size_t)i * image, images->pixels + (size_t)step->rows[i] * image, image);
  }
  const cmkd_target *teacher = &step->target[CMKD_TARGET_TEACHER];
  if (teacher->rows && q->index)
    memcpy(slot + q->index, teacher->index, (size_t)step->count * sizeof *teacher->index);
  else if (teacher->values && q->teacher)
    memcpy(slot + q->teacher, teacher->values, (size_t)step->count * (size_t)m->graph->classes * sizeof(float));
}

/* Fills the half whose turn it is with k steps and sends it off; the device has then passed everything that used that
 * half before. */
static cmkd_status send_steps(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                              cmkd_error *err) {
  cudaStream_t stream = m->backend->stream;
  const size_t stride = m->layout.stride;
  const int head = m->half * (m->slots + 1);
  char *host = m->staging + (size_t)head * stride, *device = m->queue + (size_t)head * stride;
  if (m->in_flight[m->half])
    CMKD_TRY(cmkd_cuda_status(cudaEventSynchronize(m->taken[m->half]), "waiting for earlier steps", err));
  m->in_flight[m->half] = 0;
  *(half_head *)host = (half_head){head + 1, m->pending};
  for (int i = 0; i < k; i++)
    fill_slot(m, images, &steps[i], host + (size_t)(i + 1) * stride);
  CMKD_TRY(cmkd_cuda_status(cudaMemcpyAsync(device, host, (size_t)(k + 1) * stride, cudaMemcpyHostToDevice, stream),
                            "sending steps", err));
  return cmkd_cuda_status(cudaMemcpyAsync(m->state, device, sizeof(half_head), cudaMemcpyDeviceToDevice, stream),
                          "sending steps", err);
}

static cmkd_status half_taken(cmkd_be_model *m, cmkd_error *err) {
  CMKD_TRY(cmkd_cuda_status(cudaEventRecord(m->taken[m->half], m->backend->stream), "sending steps", err));
  m->in_flight[m->half] = 1;
  m->half = (m->half + 1) % CUDA_HALVES;
  return CMKD_OK;
}

/* ---- graphs ---- */

void cmkd_cuda_forget_graphs(cmkd_be_model *m) {
  for (int i = 0; i < CUDA_GRAPHS; i++) {
    if (m->captured[i].exec) (void)cudaGraphExecDestroy(m->captured[i].exec);
    m->captured[i] = (cuda_graph){0};
  }
}

/* The graph of these steps, if it was captured and nothing has moved since. */
static cuda_graph *find_graph(cmkd_be_model *m, const cuda_graph *key) {
  for (int i = 0; i < CUDA_GRAPHS; i++) {
    cuda_graph *g = &m->captured[i];
    if (g->exec && g->images_serial == key->images_serial && g->rows_serial == key->rows_serial &&
        g->list == key->list && g->count == key->count && g->teacher == key->teacher && g->steps == key->steps &&
        g->generation == key->generation)
      return g;
  }
  return NULL;
}

static cmkd_status queue_steps(cmkd_be_model *m, const cuda_graph *key, cmkd_error *err) {
  for (int i = 0; i < key->steps; i++)
    CMKD_TRY(cmkd_cuda_queue_step(m, (cmkd_list)key->list, key->images, key->rows, key->count, key->teacher, err));
  return CMKD_OK;
}

static cmkd_status capture(cmkd_be_model *m, const cuda_graph *key, cuda_graph **out, cmkd_error *err) {
  cudaStream_t stream = m->backend->stream;
  cudaGraph_t graph = NULL;
  cuda_graph *slot = &m->captured[0];
  for (int i = 1; i < CUDA_GRAPHS; i++)
    if (m->captured[i].used < slot->used) slot = &m->captured[i];
  if (slot->exec) { /* rare; it may be running */
    (void)cudaStreamSynchronize(stream);
    (void)cudaGraphExecDestroy(slot->exec);
  }
  *slot = *key;
  slot->exec = NULL;
  CMKD_TRY(cmkd_cuda_status(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a step", err));
  cmkd_status status = queue_steps(m, key, err);
  cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  size_t nodes = 0;
  if (status == CMKD_OK) status = cmkd_cuda_status(ended, "capturing a step", err);
  if (status == CMKD_OK) status = cmkd_cuda_status(cudaGraphGetNodes(graph, NULL, &nodes), "capturing a step", err);
  if (m->profile && key->list == CMKD_LIST_TRAIN) cmkd_cuda_profile_nodes(m, (int)nodes / key->steps);
  if (status == CMKD_OK)
    status = cmkd_cuda_status(cudaGraphInstantiate(&slot->exec, graph, 0), "preparing a captured step", err);
  if (graph) (void)cudaGraphDestroy(graph);
  if (status != CMKD_OK) {
    *slot = (cuda_graph){0};
    (void)cudaGetLastError(); /* what ending a failed capture leaves behind */
  } else
    *out = slot;
  return status;
}

/* Steps one by one, timed; one is captured too, to count what it launches. */
static cmkd_status profile(cmkd_be_model *m, cuda_graph key, cmkd_error *err) {
  const int steps = key.steps;
  cuda_graph *graph = NULL;
  key.steps = 1;
  for (int i = 0; i < steps; i++) {
    CMKD_TRY(queue_steps(m, &key, err));
    CMKD_TRY(cmkd_cuda_profile_step(m, err));
  }
  return m->backend->check || find_graph(m, &key) ? CMKD_OK : capture(m, &key, &graph, err);
}

/* Steps of one kind. */
static cuda_graph key_of(const cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images, const cmkd_step *step,
                         int steps) {
  const cmkd_be_rows *rows = list == CMKD_LIST_TRAIN ? step->target[CMKD_TARGET_TEACHER].rows : NULL;
  return (cuda_graph){.images = images,
                      .images_serial = images->serial,
                      .rows = rows,
                      .rows_serial = rows ? rows->serial : 0,
                      .list = list,
                      .count = step->count,
                      .teacher = list == CMKD_LIST_TRAIN && step->target[CMKD_TARGET_TEACHER].values && !rows,
                      .steps = steps,
                      .generation = m->backend->workspace_generation};
}

/* `steps` equal steps: one graph launch. The first of their kind are queued op by op, so that every kernel is loaded
 * before it is captured; and so are all where each operation is to be checked. */
static cmkd_status launch(cmkd_be_model *m, cuda_graph key, cmkd_error *err) {
  cuda_conv_algorithms *algorithms = cmkd_cuda_algorithms_for(m, (cmkd_list)key.list, key.count);
  cuda_graph *graph = find_graph(m, &key);
  if (m->profile && key.list == CMKD_LIST_TRAIN) return profile(m, key, err);
  const unsigned kind = 1u << (key.rows ? 2 + (int)key.rows->dtype : key.teacher);
  if (m->backend->check || !(algorithms->loaded & kind)) {
    algorithms->loaded |= kind;
    return queue_steps(m, &key, err);
  }
  if (!graph) CMKD_TRY(capture(m, &key, &graph, err));
  graph->used = ++m->clock;
  return cmkd_cuda_status(cudaGraphLaunch(graph->exec, m->backend->stream), "launching a step", err);
}

/* ---- running ---- */

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
  const cmkd_target *teacher = &step->target[CMKD_TARGET_TEACHER];
  for (int i = 0; teacher->rows && i < step->count; i++)
    if (teacher->rows->classes != m->graph->classes || teacher->index[i] >= teacher->rows->n)
      return cmkd_fail(err, CMKD_ERR_VALUE, "teacher row %u of %llu resident ones", teacher->index[i],
                       (unsigned long long)teacher->rows->n);
  if (!teacher->values && !teacher->rows && cmkd_loss_needs_teacher(m->config.loss))
    return cmkd_fail(err, CMKD_ERR_VALUE, "the loss `%s` needs teacher logits", cmkd_loss_text(m->config.loss));
  if (!(step->epoch >= 1)) return cmkd_fail(err, CMKD_ERR_VALUE, "epoch %g is below 1", step->epoch);
  return CMKD_OK;
}

static int same_kind(const cmkd_step *a, const cmkd_step *b) {
  const cmkd_target *ta = &a->target[CMKD_TARGET_TEACHER], *tb = &b->target[CMKD_TARGET_TEACHER];
  return a->count == b->count && ta->rows == tb->rows && !ta->values == !tb->values;
}

/* Steps of one kind in a row: as many graphs of several steps as fit, the rest one by one. */
static cmkd_status launch_train(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                                cmkd_error *err) {
  for (int i = 0; i < k;) {
    int same = 1;
    while (i + same < k && same_kind(&steps[i], &steps[i + same]))
      same++;
    const int together = same >= STEPS_A_GRAPH ? STEPS_A_GRAPH : 1;
    CMKD_TRY(launch(m, key_of(m, CMKD_LIST_TRAIN, images, &steps[i], together), err));
    i += together;
  }
  return CMKD_OK;
}

static cmkd_status fetch(cmkd_be_model *m, cmkd_error *err);

static cmkd_status run_train(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                             cmkd_error *err) {
  for (int i = 0; i < k; i++)
    CMKD_TRY(cmkd_cuda_prepare(m, CMKD_LIST_TRAIN, steps[i].count, err));
  for (int i = 0; i < k;) {
    const int most = i || k < 2 * STEPS_A_GRAPH || m->slots < STEPS_A_GRAPH ? m->slots : STEPS_A_GRAPH,
              n = k - i < most ? k - i : most; /* few at first: the device waits for them */
    if (m->pending + n > CUDA_RESULTS) CMKD_TRY(fetch(m, err));
    CMKD_TRY(send_steps(m, images, steps + i, n, err));
    m->pending += n;
    m->fold_stale = 1;
    m->trained_count = steps[i + n - 1].count;
    const cmkd_status status = launch_train(m, images, steps + i, n, err);
    if (status != CMKD_OK) { /* results that may never come are not told, and the half is free again */
      (void)cudaStreamSynchronize(m->backend->stream);
      m->pending -= n;
      return status;
    }
    CMKD_TRY(half_taken(m, err));
    i += n;
  }
  return CMKD_OK;
}

/* ---- inference ---- */

static void narrow(const cmkd_be_model *m, const float *wide, size_t count, uint16_t *to) {
  for (size_t i = 0; i < count; i++)
    to[i] = m->backend->dtype == CMKD_F16 ? cmkd_float_to_half(wide[i]) : cmkd_float_to_bf16(wide[i]);
}

/* Batch norm folded into the convolutions' weights, on the host, in double. */
static cmkd_status fold(cmkd_be_model *m, cmkd_error *err) {
  const size_t values = (size_t)m->values, channels = m->channels + 1, biases = m->biases + 1;
  float *memory = malloc((values + 2 * channels + biases) * sizeof *memory), *mean = memory + values,
        *var = mean + channels, *bias = var + channels;
  if (!memory) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  cmkd_backend *b = m->backend;
  const int wide = b->dtype == CMKD_F32;
  memset(memory, 0, values * sizeof *memory);
  cmkd_status status = cmkd_cuda_get(b, m->host, m->value, values * sizeof(float), "folding batch norm", err);
  if (status == CMKD_OK)
    status = cmkd_cuda_get(b, mean, m->mean, m->channels * sizeof(float), "folding batch norm", err);
  if (status == CMKD_OK) status = cmkd_cuda_get(b, var, m->var, m->channels * sizeof(float), "folding batch norm", err);
  if (status == CMKD_OK) cmkd_cuda_fold(m, m->host, mean, var, memory, bias);
  if (status == CMKD_OK && !wide) narrow(m, memory, values, (uint16_t *)m->host);
  if (status == CMKD_OK)
    status = cmkd_cuda_put(b, m->fold_weight, wide ? (void *)memory : (void *)m->host,
                           values * cuda_dtype_size(b->dtype), "folding batch norm", err);
  if (status == CMKD_OK)
    status = cmkd_cuda_put(b, m->fold_bias, bias, m->biases * sizeof(float), "folding batch norm", err);
  free(memory);
  if (status != CMKD_OK) return status;
  m->fold_stale = 0;
  return CMKD_OK;
}

/* Logits and features of the steps that ran, from pinned memory to the caller; the first row that is not finite fails.
 */
static cmkd_status fetch_outputs(const cmkd_be_model *m, const cmkd_step *steps, int k, float **logits,
                                 float **features, cmkd_error *err) {
  const size_t classes = (size_t)m->graph->classes, width = (size_t)m->graph->tensor[cmkd_graph_features(m->graph)].c;
  for (int i = 0; i < k; i++) {
    const size_t count = (size_t)steps[i].count;
    const float *z = m->out + (size_t)i * m->out_floats;
    for (size_t j = 0; j < count * classes; j++)
      if (!isfinite(z[j]))
        return cmkd_fail(
            err, CMKD_ERR_VALUE,
            "`%s`: logits of image %u are NaN or Inf; the weights are broken or the learning rate was too high",
            m->graph->arch, steps[i].rows[j / classes]);
    if (*logits) memcpy(*logits, z, count * classes * sizeof(float)), *logits += count * classes;
    if (*features)
      memcpy(*features, z + (size_t)m->config.batch * classes, count * width * sizeof(float)),
          *features += count * width;
  }
  return CMKD_OK;
}

static cmkd_status make_out(cmkd_be_model *m, cmkd_error *err) {
  if (m->out) return CMKD_OK;
  m->out_floats =
      (size_t)m->config.batch * ((size_t)m->graph->classes + (size_t)m->graph->tensor[cmkd_graph_features(m->graph)].c);
  const size_t steps = OUT_BYTES / (m->out_floats * sizeof(float));
  m->out_steps = steps < 1 ? 1 : steps > MOST_SLOTS ? MOST_SLOTS : (int)steps;
  return cmkd_cuda_status(
      cudaHostAlloc((void **)&m->out, (size_t)m->out_steps * m->out_floats * sizeof(float), cudaHostAllocDefault),
      "pinned memory", err);
}

static cmkd_status run_infer(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                             float *logits, float *features, cmkd_error *err) {
  cudaStream_t stream = m->backend->stream;
  const size_t classes = (size_t)m->graph->classes, width = (size_t)m->graph->tensor[cmkd_graph_features(m->graph)].c;
  for (int i = 0; i < k; i++)
    CMKD_TRY(cmkd_cuda_prepare(m, CMKD_LIST_INFER, steps[i].count, err));
  CMKD_TRY(make_out(m, err));
  if (m->fold_stale) CMKD_TRY(fold(m, err));
  for (int i = 0; i < k;) {
    const int most = m->slots < m->out_steps ? m->slots : m->out_steps, n = k - i < most ? k - i : most;
    CMKD_TRY(send_steps(m, images, steps + i, n, err));
    for (int j = 0; j < n; j++) {
      const size_t count = (size_t)steps[i + j].count;
      float *out = m->out + (size_t)j * m->out_floats;
      CMKD_TRY(launch(m, key_of(m, CMKD_LIST_INFER, images, &steps[i + j], 1), err));
      CMKD_TRY(cmkd_cuda_status(
          cudaMemcpyAsync(out, m->logits, count * classes * sizeof(float), cudaMemcpyDeviceToHost, stream), "logits",
          err));
      if (features)
        CMKD_TRY(cmkd_cuda_status(cudaMemcpyAsync(out + (size_t)m->config.batch * classes, m->features,
                                                  count * width * sizeof(float), cudaMemcpyDeviceToHost, stream),
                                  "features", err));
    }
    CMKD_TRY(half_taken(m, err));
    CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(stream), "inference", err));
    CMKD_TRY(fetch_outputs(m, steps + i, n, &logits, &features, err));
    i += n;
  }
  return CMKD_OK;
}

cmkd_status cmkd_cuda_run(cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps, int k,
                          float *const *outputs, cmkd_error *err) {
  unsigned carries = images->resident ? 0 : CUDA_PIXELS;
  for (int i = 0; i < k; i++) {
    CMKD_TRY(check_step(m, list, images, &steps[i], err));
    const cmkd_target *teacher = &steps[i].target[CMKD_TARGET_TEACHER];
    if (list == CMKD_LIST_TRAIN && teacher->values && !teacher->rows) carries |= CUDA_TEACHER;
  }
  CMKD_TRY(cmkd_cuda_use(m->backend, err));
  CMKD_TRY(make_queue(m, carries, err));
  return list == CMKD_LIST_TRAIN ? run_train(m, images, steps, k, err)
                                 : run_infer(m, images, steps, k, outputs ? outputs[CMKD_OUTPUT_LOGITS] : NULL,
                                             outputs ? outputs[CMKD_OUTPUT_FEATURES] : NULL, err);
}

/* ---- results ---- */

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
