/* Which algorithm computes each convolution of a list, selected once for a number of rows, and the workspace that they
 * share. */
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/backend.h"

cmkd_cuda_conv_shape cmkd_cuda_shape_of(const cmkd_be_model *m, int index, int count) {
  const cmkd_op *op = &m->graph->op[index];
  const cmkd_shape in = m->graph->tensor[op->in[0]], out = m->graph->tensor[op->out];
  const int logits = op->out == cmkd_graph_logits(m->graph);
  cmkd_cuda_conv_shape s = {.n = count,
                            .h = in.h,
                            .w = in.w,
                            .c = in.c,
                            .oh = out.h,
                            .ow = out.w,
                            .k = out.c,
                            .kh = op->kernel_h,
                            .kw = op->kernel_w,
                            .stride = op->stride,
                            .pad = op->pad,
                            .groups = op->groups,
                            .y_stride = logits ? out.c : cmkd_cuda_stride(out.c),
                            .dtype = m->backend->dtype,
                            .y_dtype = logits ? CMKD_F32 : m->backend->dtype};
  if (op->kind == CMKD_OP_LINEAR) {
    s.kh = in.h;
    s.kw = in.w;
    s.stride = 1;
    s.pad = 0;
    s.groups = 1;
  }
  return s;
}

cuda_conv_algorithms *cmkd_cuda_algorithms_for(cmkd_be_model *m, cmkd_list list, int count) {
  for (int i = 0; i < m->algorithms_count; i++)
    if (m->algorithms[i].count == count && m->algorithms[i].infer == (list == CMKD_LIST_INFER))
      return &m->algorithms[i];
  return NULL;
}

/* The item of the training plan that computes an op's gradients; NULL: there is none, its output has no gradient. */
static const cmkd_plan_item *backward_item(const cmkd_be_model *m, int op) {
  for (int i = 0; i < m->train.items; i++)
    if (m->train.item[i].op == op && m->train.item[i].kind == CMKD_PLAN_BACKWARD) return &m->train.item[i];
  return NULL;
}

static void need(size_t *most, size_t bytes) {
  if (bytes > *most) *most = bytes;
}

static cmkd_status select_one(cmkd_be_model *m, const cmkd_conv_request *request, cmkd_conv_algorithm **out,
                              size_t *workspace, cmkd_error *err) {
  CMKD_TRY(cmkd_conv_select(m->backend->selector, request, out, err));
  need(workspace, cmkd_conv_algorithm_workspace(*out));
  return CMKD_OK;
}

static cmkd_status select_op(cmkd_be_model *m, cmkd_list list, int index, int count, cuda_conv_algorithms *algorithms,
                             size_t *workspace, cmkd_error *err) {
  cmkd_conv_algorithm **algorithm = algorithms->algorithm[index];
  const cmkd_op *op = &m->graph->op[index];
  cmkd_conv_request request = {.shape = cmkd_cuda_shape_of(m, index, count), .tf32 = m->backend->tf32};
  if (list == CMKD_LIST_INFER) {
    request.alone = 1; /* a cached row must not depend on the rows beside it */
    const cmkd_op *norm = m->folded[index] >= 0 ? &m->graph->op[m->folded[index]] : NULL;
    request.pass = norm || op->param[1] >= 0 ? CMKD_CONV_FORWARD_FUSED : CMKD_CONV_FORWARD;
    request.residual = norm && norm->in[1] >= 0;
    request.act = norm ? norm->act : CMKD_ACT_NONE;
    return select_one(m, &request, &algorithm[request.pass], workspace, err);
  }
  const cmkd_plan_item *backward = backward_item(m, index);
  request.pass = CMKD_CONV_FORWARD;
  CMKD_TRY(select_one(m, &request, &algorithm[request.pass], workspace, err));
  if (!backward) return CMKD_OK;
  if (op->param[1] >= 0) need(workspace, cmkd_cuda_conv_scratch(&request.shape));
  request.pass = CMKD_CONV_BACKWARD_WEIGHTS;
  CMKD_TRY(select_one(m, &request, &algorithm[request.pass], workspace, err));
  if (cmkd_conv_algorithm_dw_dtype(algorithm[request.pass]) != CMKD_F32) {
    const int64_t first = m->op[index].weight / CMKD_CUDA_CHUNK,
                  chunks = (cmkd_cuda_conv_weights(&request.shape) + CMKD_CUDA_CHUNK - 1) / CMKD_CUDA_CHUNK;
    memset(algorithms->from16_host + first, 1, (size_t)chunks);
  }
  if (backward->skip[0]) return CMKD_OK;
  request.pass = CMKD_CONV_BACKWARD_DATA;
  request.accumulate = backward->accumulate[0];
  return select_one(m, &request, &algorithm[request.pass], workspace, err);
}

