/* The queue of steps: their input goes through pinned memory into a queue on the device. There are two buffers: one is
 * filled while the device works through the other. */
#include <string.h>
#include "kernels/cuda/backend.h"

#define BUFFER_BYTES ((size_t)16 << 20)

/* In the first slot of a buffer: where the state's cursors are to stand. */
typedef struct buffer_head {
  int input, output;
} buffer_head;
_Static_assert(offsetof(cmkd_cuda_state, input) == offsetof(buffer_head, input) &&
                   offsetof(cmkd_cuda_state, output) == offsetof(buffer_head, output),
               "one copy sets both cursors");

static size_t part(size_t *at, size_t bytes) {
  size_t from = *at;
  *at += (bytes + 255) / 256 * 256;
  return from;
}

void cmkd_cuda_queue_free(cmkd_be_model *m) {
  if (m->queue) (void)cudaFree(m->queue);
  if (m->staging) (void)cudaFreeHost(m->staging);
  m->queue = m->staging = NULL;
}

/* A slot's layout for what `carries` says. */
static void lay_out(const cmkd_be_model *m, unsigned carries, cmkd_cuda_slot_layout *q) {
  const size_t batch = (size_t)m->config.batch;
  size_t stride = 0;
  memset(q, 0, sizeof *q);
  part(&stride, sizeof(cmkd_cuda_slot));
  q->seeds = part(&stride, batch * sizeof(uint64_t));
  q->rows = part(&stride, batch * sizeof(uint32_t));
  q->labels = part(&stride, batch * sizeof(int32_t));
  for (int t = 0; t < m->targets && m->config.train; t++) {
    q->index[t] = part(&stride, batch * sizeof(uint32_t));
    if (carries & CUDA_CARRIES_TARGET(t)) q->target[t] = part(&stride, batch * (size_t)m->width[t] * sizeof(float));
  }
  if (carries & CUDA_CARRIES_PIXELS) q->pixels = part(&stride, batch * cuda_image_bytes(m));
  q->stride = stride;
}

cmkd_status cmkd_cuda_queue_make(cmkd_be_model *m, unsigned carries, cmkd_error *err) {
  if (m->staging && !(carries & ~m->carries)) return CMKD_OK;
  CMKD_TRY(cmkd_cuda_status(cudaStreamSynchronize(m->backend->stream), "queue", err));
  cmkd_cuda_forget_graphs(m);
  cmkd_cuda_queue_free(m);
  m->carries |= carries;
  lay_out(m, m->carries, &m->layout);
  const size_t stride = m->layout.stride, fit = BUFFER_BYTES / stride;
  m->slots = fit > CUDA_MAX_SLOTS ? CUDA_MAX_SLOTS : (int)fit;
  if (m->slots < 1) m->slots = 1;
  const size_t bytes = CUDA_BUFFERS * (size_t)(m->slots + 1) * stride;
  CMKD_TRY(cmkd_cuda_status(cudaMalloc((void **)&m->queue, bytes), "queue of steps", err));
  CMKD_TRY(cmkd_cuda_status(cudaHostAlloc((void **)&m->staging, bytes, cudaHostAllocDefault), "pinned memory", err));
  memset(m->staging, 0, bytes);
  m->layout.slots = m->queue;
  return cmkd_cuda_status(cudaMemsetAsync(m->queue, 0, bytes, m->backend->stream), "queue of steps", err);
}

static void fill_slot(const cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *step, char *slot) {
  const cmkd_cuda_slot_layout *q = &m->layout;
  const size_t image = cuda_image_bytes(m), count = (size_t)step->count;
  uint64_t *seeds = (uint64_t *)(slot + q->seeds), clean = cmkd_clean_seed(m->config.policy);
  int32_t *labels = (int32_t *)(slot + q->labels);
  *(cmkd_cuda_slot *)slot = (cmkd_cuda_slot){(float)step->lr, step->epoch, step->entropy_mean};
  memcpy(slot + q->rows, step->rows, count * sizeof *step->rows);
  for (size_t i = 0; i < count; i++) {
    seeds[i] = step->seeds ? step->seeds[i] : clean;
    labels[i] = images->set.labels ? images->set.labels[step->rows[i]] : 0;
    if (!images->resident) memcpy(slot + q->pixels + i * image, images->set.pixels + step->rows[i] * image, image);
  }
  for (int t = 0; t < m->targets; t++) {
    const cmkd_target *target = &step->target[t];
    if (target->resident && q->index[t])
      memcpy(slot + q->index[t], target->index, count * sizeof *target->index);
    else if (target->values && q->target[t])
      memcpy(slot + q->target[t], target->values, count * (size_t)m->width[t] * sizeof(float));
  }
}

cmkd_status cmkd_cuda_queue_send(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                                 cmkd_error *err) {
  cudaStream_t stream = m->backend->stream;
  const size_t stride = m->layout.stride;
  const int head = m->buffer * (m->slots + 1);
  char *host = m->staging + (size_t)head * stride, *device = m->queue + (size_t)head * stride;
  if (m->in_flight[m->buffer])
    CMKD_TRY(cmkd_cuda_status(cudaEventSynchronize(m->taken[m->buffer]), "waiting for earlier steps", err));
  m->in_flight[m->buffer] = 0;
  *(buffer_head *)host = (buffer_head){head + 1, m->pending};
  for (int i = 0; i < k; i++)
    fill_slot(m, images, &steps[i], host + (size_t)(i + 1) * stride);
  CMKD_TRY(cmkd_cuda_status(cudaMemcpyAsync(device, host, (size_t)(k + 1) * stride, cudaMemcpyHostToDevice, stream),
                            "sending steps", err));
  return cmkd_cuda_status(cudaMemcpyAsync(m->state, device, sizeof(buffer_head), cudaMemcpyDeviceToDevice, stream),
                          "sending steps", err);
}

cmkd_status cmkd_cuda_queue_taken(cmkd_be_model *m, cmkd_error *err) {
  CMKD_TRY(cmkd_cuda_status(cudaEventRecord(m->taken[m->buffer], m->backend->stream), "sending steps", err));
  m->in_flight[m->buffer] = 1;
  m->buffer = (m->buffer + 1) % CUDA_BUFFERS;
  return CMKD_OK;
}
