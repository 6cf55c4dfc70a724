/* Captured graphs: one or several steps of a kind, launched again and again. What changes from step to step lies in
 * device memory (cmkd_cuda_state), so a graph serves every step of its kind until a pointer in it has become stale. */
#include <string.h>
#include "kernels/cuda/backend.h"

void cmkd_cuda_forget_graphs(cmkd_be_model *m) {
  for (int i = 0; i < CUDA_GRAPHS; i++) {
    if (m->captured[i].exec) (void)cudaGraphExecDestroy(m->captured[i].exec);
    m->captured[i] = (cuda_graph){0};
  }
}

/* The graph of so many steps of a kind, if it was captured and everything it names is still there. */
static cuda_graph *find_graph(cmkd_be_model *m, const cuda_step_kind *kind, int steps) {
  for (int i = 0; i < CUDA_GRAPHS; i++) {
    cuda_graph *g = &m->captured[i];
    if (g->exec && g->steps == steps && g->generation == m->backend->workspace_generation &&
        cmkd_cuda_same_kind(&g->kind, kind))
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
  cuda_graph *least = &m->captured[0];
  for (int i = 1; i < CUDA_GRAPHS; i++)
    if (m->captured[i].used < least->used) least = &m->captured[i];
  return least;
}

/* Captures so many steps of a kind in the place of the graph that was not used for longest. */
static cmkd_status capture(cmkd_be_model *m, const cuda_step_kind *kind, int steps, cuda_graph **out, cmkd_error *err) {
  cudaStream_t stream = m->backend->stream;
  cudaGraph_t graph = NULL;
  cuda_graph *entry = least_used(m);
  if (entry->exec) { /* rare; it may be running */
    (void)cudaStreamSynchronize(stream);
    (void)cudaGraphExecDestroy(entry->exec);
  }
  *entry = (cuda_graph){.kind = *kind, .steps = steps, .generation = m->backend->workspace_generation};
  CMKD_TRY(cmkd_cuda_status(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a step", err));
  cmkd_status status = queue_steps(m, kind, steps, err);
  cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  size_t nodes = 0;
  if (status == CMKD_OK) status = cmkd_cuda_status(ended, "capturing a step", err);
  if (status == CMKD_OK) status = cmkd_cuda_status(cudaGraphGetNodes(graph, NULL, &nodes), "capturing a step", err);
  if (m->profile && kind->list == CMKD_LIST_TRAIN) cmkd_cuda_profile_nodes(m, (int)nodes / steps);
  if (status == CMKD_OK)
    status = cmkd_cuda_status(cudaGraphInstantiate(&entry->exec, graph, 0), "preparing a captured step", err);
  if (graph) (void)cudaGraphDestroy(graph);
  if (status != CMKD_OK) {
    *entry = (cuda_graph){0};
    (void)cudaGetLastError(); /* what ending a failed capture leaves behind */
  } else
    *out = entry;
  return status;
}

/* Steps one by one, timed. The first of a kind is also captured, to count what it launches. That graph is never
 * launched (cmkd_model_config.reduce is called while it is captured, which queues nothing), so the numbers stay the
 * same. */
static cmkd_status profile(cmkd_be_model *m, const cuda_step_kind *kind, int steps, cmkd_error *err) {
  cuda_graph *graph = NULL;
  for (int i = 0; i < steps; i++) {
    CMKD_TRY(queue_steps(m, kind, 1, err));
    CMKD_TRY(cmkd_cuda_profile_step(m, err));
  }
  return m->backend->check || find_graph(m, kind, 1) ? CMKD_OK : capture(m, kind, 1, &graph, err);
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
  const unsigned kernels = kernels_of(m, kind);
  if (m->profile && kind->list == CMKD_LIST_TRAIN) return profile(m, kind, steps, err);
  if (m->backend->check || (algorithms->loaded & kernels) != kernels) {
    algorithms->loaded |= kernels;
    return queue_steps(m, kind, steps, err);
  }
  cuda_graph *graph = find_graph(m, kind, steps);
  if (!graph) CMKD_TRY(capture(m, kind, steps, &graph, err));
  graph->used = ++m->clock;
  return cmkd_cuda_status(cudaGraphLaunch(graph->exec, m->backend->stream), "launching a step", err);
}
