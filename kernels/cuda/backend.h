/* What the C files of the CUDA backend share: a device with its stream, images, a model with its memory. Internal to
 * kernels/cuda.
 *
 *   plugin.c      the table; looking for a device
 *   selfcheck.c   whether the device computes what the CPU does
 *   resident.c    images and rows of targets in device memory
 *   model.c       a model's memory, parameters in and out
 *   params.c      layouts: PyTorch's <-> the device's; batch norm folded for inference
 *   algorithms.c  which algorithm computes each convolution; their workspace
 *   list.c        one step queued op by op
 *   queue.c       input of many steps through pinned memory to the device
 *   graphs.c      steps captured, and launched again
 *   run.c         training steps and their results
 *   infer.c       inference steps and their outputs
 *   resume.c      what a resumed run finds again
 *   profile.c     where a step's time goes, on request
 *
 * Kernels are in the .cu files: step.cu, images.cu, rows.cu, norm.cu, pool.cu, pointwise.cu, conv/ and loss/.
 *
 * One stream does everything in order; a side stream takes what is not needed before the step's end. */
#ifndef CMKD_KERNELS_CUDA_BACKEND_H
#define CMKD_KERNELS_CUDA_BACKEND_H
#include "kernels/backend.h"
#include "kernels/plan.h"
#include "kernels/step.h"
#include "kernels/cuda/conv/conv.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/step.h"

struct cmkd_backend {
  int device, tf32;
  cmkd_dtype dtype; /* of activations and of the weights that convolutions read */
  char precision[8], name[256], text[400];
  cudaStream_t stream, side;
  cudaEvent_t fork, join; /* of the side stream from the other one and back */
  cmkd_cudnn *cudnn;      /* NULL: our own kernels compute all convolutions */
  cmkd_conv_selector *selector;
  void *workspace; /* of convolutions and norms, shared by all models: they take turns on one stream */
  size_t workspace_bytes;
  int workspace_generation; /* counts how often it was replaced: graphs captured before that are stale */
  char *profile;            /* file that models write where their time went to; NULL: none */
  int check;                /* no graphs, wait after every operation and name the one that failed */
  int streamed;             /* images and teacher rows stay on the host */
  uint64_t serial; /* of the last images or rows. Captured graphs know them by it, for an address may be used again */
};

struct cmkd_be_images {
  cmkd_backend *backend;
  cmkd_image_set set; /* the host's arrays, borrowed */
  uint8_t *resident;  /* the same pixels in device memory; NULL: they go through the queue, row by row */
  uint64_t serial;
};

struct cmkd_be_rows {
  cmkd_backend *backend;
  cmkd_dtype dtype; /* CMKD_F32, CMKD_F16; CMKD_U8: u8sqrt */
  uint64_t n;
  int width;
  char *data;                    /* (n, width) of dtype, device memory */
  uint16_t *row_max, *row_range; /* (n) float16, device memory; u8sqrt only */
  uint64_t serial;
};

/* Where an op's numbers lie, in elements; -1: it has none. */
typedef struct cuda_op {
  int64_t weight, bias; /* convolutions: in value, momentum, grad, copy */
  int64_t gamma, beta;  /* NORM: in the same arrays */
  size_t channel;       /* NORM: first of its channels in the statistics; convolutions: in the inference biases */
} cuda_op;

/* What computes the convolutions of a list at one number of rows. */
typedef struct cuda_conv_algorithms {
  int count;                                                         /* rows */
  int infer;                                                         /* 1: of the INFER list */
  cmkd_conv_algorithm *(*algorithm)[CMKD_CONV_BACKWARD_WEIGHTS + 1]; /* (ops)[pass] */
  uint8_t *from16_host; /* (values / CMKD_CUDA_CHUNK) chunks whose weight gradients are 16 bits wide */
  uint8_t *from16;      /* the same in device memory; NULL where all gradients are float */
  unsigned loaded;      /* bits (graphs.c): kernels that such steps have launched, so that they are on the device */
} cuda_conv_algorithms;

