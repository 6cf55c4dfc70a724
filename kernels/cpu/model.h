/* What the files of the CPU backend share: the backend, a model with its memory, the memory of each thread. Internal to
 * kernels/cpu. */
#ifndef CMKD_KERNELS_CPU_MODEL_H
#define CMKD_KERNELS_CPU_MODEL_H
#include "kernels/backend.h"
#include "kernels/cpu/conv/conv.h"
#include "kernels/plan.h"
#include "kernels/step.h"

struct cmkd_backend {
  int threads, dnnl;
  const cmkd_cpu_kernels *kernels;
  char text[128];
};
struct cmkd_be_images {
  cmkd_image_set set; /* borrowed arrays */
};

/* Per op: its convolution, and where its numbers lie: weights and folded bias in model->packed, the weight gradient in
 * every worker's packed_grad (offsets in floats). */
typedef struct cpu_op {
  cmkd_conv *conv;
  size_t forward_weights, backward_weights;
  size_t folded_weights, folded_bias; /* at inference, where a batch norm is folded in */
  size_t weight_grad;
  size_t channel; /* NORM: first channel in the statistics arrays; CONV, LINEAR with bias: in bias_sum */
} cpu_op;

/* The memory that one thread writes; as many as the backend has threads. Statistics are partial sums over the worker's
 * images until a barrier; every thread then combines those of all workers in worker order for itself, which gives each
 * the same bits and needs no second barrier. */
typedef struct cpu_worker {
  float *floats;   /* the memory behind the arrays of floats below */
  double *doubles; /* likewise */
  float *scratch, *local;
  float *packed_grad;                     /* (packed_grad_floats) weight gradients of its images */
  float *scale, *shift, *mean_f;          /* (channels) combined; what the kernels read, as the next two */
  float *dx_scale, *dx_shift;             /* (channels) dx = scale * dz + dx_scale * (x - mean) + dx_shift */
  float *chunk_mean, *chunk_m2;           /* (widest) */
  double *mean, *m2, *sum1, *sum2, *rstd; /* (channels) */
  double *count;                          /* (ops) pixels behind mean and m2 */
  double *bias_sum;                       /* (bias channels) */
} cpu_worker;

/* A piece of the update: some output channels of a weight, or a whole parameter. */
typedef struct cpu_update_item {
  int op, param;
  int first, count; /* output channels */
} cpu_update_item;

struct cmkd_be_model {
  cmkd_backend *backend;
  cmkd_model_config config;
  const cmkd_graph *graph;
  cpu_op *op;
  int *norm_of; /* (ops) the batch norm that a convolution takes in at inference, or -1 */
  cmkd_plan train, infer;
  cpu_worker *worker;                /* (threads) */
  float **value, **momentum, **grad; /* (params) plain layouts, in `storage` */
  float *grad_block;                 /* what grad[] points into, zeros between parameters and for buffers */
  size_t grad_block_floats;
  float *storage, *packed, *arena;
  size_t packed_floats, packed_grad_floats, channels, bias_channels, widest;
  double *batch_mean, *batch_var; /* (channels) of the running step, for the running statistics */
  cpu_update_item *item;          /* (items) */
  int items;
  int stale, fold_stale; /* packed weights are older than the values */
  int32_t *labels;       /* (batch) */
  void *loss_scratch, *agreement_scratch;
  cmkd_results results;
  int objectives, roots;
  cmkd_objective_term objective[CMKD_MAX_OUTPUTS];
  int root[CMKD_MAX_OUTPUTS + 1]; /* tensors whose gradients loss and objectives write */
  double *row_error;              /* (batch) of one objective */
};

/* run.c */
cmkd_status cmkd_cpu_train_step(cmkd_be_model *model, const cmkd_be_images *images, const cmkd_step *step,
                                cmkd_error *err);
/* outputs: one entry for each output of the graph, NULL for those that the caller does not want. */
cmkd_status cmkd_cpu_infer_step(cmkd_be_model *model, const cmkd_be_images *images, const cmkd_step *step,
                                float *const *outputs, cmkd_error *err);
/* update.c */
void cmkd_cpu_pack(cmkd_be_model *model);
void cmkd_cpu_fold(cmkd_be_model *model);
/* Gradients of all workers summed, reduced over ranks where the model has a hook for that, then the update. A hook that
 * fails leaves the parameters as they were. */
cmkd_status cmkd_cpu_update(cmkd_be_model *model, float lr, int count, cmkd_error *err);
#endif
