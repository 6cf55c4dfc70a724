/* What the files of the CPU backend share: the backend, a model with its memory, one lane per thread. Internal to
 * kernels/cpu. */
#ifndef CMKD_KERNELS_CPU_MODEL_H
#define CMKD_KERNELS_CPU_MODEL_H
#include "kernels/backend.h"
#include "kernels/cpu/conv/conv.h"
#include "kernels/plan.h"
#include "kernels/step.h"

#define CMKD_CPU_MAX_THREADS 1024

struct cmkd_backend {
  int threads, dnnl;
  const cmkd_cpu_kernels *kernels;
  char text[128];
};
struct cmkd_be_images {
  cmkd_image_set set; /* borrowed arrays */
};

/* Per op: its convolution, and where its numbers lie. Offsets in floats (packed, fold, lane gradients) or channels. */
typedef struct cpu_op {
  cmkd_conv *conv;
  size_t forward, backward, folded; /* packed weights in model->packed */
  size_t bias;                      /* folded bias in model->packed */
  size_t grad;                      /* packed weight gradient in each lane's grad */
  size_t channel; /* NORM: first channel in the statistics arrays; CONV, LINEAR with bias: in bias_sum */
} cpu_op;

/* The memory that one thread writes; as many as the backend has threads. Statistics are partial sums over the lane's
 * images until a barrier; every thread then combines those of all lanes in lane order for itself, which gives each the
 * same bits and needs no second barrier. */
typedef struct cpu_lane {
  float *floats;
  double *doubles; /* the memory behind the rest */
  float *scratch, *local, *grad;
  float *scale, *shift, *mean_f, *slope, *offset; /* (channels) combined, what the kernels read */
  float *chunk_mean, *chunk_m2;                   /* (widest) */
  double *mean, *m2, *sum1, *sum2, *rstd;         /* (channels) */
  double *count;                                  /* (ops) pixels behind mean and m2 */
  double *bias_sum;                               /* (bias channels) */
} cpu_lane;

typedef struct cpu_item {
  int op, param, first, count;
} cpu_item; /* update: output channels of a weight, or a whole parameter */

struct cmkd_be_model {
  cmkd_backend *backend;
  cmkd_model_config config;
  const cmkd_graph *graph;
  cpu_op *op;
  int *folded; /* (ops) */
  cmkd_plan train, infer;
  cpu_lane *lane;                    /* (threads) */
  float **value, **momentum, **grad; /* (params) plain layouts, in `storage` */
  float *storage, *packed, *arena;
  size_t packed_floats, grad_floats, channels, bias_channels, widest;
  double *batch_mean, *batch_var; /* (channels) of the running step, for the running statistics */
  cpu_item *item;
  int items;
  int stale, fold_stale; /* packed weights are older than the values */
  int32_t *labels;
  void *loss_scratch, *agreement_scratch;
  cmkd_results results;
  int objectives, roots;
  cmkd_objective_term objective[CMKD_MAX_OUTPUTS];
  int root[CMKD_MAX_OUTPUTS + 1]; /* tensors whose gradients loss and objectives write */
  double *row_error;              /* (batch) of one objective */
  float *gradients;               /* what grad[] points into: one block, zeros between parameters and for buffers */
  size_t gradient_floats;
};

/* run.c */
cmkd_status cmkd_cpu_train_step(cmkd_be_model *model, const cmkd_be_images *images, const cmkd_step *step,
                                cmkd_error *err);
/* outputs: one entry for each output of the graph, NULL for those that nobody wants. */
cmkd_status cmkd_cpu_infer_step(cmkd_be_model *model, const cmkd_be_images *images, const cmkd_step *step,
                                float *const *outputs, cmkd_error *err);
/* update.c */
void cmkd_cpu_pack(cmkd_be_model *model);
void cmkd_cpu_fold(cmkd_be_model *model);
/* Gradients of all lanes summed, reduced over ranks where the model has a hook for that, then the update. A hook that
 * fails leaves the parameters as they were. */
cmkd_status cmkd_cpu_update(cmkd_be_model *model, float lr, int count, cmkd_error *err);
#endif