/* All that decides what is queued for a step: steps of one kind (cmkd_cuda_same_kind) share a captured graph. */
typedef struct cuda_step_kind {
  cmkd_list list;
  int count; /* rows */
  const cmkd_be_images *images;
  const cmkd_be_rows *rows[CMKD_MAX_TARGETS]; /* targets that come by index from resident rows; else NULL */
  uint64_t images_serial;                     /* of `images` */
  uint64_t rows_serial[CMKD_MAX_TARGETS];     /* of `rows`; 0 without */
  unsigned values;                            /* bit t: target t's rows are in the queue */
} cuda_step_kind;

typedef struct cuda_graph {
  cudaGraphExec_t exec; /* NULL: this entry is free */
  cuda_step_kind kind;  /* its images and rows may have been freed since: they are not followed */
  int steps;            /* in a row */
  int generation;       /* workspace_generation at capture */
  uint64_t used;        /* model's clock at the last use, for eviction */
} cuda_graph;

/* Classes of work in a profile. */
typedef enum cuda_class {
  CUDA_INPUT,
  CUDA_CONV_FORWARD,
  CUDA_CONV_DATA,
  CUDA_CONV_WEIGHTS,
  CUDA_NORM,
  CUDA_OTHER,
  CUDA_LOSS,
  CUDA_UPDATE,
  CUDA_CLASSES
} cuda_class;
typedef struct cuda_profile cuda_profile;

enum {
  CUDA_GRAPHS = 16,     /* captured at once */
  CUDA_ALGORITHMS = 16, /* numbers of rows, TRAIN and INFER apart */
  CUDA_RESULTS = 256,   /* steps whose results wait on the device */
  CUDA_BUFFERS = 2,     /* of the queue */
  CUDA_MAX_SLOTS = 64   /* of a buffer */
};
/* What a slot of the queue has room for, as bits. */
#define CUDA_CARRIES_PIXELS 1u
#define CUDA_CARRIES_TARGET(t) (2u << (unsigned)(t))

struct cmkd_be_model {
  cmkd_backend *backend;
  cmkd_model_config config;
  const cmkd_graph *graph;
  int targets;                 /* that steps carry */
  int width[CMKD_MAX_TARGETS]; /* (targets) numbers a row */
  cmkd_objective_term objective[CMKD_MAX_OUTPUTS];
  cuda_op *op; /* (ops) */
  int *folded; /* (ops): the batch norm that a convolution takes in at inference, or -1 */
  cmkd_plan train, infer;
  int64_t values;  /* trained numbers with their padding, a multiple of CMKD_CUDA_CHUNK */
  size_t channels; /* of all batch norms, padded */
  size_t biases;   /* of all convolutions, padded: for inference */
  /* Device memory in two allocations. arena: activations and their gradients; memory: the arrays from here to
   * `results`. Those that only training needs are NULL in a model that does not train. */
  char *memory, *arena;
  float *value;                               /* (values) master weights */
  float *momentum, *grad;                     /* (values) training */
  void *copy, *grad16;                        /* (values) of dtype, training; NULL where that is float */
  float *mean, *var;                          /* (channels) running statistics */
  float *batch_mean, *batch_var, *batch_rstd; /* (channels) training */
  float *norm_momentum;                       /* (channels) training: weight of a batch in the running statistics */
  int32_t *pixels;                            /* (channels) training: pixels of an image, h * w of the norm's tensor */
  void *fold_weight;                          /* (values) of dtype, for inference */
  float *fold_bias;                           /* (biases) for inference */
  float *output[CMKD_MAX_OUTPUTS];            /* (batch, width) each; logits are computed here */
  float *logits_grad;                         /* (batch, classes) training */
  float *pixel_table;                         /* (4, 256) cmkd_cuda_pixel_table */
  void *loss_scratch, *agreement_scratch, *objective_scratch;
  cmkd_cuda_state *state;
  cmkd_cuda_input input;
  cmkd_step_result *results; /* (CUDA_RESULTS) */
  /* The queue: two buffers, so that one is filled while the device works through the other. A buffer's first slot says
   * where the cursors are to stand, `slots` steps follow. */
  char *queue;   /* device memory (buffers, 1 + slots, stride) */
  char *staging; /* the same in pinned memory of the host */
  cmkd_cuda_slot_layout layout;
  int slots;
  unsigned carries;                /* CUDA_CARRIES_... */
  cudaEvent_t taken[CUDA_BUFFERS]; /* the device has passed what was queued from a buffer */
  int in_flight[CUDA_BUFFERS];     /* whether that event was recorded */
  int buffer;                      /* to be filled next */
  /* outputs of inference steps, pinned; made by the first ones */
  float *out; /* (out_steps, out_floats) */
  size_t out_floats, out_at[CMKD_MAX_OUTPUTS];
  int out_steps;
  /* host */
  float *host;    /* (values): uploads, downloads */
  int fold_stale; /* fold_weight and fold_bias are not those of `value` */
  cuda_conv_algorithms algorithms[CUDA_ALGORITHMS];
  int algorithms_count;
  int trained_count; /* rows of the last TRAIN step, whose gradients are there */
  cuda_graph captured[CUDA_GRAPHS];
  uint64_t clock;        /* counts launches of graphs */
  cuda_profile *profile; /* NULL: not asked for */
  int pending;           /* results on the device that were not fetched yet */
  cmkd_results fetched;  /* that were not read yet */
};