void cmkd_cuda_algorithms_free(cmkd_be_model *m, cuda_conv_algorithms *c) {
  for (int i = 0; c->algorithm && i < m->graph->ops; i++)
    for (int pass = 0; pass <= CMKD_CONV_BACKWARD_WEIGHTS; pass++)
      if (c->algorithm[i][pass]) cmkd_conv_algorithm_free(c->algorithm[i][pass]);
  if (c->from16) (void)cudaFree(c->from16);
  free(c->algorithm);
  free(c->from16_host);
}

/* Makes the shared workspace larger; graphs that were captured before name the old one and are stale. */
static cmkd_status grow_workspace(cmkd_backend *b, size_t bytes, cmkd_error *err) {
  if (bytes <= b->workspace_bytes) return CMKD_OK;
  CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(b->stream), "workspace of the convolutions", err));
  if (b->workspace) (void)cudaFree(b->workspace);
  b->workspace = NULL;
  b->workspace_bytes = 0;
  b->workspace_generation++;
  CMKD_TRY(cmkd_cuda_status(cudaMalloc(&b->workspace, bytes), "workspace of the convolutions", err));
  b->workspace_bytes = bytes;
  return CMKD_OK;
}

static cmkd_status prepare(cmkd_be_model *m, cmkd_list list, cuda_conv_algorithms *c, cmkd_error *err) {
  const size_t chunks = (size_t)(m->values / CMKD_CUDA_CHUNK);
  size_t workspace = 256;
  c->algorithm = calloc((size_t)m->graph->ops, sizeof *c->algorithm);
  c->from16_host = calloc(chunks, 1);
  if (!c->algorithm || !c->from16_host) return cmkd_fail(err, CMKD_ERR_MEMORY, "out of memory");
  for (int i = 0; i < m->graph->ops; i++) {
    const cmkd_op *op = &m->graph->op[i];
    const cmkd_shape s = m->graph->tensor[op->out];
    if (op->kind == CMKD_OP_NORM) need(&workspace, cmkd_cuda_norm_scratch((int64_t)c->count * s.h * s.w, s.c));
    if (cuda_is_conv(op)) CMKD_TRY(select_op(m, list, i, c->count, c, &workspace, err));
  }
  if (m->grad16 && list == CMKD_LIST_TRAIN) {
    CMKD_TRY(cmkd_cuda_status(cudaMalloc((void **)&c->from16, chunks), "optimizer", err));
    CMKD_TRY(cmkd_cuda_put(m->backend, c->from16, c->from16_host, chunks, "optimizer", err));
  }
  return grow_workspace(m->backend, workspace, err);
}

cmkd_status cmkd_cuda_prepare(cmkd_be_model *m, cmkd_list list, int count, cmkd_error *err) {
  if (cmkd_cuda_algorithms_for(m, list, count)) return CMKD_OK;
  if (m->algorithms_count == CUDA_ALGORITHMS)
    return cmkd_fail(err, CMKD_ERR_UNSUPPORTED, "steps of more than %d different sizes", CUDA_ALGORITHMS);
  cuda_conv_algorithms *c = &m->algorithms[m->algorithms_count];
  *c = (cuda_conv_algorithms){.count = count, .infer = list == CMKD_LIST_INFER};
  cmkd_status status = prepare(m, list, c, err);
  if (status == CMKD_OK)
    m->algorithms_count++;
  else
    cmkd_cuda_algorithms_free(m, c);
  return status;
}
