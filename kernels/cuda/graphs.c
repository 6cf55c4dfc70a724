/* Captured graphs: one or several steps of a kind, launched again and again. What changes from step to step lies in
 * device memory (step.h), so a graph serves every step of its kind until a pointer in it has become stale. */
#include <string.h>
#include "kernels/cuda/backend.h"

void cmkd_cuda_forget_graphs(cmkd_be_model *m) {
  for (int i = 0; i < CUDA_GRAPHS; i++) {
    if (m->captured[i].exec) (void)cudaGraphExecDestroy(m->captured[i].exec);
    m->captured[i] = (cuda_graph){0};
  }
}

static cuda_graph key_of(const cmkd_be_model *m, const cuda_step_kind *kind, int steps) {
  cuda_graph key = {.kind = *kind,
                    .images_serial = kind->images->serial,
                    .steps = steps,
                    .generation = m->backend->workspace_generation};
  for (int t = 0; t < m->targets; t++)
    if (kind->rows[t]) key.rows_serial[t] = kind->rows[t]->serial;
  return key;
}

/* The graph of such steps, if it was captured and everything it names is still there. */
static cuda_graph *find_graph(cmkd_be_model *m, const cuda_graph *key) {
  for (int i = 0; i < CUDA_GRAPHS; i++) {
    cuda_graph *g = &m->captured[i];
    if (g->exec && g->images_serial == key->images_serial &&
        !memcmp(g->rows_serial, key->rows_serial, sizeof key->rows_serial) && g->kind.list == key->kind.list &&
        g->kind.count == key->kind.count && g->kind.values == key->kind.values && g->steps == key->steps &&
        g->generation == key->generation)
      return g;
  }
  return NULL;
}

static cmkd_status queue_steps(cmkd_be_model *m, const cuda_step_kind *kind, int steps, cmkd_error *err) {
  for (int i = 0; i < steps; i++)
    CMKD_TRY(cmkd_cuda_queue_step(m, kind, err));
  return CMKD_OK;
}

static cuda_graph *least_used(cmkd_be_model *m) {
  cuda_graph *slot = &m->captured[0];
  for (int i = 1; i < CUDA_GRAPHS; i++)
    if (m->captured[i].used < slot->used) slot = &m->captured[i];
  return slot;
}

static cmkd_status capture(cmkd_be_model *m, const cuda_graph *key, cuda_graph **out, cmkd_error *err) {
  cudaStream_t stream = m->backend->stream;
  cudaGraph_t graph = NULL;
  cuda_graph *slot = least_used(m);
  if (slot->exec) { /* rare; it may be running */
    (void)cudaStreamSynchronize(stream);
    (void)cudaGraphExecDestroy(slot->exec);
  }
  *slot = *key;
  slot->exec = NULL;
  CMKD_TRY(cmkd_cuda_status(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a step", err));
  cmkd_status status = queue_steps(m, &key->kind, key->steps, err);
  cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  size_t nodes = 0;
  if (status == CMKD_OK) status = cmkd_cuda_status(ended, "capturing a step", err);
  if (status == CMKD_OK) status = cmkd_cuda_status(cudaGraphGetNodes(graph, NULL, &nodes), "capturing a step", err);
  if (m->profile && key->kind.list == CMKD_LIST_TRAIN) cmkd_cuda_profile_nodes(m, (int)nodes / key->steps);
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
static cmkd_status profile(cmkd_be_model *m, const cuda_step_kind *kind, int steps, cmkd_error *err) {
  const cuda_graph key = key_of(m, kind, 1);
  cuda_graph *graph = NULL;
  for (int i = 0; i < steps; i++) {
    CMKD_TRY(queue_steps(m, kind, 1, err));
    CMKD_TRY(cmkd_cuda_profile_step(m, err));
  }
  return m->backend->check || find_graph(m, &key) ? CMKD_OK : capture(m, &key, &graph, err);
}

/* Bits for the kernels that a step of this kind needs beside those of every step at its number of rows. */
static unsigned kernels_of(const cmkd_be_model *m, const cuda_step_kind *kind) {
  unsigned bits = 1;
  if (cuda_has_teacher(kind)) bits |= 2; /* agreement */
  for (int t = 0; t < m->targets; t++)
    if (kind->rows[t]) bits |= 4u << (unsigned)kind->rows[t]->dtype; /* decoding them */
  return bits;
}

cmkd_status cmkd_cuda_launch(cmkd_be_model *m, const cuda_step_kind *kind, int steps, cmkd_error *err) {
  cuda_conv_algorithms *algorithms = cmkd_cuda_algorithms_for(m, kind->list, kind->count);
  const cuda_graph key = key_of(m, kind, steps);
  const unsigned kernels = kernels_of(m, kind);
  if (m->profile && kind->list == CMKD_LIST_TRAIN) return profile(m, kind, steps, err);
  if (m->backend->check || (algorithms->loaded & kernels) != kernels) {
    algorithms->loaded |= kernels;
    return queue_steps(m, kind, steps, err);
  }
  cuda_graph *graph = find_graph(m, &key);
  if (!graph) CMKD_TRY(capture(m, &key, &graph, err));
  graph->used = ++m->clock;
  return cmkd_cuda_status(cudaGraphLaunch(graph->exec, m->backend->stream), "launching a step", err);
}