static inline size_t cuda_dtype_size(cmkd_dtype dtype) { return dtype == CMKD_F32 ? 4 : 2; }
static inline int cuda_is_conv(const cmkd_op *op) { return op->kind == CMKD_OP_CONV || op->kind == CMKD_OP_LINEAR; }
static inline int cuda_is_logits(const cmkd_be_model *m, int tensor) { return tensor == cmkd_graph_logits(m->graph); }
static inline int cuda_has_teacher(const cuda_step_kind *kind) {
  return kind->rows[CMKD_TARGET_TEACHER] || (kind->values >> CMKD_TARGET_TEACHER & 1);
}
static inline size_t cuda_image_bytes(const cmkd_be_model *m) {
  const cmkd_shape in = m->graph->tensor[0];
  return (size_t)in.h * (size_t)in.w * (size_t)in.c;
}

/* plugin.c: CMKD_OK or one line: what was done, what the runtime says, and what to do about it */
cmkd_status cmkd_cuda_status(cudaError_t error, const char *what, cmkd_error *err);

/* plugin.c: makes the backend's device the calling thread's; every function of the table begins with it, for there may
 * be several backends and threads */
cmkd_status cmkd_cuda_use(const cmkd_backend *b, cmkd_error *err);

/* plugin.c: copies of pageable memory, behind everything that was queued before; both wait */
cmkd_status cmkd_cuda_put(cmkd_backend *b, void *device, const void *host, size_t bytes, const char *what,
                          cmkd_error *err);
cmkd_status cmkd_cuda_get(cmkd_backend *b, void *host, const void *device, size_t bytes, const char *what,
                          cmkd_error *err);

/* selfcheck.c: CMKD_ERR_DEVICE where two steps of a small network differ from the CPU backend's by more than the
 * precision explains */
cmkd_status cmkd_cuda_selfcheck(const cmkd_backend_table *table, cmkd_backend *backend, cmkd_error *err);

/* resident.c */
cmkd_status cmkd_cuda_images_create(cmkd_backend *b, const cmkd_image_set *set, cmkd_be_images **out, cmkd_error *err);
void cmkd_cuda_images_free(cmkd_be_images *images);
cmkd_status cmkd_cuda_rows_create(cmkd_backend *b, const char *codec, uint64_t rows, int classes, cmkd_be_rows **out,
                                  cmkd_error *err);
cmkd_status cmkd_cuda_rows_write(cmkd_be_rows *rows, uint64_t first, uint64_t count, const void *data,
                                 const uint16_t *row_max, const uint16_t *row_range, cmkd_error *err);
void cmkd_cuda_rows_free(cmkd_be_rows *rows);

/* model.c */
cmkd_status cmkd_cuda_model_create(cmkd_backend *backend, const cmkd_model_config *config, cmkd_be_model **out,
                                   cmkd_error *err);
void cmkd_cuda_model_free(cmkd_be_model *model);
cmkd_status cmkd_cuda_upload(cmkd_be_model *model, cmkd_param_slot slot, const float *const *params, cmkd_error *err);
cmkd_status cmkd_cuda_download(cmkd_be_model *model, cmkd_param_slot slot, float *const *params, cmkd_error *err);
cmkd_status cmkd_cuda_gradients(cmkd_be_model *model, float *const *params, cmkd_error *err);

/* params.c. `wide` is an array of m->values floats in device layout. */
void cmkd_cuda_param_store(const cmkd_be_model *m, int param, const float *from, float *wide);
void cmkd_cuda_param_load(const cmkd_be_model *m, int param, const float *wide, float *to);
/* Weights and biases as inference reads them: batch norm folded in double. value: (values), mean, var: (channels);
 * weight (values), bias (biases). */
void cmkd_cuda_fold(const cmkd_be_model *m, const float *value, const float *mean, const float *var, float *weight,
                    float *bias);

/* resume.c */
cmkd_status cmkd_cuda_save(cmkd_be_model *model, char **text, cmkd_error *err);
cmkd_status cmkd_cuda_load(cmkd_be_model *model, const char *text, int *used, cmkd_error *err);

/* profile.c; mark: what was queued since the last mark is of that class */
cmkd_status cmkd_cuda_profile_open(cmkd_be_model *m, cmkd_error *err);
void cmkd_cuda_profile_mark(cmkd_be_model *m, cuda_class class);
void cmkd_cuda_profile_nodes(cmkd_be_model *m, int nodes);
cmkd_status cmkd_cuda_profile_step(cmkd_be_model *m, cmkd_error *err);
void cmkd_cuda_profile_close(cmkd_be_model *m);

/* algorithms.c */
cmkd_cuda_conv_shape cmkd_cuda_shape_of(const cmkd_be_model *m, int op, int count);
/* Selects the algorithms of all convolutions at `count` rows and makes the workspace large enough; may wait and
 * allocate, so not while capturing. */
cmkd_status cmkd_cuda_prepare(cmkd_be_model *m, cmkd_list list, int count, cmkd_error *err);
void cmkd_cuda_algorithms_free(cmkd_be_model *m, cuda_conv_algorithms *algorithms);
cuda_conv_algorithms *cmkd_cuda_algorithms_for(cmkd_be_model *m, cmkd_list list, int count); /* NULL: not prepared */

/* run.c: the kind of a step that passed its checks; and whether two kinds are queued alike, so that a graph of one
 * serves the other. Images and rows are told apart by their serials, for an address may be used again. */
cuda_step_kind cmkd_cuda_kind_of(const cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images,
                                 const cmkd_step *step);
int cmkd_cuda_same_kind(const cuda_step_kind *a, const cuda_step_kind *b);

/* list.c: queues one step of a kind: input from the queue, everything, its result. */
cmkd_status cmkd_cuda_queue_step(cmkd_be_model *m, const cuda_step_kind *kind, cmkd_error *err);

/* queue.c */
/* Makes the queue, or makes it anew where `carries` asks for more than its slots have room for: for what steps have
 * brought along so far. */
cmkd_status cmkd_cuda_queue_make(cmkd_be_model *m, unsigned carries, cmkd_error *err);
void cmkd_cuda_queue_free(cmkd_be_model *m);
/* Fills the next buffer with k steps, once the device has passed everything that used it before, and queues its copy to
 * the device. After the steps themselves were queued cmkd_cuda_queue_taken() goes on to the other buffer. */
cmkd_status cmkd_cuda_queue_send(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                                 cmkd_error *err);
cmkd_status cmkd_cuda_queue_taken(cmkd_be_model *m, cmkd_error *err);

/* graphs.c */
/* Queues `steps` equal steps: one launch of a graph. The first of their kind are queued op by op, so that every kernel
 * is loaded before it is captured; so are all where each operation is to be checked. */
cmkd_status cmkd_cuda_launch(cmkd_be_model *m, const cuda_step_kind *kind, int steps, cmkd_error *err);
void cmkd_cuda_forget_graphs(cmkd_be_model *m);

/* infer.c */
cmkd_status cmkd_cuda_run_infer(cmkd_be_model *m, const cmkd_be_images *images, const cmkd_step *steps, int k,
                                float *const *outputs, cmkd_error *err);

/* run.c */
cmkd_status cmkd_cuda_run(cmkd_be_model *m, cmkd_list list, const cmkd_be_images *images, const cmkd_step *steps, int k,
                          float *const *outputs, cmkd_error *err);
cmkd_status cmkd_cuda_read(cmkd_be_model *m, cmkd_step_result *results, int *k, cmkd_error *err);
#endif
